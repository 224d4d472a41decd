// The loops around the searches for outliers and trellis codes for one vector level: ends, moments, rotation,
// and panels of 16 channels.
#pragma once

#include <bit>

#include <xsimd/xsimd.hpp>

#include "format/trellis.hpp"
#include "kernels/kernels.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

// Vectors of one panel row.
template <class L>
inline constexpr std::size_t row_vectors = lane_tile / L::width;

template <class L>
void group_ends(float* high, float* low, std::size_t n_groups, const float* x, std::size_t stride,
                std::size_t n) {
    for (std::size_t g = 0; g < n_groups; ++g) {
        typename L::Float most[row_vectors<L>], least[row_vectors<L>];
        unroll<row_vectors<L>>([&](auto v) GEARKV_INLINE {
            most[v] = L::load(high + g * lane_tile + v * L::width);
            least[v] = L::load(low + g * lane_tile + v * L::width);
        });
        for (std::size_t i = g; i < n; i += n_groups) {
            unroll<row_vectors<L>>([&](auto v) GEARKV_INLINE {
                const auto row = L::load(x + i * stride + v * L::width);
                most[v] = xsimd::max(most[v], row);
                least[v] = xsimd::min(least[v], row);
            });
        }
        unroll<row_vectors<L>>([&](auto v) GEARKV_INLINE {
            L::store(high + g * lane_tile + v * L::width, most[v]);
            L::store(low + g * lane_tile + v * L::width, least[v]);
        });
    }
}

template <class L>
void find_reaching(std::uint16_t* reaching, const float* x, std::size_t stride, std::size_t n,
                   const float* high, const float* low) {
    typename L::Float highs[row_vectors<L>], lows[row_vectors<L>];
    unroll<row_vectors<L>>([&](auto v) GEARKV_INLINE {
        highs[v] = L::load(high + v * L::width);
        lows[v] = L::load(low + v * L::width);
    });
    for (std::size_t i = 0; i < n; ++i) {
        std::uint32_t within = 0;
        unroll<row_vectors<L>>([&](auto v) GEARKV_INLINE {
            const auto row = L::load(x + i * stride + v * L::width);
            within |= (L::lane_bits(L::less(row, highs[v])) & L::lane_bits(L::less(lows[v], row)))
                      << (v * L::width);
        });
        reaching[i] = static_cast<std::uint16_t>(~within);
    }
}

// Two vectors of columns at once, so that the sums of one do not wait for the other's.
template <class L>
void column_moments(float* sum, float* square, const float* x, std::size_t row_stride, std::size_t n_rows,
                    std::size_t n_cols, const float* row_factor) {
    using Float = typename L::Float;
    constexpr std::size_t n_parts = L::width == lane_tile ? 1 : 2;
    for (std::size_t c = 0; c < n_cols; c += n_parts * L::width) {
        Float sums[n_parts], squares[n_parts];
        unroll<n_parts>([&](auto i) GEARKV_INLINE { sums[i] = squares[i] = L::broadcast(0.0f); });
        for (std::size_t r = 0; r < n_rows; ++r) {
            const Float factor = L::broadcast(row_factor[r]);
            unroll<n_parts>([&](auto i) GEARKV_INLINE {
                const Float u = factor * L::load(x + r * row_stride + c + i * L::width);
                sums[i] = sums[i] + u;
                squares[i] = squares[i] + u * u;
            });
        }
        unroll<n_parts>([&](auto i) GEARKV_INLINE {
            L::store(sum + c + i * L::width, sums[i]);
            L::store(square + c + i * L::width, squares[i]);
        });
    }
}

