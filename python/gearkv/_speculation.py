"""A session that is fed guesses."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple, Optional

import numpy as np

from ._gearkv import ffi, lib
from ._native import Object, call, in_range, sized

if TYPE_CHECKING:
    from ._session import Session


class SpeculationStats(NamedTuple):
    n_tokens: int  # given to decode
    n_drafted: int  # guesses fed
    n_right: int  # of them, those that decode was then given
    n_passes: int  # through the model


class Speculation(Object):
    """Stands in for decode and logits of a session: feeds guesses behind a token, so that weights are read once for all
    of them, and shows the logits there are without. Guesses are found in the text, or are the likeliest tokens of
    `drafter`, a session of a smaller model with the same vocabulary. n_draft, the longest guess, is below the session's
    chunk and at most its rollback_tokens. Before anything else is done with the session: settle."""

    _kind = "speculation"

    def __init__(
        self, session: "Session", *, n_draft: int = 8, n_match: int = 3, drafter: Optional["Session"] = None
    ) -> None:
        self.session = session
        self.drafter = drafter
        self._sessions = [session] if drafter is None or drafter is session else [session, drafter]
        config, out = ffi.new("gearkv_speculation_config*"), ffi.new("gearkv_speculation**")
        lib.gearkv_speculation_config_init(config, ffi.sizeof("gearkv_speculation_config"))
        with in_range():
            config.n_draft = n_draft
            config.n_match = n_match
        with self._held():
            if drafter is not None:
                config.drafter = drafter._handle
            call(lib.gearkv_speculation_create, session._handle, config, out)
        super().__init__(out[0], lib.gearkv_speculation_destroy, session, drafter)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            # In one order everywhere, as decode_batch.
            for session in sorted(self._sessions, key=lambda session: id(session._lock)):
                held.enter_context(session._using())
            yield

    @contextlib.contextmanager
    def _using(self) -> Iterator[Any]:
        with self._held(), super()._using() as speculation:
            yield speculation

    def decode(self, token: int) -> None:
        """Feeds one token."""
        with self._using() as speculation:
            call(lib.gearkv_speculation_decode, speculation, token)

    def logits(self) -> Optional[np.ndarray]:
        """After the last token given to decode; None when there are none. A copy."""
        with self._using() as speculation:
            found = lib.gearkv_speculation_logits(speculation)
            if found == ffi.NULL:
                return None
            return np.frombuffer(ffi.buffer(found, 4 * self.session.model.params.n_vocab), np.float32).copy()

    @property
    def n_tokens(self) -> int:
        """Of the session, without guesses that are yet to come true."""
        with self._using() as speculation:
            return lib.gearkv_speculation_n_tokens(speculation)

    def settle(self) -> None:
        """Takes back what was but guessed, without a trace. The session may then be used by itself."""
        with self._using() as speculation:
            call(lib.gearkv_speculation_settle, speculation)

    def stats(self) -> SpeculationStats:
        found = sized("gearkv_speculation_stats")
        with self._using() as speculation:
            call(lib.gearkv_speculation_get_stats, speculation, found)
        return SpeculationStats(found.n_tokens, found.n_drafted, found.n_right, found.n_passes)

    def __repr__(self) -> str:
        if self._handle is None:
            return "<gearkv.Speculation, closed>"
        stats = self.stats()
        return f"<gearkv.Speculation, {stats.n_tokens} tokens in {stats.n_passes} passes>"
