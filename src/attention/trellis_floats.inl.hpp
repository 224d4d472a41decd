// Products of trellis sections with a few vectors in floats. Four levels are one sum
//
//   w = sum_i level_i 2^(8 i)  (mod 2^32),   and   v_i = float(w << (24 - 8 i)) = 2^24 (level_i + v_(i-1) /
//   2^32)
//
// so that a level takes one shift and one conversion. What v_i has too much is taken from its neighbour's
// factor:
//
//   sum_i f_i level_i = sum_i f'_i v_i,   f'_i = 2^-24 (f_i - f_(i+1) / 2^8),   f_4 = 0
#pragma once

#include "ahead.inl.hpp"
#include "attention/levels.inl.hpp"

namespace gearkv {
namespace {

// v_i of the file's head.
template <class L, std::size_t i>
[[gnu::always_inline]] inline typename L::Float level_of(typename L::Words words) {
    if constexpr (i < 3) words = L::template shift_left<24 - 8 * i>(words);
    return L::from_signed(words);
}

inline float fold_factor(float factor, float next) {
    return factor * 0x1p-24f - next * 0x1p-32f;
}

// ---- scores ----

struct ScoreWork {
    KeyLevels levels[most_granules];
    float factors[max_rows][most_granules * key_granule];  // folded queries
    float sums[max_rows][8][key_plane_words];              // [row][k][l]
};

// For n_tokens values of k from first_k up: sums of n_rows rows, which take half of the registers.
template <class L, std::size_t n_rows, std::size_t n_tokens>
void score_lanes(ScoreWork& work, std::size_t first, std::size_t end, std::size_t row, std::size_t lane,
                 std::size_t first_k, AheadLines& lines) {
    LocalAhead ahead(&lines);
    using Float = typename L::Float;
    Float sums[n_rows][n_tokens];
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<n_tokens>([&](auto k) GEARKV_INLINE { sums[r][k] = L::broadcast(0.0f); });
    });
    for (std::size_t g = first; g < end; ++g) {
        ahead.step();
        unroll<n_tokens>([&](auto k) GEARKV_INLINE {
            const auto words = L::load_words(work.levels[g][first_k + k] + lane);
            unroll<key_granule>([&](auto i) GEARKV_INLINE {
                const Float level = level_of<L, i.value>(words);
                unroll<n_rows>([&](auto r) GEARKV_INLINE {
                    const Float factor = L::broadcast(work.factors[row + r][g * key_granule + i]);
                    sums[r][k] = L::fma(level, factor, sums[r][k]);
                });
            });
        });
    }
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<n_tokens>([&](auto k)
                             GEARKV_INLINE { L::store(work.sums[row + r][first_k + k] + lane, sums[r][k]); });
    });
}

// At most most_granules granules, those of width 0 left out.
template <class L>
void score_granules(ScoreWork& work, const ScoreTrellis& args) {
    const WidthOrder order(args.widths, args.n_granules);
    join_key_levels<L, LevelForm::joined>(work.levels, args.words, order);
    const std::size_t first = order.first[2], n = args.n_granules;
    for (std::size_t i = first; i < n; ++i) {
        for (std::size_t row = 0; row < args.n_rows; ++row) {
            const float* query = args.query + row * args.query_stride + order.granule[i] * key_granule;
            float* factors = work.factors[row] + i * key_granule;
            unroll<key_granule - 1>([&](auto c)
                                        GEARKV_INLINE { factors[c] = fold_factor(query[c], query[c + 1]); });
            factors[key_granule - 1] = fold_factor(query[key_granule - 1], 0.0f);
        }
    }
    AheadLines ahead(args.ahead, (n - first) * (key_plane_words / L::width));
    for_rows<max_rows>(args.n_rows, [&](std::size_t row, auto n_rows) {
        constexpr std::size_t most = L::n_registers / 2 / n_rows.value;
        constexpr std::size_t n_tokens = most < 8 ? most : 8;
        for (std::size_t lane = 0; lane < key_plane_words; lane += L::width) {
            for (std::size_t k = 0; k < 8; k += n_tokens)
                score_lanes<L, n_rows.value, n_tokens>(work, first, n, row, lane, k, ahead);
        }
    });
    for (std::size_t row = 0; row < args.n_rows; ++row)
        add_transposed<L>(args.scores + row * args.score_stride, work.sums[row]);
}

