// Integer dot products of bytes with factors (dots.inl.hpp) for levels whose registers hold more than one
// word of factors, or whose products of a word need more than one sum: the level says what a pack of factors,
// bytes made ready and a sum are, and the kernels keep packs and sums of up to four rows in registers.
//
// A pack is L::pack_words words of four factors of one row, 2 L::pack_words words in memory.
#pragma once

#include "attention/dots.inl.hpp"
#include "format/block.hpp"
#include "kernels/kernels.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

template <class L>
inline constexpr bool has_packs = L::pack_words > 0;

// Words of a round of the loops over packs: as many as round_to_shorts fills up.
inline constexpr std::size_t pack_round = 4;

// A few rows of up to n factors. Packs of four rows follow each other.
template <class L, std::size_t n>
struct PackedFactors {
    static constexpr std::size_t n_packs = (n / 4 + L::pack_words - 1) / L::pack_words;
    static constexpr std::size_t step = 4 * 2 * L::pack_words;  // from pack to pack of a row
    alignas(64) std::uint32_t words[max_rows / 4][n_packs][4][2 * L::pack_words];
    FactorScale scale[max_rows];

    std::uint32_t* at(std::size_t row) { return words[row / 4][0][row % 4]; }
    const std::uint32_t* at(std::size_t row) const { return words[row / 4][0][row % 4]; }
};

// Rounds n factors, a multiple of 4, to integers and fills up with zeros to a multiple of 16.
template <class L>
FactorScale round_to_shorts(const float* x, std::size_t n, std::int16_t* integers) {
    using Float = typename L::Float;
    constexpr std::size_t step = 4 * L::width;
    static_assert(step == 16);
    const typename L::Words magnitude = L::broadcast_word(0x7fffffff);
    const auto size = [&](std::size_t i)
                          GEARKV_INLINE { return L::from_bits(L::bits(L::load(x + i)) & magnitude); };
    Float most[4];
    unroll<4>([&](auto part) GEARKV_INLINE { most[part] = L::broadcast(0.0f); });
    std::size_t i = 0;
    for (; i + step <= n; i += step) {
        unroll<4>([&](auto part)
                      GEARKV_INLINE { most[part] = xsimd::max(size(i + part * L::width), most[part]); });
    }
    for (; i < n; i += L::width)
        most[0] = xsimd::max(size(i), most[0]);
    const float end = L::largest(xsimd::max(xsimd::max(most[0], most[1]), xsimd::max(most[2], most[3])));
    const float limit = integer_limit<L>(n);
    constexpr float least = 0x1p-100f;  // what is smaller is taken for 0
    const Float factor = L::broadcast(end > least ? limit / end : 0.0f);
    for (i = 0; i + step <= n; i += step)
        L::round_shorts(integers + i, x + i, factor);
    if (i < n) {
        float rest[step] = {};
        __builtin_memcpy(rest, x + i, (n - i) * sizeof(float));
        L::round_shorts(integers + i, rest, factor);
    }
    const float unit = end > least ? end / limit : end * 0.0f;
    return {L::one_sum ? unit : 256.0f * unit, unit, 0, 0};
}

// The sums of the factors, which bytes that are too large by the same for all need.
template <class L>
void sum_factors(FactorScale* scale, const std::int16_t* integers, std::size_t n) {
    std::int32_t sum = 0, high_sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
        sum += integers[i];
        if constexpr (!L::one_sum) high_sum += (integers[i] + 128) >> 8;
    }
    scale->first_sum = L::one_sum ? sum : high_sum;
    scale->second_sum = sum - 256 * high_sum;
}

// A row of n_factors, a multiple of 4, in natural order. The factors that the last pack has too much are 0.
template <class L, bool with_sums, std::size_t n>
void pack_factors(PackedFactors<L, n>* factors, std::size_t row, const float* x, std::size_t n_factors) {
    std::int16_t integers[(n + 15) / 16 * 16];
    factors->scale[row] = round_to_shorts<L>(x, n_factors, integers);
    if constexpr (with_sums) sum_factors<L>(factors->scale + row, integers, n_factors);
    constexpr std::size_t packs = 4 / L::pack_words;  // of 16 factors
    for (std::size_t i = 0; i < n_factors; i += 16) {
        L::pack_shorts(factors->at(row) + i / 16 * packs * factors->step, factors->step, integers + i);
    }
}

