#include "decoder/gguf/tensor_type.hpp"

namespace gearkv {
namespace {

constexpr bool is_in_order() {
    for (std::size_t i = 0; i < n_weight_types; i++) {
        if (static_cast<std::size_t>(tensor_types[i].type) != i) return false;
    }
    return true;
}
static_assert(is_in_order());

struct RefusedType {
    std::uint32_t id;
    const char* name;
};
constexpr RefusedType refused_types[] = {
    {9, "Q8_1"},
    {15, "Q8_K"},
    {16, "IQ2_XXS"},
    {17, "IQ2_XS"},
    {18, "IQ3_XXS"},
    {19, "IQ1_S"},
    {21, "IQ3_S"},
    {22, "IQ2_S"},
    {24, "I8"},
    {25, "I16"},
    {26, "I32"},
    {27, "I64"},
    {28, "F64"},
    {29, "IQ1_M"},
    {34, "TQ1_0"},
    {40, "NVFP4"},
    {41, "Q1_0"},
    {42, "Q2_0"},
    // Retired: no current file has them.
    {4, "Q4_2"},
    {5, "Q4_3"},
    {31, "Q4_0_4_4"},
    {32, "Q4_0_4_8"},
    {33, "Q4_0_8_8"},
    {36, "IQ4_NL_4_4"},
    {37, "IQ4_NL_4_8"},
    {38, "IQ4_NL_8_8"},
};

}  // namespace

const TensorType* find_tensor_type(std::uint32_t id) noexcept {
    for (const TensorType& type : tensor_types) {
        if (type.id == id) return &type;
    }
    return nullptr;
}

const char* refused_type_name(std::uint32_t id) noexcept {
    for (const RefusedType& type : refused_types) {
        if (type.id == id) return type.name;
    }
    return nullptr;
}

std::string tensor_type_names() {
    std::string names;
    for (const TensorType& type : tensor_types) {
        if (!names.empty()) names += ' ';
        names += type.name;
    }
    return names;
}

}  // namespace gearkv