template <class L>
void score_trellis_floats(const ScoreTrellis& args) {
    ScoreWork work;
    for_granules(args, [&](const ScoreTrellis& part) { score_granules<L>(work, part); });
}

// ---- mix ----

struct FoldedWeights {
    float factors[max_rows][section_tokens];
};

template <class L, std::uint32_t width, std::size_t n_rows>
void mix_lanes(const std::uint32_t* words, const float* factors, float* out, std::size_t out_stride,
               AheadLines& lines) {
    LocalAhead ahead(&lines);
    using Float = typename L::Float;
    constexpr std::size_t n_parts = n_rows >= 8 ? 1 : 8 / n_rows;
    Float sums[n_parts][n_rows];
    unroll<n_parts>([&](auto part) GEARKV_INLINE {
        unroll<n_rows>([&](auto r) GEARKV_INLINE { sums[part][r] = L::broadcast(0.0f); });
    });
    visit_value_levels<L, width, LevelForm::joined>(
        words, [&](auto k, auto levels, std::size_t token) GEARKV_INLINE {
            if constexpr (k == 0) ahead.step();
            unroll<4>([&](auto i) GEARKV_INLINE {
                const Float level = level_of<L, i.value>(levels);
                unroll<n_rows>([&](auto r) GEARKV_INLINE {
                    const float* factor = factors + r * section_tokens + token + 8 * i + k;
                    Float& sum = sums[(4 * k + i) % n_parts][r];
                    sum = L::fma(level, L::broadcast(*factor), sum);
                });
            });
        });
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        Float sum = sums[0][r];
        unroll<n_parts - 1>([&](auto part) GEARKV_INLINE { sum = sum + sums[part + 1][r]; });
        L::store(out + r * out_stride, sum);
    });
}

template <class L, std::size_t n_rows>
void mix_granule(const std::uint32_t* words, std::uint32_t width, const float* factors, float* out,
                 std::size_t out_stride, AheadLines& ahead) {
    for (std::size_t lane = 0; lane < value_granule; lane += L::width) {
        switch (width) {
            case 2:
                mix_lanes<L, 2, n_rows>(words + lane, factors, out + lane, out_stride, ahead);
                break;
            case 3:
                mix_lanes<L, 3, n_rows>(words + lane, factors, out + lane, out_stride, ahead);
                break;
            case 4:
                mix_lanes<L, 4, n_rows>(words + lane, factors, out + lane, out_stride, ahead);
                break;
            default:
                for (std::size_t r = 0; r < n_rows; ++r)
                    L::store(out + r * out_stride + lane, L::broadcast(0.0f));
        }
    }
}

template <class L>
void mix_trellis_floats(const MixTrellis& args) {
    FoldedWeights folded;
    for (std::size_t row = 0; row < args.n_rows; ++row) {
        const float* weight = args.weight + row * args.weight_stride;
        float* factors = folded.factors[row];
        for (std::size_t first = 0; first < section_tokens; first += 32) {
            for (std::size_t t = first; t < first + 24; ++t)
                factors[t] = fold_factor(weight[t], weight[t + 8]);
            for (std::size_t t = first + 24; t < first + 32; ++t)
                factors[t] = fold_factor(weight[t], 0.0f);
        }
    }
    AheadLines ahead(args.ahead, args.n_granules * (section_tokens / 32) * (value_granule / L::width));
    const std::uint32_t* words = args.words;
    for (std::size_t g = 0; g < args.n_granules; ++g) {
        float* out = args.out + g * value_granule;
        for_rows<max_rows>(args.n_rows, [&](std::size_t row, auto n) {
            mix_granule<L, n.value>(words, args.widths[g], folded.factors[row], out + row * args.out_stride,
                                    args.out_stride, ahead);
        });
        words += args.widths[g] * value_plane_words;
    }
}

}  // namespace
}  // namespace gearkv
