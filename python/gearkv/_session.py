"""Tokens fed to a model."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, BinaryIO, Iterable, Iterator, NamedTuple, Optional, Sequence, Union

import numpy as np

from . import _arrays as arrays
from ._cache import LayerStats, Path, Stats, is_path, layer_stats_of, stats_of, take_loading
from ._gearkv import ffi, lib
from ._native import (
    Error,
    Object,
    Threads,
    Workspace,
    above_zero,
    call,
    chars,
    error_of,
    in_range,
    refused,
    sized,
    take_level,
    take_threads,
    text_of,
)
from ._speculation import Speculation
from ._text import Sampler, TextWriter

if TYPE_CHECKING:
    from ._model import Model


def session_config(
    spec: Optional[str],
    *,
    n_ctx: int = 0,
    chunk: int = 512,
    seed: int = 0,
    rollback_tokens: int = 0,
    error_every: int = 0,
    max_cache_bytes: int = 0,
    soft_cache_bytes: int = 0,
    level: Optional[str] = None,
    float_products: bool = False,
    workspace: Optional[Workspace] = None,
    mass: float = 1.0,
    most_share: float = 1.0,
    negligible: float = 0.0,
) -> tuple[Any, Any]:
    config = ffi.new("gearkv_session_config*")
    lib.gearkv_session_config_init(config, ffi.sizeof("gearkv_session_config"))
    text = None if spec is None else ffi.new("char[]", chars(spec, "spec"))
    if text is not None:
        config.spec = text
    with in_range():
        config.n_ctx = n_ctx
        config.chunk = chunk
        config.seed = seed
        config.rollback_tokens = rollback_tokens
        config.error_every = error_every
        config.max_cache_bytes = max_cache_bytes
        config.mass = above_zero(mass, "mass")
        config.most_share = above_zero(most_share, "most_share")
        config.negligible = negligible
        config.soft_cache_bytes = soft_cache_bytes
    config.level = take_level(level)
    config.float_products = float_products
    config.interrupt = lib.gearkv_py_interrupt
    if workspace is not None:
        config.workspace = workspace._handle
    return config, text


class Generated(NamedTuple):
    """A step of Session.steps: a token, and the text that can be shown with it. The last one has no token, and the
    text that was held back."""

    token: Optional[int]
    text: str


def decode_batch(sessions: Sequence["Session"], tokens: arrays.Tokens) -> None:
    """Session.decode of many sessions of one model at once, a token each: weights are read once for all, and every
    session ends with the bits it would have alone. On the threads of the first; those of one Workspace attend
    together. An error strikes one session alone: the first is raised, and its `errors` has that of each session, or
    None."""
    array = arrays.tokens(tokens)
    if array.size != len(sessions):
        raise ValueError(f"{array.size} tokens of {len(sessions)} sessions, expected one of each")
    if len({id(session) for session in sessions}) < len(sessions):
        raise refused("a session is twice in the batch")
    requests = ffi.new("gearkv_decode_request[]", len(sessions))
    with contextlib.ExitStack() as held:
        # In one order everywhere, so that two batches of the same sessions do not wait for each other.
        order = sorted(range(len(sessions)), key=lambda i: id(sessions[i]._lock))
        for i in order:
            requests[i].session = held.enter_context(sessions[i]._using())
            requests[i].token = int(array[i])
        try:
            call(lib.gearkv_session_decode_batch, requests, len(sessions))
        except Error as error:
            error.errors = [error_of(request.error) for request in requests]
            raise


class Session(Object):
    """Tokens fed to a model, with their keys and values in a compressed cache. Threads take turns; the GIL is free
    during calls. Settings: n_ctx (0: the trained context), chunk, seed, rollback_tokens, error_every,
    max_cache_bytes, soft_cache_bytes, level, float_products, workspace, and what attention reads: mass, most_share,
    negligible (session.hpp). A session does not come along into a forked process."""

    _kind = "session"

    def __init__(
        self, model: "Model", spec: str = "gear-4", *, threads: Union[Threads, int, None] = None, **settings: Any
    ) -> None:
        pool = take_threads(threads)
        config, kept = session_config(spec, **settings)
        out = ffi.new("gearkv_session**")
        call(lib.gearkv_session_create, model._handle, config, pool._handle, out)
        del kept
        self._begin(out[0], model, pool, pool._handle, settings.get("workspace"))

    def _begin(
        self, handle: Any, model: "Model", threads: Threads, executor: Any, workspace: Optional[Workspace]
    ) -> None:
        Object.__init__(self, handle, lib.gearkv_session_destroy, executor, workspace)
        self.model = model
        self.threads = threads
        self._executor = executor
        self._process = os.getpid()
        n = ffi.new("size_t*")
        note = lib.gearkv_session_note(handle, n)
        self.note: bytes = ffi.buffer(note, n[0])[:] if n[0] > 0 else b""
        self.n_ctx: int = lib.gearkv_session_n_ctx(handle)

    @classmethod
    def _of(
        cls, handle: Any, model: "Model", threads: Threads, executor: Any, workspace: Optional[Workspace]
    ) -> "Session":
        made = cls.__new__(cls)
        made._begin(handle, model, threads, executor, workspace)
        return made

    def _using(self) -> Any:
        if self._process != os.getpid():
            raise RuntimeError("this session was made before the process was forked, and its threads are not here")
        return super()._using()

    # Feeding

    def prefill(self, tokens: arrays.Tokens, *, all_logits: bool = False) -> Optional[np.ndarray]:
        """Feeds a prompt; with all_logits returns those after every token, [tokens, vocabulary]. Ctrl-C stops it
        between chunks."""
        array = arrays.tokens(tokens)
        logits = np.empty((array.size, self.model.params.n_vocab), np.float32) if all_logits else None
        to, room = (ffi.NULL, 0) if logits is None else (arrays.pointer(logits), logits.size)
        with self._using() as session:
            call(lib.gearkv_session_prefill, session, arrays.token_pointer(array), array.size, to, room)
        return logits

    def sync(self, tokens: arrays.Tokens) -> int:
        """Makes these the tokens of the session; those at the beginning that it has are not computed again. How many
        that were."""
        array, n_reused = arrays.tokens(tokens), ffi.new("uint64_t*")
        with self._using() as session:
            call(lib.gearkv_session_sync, session, arrays.token_pointer(array), array.size, n_reused)
        return n_reused[0]

    def decode(self, token: int) -> None:
        """Feeds one token."""
        with self._using() as session:
            call(lib.gearkv_session_decode, session, token)

    def decode_draft(self, tokens: arrays.Tokens) -> np.ndarray:
        """Feeds tokens with the bits of so many single ones; the logits after each. truncate takes back what was
        wrong."""
        array = arrays.tokens(tokens)
        logits = np.empty((array.size, self.model.params.n_vocab), np.float32)
        with self._using() as session:
            call(
                lib.gearkv_session_decode_draft,
                session,
                arrays.token_pointer(array),
                array.size,
                arrays.pointer(logits),
                logits.size,
            )
        return logits

    def logits(self) -> Optional[np.ndarray]:
        """After the last token fed; None when there are none. A copy."""
        with self._using() as session:
            found = lib.gearkv_session_logits(session)
            if found == ffi.NULL:
                return None
            return np.frombuffer(ffi.buffer(found, 4 * self.model.params.n_vocab), np.float32).copy()

    def tokens(self) -> list[int]:
        """In the cache, in their order."""
        n = ffi.new("size_t*")
        with self._using() as session:
            found = lib.gearkv_session_tokens(session, n)
            return list(found[0 : n[0]])

    @property
    def n_tokens(self) -> int:
        n = ffi.new("size_t*")
        with self._using() as session:
            lib.gearkv_session_tokens(session, n)
        return n[0]

    # Generating

    def steps(
        self,
        prompt: Union[str, bytes, arrays.Tokens, None] = None,
        *,
        max_tokens: Optional[int] = None,
        stop: Iterable[str] = (),
        sampler: Optional[Sampler] = None,
        speculation: Optional[Speculation] = None,
        **sampling: Any,
    ) -> Iterator[Generated]:
        """As generate, with the tokens."""
        if sampler is not None and sampling:
            raise TypeError("a sampler and settings of one")
        if speculation is not None and speculation.session is not self:
            raise ValueError("a speculation of another session")
        drawing = Sampler(**sampling) if sampler is None else sampler
        continues = self.n_tokens > 0
        if prompt is None:
            tokens: Any = []
        elif isinstance(prompt, (str, bytes)):
            tokens = self.model.tokenizer.encode(prompt, add_special=not continues)
        else:
            tokens = prompt
        writer = TextWriter(self.model.tokenizer, stop, continues or len(tokens) > 0)
        return self._steps(tokens, max_tokens, drawing, writer, speculation)

    def _steps(
        self,
        prompt: arrays.Tokens,
        max_tokens: Optional[int],
        sampler: Sampler,
        writer: TextWriter,
        speculation: Optional[Speculation],
    ) -> Iterator[Generated]:
        if len(prompt) > 0:
            if speculation is not None:
                speculation.settle()
            self.prefill(prompt)
            sampler.accept(prompt)
        yield from self.draw(max_tokens, sampler, writer, speculation)

    def draw(
        self,
        max_tokens: Optional[int],
        sampler: Sampler,
        writer: TextWriter,
        speculation: Optional[Speculation] = None,
    ) -> Iterator[Generated]:
        """Draws tokens and feeds them, from the logits there are. What was but guessed is taken back at the end."""
        if speculation is None:
            yield from self._draw(self, max_tokens, sampler, writer)
            return
        try:
            yield from self._draw(speculation, max_tokens, sampler, writer)
        finally:
            if self._handle is not None and speculation._handle is not None:
                speculation.settle()

    def _draw(
        self,
        decoder: Union["Session", Speculation],
        max_tokens: Optional[int],
        sampler: Sampler,
        writer: TextWriter,
    ) -> Iterator[Generated]:
        n = 0
        while max_tokens is None or n < max_tokens:
            if max_tokens is None and decoder.n_tokens >= self.n_ctx:
                break
            logits = decoder.logits()
            if logits is None:
                raise ValueError("nothing was fed that could be continued")
            token = sampler.sample(logits)
            if self.model.tokenizer.ends_generation(token):
                break
            text = writer.push(token)
            if writer.stopped:
                yield Generated(None, text)
                return
            decoder.decode(token)
            sampler.accept(token)
            n += 1
            yield Generated(token, text)
        yield Generated(None, writer.finish())

    def generate(
        self,
        prompt: Union[str, bytes, arrays.Tokens, None] = None,
        *,
        max_tokens: Optional[int] = None,
        stop: Iterable[str] = (),
        sampler: Optional[Sampler] = None,
        speculation: Optional[Speculation] = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Feeds a prompt, if there is one, and continues it: an iterator of pieces of text, whole characters each. It
        ends where the model ends it, before a stop text, after max_tokens, or, without max_tokens, with the context.
        What was generated stays in the session. Sampling is greedy unless settings of Sampler are given, or one. A
        speculation of this session makes it faster where it guesses well, and changes no token."""
        steps = self.steps(
            prompt, max_tokens=max_tokens, stop=stop, sampler=sampler, speculation=speculation, **sampling
        )
        return (step.text for step in steps if step.text)

    # Life

    def truncate(self, n_tokens: int) -> bool:
        """Forgets the tokens from n_tokens on. True when that leaves no trace."""
        lossless = ffi.new("int*")
        with self._using() as session:
            call(lib.gearkv_session_truncate, session, n_tokens, lossless)
        return bool(lossless[0])

    def remove(self, first: int, n_tokens: int) -> bool:
        """A context shift: forgets n_tokens tokens from `first` on, and those behind move up. True when they had to
        be computed anew."""
        anew = ffi.new("int*")
        with self._using() as session:
            call(lib.gearkv_session_remove, session, first, n_tokens, anew)
        return bool(anew[0])

    def fork(self) -> "Session":
        """A second session with the same tokens."""
        out = ffi.new("gearkv_session**")
        with self._using() as session:
            call(lib.gearkv_session_fork, session, self._executor, out)
        return Session._of(out[0], self.model, self.threads, self._executor, self._workspace)

    def reset(self) -> None:
        """Forgets all tokens and any failure."""
        with self._using() as session:
            lib.gearkv_session_reset(session)

    def stats(self) -> Stats:
        """Of its cache."""
        with self._using() as session:
            return stats_of(lib.gearkv_session_cache(session))

    def layer_stats(self, layer: int) -> LayerStats:
        with self._using() as session:
            return layer_stats_of(lib.gearkv_session_cache(session), layer)

    @property
    def level(self) -> str:
        with self._using() as session:
            return text_of(lib.gearkv_level_name(lib.gearkv_cache_level(lib.gearkv_session_cache(session))))

    # Saving

    def _save(self, sampler: Optional[Sampler], note: bytes, n_tokens: int, save: Any) -> None:
        options = sized("gearkv_session_save_options")
        kept = ffi.from_buffer(note)
        options.note, options.n_note = (kept if len(note) > 0 else ffi.NULL), len(note)
        options.n_tokens = n_tokens
        with self._using() as session:
            if sampler is None:
                return save(session, options)
            with sampler._using() as drawing:
                options.sampler = drawing
                save(session, options)

    def save(
        self,
        target: Union[Path, BinaryIO],
        *,
        sampler: Optional[Sampler] = None,
        note: bytes = b"",
        n_tokens: int = 0,
    ) -> None:
        """Saves cache, tokens, logits, and what else is given to a file, in one piece or not at all, or to an object
        with `write`. n_tokens above 0 saves the first so many."""
        if is_path(target):
            path = chars(target, "path")  # type: ignore[arg-type]
            self._save(
                sampler, note, n_tokens, lambda s, options: call(lib.gearkv_session_save, s, path, options, ffi.NULL)
            )
        else:
            handle = ffi.new_handle(target)
            self._save(
                sampler,
                note,
                n_tokens,
                lambda s, options: call(
                    lib.gearkv_session_save_through, s, lib.gearkv_py_write, handle, options
                ),
            )

    def to_bytes(self, *, sampler: Optional[Sampler] = None, note: bytes = b"", n_tokens: int = 0) -> bytes:
        """The bytes that save writes."""
        n_bytes, n_written, rooms = ffi.new("uint64_t*"), ffi.new("size_t*"), []

        def save(session: Any, options: Any) -> None:
            call(lib.gearkv_session_saved_bytes, session, options, n_bytes)
            rooms.append(bytearray(n_bytes[0]))
            room = ffi.from_buffer(rooms[0])
            call(lib.gearkv_session_save_to_memory, session, room, len(room), options, n_written)

        self._save(sampler, note, n_tokens, save)
        return bytes(memoryview(rooms[0])[: n_written[0]])

    @classmethod
    def load(
        cls,
        source: Union[Path, BinaryIO],
        model: "Model",
        spec: str = "gear-4",
        *,
        sampler: Optional[Sampler] = None,
        loading: str = "copy",
        threads: Union[Threads, int, None] = None,
        **settings: Any,
    ) -> "Session":
        """A session that goes on where the saved one was, out of a file or an object with `read`. SPEC and model are
        those of the saved one; n_ctx, chunk and level may be others. The sampler gets the state that was saved. What
        went along is in `note`."""
        if is_path(source):
            path = chars(source, "path")  # type: ignore[arg-type]
            return cls._load(
                lambda *rest: call(lib.gearkv_session_load, path, *rest),
                model,
                spec,
                sampler,
                loading,
                threads,
                settings,
            )
        handle = ffi.new_handle(source)
        return cls._load(
            lambda *rest: call(lib.gearkv_session_load_through, lib.gearkv_py_read, handle, *rest),
            model,
            spec,
            sampler,
            "copy",
            threads,
            settings,
        )

    @classmethod
    def from_bytes(
        cls,
        data: Any,
        model: "Model",
        spec: str = "gear-4",
        *,
        sampler: Optional[Sampler] = None,
        threads: Union[Threads, int, None] = None,
        **settings: Any,
    ) -> "Session":
        """The same out of what to_bytes gave, or any buffer that holds it."""
        view = ffi.from_buffer(data)
        return cls._load(
            lambda *rest: call(lib.gearkv_session_load_from_memory, view, len(view), *rest),
            model,
            spec,
            sampler,
            "copy",
            threads,
            settings,
        )

    @classmethod
    def _load(
        cls,
        load: Any,
        model: "Model",
        spec: str,
        sampler: Optional[Sampler],
        loading: str,
        threads: Union[Threads, int, None],
        settings: Any,
    ) -> "Session":
        pool, options, out = take_threads(threads), sized("gearkv_session_load_options"), ffi.new("gearkv_session**")
        config, kept = session_config(spec, **settings)
        options.loading = take_loading(loading)
        if sampler is None:
            load(model._handle, config, options, pool._handle, out)
        else:
            with sampler._using() as drawing:
                options.sampler = drawing
                load(model._handle, config, options, pool._handle, out)
        del kept
        return cls._of(out[0], model, pool, pool._handle, settings.get("workspace"))

    def __repr__(self) -> str:
        if self._handle is None:
            return "<gearkv.Session, closed>"
        return f"<gearkv.Session {self.n_tokens} of {self.n_ctx} tokens, {self.stats().bytes:,} bytes>"
