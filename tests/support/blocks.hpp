// Random blocks of any tensor type: every byte random, scales such that weights are of a model's size.
#pragma once

#include <cmath>
#include <cstring>
#include <random>

#include "decoder/network/linear.hpp"
#include "support/gguf_writer.hpp"

namespace gearkv::test {

// Of a float that a half can hold exactly.
inline std::uint16_t to_half(float x) {
    int exponent;
    const float fraction = std::frexp(std::fabs(x), &exponent);
    if (fraction == 0.0f) return std::signbit(x) ? 0x8000 : 0;
    const auto sign = static_cast<std::uint16_t>(std::signbit(x) ? 0x8000 : 0);
    if (exponent < -13) return sign | static_cast<std::uint16_t>(std::lround(std::ldexp(std::fabs(x), 24)));
    const long mantissa = std::lround(std::ldexp(fraction, 11));
    return static_cast<std::uint16_t>(sign | (((exponent + 14) << 10) + mantissa - 1024));
}

// Where the halves of a block are, and how large: the scale, and the minimum if there is one.
struct BlockScales {
    std::size_t scale_at = 0;
    float scale = 0.0f;
    std::size_t low_at = 0;
    float low = 0.0f;  // 0: none
};

inline BlockScales block_scales(WeightType type) {
    switch (type) {
        case WeightType::q4_0:
            return {0, 0x1p-7f};
        case WeightType::q4_1:
            return {0, 0x1p-7f, 2, -0x1p-4f};
        case WeightType::q5_0:
            return {0, 0x1p-8f};
        case WeightType::q5_1:
            return {0, 0x1p-8f, 2, -0x1p-4f};
        case WeightType::q8_0:
            return {0, 0x1p-11f};
        case WeightType::q2_k:
            return {80, 0x1p-8f, 82, 0x1.8p-8f};
        case WeightType::q3_k:
            return {108, 0x1p-11f};
        case WeightType::q4_k:
            return {0, 0x1p-12f, 2, 0x1p-9f};
        case WeightType::q5_k:
            return {0, 0x1p-13f, 2, 0x1p-9f};
        case WeightType::q6_k:
            return {208, 0x1p-15f};
        case WeightType::iq4_nl:
            return {0, 0x1p-10f};
        case WeightType::iq4_xs:
            return {0, 0x1p-14f};
        case WeightType::tq2_0:
            return {64, 0x1p-4f};
        default:
            return {};
    }
}

inline Bytes random_blocks(WeightType type, std::size_t n_elements, std::uint32_t seed) {
    const TensorType info = tensor_type(type);
    const BlockScales scales = block_scales(type);
    std::mt19937 random(seed);
    Bytes bytes(n_elements / info.block * info.block_bytes);
    for (std::uint8_t& byte : bytes) {
        byte = static_cast<std::uint8_t>(random());
    }
    const auto half = [&](float size) {  // size times 1 to 2, either sign for scales without a minimum
        const float sign = scales.low == 0.0f && random() % 2 == 0 ? -1.0f : 1.0f;
        return to_half(sign * size * (1.0f + static_cast<float>(random() % 1024) / 1024.0f));
    };
    for (std::size_t at = 0; at < bytes.size(); at += info.block_bytes) {
        if (type == WeightType::mxfp4) {
            bytes[at] = static_cast<std::uint8_t>(118 + bytes[at] % 4);
        } else {
            overwrite(bytes, at + scales.scale_at, half(scales.scale));
            if (scales.low != 0.0f) overwrite(bytes, at + scales.low_at, half(scales.low));
        }
    }
    return bytes;
}

// What the bytes are worth, by the reference level.
inline std::vector<float> expand_blocks(WeightType type, const Bytes& bytes) {
    const TensorType info = tensor_type(type);
    std::vector<float> values(bytes.size() / info.block_bytes * info.block);
    linear_scalar.expand[static_cast<std::size_t>(type)](values.data(), bytes.data(), 0, values.size());
    return values;
}

}  // namespace gearkv::test
