"""Vocabularies, samplers, and the text of what is generated."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Optional, Sequence, Union

import numpy as np

from . import _arrays as arrays
from ._gearkv import ffi, lib
from ._native import Object, call, chars, sized, text_of


def asked_twice(function: Any, n_guess: int, kind: str) -> Any:
    """What a function writes that tells how much room it needs: function(out, n_room, n)."""
    n = ffi.new("size_t*")
    room = ffi.new(kind + "[]", n_guess)
    try:
        call(function, room, n_guess, n)
    except ValueError:
        if n[0] < n_guess:
            raise
        room = ffi.new(kind + "[]", n[0] + 1)
        call(function, room, n[0] + 1, n)
    return room, n[0]


class Tokenizer:
    """The vocabulary of a model. Used by any number of threads at once."""

    def __init__(self, handle: Any, keeper: Any) -> None:
        self._handle = handle
        self._keeper = keeper
        info = sized("gearkv_tokenizer_info")
        call(lib.gearkv_tokenizer_get_info, handle, info)
        self.n_vocab: int = info.n_vocab
        self.bos: Optional[int] = info.bos if info.bos >= 0 else None
        self.eos: Optional[int] = info.eos if info.eos >= 0 else None
        self.unknown: Optional[int] = info.unknown if info.unknown >= 0 else None
        self.adds_bos = bool(info.adds_bos)
        self.adds_eos = bool(info.adds_eos)
        self.kind = text_of(info.kind)
        self.pre = text_of(info.pre)
        self.note = text_of(info.note)
        self.chat_template: str = ffi.buffer(info.chat_template, info.n_chat_template)[:].decode(
            "utf-8", "replace"
        )
        self.end_of_generation: list[int] = list(info.end_of_generation[0 : info.n_end_of_generation])
        self.suppressed: list[int] = list(info.suppressed[0 : info.n_suppressed])

    def encode(self, text: Union[str, bytes], *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The tokens of a text. add_special: BOS and EOS where the vocabulary asks for them. parse_special: texts of
        control tokens become these; leave it off for what people wrote."""
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
        options = sized("gearkv_encode_options")
        options.no_special = not add_special
        options.parse_special = parse_special
        room, n = asked_twice(
            lambda out, n_room, count, error: lib.gearkv_tokenizer_encode(
                self._handle, data, len(data), options, out, n_room, count, error
            ),
            len(data) + 16,
            "gearkv_token",
        )
        return list(room[0:n])

    def decode_bytes(self, tokens: arrays.Tokens, *, special: bool = False, continues: bool = False) -> bytes:
        """The bytes of tokens. special: control tokens appear as their texts. continues: they begin no text."""
        array = arrays.tokens(tokens)
        options = sized("gearkv_decode_options")
        options.special = special
        options.continues = continues
        room, n = asked_twice(
            lambda out, n_room, count, error: lib.gearkv_tokenizer_decode(
                self._handle, arrays.token_pointer(array), array.size, options, out, n_room, count, error
            ),
            8 * array.size + 64,
            "char",
        )
        return ffi.buffer(room, n)[:]

    def decode(self, tokens: arrays.Tokens, *, special: bool = False, continues: bool = False) -> str:
        """The same as text; what is no UTF-8 becomes U+FFFD."""
        return self.decode_bytes(tokens, special=special, continues=continues).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """As the file has it; empty outside the vocabulary."""
        n = ffi.new("size_t*")
        text = lib.gearkv_tokenizer_token_text(self._handle, token, n)
        return ffi.buffer(text, n[0])[:] if n[0] > 0 else b""

    def find(self, text: Union[str, bytes]) -> Optional[int]:
        """The token with exactly this text, as the file has it."""
        data = text.encode("utf-8") if isinstance(text, str) else bytes(text)
        found = lib.gearkv_tokenizer_find(self._handle, data, len(data))
        return found if found >= 0 else None

    def ends_generation(self, token: int) -> bool:
        """Whether a model has said with it what it had to say."""
        return bool(lib.gearkv_tokenizer_ends_generation(self._handle, token))

    def __len__(self) -> int:
        return self.n_vocab


