// What a cache stores: the SPEC of keys and values.
//
//   SPEC    = PAIR {";" LAYERS "=" PAIR}  |  "auto:" BITS {"," OPTION}
//   PAIR    = ONE | "k=" ONE ";v=" ONE;   ONE = NAME [":" OPTION {"," OPTION}]
//   NAME    = f32 | f16 | q8 | gear-1 | gear-2 | gear-3 | gear-4 | trellis-RATE | kivi-B | kcvt-B | token-B
//           | ["paper:"] (gearl-B | gear-B | gearl-kcvt-B | gear-kcvt-B | gearl-token-B | gear-token-B)
//             B = 2 3 4 8;  RATE = average bits of a code, 0.5 to 6 for keys and to 4 for values
//   OPTION  = g=GROUP | r=RANK | rg=RANK | s=FRACTION | nb=TOKENS | sinks=TOKENS | recent=TOKENS
//   LAYERS  = "edge-" N | "layers-" FIRST ["-" LAST]
//
// gear-1 to gear-4 are the best points found near 1.9, 2.5, 3.5 and 4.5 bits per element with everything
// counted (bench/README.md): trellis codes, more bits for keys than for values, four exact sink tokens. The
// paper's own are paper:gear-2 and so on: kivi, kcvt and token are plain backbones; gearl adds low rank, gear
// low rank and sparse outliers. Any option may be given to any of these, so every combination of the parts
// can be written:
//   paper:gear-2:g=64,r=4,rg=2,s=0.02,nb=64      k=kivi-4:r=4;v=kivi-2:s=0.02      kivi-2:r=0,s=0.02
// LAYERS, in up to 8 rules, have a PAIR of their own: the first and the last N of a cache, one or more each,
// or those from FIRST to LAST, counted from 0. Of several rules for a layer the last holds:
//   gear-2;layers-4-9=kivi-4;layers-6=gear-4;edge-1=q8
// nb, sinks and recent are the whole cache's and stand in the first PAIR; f32 is in all layers or in none. N
// and LAST may be more than a cache has, FIRST may not.
//
// auto:BITS, with 1 to 5 bits per element of a full buffer's blocks and everything in them counted, leaves
// the rates of every layer, head and tensor to the cache. It chooses them when it compresses for the first
// time, so that these tokens lose least of the attention output of the last queries before, in all layers
// together. Only nb, sinks and recent go with it. A buffer (nb) is 64 tokens, with a trellis 128 and a
// multiple of it. Uncompressed first tokens (sinks) are 0, with a trellis 4; last tokens (recent) that stay
// uncompressed, beside those that do not fill a buffer yet, are 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gearkv/status.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

// Which entries share one scale and minimum (paper section 3.1; KIVI, KCVT and FlexGen-style per-token).
enum class Backbone : std::uint8_t {
    raw32 = 0,  // no compression, float
    raw16 = 1,  // no compression, IEEE half
    kivi = 2,   // keys: per channel, `group` consecutive tokens;   values: per token, `group` channels
    kcvt = 3,   // keys: per channel, all tokens of the block;      values: per token, channels of all heads
    token = 4,  // keys and values: per token, `group` consecutive channels of one head
    trellis =
        5,  // trellis-coded, widths by channel; keys per channel, values rotated (src/format/trellis.hpp)
    none = 255,  // not said yet, which no call takes
};

// One of the two tensors, keys or values.
struct TensorSpec {
    Backbone backbone = Backbone::none;
    std::uint8_t bits = 0;          // 2, 3, 4 or 8; 16 and 32 for the raw backbones
    std::uint16_t group = 64;       // entries per scale, a multiple of 32; unused by kcvt and raw
    std::uint16_t rank_prompt = 0;  // rank of the residual of prompt blocks, per head; 0 = no low rank
    std::uint16_t rank_decode = 0;  // the same for blocks of generated tokens
    float sparsity = 0.0f;          // fraction of entries kept as outliers, half at each end; [0, 1)
    float rate = 0.0f;              // trellis: average bits of a code; keys 0.5 to 6, values 0.5 to 4

