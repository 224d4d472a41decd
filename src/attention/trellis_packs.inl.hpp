// Products of trellis sections with a few vectors by integer dot products with packs (packs.inl.hpp).
#pragma once

#include "attention/levels.inl.hpp"
#include "attention/packs.inl.hpp"
#include "kernels/ahead.inl.hpp"

namespace gearkv {
namespace {

// ---- scores ----

template <class L>
struct PackScoreWork {
    KeyLevels levels[most_granules + pack_round - 1];       // the last round may be of few
    PackedFactors<L, most_granules * key_granule> factors;  // queries
    float sums[max_rows][8][key_plane_words];               // [row][k][l]
};

// At most most_granules granules, those of width 0 left out.
template <class L>
void score_pack_granules(PackScoreWork<L>& work, const ScoreTrellis& args) {
    const WidthOrder order(args.widths, args.n_granules);
    join_key_levels<L, LevelForm::two_sided>(work.levels, args.words, order);
    const std::size_t first = order.first[1], n = args.n_granules - first;
    static_assert(key_granule == L::width);
    for (std::size_t row = 0; row < args.n_rows; ++row) {
        float query[most_granules * key_granule];
        const float* from = args.query + row * args.query_stride;
        const std::uint8_t* granule = order.granule + first;
        for (float* to = query; to < query + n * key_granule; to += key_granule)
            L::store(to, L::load(from + std::size_t{*granule++} * key_granule));
        pack_factors<L, false>(&work.factors, row, query, n * key_granule);
    }
    AheadLines ahead(args.ahead, args.also, 16 * ((args.n_rows + 3) / 4));
    constexpr std::size_t step = sizeof(KeyLevels) / sizeof(std::uint32_t);
    for_rows<4>(args.n_rows, [&](std::size_t row, auto n_rows) {
        for (std::size_t k = 0; k < 8; ++k) {
            for (std::size_t lane = 0; lane < key_plane_words; lane += 2 * L::width) {
                ahead.step();
                multiply_words<L, n_rows.value, step>(
                    work.levels[first][k] + lane, (n + pack_round - 1) / pack_round, work.factors.at(row),
                    work.factors.scale + row, work.sums[row][k] + lane, 8 * key_plane_words);
            }
        }
    });
    for (std::size_t row = 0; row < args.n_rows; ++row)
        add_transposed<L>(args.scores + row * args.score_stride, work.sums[row]);
}

template <class L>
void score_trellis_packs(const ScoreTrellis& args) {
    PackScoreWork<L> work;
    for_granules(args, [&](const ScoreTrellis& part) { score_pack_granules<L>(work, part); });
}

// ---- mix ----

template <class L>
using PackedWeights = PackedFactors<L, section_tokens>;

template <class L, std::uint32_t width, std::size_t n_rows>
void mix_pack_lanes(const std::uint32_t* words, const SliceRounds& rounds, const PackedWeights<L>& weights,
                    std::size_t row, float* out, std::size_t out_stride) {
    PackSums<L, n_rows, 1> sums;
    sums.template start<0>(weights.scale + row);
    const std::uint32_t* packs = weights.at(row);
    visit_value_levels<L, width, LevelForm::two_sided>(
        words, rounds, [&](auto k, auto levels, std::size_t) GEARKV_INLINE {
            constexpr std::size_t word = visit_place<k.value> % L::pack_words;
            if constexpr (word == 0) sums.load(packs);
            const typename L::Words bytes[1] = {levels};
            sums.template add<word>(bytes);
        });
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        L::store(out + r * out_stride, sums.template sum<r.value, 0>(weights.scale + row));
    });
}

// Where a word takes many instructions, it is laid down in between: unpacking and products have the registers
// one after the other then.
template <class L, std::uint32_t width, std::size_t n_rows>
void mix_pack_granule(const std::uint32_t* words, const SliceRounds& rounds, const PackedWeights<L>& weights,
                      std::size_t row, float* out, std::size_t out_stride) {
    if constexpr (L::pack_words > 1) {
        for (std::size_t lane = 0; lane < value_granule; lane += L::width)
            mix_pack_lanes<L, width, n_rows>(words + lane, rounds, weights, row, out + lane, out_stride);
    } else {
        std::uint32_t levels[section_tokens / 4][value_granule];
        for (std::size_t lane = 0; lane < value_granule; lane += L::width) {
            std::uint32_t* to = levels[0] + lane;
            visit_value_levels<L, width, LevelForm::two_sided>(
                words + lane, rounds, [&](auto k, auto joined, std::size_t) GEARKV_INLINE {
                    L::store_words(to + visit_place<k.value> * value_granule, joined);
                    if constexpr (visit_place<k.value> == 7) to += 8 * value_granule;
                });
        }
        for (std::size_t lane = 0; lane < value_granule; lane += 2 * L::width) {
            multiply_words<L, n_rows, value_granule>(levels[0] + lane, rounds.n * 8 / pack_round,
                                                     weights.at(row), weights.scale + row, out + lane,
                                                     out_stride);
        }
    }
}

template <class L>
void mix_trellis_packs(const MixTrellis& args) {
    PackedWeights<L> weights;
    const SliceRounds rounds(args.slices);
    float moved[max_rows][section_tokens];
    const float* from = args.weight;
    const std::size_t stride = rounds.order_weights(&from, args.weight_stride, moved, args.n_rows);
    for (std::size_t row = 0; row < args.n_rows; ++row)
        pack_factors_by_eights<L>(&weights, row, from + row * stride);
    AheadLines ahead(args.ahead, args.n_granules);
    const std::uint32_t* words = args.words;
    for (std::size_t g = 0; g < args.n_granules; ++g) {
        ahead.step();
        const std::uint32_t width = args.widths[g];
        for_rows<4>(args.n_rows, [&](std::size_t row, auto n) {
            float* out = args.out + row * args.out_stride + g * value_granule;
            switch (width) {
                case 1:
                    mix_pack_granule<L, 1, n.value>(words, rounds, weights, row, out, args.out_stride);
                    break;
                case 2:
                    mix_pack_granule<L, 2, n.value>(words, rounds, weights, row, out, args.out_stride);
                    break;
                case 3:
                    mix_pack_granule<L, 3, n.value>(words, rounds, weights, row, out, args.out_stride);
                    break;
                case 4:
                    mix_pack_granule<L, 4, n.value>(words, rounds, weights, row, out, args.out_stride);
                    break;
                default:
                    for (std::size_t r = 0; r < n.value; ++r) {
                        for (std::size_t lane = 0; lane < value_granule; lane += L::width)
                            L::store(out + r * args.out_stride + lane, L::broadcast(0.0f));
                    }
            }
        });
        words += width * value_plane_words;
    }
}

}  // namespace
}  // namespace gearkv
