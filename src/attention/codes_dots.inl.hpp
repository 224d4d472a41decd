// Products of code words with a few vectors by integer dot products: a field of every byte of a word is four
// neighbours along the depth, which meet four factors at once (dots.inl.hpp).
//
// Beside the products in floats, 128 tokens of 128 channels, one and four rows, on Zen 5: avx512 .30 to .55
// of the time, avx2 .56 to 1.09 (3 bits, four rows).
#pragma once

#include "attention/code_strips.inl.hpp"
#include "attention/dots.inl.hpp"
#include "kernels/ahead.inl.hpp"

namespace gearkv {
namespace {

// What the bytes of dot products are above the codes.
template <class L, std::uint32_t bits>
inline constexpr std::int32_t code_bias = bits == 8 && L::signed_bytes ? -128 : 0;

// Field p of every byte of a word; with 3 bits its third bits are bits `from` of `high`.
template <class L, std::uint32_t bits, std::uint32_t p, std::uint32_t from>
[[gnu::always_inline]] inline typename L::Words code_bytes(typename L::Words low, typename L::Words high) {
    constexpr std::uint32_t width = bits == 3 ? 2 : bits;
    if constexpr (bits == 8) {
        return L::signed_bytes ? low ^ L::broadcast_word(0x80808080u) : low;
    } else {
        if constexpr (p > 0) low = L::template shift_right<width * p>(low);
        const auto bytes = low & L::broadcast_word(((1u << width) - 1) * 0x01010101u);
        if constexpr (bits != 3) {
            return bytes;
        } else {
            if constexpr (from < 2) high = L::template shift_left<2 - from>(high);
            if constexpr (from > 2) high = L::template shift_right<from - 2>(high);
            return L::merge(L::broadcast_word(0x04040404u), high, bytes);
        }
    }
}

// Two vectors of lanes, vector_step words apart and side by side in the output; with a step of 0 they are the
// same, and one is stored.
template <class L, std::uint32_t bits, std::size_t n_rows, std::size_t n>
void add_dot_strips(const CodeStrip& strip, std::size_t lane, std::size_t vector_step,
                    const DotFactors<n>& factors, const CodeRows& rows, std::size_t row, AheadLines& lines) {
    constexpr std::size_t n_vectors = 2;
    LocalAhead ahead(&lines);
    using Words = typename L::Words;
    DotSums<L, n_rows, n_vectors> sums;
    sums.start(factors.scale + row, code_bias<L, bits>);
    const std::uint32_t* low = strip.low + lane;
    const std::uint32_t* high = strip.high + lane;
    const std::uint32_t *first_word = factors.first[row], *second_word = factors.second[row];
    // The words at `low`, whose third bits start at bit `first` of the high plane.
    const auto add_words = [&](const std::uint32_t* at, auto first) GEARKV_INLINE {
        Words words[n_vectors], thirds[n_vectors];
        unroll<n_vectors>([&](auto v) GEARKV_INLINE {
            words[v] = L::load_words(at + v * vector_step);
            thirds[v] = bits == 3 ? L::load_words(high + v * vector_step) : words[v];
        });
        constexpr std::size_t n_fields = bits == 3 ? 4 : 8 / bits;
        unroll<n_fields>([&](auto p) GEARKV_INLINE {
            Words bytes[n_vectors];
            unroll<n_vectors>([&](auto v) GEARKV_INLINE {
                bytes[v] = code_bytes<L, bits, p.value, first.value + p.value>(words[v], thirds[v]);
            });
            sums.template add<p.value>(bytes, first_word + p, second_word + p, n / 4);
        });
        first_word += n_fields;
        second_word += n_fields;
    };
    for (std::size_t unit = 0; unit < strip.n_units; ++unit) {
        ahead.step();
        add_words(low, Index<0>());
        if constexpr (bits == 3) {
            add_words(low + strip.half_step, Index<4>());
            high += strip.high_step;
        }
        low += strip.low_step;
    }
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        float* out = rows.out + (row + r) * rows.out_stride + lane;
        const typename L::Float bias = L::broadcast(rows.bias[row + r]);
        unroll<n_vectors>([&](auto v) GEARKV_INLINE {
            if (v == 1 && vector_step == 0) return;
            put_sum<L>(out + v * L::width, sums.template sum<r.value, v.value>(factors.scale + row) + bias,
                       rows.is_added);
        });
    });
}

// Sums of high and low bytes take half of the registers.
template <class L, std::uint32_t bits, std::size_t n>
void add_strips_dots(CodeStrip strip, CodeRows rows, std::size_t n_rows) {
    DotFactors<n> factors;
    set_factors<L, false>(&factors, rows.factor, rows.factor_stride, strip.n_units * unit_codes<bits>,
                          n_rows);
    constexpr std::size_t at_once = 2 * L::width < lane_tile ? lane_tile : 2 * L::width;  // lanes
    AheadLines ahead(strip.ahead, strip.n_units * ((strip.n_strips * lane_tile + at_once - 1) / at_once));
    const auto add = [&](std::size_t lane, std::size_t step) {
        for_rows<most_dot_sums<L> / 2>(n_rows, [&](std::size_t row, auto n_now) {
            add_dot_strips<L, bits, n_now.value>(strip, lane, step, factors, rows, row, ahead);
        });
    };
    for (std::size_t i = 0; i < strip.n_strips;) {
        std::size_t n_done = 1;
        if constexpr (L::width == lane_tile) {  // two strips at once where there are
            if (i + 2 <= strip.n_strips) n_done = 2;
            add(0, n_done == 2 ? strip.strip_step : 0);
        } else {
            for (std::size_t lane = 0; lane < lane_tile; lane += 2 * L::width)
                add(lane, L::width);
        }
        i += n_done;
        strip.low += n_done * strip.strip_step;
        strip.high += n_done * strip.strip_step;
        rows.out += n_done * lane_tile;
    }
}

}  // namespace
}  // namespace gearkv
