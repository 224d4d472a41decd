// Products of trellis sections with a few vectors, for one vector level.
//
// The words of a granule hold one bit of four neighbours a byte. The two low bits of a level's index are the
// path bits of the token before and of the token two before, so z0 and z1 are planes too: the path plane
// moved by one and two tokens. For each bit k of the bytes the index bits of all planes are brought together,
// looked up as bytes, and the four levels of a word become one sum
//
//   w = sum_i level_i 2^(8 i)  (mod 2^32),   and   v_i = float(w << (24 - 8 i)) = 2^24 (level_i + v_(i-1) /
//   2^32)
//
// so that a level takes one shift and one conversion. What v_i has too much is taken from its neighbour's
// factor:
//
//   sum_i f_i level_i = sum_i f'_i v_i,   f'_i = 2^-24 (f_i - f_(i+1) / 2^8),   f_4 = 0
#pragma once

#include <xsimd/xsimd.hpp>

#include "format/trellis.hpp"
#include "kernels.hpp"
#include "unroll.inl.hpp"

namespace gearkv {
namespace {

// ---- levels of a granule ----

// Levels plus 128, which as unsigned bytes do not borrow from each other; 8 levels are there twice.
template <TensorKind kind, std::uint32_t width>
struct BiasedLevels {
    std::uint8_t entries[32] = {};
    constexpr BiasedLevels() {
        for (std::uint32_t i = 0; i < 32; ++i) {
            const std::uint32_t index = i & ((2u << width) - 1);
            entries[i] = static_cast<std::uint8_t>(trellis_level(kind, width, index) + 128);
        }
    }
};

template <class L, TensorKind kind, std::uint32_t width>
struct TrellisTable {
    typename L::ByteTable low, high;

