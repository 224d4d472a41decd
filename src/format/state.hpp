// A cache in a file, version 1 or, where layers have different shapes, 2. All numbers are little-endian;
// every section starts at a multiple of 64, so that blocks are attended where they lie in a mapped file.
// Whoever reads this alone can read the file.
//
//   +-----------------+  0
//   | StateHeader     |  512 bytes: what the sections mean, and the checksum of the table
//   +-----------------+  512
//   | LayerDims[l]    |  version 2 alone: u32 n_kv_heads, key_dim, value_dim of each of the l layers, at
//   least |                 |  two of them different, all 0 of a layer without keys; zeros to the next
//   multiple of 64
//   +-----------------+
//   | StateSection[n] |  64 bytes each: kind, place, size and checksum of a section
//   +-----------------+
//   | sections        |  in the order of the table, each at the next multiple of 64; zeros between them
//   +-----------------+  n_bytes of the header, a multiple of 64
//
// Order of the sections, those that are empty left out, as those of a layer without keys are:
//   for each layer 0, 1, ...:
//     layer              StateLayer, 64 bytes; there for every layer that holds tokens or chosen rates
//     key_planes         u32 [n_kv_heads + 1], value_planes likewise: chosen rates of auto:BITS, as the first
//                        planes in the profile of a block (trellis.hpp)
//     key_sinks          rows, value_sinks likewise: the first tokens of the sequence
//     key_profiles       what the first block of the layer would carry for all, when that block is gone;
//                        value_profiles likewise. As in a block (trellis.hpp)
//     key_block,         the stream of a block (block.hpp), a pair for every entry of the layer's table,
//     value_block        oldest first. A block that was cut has an entry for each of its pieces, behind
//                        each other, which all name the same bytes and checksums: only the first pair moves
//                        the place of the next section on.
//     key_buffer         rows, value_buffer likewise: the last tokens
//     queries            StateQueries and rows: what auto:BITS will choose its rates by
//     rope               StateRope and frequencies by which keys of this layer have moved, where these are
//     not
//                        those of the header
//   squares            StateSquares and what follows: how loud queries are in the channels of keys, by which
//                      blocks to come choose their widths. A reader may leave it out
//   extra                bytes of the program that saved, at most one section
//
// Rows are [token][head][dim padded to 16 with zeros] of fp16, or of float in a tensor of f32 (their size
// tells, too); keys as they were rotated for the places the tokens have now.
//
// Tokens of a layer: n_sinks (fewer than the SPEC says where some were removed), then n_forgotten which are
// counted but were given back, then those of the blocks, then n_buffered. An entry of a block shows tokens
// [first, first + n_tokens) of it and hides the others; shift, 0 or negative, is how far they have moved
// since their keys were rotated: what was rotated for place p is at p + shift now, and keys turn by shift
// times the frequencies of the layer.
//
// Checksums are XXH64 with seed 0. A reader must refuse what it does not know: other versions, kinds, flags
// and anything but zeros in reserved fields and between sections.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gearkv/cache.hpp"

