// The types of tensors: their names, numbers in a file, and blocks. What the bytes of a block mean is said
// once, in arch/scalar/expand.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gearkv {

enum class WeightType : std::uint8_t {
    f32,
    f16,
    bf16,
    q4_0,
    q4_1,
    q5_0,
    q5_1,
    q8_0,
    q2_k,
    q3_k,
    q4_k,
    q5_k,
    q6_k,
    iq4_nl,
    iq4_xs,
    mxfp4,
    tq2_0,
};
inline constexpr std::size_t n_weight_types = 17;

struct TensorType {
    WeightType type;
    std::uint32_t id;  // in a GGUF file
    const char* name;
    std::uint32_t block;        // elements
    std::uint32_t block_bytes;  // of a block
};

// Entry i describes WeightType i.
inline constexpr TensorType tensor_types[n_weight_types] = {
    {WeightType::f32, 0, "F32", 1, 4},
    {WeightType::f16, 1, "F16", 1, 2},
    {WeightType::bf16, 30, "BF16", 1, 2},
    {WeightType::q4_0, 2, "Q4_0", 32, 18},
    {WeightType::q4_1, 3, "Q4_1", 32, 20},
    {WeightType::q5_0, 6, "Q5_0", 32, 22},
    {WeightType::q5_1, 7, "Q5_1", 32, 24},
    {WeightType::q8_0, 8, "Q8_0", 32, 34},
    {WeightType::q2_k, 10, "Q2_K", 256, 84},
    {WeightType::q3_k, 11, "Q3_K", 256, 110},
    {WeightType::q4_k, 12, "Q4_K", 256, 144},
    {WeightType::q5_k, 13, "Q5_K", 256, 176},
    {WeightType::q6_k, 14, "Q6_K", 256, 210},
    {WeightType::iq4_nl, 20, "IQ4_NL", 32, 18},
    {WeightType::iq4_xs, 23, "IQ4_XS", 256, 136},
    {WeightType::mxfp4, 39, "MXFP4", 32, 17},
    {WeightType::tq2_0, 35, "TQ2_0", 256, 66},
};

constexpr const TensorType& tensor_type(WeightType type) noexcept {
    return tensor_types[static_cast<std::size_t>(type)];
}

// Null for types that are not run.
const TensorType* find_tensor_type(std::uint32_t id) noexcept;

// The name of a type that exists or has existed but is not run, null for any other number.
const char* refused_type_name(std::uint32_t id) noexcept;

// The names of the types that are run, separated by spaces. May throw std::bad_alloc.
std::string tensor_type_names();

}  // namespace gearkv
