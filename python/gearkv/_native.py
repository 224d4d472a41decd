"""Calls of the C ABI: errors as exceptions, objects that end, one thread at a time."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Any, Callable, Iterator, Optional, Union

from ._gearkv import ffi, lib


class Error(Exception):
    """What the library answers. `code` is the number of gearkv_code, `name` its name ("non_finite")."""

    code: int
    name: str
    errors: "list[Optional[Error]]"  # of decode_batch alone: those of each session

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.name = text_of(lib.gearkv_code_name(code))

    def __str__(self) -> str:
        return f"{self.name}: {self.args[0]}"


class InvalidValue(Error, ValueError):
    """An argument that cannot be: its value, its size, or a SPEC."""


class OutOfMemory(Error, MemoryError):
    """No memory, or more bytes than were allowed."""


class FileProblem(Error, OSError):
    """A file the system refused, or one that must be kept."""


_KINDS: dict[int, type[Error]] = {}
for _kind, _names in {
    InvalidValue: "INVALID_ARGUMENT BAD_SPEC WRONG_SIZE NON_FINITE NOT_REPRESENTABLE UNKNOWN_LEVEL",
    OutOfMemory: "OUT_OF_MEMORY OVER_BUDGET",
    FileProblem: "IO_ERROR PROTECTED_FILE",
}.items():
    for _name in _names.split():
        _KINDS[getattr(lib, "GEARKV_" + _name)] = _kind

has_decoder: bool = hasattr(lib, "gearkv_model_load")


def text_of(chars: Any) -> str:
    return ffi.string(chars).decode("utf-8", "replace")


def chars(text: Union[str, bytes, "os.PathLike[str]"], name: str) -> bytes:
    """What C takes for a string: a zero would end it early."""
    data = text.encode() if isinstance(text, str) and name != "path" else os.fsencode(text)
    if b"\0" in data:
        raise ValueError(f"a zero in {name}")
    return data


def refused(message: str) -> Error:
    """What the library would say, had it been asked."""
    return InvalidValue(lib.GEARKV_INVALID_ARGUMENT, message)


@contextlib.contextmanager
def in_range() -> Iterator[None]:
    """A number that C has no room for is the library's error too."""
    try:
        yield
    except OverflowError as error:
        raise refused(str(error)) from None


def above_zero(share: float, name: str) -> float:
    """What C takes 0 for 1 in."""
    if share == 0:
        raise refused(f"{name} 0, expected (0, 1]")
    return share


# An exception of a function of Python that the library called, to be raised when the call has returned.
_pending = threading.local()


def _keep(kind: Any, value: BaseException, traceback: Any) -> int:
    _pending.error = value
    return 0


def call(function: Callable[..., int], *arguments: Any) -> None:
    """Calls a function whose last argument is an error, without the GIL."""
    error = ffi.new("gearkv_error*")
    _pending.error = None
    with in_range():
        code = function(*arguments, error)
    raised = _pending.error
    if raised is not None:
        _pending.error = None
        raise raised
    if code != lib.GEARKV_OK:
        raise _KINDS.get(code, Error)(code, text_of(error.message))


def error_of(error: Any) -> Optional[Error]:
    """Of a gearkv_error; None when it is of no failure."""
    if error.code == lib.GEARKV_OK:
        return None
    return _KINDS.get(error.code, Error)(error.code, text_of(error.message))


@ffi.def_extern(onerror=_keep, error=0)
def gearkv_py_write(context: Any, piece: Any, n_bytes: int) -> int:
    # Raw files may take less than they are given.
    view = memoryview(ffi.buffer(piece, n_bytes))
    write = ffi.from_handle(context).write
    while len(view) > 0:
        written = write(view)
        if written is None:
            return 0
        view = view[written:]
    return 1


@ffi.def_extern(onerror=_keep, error=0)
def gearkv_py_read(context: Any, to: Any, n_bytes: int, n_read: Any) -> int:
    piece = ffi.from_handle(context).read(n_bytes)
    if piece is None or len(piece) > n_bytes:
        return 0
    ffi.memmove(to, piece, len(piece))
    n_read[0] = len(piece)
    return 1


def _interrupted(kind: Any, value: BaseException, traceback: Any) -> int:
    _pending.error = value
    return 1


@ffi.def_extern(onerror=_interrupted, error=1)
def gearkv_py_interrupt(context: Any) -> int:
    # Being in Python is enough: Ctrl-C is raised here.
    return 0