template <class L>
void row_squares(float* square, const float* x, std::size_t row_stride, std::size_t n_rows,
                 std::size_t n_cols, const float* column_factor) {
    using Float = typename L::Float;
    for (std::size_t r = 0; r < n_rows; ++r) {
        Float parts[row_vectors<L>];
        unroll<row_vectors<L>>([&](auto i) GEARKV_INLINE { parts[i] = L::broadcast(0.0f); });
        for (std::size_t c = 0; c < n_cols; c += lane_tile) {
            unroll<row_vectors<L>>([&](auto i) GEARKV_INLINE {
                const std::size_t at = c + i * L::width;
                const Float u = L::load(column_factor + at) * L::load(x + r * row_stride + at);
                parts[i] = parts[i] + u * u;
            });
        }
        float part[lane_tile];
        unroll<row_vectors<L>>([&](auto i) GEARKV_INLINE { L::store(part + i * L::width, parts[i]); });
        unroll<8>([&](auto i) GEARKV_INLINE { part[i] += part[i + 8]; });
        unroll<4>([&](auto i) GEARKV_INLINE { part[i] += part[i + 4]; });
        unroll<2>([&](auto i) GEARKV_INLINE { part[i] += part[i + 2]; });
        square[r] = part[0] + part[1];
    }
}

// A step of the transform pairs the entries half the length apart. Here each step also puts sums and
// differences in turn, which brings the next pairs half the length apart again, and after all steps the order
// is the natural one.
template <class L, std::size_t n_vectors>
[[gnu::always_inline]] inline void rotate_block(float* x, float norm) {
    using Float = typename L::Float;
    constexpr int n_steps = std::countr_zero(n_vectors * L::width);
    Float v[n_vectors];
    unroll<n_vectors>([&](auto i) GEARKV_INLINE { v[i] = L::load(x + i * L::width); });
    for (int step = 0; step < n_steps; ++step) {
        Float next[n_vectors];
        unroll<n_vectors / 2>([&](auto i) GEARKV_INLINE {
            const Float low = v[i], high = v[i + n_vectors / 2];
            next[2 * i] = low + high;
            next[2 * i + 1] = low - high;
            L::zip(next[2 * i], next[2 * i + 1]);
        });
        unroll<n_vectors>([&](auto i) GEARKV_INLINE { v[i] = next[i]; });
    }
    unroll<n_vectors>([&](auto i) GEARKV_INLINE { L::store(x + i * L::width, v[i] * L::broadcast(norm)); });
}

// The steps from half the length n down to pairs `last_half` apart.
template <class L>
void rotate_vectors(float* x, std::size_t n, std::size_t last_half) {
    for (std::size_t half = n / 2; half >= last_half; half /= 2) {
        for (std::size_t first = 0; first < n; first += 2 * half) {
            for (std::size_t j = first; j < first + half; j += L::width) {
                const auto low = L::load(x + j), high = L::load(x + j + half);
                L::store(x + j, low + high);
                L::store(x + j + half, low - high);
            }
        }
    }
}

// Lengths of less than two vectors.
inline void rotate_short(float* x, std::size_t n, float norm) {
    for (std::size_t half = n / 2; half > 0; half /= 2) {
        for (std::size_t i = 0; i < n; ++i) {
            if ((i & half) != 0) continue;
            const float low = x[i], high = x[i + half];
            x[i] = low + high;
            x[i + half] = low - high;
        }
    }
    for (std::size_t i = 0; i < n; ++i)
        x[i] *= norm;
}

template <class L>
void rotate_rows(float* x, std::size_t row_stride, std::size_t n_rows, std::size_t n_cols) {
    constexpr std::size_t block = 8 * L::width;
    const std::size_t n = n_cols & (~n_cols + 1);
    const float norm = rotation_norm(static_cast<std::uint32_t>(n));
    for (std::size_t r = 0; r < n_rows; ++r) {
        float* row = x + r * row_stride;
        for (std::size_t at = 0; at < n_cols; at += n) {
            if (n >= block) {
                rotate_vectors<L>(row + at, n, block);
                for (std::size_t i = 0; i < n; i += block)
                    rotate_block<L, 8>(row + at + i, norm);
            } else if (n == 4 * L::width) {
                rotate_block<L, 4>(row + at, norm);
            } else if (n == 2 * L::width) {
                rotate_block<L, 2>(row + at, norm);
            } else {
                rotate_short(row + at, n, norm);
            }
        }
    }
}

