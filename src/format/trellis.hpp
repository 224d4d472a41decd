// The trellis backbone: fixed-rate trellis-coded scalar quantisation along the tokens of a channel.
//
// A section is 128 consecutive tokens of one head, t = 0 to 127. A channel of width b spends b bits on every
// token: one path bit p and b - 1 free bits u. With p[-1] = p[-2] = 0,
//
//   z0 = p[t-1];   z1 = p[t] ^ p[t-2];   level = T_b[u << 2 | z1 << 1 | z0]       2^(b+1) sorted levels
//
// so 2^(b+1) levels are told apart by b bits: the two low index bits follow from the path, which a Viterbi
// search chooses. A token depends on earlier tokens of its section only. Width 0 spends nothing: every
// level is 0. Keys have widths up to 6, values up to 4.
//
//   keys:    x' = mean_c + zero_c + S_c level     granules of 4 channels in the stored order of the profile
//   values:  x' = gain_t (mean_c + (H y)_c),      granules of 16 channels; H orthonormal, see rotate_head
//            y_c = S_c level
//
// A granule is what shares a width; the last one of values may have 8 channels. S, zero, gain and the widths
// are in the side information of a section, SectionLayout.
//
// Blocks of version 1 differ: they have no width 1, the origin of their gains is -8, where the sections have
// a 0, and the mean of values has no gain: x' = mean_c + gain_t (H y)_c. The blocks of a stream may be of
// both versions; the profile means the same.
//
// Parts of a block:
//   profile    [head] of mean fp16 [dim] and, keys only, order u16 [dim]; behind all heads u32 [head + 1],
//              the first plane of each head in a section of all heads. In the first block, used by all. A
//              block whose rate stands for fewer planes than first[heads] (it was encoded again, to take
//              less) has first[head] * planes / first[heads], rounded down, in place of first[head].
//   sections   [head][section], see SectionLayout
//   codes      [head][section][plane], with first[head + 1] - first[head] planes for each section of a head;
//              in the order of the granules, a granule of width b having b planes: first the path bits, then
//              the free bits from the lowest
//     keys     a plane is 16 words: word l, byte i, bit k is token 8 l + k of channel i of the granule
//     values   a plane is 4 x 16 words: word [j][c], bit k is token 32 j + k of channel c of the granule
// The planes of a section are as many as the rate allows; what the widths do not use is 0.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "format/block.hpp"

