// The decoder's products for one vector architecture.
//
// L is the Lanes of an arch folder (arch/lanes.hpp) and what its linear.cpp adds, all for any alignment:
//   Float load_halves, load_bfloats, load_signed(const uint8_t*)   width halves, bfloats or signed bytes
//   Float broadcast_half(const uint8_t*)                           one half in all lanes
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <xsimd/xsimd.hpp>

#include "decoder/network/linear.hpp"
#include "kernels/exponential.inl.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

// Columns of one step; a Q8_0 block, so that all weights of a row within a step share one scale.
constexpr std::size_t step_columns = 32;
constexpr std::size_t q8_block = tensor_type(WeightType::q8_0).block;
constexpr std::size_t q8_block_bytes = tensor_type(WeightType::q8_0).block_bytes;
static_assert(step_columns == q8_block && column_block % step_columns == 0);

// ---- weights: load(row, column, scale) gives L::width floats, scale(row, column) is good for a step ----

struct NoScale {};

template <class L>
struct WeightsF32 {
    using Scale = NoScale;
    static constexpr bool is_blocked = false;
    static constexpr std::size_t column_bytes(std::size_t column) { return 4 * column; }
    static Scale scale(const std::uint8_t*, std::size_t) { return {}; }
    static typename L::Float load(const std::uint8_t* row, std::size_t column, Scale) {
        return L::load(reinterpret_cast<const float*>(row + column_bytes(column)));
    }
};

template <class L>
struct WeightsF16 {
    using Scale = NoScale;
    static constexpr bool is_blocked = false;
    static constexpr std::size_t column_bytes(std::size_t column) { return 2 * column; }
    static Scale scale(const std::uint8_t*, std::size_t) { return {}; }
    static typename L::Float load(const std::uint8_t* row, std::size_t column, Scale) {
        return L::load_halves(row + column_bytes(column));
    }
};

template <class L>
struct WeightsBf16 {
    using Scale = NoScale;
    static constexpr bool is_blocked = false;
    static constexpr std::size_t column_bytes(std::size_t column) { return 2 * column; }
    static Scale scale(const std::uint8_t*, std::size_t) { return {}; }
    static typename L::Float load(const std::uint8_t* row, std::size_t column, Scale) {
        return L::load_bfloats(row + column_bytes(column));
    }
};

template <class L>
struct WeightsQ8 {
    using Scale = typename L::Float;
    static constexpr bool is_blocked = true;  // rows are whole steps
    static constexpr std::size_t column_bytes(std::size_t column) {
        return column / q8_block * q8_block_bytes;
    }
    static Scale scale(const std::uint8_t* row, std::size_t column) {
        return L::broadcast_half(row + column_bytes(column));
    }
    static typename L::Float load(const std::uint8_t* row, std::size_t column, Scale scale) {
        return scale * L::load_signed(row + column_bytes(column) + 2 + column % q8_block);
    }
};

// The last n < width weights of a row or entries of x, padded with zeros. Nothing beyond them is read.
template <class L, class Weights>
typename L::Float load_tail(const std::uint8_t* row, std::size_t column, std::size_t n) {
    std::uint8_t tail[4 * L::width] = {};
    std::memcpy(tail, row + Weights::column_bytes(column), Weights::column_bytes(n));
    return Weights::load(tail, 0, Weights::scale(tail, 0));
}

// ---- multiply ----

// One tile, n_rows x n_tokens sums over whole steps of columns. Sums stay in registers; every weight and
// every x is loaded once.
template <class L, class Weights, std::size_t n_rows, std::size_t n_tokens>
void multiply_tile(float* y, const std::uint8_t* w, const float* x, std::size_t n_cols, bool accumulate,
                   const LinearArgs& args) {
    using Float = typename L::Float;
    Float sums[n_rows][n_tokens];
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<n_tokens>([&](auto t) GEARKV_INLINE { sums[r][t] = L::broadcast(0.0f); });
    });
    for (std::size_t column = 0; column < n_cols; column += step_columns) {
        typename Weights::Scale scales[n_rows];
        unroll<n_rows>([&](auto r)
                           GEARKV_INLINE { scales[r] = Weights::scale(w + r * args.row_bytes, column); });
        unroll<step_columns / L::width>([&](auto i) GEARKV_INLINE {
            const std::size_t at = column + i * L::width;
            Float vectors[n_tokens];
            unroll<n_tokens>([&](auto t) GEARKV_INLINE { vectors[t] = L::load(x + t * args.x_stride + at); });
            unroll<n_rows>([&](auto r) GEARKV_INLINE {
                const Float weight = Weights::load(w + r * args.row_bytes, at, scales[r]);
                unroll<n_tokens>([&](auto t)
                                     GEARKV_INLINE { sums[r][t] = L::fma(weight, vectors[t], sums[r][t]); });
            });
        });
    }
    constexpr std::size_t n_fours = (n_rows + 3) / 4;
    unroll<n_tokens>([&](auto t) GEARKV_INLINE {
        unroll<n_fours>([&](auto four) GEARKV_INLINE {
            constexpr std::size_t row = 4 * four.value;
            constexpr std::size_t n = n_rows - row < 4 ? n_rows - row : 4;
            Float each[4] = {L::broadcast(0.0f), L::broadcast(0.0f), L::broadcast(0.0f), L::broadcast(0.0f)};
            unroll<n>([&](auto i) GEARKV_INLINE { each[i] = sums[row + i][t]; });
            float result[4];
            L::sum_each(result, each[0], each[1], each[2], each[3]);
            float* out = y + t * args.y_stride + row;
            unroll<n>([&](auto i) GEARKV_INLINE { out[i] = accumulate ? out[i] + result[i] : result[i]; });
        });
    });
}

