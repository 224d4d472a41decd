// The decoder's products for one vector architecture.
//
// L is the Lanes of an arch folder (arch/lanes.hpp) and what its linear.cpp adds, all for any alignment:
//   Float load_halves, load_bfloats, load_signed(const uint8_t*)   width halves, bfloats or signed bytes
//   Float broadcast_half(const uint8_t*)                           one half in all lanes
// and what src/decoder/network/weights.inl.hpp asks for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <xsimd/xsimd.hpp>

#include "decoder/network/linear.hpp"
#include "decoder/network/weights.inl.hpp"
#include "kernels/exponential.inl.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

// Columns of one step where vectors of weights are loaded one by one; a Q8_0 block, so that all weights of a
// row within a step share one scale.
constexpr std::size_t step_columns = tensor_type(WeightType::q8_0).block;
static_assert(column_block % step_columns == 0);

// ---- weights: load(row, column, scale) gives L::width floats, scale(row, column) is good for a step ----

struct NoScale {};

template <class L>
struct WeightsF32 : BlockOf<WeightType::f32> {
    using Scale = NoScale;
    static Scale scale(const std::uint8_t*, std::size_t) { return {}; }
    static typename L::Float load(const std::uint8_t* row, std::size_t column, Scale) {
        return L::load(reinterpret_cast<const float*>(row + column_bytes(column)));
    }
};

template <class L>
struct WeightsF16 : BlockOf<WeightType::f16> {
    using Scale = NoScale;
    static Scale scale(const std::uint8_t*, std::size_t) { return {}; }
    static typename L::Float load(const std::uint8_t* row, std::size_t column, Scale) {
        return L::load_halves(row + column_bytes(column));
    }
};

template <class L>
struct WeightsBf16 : BlockOf<WeightType::bf16> {
    using Scale = NoScale;
    static Scale scale(const std::uint8_t*, std::size_t) { return {}; }
    static typename L::Float load(const std::uint8_t* row, std::size_t column, Scale) {
        return L::load_bfloats(row + column_bytes(column));
    }
};

template <class L>
struct WeightsQ8_0 : BlockOf<WeightType::q8_0> {
    using Scale = typename L::Float;
    static Scale scale(const std::uint8_t* row, std::size_t column) {
        return L::broadcast_half(row + column_bytes(column));
    }
    static typename L::Float load(const std::uint8_t* row, std::size_t column, Scale scale) {
        return scale * L::load_signed(row + column_bytes(column) + 2 + column % step_columns);
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

// Adds up the lanes of a tile's sums.
template <class L, std::size_t n_rows, std::size_t n_tokens>
void finish_tile(float* y, const typename L::Float (&sums)[n_rows][n_tokens], bool accumulate,
                 const LinearArgs& args) {
    using Float = typename L::Float;
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
        // A single vector is as fast as its weights come; those of the next rows, which may be behind the
        // last.
        if constexpr (n_tokens == 1 && n_rows > 4) {
            const auto next = reinterpret_cast<std::uintptr_t>(w) + Weights::column_bytes(column);
            unroll<n_rows>([&](auto r) GEARKV_INLINE {
                __builtin_prefetch(reinterpret_cast<const void*>(next + (n_rows + r) * args.row_bytes), 0, 2);
            });
        }
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
    finish_tile<L, n_rows, n_tokens>(y, sums, accumulate, args);
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
    const auto tile = [&](std::size_t row, auto rows) GEARKV_INLINE {
        multiply_tile<L, Weights, rows.value, n_tokens>(y + row, w + row * args.row_bytes, x, n_cols,
                                                        accumulate, args);
    };
    std::size_t row = 0;
    for (; row + n_rows <= args.n_rows; row += n_rows) {
        tile(row, Index<n_rows>());
    }
    if constexpr (n_rows > 4) {
        for (; row + 4 <= args.n_rows; row += 4) {
            tile(row, Index<4>());
        }
    }
    for (; row < args.n_rows; row++) {
        tile(row, Index<1>());
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
    if constexpr (Weights::block == 1) {
        if (n_whole < args.n_cols) multiply_rest<L, Weights>(args, n_whole);
    }
}

// ---- expand ----

template <class L, class Weights>
void expand(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width) {
        L::store(out + i, Weights::load(w, first + i, Weights::scale(w, first + i)));
    }
    if constexpr (Weights::block == 1) {
        if (i < n) L::store_first(out + i, load_tail<L, Weights>(w, first + i, n - i), n - i);
    }
}

template <class L, class Weights>
void expand_blocks(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    const std::uint8_t* block = w + Weights::column_bytes(first);
    for (std::size_t column = 0; column < n; column += Weights::block, block += Weights::block_bytes) {
        const auto head = Weights::head(block);
        for (std::size_t p = 0; p < Weights::block / Weights::part; p++) {
            float* to = out + column + p * Weights::part;
            const auto codes = Weights::unpack(block, p, head);
            unroll<Weights::part / L::width>([&](auto i) GEARKV_INLINE {
                L::store(to + i * L::width, Weights::template weight<i.value>(codes, head, p));
            });
        }
    }
}

// ---- blocks that are unpacked in parts (weights.inl.hpp) ----

// One tile, n_rows x n_tokens sums over whole blocks of columns. Every byte of a block is loaded once.
template <class L, class Weights, std::size_t n_rows, std::size_t n_tokens>
void multiply_block_tile(float* y, const std::uint8_t* w, const float* x, std::size_t n_cols, bool accumulate,
                         const LinearArgs& args) {
    using Float = typename L::Float;
    Float sums[n_rows][n_tokens];
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<n_tokens>([&](auto t) GEARKV_INLINE { sums[r][t] = L::broadcast(0.0f); });
    });
    for (std::size_t column = 0; column < n_cols; column += Weights::block, w += Weights::block_bytes) {
        typename Weights::Head heads[n_rows];
        unroll<n_rows>([&](auto r) GEARKV_INLINE { heads[r] = Weights::head(w + r * args.row_bytes); });
        for (std::size_t p = 0; p < Weights::block / Weights::part; p++, x += Weights::part) {
            unroll<n_rows>([&](auto r) GEARKV_INLINE {
                const auto codes = Weights::unpack(w + r * args.row_bytes, p, heads[r]);
                unroll<Weights::part / L::width>([&](auto i) GEARKV_INLINE {
                    const Float weight = Weights::template weight<i.value>(codes, heads[r], p);
                    unroll<n_tokens>([&](auto t) GEARKV_INLINE {
                        const Float vector = L::load(x + t * args.x_stride + i * L::width);
                        sums[r][t] = L::fma(weight, vector, sums[r][t]);
                    });
                });
            });
        }
    }
    finish_tile<L, n_rows, n_tokens>(y, sums, accumulate, args);
}