    TrellisTable() {
        static constexpr BiasedLevels<kind, width> levels;
        low = L::load_table(levels.entries);
        high = L::load_table(levels.entries + 16);
    }
};

// Planes of index bits: z0, z1, then the free bits.
template <class L, std::uint32_t width>
struct IndexPlanes {
    typename L::Words bits[width + 1];
};

template <class L, std::uint32_t by, std::uint32_t mask>
[[gnu::always_inline]] inline typename L::Words interleave(typename L::Words low, typename L::Words high) {
    return L::merge(L::broadcast_word(mask), low, L::template shift_left<by>(high));
}
template <class L, std::uint32_t by, std::uint32_t mask>
[[gnu::always_inline]] inline typename L::Words interleave_upper(typename L::Words low,
                                                                 typename L::Words high) {
    return L::merge(L::broadcast_word(mask), L::template shift_right<by>(low), high);
}

// The words of four levels from the four low index bits in the bytes of `index` (bits 0 to 3, the others 0)
// and the bits k of the planes above.
template <class L, TensorKind kind, std::uint32_t width, std::uint32_t k>
[[gnu::always_inline]] inline typename L::Words join_levels(const TrellisTable<L, kind, width>& table,
                                                            const IndexPlanes<L, width>& planes,
                                                            typename L::Words index) {
    if constexpr (width <= 3) {
        return L::lookup(table.low, index) - L::broadcast_word(0x80808080u);
    } else if constexpr (width == 4) {
        return L::template lookup<k>(table.low, table.high, index, planes.bits[4]) -
               L::broadcast_word(0x80808080u);
    } else {
        // 2 j - (2^(width+1) - 1)
        typename L::Words twice = L::template shift_left<1>(index);
        unroll<width - 3>([&](auto i) GEARKV_INLINE {
            constexpr std::uint32_t to = 5 + i.value;
            typename L::Words bit = planes.bits[4 + i.value];
            if constexpr (to > k) bit = L::template shift_left<to - k>(bit);
            if constexpr (to < k) bit = L::template shift_right<k - to>(bit);
            twice = twice | (bit & L::broadcast_word(0x01010101u << to));
        });
        return twice - L::broadcast_word(((2u << width) - 1) * 0x01010101u);
    }
}

// body(Index<k>, words) for k = 0 to 7, in another order.
template <class L, TensorKind kind, std::uint32_t width, class Body>
[[gnu::always_inline]] inline void visit_levels(const TrellisTable<L, kind, width>& table,
                                                const IndexPlanes<L, width>& planes, const Body& body) {
    using Words = typename L::Words;
    unroll<2>([&](auto odd) GEARKV_INLINE {
        // Fields of two bits: tokens of one parity.
        Words low_pair, high_pair;
        if constexpr (odd == 0) {
            low_pair = interleave<L, 1, 0x55555555u>(planes.bits[0], planes.bits[1]);
            high_pair = planes.bits[2];
            if constexpr (width > 2) high_pair = interleave<L, 1, 0x55555555u>(high_pair, planes.bits[3]);
        } else {
            low_pair = interleave_upper<L, 1, 0x55555555u>(planes.bits[0], planes.bits[1]);
            if constexpr (width > 2) {
                high_pair = interleave_upper<L, 1, 0x55555555u>(planes.bits[2], planes.bits[3]);
            } else {
                high_pair = L::template shift_right<1>(planes.bits[2]);
            }
        }
        unroll<2>([&](auto upper) GEARKV_INLINE {
            // Fields of four bits: every fourth token. With a width of 2 the table does not depend on bit 3.
            Words index;
            if constexpr (upper == 0) {
                index = interleave<L, 2, 0x33333333u>(low_pair, high_pair);
            } else {
                index = interleave_upper<L, 2, 0x33333333u>(low_pair, high_pair);
            }
            constexpr std::size_t k = odd.value + 2 * upper.value;
            const Words nibble = L::broadcast_word(0x0f0f0f0fu);
            body(Index<k>(), join_levels<L, kind, width, k>(table, planes, index & nibble));
            index = L::template shift_right<4>(index) & nibble;
            body(Index<k + 4>(), join_levels<L, kind, width, k + 4>(table, planes, index));
        });
    });
}

// v_i of the file's head.
template <class L, std::size_t i>
[[gnu::always_inline]] inline typename L::Float level_of(typename L::Words words) {
    if constexpr (i < 3) words = L::template shift_left<24 - 8 * i>(words);
    return L::from_signed(words);
}

inline float fold_factor(float factor, float next) {
    return factor * 0x1p-24f - next * 0x1p-32f;
}

// ---- scores: lane l has tokens 8 l to 8 l + 7 ----
// The levels of a few granules are laid down as words first, which all rows then share.

inline constexpr std::size_t most_granules = 32;  // at a time: 16 KiB of words

struct ScoreWork {
    std::uint32_t levels[most_granules][8][key_plane_words];  // [granule][k][l]: token 8 l + k
    float factors[max_rows][most_granules * key_granule];     // folded queries
    float sums[max_rows][8][key_plane_words];                 // [row][k][l]
};

template <class L, std::uint32_t width>
void join_key_levels(std::uint32_t (*levels)[key_plane_words], const std::uint32_t* words) {
    using Words = typename L::Words;
    const TrellisTable<L, TensorKind::key, width> table;
    for (std::size_t lane = 0; lane < key_plane_words; lane += L::width) {
        const Words path = L::load_words(words + lane);
        const Words before = lane == 0 ? L::load_after_zero(words) : L::load_words(words + lane - 1);
        IndexPlanes<L, width> planes;
        planes.bits[0] = L::merge(L::broadcast_word(0xfefefefeu), L::template shift_left<1>(path),
                                  L::template shift_right<7>(before));
        planes.bits[1] = path ^ L::merge(L::broadcast_word(0xfcfcfcfcu), L::template shift_left<2>(path),
                                         L::template shift_right<6>(before));
        unroll<width - 1>([&](auto i) GEARKV_INLINE {
            planes.bits[2 + i] = L::load_words(words + (i + 1) * key_plane_words + lane);
        });
        visit_levels<L, TensorKind::key, width>(table, planes, [&](auto k, auto joined) GEARKV_INLINE {
            L::store_words(levels[k] + lane, joined);
        });
    }
}

// For n_tokens values of k from first_k up: sums of n_rows rows, which take half of the registers.
template <class L, std::size_t n_rows, std::size_t n_tokens>
void score_lanes(ScoreWork& work, std::size_t n_granules, std::size_t row, std::size_t lane,
                 std::size_t first_k) {
    using Float = typename L::Float;
    Float sums[n_rows][n_tokens];
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        unroll<n_tokens>([&](auto k) GEARKV_INLINE { sums[r][k] = L::broadcast(0.0f); });
    });
    for (std::size_t g = 0; g < n_granules; ++g) {
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

// scores[8 l + k] += sums[k][l]: three times, the lower half of the vectors is zipped with the upper one.
template <class L>
void add_transposed(float* scores, const float (*sums)[key_plane_words]) {
    for (std::size_t lane = 0; lane < key_plane_words; lane += L::width) {
        typename L::Float v[8];
        unroll<8>([&](auto k) GEARKV_INLINE { v[k] = L::load(sums[k] + lane); });
        unroll<3>([&](auto) GEARKV_INLINE {
            unroll<4>([&](auto k) GEARKV_INLINE { L::zip(v[k], v[k + 4]); });
            const typename L::Float zipped[8] = {v[0], v[4], v[1], v[5], v[2], v[6], v[3], v[7]};
            unroll<8>([&](auto k) GEARKV_INLINE { v[k] = zipped[k]; });
        });
        unroll<8>([&](auto k) GEARKV_INLINE {
            float* at = scores + 8 * lane + k * L::width;
            L::store(at, L::load(at) + v[k]);
        });
    }
}

// At most most_granules granules, those of width 0 left out.
template <class L>
void score_granules(ScoreWork& work, const ScoreTrellis& args) {
    const std::uint32_t* words = args.words;
    std::size_t n = 0;
    for (std::size_t g = 0; g < args.n_granules; ++g) {
        const std::uint32_t width = args.widths[g];
        switch (width) {
            case 2:
                join_key_levels<L, 2>(work.levels[n], words);
                break;
            case 3:
                join_key_levels<L, 3>(work.levels[n], words);
                break;
            case 4:
                join_key_levels<L, 4>(work.levels[n], words);
                break;
            case 5:
                join_key_levels<L, 5>(work.levels[n], words);
                break;
            case 6:
                join_key_levels<L, 6>(work.levels[n], words);
                break;
            default:
                continue;
        }
        words += width * key_plane_words;
        for (std::size_t row = 0; row < args.n_rows; ++row) {
            const float* query = args.query + row * args.query_stride + g * key_granule;
            float* factors = work.factors[row] + n * key_granule;
            unroll<key_granule - 1>([&](auto i)
                                        GEARKV_INLINE { factors[i] = fold_factor(query[i], query[i + 1]); });
            factors[key_granule - 1] = fold_factor(query[key_granule - 1], 0.0f);
        }
        ++n;
    }
    for_rows<max_rows>(args.n_rows, [&](std::size_t row, auto n_rows) {
        constexpr std::size_t most = L::n_registers / 2 / n_rows.value;
        constexpr std::size_t n_tokens = most < 8 ? most : 8;
        for (std::size_t lane = 0; lane < key_plane_words; lane += L::width) {
            for (std::size_t k = 0; k < 8; k += n_tokens)
                score_lanes<L, n_rows.value, n_tokens>(work, n, row, lane, k);
        }
    });
    for (std::size_t row = 0; row < args.n_rows; ++row)
        add_transposed<L>(args.scores + row * args.score_stride, work.sums[row]);
}

template <class L>
void score_trellis(const ScoreTrellis& args) {
    ScoreWork work;
    ScoreTrellis part = args;
    for (std::size_t g = 0; g < args.n_granules; g += most_granules) {
        const std::size_t n_left = args.n_granules - g;
        part.n_granules = static_cast<std::uint32_t>(n_left < most_granules ? n_left : most_granules);
        score_granules<L>(work, part);
        for (std::size_t i = 0; i < part.n_granules; ++i)
            part.words += part.widths[i] * key_plane_words;
        part.widths += part.n_granules;
        part.query += part.n_granules * key_granule;
    }
}

// ---- mix: lanes are channels, words have 32 tokens ----

struct FoldedWeights {
    float factors[max_rows][section_tokens];
};

template <class L, std::uint32_t width, std::size_t n_rows>
void mix_lanes(const std::uint32_t* words, const float* factors, float* out, std::size_t out_stride) {
    using Float = typename L::Float;
    using Words = typename L::Words;
    constexpr std::size_t n_parts = n_rows >= 8 ? 1 : 8 / n_rows;
    const TrellisTable<L, TensorKind::value, width> table;
    Float sums[n_parts][n_rows];
    unroll<n_parts>([&](auto part) GEARKV_INLINE {
        unroll<n_rows>([&](auto r) GEARKV_INLINE { sums[part][r] = L::broadcast(0.0f); });
    });
    Words before = L::broadcast_word(0);
    for (std::size_t token = 0; token < section_tokens; token += 32) {
        IndexPlanes<L, width> planes;
        const Words path = L::load_words(words);
        planes.bits[0] = L::template shift_left<1>(path) | L::template shift_right<31>(before);
        planes.bits[1] = path ^ (L::template shift_left<2>(path) | L::template shift_right<30>(before));
        before = path;
        unroll<width - 1>([&](auto i) GEARKV_INLINE {
            planes.bits[2 + i] = L::load_words(words + (i + 1) * value_plane_words);
        });
        visit_levels<L, TensorKind::value, width>(table, planes, [&](auto k, auto levels) GEARKV_INLINE {
            unroll<4>([&](auto i) GEARKV_INLINE {
                const Float level = level_of<L, i.value>(levels);
                unroll<n_rows>([&](auto r) GEARKV_INLINE {
                    const float* factor = factors + r * section_tokens + token + 8 * i + k;
                    Float& sum = sums[(4 * k + i) % n_parts][r];
                    sum = L::fma(level, L::broadcast(*factor), sum);
                });
            });
        });
        words += lane_tile;
    }
    unroll<n_rows>([&](auto r) GEARKV_INLINE {
        Float sum = sums[0][r];
        unroll<n_parts - 1>([&](auto part) GEARKV_INLINE { sum = sum + sums[part + 1][r]; });
        L::store(out + r * out_stride, sum);
    });
}

template <class L, std::size_t n_rows>
void mix_granule(const std::uint32_t* words, std::uint32_t width, const float* factors, float* out,
                 std::size_t out_stride) {
    for (std::size_t lane = 0; lane < value_granule; lane += L::width) {
        switch (width) {
            case 2:
                mix_lanes<L, 2, n_rows>(words + lane, factors, out + lane, out_stride);
                break;
            case 3:
                mix_lanes<L, 3, n_rows>(words + lane, factors, out + lane, out_stride);
                break;
            case 4:
                mix_lanes<L, 4, n_rows>(words + lane, factors, out + lane, out_stride);
                break;
            default:
                for (std::size_t r = 0; r < n_rows; ++r)
                    L::store(out + r * out_stride + lane, L::broadcast(0.0f));
        }
    }
}

template <class L>
void mix_trellis(const MixTrellis& args) {
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
    const std::uint32_t* words = args.words;
    for (std::size_t g = 0; g < args.n_granules; ++g) {
        float* out = args.out + g * value_granule;
        for_rows<max_rows>(args.n_rows, [&](std::size_t row, auto n) {
            mix_granule<L, n.value>(words, args.widths[g], folded.factors[row], out + row * args.out_stride,
                                    args.out_stride);
        });
        words += args.widths[g] * value_plane_words;
    }
}

}  // namespace
}  // namespace gearkv
