"""Caches, what they take, and single blocks."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
import os
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Optional, Sequence, Union

import numpy as np

from . import _arrays as arrays
from ._gearkv import ffi, lib
from ._native import (
    Object,
    Threads,
    Workspace,
    above_zero,
    call,
    chars,
    in_range,
    refused,
    sized,
    take_level,
    take_threads,
    text_of,
)

Path = Union[str, "os.PathLike[str]"]
_NO_ERROR = ffi.NULL


@dataclass(frozen=True)
class Rope:
    """The rotary embedding of keys: radians a token for each pair of channels. Pair i is channels 2i and 2i + 1
    when it is interleaved, else i and i + the number of pairs."""

    frequencies: Sequence[float]
    interleaved: bool = False


@dataclass(frozen=True)
class Config:
    """What a cache is for and what it keeps (gearkv.h, gearkv_config). `spec` says what is stored ("gear-4")."""

    spec: str
    n_layers: int
    n_kv_heads: int
    head_dim: int
    max_tokens: int
    value_dim: Optional[int] = None  # None: as head_dim
    windows: Optional[Sequence[int]] = None  # of each layer: the last tokens it sees, 0 for all
    rope: Optional[Rope] = None  # of the keys, for Cache.remove
    rollback_tokens: int = 0
    spread_tokens: int = 16
    block_tokens: int = 0
    error_every: int = 0
    seed: int = 0
    max_bytes: int = 0
    soft_bytes: int = 0
    close_prompts: bool = False
    level: Optional[str] = None
    # Where layers differ, of each (KV heads, channels of a key, channels of a value), all 0 of one without keys of its
    # own; n_kv_heads and head_dim are 0 then.
    dims: Optional[Sequence[tuple[int, int, int]]] = None
    # Values are keys too, as in latent attention (MLA): a key is its value_dim channels and head_dim beside them, in
    # DeepSeek's caches 512 and 64; queries have both, the value's first.
    latent: bool = False

    def layer_dims(self, layer: int) -> tuple[int, int, int]:
        """KV heads, channels of a key and channels of a value of a layer."""
        if self.dims is not None:
            return tuple(self.dims[layer]) if 0 <= layer < len(self.dims) else (0, 0, 0)  # type: ignore[return-value]
        return self.n_kv_heads, self.head_dim, self.head_dim if self.value_dim is None else self.value_dim

    def _c(self, workspace: Optional[Workspace] = None) -> tuple[Any, list[Any]]:
        with in_range():
            config, kept = self._converted()
        if workspace is not None:
            config.workspace = workspace._handle
        return config, kept

    def _converted(self) -> tuple[Any, list[Any]]:
        config = ffi.new("gearkv_config*")
        lib.gearkv_config_init(config, ffi.sizeof("gearkv_config"))
        spec = ffi.new("char[]", chars(self.spec, "spec"))
        kept = [config, spec]
        config.spec = spec
        config.n_layers = self.n_layers
        config.n_kv_heads = self.n_kv_heads
        config.key_dim = self.head_dim
        config.value_dim = self.head_dim if self.value_dim is None else self.value_dim
        for name in (
            "max_tokens",
            "rollback_tokens",
            "spread_tokens",
            "block_tokens",
            "error_every",
            "seed",
            "max_bytes",
            "soft_bytes",
            "close_prompts",
            "latent",
        ):
            setattr(config, name, getattr(self, name))
        config.level = take_level(self.level)
        if self.windows is not None:
            if len(self.windows) != self.n_layers:
                raise ValueError(f"{len(self.windows)} windows for {self.n_layers} layers")
            windows = ffi.new("uint32_t[]", [int(n) for n in self.windows])
            kept.append(windows)
            config.windows = windows
        if self.dims is not None:
            if len(self.dims) != self.n_layers:
                raise ValueError(f"dims of {len(self.dims)} layers, expected {self.n_layers}")
            dims = ffi.new("gearkv_layer_dims[]", [tuple(int(n) for n in layer) for layer in self.dims])
            kept.append(dims)
            config.dims = dims
        if self.rope is not None:
            frequencies = ffi.new("double[]", [float(x) for x in self.rope.frequencies])
            kept.append(frequencies)
            config.rope_frequencies = frequencies
            config.rope_n_pairs = len(frequencies)
            config.rope_interleaved = self.rope.interleaved
        return config, kept


class Stats(NamedTuple):
    """Bytes and tokens of a cache (gearkv.h, gearkv_stats)."""

    bytes: int
    key_bytes: int
    value_bytes: int
    buffer_bytes: int
    scratch_bytes: int
    table_bytes: int
    shared_bytes: int
    mapped_bytes: int
    n_tokens: int
    compressed_tokens: int
    n_blocks: int
    n_shrunk: int
    bits_per_element: float
    compress_seconds: float
    shrunk_bytes: int


class LayerStats(NamedTuple):
    """The same of one layer (gearkv.h, gearkv_layer_stats)."""

    n_tokens: int
    n_forgotten: int
    n_closed: int
    n_blocks: int
    n_shrunk: int
    compress_seconds: float
    output_error: float
    n_sampled: int
    n_selections: int
    share_read: float
    mass_read: float
    shrunk_bytes: int


class StateInfo(NamedTuple):
    """What a saved cache says of itself (gearkv.h, gearkv_state_info)."""

    version: int
    spec: str
    n_layers: int
    n_kv_heads: int
    key_dim: int
    value_dim: int
    max_tokens: int
    n_bytes: int
    n_tokens: int
    n_blocks: int
    block_bytes: int
    n_extra: int
    fingerprint: bytes
    latent: bool


def stats_of(cache: Any) -> Stats:
    found = sized("gearkv_stats")
    call(lib.gearkv_cache_get_stats, cache, found)
    return Stats(*(getattr(found, name) for name in Stats._fields))


def layer_stats_of(cache: Any, layer: int) -> LayerStats:
    found = sized("gearkv_layer_stats")
    call(lib.gearkv_cache_get_layer_stats, cache, layer, found)
    return LayerStats(*(getattr(found, name) for name in LayerStats._fields))


def plan(config: Config, n_tokens: int, prompt_tokens: int = 0, *, n_heads: int | None = None,
         n_threads: int = 1) -> Stats:
    """What a cache takes with n_tokens in every layer, prompt_tokens of them in one append: bytes of blocks and
    buffers, exactly. With n_heads of queries, which may be 0, all that it takes while it holds most, scratch and
    tables too: the least max_bytes that such a life keeps to (gearkv.h, gearkv_bytes_of_life). The other fields
    are 0."""
    found = sized("gearkv_stats")
    c_config, kept = config._c()
    if n_heads is None:
        call(lib.gearkv_bytes_required, c_config, n_tokens, prompt_tokens, found)
    else:
        life = sized("gearkv_life")
        with in_range():
            life.n_tokens, life.prompt_tokens, life.n_heads = n_tokens, prompt_tokens, n_heads
            life.n_threads = n_threads
        call(lib.gearkv_bytes_of_life, c_config, life, found)
    del kept
    return Stats(*(getattr(found, name) for name in Stats._fields))


LOADING = {"copy": lib.GEARKV_LOAD_COPY, "map": lib.GEARKV_LOAD_MAP, "map_lazy": lib.GEARKV_LOAD_MAP_LAZY}


def take_loading(loading: str) -> int:
    if loading not in LOADING:
        raise ValueError(f"loading {loading!r}, expected one of {', '.join(LOADING)}")
    return LOADING[loading]


def is_path(target: Any) -> bool:
    return isinstance(target, (str, bytes, os.PathLike))


def _fingerprint(fingerprint: bytes, kept: list[Any]) -> Any:
    if not fingerprint:
        return ffi.NULL
    if len(fingerprint) != lib.GEARKV_FINGERPRINT_SIZE:
        raise ValueError(f"a fingerprint of {len(fingerprint)} bytes, expected {lib.GEARKV_FINGERPRINT_SIZE}")
    kept.append(ffi.new("uint8_t[]", fingerprint))
    return kept[-1]


class _Rules(NamedTuple):
    """What is done to scores, of every query of a call."""

    scale: Optional[float] = None
    causal: bool = True
    soft_cap: float = 0.0
    negligible: float = 0.0
    slopes: Any = None
    window: int = 0
    sinks: Any = None
    mass: float = 1.0
    most_share: float = 1.0


Ranges = Sequence[Sequence[tuple[int, int]]]


class _Asked:
    """Queries of one cache as the library takes them, the arrays they borrow, and where the answer goes."""

    def __init__(
        self,
        cache: "Cache",
        layer: int,
        queries: Any,
        rules: _Rules,
        mask: Any,
        ranges: Optional[Ranges],
        out: Any,
        dtype: Any,
    ) -> None:
        self.layer = cache._layer(layer)
        array = arrays.typed(queries, "queries", (2, 3))
        single = array.ndim == 2
        if single:
            array = array[np.newaxis]
        self.n_queries, self.n_heads, dim = array.shape
        n_kv_heads, key_dim, value_dim = cache.config.layer_dims(self.layer)
        n_latent = value_dim if cache.config.latent else 0
        if dim != key_dim + n_latent and key_dim > 0:
            raise ValueError(f"queries of {dim} channels, expected {key_dim + n_latent}")
        if n_latent > 0 and rules.scale is None:
            raise ValueError("queries of latents without a scale, which their channels do not tell")
        asked = ffi.new("gearkv_queries*")
        lib.gearkv_queries_init(asked, ffi.sizeof("gearkv_queries"))
        self.kept: list[Any] = [array]
        arrays.queries(array[..., n_latent:], asked)
        if n_latent > 0:
            asked.latents = arrays.pointer(array)
        with in_range():
            asked.scale = 1.0 / math.sqrt(dim) if rules.scale is None else rules.scale
            asked.causal = rules.causal
            asked.soft_cap = rules.soft_cap
            asked.negligible = rules.negligible
            asked.window = rules.window
            asked.mass = above_zero(rules.mass, "mass")
            asked.most_share = above_zero(rules.most_share, "most_share")
        for name, values in (("slopes", rules.slopes), ("sinks", rules.sinks)):
            if values is None:
                continue
            taken = np.ascontiguousarray(arrays.floats(values, name, (1,)))
            if taken.shape != (self.n_heads,):
                raise ValueError(f"{name} of shape {taken.shape}, expected ({self.n_heads},)")
            self.kept.append(taken)
            setattr(asked, name, arrays.pointer(taken))
        if ranges is not None:
            if len(ranges) != n_kv_heads > 0:
                raise ValueError(f"ranges of {len(ranges)} KV heads, expected {n_kv_heads}")
            with in_range():
                all_ranges = [(first, end) for head in ranges for first, end in head]
                taken_ranges = ffi.new("gearkv_token_range[]", all_ranges or 1)
                ends = ffi.new("size_t[]", list(itertools.accumulate(len(head) for head in ranges)) or 1)
            self.kept += [taken_ranges, ends]
            asked.ranges, asked.range_ends = taken_ranges, ends
        self.mask = None
        if mask is not None:
            self.mask = arrays.floats(mask, "mask", (2, 3))
            asked.mask = arrays.pointer(self.mask)
            asked.mask_query_stride = arrays.stride(self.mask, 0)
            asked.mask_head_stride = arrays.stride(self.mask, 1) if self.mask.ndim == 3 else 0
        shape = (self.n_heads, value_dim) if single else (self.n_queries, self.n_heads, value_dim)
        self.out = arrays.output(out, shape, dtype)
        if out is not None:
            inputs = {"queries": array, "mask": self.mask, "slopes": rules.slopes, "sinks": rules.sinks}
            arrays.apart(self.out, "out", inputs.items())
        arrays.attended(self.out[np.newaxis] if single else self.out, asked)
        self.n_elements = arrays.n_elements(self.out)
        self.queries = asked

    def check(self, cache: Any) -> None:
        """With the cache in hand: whether the mask has its tokens."""
        if self.mask is None:
            return
        expected = (self.n_queries,) + ((self.n_heads,) if self.mask.ndim == 3 else ())
        expected += (lib.gearkv_cache_n_tokens(cache, self.layer),)
        if self.mask.shape != expected:
            raise ValueError(f"mask of shape {self.mask.shape}, expected {expected}")


def attend_batch(
    layer: int,
    caches: Sequence["Cache"],
    queries: Sequence[Any],
    *,
    masks: Optional[Sequence[Any]] = None,
    ranges: Optional[Sequence[Optional[Ranges]]] = None,
    outs: Optional[Sequence[Optional[np.ndarray]]] = None,
    dtype: Any = None,
    threads: Union[Threads, int, None] = None,
    **rules: Any,
) -> list[np.ndarray]:
    """Cache.attend of many caches of one Workspace at once, each with queries of its own; every output has the bits it
    would have alone. `masks`, `ranges` and `outs` have one of each, or None; the other rules of attend hold for all."""
    if any(len(given) != len(caches) for given in (queries, masks, ranges, outs) if given is not None):
        raise ValueError(f"queries, masks, ranges or outs are not those of {len(caches)} caches, expected one of each")
    if len(caches) > 1 and any(c._workspace is None or c._workspace is not caches[0]._workspace for c in caches):
        raise refused("caches of a batch without a common workspace, expected one for all of them")
    if len({id(cache) for cache in caches}) < len(caches):
        raise refused("a cache is twice in the batch")
    common = _Rules(**rules)
    asked = [
        _Asked(
            cache,
            layer,
            of,
            common,
            None if masks is None else masks[i],
            None if ranges is None else ranges[i],
            None if outs is None else outs[i],
            dtype,
        )
        for i, (cache, of) in enumerate(zip(caches, queries))
    ]
    for i, out in enumerate(outs or ()):
        if out is not None:
            # Its own queries and mask are looked at by now.
            rest = [(j, one) for j, one in enumerate(asked) if j != i]
            others = [(f"queries {j}", one.kept[0]) for j, one in rest] + [(f"mask {j}", one.mask) for j, one in rest]
            arrays.apart(out, f"out {i}", others + [(f"out {j}", outs[j]) for j in range(i)])  # type: ignore[index]
    requests = ffi.new("gearkv_attend_request[]", len(caches))
    pool = caches[0].threads if threads is None and len(caches) > 0 else take_threads(threads)
    with contextlib.ExitStack() as held:
        for request, cache, one in zip(requests, caches, asked):
            request.cache = held.enter_context(cache._using())
            one.check(request.cache)
            request.queries, request.out, request.n_floats = one.queries, arrays.pointer(one.out), one.n_elements
        with in_range():
            call(lib.gearkv_attend_batch, layer, requests, len(caches), pool._handle)
    return [one.out for one in asked]


class Cache(Object):
    """Keys and values of a sequence, compressed. Threads take turns; the GIL is free during calls."""

    _kind = "cache"

    def __init__(
        self, config: Config, *, threads: Union[Threads, int, None] = None, workspace: Optional[Workspace] = None
    ) -> None:
        out = ffi.new("gearkv_cache**")
        c_config, kept = config._c(workspace)
        call(lib.gearkv_cache_create, c_config, out)
        del kept
        self._begin(out[0], config, take_threads(threads), b"", workspace)

    def _begin(
        self, handle: Any, config: Config, threads: Threads, extra: bytes, workspace: Optional[Workspace]
    ) -> None:
        Object.__init__(self, handle, lib.gearkv_cache_destroy, workspace)
        self.config = config
        self.threads = threads
        self.extra = extra  # bytes that were saved beside the cache this one was loaded from

    @classmethod
    def _of(
        cls,
        handle: Any,
        config: Config,
        threads: Threads,
        extra: bytes = b"",
        workspace: Optional[Workspace] = None,
    ) -> "Cache":
        made = cls.__new__(cls)
        made._begin(handle, config, threads, extra, workspace)
        return made

    def _layer(self, layer: int) -> int:
        at = operator.index(layer)
        if not 0 <= at < self.config.n_layers:
            raise refused(f"layer {at}, expected below {self.config.n_layers}")
        return at

    def append(self, layer: int, keys: Any, values: Any) -> None:
        """Appends keys and values [tokens, KV heads, channels] to a layer. float32, float16 and bfloat16
        are read where they lie, with any strides above 0; other floats are converted."""
        layer = self._layer(layer)
        key_array = arrays.typed(keys, "keys", (3,))
        value_array = arrays.typed(values, "values", (3,))
        n_tokens = key_array.shape[0]
        n_kv_heads, key_dim, value_dim = self.config.layer_dims(layer)
        for name, array, dim in (("keys", key_array, key_dim), ("values", value_array, value_dim)):
            # What the library says of a layer without keys, or of none, is better.
            if dim > 0 and array.shape != (n_tokens, n_kv_heads, dim):
                raise ValueError(f"{name} of shape {array.shape}, expected {(n_tokens, n_kv_heads, dim)}")
        with self._using() as cache:
            call(
                lib.gearkv_cache_append_typed,
                cache,
                layer,
                arrays.rows(key_array),
                arrays.rows(value_array),
                n_tokens,
                self.threads._handle,
            )

    def attend(
        self,
        layer: int,
        queries: Any,
        *,
        scale: Optional[float] = None,
        causal: bool = True,
        soft_cap: float = 0.0,
        negligible: float = 0.0,
        slopes: Any = None,
        mask: Any = None,
        window: int = 0,
        sinks: Any = None,
        mass: float = 1.0,
        most_share: float = 1.0,
        ranges: Optional[Ranges] = None,
        out: Optional[np.ndarray] = None,
        dtype: Any = None,
    ) -> np.ndarray:
        """Softmax attention of queries [queries, heads, channels], or [heads, channels] of one, over a layer's
        tokens. scale None is 1/sqrt(channels). slopes and sinks are [heads], a mask that is added to the scores is
        [queries, tokens] or [queries, heads, tokens]. What is read: sections of 128 tokens that have `mass` of the
        weights, `most_share` of them at most, values that weigh at least `negligible` of the heaviest (cache.hpp,
        Queries); ranges, not along with the first two, has for each KV head the (first, end) of the tokens it sees, in
        order. The output is float32, or of dtype (float16, bfloat16); out, where it is given, is such an array that
        is written to, with any strides above 0, and has no bytes in common with what is read."""
        rules = _Rules(scale, causal, soft_cap, negligible, slopes, window, sinks, mass, most_share)
        asked = _Asked(self, layer, queries, rules, mask, ranges, out, dtype)
        with self._using() as cache:
            asked.check(cache)
            call(
                lib.gearkv_cache_attend,
                cache,
                asked.layer,
                asked.queries,
                arrays.pointer(asked.out),
                asked.n_elements,
                self.threads._handle,
            )
        return asked.out

    def compress(self, layer: Optional[int] = None) -> None:
        """Compresses now all that fills blocks, of one layer or of all."""
        with self._using() as cache:
            for each in range(self.config.n_layers) if layer is None else (self._layer(layer),):
                call(lib.gearkv_cache_compress, cache, each, self.threads._handle)

    def read(
        self,
        layer: int,
        first: int = 0,
        n_tokens: Optional[int] = None,
        *,
        out: tuple[Optional[np.ndarray], Optional[np.ndarray]] = (None, None),
        dtype: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values [tokens, KV heads, channels] as they are attended, in float32 or dtype; to the arrays of
        `out` where they are given, each of a type of its own and with any strides above 0."""
        layer = self._layer(layer)
        with self._using() as cache:
            if n_tokens is None:
                n_tokens = max(0, lib.gearkv_cache_n_tokens(cache, layer) - first)
            self._check_range(first, n_tokens, lib.gearkv_cache_n_tokens(cache, layer))
            n_kv_heads, key_dim, value_dim = self.config.layer_dims(layer)
            keys = arrays.output(out[0], (n_tokens, n_kv_heads, key_dim), dtype, "keys")
            values = arrays.output(out[1], (n_tokens, n_kv_heads, value_dim), dtype, "values")
            if out[0] is not None:
                arrays.apart(keys, "keys", [("values", values)])
            call(
                lib.gearkv_cache_read_rows,
                cache,
                layer,
                first,
                n_tokens,
                arrays.out_rows(keys),
                arrays.out_rows(values),
            )
        return keys, values

    @staticmethod
    def _check_range(first: int, n: int, held: int) -> None:
        # Before memory is taken for what is not there.
        if first < 0 or n < 0 or first + n > held:
            raise ValueError(f"tokens {first} to {first + n} of {held}")

    def truncate(self, n_tokens: int) -> bool:
        """Drops the tokens from n_tokens on. True when every later output has the bits of a cache that never saw
        them."""
        lossless = ffi.new("int*")
        with self._using() as cache:
            call(lib.gearkv_cache_truncate, cache, n_tokens, lossless)
        return bool(lossless[0])

    def truncate_to_shortest(self) -> tuple[int, bool]:
        """After an error in the middle of a step: all layers hold the same tokens again. How many, and whether that
        was lossless."""
        n_tokens, lossless = ffi.new("uint64_t*"), ffi.new("int*")
        with self._using() as cache:
            call(lib.gearkv_cache_truncate_to_shortest, cache, n_tokens, lossless)
        return n_tokens[0], bool(lossless[0])

    def remove(self, first: int, n_tokens: int, ropes: Optional[Sequence[Rope]] = None) -> None:
        """A context shift: drops n_tokens tokens from `first` on; those behind move up, and their keys turn by the
        rope of each layer, or by that of the configuration."""
        c_ropes: Any = ffi.NULL
        kept: list[Any] = []
        if ropes is not None:
            if len(ropes) != self.config.n_layers:
                raise ValueError(f"{len(ropes)} ropes for {self.config.n_layers} layers")
            c_ropes = ffi.new("gearkv_rope[]", len(ropes))
            for to, rope in zip(c_ropes, ropes):
                kept.append(ffi.new("double[]", [float(x) for x in rope.frequencies]))
                to.frequencies, to.n_pairs, to.interleaved = kept[-1], len(kept[-1]), rope.interleaved
        with self._using() as cache:
            call(lib.gearkv_cache_remove, cache, first, n_tokens, c_ropes, self.threads._handle)
        del kept

    def forget_before(self, layer: int, token: int) -> None:
        """Gives back the blocks of a layer that have no token from `token` on."""
        with self._using() as cache:
            call(lib.gearkv_cache_forget_before, cache, self._layer(layer), token)

    def shrink(self, target_bytes: int) -> int:
        """Makes older blocks smaller until the cache holds at most so many bytes; how many were freed."""
        freed = ffi.new("uint64_t*")
        with self._using() as cache:
            call(lib.gearkv_cache_shrink, cache, target_bytes, freed)
        return freed[0]

    def fork(self) -> "Cache":
        """A second cache with the same tokens; nothing is copied until one of the two changes."""
        out = ffi.new("gearkv_cache**")
        with self._using() as cache:
            call(lib.gearkv_cache_fork, cache, out)
        return Cache._of(out[0], self.config, self.threads, self.extra, self._workspace)

    def reset(self) -> None:
        """Forgets all tokens."""
        with self._using() as cache:
            lib.gearkv_cache_reset(cache)

    def reserve(self, max_tokens: int) -> None:
        """Raises max_tokens, if it is less; takes no memory."""
        with self._using() as cache:
            call(lib.gearkv_cache_reserve, cache, max_tokens)

    def n_tokens(self, layer: int = 0) -> int:
        with self._using() as cache:
            return lib.gearkv_cache_n_tokens(cache, self._layer(layer))

    def first_token(self, layer: int = 0) -> int:
        """The first token of a layer from which on all are there."""
        with self._using() as cache:
            return lib.gearkv_cache_first_token(cache, self._layer(layer))

    @property
    def level(self) -> str:
        with self._using() as cache:
            return text_of(lib.gearkv_level_name(lib.gearkv_cache_level(cache)))

    def layer_spec(self, layer: int) -> str:
        out = ffi.new("char[]", lib.GEARKV_SPEC_SIZE)
        with self._using() as cache:
            call(lib.gearkv_cache_layer_spec, cache, self._layer(layer), out, len(out))
        return text_of(out)

    def stats(self) -> Stats:
        with self._using() as cache:
            return stats_of(cache)

    def layer_stats(self, layer: int) -> LayerStats:
        with self._using() as cache:
            return layer_stats_of(cache, self._layer(layer))

    @staticmethod
    def _save_options(fingerprint: bytes, extra: bytes, n_tokens: int) -> tuple[Any, list[Any]]:
        options = sized("gearkv_save_options")
        kept: list[Any] = []
        options.fingerprint = _fingerprint(fingerprint, kept)
        if extra:
            kept.append(ffi.from_buffer(extra))
            options.extra = kept[-1]
            options.n_extra = len(extra)
        options.n_tokens = n_tokens
        return options, kept

    def save(
        self, target: Union[Path, BinaryIO], *, fingerprint: bytes = b"", extra: bytes = b"", n_tokens: int = 0
    ) -> None:
        """Saves the cache to a file in one piece or not at all, or to an object with `write`. `fingerprint` (32
        bytes) names what keys and values came from; `extra` goes along; n_tokens above 0 saves the first so many."""
        options, kept = self._save_options(fingerprint, extra, n_tokens)
        with self._using() as cache:
            if is_path(target):
                path = chars(target, "path")  # type: ignore[arg-type]
                call(lib.gearkv_cache_save, cache, path, options, self.threads._handle, _NO_ERROR)
            else:
                handle = ffi.new_handle(target)
                call(
                    lib.gearkv_cache_save_through,
                    cache,
                    lib.gearkv_py_write,
                    handle,
                    options,
                    self.threads._handle,
                )
        del kept

    def to_bytes(self, *, fingerprint: bytes = b"", extra: bytes = b"", n_tokens: int = 0) -> bytes:
        """The bytes that save writes."""
        options, kept = self._save_options(fingerprint, extra, n_tokens)
        n_bytes, n_written = ffi.new("uint64_t*"), ffi.new("size_t*")
        with self._using() as cache:
            call(lib.gearkv_state_bytes, cache, options, n_bytes)
            room = bytearray(n_bytes[0])
            call(
                lib.gearkv_cache_save_to_memory,
                cache,
                ffi.from_buffer(room),
                len(room),
                options,
                self.threads._handle,
                n_written,
            )
        del kept
        return bytes(memoryview(room)[: n_written[0]])

    @classmethod
    def load(
        cls,
        source: Union[Path, BinaryIO],
        config: Config,
        *,
        fingerprint: bytes = b"",
        loading: str = "copy",
        threads: Union[Threads, int, None] = None,
        workspace: Optional[Workspace] = None,
    ) -> "Cache":
        """A cache out of a file, or of an object with `read`; `config` says what is expected. loading: "copy", or
        of a file "map" or "map_lazy", where blocks stay in the file. Bytes that went along are in `extra`."""
        if is_path(source):
            path = chars(source, "path")  # type: ignore[arg-type]
            n_extra = inspect_state(path).n_extra
            return cls._load(
                config,
                fingerprint,
                loading,
                threads,
                n_extra,
                workspace,
                lambda *rest: call(lib.gearkv_cache_load, path, *rest),
            )
        # How many bytes went along is told by the state alone; there are no more than it has.
        data = source.read()  # type: ignore[union-attr]
        return cls.from_bytes(data, config, fingerprint=fingerprint, threads=threads, workspace=workspace)

    @classmethod
    def from_bytes(
        cls,
        data: Any,
        config: Config,
        *,
        fingerprint: bytes = b"",
        threads: Union[Threads, int, None] = None,
        workspace: Optional[Workspace] = None,
    ) -> "Cache":
        """The same out of what to_bytes gave, or any buffer that holds it."""
        view = ffi.from_buffer(data)
        return cls._load(
            config,
            fingerprint,
            "copy",
            threads,
            len(view),
            workspace,
            lambda *rest: call(lib.gearkv_cache_load_from_memory, view, len(view), *rest),
        )

    @classmethod
    def _load(
        cls,
        config: Config,
        fingerprint: bytes,
        loading: str,
        threads: Union[Threads, int, None],
        n_room: int,
        workspace: Optional[Workspace],
        load: Any,
    ) -> "Cache":
        options, out, n_extra = sized("gearkv_load_options"), ffi.new("gearkv_cache**"), ffi.new("size_t*")
        c_config, kept = config._c(workspace)
        options.fingerprint = _fingerprint(fingerprint, kept)
        options.loading = take_loading(loading)
        room = np.empty(n_room, np.uint8)
        if n_room > 0:
            options.extra = ffi.cast("void*", room.ctypes.data)
            options.n_room = n_room
        pool = take_threads(threads)
        load(c_config, options, pool._handle, out, n_extra)
        del kept
        return cls._of(out[0], config, pool, room[: n_extra[0]].tobytes(), workspace)

    def __repr__(self) -> str:
        if self._handle is None:
            return "<gearkv.Cache, closed>"
        return f"<gearkv.Cache {self.config.spec}, {self.n_tokens()} tokens, {self.stats().bytes:,} bytes>"