template <class L, class Weights, std::size_t n_tokens>
void multiply_block_strip(const LinearArgs& args) {
    for (std::size_t column = 0; column < args.n_cols; column += column_block) {
        const std::size_t n_cols = args.n_cols - column < column_block ? args.n_cols - column : column_block;
        const auto tile = [&](std::size_t row, auto rows) GEARKV_INLINE {
            const std::uint8_t* w = args.w + row * args.row_bytes + Weights::column_bytes(column);
            multiply_block_tile<L, Weights, rows.value, n_tokens>(args.y + row, w, args.x + column, n_cols,
                                                                  args.accumulate || column > 0, args);
        };
        std::size_t row = 0;
        for (; row + 4 <= args.n_rows; row += 4) {
            tile(row, Index<4>());
        }
        for (; row < args.n_rows; row++) {
            tile(row, Index<1>());
        }
    }
}

// From three vectors on they share weights that were unpacked into the first cache.
template <class L, class Weights>
void multiply_blocks(const LinearArgs& args) {
    if (args.n_tokens == 1) return multiply_block_strip<L, Weights, 1>(args);
    if (args.n_tokens == 2) return multiply_block_strip<L, Weights, 2>(args);
    constexpr std::size_t most_rows = 4;
    alignas(64) float panel[most_rows * column_block];
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
                expand_blocks<L, Weights>(panel + r * part.n_cols, args.w + (row + r) * args.row_bytes, first,
                                          part.n_cols);
            }
            multiply<L, WeightsF32<L>>(part);
        }
    }
}

// ---- gates, the table ----

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

template <class L, class Weights>
constexpr void set_type(LinearKernels& kernels) {
    constexpr auto type = static_cast<std::size_t>(Weights::type);
    if constexpr (requires { Weights::part; }) {
        kernels.multiply[type] = multiply_blocks<L, Weights>;
        kernels.expand[type] = expand_blocks<L, Weights>;
    } else {
        kernels.multiply[type] = multiply<L, Weights>;
        kernels.expand[type] = expand<L, Weights>;
    }
}

template <class L, class... Weights>
constexpr void set_types(LinearKernels& kernels) {
    (set_type<L, Weights>(kernels), ...);
}

template <class L>
constexpr LinearKernels make_linear_kernels(Level level) {
    LinearKernels kernels = {level, {}, {}, apply_gate<L, Silu>, apply_gate<L, Gelu>};
    set_types<L, WeightsF32<L>, WeightsF16<L>, WeightsBf16<L>, WeightsQ4_0<L>, WeightsQ4_1<L>, WeightsQ5_0<L>,
              WeightsQ5_1<L>, WeightsQ8_0<L>, WeightsQ2K<L>, WeightsQ3K<L>, WeightsQ4K<L>, WeightsQ5K<L>,
              WeightsQ6K<L>, WeightsIq4Nl<L>, WeightsIq4Xs<L>, WeightsMxfp4<L>, WeightsTq2_0<L>>(kernels);
    return kernels;
}

}  // namespace
}  // namespace gearkv
