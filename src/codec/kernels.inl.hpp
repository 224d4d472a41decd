// The codec kernels of kernels/kernels.hpp for one vector level, whose vocabulary L is (arch/lanes.hpp).
//
// What decides codes is the same at every level to the last bit: subtraction, IEEE division, rounding half to
// even, and products and sums that are rounded apart. Objects are compiled with contraction off.
#pragma once

#include <xsimd/xsimd.hpp>

#include "codec/panels.inl.hpp"
#include "codec/trellis.inl.hpp"
#include "kernels/kernels.hpp"
#include "kernels/products.inl.hpp"

namespace gearkv {
namespace {

constexpr std::size_t pad_lanes(std::size_t n) {
    return (n + lane_tile - 1) / lane_tile * lane_tile;
}

// ---- ranges ----

template <class L>
float max_abs(const float* x, std::size_t n) {
    using Words = typename L::Words;
    // Magnitudes order as their bits do, with NaN above Inf above all finite numbers.
    const Words magnitude = L::broadcast_word(0x7fffffff);
    Words most = L::broadcast_word(0), other = most;
    std::size_t i = 0;
    for (; i + 2 * L::width <= n; i += 2 * L::width) {
        most = xsimd::max(most, L::bits(L::load(x + i)) & magnitude);
        other = xsimd::max(other, L::bits(L::load(x + i + L::width)) & magnitude);
    }
    for (; i < n; i += L::width) {
        const auto lanes = n - i < L::width ? L::load_first(x + i, n - i) : L::load(x + i);
        most = xsimd::max(most, L::bits(lanes) & magnitude);
    }
    const Words infinity = L::broadcast_word(0x7f800000);
    return L::largest(L::from_bits(xsimd::min(xsimd::max(most, other), infinity)));
}

template <class L>
void column_range(float* lo, float* hi, const float* x, std::size_t row_stride, std::size_t n_rows,
                  std::size_t n_cols) {
    using Float = typename L::Float;
    constexpr std::size_t n_vectors = lane_tile / L::width;
    for (std::size_t c = 0; c < n_cols; c += lane_tile) {
        Float low[n_vectors], high[n_vectors];
        unroll<n_vectors>([&](auto v) GEARKV_INLINE { low[v] = high[v] = L::load(x + c + v * L::width); });
        for (std::size_t r = 1; r < n_rows; ++r) {
            unroll<n_vectors>([&](auto v) GEARKV_INLINE {
                const Float lanes = L::load(x + r * row_stride + c + v * L::width);
                low[v] = xsimd::min(low[v], lanes);
                high[v] = xsimd::max(high[v], lanes);
            });
        }
        unroll<n_vectors>([&](auto v) GEARKV_INLINE {
            L::store(lo + c + v * L::width, low[v] + L::broadcast(0.0f));  // -0 becomes 0
            L::store(hi + c + v * L::width, high[v] + L::broadcast(0.0f));
        });
    }
}

template <class L>
void row_range(float* lo, float* hi, const float* x, std::size_t n) {
    using Float = typename L::Float;
    Float low = L::broadcast(x[0]), high = low, other_low = low, other_high = low;
    std::size_t i = 0;
    for (; i + 2 * L::width <= n; i += 2 * L::width) {
        const Float first = L::load(x + i), second = L::load(x + i + L::width);
        low = xsimd::min(low, first);
        high = xsimd::max(high, first);
        other_low = xsimd::min(other_low, second);
        other_high = xsimd::max(other_high, second);
    }
    for (; i < n; i += L::width) {
        const Float lanes = n - i < L::width ? L::load_first(x + i, n - i, x[0]) : L::load(x + i);
        low = xsimd::min(low, lanes);
        high = xsimd::max(high, lanes);
    }
    *lo = L::smallest(xsimd::min(low, other_low)) + 0.0f;  // -0 becomes 0
    *hi = L::largest(xsimd::max(high, other_high)) + 0.0f;
}

// ---- codes ----

// Scale and zero of a vector of entries. Dividing by Inf gives the code 0 that a scale of 0 asks for.
template <class L>
struct Quantizer {
    using Float = typename L::Float;
    Float scale, zero, divisor, max_code;

    Quantizer(Float scale_, Float zero_, float max_code_)
        : scale(scale_),
          zero(zero_),
          divisor(xsimd::select(scale_ == L::broadcast(0.0f), L::broadcast(__builtin_inff()), scale_)),
          max_code(L::broadcast(max_code_)) {}

