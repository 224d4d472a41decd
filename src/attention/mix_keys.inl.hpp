// Mixing of sections of keys: of latents, which are keys and values at once (format/trellis.hpp).
//
// A word of a granule has four channels of one token; a product with weights wants four tokens of one
// channel. Four words that follow each other are turned as a matrix of bytes, and then have the tokens 8
// apart that words of values have.
#pragma once

#include "attention/trellis_dots.inl.hpp"
#include "attention/trellis_packs.inl.hpp"

namespace gearkv {
namespace {

inline constexpr std::uint32_t mixed_granules = lane_tile / key_granule;

// [8 j + place of k][channel]: byte i is token 32 j + 8 i + k. Those of granule `at` of mixed_granules.
using MixedLevels = std::uint32_t[section_tokens / 4][lane_tile];

template <class L>
inline constexpr LevelForm mixed_form = has_packs<L> ? LevelForm::two_sided : LevelForm::biased;

template <class L, std::uint32_t width>
void join_mixed_granule(MixedLevels& levels, std::size_t at, const std::uint32_t* words) {
    static_assert(L::width % 4 == 0);
    visit_key_levels<L, width, mixed_form<L>>(
        words, [&](auto k, auto joined, std::size_t lane) GEARKV_INLINE {
            constexpr std::size_t place = has_packs<L> ? visit_place<k.value> : k.value;
            std::uint32_t turned[L::width];
            L::store_words(turned, L::turn_bytes(joined));
            unroll<L::width / 4>([&](auto i) GEARKV_INLINE {
                __builtin_memcpy(levels[8 * (lane / 4 + i) + place] + at * key_granule, turned + 4 * i,
                                 key_granule * sizeof(std::uint32_t));
            });
        });
}

template <class L>
void join_mixed(MixedLevels& levels, std::size_t at, std::uint32_t width, const std::uint32_t* words) {
    switch (width) {
        case 1:
            return join_mixed_granule<L, 1>(levels, at, words);
        case 2:
            return join_mixed_granule<L, 2>(levels, at, words);
        case 3:
            return join_mixed_granule<L, 3>(levels, at, words);
        case 4:
            return join_mixed_granule<L, 4>(levels, at, words);
        case 5:
            return join_mixed_granule<L, 5>(levels, at, words);
        case 6:
            return join_mixed_granule<L, 6>(levels, at, words);
        default:
            for (auto& word : levels)
                __builtin_memset(word + at * key_granule, has_packs<L> ? 0 : dot_bias,
                                 key_granule * sizeof(std::uint32_t));
    }
}

// The sums of one row group over 16 channels.
template <class L, std::size_t n_rows>
void mix_joined_dots(const MixedLevels& levels, const DotWeights& weights, std::size_t row, float* out,
                     std::size_t out_stride) {
    for (std::size_t lane = 0; lane < lane_tile; lane += L::width) {
        DotSums<L, n_rows, 1> sums;
        sums.start(weights.scale + row, dot_bias);
        for (std::size_t word = 0; word < section_tokens / 4; word += 4) {
            unroll<4>([&](auto i) GEARKV_INLINE {
                const typename L::Words bytes[1] = {L::load_words(levels[word + i] + lane)};
                sums.template add<i.value>(bytes, weights.first[row] + word + i,
                                           weights.second[row] + word + i, DotWeights::n_words);
            });
        }
        unroll<n_rows>([&](auto r) GEARKV_INLINE {
            L::store(out + r * out_stride + lane, sums.template sum<r.value, 0>(weights.scale + row));
        });
    }
}

template <class L, class Mix>
void mix_key_granules(const MixTrellis& args, std::size_t n_ahead, const Mix& mix) {
    MixedLevels levels;
    AheadLines ahead(args.ahead, n_ahead);
    const std::uint32_t* words = args.words;
    for (std::size_t g = 0; g < args.n_granules; g += mixed_granules) {
        ahead.step();
        for (std::size_t i = 0; i < mixed_granules; ++i) {
            const std::uint32_t width = g + i < args.n_granules ? args.widths[g + i] : 0;
            join_mixed<L>(levels, i, width, words);
            words += width * key_plane_words;
        }
        mix(levels, args.out + g * key_granule);
    }
}

template <class L>
void mix_keys(const MixTrellis& args) {
    const std::size_t n_steps = (args.n_granules + mixed_granules - 1) / mixed_granules;
    if constexpr (has_packs<L>) {
        PackedWeights<L> weights;
        for (std::size_t row = 0; row < args.n_rows; ++row)
            pack_factors_by_eights<L>(&weights, row, args.weight + row * args.weight_stride);
        mix_key_granules<L>(args, n_steps, [&](const MixedLevels& levels, float* out) {
            for_rows<4>(args.n_rows, [&](std::size_t row, auto n) {
                for (std::size_t lane = 0; lane < lane_tile; lane += 2 * L::width) {
                    multiply_words<L, n.value, lane_tile>(
                        levels[0] + lane, section_tokens / 4 / pack_round, weights.at(row),
                        weights.scale + row, out + row * args.out_stride + lane, args.out_stride);
                }
            });
        });
    } else {
        DotWeights weights;
        set_factors<L, true>(&weights, args.weight, args.weight_stride, section_tokens, args.n_rows);
        mix_key_granules<L>(args, n_steps, [&](const MixedLevels& levels, float* out) {
            for_rows<most_dot_sums<L>>(args.n_rows, [&](std::size_t row, auto n) {
                mix_joined_dots<L, n.value>(levels, weights, row, out + row * args.out_stride,
                                            args.out_stride);
            });
        });
    }
}

}  // namespace
}  // namespace gearkv
