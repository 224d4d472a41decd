// Products of code words with a few vectors in floats. A word is unpacked once for all rows: each of its
// fields becomes a vector of floats that is multiplied with the factor of that depth, broadcast. Sums stay in
// registers over all words of a strip.
#pragma once

#include "ahead.inl.hpp"
#include "attention/code_strips.inl.hpp"

namespace gearkv {
namespace {

// Sums of n_rows rows and n_vectors vectors of lanes. With few rows every sum is split in parts, for enough
// of them to hide the latency of a multiply-add.
template <class L, std::size_t n_rows_, std::size_t n_vectors_>
struct CodeSums {
    using Float = typename L::Float;
    static constexpr std::size_t n_rows = n_rows_;
    static constexpr std::size_t n_vectors = n_vectors_;
    static constexpr std::size_t n_parts = n_rows * n_vectors >= 8 ? 1 : 8 / (n_rows * n_vectors);
    Float sums[n_parts][n_rows][n_vectors];

    [[gnu::always_inline]] void clear() {
        unroll<n_parts>([&](auto part) GEARKV_INLINE {
            unroll<n_rows>([&](auto r) GEARKV_INLINE {
                unroll<n_vectors>([&](auto v) GEARKV_INLINE { sums[part][r][v] = L::broadcast(0.0f); });
            });
        });
    }
    // Adds one code of every lane; `depth` counts within a word.
    template <std::size_t depth>
    [[gnu::always_inline]] void add(const Float (&codes)[n_vectors], const float* factor,
                                    std::size_t stride) {
        unroll<n_rows>([&](auto r) GEARKV_INLINE {
            const Float weight = L::broadcast(factor[r * stride + depth]);
            unroll<n_vectors>([&](auto v) GEARKV_INLINE {
                Float& sum = sums[depth % n_parts][r][v];
                sum = L::fma(codes[v], weight, sum);
            });
        });
    }
    [[gnu::always_inline]] void put(const CodeRows& rows, float* out, const float* bias) {
        unroll<n_rows>([&](auto r) GEARKV_INLINE {
            const Float more = L::broadcast(bias[r]);
            unroll<n_vectors>([&](auto v) GEARKV_INLINE {
                Float sum = sums[0][r][v];
                unroll<n_parts - 1>([&](auto part) GEARKV_INLINE { sum = sum + sums[part + 1][r][v]; });
                put_sum<L>(out + r * rows.out_stride + v * L::width, sum + more, rows.is_added);
            });
        });
    }
};

// All codes of one word of each lane; byte i, field p is at depth 4 p + i.
template <class L, std::uint32_t bits, class Sums>
[[gnu::always_inline]] inline void add_word(Sums& sums, const std::uint32_t* low, const CodeRows& rows,
                                            const float* factor) {
    typename L::Words words[Sums::n_vectors];
    unroll<Sums::n_vectors>([&](auto v) GEARKV_INLINE { words[v] = L::load_words(low + v * L::width); });
    unroll<32 / bits>([&](auto depth) GEARKV_INLINE {
        constexpr std::uint32_t first = 8 * (depth.value % 4) + bits * (depth.value / 4);
        typename L::Float codes[Sums::n_vectors];
        unroll<Sums::n_vectors>([&](auto v)
                                    GEARKV_INLINE { codes[v] = L::template field<bits, first>(words[v]); });
        sums.template add<depth.value>(codes, factor, rows.factor_stride);
    });
}

// Bit `from` of every byte, moved to bit `to`; the others are 0.
template <class L, std::uint32_t from, std::uint32_t to>
[[gnu::always_inline]] inline typename L::Words move_bits(typename L::Words a) {
    if constexpr (from < to) a = L::template shift_left<to - from>(a);
    if constexpr (from > to) a = L::template shift_right<from - to>(a);
    return a & L::broadcast_word(0x01010101u << to);
}

// 3 bits: the codes of two fields of every byte, `field` and `field` + 2 of `low` with bits `at` and `at` + 2
// of `high`, as the low and the high half of the byte.
template <class L, std::uint32_t field, std::uint32_t at>
[[gnu::always_inline]] inline typename L::Words join_planes(typename L::Words low, typename L::Words high) {
    if constexpr (field > 0) low = L::template shift_right<2 * field>(low);
    return (low & L::broadcast_word(0x33333333)) | move_bits<L, at, 2>(high) | move_bits<L, at + 2, 6>(high);
}

// 3 bits: one word of the low plane with bits 4 * `half` and up of every byte of the high plane.
template <class L, std::uint32_t half, class Sums>
[[gnu::always_inline]] inline void add_split_word(Sums& sums, const std::uint32_t* low,
                                                  const std::uint32_t* high, const CodeRows& rows,
                                                  const float* factor) {
    typename L::Words joined[2][Sums::n_vectors];
    unroll<Sums::n_vectors>([&](auto v) GEARKV_INLINE {
        const auto low_word = L::load_words(low + v * L::width);
        const auto high_word = L::load_words(high + v * L::width);
        joined[0][v] = join_planes<L, 0, 4 * half>(low_word, high_word);
        joined[1][v] = join_planes<L, 1, 4 * half + 1>(low_word, high_word);
    });
    unroll<16>([&](auto depth) GEARKV_INLINE {
        constexpr std::uint32_t byte = depth.value % 4, field = depth.value / 4;
        typename L::Float codes[Sums::n_vectors];
        unroll<Sums::n_vectors>([&](auto v) GEARKV_INLINE {
            codes[v] = L::template field<3, 8 * byte + 4 * (field / 2)>(joined[field % 2][v]);
        });
        sums.template add<depth.value>(codes, factor, rows.factor_stride);
    });
}

template <class L, std::uint32_t bits, std::size_t n_rows, std::size_t n_vectors>
void add_strip_part(const CodeStrip& strip, const CodeRows& rows, std::size_t row, std::size_t lane,
                    AheadLines& lines) {
    LocalAhead ahead(&lines);
    CodeSums<L, n_rows, n_vectors> sums;
    sums.clear();
    const float* factor = rows.factor + row * rows.factor_stride;
    const std::uint32_t* low = strip.low + lane;
    const std::uint32_t* high = strip.high + lane;
    for (std::size_t unit = 0; unit < strip.n_units; ++unit) {
        ahead.step();
        if constexpr (bits == 3) {
            add_split_word<L, 0>(sums, low, high, rows, factor);
            add_split_word<L, 1>(sums, low + strip.half_step, high, rows, factor + 16);
            high += strip.high_step;
        } else {
            add_word<L, bits>(sums, low, rows, factor);
        }
        low += strip.low_step;
        factor += unit_codes<bits>;
    }
    sums.put(rows, rows.out + row * rows.out_stride + lane, rows.bias + row);
}

// Sums take half of the registers.
template <class L, std::uint32_t bits>
void add_strips_floats(CodeStrip strip, CodeRows rows, std::size_t n_rows) {
    AheadLines ahead(strip.ahead, strip.n_units * strip.n_strips);
    for (std::size_t i = 0; i < strip.n_strips; ++i) {
        for_rows<max_rows>(n_rows, [&](std::size_t row, auto n) {
            constexpr std::size_t most = L::n_registers / 2 / n.value;
            constexpr std::size_t n_vectors = most < lane_tile / L::width ? most : lane_tile / L::width;
            for (std::size_t lane = 0; lane < lane_tile; lane += n_vectors * L::width)
                add_strip_part<L, bits, n.value, n_vectors>(strip, rows, row, lane, ahead);
        });
        strip.low += strip.strip_step;
        strip.high += strip.strip_step;
        rows.out += lane_tile;
    }
}

}  // namespace
}  // namespace gearkv