namespace gearkv {

inline constexpr unsigned char state_magic[8] = {'G', 'V', 'K', 'S', 'T', 'A', 'T', 'E'};
inline constexpr std::uint32_t state_version = 1;              // of layers that are all alike
inline constexpr std::uint32_t state_dims_version = 2;         // of others
inline constexpr std::uint32_t state_byte_order = 0x01020304;  // as read by a machine of the right order
inline constexpr std::uint64_t state_alignment = 64;
inline constexpr std::size_t state_model_bytes = 32;
inline constexpr std::size_t state_spec_chars = 256;

struct StateHeader {
    unsigned char magic[8];
    std::uint32_t version;
    std::uint32_t byte_order;
    std::uint64_t n_bytes;  // of the file
    std::uint32_t n_sections;
    std::uint32_t block_version;  // the latest of the blocks; 1 or 2
    std::uint32_t n_layers;
    std::uint32_t n_kv_heads;  // these three are 0 in version 2
    std::uint32_t key_dim;
    std::uint32_t value_dim;
    std::uint64_t max_tokens;  // of the cache that was saved; another one may have more or less
    std::uint64_t seed;
    std::uint32_t spread_tokens;
    std::uint32_t flags;                    // bit 0: the rates of auto:BITS are chosen; bit 1: values are
                                            // latents, whose blocks and profiles are of the kind of keys
    std::uint32_t rope_pairs;               // channels turned by a rotary embedding, in pairs
    std::uint32_t rope_interleaved;         // 0 or 1
    std::uint64_t rope_checksum;            // of double [rope_pairs], the frequencies
    std::uint64_t table_checksum;           // of all StateSection
    std::uint8_t model[state_model_bytes];  // the program's name for what the keys and values came from
    char spec[state_spec_chars];            // canonical SPEC, ended and filled with zeros
    std::uint64_t dims_checksum;            // version 2: of all LayerDims, without the zeros behind them
    std::uint8_t reserved[112];
    std::uint64_t checksum;  // of the bytes before it
};
static_assert(sizeof(StateHeader) == 512);
static_assert(offsetof(StateHeader, model) == 96 && offsetof(StateHeader, spec) == 128);

static_assert(sizeof(LayerDims) == 12);

// Bytes of the dims with the zeros behind them.
constexpr std::uint64_t state_dims_bytes(std::uint64_t n_layers) {
    const std::uint64_t n = n_layers * sizeof(LayerDims);
    return (n + state_alignment - 1) / state_alignment * state_alignment;
}

enum class StateKind : std::uint32_t {
    layer = 1,
    key_planes = 2,
    value_planes = 3,
    key_sinks = 4,
    value_sinks = 5,
    key_profiles = 6,
    value_profiles = 7,
    key_block = 8,
    value_block = 9,
    key_buffer = 10,
    value_buffer = 11,
    queries = 12,
    extra = 13,
    rope = 14,
    squares = 15,
};

// Of keys and values, which follow each other: the one of `kind`.
constexpr StateKind state_kind(StateKind of_keys, TensorKind kind) {
    return static_cast<StateKind>(static_cast<std::uint32_t>(of_keys) + (kind == TensorKind::value));
}

struct StateSection {
    std::uint32_t kind;    // StateKind
    std::uint32_t layer;   // 0 for extra
    std::uint64_t offset;  // from the start of the file
    std::uint64_t n_bytes;
    std::uint64_t checksum;
    std::uint32_t first;     // of the blocks, both of a pair alike; else 0
    std::uint32_t n_tokens;  // likewise
    std::int64_t shift;      // likewise
    std::uint64_t reserved[2];
};
static_assert(sizeof(StateSection) == 64);

struct StateLayer {
    std::uint64_t n_sinks;
    std::uint64_t n_forgotten;
    std::uint64_t n_closed;  // in blocks, those they show
    std::uint64_t n_buffered;
    std::uint64_t exact_from;        // fewer tokens would not have closed all the blocks yet
    std::uint32_t pending_tokens;    // first of the buffer, on their way to a block
    std::uint32_t pending_appended;  // tokens that came since
    std::uint32_t flags;             // bit 0: the last append brought a block's worth of tokens or more;
                                     // bit 1: so did the one that brought the pending ones;
                                     // bit 2: a sliding window had left some of what was given back, which is
                                     // no mask, and whoever needs them cannot go on;
                                     // bit 3: keys have moved, all by the same frequencies (in earlier files
                                     // a shift alone tells)
    float key_rate;                  // of a trellis, as in use
    float value_rate;
    std::uint32_t reserved;
};
static_assert(sizeof(StateLayer) == 64);

// Behind it: double [n_pairs], radians a token.
struct StateRope {
    std::uint32_t n_pairs;      // at most key_dim / 2; 0: keys do not turn
    std::uint32_t interleaved;  // 1: pair i is channels 2i and 2i + 1; 0: i and i + n_pairs
    std::uint8_t reserved[56];
};
static_assert(sizeof(StateRope) == 64);

// Behind it: double [n_kv_heads][key_dim], the sum over tokens that are in blocks; StateSquareRow [n_rows];
// float [n_rows][n_kv_heads][key_dim], of later tokens the root mean square over the query heads that share a
// KV head.
struct StateSquares {
    std::uint64_t n_rows;
    std::uint64_t n_summed;  // tokens the sum stands for
    std::uint8_t reserved[48];
};
static_assert(sizeof(StateSquares) == 64);
struct StateSquareRow {
    std::uint64_t token;   // in rising order
    std::uint64_t seen;    // tokens there were when it was kept; above token
    std::uint64_t weight;  // tokens it stands for
};
static_assert(sizeof(StateSquareRow) == 24);

// Behind it: float [n_queries][n_heads][key_dim].
struct StateQueries {
    std::uint32_t n_queries;  // 1 to 64
    std::uint32_t next;       // of 64 places, the one to be replaced
    std::uint32_t n_heads;    // a multiple of n_kv_heads
    float scale;
    std::uint64_t visible[64];  // tokens each query saw; 0 behind n_queries
    std::uint8_t reserved[48];
};
static_assert(sizeof(StateQueries) == 576);

}  // namespace gearkv