    [[gnu::always_inline]] Float code(Float x) const {
        const Float steps = L::divide(x - zero, divisor);
        return L::round(xsimd::min(xsimd::max(steps, L::broadcast(0.0f)), max_code));
    }
    [[gnu::always_inline]] Float residual(Float x, Float code) const { return x - (code * scale + zero); }
};

template <class L>
void quantize_columns(std::uint8_t* codes, float* x, std::size_t row_stride, std::size_t n_rows,
                      std::size_t n_cols, const float* scale, const float* zero, float max_code) {
    using Float = typename L::Float;
    for (std::size_t first = 0; first < n_cols; first += lane_tile) {
        unroll<lane_tile / L::width>([&](auto v) GEARKV_INLINE {
            const std::size_t c = first + v * L::width;
            const Quantizer<L> quantizer(L::load(scale + c), L::load(zero + c), max_code);
            for (std::size_t r = 0; r < n_rows; ++r) {
                float* entries = x + r * row_stride + c;
                const Float lanes = L::load(entries);
                const Float code = quantizer.code(lanes);
                L::store_bytes(codes + r * row_stride + c, code);
                L::store(entries, quantizer.residual(lanes, code));
            }
        });
    }
}

template <class L>
void quantize_row(std::uint8_t* codes, float* x, std::size_t n, float scale, float zero, float max_code) {
    using Float = typename L::Float;
    const Quantizer<L> quantizer(L::broadcast(scale), L::broadcast(zero), max_code);
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width) {
        const Float lanes = L::load(x + i);
        const Float code = quantizer.code(lanes);
        L::store_bytes(codes + i, code);
        L::store(x + i, quantizer.residual(lanes, code));
    }
    if (i == n) return;
    const Float lanes = L::load_first(x + i, n - i);
    const Float code = quantizer.code(lanes);
    L::store_bytes_first(codes + i, code, n - i);
    L::store_first(x + i, quantizer.residual(lanes, code), n - i);
}

// ---- code words ----

// Four neighbouring codes, one a byte.
inline std::uint32_t four_codes(const std::uint8_t* codes) {
    std::uint32_t four;
    __builtin_memcpy(&four, codes, sizeof(four));
    return four;
}

// A plane of `width` bits a code, from bit `from` of each code up: the word of 32 / width neighbouring codes.
template <std::uint32_t width, std::uint32_t from>
std::uint32_t plane_word(const std::uint8_t* codes) {
    constexpr std::uint32_t fields = ((1u << width) - 1) * 0x01010101u;
    std::uint32_t word = 0;
    unroll<8 / width>(
        [&](auto p) GEARKV_INLINE { word |= (four_codes(codes + 4 * p) >> from & fields) << (width * p); });
    return word;
}

// The words of `n_units` units of one token, a unit being the codes of a word (3 bits: of a high word).
template <std::uint32_t bits>
void pack_units(std::uint32_t* low, std::uint32_t* high, const std::uint8_t* codes, std::size_t n_units) {
    for (std::size_t unit = 0; unit < n_units; ++unit) {
        if constexpr (bits == 3) {
            low[2 * unit * lane_tile] = plane_word<2, 0>(codes + unit * 32);
            low[(2 * unit + 1) * lane_tile] = plane_word<2, 0>(codes + unit * 32 + 16);
            high[unit * lane_tile] = plane_word<1, 2>(codes + unit * 32);
        } else {
            low[unit * lane_tile] = plane_word<bits, 0>(codes + unit * (32 / bits));
        }
    }
}

template <std::uint32_t bits>
void pack_key(std::uint32_t* words, const std::uint8_t* codes, std::size_t code_stride, std::size_t n_tokens,
              std::size_t dim) {
    constexpr std::size_t unit = bits == 3 ? 32 : 32 / bits;  // channels
    const std::size_t n_whole = dim / unit;
    const std::size_t n_rest = dim % unit;
    const std::size_t n_units = n_whole + (n_rest > 0 ? 1 : 0);
    const std::size_t high_at = (bits == 3 ? 2 : 1) * n_units * lane_tile;
    const std::size_t rest_at = (bits == 3 ? 2 : 1) * n_whole * lane_tile;
    for (std::size_t tile = 0; tile < n_tokens; tile += lane_tile) {
        for (std::size_t lane = 0; lane < lane_tile; ++lane) {
            std::uint32_t* low = words + lane;
            std::uint32_t* high = low + high_at;
            std::uint8_t rest[unit] = {};
            if (tile + lane < n_tokens) {
                const std::uint8_t* token = codes + (tile + lane) * code_stride;
                pack_units<bits>(low, high, token, n_whole);
                for (std::size_t c = 0; c < n_rest; ++c)
                    rest[c] = token[n_whole * unit + c];
                if (n_rest > 0) pack_units<bits>(low + rest_at, high + n_whole * lane_tile, rest, 1);
            } else {
                for (std::size_t u = 0; u < n_units; ++u) {
                    pack_units<bits>(low + u * (bits == 3 ? 2 : 1) * lane_tile, high + u * lane_tile, rest,
                                     1);
                }
            }
        }
        words += n_units * (bits == 3 ? 3 : 1) * lane_tile;
    }
}

// One word of `L::width` channels: the codes of 32 / width tokens, n_tokens of them there, from bit `from`
// up.
template <class L, std::uint32_t width, std::uint32_t from>
[[gnu::always_inline]] inline void pack_column_word(std::uint32_t* word, const std::uint8_t* codes,
                                                    std::size_t code_stride, std::size_t n_tokens) {
    using Words = typename L::Words;
    Words result = L::broadcast_word(0);
    unroll<32 / width>([&](auto t) GEARKV_INLINE {
        constexpr std::size_t token = t.value;
        if (token >= n_tokens) return;
        Words code = L::load_bytes(codes + token * code_stride);
        if constexpr (from > 0) code = L::template shift_right<from>(code);
        if constexpr (width == 2) code = code & L::broadcast_word(3);
        constexpr std::uint32_t shift = 8 * (token % 4) + width * (token / 4);
        if constexpr (shift > 0) code = L::template shift_left<shift>(code);
        result = result | code;
    });
    L::store_words(word, result);
}

// All words of 16 channels, `n_lanes` words apart.
template <class L, std::uint32_t bits>
void pack_channels(std::uint32_t* words, std::size_t n_lanes, const std::uint8_t* codes,
                   std::size_t code_stride, std::size_t n_tokens) {
    constexpr std::size_t unit = bits == 3 ? 32 : 32 / bits;  // tokens
    for (std::size_t token = 0; token < n_tokens; token += unit) {
        const std::size_t left = n_tokens - token;
        unroll<lane_tile / L::width>([&](auto v) GEARKV_INLINE {
            std::uint32_t* to = words + v * L::width;
            const std::uint8_t* from = codes + token * code_stride + v * L::width;
            if constexpr (bits == 3) {
                pack_column_word<L, 2, 0>(to, from, code_stride, left);
                pack_column_word<L, 2, 0>(to + n_lanes, from + 16 * code_stride, code_stride,
                                          left > 16 ? left - 16 : 0);
                pack_column_word<L, 1, 2>(to + 2 * n_lanes, from, code_stride, left);
            } else {
                pack_column_word<L, bits, 0>(to, from, code_stride, left);
            }
        });
        words += (bits == 3 ? 3 : 1) * n_lanes;
    }
}

template <class L, std::uint32_t bits>
void pack_value(std::uint32_t* words, const std::uint8_t* codes, std::size_t code_stride,
                std::size_t n_tokens, std::size_t dim) {
    const std::size_t n_lanes = pad_lanes(dim);
    std::size_t channel = 0;
    for (; channel + lane_tile <= dim; channel += lane_tile) {
        pack_channels<L, bits>(words + channel, n_lanes, codes + channel, code_stride, n_tokens);
    }
    if (channel == dim) return;
    // The last channels beside zeros, a unit of tokens at a time.
    constexpr std::size_t unit = bits == 3 ? 32 : 32 / bits;
    constexpr std::size_t unit_words = bits == 3 ? 3 : 1;
    for (std::size_t token = 0; token < n_tokens; token += unit) {
        std::uint8_t rest[unit * lane_tile] = {};
        const std::size_t n = n_tokens - token < unit ? n_tokens - token : unit;
        for (std::size_t t = 0; t < n; ++t) {
            for (std::size_t c = channel; c < dim; ++c) {
                rest[t * lane_tile + c - channel] = codes[(token + t) * code_stride + c];
            }
        }
        pack_channels<L, bits>(words + token / unit * unit_words * n_lanes + channel, n_lanes, rest,
                               lane_tile, n);
    }
}

// ---- low rank ----

template <class L>
void project(float* a, std::size_t a_stride, const float* x, std::size_t row_stride, std::size_t n_rows,
             std::size_t n_cols, const float* p, std::size_t p_stride, std::size_t rank) {
    multiply_rows<L, false>(Matrix<float>{x, row_stride, n_rows, pad_lanes(n_cols)},
                            {p, p_stride, a, a_stride, rank});
}

template <class L>
void project_back(float* p, std::size_t p_stride, const float* x, std::size_t row_stride, std::size_t n_rows,
                  std::size_t n_cols, const float* a, std::size_t a_stride, std::size_t rank) {
    sum_rows<L, false>(Matrix<float>{x, row_stride, n_rows, pad_lanes(n_cols)},
                       {a, a_stride, p, p_stride, rank});
}

// ---- half ----

template <class L>
void to_half(std::uint16_t* out, const float* x, std::size_t n) {
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width)
        L::store_half(out + i, L::load(x + i));
    if (i < n) L::store_half_first(out + i, L::load_first(x + i, n - i), n - i);
}

