// The decoder's products for one vector architecture.
//
// Lanes is FloatLanes and what an arch folder adds to it, all for any alignment:
//   n_registers
//   load_half, load_bfloat, load_bytes(const std::uint8_t*)   width halves, bfloats or signed bytes as floats
//   broadcast_half(const std::uint8_t*)                       one half
//   sum(float out[4], a, b, c, d)                             the sum of each, all by the same tree
//
// Everything here is in an anonymous namespace: an object compiled for one level must not offer another a
// symbol.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <xsimd/xsimd.hpp>

#include "decoder/linear.hpp"

namespace gearkv {
namespace {

template <class Arch>
struct FloatLanes {
    using Batch = xsimd::batch<float, Arch>;
    static constexpr std::size_t width = Batch::size;

    static Batch load(const float* x) { return Batch::load_unaligned(x); }
    static void store(float* x, Batch a) { a.store_unaligned(x); }
    static Batch broadcast(float x) { return Batch(x); }
    static Batch mul(Batch a, Batch b) { return a * b; }
    static Batch fma(Batch a, Batch b, Batch c) { return xsimd::fma(a, b, c); }
    static Batch sigmoid(Batch a) { return Batch(1.0f) / (Batch(1.0f) + xsimd::exp(-a)); }
};

// Columns of one step; a Q8_0 block, so that all weights of a row within a step share one scale.
constexpr std::size_t step_columns = 32;
static_assert(step_columns == q8_block && column_block % step_columns == 0);

// ---- weights: load(row, column, scale) gives Lanes::width floats, scale(row, column) is good for a step
// ----

struct NoScale {};

template <class Lanes>
struct WeightsF32 {
    static NoScale scale(const std::uint8_t*, std::size_t) { return {}; }
    static typename Lanes::Batch load(const std::uint8_t* row, std::size_t column, NoScale) {
        return Lanes::load(reinterpret_cast<const float*>(row + 4 * column));
    }
    static constexpr std::size_t column_bytes(std::size_t column) { return 4 * column; }
    static constexpr bool is_blocked = false;
};

template <class Lanes>
struct WeightsF16 {
    static NoScale scale(const std::uint8_t*, std::size_t) { return {}; }
    static typename Lanes::Batch load(const std::uint8_t* row, std::size_t column, NoScale) {
        return Lanes::load_half(row + 2 * column);
    }
    static constexpr std::size_t column_bytes(std::size_t column) { return 2 * column; }
    static constexpr bool is_blocked = false;
};

template <class Lanes>
struct WeightsBf16 {
    static NoScale scale(const std::uint8_t*, std::size_t) { return {}; }
    static typename Lanes::Batch load(const std::uint8_t* row, std::size_t column, NoScale) {
        return Lanes::load_bfloat(row + 2 * column);
    }
    static constexpr std::size_t column_bytes(std::size_t column) { return 2 * column; }
    static constexpr bool is_blocked = false;
};

template <class Lanes>
struct WeightsQ8 {
    using Batch = typename Lanes::Batch;
    static Batch scale(const std::uint8_t* row, std::size_t column) {
        return Lanes::broadcast_half(row + column / q8_block * q8_block_bytes);
    }
    static Batch load(const std::uint8_t* row, std::size_t column, Batch scale) {
        const std::uint8_t* block = row + column / q8_block * q8_block_bytes;
        return Lanes::mul(scale, Lanes::load_bytes(block + 2 + column % q8_block));
    }
    static constexpr std::size_t column_bytes(std::size_t column) {
        return column / q8_block * q8_block_bytes;
    }
    static constexpr bool is_blocked = true;  // rows are whole steps
};

// The last weights of a row, fewer than a batch, padded with zeros. Nothing beyond the row is read.
template <class Lanes, class Weights>
typename Lanes::Batch load_tail(const std::uint8_t* row, std::size_t column, std::size_t n) {
    std::uint8_t tail[4 * Lanes::width] = {};
    std::memcpy(tail, row + Weights::column_bytes(column), Weights::column_bytes(n));
    return Weights::load(tail, 0, Weights::scale(tail, 0));
}

template <class Lanes>
typename Lanes::Batch load_tail(const float* x, std::size_t n) {
    float tail[Lanes::width] = {};
    std::memcpy(tail, x, n * sizeof(float));
    return Lanes::load(tail);
}

// ---- multiply ----

// One tile, n_rows x n_tokens sums over whole steps of columns. Sums stay in registers; every weight and
// every x is loaded once.
template <class Lanes, class Weights, std::size_t n_rows, std::size_t n_tokens>
void multiply_tile(float* y, const std::uint8_t* w, const float* x, std::size_t n_cols, bool accumulate,
                   const LinearArgs& args) {
    using Batch = typename Lanes::Batch;
    Batch sums[n_rows][n_tokens];
#pragma GCC unroll 8
    for (std::size_t r = 0; r < n_rows; r++) {
#pragma GCC unroll 8
        for (std::size_t t = 0; t < n_tokens; t++) {
            sums[r][t] = Lanes::broadcast(0.0f);
        }
    }
    for (std::size_t column = 0; column < n_cols; column += step_columns) {
        decltype(Weights::scale(w, 0)) scales[n_rows];
#pragma GCC unroll 8
        for (std::size_t r = 0; r < n_rows; r++) {
            scales[r] = Weights::scale(w + r * args.row_bytes, column);
        }
#pragma GCC unroll 8
        for (std::size_t i = 0; i < step_columns; i += Lanes::width) {
            Batch vectors[n_tokens];
#pragma GCC unroll 8
            for (std::size_t t = 0; t < n_tokens; t++) {
                vectors[t] = Lanes::load(x + t * args.x_stride + column + i);
            }
#pragma GCC unroll 8
            for (std::size_t r = 0; r < n_rows; r++) {
                const Batch weight = Weights::load(w + r * args.row_bytes, column + i, scales[r]);
#pragma GCC unroll 8
                for (std::size_t t = 0; t < n_tokens; t++) {
                    sums[r][t] = Lanes::fma(weight, vectors[t], sums[r][t]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (std::size_t t = 0; t < n_tokens; t++) {
#pragma GCC unroll 8
        for (std::size_t r = 0; r < n_rows; r += 4) {
            const Batch zero = Lanes::broadcast(0.0f);
            float four[4];
            Lanes::sum(four, sums[r][t], r + 1 < n_rows ? sums[r + 1][t] : zero,
                       r + 2 < n_rows ? sums[r + 2][t] : zero, r + 3 < n_rows ? sums[r + 3][t] : zero);
            float* out = y + t * args.y_stride + r;
            for (std::size_t i = 0; i < 4 && r + i < n_rows; i++) {
                out[i] = accumulate ? out[i] + four[i] : four[i];
            }
        }
    }
}

// Adds the columns behind the last whole step, for widths that are no multiple of 32.
template <class Lanes, class Weights>
void multiply_rest(const LinearArgs& args, std::size_t first_column) {
    for (std::size_t r = 0; r < args.n_rows; r++) {
        for (std::size_t t = 0; t < args.n_tokens; t++) {
            const auto zero = Lanes::broadcast(0.0f);
            auto sum = zero;
            for (std::size_t column = first_column; column < args.n_cols; column += Lanes::width) {
                const std::size_t n =
                    args.n_cols - column < Lanes::width ? args.n_cols - column : Lanes::width;
                sum = Lanes::fma(load_tail<Lanes, Weights>(args.w + r * args.row_bytes, column, n),
                                 load_tail<Lanes>(args.x + t * args.x_stride + column, n), sum);
            }
            float four[4];
            Lanes::sum(four, sum, zero, zero, zero);
            args.y[t * args.y_stride + r] += four[0];
        }
    }
}

// All rows with n_tokens vectors, n_rows at a time, over one block of columns.
template <class Lanes, class Weights, std::size_t n_rows, std::size_t n_tokens>
void multiply_strip(const LinearArgs& args, std::size_t first_token, std::size_t first_column,
                    std::size_t n_cols) {
    const float* x = args.x + first_token * args.x_stride + first_column;
    float* y = args.y + first_token * args.y_stride;
    const std::uint8_t* w = args.w + Weights::column_bytes(first_column);
    const bool accumulate = args.accumulate || first_column > 0;
    std::size_t row = 0;
    for (; row + n_rows <= args.n_rows; row += n_rows) {
        multiply_tile<Lanes, Weights, n_rows, n_tokens>(y + row, w + row * args.row_bytes, x, n_cols,
                                                        accumulate, args);
    }
    for (; row < args.n_rows; row++) {
        multiply_tile<Lanes, Weights, 1, n_tokens>(y + row, w + row * args.row_bytes, x, n_cols, accumulate,
                                                   args);
    }
}

// Tiles that fill the registers: with 32, 4 x 6 sums beside 6 vectors and a weight; with 16, 4 x 3 beside 3.
// A single vector takes 8 rows, for enough independent sums to hide the latency of fma.
template <class Lanes, class Weights>
void multiply(const LinearArgs& args) {
    constexpr std::size_t most = Lanes::n_registers >= 32 ? 6 : 3;
    const std::size_t n_whole = args.n_cols / step_columns * step_columns;
    std::size_t column = 0;
    do {  // also for fewer columns than a step: y is written in any case
        const std::size_t n_cols = n_whole - column < column_block ? n_whole - column : column_block;
        std::size_t t = 0;
        for (; t + most <= args.n_tokens; t += most) {
            multiply_strip<Lanes, Weights, 4, most>(args, t, column, n_cols);
        }
        for (; t + 2 <= args.n_tokens; t += 2) {
            multiply_strip<Lanes, Weights, 4, 2>(args, t, column, n_cols);
        }
        if (t < args.n_tokens) multiply_strip<Lanes, Weights, 8, 1>(args, t, column, n_cols);
        column += n_cols;
    } while (column < n_whole);
    if constexpr (!Weights::is_blocked) {
        if (n_whole < args.n_cols) multiply_rest<Lanes, Weights>(args, n_whole);
    }
}

// ---- expand, swiglu ----

template <class Lanes, class Weights>
void expand(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    std::size_t i = 0;
    for (; i + Lanes::width <= n; i += Lanes::width) {
        Lanes::store(out + i, Weights::load(w, first + i, Weights::scale(w, first + i)));
    }
    if constexpr (!Weights::is_blocked) {
        if (i == n) return;
        float tail[Lanes::width];
        Lanes::store(tail, load_tail<Lanes, Weights>(w, first + i, n - i));
        std::memcpy(out + i, tail, (n - i) * sizeof(float));
    }
}

template <class Lanes>
void swiglu(float* gate, const float* up, std::size_t n) {
    for (std::size_t i = 0; i < n; i += Lanes::width) {
        const std::size_t n_left = n - i;
        const bool whole = n_left >= Lanes::width;
        const auto g = whole ? Lanes::load(gate + i) : load_tail<Lanes>(gate + i, n_left);
        const auto u = whole ? Lanes::load(up + i) : load_tail<Lanes>(up + i, n_left);
        const auto y = Lanes::mul(Lanes::mul(g, Lanes::sigmoid(g)), u);
        if (whole) {
            Lanes::store(gate + i, y);
        } else {
            float tail[Lanes::width];
            Lanes::store(tail, y);
            std::memcpy(gate + i, tail, n_left * sizeof(float));
        }
    }
}

template <class Lanes>
constexpr LinearKernels make_linear_kernels(Level level) {
    return {level,
            {multiply<Lanes, WeightsF32<Lanes>>, multiply<Lanes, WeightsF16<Lanes>>,
             multiply<Lanes, WeightsBf16<Lanes>>, multiply<Lanes, WeightsQ8<Lanes>>},
            {expand<Lanes, WeightsF32<Lanes>>, expand<Lanes, WeightsF16<Lanes>>,
             expand<Lanes, WeightsBf16<Lanes>>, expand<Lanes, WeightsQ8<Lanes>>},
            swiglu<Lanes>};
}

}  // namespace
}  // namespace gearkv
