// Products of trellis sections with a few vectors by integer dot products, for levels of the machine that
// have them: a word of four levels meets four factors at once (dots.inl.hpp).
//
// Beside the products in floats, 128 tokens of 128 channels, one and four rows, on Zen 5: avx512 .48 to .62
// of the time, avx2 .58 to .98.
#pragma once

#include "attention/dots.inl.hpp"
#include "attention/levels.inl.hpp"
#include "kernels/ahead.inl.hpp"

namespace gearkv {
namespace {

// What the biased bytes of levels have too much.
inline constexpr std::int32_t dot_bias = 128;

// ---- scores ----

struct DotScoreWork {
    KeyLevels levels[most_granules];
    DotFactors<most_granules * key_granule> factors;  // queries
    float sums[max_rows][8][key_plane_words];         // [row][k][l]
};

template <class L, std::size_t n_rows, std::size_t n_tokens>
void score_dot_lanes(DotScoreWork& work, const KeyLevels* key_levels, std::size_t n_granules, std::size_t row,
                     std::size_t lane, std::size_t first_k, AheadLines& lines) {
    LocalAhead ahead(&lines);
    constexpr std::size_t stride = decltype(work.factors)::n_words;
    DotSums<L, n_rows, n_tokens> sums;
    sums.start(work.factors.scale + row, dot_bias);
    for (std::size_t g = 0; g < n_granules; ++g) {
        ahead.step();
        typename L::Words levels[n_tokens];
        unroll<n_tokens>([&](auto k)
                             GEARKV_INLINE { levels[k] = L::load_words(key_levels[g][first_k + k] + lane); });
        sums.template add<0>(levels, work.factors.first[row] + g, work.factors.second[row] + g, stride);
    }
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<n_tokens>([&](auto k) GEARKV_INLINE {
            L::store(work.sums[row + r][first_k + k] + lane,
                     sums.template sum<r.value, k.value>(work.factors.scale + row));
        });
    });
}

// At most most_granules granules, those of width 0 left out.
template <class L>
void score_dot_granules(DotScoreWork& work, const ScoreTrellis& args) {
    const WidthOrder order(args.widths, args.n_granules);
    join_key_levels<L, LevelForm::biased>(work.levels, args.words, order);
    const std::size_t first = order.first[1], n = args.n_granules - first;
    float query[max_rows][most_granules * key_granule];
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t row = 0; row < args.n_rows; ++row) {
            __builtin_memcpy(query[row] + i * key_granule,
                             args.query + row * args.query_stride + order.granule[first + i] * key_granule,
                             key_granule * sizeof(float));
        }
    }
    set_factors<L, false>(&work.factors, query[0], most_granules * key_granule, n * key_granule, args.n_rows);
    // Eight sums of each lane: passes over 8 / n_tokens of them.
    constexpr std::size_t most_rows = 2, two = most_dot_sums<L> / 2, one = most_dot_sums<L>;
    static_assert(one <= 8);
    const std::size_t n_passes = args.n_rows / 2 * (8 / two) + args.n_rows % 2 * (8 / one);
    AheadLines ahead(args.ahead, args.also, n * n_passes * (key_plane_words / L::width));
    for_rows<most_rows>(args.n_rows, [&](std::size_t row, auto n_rows) {
        constexpr std::size_t n_tokens = n_rows == 2 ? two : one;
        for (std::size_t lane = 0; lane < key_plane_words; lane += L::width) {
            for (std::size_t k = 0; k < 8; k += n_tokens) {
                score_dot_lanes<L, n_rows.value, n_tokens>(work, work.levels + first, n, row, lane, k, ahead);
            }
        }
    });
    for (std::size_t row = 0; row < args.n_rows; ++row)
        add_transposed<L>(args.scores + row * args.score_stride, work.sums[row]);
}

template <class L>
void score_trellis_dots(const ScoreTrellis& args) {
    DotScoreWork work;
    for_granules(args, [&](const ScoreTrellis& part) { score_dot_granules<L>(work, part); });
}

// ---- mix ----

using DotWeights = DotFactors<section_tokens>;

template <class L, std::uint32_t width, std::size_t n_rows>
void mix_dot_lanes(const std::uint32_t* words, const SliceRounds& rounds, const DotWeights& weights,
                   std::size_t row, float* out, std::size_t out_stride, AheadLines& lines) {
    LocalAhead ahead(&lines);
    DotSums<L, n_rows, 1> sums;
    sums.start(weights.scale + row, dot_bias);
    visit_value_levels<L, width, LevelForm::biased>(
        words, rounds, [&](auto k, auto levels, std::size_t token) GEARKV_INLINE {
            if constexpr (k == 0) ahead.step();
            const typename L::Words bytes[1] = {levels};
            sums.template add<k.value>(bytes, weights.first[row] + token / 4 + k,
                                       weights.second[row] + token / 4 + k, DotWeights::n_words);
        });
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        L::store(out + r * out_stride, sums.template sum<r.value, 0>(weights.scale + row));
    });
}

