// What a cache stores: the SPEC of keys and values.
//
//   SPEC    = PAIR [";edge-" LAYERS "=" PAIR]  |  "auto:" BITS {"," OPTION}
//   PAIR    = ONE | "k=" ONE ";v=" ONE;   ONE = NAME [":" OPTION {"," OPTION}]
//   NAME    = f32 | f16 | q8 | gear-2 | gear-3 | gear-4 | trellis-RATE | kivi-B | kcvt-B | token-B
//           | ["paper:"] (gearl-B | gear-B | gearl-kcvt-B | gear-kcvt-B | gearl-token-B | gear-token-B)
//             B = 2 3 4 8;  RATE = average bits of a code, 0.5 to 6 for keys and to 4 for values
//   OPTION  = g=GROUP | r=RANK | rg=RANK | s=FRACTION | nb=TOKENS | sinks=TOKENS
//
// gear-2, gear-3 and gear-4 are the best points found near 2.5, 3.5 and 4.5 bits per element with everything
// counted (bench/README.md): trellis codes, more bits for keys than for values, four exact sink tokens. The
// paper's own are paper:gear-2 and so on: kivi, kcvt and token are plain backbones; gearl adds low rank, gear
// low rank and sparse outliers. Any option may be given to any of these, so every combination of the parts
// can be written:
//   paper:gear-2:g=64,r=4,rg=2,s=0.02,nb=64      k=kivi-4:r=4;v=kivi-2:s=0.02      kivi-2:r=0,s=0.02
// The first and last LAYERS of a cache, one or more each, have the PAIR behind ";edge-" instead, without nb,
// sinks and recent, which are the whole cache's: gear-2;edge-1=gear-4. auto:BITS, with 1 to 5 bits per
// element of a full buffer's blocks and everything in them counted, leaves the rates of every layer, head and
// tensor to the cache. It chooses them when it compresses for the first time, so that these tokens lose least
// of the attention output of the last queries before, in all layers together. Only nb and sinks go with it. A
// buffer (nb) is 64 tokens, with a trellis 128 and a multiple of it. Uncompressed first tokens (sinks) are 0,
// with a trellis 4; last tokens (recent) that stay uncompressed, beside those that do not fill a buffer yet,
// are 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gearkv/status.hpp"

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
};

// One of the two tensors, keys or values.
struct TensorSpec {
    Backbone backbone = Backbone::raw16;
    std::uint8_t bits = 16;         // 2, 3, 4 or 8; 16 and 32 for the raw backbones
    std::uint16_t group = 64;       // entries per scale, a multiple of 32; unused by kcvt and raw
    std::uint16_t rank_prompt = 0;  // rank of the residual of prompt blocks, per head; 0 = no low rank
    std::uint16_t rank_decode = 0;  // the same for blocks of generated tokens
    float sparsity = 0.0f;          // fraction of entries kept as outliers, half at each end; [0, 1)
    float rate = 0.0f;              // trellis: average bits of a code; keys 0.5 to 6, values 0.5 to 4

    bool raw() const noexcept { return backbone == Backbone::raw16 || backbone == Backbone::raw32; }
    friend bool operator==(const TensorSpec&, const TensorSpec&) = default;
};

// Keys, values, and the tokens kept uncompressed until they fill a block (n_b in the paper).
struct KvSpec {
    TensorSpec key;
    TensorSpec value;
    std::uint32_t buffer_tokens = 64;
    std::uint32_t sink_tokens = 0;    // first tokens of a sequence that stay uncompressed
    std::uint32_t recent_tokens = 0;  // last tokens that do, beside those that do not fill a block yet
    float auto_bits =
        0.0f;  // above 0: what keys and values, both a trellis, may take; a cache chooses the rates
    // Above 0: the first and the last layers of a cache, so many each, have these two instead.
    std::uint32_t edge_layers = 0;
    TensorSpec edge_key = {};
    TensorSpec edge_value = {};

    friend bool operator==(const KvSpec&, const KvSpec&) = default;
};

// Reads a SPEC. Errors: bad_spec; the message quotes the place with a caret position and lists what is known
// there; *out is untouched then. invalid_argument for null arguments.
Status parse_spec(const char* text, KvSpec* out) noexcept;

inline constexpr std::size_t max_spec_chars = 256;

// Writes the canonical SPEC, which parses back to an equal KvSpec. Errors: wrong_size when it needs more than
// n_chars (max_spec_chars always suffice), bad_spec when the spec is not valid.
Status format_spec(const KvSpec& spec, char* text, std::size_t n_chars) noexcept;

// Errors: bad_spec, naming the field, its value and what is allowed.
Status validate_spec(const KvSpec& spec) noexcept;

}  // namespace gearkv
