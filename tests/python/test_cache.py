"""Caches of gearkv: what goes in as it lies, what comes out, and what is refused."""
import concurrent.futures
import io
import os
import subprocess
import sys
import threading
import time

import gearkv
import numpy as np
import pytest

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

N_LAYERS, N_KV_HEADS, N_HEADS, DIM = 2, 2, 4, 64


def config(**changes):
    settings = dict(spec="gear-4", n_layers=N_LAYERS, n_kv_heads=N_KV_HEADS, head_dim=DIM, max_tokens=1000)
    settings.update(changes)
    return gearkv.Config(**settings)


def random_rows(n, seed=1, heads=N_KV_HEADS):
    return np.random.default_rng(seed).standard_normal((n, heads, DIM), np.float32)


def filled(n=300, **changes):
    cache = gearkv.Cache(config(**changes))
    for layer in range(N_LAYERS):
        cache.append(layer, random_rows(n, layer), random_rows(n, 10 + layer))
    return cache


def softmax_attention(queries, keys, values):
    """What a plain cache answers to queries that see all tokens."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, group, 1), np.repeat(values, group, 1)
    scores = np.einsum("qhd,thd->qht", queries, keys).astype(np.float64) / np.sqrt(queries.shape[2])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("qht,thd->qhd", weights, values)


def test_version_and_levels():
    assert gearkv.__version__.count(".") == 2
    assert "scalar" in gearkv.levels()
    assert gearkv.Cache(config(level="scalar")).level == "scalar"
    assert len(gearkv.format_spec("gear-4")) > 0


def test_attention_is_softmax_attention():
    keys, values, queries = random_rows(300), random_rows(300, 2), random_rows(3, 3, N_HEADS)
    for spec, tolerance in (("f32", 1e-5), ("f16", 2e-3), ("q8", 2e-2), ("gear-4", 2e-1)):
        cache = gearkv.Cache(config(spec=spec))
        cache.append(0, keys, values)
        out = cache.attend(0, queries, causal=False)
        expected = softmax_attention(queries, keys, values)
        error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
        assert out.dtype == np.float32 and out.shape == queries.shape and error < tolerance, spec
        one = cache.attend(0, queries[1], causal=False)
        assert one.shape == queries[1].shape and np.array_equal(one, out[1])


def test_rows_of_any_stride_are_the_same_rows():
    keys, values, queries = random_rows(200), random_rows(200, 2), random_rows(1, 3, N_HEADS)[0]
    expected = gearkv.Cache(config())
    expected.append(0, keys, values)
    wide = np.zeros((200, 5, N_KV_HEADS, DIM), np.float32)
    wide[:, 3] = keys
    heads_first = np.ascontiguousarray(values.transpose(1, 0, 2)).transpose(1, 0, 2)
    channels_first = np.ascontiguousarray(values.transpose(2, 0, 1)).transpose(1, 2, 0)
    backwards = np.ascontiguousarray(values[::-1])[::-1]
    for k, v in (
        (wide[:, 3], heads_first),
        (keys.tolist() and memoryview(keys), channels_first),
        (keys.astype(np.float64), backwards),
        (np.require(keys, requirements="W"), values),
    ):
        cache = gearkv.Cache(config())
        cache.append(0, k, v)
        assert np.array_equal(cache.attend(0, queries), expected.attend(0, queries))
    strided = np.zeros((N_HEADS, 2 * DIM), np.float32)[:, ::2]
    strided[:] = queries
    assert np.array_equal(expected.attend(0, strided), expected.attend(0, queries))


def test_floats_are_taken_without_a_copy():
    from gearkv import _arrays

    rows = random_rows(10)
    for array in (rows, rows.astype(np.float16)):
        for view in (array, array[::2], array[:, 1:], array.transpose(1, 0, 2), array[:, :, ::2], array.transpose(2, 1, 0)):
            assert _arrays.typed(view, "rows", (3,)).ctypes.data == view.ctypes.data
        for view in (array[::-1], array.astype(np.float64), array.astype(array.dtype.newbyteorder())):
            assert not np.shares_memory(_arrays.typed(view, "rows", (3,)), view)
    assert not np.shares_memory(_arrays.floats(rows[:, :, ::2], "rows", (3,)), rows)
    row = rows[:1]
    assert _arrays.stride(row, 0) == N_KV_HEADS * DIM and _arrays.stride(row, 1) == DIM


def test_half_floats_are_what_they_stand_for():
    rows, queries = random_rows(100), random_rows(1, 3, N_HEADS)[0]
    types = [np.float16]
    try:
        import ml_dtypes

        types.append(ml_dtypes.bfloat16)
    except ImportError:
        pass
    for dtype in types:
        half = rows.astype(dtype)
        cache, expected = gearkv.Cache(config()), gearkv.Cache(config())
        cache.append(0, half, half)
        expected.append(0, half.astype(np.float32), half.astype(np.float32))
        half_queries = queries.astype(dtype)
        assert np.array_equal(
            cache.attend(0, half_queries), expected.attend(0, half_queries.astype(np.float32))
        )
        # Keys transposed, [head, channel, token].
        transposed = np.ascontiguousarray(half.transpose(1, 2, 0)).transpose(2, 0, 1)
        again = gearkv.Cache(config())
        again.append(0, transposed, half)
        assert np.array_equal(again.attend(0, half_queries), cache.attend(0, half_queries))


def test_what_is_no_array_of_floats_is_refused():
    cache, rows = gearkv.Cache(config()), random_rows(4)
    with pytest.raises(TypeError, match="keys of type int64"):
        cache.append(0, rows.astype(np.int64), rows)
    with pytest.raises(ValueError, match="expected 3 axes"):
        cache.append(0, rows[0], rows)
    with pytest.raises(ValueError, match="values of shape"):
        cache.append(0, rows, rows[:3])
    with pytest.raises(ValueError, match="keys of shape"):
        cache.append(0, rows[:, :1], rows)
    cache.append(0, rows, rows)
    with pytest.raises(ValueError, match="queries of 32 channels"):
        cache.attend(0, random_rows(1, 3, N_HEADS)[0][:, :32])
    with pytest.raises(ValueError, match=r"out of float64 and shape \(2, 64\), expected a float32.* of shape \(2, 64\)"):
        cache.attend(0, rows[0], out=np.empty((N_KV_HEADS, DIM)))
    with pytest.raises(TypeError, match="out of type list, expected a NumPy array"):
        cache.attend(0, rows[0], out=[])
    with pytest.raises(ValueError, match="mask of shape"):
        cache.attend(0, rows, mask=np.zeros((4, 3), np.float32))
    with pytest.raises(ValueError, match="slopes of shape"):
        cache.attend(0, rows, slopes=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="tokens 0 to 5 of 4"):
        cache.read(0, 0, 5)
    assert cache.n_tokens() == 4


def test_outputs_have_the_type_that_is_asked_for():
    cache, queries = filled(), random_rows(2, 3, N_HEADS)
    plain = cache.attend(0, queries)
    keys, values = cache.read(0, 5, 20)
    kinds = [np.float16]
    if ml_dtypes is not None:
        kinds.append(ml_dtypes.bfloat16)
    for kind in kinds:
        found = cache.attend(0, queries, dtype=kind)
        assert found.dtype == kind and np.array_equal(found, plain.astype(kind))
        out = np.empty_like(found)
        assert cache.attend(0, queries, out=out) is out and np.array_equal(out, found)
        short = cache.read(0, 5, 20, dtype=kind)
        assert short[0].dtype == kind and np.array_equal(short[0], keys.astype(kind))
        assert np.array_equal(short[1], values.astype(kind))
        with pytest.raises(ValueError, match="expected float32"):
            cache.attend(0, queries, out=out, dtype=np.float32)
    with pytest.raises(TypeError, match="dtype float64"):
        cache.attend(0, queries, dtype=np.float64)


def places(shape, dtype=np.float32):
    """Arrays of that shape whose elements lie in all manners, and what must stay as it is around them."""
    n, heads, dim = shape
    for lay in (
        lambda: np.zeros((n, heads, 2 * dim), dtype)[..., ::2],
        lambda: np.zeros((n, 3, heads, dim + 8), dtype)[:, 1, :, 8:],
        lambda: np.zeros((heads, dim, n), dtype).transpose(2, 0, 1),
        lambda: np.zeros((dim, n, heads), dtype).transpose(1, 2, 0),
    ):
        view = lay()
        whole = view if view.base is None else view.base
        yield view, whole


def test_outputs_lie_anywhere():
    cache, queries = filled(), random_rows(2, 3, N_HEADS)
    plain, (keys, values) = cache.attend(0, queries), cache.read(0, 5, 20)
    for dtype in (np.float32, np.float16):
        for out, whole in places(plain.shape, dtype):
            assert cache.attend(0, queries, out=out) is out and np.array_equal(out, plain.astype(dtype))
            assert np.count_nonzero(whole) == np.count_nonzero(out)
            out[:] = 0
            assert cache.attend(0, queries[1], out=out[1]) is not None
            assert np.array_equal(out[1], plain[1].astype(dtype)) and np.count_nonzero(whole) == np.count_nonzero(out[1])
        for out, whole in places(keys.shape, dtype):
            found = cache.read(0, 5, 20, out=(out, None))
            assert found[0] is out and np.array_equal(out, keys.astype(dtype)) and np.array_equal(found[1], values)
            assert np.count_nonzero(whole) == np.count_nonzero(out)
            assert cache.read(0, 5, 20, out=(None, out))[1] is out and np.array_equal(out, values.astype(dtype))
    both = np.zeros((20, N_KV_HEADS, 2, DIM), np.float32)
    cache.read(0, 5, 20, out=(both[:, :, 0], both[:, :, 1]))
    assert np.array_equal(both[:, :, 0], keys) and np.array_equal(both[:, :, 1], values)


def test_outputs_that_cannot_be_written_to_are_refused():
    cache, queries = filled(), random_rows(2, 3, N_HEADS)
    room = np.zeros((2, N_HEADS, 2 * DIM), np.float32)
    fixed = room[..., :DIM]
    fixed.flags.writeable = False
    odd = np.zeros(2 * N_HEADS * DIM * 4 + 2, np.uint8)[2:].view(np.float32).reshape(2, N_HEADS, DIM)
    repeated = np.lib.stride_tricks.as_strided(room, (2, N_HEADS, DIM), (0, 4 * DIM, 4))
    folded = np.lib.stride_tricks.as_strided(room, (2, N_HEADS, DIM), (4 * N_HEADS * DIM, 4, 4))
    for out, text in (
        (fixed, "read-only"),
        (room[::-1, :, :DIM], r"strides \(-2048, 512, 4\), expected strides above 0 in multiples of 4"),
        (repeated, "expected strides above 0"),
        (folded, "do not overlap"),
        (odd, "expected a multiple of 4"),
        (np.zeros((2, N_HEADS, DIM), ">f4"), "out of >f4"),
        (room, r"shape \(2, 4, 128\), expected a float32.*\(2, 4, 64\)"),
    ):
        with pytest.raises(gearkv.InvalidValue, match=text) as caught:
            cache.attend(0, queries, out=out)
        assert isinstance(caught.value, ValueError) and caught.value.code > 0
    for out, text in ((room[:, ::-2, :DIM], "keys of shape .* strides"), (room, "keys of float32 and shape")):
        with pytest.raises(gearkv.InvalidValue, match=text):
            cache.read(0, 0, 2, out=(out, None))
    assert not room.any() and not odd.any()


def test_outputs_that_overlap_what_is_read_are_refused():
    cache = filled()
    room = np.zeros((2, N_HEADS, 2, DIM), np.float32)
    queries, beside = room[:, :, 0], room[:, :, 1]
    queries[:] = random_rows(2, 3, N_HEADS)
    expected = cache.attend(0, queries)
    # Elements between those that are read are free.
    assert np.array_equal(cache.attend(0, queries, out=beside), expected)
    before = room.copy()
    mask = np.zeros((2, 300), np.float32)
    sinks = np.zeros((2, N_HEADS, DIM), np.float32)
    for out, given, text in (
        (queries, {}, "out overlaps queries"),
        (room.reshape(-1)[8 : 8 + queries.size].reshape(queries.shape), {}, "out overlaps queries"),
        (mask.reshape(-1)[: queries.size].reshape(queries.shape), {"mask": mask}, "out overlaps mask"),
        (sinks, {"sinks": sinks[0, :, 0]}, "out overlaps sinks"),
        (sinks, {"slopes": sinks[1, :, 7]}, "out overlaps slopes"),
    ):
        with pytest.raises(gearkv.InvalidValue, match=text) as caught:
            cache.attend(0, queries, out=out, **given)
        assert isinstance(caught.value, ValueError) and caught.value.name == "invalid_argument"
    keys = np.zeros((3, N_KV_HEADS, DIM), np.float32)
    with pytest.raises(gearkv.InvalidValue, match="keys overlaps values"):
        cache.read(0, 0, 2, out=(keys[:2], keys[1:]))
    assert np.array_equal(room, before) and not (mask.any() or sinks.any() or keys.any())


def test_outputs_of_a_batch_are_apart():
    workspace = gearkv.Workspace()
    caches = [gearkv.Cache(config(), workspace=workspace) for _ in range(2)]
    for i, cache in enumerate(caches):
        cache.append(0, random_rows(40, i), random_rows(40, 10 + i))
    queries = [random_rows(2, 20 + i, N_HEADS) for i in range(2)]
    expected = gearkv.attend_batch(0, caches, queries)
    room = np.zeros((2, N_HEADS, 2, DIM), np.float16)
    outs = [room[:, :, 0], room[:, :, 1]]
    assert gearkv.attend_batch(0, caches, queries, outs=outs)[1] is outs[1]
    assert all(np.array_equal(a, b.astype(np.float16)) for a, b in zip(outs, expected))
    outs = [None, np.zeros((2, N_HEADS, DIM), np.float32)]
    assert np.array_equal(gearkv.attend_batch(0, caches, queries, outs=outs)[0], expected[0])
    assert np.array_equal(outs[1], expected[1])
    with pytest.raises(gearkv.InvalidValue, match="out 1 overlaps out 0"):
        gearkv.attend_batch(0, caches, queries, outs=[outs[1], outs[1]])
    with pytest.raises(gearkv.InvalidValue, match="out 0 overlaps queries 1"):
        gearkv.attend_batch(0, caches, queries, outs=[queries[1], None])
    with pytest.raises(ValueError, match="one of each"):
        gearkv.attend_batch(0, caches, queries, outs=outs[:1])


def test_many_sequences_are_attended_at_once():
    workspace = gearkv.Workspace()
    caches = [gearkv.Cache(config(), workspace=workspace) for _ in range(3)]
    for i, cache in enumerate(caches):
        cache.append(1, random_rows(40 + 100 * i, i), random_rows(40 + 100 * i, 10 + i))
    caches.append(caches[0].fork())
    caches[3].append(1, random_rows(1), random_rows(1))
    caches.append(gearkv.Cache.from_bytes(caches[2].to_bytes(), config(), workspace=workspace))
    queries = [random_rows(1 + i % 2, 20 + i, N_HEADS) for i in range(len(caches))]
    alone = [cache.attend(1, of, window=30) for cache, of in zip(caches, queries)]
    together = gearkv.attend_batch(1, caches, queries, window=30)
    assert all(np.array_equal(a, b) for a, b in zip(alone, together))
    masks = [None, *(np.zeros((1 + i % 2, caches[i].n_tokens(1)), np.float32) for i in range(1, 5))]
    masks[1][:, :50] = -np.inf
    masked = gearkv.attend_batch(1, caches, queries, masks=masks, dtype=np.float16)
    assert np.array_equal(masked[1], caches[1].attend(1, queries[1], mask=masks[1]).astype(np.float16))
    assert masked[1].dtype == np.float16 and not np.array_equal(masked[1], together[1].astype(np.float16))
    assert workspace.n_bytes > 0 and gearkv.attend_batch(1, [], []) == []
    with pytest.raises(gearkv.InvalidValue, match="twice"):
        gearkv.attend_batch(1, [caches[0], caches[0]], queries[:2])
    with pytest.raises(gearkv.InvalidValue, match="common workspace"):
        gearkv.attend_batch(1, [caches[0], filled(30)], queries[:2])
    with pytest.raises(ValueError, match="one of each"):
        gearkv.attend_batch(1, caches, queries[:2])
    with pytest.raises(ValueError, match="mask of shape"):
        gearkv.attend_batch(1, caches[:1], queries[:1], masks=[np.zeros((1, 39), np.float32)])
    with pytest.raises(gearkv.Error, match="request 1: "):
        gearkv.attend_batch(1, caches[:2], [queries[0], np.full_like(queries[1], np.nan)])
    # A workspace outlives its name, and those that share it take turns.
    del workspace
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: caches[i % 5].attend(1, queries[i % 5], window=30), range(40)))
    assert all(np.array_equal(found[i], alone[i % 5]) for i in range(40))


def test_errors_have_the_code_of_the_library():
    cache = filled(50)
    before = cache.attend(0, random_rows(1, 3, N_HEADS)[0])
    rows = random_rows(1)
    rows[0, 0, 0] = np.nan
    with pytest.raises(gearkv.Error) as caught:
        cache.append(0, rows, rows)
    assert caught.value.name == "non_finite" and caught.value.code == 4
    assert isinstance(caught.value, ValueError) and "non_finite: " in str(caught.value)
    with pytest.raises(gearkv.Error) as caught:
        cache.append(0, np.float64(1e300) * np.ones((1, N_KV_HEADS, DIM)), random_rows(1))
    assert caught.value.name in ("non_finite", "not_representable")
    with pytest.raises(gearkv.Error, match="capacity_exceeded"):
        cache.append(0, random_rows(951), random_rows(951))
    with pytest.raises(gearkv.InvalidValue, match="bad_spec.*five"):
        gearkv.Cache(config(spec="gear-five"))
    with pytest.raises(ValueError, match="a zero in spec"):
        gearkv.Cache(config(spec="gear-4\0x"))
    with pytest.raises(gearkv.InvalidValue, match="unknown_level"):
        gearkv.Cache(config(level="no such"))
    with pytest.raises(gearkv.InvalidValue, match="invalid_argument"):
        gearkv.Cache(config(n_layers=-1))
    for layer in (-1, N_LAYERS, 2**40):
        for use in (cache.n_tokens, cache.first_token, cache.layer_spec, cache.layer_stats, cache.compress, cache.read):
            with pytest.raises(gearkv.InvalidValue, match=f"layer {layer}, expected below {N_LAYERS}"):
                use(layer)
        with pytest.raises(gearkv.InvalidValue, match="expected below"):
            cache.attend(layer, random_rows(1, 3, N_HEADS))
        with pytest.raises(gearkv.InvalidValue, match="expected below"):
            cache.append(layer, random_rows(1), random_rows(1))
    for use in (cache.truncate, cache.shrink, cache.reserve):
        with pytest.raises(gearkv.InvalidValue) as caught:
            use(-1)
        assert caught.value.name == "invalid_argument"
    with pytest.raises(gearkv.OutOfMemory) as caught:
        filled(max_bytes=1000)
    assert isinstance(caught.value, MemoryError) and caught.value.name == "over_budget"
    with pytest.raises(gearkv.FileProblem) as caught:
        gearkv.inspect_state("/nowhere/at/all")
    assert isinstance(caught.value, OSError) and caught.value.name == "io_error"
    assert np.array_equal(cache.attend(0, random_rows(1, 3, N_HEADS)[0]), before)


def test_scores_are_changed_as_asked():
    cache, queries = filled(100, spec="f32"), random_rows(2, 3, N_HEADS)
    plain = cache.attend(0, queries, causal=False)
    mask = np.zeros((2, 100), np.float32)
    mask[:, 60:] = -np.inf
    first = gearkv.Cache(config(spec="f32"))
    keys, values = cache.read(0)
    first.append(0, keys[:60], values[:60])
    assert np.allclose(
        cache.attend(0, queries, mask=mask, causal=False), first.attend(0, queries, causal=False), atol=1e-6
    )
    per_head = np.repeat(mask[:, np.newaxis], N_HEADS, 1)
    assert np.array_equal(
        cache.attend(0, queries, mask=per_head, causal=False), cache.attend(0, queries, mask=mask, causal=False)
    )
    for change in (
        {"causal": True},
        {"scale": 0.5},
        {"soft_cap": 1.0},
        {"window": 10},
        {"slopes": np.full(N_HEADS, 0.5, np.float32)},
        {"sinks": np.full(N_HEADS, 3.0, np.float32)},
    ):
        assert not np.array_equal(cache.attend(0, queries, **{"causal": False, **change}), plain), change
    out = np.empty_like(plain)
    assert cache.attend(0, queries, causal=False, out=out) is out and np.array_equal(out, plain)


def test_life():
    frequencies = 10000.0 ** (-np.arange(DIM // 2) / (DIM // 2))
    cache = filled(rope=gearkv.Rope(frequencies))
    queries = random_rows(1, 3, N_HEADS)[0]
    before = cache.attend(0, queries)
    cache.compress()
    stats, planned = cache.stats(), gearkv.plan(cache.config, 300, 300)
    assert (stats.key_bytes, stats.value_bytes) == (planned.key_bytes, planned.value_bytes)
    most = gearkv.plan(cache.config, 300, 300, n_heads=4)
    assert most.bytes == most.key_bytes + most.value_bytes + most.buffer_bytes + most.scratch_bytes + most.table_bytes
    assert most.bytes > planned.bytes and most.scratch_bytes > 0
    assert stats.n_tokens == 300 and 0 < stats.bits_per_element < 16 and stats.bytes > 0
    assert cache.layer_stats(1).n_blocks == 2 and len(cache.layer_spec(0)) > 0
    fork = cache.fork()
    fork.remove(10, 40)
    fork.remove(10, 10, [gearkv.Rope(frequencies)] * N_LAYERS)
    with pytest.raises(gearkv.Error, match="other_rope"):
        fork.remove(10, 1, [gearkv.Rope(frequencies[:4])] * N_LAYERS)
    assert fork.truncate(200) is False and fork.n_tokens() == 200 and cache.n_tokens() == 300
    assert fork.truncate_to_shortest() == (200, True)
    fork.forget_before(0, 100)
    assert fork.shrink(0) > 0 and fork.first_token() >= 0
    keys, values = cache.read(1, 290)
    assert keys.shape == values.shape == (10, N_KV_HEADS, DIM)
    assert np.allclose(cache.attend(0, queries), before, atol=0.2)
    with pytest.raises(gearkv.Error, match="capacity_exceeded"):
        fork.append(0, random_rows(900), random_rows(900))
    fork.reserve(2000)
    fork.append(0, random_rows(900), random_rows(900))
    assert fork.n_tokens() == 1100
    fork.reset()
    assert fork.n_tokens() == 0
    cache.close()
    with pytest.raises(ValueError, match="closed"):
        cache.n_tokens()
    cache.close()
    with filled(10) as other:
        assert other.n_tokens() == 10
    assert repr(other) == "<gearkv.Cache, closed>"


def test_layers_may_differ():
    dims = [(2, 64, 64), (1, 32, 16), (0, 0, 0)]
    cache = gearkv.Cache(config(n_layers=3, n_kv_heads=0, head_dim=0, dims=dims, spec="f16"))
    for layer, (heads, key_dim, value_dim) in enumerate(dims[:2]):
        keys = random_rows(20)[:, :heads, :key_dim]
        values = random_rows(20, 2)[:, :heads, :value_dim]
        cache.append(layer, keys, values)
        out = cache.attend(layer, random_rows(1, 3, N_HEADS)[0][:, :key_dim])
        assert out.shape == (N_HEADS, value_dim)
        read = cache.read(layer)
        assert np.allclose(read[0], keys, atol=2e-3) and np.allclose(read[1], values, atol=2e-3)
    with pytest.raises(ValueError, match="keys of shape"):
        cache.append(1, random_rows(4), random_rows(4))
    with pytest.raises(gearkv.Error, match="no_keys"):
        cache.append(2, random_rows(4), random_rows(4))
    with pytest.raises(gearkv.Error, match="no_keys"):
        cache.attend(2, random_rows(1, 3, N_HEADS)[0])
    with pytest.raises(ValueError, match="dims of 1 layers"):
        gearkv.Cache(config(n_layers=3, n_kv_heads=0, head_dim=0, dims=dims[:1]))
    with pytest.raises(gearkv.InvalidValue):
        cache.append(3, random_rows(4), random_rows(4))
    with pytest.raises((gearkv.InvalidValue, OverflowError)):
        cache.attend(-1, random_rows(1, 3, N_HEADS)[0])


def test_states_go_to_files_bytes_and_objects(tmp_path):
    cache, queries = filled(), random_rows(1, 3, N_HEADS)[0]
    expected, mark = cache.attend(1, queries), bytes(range(32))
    path = tmp_path / "state"
    cache.save(path, fingerprint=mark, extra=b"a note")
    data = cache.to_bytes(fingerprint=mark, extra=b"a note")
    sink = io.BytesIO()
    cache.save(sink, fingerprint=mark, extra=b"a note")
    assert path.read_bytes() == data == sink.getvalue()
    info = gearkv.inspect_state(path)
    assert info.n_tokens == 300 and info.n_extra == 6 and info.fingerprint == mark
    assert gearkv.verify_state(str(path)) == info
    for load in (
        lambda: gearkv.Cache.load(path, cache.config, fingerprint=mark),
        lambda: gearkv.Cache.load(path, cache.config, fingerprint=mark, loading="map"),
        lambda: gearkv.Cache.load(str(path), cache.config, fingerprint=mark, loading="map_lazy"),
        lambda: gearkv.Cache.load(io.BytesIO(data), cache.config, fingerprint=mark),
        lambda: gearkv.Cache.from_bytes(bytearray(data), cache.config, fingerprint=mark),
    ):
        loaded = load()
        assert loaded.extra == b"a note" and np.array_equal(loaded.attend(1, queries), expected)
    assert gearkv.Cache.from_bytes(cache.to_bytes(n_tokens=100), cache.config).n_tokens() == 100
    with pytest.raises(gearkv.Error, match="other_model"):
        gearkv.Cache.from_bytes(data, cache.config)
    with pytest.raises(gearkv.Error, match="truncated|damaged"):
        gearkv.Cache.from_bytes(data[: len(data) // 2], cache.config, fingerprint=mark)
    with pytest.raises(ValueError, match="a fingerprint of 3 bytes"):
        cache.to_bytes(fingerprint=b"abc")

    class Full:
        def write(self, piece):
            raise OSError("the disk is full")

    class Closed:
        def write(self, piece):
            return None

    with pytest.raises(OSError, match="the disk is full"):
        cache.save(Full())
    with pytest.raises(gearkv.Error, match="write_failed"):
        cache.save(Closed())

    class Curious:
        def write(self, piece):
            return cache.n_tokens()

    with pytest.raises(RuntimeError, match="used by a function that it has called"):
        cache.save(Curious())
    assert np.array_equal(cache.attend(1, queries), expected)


def test_threads_take_turns_and_work_beside_each_other():
    queries = random_rows(1, 3, N_HEADS)[0]
    shared = filled()
    expected, failures = shared.attend(0, queries), []

    def work(seed):
        try:
            own = gearkv.Cache(config())
            for i in range(20):
                own.append(0, random_rows(7, seed + i), random_rows(7, seed - i))
                own.attend(0, queries)
                if not np.array_equal(shared.attend(0, queries), expected):
                    failures.append("other bits")
            if own.n_tokens() != 140:
                failures.append("tokens")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(100 * i + 50,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_interpreter_is_free_during_a_call():
    cache = gearkv.Cache(config(max_tokens=30000), threads=1)
    rows = random_rows(8000)
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1
            time.sleep(0.0001)

    thread = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # who holds the interpreter keeps it, unless it is given away
    try:
        thread.start()
        before = counted[0]
        cache.append(0, rows, rows)
        cache.compress(0)
        after = counted[0]
    finally:
        done.set()
        sys.setswitchinterval(interval)
        thread.join()
    assert after > before


def test_a_forked_process_goes_on():
    code = """