class Sampler(Object):
    """From logits to the next token; greedy unless told otherwise (sampler.hpp tells what each does). Equal
    settings, logits and tokens give equal tokens on every machine."""

    _kind = "sampler"

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        top_n_sigma: float = 0.0,
        xtc_probability: float = 0.0,
        xtc_threshold: float = 0.1,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        penalty_last_n: int = 64,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_last_n: int = 0xFFFFFFFF,
        dry_breakers: Sequence[int] = (),
        logit_bias: Optional[Mapping[int, float]] = None,
    ) -> None:
        config = ffi.new("gearkv_sampler_config*")
        lib.gearkv_sampler_config_init(config, ffi.sizeof("gearkv_sampler_config"))
        config.temperature = temperature
        config.seed = seed
        config.top_k = top_k
        config.top_p = top_p
        config.min_p = min_p
        config.typical_p = typical_p
        config.top_n_sigma = top_n_sigma
        config.xtc_probability = xtc_probability
        config.xtc_threshold = xtc_threshold
        config.repeat_penalty = repeat_penalty
        config.frequency_penalty = frequency_penalty
        config.presence_penalty = presence_penalty
        config.penalty_last_n = penalty_last_n
        config.dry_multiplier = dry_multiplier
        config.dry_base = dry_base
        config.dry_allowed_length = dry_allowed_length
        config.dry_last_n = dry_last_n
        breakers = ffi.new("gearkv_token[]", list(dry_breakers))
        config.dry_breakers, config.n_dry_breakers = breakers, len(breakers)
        biases = ffi.new("gearkv_logit_bias[]", list((logit_bias or {}).items()))
        config.logit_bias, config.n_logit_bias = biases, len(biases)
        out = ffi.new("gearkv_sampler**")
        call(lib.gearkv_sampler_create, config, out)
        super().__init__(out[0], lib.gearkv_sampler_destroy)

    def sample(self, logits: Any) -> int:
        """Draws a token; it counts for penalties once it is accepted."""
        array = np.ascontiguousarray(arrays.floats(logits, "logits", (1,)))
        token = ffi.new("gearkv_token*")
        with self._using() as sampler:
            call(lib.gearkv_sampler_sample, sampler, arrays.pointer(array), array.size, token)
        return token[0]

    def accept(self, tokens: Union[int, arrays.Tokens]) -> None:
        """Tells what the sequence holds: the prompt, and each token drawn that goes on."""
        array = arrays.tokens([tokens] if isinstance(tokens, int) else tokens)
        with self._using() as sampler:
            call(lib.gearkv_sampler_accept, sampler, arrays.token_pointer(array), array.size)

    def forget(self) -> None:
        """As if no token had been accepted. The random state stays."""
        with self._using() as sampler:
            lib.gearkv_sampler_forget(sampler)

    def to_bytes(self) -> bytes:
        """Random state and accepted tokens, for restore."""
        with self._using() as sampler:
            room, n = asked_twice(
                lambda out, n_room, count, error: lib.gearkv_sampler_save(sampler, out, n_room, count, error),
                4096,
                "unsigned char",
            )
        return ffi.buffer(room, n)[:]

    def restore(self, state: bytes) -> None:
        """Goes on as the sampler whose to_bytes this is, if its settings are the same but for the seed."""
        with self._using() as sampler:
            call(lib.gearkv_sampler_restore, sampler, ffi.from_buffer(state), len(state))


class TextWriter:
    """Tokens to text, one by one, in whole characters, up to a stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: Iterable[str], continues: bool) -> None:
        options, out = sized("gearkv_decode_options"), ffi.new("gearkv_text_stream**")
        options.continues = continues
        call(lib.gearkv_text_stream_create, tokenizer._handle, options, out)
        self._stream = ffi.gc(out[0], lib.gearkv_text_stream_destroy)
        texts = [ffi.new("char[]", chars(text, "a stop text")) for text in stop]
        made = ffi.new("gearkv_stop_matcher**")
        call(lib.gearkv_stop_matcher_create, ffi.new("char*[]", texts), len(texts), made)
        self._matcher = ffi.gc(made[0], lib.gearkv_stop_matcher_destroy)
        self._text, self._n = ffi.new("char**"), ffi.new("size_t*")

    def _match(self) -> str:
        call(lib.gearkv_stop_matcher_feed, self._matcher, self._text[0], self._n[0], self._text, self._n)
        return self._shown()

    def _shown(self) -> str:
        return ffi.buffer(self._text[0], self._n[0])[:].decode("utf-8", "replace")

    def push(self, token: int) -> str:
        call(lib.gearkv_text_stream_push, self._stream, token, self._text, self._n)
        return self._match()

    def finish(self) -> str:
        call(lib.gearkv_text_stream_flush, self._stream, self._text, self._n)
        held = self._match()
        call(lib.gearkv_stop_matcher_finish, self._matcher, self._text, self._n)
        return held + self._shown()

    @property
    def stopped(self) -> bool:
        return lib.gearkv_stop_matcher_stopped_by(self._matcher) >= 0
