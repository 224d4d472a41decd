"""Model files."""

from __future__ import annotations

import os
from typing import Any, Iterable, Iterator, NamedTuple, Optional, Union

from . import _arrays as arrays
from ._cache import Path
from ._chat import Chat
from ._gearkv import ffi, lib
from ._native import Threads, call, chars, has_decoder, sized, take_threads, text_of
from ._session import Session, session_config
from ._text import Tokenizer


class ModelParams(NamedTuple):
    """Sizes of a model, as its metadata state them. windows: of each layer the last tokens it sees, 0 for all; empty
    when all layers see all."""

    family: str
    n_parameters: int
    n_vocab: int
    n_embd: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_ctx: int
    rope_dim: int
    rope_base: float
    norm_eps: float
    windows: tuple[int, ...]


class TensorInfo(NamedTuple):
    """One tensor of the file; its shape innermost first."""

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int


class SessionBytes(NamedTuple):
    """The most a session takes."""

    weights: int
    cache: int
    scratch: int


class Fit(NamedTuple):
    """A SPEC and a context for a number of bytes. Where nothing fits that is what was wanted, `fits` is false and the
    rest is what needs least."""

    fits: bool
    spec: str
    n_ctx: int
    chunk: int
    bytes: SessionBytes
    reason: str


class Model:
    """A GGUF file. Immutable: used by any number of sessions and threads at once. `pre` says how texts are split,
    where the file says it wrongly or not at all. The file must stay as it is while the model lives."""

    def __init__(self, path: Path, *, pre: Optional[str] = None) -> None:
        if not has_decoder:
            raise NotImplementedError("gearkv was built without the decoder, which needs PCRE2 (libpcre2-dev)")
        options, out = sized("gearkv_model_options"), ffi.new("gearkv_model**")
        rule = None if pre is None else ffi.new("char[]", chars(pre, "pre"))
        if rule is not None:
            options.pre = rule
        call(lib.gearkv_model_load, chars(path, "path"), options, out)
        self._handle = ffi.gc(out[0], lib.gearkv_model_destroy)
        self.path = os.fsdecode(path)
        found = sized("gearkv_model_params")
        call(lib.gearkv_model_get_params, self._handle, found)
        fields = {name: getattr(found, name) for name in ModelParams._fields}
        fields["family"] = text_of(found.family)
        fields["windows"] = tuple(found.windows[0 : found.n_layers]) if found.windows != ffi.NULL else ()
        self.params = ModelParams(**fields)
        self.tokenizer = Tokenizer(lib.gearkv_model_tokenizer(self._handle), self._handle)

    @property
    def tensors(self) -> list[TensorInfo]:
        info, found = sized("gearkv_tensor_info"), []
        for i in range(lib.gearkv_model_n_tensors(self._handle)):
            call(lib.gearkv_model_get_tensor, self._handle, i, info)
            shape = tuple(info.shape[0 : info.n_dims])
            found.append(TensorInfo(text_of(info.name), text_of(info.type), shape, info.n_bytes))
        return found

    @property
    def metadata(self) -> dict[str, str]:
        """Scalars as text, arrays as their type and length."""
        key, value, found = ffi.new("char**"), ffi.new("char**"), {}
        for i in range(lib.gearkv_model_n_metadata(self._handle)):
            call(lib.gearkv_model_get_metadata, self._handle, i, key, value)
            found[text_of(key[0])] = text_of(value[0])
        return found

    @property
    def fingerprint(self) -> bytes:
        """Names the file for saved caches."""
        out = ffi.new("uint8_t[]", lib.GEARKV_FINGERPRINT_SIZE)
        call(lib.gearkv_model_fingerprint, self._handle, out)
        return bytes(out)

    def session(self, spec: str = "gear-4", *, threads: Union[Threads, int, None] = None, **settings: Any) -> Session:
        """A session; see Session for the settings."""
        return Session(self, spec, threads=threads, **settings)

    def generate(
        self,
        prompt: Union[str, arrays.Tokens],
        *,
        max_tokens: Optional[int] = None,
        stop: Iterable[str] = (),
        spec: str = "gear-4",
        n_ctx: int = 0,
        threads: Union[Threads, int, None] = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Continues a text, piece by piece as it is generated, in a session of its own: Session.generate."""
        session = self.session(spec, n_ctx=n_ctx, threads=threads)
        return session.generate(prompt, max_tokens=max_tokens, stop=stop, **sampling)

    def chat(
        self,
        *,
        system: Optional[str] = None,
        template: Optional[str] = None,
        spec: str = "gear-4",
        n_ctx: int = 0,
        threads: Union[Threads, int, None] = None,
    ) -> Chat:
        """A conversation: Chat."""
        session = self.session(spec, n_ctx=n_ctx, threads=threads)
        return Chat(session, system=system, template=template)

    def session_bytes(
        self, spec: str = "gear-4", *, threads: Union[Threads, int, None] = None, **settings: Any
    ) -> SessionBytes:
        """The most bytes a session takes while its context is filled."""
        config, kept = session_config(spec, **settings)
        found = sized("gearkv_session_bytes")
        call(lib.gearkv_get_session_bytes, self._handle, config, take_threads(threads)._handle, found)
        del kept
        return SessionBytes(found.weights, found.cache, found.scratch)

    def fit(
        self,
        max_bytes: int,
        *,
        spec: Optional[str] = None,
        other_bytes: int = 0,
        threads: Union[Threads, int, None] = None,
        **settings: Any,
    ) -> Fit:
        """A SPEC, unless there is one, and a context, unless n_ctx says it, for max_bytes, of which other_bytes are
        taken already."""
        config, kept = session_config(spec, **settings)
        found = sized("gearkv_fit")
        call(
            lib.gearkv_fit_session,
            self._handle,
            config,
            max_bytes,
            other_bytes,
            take_threads(threads)._handle,
            found,
        )
        del kept
        taken = SessionBytes(found.weights, found.cache, found.scratch)
        return Fit(bool(found.fits), text_of(found.spec), found.n_ctx, found.chunk, taken, text_of(found.reason))

    def __repr__(self) -> str:
        return f"<gearkv.Model {self.params.family}, {self.params.n_parameters:,} parameters>"
