"""Attention that reads less: by mass, at most a share, in ranges of the caller's."""
import gearkv
import numpy as np
import pytest

N_KV_HEADS, N_HEADS, DIM, N_TOKENS = 2, 4, 64, 1500


def random_rows(n, seed, heads=N_KV_HEADS):
    return np.random.default_rng(seed).standard_normal((n, heads, DIM), np.float32)


def filled(n=N_TOKENS, workspace=None, seed=1):
    cache = gearkv.Cache(gearkv.Config("gear-4", 1, N_KV_HEADS, DIM, 2000), workspace=workspace)
    keys = random_rows(n, seed)
    keys += np.repeat(random_rows(n // 128 + 1, seed + 1), 128, 0)[:n]  # sections differ
    cache.append(0, keys, random_rows(n, seed + 2))
    cache.compress()
    return cache


def queries(n=1, seed=5):
    return 2 * random_rows(n, seed, N_HEADS)


def test_all_is_read_unless_asked_for():
    cache = filled()
    every = [[(0, N_TOKENS)], [(t, t + 100) for t in range(0, N_TOKENS, 100)]]
    full = cache.attend(0, queries(3))
    assert np.array_equal(cache.attend(0, queries(3), mass=1.0, most_share=1.0, ranges=None), full)
    stats = cache.layer_stats(0)
    assert (stats.n_selections, stats.share_read, stats.mass_read) == (0, 1.0, 1.0)
    assert np.array_equal(cache.attend(0, queries(3), ranges=every), full)


def test_less_is_read_and_told():
    cache = filled()
    full = cache.attend(0, queries())
    errors = []
    for mass in (0.5, 0.9, 0.999):
        some = cache.attend(0, queries(), mass=mass)
        errors.append(np.linalg.norm(some - full) / np.linalg.norm(full))
    assert errors[0] > errors[1] > errors[2] and errors[0] > 0.01 and errors[2] < 0.05
    stats = cache.layer_stats(0)
    assert stats.n_selections == 6 and 0.1 < stats.share_read < 0.9 and 0.5 < stats.mass_read < 1.0
    assert not np.array_equal(cache.attend(0, queries(), most_share=0.25), full)
    assert not np.array_equal(cache.attend(0, queries(), negligible=0.01), full)


def test_tokens_in_no_range_are_as_if_masked():
    cache = filled()
    ranges = [[(0, 4), (200, 300)], [(1000, N_TOKENS)]]
    mask = np.full((1, N_HEADS, N_TOKENS), -np.inf, np.float32)
    for head, own in enumerate(ranges):
        for first, end in own:
            mask[:, 2 * head : 2 * head + 2, first:end] = 0
    listed = cache.attend(0, queries(), ranges=ranges)
    assert np.array_equal(listed, cache.attend(0, queries(), mask=mask))
    nothing = cache.attend(0, queries(), ranges=[[], [(5, 6)]])
    assert not nothing[0, :2].any() and nothing[0, 2:].any()
    assert not cache.attend(0, queries(), ranges=[[], []]).any()


def test_each_of_a_batch_has_ranges_of_its_own():
    workspace = gearkv.Workspace()
    caches = [filled(400 + 300 * i, workspace, 10 * i) for i in range(3)]
    of = [queries(1, i) for i in range(3)]
    ranges = [None, [[(0, 200)], [(5, 600)]], [[(10, 20)], []]]
    together = gearkv.attend_batch(0, caches, of, ranges=ranges, negligible=1e-4)
    for cache, asked, own, found in zip(caches, of, ranges, together):
        assert np.array_equal(cache.attend(0, asked, ranges=own, negligible=1e-4), found)
    with pytest.raises(ValueError, match="one of each"):
        gearkv.attend_batch(0, caches, of, ranges=ranges[:2])
    by_mass = gearkv.attend_batch(0, caches, of, mass=0.9)
    assert all(np.array_equal(c.attend(0, q, mass=0.9), found) for c, q, found in zip(caches, of, by_mass))


def test_what_makes_no_sense_is_refused():
    cache = filled(300)
    for name in ("mass", "most_share"):
        for value in (0, -0.5, 1.5, float("nan")):
            with pytest.raises(gearkv.InvalidValue, match=name):
                cache.attend(0, queries(), **{name: value})
    with pytest.raises(ValueError, match="ranges of 1 KV heads, expected 2"):
        cache.attend(0, queries(), ranges=[[(0, 1)]])
    with pytest.raises(gearkv.InvalidValue, match="along with mass"):
        cache.attend(0, queries(), ranges=[[(0, 1)], []], mass=0.5)
    with pytest.raises(gearkv.InvalidValue):
        cache.attend(0, queries(), ranges=[[(-1, 1)], []])
    with pytest.raises(gearkv.InvalidValue, match="range 0 of KV head 1"):
        cache.attend(0, queries(), ranges=[[], [(0, 301)]])
