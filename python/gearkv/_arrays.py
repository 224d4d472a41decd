"""Arrays as the library takes them, without a copy where it can."""

from __future__ import annotations

from typing import Any, Iterable, Optional, Sequence, Union

import numpy as np

from ._gearkv import ffi, lib
from ._native import refused, sized

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


def output(
    out: Optional[Array],
    shape: tuple[int, ...],
    dtype: Any = None,
    name: str = "out",
    *,
    contiguous: bool = False,
) -> Array:
    """`out` if the library can write to it as it is, with whatever strides it walks, a new array if there is none."""
    if out is None:
        return np.empty(shape, number_type(dtype))
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} of type {type(out).__name__}, expected a NumPy array")
    if _type_of(out.dtype) is None or not out.dtype.isnative or out.shape != shape:
        raise refused(
            f"{name} of {out.dtype.str if not out.dtype.isnative else out.dtype} and shape {out.shape}, "
            f"expected a float32, float16 or bfloat16 array of shape {shape}"
        )
    if dtype is not None and out.dtype != number_type(dtype):
        raise refused(f"{name} of {out.dtype}, expected {number_type(dtype)}")
    if not out.flags.writeable:
        raise refused(f"{name} is read-only, expected an array that can be written to")
    size, found = out.itemsize, f"{name} of shape {out.shape} and strides {out.strides}"
    if contiguous and not out.flags.c_contiguous:
        raise refused(f"{found}, expected strides {np.empty(shape, out.dtype).strides}")
    if any(n > 1 and (step <= 0 or step % size != 0) for n, step in zip(out.shape, out.strides)):
        raise refused(f"{found}, expected strides above 0 in multiples of {size}")
    if out.ctypes.data % size != 0:
        raise refused(f"{name} at {out.ctypes.data:#x}, expected a multiple of {size}")
    return out


def apart(out: Array, name: str, others: Iterable[tuple[str, Any]]) -> None:
    """Refuses an output that has bytes in common with what is read, or with another output."""
    for other_name, other in others:
        if other is None:
            continue
        try:
            overlap = np.shares_memory(out, other, max_work=1 << 20)
        except RuntimeError:  # too hard to tell
            overlap = True
        if overlap:
            raise refused(f"{name} overlaps {other_name}, expected memory of its own")


def n_elements(array: Array) -> int:
    """That an output has room for at its strides: to the last one."""
    if array.size == 0:
        return 0
    return 1 + sum((n - 1) * (step // array.itemsize) for n, step in zip(array.shape, array.strides))


def out_rows(array: Array) -> Any:
    """A view of [tokens, heads, channels] that is written to; valid as long as the array."""
    view = sized("gearkv_out_rows")
    view.data = pointer(array)
    view.n_elements = n_elements(array)
    view.token_stride = stride(array, 0)
    view.head_stride = stride(array, 1)
    view.channel_stride = stride(array, 2)
    view.type = type_of(array)
    return view


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


def attended(array: Array, to: Any) -> None:
    """Where outputs [queries, heads, channels] go, to the same."""
    to.out_query_stride = stride(array, 0)
    to.out_head_stride = stride(array, 1)
    to.out_channel_stride = stride(array, 2)
    to.out_type = type_of(array)


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