class Object:
    """A handle of the library. Any thread may use it; they take turns, and wait without the GIL."""

    _kind = "object"

    def __init__(self, handle: Any, destroy: Callable[[Any], None], *kept: Any) -> None:
        # What the handle borrows lives until it has ended, however Python ends things.
        self._handle = ffi.gc(handle, lambda old, kept=kept: destroy(old))
        self._workspace: Optional[Workspace] = next((x for x in kept if isinstance(x, Workspace)), None)
        # Those of one workspace take turns with each other.
        self._lock = threading.RLock() if self._workspace is None else self._workspace._lock
        self._busy = False

    @contextlib.contextmanager
    def _using(self) -> Iterator[Any]:
        with self._lock:
            if self._busy:
                raise RuntimeError(f"this {self._kind} is used by a function that it has called")
            if self._handle is None:
                raise ValueError(f"this {self._kind} is closed")
            self._busy = True
            try:
                yield self._handle
            finally:
                self._busy = False

    def close(self) -> None:
        """Gives back its memory now. It cannot be used any more."""
        with self._lock:
            if self._busy:
                raise RuntimeError(f"this {self._kind} is used by a function that it has called")
            handle, self._handle = self._handle, None
            if handle is not None:
                ffi.release(handle)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class Workspace(Object):
    """Working memory that caches or sessions have in common, which use it one at a time: hundreds of sequences hold
    little beside their tokens, and attend_batch takes them together."""

    _kind = "workspace"

    def __init__(self) -> None:
        out = ffi.new("gearkv_workspace**")
        call(lib.gearkv_workspace_create, ffi.NULL, out)
        super().__init__(out[0], lib.gearkv_workspace_destroy)

    @property
    def n_bytes(self) -> int:
        with self._using() as workspace:
            return lib.gearkv_workspace_bytes(workspace)

    def close(self) -> None:
        """Its memory is given back when the last of its caches has ended."""

    def __repr__(self) -> str:
        return f"<gearkv.Workspace, {self.n_bytes:,} bytes>"


class Threads:
    """A pool of threads, which any number of caches and sessions may have in common. 0: one per processor."""

    _all: "weakref.WeakSet[Threads]" = weakref.WeakSet()

    def __init__(self, n_threads: int = 0) -> None:
        self._wanted = n_threads
        self._start()
        Threads._all.add(self)

    def _start(self) -> None:
        out = ffi.new("gearkv_executor**")
        call(lib.gearkv_executor_create, self._wanted, out)
        self._handle = ffi.gc(out[0], lib.gearkv_executor_destroy)

    @property
    def n_threads(self) -> int:
        return lib.gearkv_executor_n_threads(self._handle)

    def __repr__(self) -> str:
        return f"gearkv.Threads({self.n_threads})"


def _after_fork() -> None:
    # Threads do not come along into a child; what is left of their pool is not to be touched there.
    for threads in list(Threads._all):
        _left.append(ffi.gc(threads._handle, None))
        threads._start()


_left: list[Any] = []
os.register_at_fork(after_in_child=_after_fork)

_shared: Optional[Threads] = None
_shared_lock = threading.Lock()


def take_threads(threads: Union[Threads, int, None]) -> Threads:
    """None is the pool that all have in common."""
    global _shared
    if isinstance(threads, Threads):
        return threads
    if threads is not None:
        return Threads(threads)
    with _shared_lock:
        if _shared is None:
            _shared = Threads()
        return _shared


def take_level(level: Optional[str]) -> int:
    if level is None:
        return lib.GEARKV_LEVEL_AUTOMATIC
    for number, name in _LEVELS.items():
        if name == level:
            return number
    raise InvalidValue(
        lib.GEARKV_UNKNOWN_LEVEL, f"level {level!r}, expected one of {', '.join(_LEVELS.values())}"
    )


_LEVELS: dict[int, str] = {
    number: text_of(lib.gearkv_level_name(number))
    for number in sorted(ffi.typeof("gearkv_level").elements)
    if number != lib.GEARKV_LEVEL_AUTOMATIC
}


def levels() -> list[str]:
    """The instruction-set levels that are compiled in and that this machine can run."""
    return [name for number, name in _LEVELS.items() if lib.gearkv_level_available(number)]


def version() -> str:
    return text_of(lib.gearkv_version())


def format_spec(spec: str) -> str:
    """Checks a SPEC and returns its canonical form."""
    out = ffi.new("char[]", lib.GEARKV_SPEC_SIZE)
    call(lib.gearkv_format_spec, chars(spec, "spec"), out, len(out))
    return text_of(out)


def sized(kind: str) -> Any:
    """A structure that grows, as this build knows it."""
    made = ffi.new(kind + "*")
    made.struct_size = ffi.sizeof(kind)
    return made
