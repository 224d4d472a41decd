// The attention kernels of kernels/kernels.hpp for one vector level, whose vocabulary L is (arch/lanes.hpp).
#pragma once

#include <xsimd/xsimd.hpp>

#include "attention/codes_dots.inl.hpp"
#include "attention/codes_packs.inl.hpp"
#include "attention/mix_keys.inl.hpp"
#include "attention/outliers.inl.hpp"
#include "attention/sections.inl.hpp"
#include "attention/trellis_dots.inl.hpp"
#include "attention/trellis_packs.inl.hpp"
#include "format/block.hpp"
#include "kernels/exponential.inl.hpp"
#include "kernels/products.inl.hpp"

namespace gearkv {
namespace {

// ---- codes ----

// Of keys and of values: as much code twice would be a tenth of a program with all levels.
template <class L, std::uint32_t bits>
[[gnu::noinline]] void add_strips(const CodeStrip& strip, const CodeRows& rows, std::size_t n_rows) {
    static_assert(max_dim >= tile_tokens);
    if constexpr (has_packs<L>) {
        add_strips_packs<L, bits, max_dim>(strip, rows, n_rows);
    } else {
        add_strips_dots<L, bits, max_dim>(strip, rows, n_rows);
    }
}

template <class L, std::uint32_t bits>
void score_codes(const ScoreCodes& args) {
    constexpr std::size_t unit = unit_codes<bits>;
    constexpr std::size_t unit_words = bits == 3 ? 2 : 1;  // of the low plane
    const std::size_t first_unit = args.first_channel / unit;
    CodeStrip strip = {};
    strip.low = args.words + first_unit * unit_words * lane_tile;
    strip.low_step = unit_words * lane_tile;
    strip.half_step = lane_tile;
    strip.high = args.words;
    if constexpr (bits == 3) strip.high += ((args.dim + 31) / 32 * 2 + first_unit) * lane_tile;
    strip.high_step = lane_tile;
    strip.n_units = (args.n_channels + unit - 1) / unit;
    strip.n_strips = args.n_tiles;
    strip.strip_step = args.tile_words;
    strip.ahead = args.ahead;
    const CodeRows rows = {args.query, args.query_stride, args.scores, args.score_stride, args.bias, false};
    add_strips<L, bits>(strip, rows, args.n_rows);
}

template <class L, std::uint32_t bits>
void mix_codes(const MixCodes& args) {
    constexpr std::size_t unit = unit_codes<bits>;
    const std::size_t n_lanes = args.n_lanes;
    CodeStrip strip = {};
    strip.low = args.words + args.first_channel;
    strip.low_step = (bits == 3 ? 3 : 1) * n_lanes;
    strip.half_step = n_lanes;
    strip.high = strip.low;
    if constexpr (bits == 3) strip.high += 2 * n_lanes;
    strip.high_step = strip.low_step;
    strip.n_units = (args.n_tokens + unit - 1) / unit;
    strip.n_strips = (args.n_channels + lane_tile - 1) / lane_tile;
    strip.strip_step = lane_tile;
    strip.ahead = args.ahead;
    const CodeRows rows = {args.weight,     args.weight_stride, args.out + args.first_channel,
                           args.out_stride, args.bias,          true};
    add_strips<L, bits>(strip, rows, args.n_rows);
}

template <class L>
void fold_halves(const FoldHalves& args) {
    const std::size_t n_padded = (args.n + 31) / 32 * 32;
    for_rows<4>(args.n_rows, [&](std::size_t row, auto n_rows) {
        using Float = typename L::Float;
        const float* x = args.x + row * args.stride;
        float* folded = args.folded + row * args.stride;
        Float bias[n_rows.value];
        unroll<n_rows.value>([&](auto r) GEARKV_INLINE { bias[r] = L::broadcast(0.0f); });
        std::size_t i = 0;
        for (; i + L::width <= args.n; i += L::width) {
            const Float scales = L::load_half(args.scales + i), zeros = L::load_half(args.zeros + i);
            unroll<n_rows.value>([&](auto r) GEARKV_INLINE {
                const Float lanes = L::load(x + r * args.stride + i);
                bias[r] = L::fma(lanes, zeros, bias[r]);
                L::store(folded + r * args.stride + i, lanes * scales);
            });
        }
        for (; i < n_padded; i += L::width) {
            const std::size_t n = args.n > i ? args.n - i : 0;
            const Float scales = L::load_half_first(args.scales + i, n),
                        zeros = L::load_half_first(args.zeros + i, n);
            unroll<n_rows.value>([&](auto r) GEARKV_INLINE {
                const Float lanes = L::load_first(x + r * args.stride + i, n);
                bias[r] = L::fma(lanes, zeros, bias[r]);
                L::store(folded + r * args.stride + i, lanes * scales);
            });
        }
        unroll<n_rows.value>([&](auto r) GEARKV_INLINE { args.bias[row + r] = L::sum(bias[r]); });
    });
}

// ---- trellis ----

template <class L>
void score_trellis(const ScoreTrellis& args) {
    if constexpr (has_packs<L>) {
        score_trellis_packs<L>(args);
    } else {
        score_trellis_dots<L>(args);
    }
}

template <class L>
void mix_trellis(const MixTrellis& args) {
    if constexpr (has_packs<L>) {
        mix_trellis_packs<L>(args);
    } else {
        mix_trellis_dots<L>(args);
    }
}

// ---- rows ----

template <class X>
Matrix<X> matrix_of(const RawRows& rows) {
    const std::size_t n_cols = (rows.n_channels + lane_tile - 1) / lane_tile * lane_tile;
    return {static_cast<const X*>(rows.rows), rows.row_stride, rows.n_tokens, n_cols, rows.ahead};
}

template <class L, class X>
void score_rows(float* scores, std::size_t score_stride, const RawRows& x, const float* query,
                std::size_t query_stride, std::uint32_t n_rows) {
    multiply_rows<L, true>(matrix_of<X>(x), {query, query_stride, scores, score_stride, n_rows});
}

template <class L, class X>
void mix_rows(float* out, std::size_t out_stride, const RawRows& x, const float* weight,
              std::size_t weight_stride, std::uint32_t n_rows) {
    sum_rows<L, true>(matrix_of<X>(x), {weight, weight_stride, out, out_stride, n_rows});
}

// ---- one vector of halves ----

template <class L>
void add_half(float* y, const std::uint16_t* x, float alpha, std::size_t n) {
    const auto factor = L::broadcast(alpha);
    std::size_t t = 0;
    for (; t + L::width <= n; t += L::width)
        L::store(y + t, L::fma(L::load_half(x + t), factor, L::load(y + t)));
    if (t == n) return;
    L::store_first(y + t, L::fma(L::load_half_first(x + t, n - t), factor, L::load_first(y + t, n - t)),
                   n - t);
}

template <class L>
float dot_half(const float* y, const std::uint16_t* x, std::size_t n) {
    using Float = typename L::Float;
    Float sum = L::broadcast(0.0f), other = sum;
    std::size_t t = 0;
    for (; t + 2 * L::width <= n; t += 2 * L::width) {
        sum = L::fma(L::load(y + t), L::load_half(x + t), sum);
        other = L::fma(L::load(y + t + L::width), L::load_half(x + t + L::width), other);
    }
    if (t + L::width <= n) {
        sum = L::fma(L::load(y + t), L::load_half(x + t), sum);
        t += L::width;
    }
    if (t < n) other = L::fma(L::load_first(y + t, n - t), L::load_half_first(x + t, n - t), other);
    return L::sum(sum + other);
}

template <class L>
void scale_half(float* out, const float* x, const std::uint16_t* y, std::size_t n) {
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width)
        L::store(out + i, L::load(x + i) * L::load_half(y + i));
    if (i < n) L::store_first(out + i, L::load_first(x + i, n - i) * L::load_half_first(y + i, n - i), n - i);
}

// ---- softmax ----

template <class L>
float largest(const float* score, std::size_t n, float at_least) {
    using Float = typename L::Float;
    Float most = L::broadcast(at_least);
    for (std::size_t t = 0; t < n; t += L::width) {
        const Float lanes = n - t < L::width ? L::load_first(score + t, n - t, at_least) : L::load(score + t);
        most = xsimd::max(most, lanes);
    }
    return L::largest(most);
}

template <class L>
float softmax_tile(float* weight, const float* score, std::size_t n, float* max, float* sum) {
    using Float = typename L::Float;
    const float most = largest<L>(score, n, *max);
    const std::size_t n_padded = (n + lane_tile - 1) / lane_tile * lane_tile;
    const Float zero = L::broadcast(0.0f);
    if (most == -__builtin_inff()) {
        for (std::size_t t = 0; t < n_padded; t += L::width)
            L::store(weight + t, zero);
        return 1.0f;
    }
    Float total = zero;
    for (std::size_t t = 0; t < n_padded; t += L::width) {
        Float lanes = L::broadcast(-__builtin_inff());
        if (t + L::width <= n) {
            lanes = L::load(score + t);
        } else if (t < n) {
            lanes = L::load_first(score + t, n - t, -__builtin_inff());
        }
        const Float weights = falling_exponential<L>(lanes - L::broadcast(most));
        L::store(weight + t, weights);
        total = total + weights;
    }
    float alpha = 1.0f;
    if (*max != most) {
        alpha = L::largest(falling_exponential<L>(L::broadcast(*max - most)));  // all lanes are equal
    }
    *sum = *sum * alpha + L::sum(total);
    *max = most;
    return alpha;
}

// tanh(y) = -d / (2 + d) with d = exp(-2 |y|) - 1, and the sign of y. Far below the cap the score stays.
template <class L>
void soft_cap(float* x, float cap, std::size_t n) {
    const auto one = L::broadcast(1.0f);
    const auto twice = L::broadcast(-2.0f / cap), largest = L::broadcast(cap);
    const auto unchanged = L::broadcast(cap * 0x1p-12f);
    const auto run = [&](typename L::Float lanes) GEARKV_INLINE {
        const auto sign = L::bits(lanes) & L::broadcast_word(0x80000000u);
        const auto size = L::from_bits(L::bits(lanes) & L::broadcast_word(0x7fffffffu));
        const auto y = size * twice;
        const auto near_one = split_exponential<L>(xsimd::max(y, L::broadcast(-1.0f))).over_one;
        const auto d = xsimd::select(y > L::broadcast(-0.34f), near_one, falling_exponential<L>(y) - one);
        const auto capped = largest * L::divide(L::broadcast(0.0f) - d, L::broadcast(2.0f) + d);
        const auto ruled = xsimd::select(size <= unchanged, size, capped);
        return L::from_bits(L::bits(ruled) | sign);
    };
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width)
        L::store(x + i, run(L::load(x + i)));
    if (i < n) L::store_first(x + i, run(L::load_first(x + i, n - i)), n - i);
}