template <class L>
void from_half(float* out, const std::uint16_t* x, std::size_t n) {
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width)
        L::store(out + i, L::load_half(x + i));
    if (i < n) L::store_first(out + i, L::load_half_first(x + i, n - i), n - i);
}

template <class L>
void to_bfloat(std::uint16_t* out, const float* x, std::size_t n) {
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width)
        L::store_bfloat(out + i, L::load(x + i));
    if (i < n) L::store_bfloat_first(out + i, L::load_first(x + i, n - i), n - i);
}

template <class L>
void from_bfloat(float* out, const std::uint16_t* x, std::size_t n) {
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width)
        L::store(out + i, L::load_bfloat(x + i));
    if (i < n) L::store_first(out + i, L::load_bfloat_first(x + i, n - i), n - i);
}

// Two to a word: the upper ones are compared where they are, the lower ones where these are gone.
template <class L>
std::uint16_t max_magnitude(const std::uint16_t* x, std::size_t n) {
    using Words = typename L::Words;
    constexpr std::size_t step = 2 * L::width;
    const Words upper = L::broadcast_word(0x7fff0000), lower = L::broadcast_word(0x7fff);
    Words most = L::broadcast_word(0), other = most;
    const auto take = [&](const std::uint16_t* at) GEARKV_INLINE {
        const Words pair = L::load_packed(at);
        most = xsimd::max(most, pair & upper);
        other = xsimd::max(other, pair & lower);
    };
    std::size_t i = 0;
    for (; i + step <= n; i += step)
        take(x + i);
    if (i < n) {
        std::uint16_t last[step] = {};
        for (std::size_t k = 0; i + k < n; ++k)
            last[k] = x[i + k];
        take(last);
    }
    std::uint32_t lanes[L::width];
    L::store_words(lanes, xsimd::max(L::template shift_right<16>(most), other));
    std::uint32_t largest = 0;
    for (const std::uint32_t lane : lanes)
        largest = lane > largest ? lane : largest;
    return static_cast<std::uint16_t>(largest);
}

template <class L>
constexpr CodecKernels make_codec_kernels() {
    return {
        max_abs<L>,
        column_range<L>,
        of_codes<row_range<L>>,
        of_codes<quantize_columns<L>>,
        of_codes<quantize_row<L>>,
        {of_codes<pack_key<2>>, of_codes<pack_key<3>>, of_codes<pack_key<4>>, of_codes<pack_key<8>>},
        {of_codes<pack_value<L, 2>>, of_codes<pack_value<L, 3>>, of_codes<pack_value<L, 4>>,
         of_codes<pack_value<L, 8>>},
        of_codes<project<L>>,
        of_codes<project_back<L>>,
        of_codes<group_ends<L>>,
        of_codes<find_reaching<L>>,
        column_moments<L>,
        row_squares<L>,
        rotate_rows<L>,
        order_row<L>,
        fill_panel<L>,
        sum_panel<L>,
        cube_errors<L>,
        gather_bits<L>,
        encode_trellis<L>,
        to_half<L>,
        from_half<L>,
        to_bfloat<L>,
        from_bfloat<L>,
        max_magnitude<L>,
    };
}

}  // namespace
}  // namespace gearkv
