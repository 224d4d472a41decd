// Matrix products of the decoder: rows of a weight matrix times float vectors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "decoder/gguf/tensor_type.hpp"
#include "gearkv/cpu.hpp"

namespace gearkv {

// Columns summed before the sum is rounded to one float and added to y: part of the result's definition, so
// that a product gives the same bits for one vector as for many, inline or through a panel of expanded
// weights.
inline constexpr std::size_t column_block = 1024;

// y[t][r] = sum_c w[r][c] x[t][c] for every t and r; float weights, products and sums.
struct LinearArgs {
    float* y = nullptr;
    std::size_t y_stride = 0;         // floats from one vector's results to the next
    const std::uint8_t* w = nullptr;  // row 0, of any alignment
    std::size_t row_bytes = 0;
    const float* x = nullptr;
    std::size_t x_stride = 0;
    std::size_t n_rows = 0;
    std::size_t n_cols = 0;    // whole blocks of the type
    std::size_t n_tokens = 0;  // vectors, at least 1
    bool accumulate = false;   // add to y instead of writing it
};

// Of geglu. As 1 + tanh(z) = 2 / (1 + exp(-2 z)), gelu(x) = x / (1 + exp(-gelu_slope (x + gelu_cube x^3))).
inline constexpr float gelu_cube = 0.044715f;
inline constexpr float gelu_slope = 1.5957691216057308f;  // 2 sqrt(2 / pi)

// One struct per level. Kernels allocate nothing and never read or write outside the arrays as described.
// Each result is summed in an order that depends on n_cols only, never on n_rows or n_tokens.
struct LinearKernels {
    Level level;
    void (*multiply[n_weight_types])(const LinearArgs& args);
    // out[c] = w[first + c] of one row, c < n; first and n are whole blocks of the type.
    void (*expand[n_weight_types])(float* out, const std::uint8_t* w, std::size_t first, std::size_t n);
    // gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i]
    void (*swiglu)(float* gate, const float* up, std::size_t n);
    // gate[i] = gelu(gate[i]) * up[i], with gelu(x) = x / 2 (1 + tanh(sqrt(2 / pi) (x + gelu_cube x^3)))
    void (*geglu)(float* gate, const float* up, std::size_t n);
};

// The tables, one per level of the build, filled in arch/.
extern const LinearKernels linear_scalar;
extern const LinearKernels linear_avx2;
extern const LinearKernels linear_avx512;
extern const LinearKernels linear_neon;
extern const LinearKernels linear_dotprod;

// The table of a level that is available; null otherwise. Level::automatic is resolved.
const LinearKernels* find_linear_kernels(Level level) noexcept;

}  // namespace gearkv
