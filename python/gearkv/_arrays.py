"""Arrays as the library takes them, without a copy where it can."""

from __future__ import annotations

from typing import Any, Optional, Sequence, Union

import numpy as np

from ._gearkv import ffi, lib
from ._native import sized

Array = np.ndarray
Tokens = Union[Sequence[int], np.ndarray]


def _type_of(dtype: np.dtype[Any]) -> Optional[int]:
    """That of gearkv_type, where there is one."""
    if dtype == np.float32:
        return lib.GEARKV_F32  # type: ignore[no-any-return]
    if dtype == np.float16:
        return lib.GEARKV_F16  # type: ignore[no-any-return]
    if dtype.name == "bfloat16" and dtype.itemsize == 2:
        return lib.GEARKV_BF16  # type: ignore[no-any-return]
    return None


def typed(values: Any, name: str, n_axes: Sequence[int]) -> Array:
    """A float32, float16 or bfloat16 array of one of these numbers of axes: `values` itself if it is one, with whatever
    strides the library walks, else a copy. Other floats become float32."""
    array = np.asarray(values)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} of type {array.dtype}, expected float32, float16, bfloat16 or float64")
    if array.ndim not in n_axes:
        raise ValueError(f"{name} of shape {array.shape}, expected {' or '.join(map(str, n_axes))} axes")
    if _type_of(array.dtype) is None or not array.dtype.isnative:
        # What float32 cannot hold becomes Inf, and that is refused.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    size = array.itemsize
    usable = all(n <= 1 or (step > 0 and step % size == 0) for n, step in zip(array.shape, array.strides))
    return array if usable and array.ctypes.data % size == 0 else np.ascontiguousarray(array)


def floats(values: Any, name: str, n_axes: Sequence[int]) -> Array:
    """The same in float32, with a contiguous last axis."""
    array = typed(values, name, n_axes)
    if array.dtype != np.float32:
        array = array.astype(np.float32)
    return array if array.shape[-1] <= 1 or array.strides[-1] == 4 else np.ascontiguousarray(array)


def stride(array: Array, axis: int) -> int:
    """In elements; of an axis of one element what it would be if it had more."""
    if array.shape[axis] > 1:
        return array.strides[axis] // array.itemsize
    n = 1
    for length in array.shape[axis + 1 :]:
        n *= length
    return n


def pointer(array: Array) -> Any:
    return ffi.cast("float*", array.ctypes.data)


def number_type(dtype: Any) -> Any:
    """float32 for None, float16 or bfloat16, as NumPy has it."""
    found = np.dtype(np.float32 if dtype is None else dtype)
    if _type_of(found) is None or not found.isnative:
        raise TypeError(f"dtype {found}, expected float32, float16 or bfloat16")
    return found


def type_of(array: Array) -> int:
    return _type_of(array.dtype)  # type: ignore[return-value]


def output(out: Optional[Array], shape: tuple[int, ...], dtype: Any = None) -> Array:
    """`out` if it can be written to as it is, a new array if there is none."""
    if out is None:
        return np.empty(shape, number_type(dtype))
    if not isinstance(out, np.ndarray) or _type_of(out.dtype) is None or out.shape != shape:
        raise ValueError(f"out must be a float32, float16 or bfloat16 array of shape {shape}")
    if dtype is not None and out.dtype != number_type(dtype):
        raise ValueError(f"out of {out.dtype}, expected {number_type(dtype)}")
    if not out.flags.c_contiguous or not out.flags.writeable or not out.flags.aligned:
        raise ValueError("out must be contiguous, aligned and writable")
    return out


def rows(array: Array) -> Any:
    """A view of [tokens, heads, channels]; valid as long as the array."""
    view = sized("gearkv_typed_rows")
    view.data = pointer(array)
    view.token_stride = stride(array, 0)
    view.head_stride = stride(array, 1)
    view.channel_stride = stride(array, 2)
    view.type = _type_of(array.dtype)
    return view


def queries(array: Array, to: Any) -> None:
    """The same of [queries, heads, channels], to a gearkv_queries."""
    to.data = pointer(array)
    to.query_stride = stride(array, 0)
    to.head_stride = stride(array, 1)
    to.channel_stride = stride(array, 2)
    to.type = _type_of(array.dtype)
    to.n_queries, to.n_heads = array.shape[:2]


def tokens(values: Tokens, name: str = "tokens") -> Array:
    array = np.asarray(values)
    if array.size == 0:
        return np.empty(0, np.int32)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TypeError(f"{name} must be a sequence of integers")
    if array.min() < -(2**31) or array.max() >= 2**31:
        raise ValueError(f"{name} beyond 32 bits")
    return np.ascontiguousarray(array, np.int32)


def token_pointer(array: Array) -> Any:
    return ffi.cast("gearkv_token*", array.ctypes.data)