template <class L>
void scale(float* x, float alpha, std::size_t n) {
    const auto factor = L::broadcast(alpha);
    std::size_t i = 0;
    for (; i + L::width <= n; i += L::width)
        L::store(x + i, L::load(x + i) * factor);
    if (i < n) L::store_first(x + i, L::load_first(x + i, n - i) * factor, n - i);
}

template <class L>
std::uint32_t find_slices(const float* weight, float least) {
    std::uint32_t slices = 0;
    const auto limit = L::broadcast(least);
    constexpr std::uint32_t none = (1u << L::width) - 1;
    for (std::uint32_t i = 0; i < tile_tokens / slice_tokens; ++i) {
        auto most = L::load(weight);
        for (std::size_t t = L::width; t < slice_tokens; t += L::width)
            most = xsimd::max(most, L::load(weight + t));
        slices |= static_cast<std::uint32_t>(L::lane_bits(L::less(most, limit)) != none) << i;
        weight += slice_tokens;
    }
    return slices;
}

template <class L>
constexpr AttentionKernels make_attention_kernels() {
    return {
        {of_codes<score_codes<L, 2>>, of_codes<score_codes<L, 3>>, of_codes<score_codes<L, 4>>,
         of_codes<score_codes<L, 8>>},
        {of_codes<mix_codes<L, 2>>, of_codes<mix_codes<L, 3>>, of_codes<mix_codes<L, 4>>,
         of_codes<mix_codes<L, 8>>},
        of_codes<fold_halves<L>>,
        score_trellis<L>,
        mix_trellis<L>,
        mix_keys<L>,
        fold_keys<L>,
        estimate_keys<L>,
        fold_weights<L>,
        add_scaled<L>,
        of_codes<score_outliers<L>>,
        of_codes<mix_outliers<L>>,
        score_rows<L, std::uint16_t>,
        score_rows<L, float>,
        mix_rows<L, std::uint16_t>,
        mix_rows<L, float>,
        add_half<L>,
        dot_half<L>,
        of_codes<scale_half<L>>,
        softmax_tile<L>,
        soft_cap<L>,
        scale<L>,
        find_slices<L>,
        factor_step<L>,
    };
}

}  // namespace
}  // namespace gearkv