template <class L, std::size_t n_rows>
void mix_dot_granule(const std::uint32_t* words, std::uint32_t width, const SliceRounds& rounds,
                     const DotWeights& weights, std::size_t row, float* out, std::size_t out_stride,
                     AheadLines& ahead) {
    for (std::size_t lane = 0; lane < value_granule; lane += L::width) {
        switch (width) {
            case 1:
                mix_dot_lanes<L, 1, n_rows>(words + lane, rounds, weights, row, out + lane, out_stride,
                                            ahead);
                break;
            case 2:
                mix_dot_lanes<L, 2, n_rows>(words + lane, rounds, weights, row, out + lane, out_stride,
                                            ahead);
                break;
            case 3:
                mix_dot_lanes<L, 3, n_rows>(words + lane, rounds, weights, row, out + lane, out_stride,
                                            ahead);
                break;
            case 4:
                mix_dot_lanes<L, 4, n_rows>(words + lane, rounds, weights, row, out + lane, out_stride,
                                            ahead);
                break;
            default:
                for (std::size_t r = 0; r < n_rows; ++r)
                    L::store(out + r * out_stride + lane, L::broadcast(0.0f));
        }
    }
}

// Levels laid down as words.
using ValueLevels = std::uint32_t[section_tokens / 4][value_granule];

template <class L, std::uint32_t width>
void lay_down_values(ValueLevels& levels, const std::uint32_t* words, const SliceRounds& rounds,
                     AheadLines& lines) {
    LocalAhead ahead(&lines);
    for (std::size_t lane = 0; lane < value_granule; lane += L::width) {
        visit_value_levels<L, width, LevelForm::biased>(
            words + lane, rounds, [&](auto k, auto joined, std::size_t token) GEARKV_INLINE {
                if constexpr (k == 0) ahead.step();
                L::store_words(levels[token / 4 + k] + lane, joined);
            });
    }
}

// Two vectors of lanes.
template <class L, std::size_t n_rows>
[[gnu::noinline]] void multiply_levels(const std::uint32_t* levels, std::size_t n_words,
                                       const DotWeights& weights, std::size_t row, float* out,
                                       std::size_t out_stride) {
    const std::uint32_t *first = weights.first[row], *second = weights.second[row];
    DotSums<L, n_rows, 2> sums;
    sums.start(weights.scale + row, dot_bias);
    for (const std::uint32_t* end = first + n_words; first < end; first += 2, second += 2) {
        unroll<2>([&](auto part) GEARKV_INLINE {
            const typename L::Words words[2] = {L::load_words(levels), L::load_words(levels + L::width)};
            sums.template add<part.value>(words, first + part, second + part, DotWeights::n_words);
            levels += value_granule;
        });
    }
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<2>([&](auto v) GEARKV_INLINE {
            L::store(out + r * out_stride + v * L::width,
                     sums.template sum<r.value, v.value>(weights.scale + row));
        });
    });
}

// For several rows: with few registers, unpacking and products have them one after the other, and all rows
// share what is unpacked. Beside mix_dot_granule with avx2, four and eight rows .92 and .89 of the time of
// attention with gear-2, and a fifth of the code; with 32 registers it would take more time than that.
template <class L>
void mix_laid_granule(const std::uint32_t* words, std::uint32_t width, const SliceRounds& rounds,
                      const DotWeights& weights, std::size_t n_rows, float* out, std::size_t out_stride,
                      AheadLines& ahead) {
    alignas(64) ValueLevels levels;
    switch (width) {
        case 1:
            lay_down_values<L, 1>(levels, words, rounds, ahead);
            break;
        case 2:
            lay_down_values<L, 2>(levels, words, rounds, ahead);
            break;
        case 3:
            lay_down_values<L, 3>(levels, words, rounds, ahead);
            break;
        case 4:
            lay_down_values<L, 4>(levels, words, rounds, ahead);
            break;
        default:
            for (std::size_t row = 0; row < n_rows; ++row)
                __builtin_memset(out + row * out_stride, 0, value_granule * sizeof(float));
            return;
    }
    for (std::size_t lane = 0; lane < value_granule; lane += 2 * L::width) {
        for_rows<most_dot_sums<L> / 2>(n_rows, [&](std::size_t row, auto n) {
            multiply_levels<L, n.value>(levels[0] + lane, rounds.n * 8, weights, row,
                                        out + row * out_stride + lane, out_stride);
        });
    }
}

template <class L>
void mix_trellis_dots(const MixTrellis& args) {
    DotWeights weights;
    const SliceRounds rounds(args.slices);
    float moved[max_rows][section_tokens];
    const float* from = args.weight;
    const std::size_t stride = rounds.order_weights(&from, args.weight_stride, moved, args.n_rows);
    set_factors<L, true>(&weights, from, stride, section_tokens, args.n_rows);
    AheadLines ahead(args.ahead, args.n_granules * rounds.n * (value_granule / L::width));
    const std::uint32_t* words = args.words;
    for (std::size_t g = 0; g < args.n_granules; ++g) {
        float* out = args.out + g * value_granule;
        const auto mix = [&](std::size_t row, auto n) {
            mix_dot_granule<L, n.value>(words, args.widths[g], rounds, weights, row,
                                        out + row * args.out_stride, args.out_stride, ahead);
        };
        if constexpr (L::n_registers >= 32) {
            for_rows<most_dot_sums<L>>(args.n_rows, mix);
        } else if (args.n_rows == 1) {
            mix(0, Index<1>());
        } else {
            mix_laid_granule<L>(words, args.widths[g], rounds, weights, args.n_rows, out, args.out_stride,
                                ahead);
        }
        words += args.widths[g] * value_plane_words;
    }
}

}  // namespace
}  // namespace gearkv
