// The stream of one block: tokens of one layer, all KV heads, keys or values, in compressed form.
//
//   +--------------------+  0
//   | BlockHeader        |  96 bytes: shape, codec, offset of every part; then 32 zeros
//   +--------------------+  128
//   | profile, sections  |  trellis blocks, see trellis.hpp
//   +--------------------+
//   | codes              |  [head][code words]                        little-endian 32-bit words
//   +--------------------+
//   | scales, zeros      |  fp16, see "groups"
//   +--------------------+
//   | factor a           |  [head][rank][tokens padded to 16]   fp16   tokens run along a plane
//   | factor p           |  [head][rank][dim]                   fp16   carries the magnitude
//   +--------------------+
//   | outlier starts     |  [head + 1] u32, first outlier of each head
//   | outlier counts     |  [head][token] u8 or u16, outliers of that token and head
//   | outlier channels   |  [outlier] u8 or u16, channel within the head, ascending within a token
//   | outlier values     |  [outlier] fp16: what codes miss, x - (code * scale + zero)
//   +--------------------+
// Every part is at the next multiple of 64, zeros between them, and absent (offset 0) when the codec does not
// use it, so a kernel streams each part once. Offsets make the block position-independent; it is attended
// where it lies, and tokens at its ends can be hidden by attending fewer.
//
// The entry of a token t and channel c is the sum of the parts:
//
//   x' = code * scale + zero  +  sum over r < rank of a[r][t] p[r][c]  +  the outlier's value, where one is
//
// Trellis blocks have codes of their own kind and neither scales nor factors nor outliers.
//
// Code words. A word holds 32 / b codes of one lane; byte i (0 lowest), field p of the word holds the code
// with depth index j * (32 / b) + 4 p + i, for word j of the lane:
//
//   b = 4, word j:   byte 3 | byte 2 | byte 1 | byte 0          b = 2: four 2-bit fields a byte
//   field 1 (high)   8j + 7 | 8j + 6 | 8j + 5 | 8j + 4          b = 8: one field a byte
//   field 0 (low)    8j + 3 | 8j + 2 | 8j + 1 | 8j + 0          b = 3: two planes, as b = 2 (bits 0 and 1 of
//                                                                      a code) and as b = 1 (bit 2)
//
// so four neighbours along the depth lie in the four bytes of a 32-bit lane, as dot-product instructions want
// them, after one shift and one mask.
//   keys:    lane = token, depth = channel.  [tile of 16 tokens][word][16 lanes]; with b = 3 a tile holds all
//            words of the low plane, then those of the high plane.
//   values:  lane = channel, depth = token.  [word][channels padded to 16]; with b = 3 every 32 tokens
//            hold two words of the low plane, then one of the high plane.
// Depths are padded to whole words, with b = 3 to 32. Lanes and fields beyond the shape are 0.
//
// Groups. Which entries share a scale and zero, and how these are stored; `group` tokens or channels are one,
// the last may have fewer:
//   kivi keys         [head][token group][dim]        scales, then zeros
//   kcvt keys         as kivi with one token group
//   token keys, kivi and token values
//                     [head][channel group][token]    scales, then zeros
//   kcvt values       [token]                         scales, then zeros; shared by all heads
//
// Raw blocks (fp16 or float) hold [head][token][dim padded to 16] in place of codes, and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gearkv/codec.hpp"
#include "kernels/kernels.hpp"

namespace gearkv {

inline constexpr std::uint32_t block_magic = 0x424b5647;  // "GVKB"
// What is written; version 1 is read as well. Only trellis blocks differ, and others are all of version 1.
inline constexpr std::uint16_t block_version = 2;
inline constexpr std::uint32_t block_alignment = 64;
inline constexpr std::uint32_t max_dim = 1024;
// The largest entries that caches take: as halves, and as floats, of which sums over all tokens stay finite.
inline constexpr float max_half_entry = 65504.0f, max_float_entry = 0x1p64f;
inline constexpr std::uint32_t max_heads = 4096;
inline constexpr std::uint32_t max_block_tokens = 65536;
inline constexpr std::uint32_t max_rank = 64;

constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}
constexpr std::uint64_t ceil_div(std::uint64_t n, std::uint64_t divisor) {
    return (n + divisor - 1) / divisor;
}

// Code words along the depth of one lane. 3 bits: low plane and high plane are counted apart.
constexpr std::uint32_t low_bits(std::uint32_t bits) {
    return bits == 3 ? 2 : bits;
}
constexpr std::uint32_t codes_per_word(std::uint32_t bits) {
    return 32 / low_bits(bits);
}

