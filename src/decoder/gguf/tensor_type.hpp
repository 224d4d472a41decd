// The types of weights and what their bytes mean.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gearkv {

enum class WeightType : std::uint8_t { f32 = 0, f16 = 1, bf16 = 2, q8_0 = 3 };
inline constexpr std::size_t n_weight_types = 4;

// Q8_0: blocks of 32 weights, an fp16 scale and 32 signed bytes each.
inline constexpr std::size_t q8_block = 32;
inline constexpr std::size_t q8_block_bytes = 34;

}  // namespace gearkv
