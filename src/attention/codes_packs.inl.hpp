// Products of code words with a few vectors by integer dot products with packs (packs.inl.hpp).
#pragma once

#include "attention/codes_dots.inl.hpp"
#include "attention/packs.inl.hpp"
#include "kernels/ahead.inl.hpp"

namespace gearkv {
namespace {

// Units that one round takes: whole packs.
template <class L, std::uint32_t bits>
inline constexpr std::size_t pack_units = unit_codes<bits> / 4 >= L::pack_words
                                              ? 1
                                              : L::pack_words / (unit_codes<bits> / 4);

// Two vectors of lanes, side by side.
template <class L, std::uint32_t bits, std::size_t n_rows, std::size_t n>
void add_pack_strip(const CodeStrip& strip, std::size_t lane, const PackedFactors<L, n>& factors,
                    std::size_t row, float* out, std::size_t out_stride) {
    using Words = typename L::Words;
    constexpr std::size_t unit_words = unit_codes<bits> / 4;  // of factors
    PackSums<L, n_rows, 2> sums;
    sums.template start<code_bias<L, bits>>(factors.scale + row);
    const std::uint32_t* low = strip.low + lane;
    const std::uint32_t* high = strip.high + lane;
    const std::uint32_t* packs = factors.at(row);
    // The words at `at`, whose fields meet factors from word `first` of the round on; third bits as above.
    const auto add_words = [&](const std::uint32_t* at, auto first, auto from) GEARKV_INLINE {
        Words words[2], thirds[2];
        unroll<2>([&](auto v) GEARKV_INLINE {
            words[v] = L::load_words(at + v * L::width);
            thirds[v] = bits == 3 ? L::load_words(high + v * L::width) : words[v];
        });
        constexpr std::size_t n_fields = bits == 3 ? 4 : 8 / bits;
        unroll<n_fields>([&](auto p) GEARKV_INLINE {
            constexpr std::size_t word = (first.value + p.value) % L::pack_words;
            if constexpr (word == 0) sums.load(packs);
            Words bytes[2];
            unroll<2>([&](auto v) GEARKV_INLINE {
                bytes[v] = code_bytes<L, bits, p.value, from.value + p.value>(words[v], thirds[v]);
            });
            sums.template add<word>(bytes);
        });
    };
    constexpr std::size_t units = pack_units<L, bits>;
    for (std::size_t unit = 0; unit < strip.n_units; unit += units) {
        unroll<units>([&](auto u) GEARKV_INLINE {
            add_words(low, Index<u.value * unit_words>(), Index<0>());
            if constexpr (bits == 3) {
                add_words(low + strip.half_step, Index<u.value * unit_words + 4>(), Index<4>());
                high += strip.high_step;
            }
            // The last pack may have too many words, whose factors are 0: these meet the last codes again.
            if (units == 1 || unit + u + 1 < strip.n_units) low += strip.low_step;
        });
    }
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<2>([&](auto v) GEARKV_INLINE {
            float* at = out + r * out_stride + v * L::width;
            L::store(at, L::load(at) + sums.template sum<r.value, v.value>(factors.scale + row));
        });
    });
}

// The fields of a strip as words of bytes.
template <class L, std::uint32_t bits>
[[gnu::noinline]] void lay_down_codes(std::uint32_t* to, const CodeStrip& strip) {
    const std::uint32_t *low = strip.low, *high = strip.high;
    const auto put_words = [&](const std::uint32_t* at, auto from) GEARKV_INLINE {
        constexpr std::size_t n_fields = bits == 3 ? 4 : 8 / bits;
        for (std::size_t lane = 0; lane < lane_tile; lane += L::width) {
            const auto words = L::load_words(at + lane);
            const auto thirds = bits == 3 ? L::load_words(high + lane) : words;
            unroll<n_fields>([&](auto p) GEARKV_INLINE {
                L::store_words(to + p * lane_tile + lane,
                               code_bytes<L, bits, p.value, from.value + p.value>(words, thirds));
            });
        }
        to += n_fields * lane_tile;
    };
    for (std::size_t unit = 0; unit < strip.n_units; ++unit) {
        put_words(low, Index<0>());
        if constexpr (bits == 3) {
            put_words(low + strip.half_step, Index<4>());
            high += strip.high_step;
        }
        low += strip.low_step;
    }
}

// What the products are added to, two vectors of lanes a row.
template <class L, std::size_t n_rows>
[[gnu::always_inline]] inline void start_rows(float* to, const CodeRows& rows, std::size_t row) {
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        const typename L::Float bias = L::broadcast(rows.bias[row + r]);
        unroll<2>([&](auto v) GEARKV_INLINE {
            float* at = to + r * rows.out_stride + v * L::width;
            put_sum<L>(at, bias, rows.is_added);
        });
    });
}

template <class L, std::uint32_t bits, std::size_t n>
void add_strips_packs(CodeStrip strip, const CodeRows& rows, std::size_t n_rows) {
    PackedFactors<L, n> factors;
    for (std::size_t row = 0; row < n_rows; ++row) {
        pack_factors<L, code_bias<L, bits> != 0>(&factors, row, rows.factor + row * rows.factor_stride,
                                                 strip.n_units * unit_codes<bits>);
    }
    // As with values (trellis_packs.inl.hpp).
    constexpr bool lays_down = L::pack_words == 1;
    std::uint32_t levels[lays_down ? n / 4 : 1][lane_tile];
    const std::size_t n_words = strip.n_units * unit_codes<bits> / 4;
    AheadLines ahead(strip.ahead, strip.n_strips);
    float* out = rows.out;
    for (std::size_t i = 0; i < strip.n_strips; ++i) {
        ahead.step();
        if constexpr (lays_down) lay_down_codes<L, bits>(levels[0], strip);
        for_rows<4>(n_rows, [&](std::size_t row, auto n_now) {
            for (std::size_t lane = 0; lane < lane_tile; lane += 2 * L::width) {
                float* at = out + row * rows.out_stride + lane;
                start_rows<L, n_now.value>(at, rows, row);
                if constexpr (lays_down) {
                    multiply_words<L, n_now.value, lane_tile, code_bias<L, bits>, true>(
                        levels[0] + lane, (n_words + pack_round - 1) / pack_round, factors.at(row),
                        factors.scale + row, at, rows.out_stride);
                } else {
                    add_pack_strip<L, bits, n_now.value>(strip, lane, factors, row, at, rows.out_stride);
                }
            }
        });
        strip.low += strip.strip_step;
        strip.high += strip.strip_step;
        out += lane_tile;
    }
}

}  // namespace
}  // namespace gearkv