namespace gearkv {

inline constexpr std::uint32_t section_tokens = 128;
inline constexpr std::uint32_t key_granule = 4;  // channels that share a width
inline constexpr std::uint32_t value_granule = 16;
inline constexpr std::uint32_t key_plane_words = 16;
inline constexpr std::uint32_t value_plane_words = 64;
inline constexpr std::uint32_t max_key_width = 6;
inline constexpr std::uint32_t max_value_width = 4;
// Range of the origin of gains; gain = 2^((origin + nibble) / 4).
inline constexpr int least_gain_origin = -32, most_gain_origin = 16, first_gain_origin = -8;

constexpr std::uint32_t granule_channels(TensorKind kind) {
    return kind == TensorKind::key ? key_granule : value_granule;
}
constexpr std::uint32_t plane_words(TensorKind kind) {
    return kind == TensorKind::key ? key_plane_words : value_plane_words;
}

// Levels by width, those of 1 and 2 for keys and values; 5 and 6 are uniform: 2 j - (2^(b+1) - 1). Trained on
// Gaussian data: keys scaled to their range over a section, values to unit variance.
constexpr std::int8_t key_levels_1[4] = {-127, -42, 42, 127};
constexpr std::int8_t key_levels_2[8] = {-127, -73, -43, -12, 12, 43, 73, 127};
constexpr std::int8_t key_levels_3[16] = {-127, -95, -74, -58, -44, -30, -18, -6,
                                          6,    18,  30,  44,  58,  74,  95,  127};
constexpr std::int8_t key_levels_4[32] = {-127, -122, -107, -95, -85, -77, -68, -61, -53, -46, -39,
                                          -31,  -24,  -17,  -11, -3,  3,   11,  17,  24,  31,  39,
                                          46,   53,   61,   68,  77,  85,  95,  107, 122, 127};
constexpr std::int8_t value_levels_3[16] = {-127, -91, -69, -53, -40, -27, -17, -5,
                                            5,    17,  27,  40,  53,  69,  91,  127};
constexpr std::int8_t value_levels_4[32] = {-127, -100, -83, -70, -60, -52, -45, -39, -34, -28, -24,
                                            -19,  -15,  -10, -7,  -2,  2,   7,   10,  15,  19,  24,
                                            28,   34,   39,  45,  52,  60,  70,  83,  100, 127};

// The table of a width of 1 to 4; null for 0, 5 and 6.
constexpr const std::int8_t* trellis_levels(TensorKind kind, std::uint32_t width) {
    switch (width) {
        case 1:
            return key_levels_1;
        case 2:
            return key_levels_2;
        case 3:
            return kind == TensorKind::key ? key_levels_3 : value_levels_3;
        case 4:
            return kind == TensorKind::key ? key_levels_4 : value_levels_4;
        default:
            return nullptr;
    }
}
constexpr int trellis_level(TensorKind kind, std::uint32_t width, std::uint32_t index) {
    if (width == 0) return 0;
    const std::int8_t* levels = trellis_levels(kind, width);
    return levels != nullptr ? levels[index]
                             : 2 * static_cast<int>(index) - static_cast<int>((2u << width) - 1);
}

// A key's zero is a signed byte times S times this: half a step of the levels, and coarser where steps are
// fine.
constexpr float zero_unit(std::uint32_t width) {
    constexpr float units[max_key_width + 1] = {1.0f,        127.0f / 3, 127.0f / 7, 127.0f / 15,
                                                127.0f / 31, 4.0f,       8.0f};
    return units[width];
}

// Its square is half the variance of a channel over a section, in squares of S: the deviation is taken for a
// sixth of the range, which the levels span, or, where they are few, most of it.
constexpr float key_spread(std::uint32_t width) {
    if (width < 1 || width > max_key_width) return 0.0f;
    constexpr float shares[max_key_width + 1] = {0.0f, 1.3f, 1.15f, 1.05f, 1.0f, 1.0f, 1.0f};
    const float deviation =
        shares[width] * static_cast<float>(trellis_level(TensorKind::key, width, (2u << width) - 1)) / 3.0f;
    return 0.707106781f * deviation;
}

inline constexpr float least_rate = 0.5f;

inline TensorSpec trellis_spec(float rate) noexcept {
    TensorSpec spec = {Backbone::trellis, 0};
    spec.rate = rate;
    return spec;
}

// Planes of one section of all heads at an average of `rate` bits per entry.
constexpr std::uint32_t section_planes(TensorKind kind, std::uint32_t n_heads, std::uint32_t dim,
                                       float rate) {
    const std::uint32_t n = granule_channels(kind);
    const double granules = static_cast<double>(n_heads) * ((dim + n - 1) / n);
    return static_cast<std::uint32_t>(static_cast<double>(rate) * granules + 1e-3);
}

// Range of the base of a section's scales: sixteenths of powers of two, of which the largest scale is 255
// above.
inline constexpr int least_scale_base = -2048, most_scale_base = 256;

// Byte offsets within the side information of one section of one head: in this order, each part behind the
// one before it.
struct SectionLayout {
    std::uint32_t base = 0;    // i16. S = 2^((base + scale) / 16), 0 below 2^-126
    std::uint32_t origin = 2;  // values: i8, of the gains; else 0. Then a 0
    std::uint32_t scales = 4;  // u8 [dim], keys in stored order
    std::uint32_t zeros;       // keys: i8 [dim], stored order; zero = this * S * zero_unit(width)
    std::uint32_t gains;       // values: nibbles [128], low first; gain = 2^((origin + nibble) / 4)
    std::uint32_t widths;      // nibbles [granules], low first
    std::uint32_t n_bytes;     // a multiple of 4, padded with zeros
};
constexpr SectionLayout section_layout(TensorKind kind, std::uint32_t dim) {
    SectionLayout at = {};
    at.scales = 4;
    std::uint32_t next = 4 + dim;
    if (kind == TensorKind::key) {
        at.zeros = next;
        next += dim;
    } else {
        at.gains = next;
        next += section_tokens / 2;
    }
    at.widths = next;
    const std::uint32_t n = granule_channels(kind);
    next += ((dim + n - 1) / n + 1) / 2;
    at.n_bytes = (next + 3) / 4 * 4;
    return at;
}

constexpr std::uint64_t profile_bytes(TensorKind kind, std::uint32_t dim) {
    return kind == TensorKind::key ? 4 * std::uint64_t{dim} : 2 * std::uint64_t{dim};
}

// Of all heads.
constexpr std::uint64_t profile_part_bytes(TensorKind kind, std::uint32_t n_heads, std::uint32_t dim) {
    return n_heads * profile_bytes(kind, dim) + (n_heads + std::uint64_t{1}) * sizeof(std::uint32_t);
}

// What all blocks of a stream share, of one head.
struct TrellisProfile {
    const std::uint16_t* mean;   // fp16 [dim], natural order
    const std::uint16_t* order;  // keys: the channel at each stored place
};
inline TrellisProfile trellis_profile(const BlockView& view, std::uint32_t head) {
    const std::uint64_t n_bytes = profile_bytes(view.kind(), view.header->dim);
    const auto* mean = reinterpret_cast<const std::uint16_t*>(view.profiles + head * n_bytes);
    return {mean, mean + view.header->dim};
}

constexpr std::uint32_t read_nibble(const unsigned char* nibbles, std::uint32_t i) {
    return nibbles[i / 2] >> (4 * (i % 2)) & 15;
}

// All n of them, n rounded up to 8; 4 bytes are read at a time.
inline void read_nibbles(std::uint8_t* out, const unsigned char* nibbles, std::uint32_t n) {
    for (std::uint32_t i = 0; i < n; i += 8) {
        std::uint32_t eight;
        std::memcpy(&eight, nibbles + i / 2, sizeof(eight));
        std::uint64_t spread = eight;
        spread = (spread | spread << 16) & 0x0000ffff0000ffffu;
        spread = (spread | spread << 8) & 0x00ff00ff00ff00ffu;
        spread = (spread | spread << 4) & 0x0f0f0f0f0f0f0f0fu;
        std::memcpy(out + i, &spread, sizeof(spread));
    }
}

// 2^(i / 16) as floats.
constexpr float sixteenth_powers[16] = {
    1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f,
    1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f, 1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};

// 2^(sixteenths / 16), a normal float or 0 below 2^-126.
inline float exp2_sixteenths(int sixteenths) {
    const int exponent = sixteenths >> 4;
    if (exponent < -126 || exponent > 126) return exponent < 0 ? 0.0f : 0x1p127f;
    return std::bit_cast<float>(static_cast<std::uint32_t>(exponent + 127) << 23) *
           sixteenth_powers[sixteenths & 15];
}

// 2^(i / 4) from i = least_gain_origin on, for the nibbles of any origin.
struct QuarterPowers {
    float powers[most_gain_origin - least_gain_origin + 16] = {};
    constexpr QuarterPowers() {
        constexpr float quarters[4] = {1.0f, 1.18920712f, 1.41421356f, 1.68179283f};
        for (int i = 0; i < most_gain_origin - least_gain_origin + 16; ++i) {
            const int quarter = i + least_gain_origin;
            powers[i] = quarters[quarter & 3] *
                        std::bit_cast<float>(static_cast<std::uint32_t>((quarter >> 2) + 127) << 23);
        }
    }
};
inline constexpr QuarterPowers quarter_powers;

// The 16 gains of an origin, by nibble.
constexpr const float* gains_of(int origin) {
    return quarter_powers.powers + (origin - least_gain_origin);
}
// Of a section of values; `version` is the block's.
inline int gain_origin(const unsigned char* section, std::uint16_t version) {
    std::int8_t origin;
    std::memcpy(&origin, section + SectionLayout().origin, sizeof(origin));
    return version == 1 ? first_gain_origin : origin;
}

// 1 / sqrt(n) of a power of two n.
constexpr float rotation_norm(std::uint32_t n) {
    const int log2 = std::countr_zero(n);
    return std::bit_cast<float>(static_cast<std::uint32_t>(127 - (log2 + 1) / 2) << 23) *
           (log2 % 2 != 0 ? 1.41421356f : 1.0f);
}

// Orthonormal Hadamard transform of n channels at a time, n the largest power of two that divides dim; its
// own inverse. H[i][j] = 1 / sqrt(n), negative where i & j has an odd number of bits.
inline void rotate_head(float* x, std::uint32_t dim) {
    const std::uint32_t n = dim & (~dim + 1);
    for (std::uint32_t first = 0; first < dim; first += n) {
        for (std::uint32_t half = n / 2; half > 0; half /= 2) {
            for (std::uint32_t at = first; at < first + n; at += 2 * half) {
                float* __restrict low = x + at;
                float* __restrict high = low + half;
                for (std::uint32_t i = 0; i < half; ++i) {
                    const float a = low[i], b = high[i];
                    low[i] = a + b;
                    high[i] = a - b;
                }
            }
        }
    }
    const float norm = rotation_norm(n);
    for (std::uint32_t i = 0; i < dim; ++i)
        x[i] *= norm;
}

}  // namespace gearkv