// Words of one lane for `depth` codes. Keys pad channels to whole words; values pad tokens to whole words,
// and with 3 bits to whole units of 32.
constexpr std::uint32_t lane_words(std::uint32_t bits, std::uint32_t depth) {
    if (bits == 3) return static_cast<std::uint32_t>(3 * ceil_div(depth, 32));
    return static_cast<std::uint32_t>(ceil_div(depth, codes_per_word(bits)));
}

struct BlockHeader {
    std::uint32_t magic;
    std::uint16_t version;     // 1, or 2 of trellis blocks that are not of version 1
    std::uint8_t kind;         // TensorKind: 0 keys, 1 values
    std::uint8_t backbone;     // Backbone: 0 float, 1 fp16, 2 kivi, 3 kcvt, 4 token, 5 trellis
    std::uint8_t bits;         // of a code: 2, 3, 4 or 8; 32 and 16 of raw blocks; 0 of a trellis
    std::uint8_t index_bytes;  // of outlier counts and channels: 1, or 2 when dim > 255
    std::uint16_t group;       // 0 of kcvt, raw and trellis
    std::uint32_t n_tokens;
    std::uint32_t n_heads;
    std::uint32_t dim;
    std::uint32_t rank;        // of the factors, 0 without
    std::uint32_t n_outliers;  // all heads
    float sparsity;            // as asked for
    float rate;                // trellis: average bits of a code
    std::uint64_t n_bytes;     // of the whole block, a multiple of 64
    std::uint32_t codes;       // offsets of the parts
    std::uint32_t scales;
    std::uint32_t zeros;
    std::uint32_t factor_a;
    std::uint32_t factor_p;
    std::uint32_t outlier_starts;
    std::uint32_t outlier_counts;
    std::uint32_t outlier_channels;
    std::uint32_t outlier_values;
    std::uint32_t profile;   // trellis; 0 when the first block of the stream has it, or had
    std::uint32_t sections;  // trellis
    std::uint32_t reserved;  // 0
};
static_assert(sizeof(BlockHeader) == 96);
inline constexpr std::uint64_t header_bytes = 128;

// Sizes that follow from a header, in elements per head unless said otherwise.
struct BlockSizes {
    std::uint64_t code_words;  // 32-bit words; raw blocks: rows of raw_stride elements; trellis: of all heads
    std::uint64_t tile_words;  // keys: words of one tile of 16 tokens
    std::uint64_t n_lanes;     // lanes padded to 16
    std::uint64_t n_groups;    // token groups (kivi, kcvt keys) or channel groups
    std::uint64_t n_scales;    // fp16 scales of one head; kcvt values: of the whole block
    std::uint64_t a_stride;    // tokens padded to 16
    std::uint64_t raw_stride;  // channels padded to 16
    bool shared_scales;        // kcvt values
    bool token_scales;         // one scale per token and channel group, not per channel and token group
    std::uint32_t group_tokens;    // tokens of one group when scales are per channel
    std::uint32_t group_channels;  // channels of one group when scales are per token
    std::uint32_t n_sections;      // trellis
    std::uint32_t n_planes;        // trellis: of one section of all heads
    std::uint32_t plane_words;     // trellis
    std::uint32_t section_bytes;   // trellis: side information of one section of one head
};

// Where the scale and zero of an entry stand within those of its head.
constexpr std::uint64_t scale_index(const BlockHeader& header, const BlockSizes& sizes, std::uint64_t token,
                                    std::uint64_t channel) {
    if (!sizes.token_scales) return token / sizes.group_tokens * header.dim + channel;
    return channel / sizes.group_channels * header.n_tokens + token;
}

// Lays out a block; a trellis block with its profile or without. Errors: wrong_size (shape out of its range,
// or a block of 2^32 bytes or more). `spec` must be valid; rank is clamped to min(n_tokens, dim).
Status lay_out_block(const BlockShape& shape, const TensorSpec& spec, std::uint32_t rank, BlockHeader* out,
                     bool with_profile = true) noexcept;
BlockSizes block_sizes(const BlockHeader& header) noexcept;
// The same block without its outliers, and without low rank if that goes too. False when it has neither.
bool lay_out_reduced(const BlockHeader& header, bool drop_low_rank, BlockHeader* out) noexcept;
// Writes it; what stays is copied.
void write_reduced(const void* block, const BlockHeader& header, void* out) noexcept;
// The same trellis block at the next lower rate, yet to be encoded. False where there is none.
bool lay_out_lower(const BlockHeader& header, BlockHeader* out) noexcept;
// The codec a header states; both ranks are the block's own.
TensorSpec spec_of(const BlockHeader& header) noexcept;
BlockBytes bytes_by_part(const BlockHeader& header) noexcept;

// Outliers at each end of one vector of `length` entries: floor(s / 2 * length), at least 1 and at most
// length / 2 whenever s > 0 (0 for a single entry).
std::uint32_t outliers_per_end(float sparsity, std::uint64_t length) noexcept;