// Adds the columns behind the last whole step, for widths that are no multiple of 32.
template <class L, class Weights>
void multiply_rest(const LinearArgs& args, std::size_t first_column) {
    using Float = typename L::Float;
    for (std::size_t r = 0; r < args.n_rows; r++) {
        for (std::size_t t = 0; t < args.n_tokens; t++) {
            Float sum = L::broadcast(0.0f);
            for (std::size_t column = first_column; column < args.n_cols; column += L::width) {
                const std::size_t n = args.n_cols - column < L::width ? args.n_cols - column : L::width;
                const auto* x = reinterpret_cast<const std::uint8_t*>(args.x + t * args.x_stride);
                sum = L::fma(load_tail<L, Weights>(args.w + r * args.row_bytes, column, n),
                             load_tail<L, WeightsF32<L>>(x, column, n), sum);
            }
            args.y[t * args.y_stride + r] += L::sum(sum);
        }
    }
}

// All rows with n_tokens vectors, n_rows at a time, over one block of columns.
template <class L, class Weights, std::size_t n_rows, std::size_t n_tokens>
void multiply_strip(const LinearArgs& args, std::size_t first_token, std::size_t first_column,
                    std::size_t n_cols) {
    const float* x = args.x + first_token * args.x_stride + first_column;
    float* y = args.y + first_token * args.y_stride;
    const std::uint8_t* w = args.w + Weights::column_bytes(first_column);
    const bool accumulate = args.accumulate || first_column > 0;
    std::size_t row = 0;
    for (; row + n_rows <= args.n_rows; row += n_rows) {
        multiply_tile<L, Weights, n_rows, n_tokens>(y + row, w + row * args.row_bytes, x, n_cols, accumulate,
                                                    args);
    }
    for (; row < args.n_rows; row++) {
        multiply_tile<L, Weights, 1, n_tokens>(y + row, w + row * args.row_bytes, x, n_cols, accumulate,
                                               args);
    }
}

// Tiles that fill the registers: with 32, 4 x 6 sums beside 6 vectors and a weight; with 16, 4 x 3 beside 3.
// A single vector takes 8 rows, for enough independent sums to hide the latency of fma.
template <class L, class Weights>
void multiply(const LinearArgs& args) {
    constexpr std::size_t most = L::n_registers >= 32 ? 6 : 3;
    const std::size_t n_whole = args.n_cols / step_columns * step_columns;
    std::size_t column = 0;
    do {  // also for fewer columns than a step: y is written in any case
        const std::size_t n_cols = n_whole - column < column_block ? n_whole - column : column_block;
        std::size_t t = 0;
        for (; t + most <= args.n_tokens; t += most) {
            multiply_strip<L, Weights, 4, most>(args, t, column, n_cols);
        }
        for (; t + 2 <= args.n_tokens; t += 2) {
            multiply_strip<L, Weights, 4, 2>(args, t, column, n_cols);
        }
        if (t < args.n_tokens) multiply_strip<L, Weights, 8, 1>(args, t, column, n_cols);
        column += n_cols;
    } while (column < n_whole);
    if constexpr (!Weights::is_blocked) {
        if (n_whole < args.n_cols) multiply_rest<L, Weights>(args, n_whole);
    }
}