template <class L>
void order_row(float* out, const float* x, const std::uint16_t* order, const float* shift,
               std::size_t n_cols) {
    const typename L::RowTable table(x, n_cols);
    for (std::size_t i = 0; i < n_cols; i += L::width)
        L::store(out + i, table.pick(order + i) - L::load(shift + i));
}

// ---- panels ----

template <class L>
void fill_panel(float* out, const Panel& panel, const float* shift, const float* factor) {
    using Float = typename L::Float;
    Float shifts[row_vectors<L>], factors[row_vectors<L>];
    unroll<row_vectors<L>>([&](auto i) GEARKV_INLINE {
        shifts[i] = L::load(shift + i * L::width);
        factors[i] = L::load(factor + i * L::width);
    });
    for (std::size_t t = 0; t < section_tokens; ++t) {
        const Float token = L::broadcast(panel.token_factor[t]);
        unroll<row_vectors<L>>([&](auto i) GEARKV_INLINE {
            const Float x = L::load(panel.x + t * panel.stride + i * L::width);
            L::store(out + t * lane_tile + i * L::width, (x + shifts[i]) * (token * factors[i]));
        });
    }
}

template <class L>
void sum_panel(float* level, float* along, float* square, const Panel& panel, const std::int8_t* chosen) {
    using Float = typename L::Float;
    for (std::size_t lane = 0; lane < lane_tile; lane += L::width) {
        Float levels = L::broadcast(0.0f), alongs = levels, squares = levels;
        for (std::size_t t = 0; t < section_tokens; ++t) {
            const Float u =
                L::load_signed(chosen + t * lane_tile + lane) * L::broadcast(panel.token_factor[t]);
            levels = levels + u;
            alongs = alongs + u * L::load(panel.x + t * panel.stride + lane);
            squares = squares + u * u;
        }
        L::store(level + lane, levels);
        L::store(along + lane, alongs);
        L::store(square + lane, squares);
    }
}

template <class L>
void cube_errors(float* error, const float* x, const std::int8_t* chosen, const float* factor) {
    using Float = typename L::Float;
    Float errors[row_vectors<L>];
    unroll<row_vectors<L>>([&](auto i) GEARKV_INLINE { errors[i] = L::broadcast(0.0f); });
    for (std::size_t t = 0; t < section_tokens * lane_tile; t += lane_tile) {
        unroll<row_vectors<L>>([&](auto i) GEARKV_INLINE {
            const Float d = L::load(x + t + i * L::width) - L::load_signed(chosen + t + i * L::width);
            const Float size = L::from_bits(L::bits(d) & L::broadcast_word(0x7fffffff));
            const Float e = size * L::load(factor + i * L::width);
            errors[i] = errors[i] + e * e * e;
        });
    }
    unroll<row_vectors<L>>([&](auto i) GEARKV_INLINE { L::store(error + i * L::width, errors[i]); });
}

// A vector holds the bytes of one to four tokens. Its bits are gathered for the tokens that lie as far apart,
// and what the parts hold comes together last.
template <class L>
void gather_bits(std::uint8_t* bytes, const std::uint8_t* codes, std::uint32_t bit) {
    constexpr std::size_t n_parts = L::width / 4;
    const auto place = L::broadcast_word(bit);
    for (std::size_t byte = 0; byte < section_tokens / 8; ++byte, codes += 8 * lane_tile) {
        auto sum = L::broadcast_word(0);
        unroll<8 / n_parts>([&](auto i) GEARKV_INLINE {
            const auto code = L::load_packed(codes + i * n_parts * lane_tile);
            const auto one = L::shift_right_by(code, place) & L::broadcast_word(0x01010101);
            sum = sum | L::template shift_left<i.value * n_parts>(one);
        });
        std::uint64_t part[n_parts][2];
        L::store_packed(part, sum);
        unroll<n_parts - 1>([&](auto i) GEARKV_INLINE {
            part[0][0] |= part[i + 1][0] << (i + 1);
            part[0][1] |= part[i + 1][1] << (i + 1);
        });
        __builtin_memcpy(bytes + byte * lane_tile, part[0], lane_tile);
    }
}

}  // namespace
}  // namespace gearkv
