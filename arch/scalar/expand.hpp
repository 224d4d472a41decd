// What the blocks of every tensor type mean, element by element; every vector kernel is held to the same
// bits. Sources: the GGUF specification and the dequantisers of the public gguf package (tests/data/blocks).
// All products below are exact in float for scales of half precision, so only additions of a minimum round.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "decoder/gguf/tensor_type.hpp"
#include "level.hpp"

namespace gearkv {
namespace {

template <class T>
T load(const std::uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof(value));
    return value;
}

inline float load_half(const std::uint8_t* bytes) {
    return half_to_float(load<std::uint16_t>(bytes));
}

inline void expand_f32(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    std::memcpy(out, w + first * sizeof(float), n * sizeof(float));
}

inline void expand_f16(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    for (std::size_t i = 0; i < n; i++) {
        out[i] = load_half(w + 2 * (first + i));
    }
}

inline void expand_bf16(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    for (std::size_t i = 0; i < n; i++) {
        out[i] = bits_float(std::uint32_t{load<std::uint16_t>(w + 2 * (first + i))} << 16);
    }
}

// ---- blocks of 32: nibble j of the low halves is element j, of the high halves element j + 16 ----

inline int nibble(const std::uint8_t* bytes, std::size_t i) {
    return i < 16 ? bytes[i] & 15 : bytes[i - 16] >> 4;
}

inline void block_q4_0(float* out, const std::uint8_t* block) {
    const float scale = load_half(block);
    for (std::size_t i = 0; i < 32; i++) {
        out[i] = scale * static_cast<float>(nibble(block + 2, i) - 8);
    }
}

inline void block_q4_1(float* out, const std::uint8_t* block) {
    const float scale = load_half(block);
    const float low = load_half(block + 2);
    for (std::size_t i = 0; i < 32; i++) {
        out[i] = scale * static_cast<float>(nibble(block + 4, i)) + low;
    }
}

// The fifth bits are those of a word, in order.
inline int five_bits(const std::uint8_t* high, const std::uint8_t* low, std::size_t i) {
    return nibble(low, i) | static_cast<int>(load<std::uint32_t>(high) >> i & 1) << 4;
}

inline void block_q5_0(float* out, const std::uint8_t* block) {
    const float scale = load_half(block);
    for (std::size_t i = 0; i < 32; i++) {
        out[i] = scale * static_cast<float>(five_bits(block + 2, block + 6, i) - 16);
    }
}

inline void block_q5_1(float* out, const std::uint8_t* block) {
    const float scale = load_half(block);
    const float low = load_half(block + 2);
    for (std::size_t i = 0; i < 32; i++) {
        out[i] = scale * static_cast<float>(five_bits(block + 4, block + 8, i)) + low;
    }
}

inline void block_q8_0(float* out, const std::uint8_t* block) {
    const float scale = load_half(block);
    for (std::size_t i = 0; i < 32; i++) {
        out[i] = scale * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
    }
}

constexpr std::int8_t uneven_codes[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};

inline void block_iq4_nl(float* out, const std::uint8_t* block) {
    const float scale = load_half(block);
    for (std::size_t i = 0; i < 32; i++) {
        out[i] = scale * static_cast<float>(uneven_codes[nibble(block + 2, i)]);
    }
}

// Twice the value of a 4-bit float, with half of the scale beside it.
constexpr std::int8_t doubled_floats[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// 2^(exponent - 128), below 2^-126 a subnormal.
inline float half_power(std::uint8_t exponent) {
    return bits_float(exponent < 2 ? 0x00200000u << exponent : (exponent - 1u) << 23);
}

inline void block_mxfp4(float* out, const std::uint8_t* block) {
    const float scale = half_power(block[0]);
    for (std::size_t i = 0; i < 32; i++) {
        out[i] = scale * static_cast<float>(doubled_floats[nibble(block + 1, i)]);
    }
}

// ---- blocks of 256 ----

// Bits 2 j and up of byte 32 h + l are those of element 128 h + 32 j + l.
inline int two_bits(const std::uint8_t* bytes, std::size_t i) {
    return bytes[i / 128 * 32 + i % 32] >> 2 * (i / 32 % 4) & 3;
}

inline void block_tq2_0(float* out, const std::uint8_t* block) {
    const float scale = load_half(block + 64);
    for (std::size_t i = 0; i < 256; i++) {
        out[i] = scale * static_cast<float>(two_bits(block, i) - 1);
    }
}

inline void block_q2_k(float* out, const std::uint8_t* block) {
    const float scale = load_half(block + 80);
    const float low = load_half(block + 82);
    for (std::size_t i = 0; i < 256; i++) {
        const int both = block[i / 16];
        out[i] = scale * static_cast<float>(both & 15) * static_cast<float>(two_bits(block + 16, i)) -
                 low * static_cast<float>(both >> 4);
    }
}

inline void block_q3_k(float* out, const std::uint8_t* block) {
    const std::uint8_t* scales = block + 96;
    const float scale = load_half(block + 108);
    for (std::size_t i = 0; i < 256; i++) {
        const std::size_t n = i / 16;
        const int factor = (scales[n % 8] >> 4 * (n / 8) & 15) | (scales[8 + n % 4] >> 2 * (n / 4) & 3) << 4;
        const int high = block[i % 32] >> i / 32 & 1;
        out[i] = scale * static_cast<float>(factor - 32) *
                 static_cast<float>(two_bits(block + 32, i) + 4 * high - 4);
    }
}

// Factor k < 8 of twelve bytes: of the scale from byte 0 on, of the minimum from byte 4 on.
inline int six_bits(const std::uint8_t* packed, std::size_t k, bool is_minimum) {
    const std::uint8_t* at = packed + (is_minimum ? 4 : 0);
    if (k < 4) return at[k] & 63;
    return (packed[4 + k] >> (is_minimum ? 4 : 0) & 15) | at[k - 4] >> 6 << 4;
}

inline void block_q4_k(float* out, const std::uint8_t* block) {
    const float scale = load_half(block);
    const float low = load_half(block + 2);
    for (std::size_t i = 0; i < 256; i++) {
        const std::size_t k = i / 32;
        const int code = block[16 + k / 2 * 32 + i % 32] >> 4 * (k % 2) & 15;
        out[i] = scale * static_cast<float>(six_bits(block + 4, k, false)) * static_cast<float>(code) -
                 low * static_cast<float>(six_bits(block + 4, k, true));
    }
}

inline void block_q5_k(float* out, const std::uint8_t* block) {
    const float scale = load_half(block);
    const float low = load_half(block + 2);
    for (std::size_t i = 0; i < 256; i++) {
        const std::size_t k = i / 32;
        const int code = (block[48 + k / 2 * 32 + i % 32] >> 4 * (k % 2) & 15) | (block[16 + i % 32] >> k & 1)
                                                                                     << 4;
        out[i] = scale * static_cast<float>(six_bits(block + 4, k, false)) * static_cast<float>(code) -
                 low * static_cast<float>(six_bits(block + 4, k, true));
    }
}

inline void block_q6_k(float* out, const std::uint8_t* block) {
    const float scale = load_half(block + 208);
    for (std::size_t i = 0; i < 256; i++) {
        const std::size_t half = i / 128, j = i / 32 % 4;
        const int low = block[64 * half + i % 32 + 32 * (j % 2)] >> 4 * (j / 2) & 15;
        const int code = (low | two_bits(block + 128, i) << 4) - 32;
        const auto factor = static_cast<std::int8_t>(block[192 + i / 16]);
        out[i] = scale * static_cast<float>(factor) * static_cast<float>(code);
    }
}

inline void block_iq4_xs(float* out, const std::uint8_t* block) {
    const float scale = load_half(block);
    const auto high = load<std::uint16_t>(block + 2);
    for (std::size_t i = 0; i < 256; i++) {
        const std::size_t k = i / 32;
        const int factor = (block[4 + k / 2] >> 4 * (k % 2) & 15) | (high >> 2 * k & 3) << 4;
        out[i] = scale * static_cast<float>(factor - 32) *
                 static_cast<float>(uneven_codes[nibble(block + 8 + 16 * k, i % 32)]);
    }
}

template <WeightType type, void (*expand_block)(float*, const std::uint8_t*)>
inline void expand(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    constexpr TensorType info = tensor_type(type);
    const std::uint8_t* block = w + first / info.block * info.block_bytes;
    for (std::size_t i = 0; i < n; i += info.block, block += info.block_bytes) {
        expand_block(out + i, block);
    }
}

}  // namespace
}  // namespace gearkv