// A block as pointers, for kernels. Holds no memory of its own.
struct BlockView {
    const BlockHeader* header = nullptr;
    BlockSizes sizes = {};
    const unsigned char* profiles = nullptr;      // trellis: of all heads, the block's own or its stream's
    const std::uint32_t* plane_starts = nullptr;  // trellis: behind them, [head + 1]

    template <class T>
    const T* part(std::uint64_t offset) const noexcept {
        return reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(header) + offset);
    }
    const std::uint32_t* codes(std::uint32_t head) const noexcept {
        return part<std::uint32_t>(header->codes) + head * sizes.code_words;
    }
    const std::uint16_t* scales(std::uint32_t head) const noexcept {
        return part<std::uint16_t>(header->scales) + (sizes.shared_scales ? 0 : head * sizes.n_scales);
    }
    const std::uint16_t* zeros(std::uint32_t head) const noexcept {
        return part<std::uint16_t>(header->zeros) + (sizes.shared_scales ? 0 : head * sizes.n_scales);
    }
    const std::uint16_t* factor_a(std::uint32_t head) const noexcept {
        return part<std::uint16_t>(header->factor_a) + head * header->rank * sizes.a_stride;
    }
    const std::uint16_t* factor_p(std::uint32_t head) const noexcept {
        return part<std::uint16_t>(header->factor_p) + head * header->rank * std::uint64_t{header->dim};
    }
    const unsigned char* section(std::uint32_t head, std::uint32_t i) const noexcept {
        const std::uint64_t at = std::uint64_t{head} * sizes.n_sections + i;
        return part<unsigned char>(header->sections) + at * sizes.section_bytes;
    }
    // Of a trellis block: the first plane of a head in a section of all heads. Blocks with fewer planes than
    // the profile gives out share theirs in proportion.
    std::uint32_t first_plane(std::uint32_t head) const noexcept {
        const std::uint32_t n_all = plane_starts[header->n_heads];
        if (n_all <= sizes.n_planes) return plane_starts[head];
        return static_cast<std::uint32_t>(std::uint64_t{plane_starts[head]} * sizes.n_planes / n_all);
    }
    std::uint32_t n_planes(std::uint32_t head) const noexcept {
        return first_plane(head + 1) - first_plane(head);
    }
    const std::uint32_t* section_codes(std::uint32_t head, std::uint32_t i) const noexcept {
        const std::uint64_t plane =
            std::uint64_t{first_plane(head)} * sizes.n_sections + std::uint64_t{i} * n_planes(head);
        return part<std::uint32_t>(header->codes) + plane * sizes.plane_words;
    }
    // Of a trellis block: the profiles of its stream.
    void use_profiles(const unsigned char* all) noexcept;
    TensorKind kind() const noexcept { return static_cast<TensorKind>(header->kind); }
    bool trellis() const noexcept { return header->backbone == static_cast<std::uint8_t>(Backbone::trellis); }
};

// The outliers of one head, walked token by token.
class OutlierCursor {
  public:
    // A view without a block, or a block without outliers, gives a cursor that must not be moved.
    OutlierCursor(const BlockView& view, std::uint32_t head) noexcept;
    // Outliers of the next token (of a block that has any); channel(i) and values()[i] belong to it for i <
    // the count.
    std::uint32_t next_token() noexcept {
        first_ += count_;
        count_ = wide_ ? *counts16_++ : *counts8_++;
        return count_;
    }
    // Those of the next n_tokens tokens, all at once.
    Outliers next_tokens(std::uint32_t n_tokens) noexcept;
    std::uint32_t channel(std::uint32_t i) const noexcept {
        return wide_ ? channels16_[first_ + i] : channels8_[first_ + i];
    }
    // fp16, one after another.
    const std::uint16_t* values() const noexcept { return values_ + first_; }

  private:
    const std::uint8_t* counts8_ = nullptr;
    const std::uint16_t* counts16_ = nullptr;
    const std::uint8_t* channels8_ = nullptr;
    const std::uint16_t* channels16_ = nullptr;
    const std::uint16_t* values_ = nullptr;
    std::uint64_t first_ = 0;
    std::uint32_t count_ = 0;
    bool wide_ = false;
};

// A block this process wrote itself: no checks.
BlockView trusted_block(const void* bytes) noexcept;

// The rest of open_block, for a view whose header is right.
Status check_contents(const BlockView& view) noexcept;
// Profiles of a stream of blocks like this one, which lie elsewhere. Errors: bad_block.
Status check_profiles(const BlockHeader& header, const void* bytes) noexcept;

// A block from anywhere: header, every offset against n_bytes, counts, channel order and the finiteness of
// every scale, factor and outlier. Errors: bad_block, with found and expected.
Status open_block(const void* bytes, std::uint64_t n_bytes, BlockView* out) noexcept;

}  // namespace gearkv