import os, gearkv, numpy as np
cache = gearkv.Cache(gearkv.Config("gear-4", 1, 2, 64, 1000), threads=2)
rows = np.ones((300, 2, 64), np.float32)
cache.append(0, rows, rows)
cache.compress()
child = os.fork()
if child == 0:
    ok = np.allclose(cache.attend(0, rows[0]), 1, atol=.1)
    os._exit(0 if ok else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 0


def test_it_knows_nothing_of_the_tree():
    assert os.environ["GEARKV_SOURCE"] not in os.path.dirname(gearkv.__file__)


def test_latents_are_keys_and_values():
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((200, 1, 64 + 16), np.float32)
    latents, keys = rows[..., :64], rows[..., 64:]
    settings = dict(n_layers=1, n_kv_heads=1, head_dim=16, value_dim=64, latent=True)
    queries = rng.standard_normal((4, 64 + 16), np.float32)
    for spec, most in (("f32", 1e-5), ("gear-4", 0.12)):
        cache = gearkv.Cache(config(spec=spec, **settings))
        cache.append(0, keys, latents)
        cache.compress()
        out = cache.attend(0, queries, scale=0.1)
        scores = 0.1 * queries.astype(np.float64) @ rows[:, 0].T.astype(np.float64)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        expected = weights / weights.sum(axis=1, keepdims=True) @ latents[:, 0]
        assert np.linalg.norm(out - expected) < most * np.linalg.norm(expected)
        with pytest.raises(ValueError, match="without a scale"):
            cache.attend(0, queries)
        with pytest.raises(ValueError, match="80"):
            cache.attend(0, queries[:, :16], scale=0.1)
    with pytest.raises(gearkv.Error):
        gearkv.Cache(config(spec="kivi-4", **settings))
