// The scalar level: IEEE half by integer arithmetic, the same on every machine.
#pragma once

#include <cstdint>
#include <cstring>

namespace gearkv {
namespace {

inline std::uint32_t float_bits(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

inline float bits_float(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

// Exact. NaN becomes quiet and keeps its payload.
inline float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = std::uint32_t{half & 0x8000u} << 16;
    const std::uint32_t exponent = half >> 10 & 0x1f;
    const std::uint32_t mantissa = half & 0x3ffu;
    if (exponent == 0x1f)
        return bits_float(sign | 0x7f800000u | (mantissa != 0 ? 0x400000u : 0u) | mantissa << 13);
    if (exponent != 0) return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
    // Subnormal: mantissa * 2^-24, a normal float or 0.
    return bits_float(sign | float_bits(static_cast<float>(mantissa) * 0x1p-24f));
}

// Round to nearest even. NaN becomes quiet and keeps the upper bits of its payload.
inline std::uint16_t float_to_half(float x) {
    const std::uint32_t bits = float_bits(x);
    const std::uint32_t sign = bits >> 16 & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    std::uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    } else if (magnitude >= 0x47800000u) {  // 65536 and above, Inf
        half = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {  // normal in half: drop 13 bits, a carry may reach Inf
        half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
    } else if (magnitude >= 0x33000000u) {  // subnormal: at least half of 2^-24
        const std::uint32_t shift = 126 - (magnitude >> 23);
        const std::uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
        half = mantissa >> shift;
        const std::uint32_t lost = mantissa & ((1u << shift) - 1);
        const std::uint32_t middle = 1u << (shift - 1);
        if (lost > middle || (lost == middle && (half & 1) != 0)) ++half;
    } else {
        half = 0;
    }
    return static_cast<std::uint16_t>(sign | half);
}

inline float bfloat_to_float(std::uint16_t bfloat) {
    return bits_float(std::uint32_t{bfloat} << 16);
}

// Round to nearest even. NaN becomes quiet and keeps the upper bits of its payload.
inline std::uint16_t float_to_bfloat(float x) {
    const std::uint32_t bits = float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace
}  // namespace gearkv