def _state_info(function: Any, path: Any, *arguments: Any) -> StateInfo:
    info = sized("gearkv_state_info")
    call(function, chars(path, "path"), *arguments, info)
    fields = {name: getattr(info, name) for name in StateInfo._fields}
    fields["spec"] = text_of(info.spec)
    fields["latent"] = bool(info.latent)
    fields["fingerprint"] = bytes(ffi.buffer(info.fingerprint))
    return StateInfo(**fields)


def inspect_state(path: Union[Path, bytes]) -> StateInfo:
    """What a file says of itself."""
    return _state_info(lib.gearkv_inspect_state, path)


def verify_state(path: Union[Path, bytes], *, threads: Union[Threads, int, None] = None) -> StateInfo:
    """The same, and checks every byte."""
    return _state_info(lib.gearkv_verify_state, path, take_threads(threads)._handle)


def _aligned(n_bytes: int) -> np.ndarray:
    room = np.empty(n_bytes + 63, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + n_bytes]


def compress(
    rows: Any,
    spec: str,
    *,
    kind: str = "keys",
    generated: bool = False,
    seed: int = 0,
    level: Optional[str] = None,
    threads: Union[Threads, int, None] = None,
) -> bytes:
    """One block out of keys or values [tokens, heads, channels], without a cache. `spec` is that of a cache, of
    which the part for this kind is used; "generated" blocks have the rank of generated tokens."""
    array = arrays.typed(rows, "rows", (3,))
    if kind not in ("keys", "values"):
        raise ValueError(f"kind {kind!r}, expected keys or values")
    options = sized("gearkv_block_options")
    c_spec = ffi.new("char[]", chars(spec, "spec"))
    options.spec = c_spec
    options.kind = lib.GEARKV_KEYS if kind == "keys" else lib.GEARKV_VALUES
    options.n_tokens, options.n_heads, options.dim = array.shape
    options.generated = generated
    options.seed = seed
    options.level = take_level(level)
    n_bytes = ffi.new("uint64_t*")
    call(lib.gearkv_block_bytes, options, n_bytes)
    block = _aligned(n_bytes[0])
    call(
        lib.gearkv_compress_block_typed,
        ffi.cast("void*", block.ctypes.data),
        block.size,
        arrays.rows(array),
        options,
        take_threads(threads)._handle,
    )
    return block.tobytes()


def decompress(block: Any, shape: Sequence[int], *, out: Optional[np.ndarray] = None) -> np.ndarray:
    """The rows [tokens, heads, channels] of a block, which may come from anywhere; `out` is float32 and contiguous."""
    data = np.frombuffer(block, np.uint8)
    if data.ctypes.data % 64 != 0:
        moved = _aligned(data.size)
        moved[:] = data
        data = moved
    rows = arrays.output(out, tuple(int(n) for n in shape), np.float32, contiguous=True)
    arrays.apart(rows, "out", [("the block", data)])
    call(
        lib.gearkv_decompress_block, arrays.pointer(rows), rows.size, ffi.cast("void*", data.ctypes.data), data.size
    )
    return rows