// Types without a kernel of their own: four rows at a time are expanded to floats.
template <class L, WeightType type>
void multiply_expanded(const LinearArgs& args) {
    constexpr std::size_t index = static_cast<std::size_t>(type), most_rows = 4;
    float panel[most_rows * column_block];
    for (std::size_t row = 0; row < args.n_rows; row += most_rows) {
        LinearArgs part = args;
        part.n_rows = args.n_rows - row < most_rows ? args.n_rows - row : most_rows;
        part.y = args.y + row;
        part.w = reinterpret_cast<const std::uint8_t*>(panel);
        for (std::size_t first = 0; first < args.n_cols; first += column_block) {
            part.n_cols = args.n_cols - first < column_block ? args.n_cols - first : column_block;
            part.row_bytes = part.n_cols * sizeof(float);
            part.x = args.x + first;
            part.accumulate = args.accumulate || first > 0;
            for (std::size_t r = 0; r < part.n_rows; r++) {
                linear_scalar.expand[index](panel + r * part.n_cols, args.w + (row + r) * args.row_bytes,
                                            first, part.n_cols);
            }
            multiply<L, WeightsF32<L>>(part);
        }
    }
}

template <WeightType type>
void expand_scalar(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    linear_scalar.expand[static_cast<std::size_t>(type)](out, w, first, n);
}

// ---- expand, gates ----

template <class L, class Weights>
void expand(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width) {
        L::store(out + i, Weights::load(w, first + i, Weights::scale(w, first + i)));
    }
    if constexpr (!Weights::is_blocked) {
        if (i < n) L::store_first(out + i, load_tail<L, Weights>(w, first + i, n - i), n - i);
    }
}

// x / (1 + exp(-slope(x))) for the gates below.
struct Silu {
    template <class L>
    static typename L::Float slope(typename L::Float x) {
        return x;
    }
};

struct Gelu {
    template <class L>
    static typename L::Float slope(typename L::Float x) {
        const auto cubic = L::fma(x * x, L::broadcast(gelu_slope * gelu_cube), L::broadcast(gelu_slope));
        return cubic * x;
    }
};

template <class L, class Gate>
typename L::Float gate_lanes(typename L::Float gate, typename L::Float up) {
    const auto one = L::broadcast(1.0f);
    return L::divide(gate, one + exponential<L>(-Gate::template slope<L>(gate))) * up;
}

template <class L, class Gate>
void apply_gate(float* gate, const float* up, std::size_t n) {
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width) {
        L::store(gate + i, gate_lanes<L, Gate>(L::load(gate + i), L::load(up + i)));
    }
    if (i == n) return;
    const std::size_t n_left = n - i;
    const auto last = gate_lanes<L, Gate>(L::load_first(gate + i, n_left), L::load_first(up + i, n_left));
    L::store_first(gate + i, last, n_left);
}

template <class L, WeightType type>
constexpr void set_expanded(LinearKernels& kernels) {
    kernels.multiply[static_cast<std::size_t>(type)] = multiply_expanded<L, type>;
    kernels.expand[static_cast<std::size_t>(type)] = expand_scalar<type>;
}

template <class L, WeightType type, class Weights>
constexpr void set_own(LinearKernels& kernels) {
    kernels.multiply[static_cast<std::size_t>(type)] = multiply<L, Weights>;
    kernels.expand[static_cast<std::size_t>(type)] = expand<L, Weights>;
}

template <class L>
constexpr LinearKernels make_linear_kernels(Level level) {
    LinearKernels kernels = {level, {}, {}, apply_gate<L, Silu>, apply_gate<L, Gelu>};
    set_own<L, WeightType::f32, WeightsF32<L>>(kernels);
    set_own<L, WeightType::f16, WeightsF16<L>>(kernels);
    set_own<L, WeightType::bf16, WeightsBf16<L>>(kernels);
    set_own<L, WeightType::q8_0, WeightsQ8<L>>(kernels);
    set_expanded<L, WeightType::q4_0>(kernels);
    set_expanded<L, WeightType::q4_1>(kernels);
    set_expanded<L, WeightType::q5_0>(kernels);
    set_expanded<L, WeightType::q5_1>(kernels);
    set_expanded<L, WeightType::q2_k>(kernels);
    set_expanded<L, WeightType::q3_k>(kernels);
    set_expanded<L, WeightType::q4_k>(kernels);
    set_expanded<L, WeightType::q5_k>(kernels);
    set_expanded<L, WeightType::q6_k>(kernels);
    set_expanded<L, WeightType::iq4_nl>(kernels);
    set_expanded<L, WeightType::iq4_xs>(kernels);
    set_expanded<L, WeightType::mxfp4>(kernels);
    set_expanded<L, WeightType::tq2_0>(kernels);
    return kernels;
}

}  // namespace
}  // namespace gearkv
