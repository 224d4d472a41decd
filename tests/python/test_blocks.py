"""Single blocks."""
import gearkv
import numpy as np
import pytest


def test_a_block_comes_back():
    rows = np.random.default_rng(1).standard_normal((128, 2, 64), np.float32)
    for spec, tolerance in (("kivi-4", 0.2), ("paper:gear-4", 0.2), ("gear-4", 0.2), ("q8", 0.01)):
        for kind in ("keys", "values"):
            block = gearkv.compress(rows, spec, kind=kind)
            assert block == gearkv.compress(rows, spec, kind=kind, threads=2)
            assert len(block) < rows.nbytes / 3
            for source in (block, bytearray(b"x" + block)[1:], memoryview(block), np.frombuffer(block, np.uint8)):
                found = gearkv.decompress(source, rows.shape)
                assert np.linalg.norm(found - rows) / np.linalg.norm(rows) < tolerance, (spec, kind)
            out = np.empty_like(rows)
            assert gearkv.decompress(block, rows.shape, out=out) is out and np.array_equal(out, found)
    half = rows.astype(np.float16)
    assert gearkv.compress(half, "gear-4") == gearkv.compress(half.astype(np.float32), "gear-4")
    strided = np.zeros((128, 2, 3, 64), np.float32)
    strided[:, :, 1] = rows
    assert gearkv.compress(strided[:, :, 1], "gear-4") == gearkv.compress(rows, "gear-4")


def test_what_cannot_be_a_block_is_refused():
    rows = np.ones((64, 1, 64), np.float32)
    block = gearkv.compress(rows, "kivi-4")
    with pytest.raises(gearkv.Error, match="bad_block"):
        gearkv.decompress(b"\0" + block[1:], rows.shape)
    with pytest.raises(gearkv.Error):
        gearkv.decompress(block[:-1], rows.shape)
    with pytest.raises(gearkv.Error, match="wrong_size"):
        gearkv.decompress(block, (63, 1, 64))
    with pytest.raises(gearkv.Error, match="bad_spec"):
        gearkv.compress(rows, "auto:3")
    for out, text in (
        (np.empty((64, 1, 128), np.float32)[..., ::2], r"shape \(64, 1, 64\) and strides .*, expected strides \(256, 256, 4\)"),
        (np.empty(rows.shape, np.float16), "out of float16, expected float32"),
        (np.empty(rows[1:].shape, np.float32), r"expected .* of shape \(64, 1, 64\)"),
    ):
        with pytest.raises(gearkv.InvalidValue, match=text):
            gearkv.decompress(block, rows.shape, out=out)
    room = np.zeros(rows.size + len(block) // 4, np.float32)
    start = -room.ctypes.data % 64 // 4
    inside = room[start : start + len(block) // 4].view(np.uint8)
    inside[:] = np.frombuffer(block, np.uint8)
    with pytest.raises(gearkv.InvalidValue, match="out overlaps the block"):
        gearkv.decompress(inside, rows.shape, out=room[: rows.size].reshape(rows.shape))
    with pytest.raises(ValueError, match="kind"):
        gearkv.compress(rows, "kivi-4", kind="queries")
    with pytest.raises(ValueError, match="axes"):
        gearkv.compress(rows[0], "kivi-4")