    bool raw() const noexcept { return backbone == Backbone::raw16 || backbone == Backbone::raw32; }
    friend bool operator==(const TensorSpec& a, const TensorSpec& b) noexcept {
        return a.backbone == b.backbone && a.bits == b.bits && a.group == b.group &&
               a.rank_prompt == b.rank_prompt && a.rank_decode == b.rank_decode && a.sparsity == b.sparsity &&
               a.rate == b.rate;
    }
    friend bool operator!=(const TensorSpec& a, const TensorSpec& b) noexcept { return !(a == b); }
};

// Some layers of a cache that have another pair of tensors.
struct LayerRule {
    std::uint32_t edge_layers = 0;  // above 0: the first and the last layers, so many each
    std::uint32_t first = 0;        // else these, counted from 0
    std::uint32_t last = 0;
    TensorSpec key = {};
    TensorSpec value = {};

    bool covers(std::uint32_t layer, std::uint32_t n_layers) const noexcept {
        if (edge_layers == 0) return layer >= first && layer <= last;
        return layer < edge_layers || layer + std::uint64_t{edge_layers} >= n_layers;
    }
    friend bool operator==(const LayerRule& a, const LayerRule& b) noexcept {
        return a.edge_layers == b.edge_layers && a.first == b.first && a.last == b.last && a.key == b.key &&
               a.value == b.value;
    }
    friend bool operator!=(const LayerRule& a, const LayerRule& b) noexcept { return !(a == b); }
};

inline constexpr std::uint32_t max_layer_rules = 8;

// Keys, values, and the tokens kept uncompressed until they fill a block (n_b in the paper).
struct KvSpec {
    TensorSpec key;
    TensorSpec value;
    std::uint32_t buffer_tokens = 64;
    std::uint32_t sink_tokens = 0;    // first tokens of a sequence that stay uncompressed
    std::uint32_t recent_tokens = 0;  // last tokens that do, beside those that do not fill a block yet
    float auto_bits =
        0.0f;  // above 0: what keys and values, both a trellis, may take; a cache chooses the rates
    std::uint32_t n_layer_rules = 0;
    LayerRule layer_rules[max_layer_rules];  // of several for a layer the last holds; unused ones as here

    // What holds for a layer of a cache of n_layers; null for key and value above.
    const LayerRule* rule_of(std::uint32_t layer, std::uint32_t n_layers) const noexcept {
        for (std::uint32_t i = n_layer_rules; i-- > 0;) {
            if (layer_rules[i].covers(layer, n_layers)) return &layer_rules[i];
        }
        return nullptr;
    }
    friend bool operator==(const KvSpec& a, const KvSpec& b) noexcept {
        bool same = a.key == b.key && a.value == b.value && a.buffer_tokens == b.buffer_tokens &&
                    a.sink_tokens == b.sink_tokens && a.recent_tokens == b.recent_tokens &&
                    a.auto_bits == b.auto_bits && a.n_layer_rules == b.n_layer_rules;
        for (std::uint32_t i = 0; same && i < max_layer_rules; ++i)
            same = a.layer_rules[i] == b.layer_rules[i];
        return same;
    }
    friend bool operator!=(const KvSpec& a, const KvSpec& b) noexcept { return !(a == b); }
};

// Reads a SPEC. Errors: unavailable_spec; bad_spec; the message quotes the place with a caret position and
// lists what is known there; *out is untouched then. invalid_argument for null arguments.
Status parse_spec(const char* text, KvSpec* out) noexcept;

// Room for the canonical text of every valid spec, with the zero at its end. With one rule for layers it
// always fits; a spec whose rules need more is not valid.
inline constexpr std::size_t max_spec_chars = 256;

// Writes the canonical SPEC, which parses back to an equal KvSpec. Errors: wrong_size when it needs more than
// n_chars (max_spec_chars always suffice), bad_spec when the spec is not valid.
Status format_spec(const KvSpec& spec, char* text, std::size_t n_chars) noexcept;

// Errors: unavailable_spec (a build with specs=trellis has neither kivi nor kcvt nor token); bad_spec, naming
// the field, its value and what is allowed; also for what needs more than max_spec_chars.
Status validate_spec(const KvSpec& spec) noexcept;

}  // namespace gearkv
#pragma GCC visibility pop
