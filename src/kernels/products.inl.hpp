// The two products of a tall matrix x [n_tokens][n_cols] with a few vectors, which compression (subspace
// iteration) and attention (rows that are not compressed) share. n_cols is a multiple of 16.
#pragma once

#include "kernels/ahead.inl.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

template <class L>
[[gnu::always_inline]] inline typename L::Float load_lanes(const float* x) {
    return L::load(x);
}
template <class L>
[[gnu::always_inline]] inline typename L::Float load_lanes(const std::uint16_t* x) {
    return L::load_half(x);
}

// The few vectors and what becomes of them: y [n_rows][y_stride], out [n_rows][out_stride].
struct RowProducts {
    const float* y;
    std::size_t y_stride;
    float* out;
    std::size_t out_stride;
    std::size_t n_rows;
};

template <class X>
struct Matrix {
    const X* x;
    std::size_t stride;
    std::size_t n_tokens;
    std::size_t n_cols;
    Ahead ahead = {};
};

template <bool accumulate>
[[gnu::always_inline]] inline void put(float* out, float value) {
    *out = accumulate ? *out + value : value;
}

// ---- out[row][t] (+)= sum_c x[t][c] y[row][c] ----

template <class L, bool accumulate, std::size_t n_tokens, std::size_t n_rows, class X>
void dot_tile(const Matrix<X>& matrix, const RowProducts& rows, std::size_t token, std::size_t row) {
    using Float = typename L::Float;
    const X* x = matrix.x + token * matrix.stride;
    const float* y = rows.y + row * rows.y_stride;
    Float sums[n_rows][n_tokens];
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<n_tokens>([&](auto t) GEARKV_INLINE { sums[r][t] = L::broadcast(0.0f); });
    });
    for (std::size_t c = 0; c < matrix.n_cols; c += L::width) {
        Float lanes[n_tokens];
        unroll<n_tokens>([&](auto t) GEARKV_INLINE { lanes[t] = load_lanes<L>(x + t * matrix.stride + c); });
        unroll<n_rows>([&](auto r) GEARKV_INLINE {
            const Float factor = L::load(y + r * rows.y_stride + c);
            unroll<n_tokens>([&](auto t)
                                 GEARKV_INLINE { sums[r][t] = L::fma(lanes[t], factor, sums[r][t]); });
        });
    }
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        float* out = rows.out + (row + r) * rows.out_stride + token;
        if constexpr (n_tokens == 4) {
            float four[4];
            L::sum_each(four, sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
            unroll<4>([&](auto t) GEARKV_INLINE { put<accumulate>(out + t, four[t]); });
        } else {
            unroll<n_tokens>([&](auto t) GEARKV_INLINE { put<accumulate>(out + t, L::sum(sums[r][t])); });
        }
    });
}

// Four tokens by as many rows as leave registers for the operands.
template <class L, bool accumulate, class X>
void multiply_rows(const Matrix<X>& matrix, const RowProducts& rows) {
    constexpr std::size_t most = L::n_registers >= 32 ? 4 : 2;
    AheadLines ahead(matrix.ahead, matrix.n_tokens / 4);
    std::size_t token = 0;
    for (; token + 4 <= matrix.n_tokens; token += 4) {
        ahead.step();
        for_rows<most>(rows.n_rows, [&](std::size_t row, auto n) {
            dot_tile<L, accumulate, 4, n.value>(matrix, rows, token, row);
        });
    }
    for (; token < matrix.n_tokens; ++token) {
        for_rows<most>(rows.n_rows, [&](std::size_t row, auto n) {
            dot_tile<L, accumulate, 1, n.value>(matrix, rows, token, row);
        });
    }
}

// ---- out[row][c] (+)= sum_t y[row][t] x[t][c] ----

template <class L, bool accumulate, std::size_t n_vectors, std::size_t n_rows, class X>
void sum_tile(const Matrix<X>& matrix, const RowProducts& rows, std::size_t column, std::size_t row,
              AheadLines& lines) {
    LocalAhead ahead(&lines);
    using Float = typename L::Float;
    const X* x = matrix.x + column;
    const float* y = rows.y + row * rows.y_stride;
    float* out = rows.out + row * rows.out_stride + column;
    Float sums[n_rows][n_vectors];
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<n_vectors>([&](auto v) GEARKV_INLINE {
            sums[r][v] = accumulate ? L::load(out + r * rows.out_stride + v * L::width) : L::broadcast(0.0f);
        });
    });
    for (std::size_t t = 0; t < matrix.n_tokens; ++t) {
        ahead.step();
        Float lanes[n_vectors];
        unroll<n_vectors>([&](auto v) GEARKV_INLINE { lanes[v] = load_lanes<L>(x + v * L::width); });
        unroll<n_rows>([&](auto r) GEARKV_INLINE {
            const Float factor = L::broadcast(y[r * rows.y_stride + t]);
            unroll<n_vectors>([&](auto v)
                                  GEARKV_INLINE { sums[r][v] = L::fma(lanes[v], factor, sums[r][v]); });
        });
        x += matrix.stride;
    }
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<n_vectors>(
            [&](auto v) GEARKV_INLINE { L::store(out + r * rows.out_stride + v * L::width, sums[r][v]); });
    });
}

// Sums of n_rows by up to 8 vectors of columns fill half of the registers.
template <class L, bool accumulate, class X>
void sum_rows(const Matrix<X>& matrix, const RowProducts& rows) {
    AheadLines ahead(matrix.ahead, matrix.n_tokens);
    for_rows<4>(rows.n_rows, [&](std::size_t row, auto n) {
        constexpr std::size_t n_rows = n.value;
        constexpr std::size_t wide = L::n_registers / 2 / n_rows < 8 ? L::n_registers / 2 / n_rows : 8;
        constexpr std::size_t narrow = 16 / L::width;
        std::size_t column = 0;
        for (; column + wide * L::width <= matrix.n_cols; column += wide * L::width) {
            sum_tile<L, accumulate, wide, n_rows>(matrix, rows, column, row, ahead);
        }
        for (; column < matrix.n_cols; column += 16) {
            sum_tile<L, accumulate, narrow, n_rows>(matrix, rows, column, row, ahead);
        }
    });
}

}  // namespace
}  // namespace gearkv