// A row whose words have the factors 32 j + k, + 8, + 16, + 24 at [j][place of k], the order of visit_levels.
template <class L, std::size_t n>
void pack_factors_by_eights(PackedFactors<L, n>* factors, std::size_t row, const float* x) {
    std::int16_t integers[n];
    factors->scale[row] = round_to_shorts<L>(x, n, integers);
    constexpr std::size_t packs = 8 / L::pack_words;  // of 32 factors
    for (std::size_t i = 0; i < n; i += 32) {
        L::pack_eights(factors->at(row) + i / 32 * packs * factors->step, factors->step, integers + i);
    }
}

template <class L, std::size_t n_rows_, std::size_t n_vectors_>
struct PackSums {
    static constexpr std::size_t n_rows = n_rows_;
    static constexpr std::size_t n_vectors = n_vectors_;
    typename L::PackSum sums[n_rows][n_vectors];
    typename L::Pack packs[n_rows];

    // What the bytes have too much, `bias` each, is taken off before they are added.
    template <std::int32_t bias>
    [[gnu::always_inline]] void start(const FactorScale* scale) {
        unroll<n_rows>([&](auto r) GEARKV_INLINE {
            unroll<n_vectors>([&](auto v) GEARKV_INLINE {
                sums[r][v] = bias == 0
                                 ? L::start_sum(0, 0)
                                 : L::start_sum(-bias * scale[r].first_sum, -bias * scale[r].second_sum);
            });
        });
    }
    // Takes the packs of the rows that lie at `words`, which then points to the next ones.
    [[gnu::always_inline]] void load(const std::uint32_t*& words) {
        L::template load_packs<n_rows>(packs, words);
    }
    // Adds four bytes of every lane, which meet word `word` of the packs.
    template <std::size_t word>
    [[gnu::always_inline]] void add(const typename L::Words (&bytes)[n_vectors]) {
        unroll<n_vectors>([&](auto v) GEARKV_INLINE {
            const auto ready = L::ready_bytes(bytes[v]);
            unroll<n_rows>([&](auto r)
                               GEARKV_INLINE { L::template add_product<word>(sums[r][v], ready, packs[r]); });
        });
    }
    template <std::size_t r, std::size_t v>
    [[gnu::always_inline]] typename L::Float sum(const FactorScale* scale) const {
        return L::finish_sum(sums[r][v], scale[r].first, scale[r].second);
    }
};

// Sums of two vectors of lanes over n_rounds rounds of words, which lie word_step apart. Not inlined, the
// loop keeps its registers to itself.
template <class L, std::size_t n_rows, std::size_t word_step, std::int32_t bias = 0, bool accumulate = false>
[[gnu::noinline]] void multiply_words(const std::uint32_t* words, std::size_t n_rounds,
                                      const std::uint32_t* packs, const FactorScale* scale, float* out,
                                      std::size_t out_stride) {
    constexpr std::size_t pack_step = 4 * 2 * L::pack_words;
    PackSums<L, n_rows, 2> sums;
    sums.template start<bias>(scale);
    const std::uint32_t* end = packs + n_rounds * (pack_round / L::pack_words) * pack_step;
    while (packs != end) {
        unroll<pack_round>([&](auto word) GEARKV_INLINE {
            if constexpr (word % L::pack_words == 0) sums.load(packs);
            const typename L::Words bytes[2] = {L::load_words(words), L::load_words(words + L::width)};
            sums.template add<word % L::pack_words>(bytes);
            words += word_step;
        });
    }
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<2>([&](auto v) GEARKV_INLINE {
            float* at = out + r * out_stride + v * L::width;
            const auto sum = sums.template sum<r.value, v.value>(scale);
            L::store(at, accumulate ? L::load(at) + sum : sum);
        });
    });
}

}  // namespace
}  // namespace gearkv
