// The trellis search of kernels/kernels.hpp for one vector level: lanes are channels, and all of them walk
// together.
//
// Going forward, every token has two candidates per subset of levels, the two that lie around it; their
// squared distances and the costs of the four states are formed as the reference forms them, so that codes
// agree to the last bit. What was decided stays in one word per entry:
//   bits 0 to 3    state: its better way comes from p[t-2] = 1
//   bits 4 to 7    subset: the upper candidate is nearer
//   bits 8 on      what the kind of candidates needs to find its lower one again
// Going back, the words are followed from the cheapest final state.
#pragma once

#include <xsimd/xsimd.hpp>

#include "format/trellis.hpp"
#include "kernels/kernels.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

inline constexpr std::size_t n_subsets = 4;

// Within this magnitude, of two levels at least 8 apart on the same side of an entry the nearer has the
// smaller square after rounding as well. Beyond it every level is tried.
inline constexpr float largest_searched = 0x1p18f;

// ---- candidates ----
// find(x, low, high) gives the two candidates of each subset and the word to begin with; low_bits(word,
// subset, x) the free bits of the lower candidate of a subset.

// Widths 1 and 2: a subset has one level or two.
template <class L>
struct PairCandidates {
    using Float = typename L::Float;
    using Words = typename L::Words;
    Float low[n_subsets], high[n_subsets];

    explicit PairCandidates(const EncodeTrellis& args) {
        unroll<n_subsets>([&](auto s) GEARKV_INLINE {
            low[s] = L::broadcast(static_cast<float>(args.levels[s]));
            high[s] = L::broadcast(static_cast<float>(args.levels[(args.width - 1) * n_subsets + s]));
        });
    }
    [[gnu::always_inline]] Words find(Float, Float (&lows)[n_subsets], Float (&highs)[n_subsets]) const {
        unroll<n_subsets>([&](auto s) GEARKV_INLINE {
            lows[s] = low[s];
            highs[s] = high[s];
        });
        return L::broadcast_word(0);
    }
    [[gnu::always_inline]] Words low_bits(Words, Words, Float) const { return L::broadcast_word(0); }
};

// Widths 3 and 4, the levels of format/trellis.hpp. The entries fall in 16 cells, [16 k, 16 (k + 1)) - 128,
// the outer ones open. A cell has at most one midpoint of two neighbours of a subset, so that its candidates
// are known.
inline constexpr std::size_t n_cells = 16;

template <TensorKind kind, std::uint32_t width>
struct CellTable {
    std::int8_t levels[2u << width] = {};
    // By subset the upper halves of two floats, which are all of a level: the upper candidate's above the
    // lower's.
    float pairs[n_subsets][n_cells] = {};
    float bits[n_cells] = {};  // a word: free bits of the lower candidate, a byte per subset
    bool is_valid = true;

    constexpr CellTable() {
        for (std::uint32_t i = 0; i < (2u << width); ++i)
            levels[i] = static_cast<std::int8_t>(trellis_level(kind, width, i));
        for (std::uint32_t i = 0; i + 8 < (2u << width); ++i) {
            is_valid &= levels[i + 4] - levels[i] >= 8 && levels[i + 8] - levels[i + 4] >= 8;
            is_valid &= levels[i + 8] - levels[i] > 33;
        }
        std::uint32_t words[n_cells] = {};
        for (std::uint32_t s = 0; s < n_subsets; ++s) {
            for (std::uint32_t cell = 0; cell < n_cells; ++cell) {
                const std::uint32_t u = first_candidate(s, cell);
                words[cell] |= u << (8 * s);
                const auto low = std::bit_cast<std::uint32_t>(static_cast<float>(levels[u << 2 | s]));
                const auto high = std::bit_cast<std::uint32_t>(static_cast<float>(levels[(u + 1) << 2 | s]));
                is_valid &= ((low | high) & 0xffff) == 0;
                pairs[s][cell] = std::bit_cast<float>(high | low >> 16);
            }
        }
        for (std::uint32_t cell = 0; cell < n_cells; ++cell)
            bits[cell] = std::bit_cast<float>(words[cell]);
    }
    // Cells are found by rounding, so an entry may be a little below its cell; half a unit covers that.
    constexpr std::uint32_t first_candidate(std::uint32_t subset, std::uint32_t cell) const {
        const int twice_edge = 32 * static_cast<int>(cell) - 256;
        std::uint32_t u = 0;
        while (cell > 0 && u + 2 < (1u << (width - 1)) &&
               twice_edge - 1 > levels[u << 2 | subset] + levels[(u + 1) << 2 | subset])
            ++u;
        return u;
    }
};
template <class L>
struct CellCandidates {
    using Float = typename L::Float;
    using Words = typename L::Words;
    typename L::FloatTable pairs[n_subsets], bits;

    template <TensorKind kind, std::uint32_t width>
    explicit CellCandidates(const CellTable<kind, width>& table) : bits(L::load_float_table(table.bits)) {
        unroll<n_subsets>([&](auto s) GEARKV_INLINE { pairs[s] = L::load_float_table(table.pairs[s]); });
    }
    [[gnu::always_inline]] Words find(Float x, Float (&lows)[n_subsets], Float (&highs)[n_subsets]) const {
        const Float at = L::fma(x, L::broadcast(1.0f / 16), L::broadcast(8.0f));
        const Words cell = L::to_words(xsimd::min(xsimd::max(at, L::broadcast(0.0f)), L::broadcast(15.0f)));
        const typename L::FloatIndex index = L::float_index(cell);
        unroll<n_subsets>([&](auto s) GEARKV_INLINE {
            const Words pair = L::bits(L::lookup_float(pairs[s], index));
            lows[s] = L::from_bits(L::template shift_left<16>(pair));
            highs[s] = L::from_bits(pair & L::broadcast_word(0xffff0000u));
        });
        return L::template shift_left<8>(cell);
    }
    [[gnu::always_inline]] Words low_bits(Words word, Words subset, Float) const {
        const Words cell = L::template shift_right<8>(word);
        const Words all = L::bits(L::lookup_float(bits, L::float_index(cell)));
        return L::shift_right_by(all, L::template shift_left<3>(subset)) & L::broadcast_word(7);
    }
};

// The uniform levels: those of a subset are 8 u + 2 subset - (2^(width+1) - 1).
template <class L>
struct UniformCandidates {
    using Float = typename L::Float;
    using Words = typename L::Words;
    float first, last_low;

    explicit UniformCandidates(const EncodeTrellis& args)
        : first(-static_cast<float>((2u << args.width) - 1)),
          last_low(static_cast<float>((1u << (args.width - 1)) - 2)) {}

    // u of the lower candidate; `base` is the subset's first level.
    [[gnu::always_inline]] Float low_step(Float x, Float base) const {
        const Float at = L::fma(x - base, L::broadcast(0.125f), L::broadcast(-0.5f));
        return L::round(xsimd::min(xsimd::max(at, L::broadcast(0.0f)), L::broadcast(last_low)));
    }
    [[gnu::always_inline]] Words find(Float x, Float (&lows)[n_subsets], Float (&highs)[n_subsets]) const {
        unroll<n_subsets>([&](auto s) GEARKV_INLINE {
            const Float base = L::broadcast(first + 2.0f * static_cast<float>(s.value));
            lows[s] = L::fma(low_step(x, base), L::broadcast(8.0f), base);  // small integers
            highs[s] = lows[s] + L::broadcast(8.0f);
        });
        return L::broadcast_word(0);
    }
    [[gnu::always_inline]] Words low_bits(Words, Words subset, Float x) const {
        return L::to_words(low_step(x, L::fma(L::to_float(subset), L::broadcast(2.0f), L::broadcast(first))));
    }
};

// ---- forward ----

template <class L>
struct TrellisCosts {
    using Float = typename L::Float;
    using Words = typename L::Words;
    Float cost[n_subsets];  // of the states: bit 0 is p[t-1], bit 1 is p[t-2]

    TrellisCosts() {
        cost[0] = L::broadcast(0.0f);
        cost[1] = cost[2] = cost[3] = L::broadcast(3e38f);
    }
    // One token; sets bits 0 to 3 of the word.
    [[gnu::always_inline]] Words step(const Float (&distance)[n_subsets], Words word) {
        Float next[n_subsets];
        unroll<n_subsets>([&](auto state) GEARKV_INLINE {
            constexpr std::size_t p = state.value & 1, p1 = state.value >> 1;
            const Float way0 = cost[p1] + distance[p << 1 | p1];
            const Float way1 = cost[p1 | 2] + distance[(p ^ 1) << 1 | p1];
            word = L::template mark<state.value>(word, L::less(way1, way0));
            next[state] = xsimd::min(way0, way1);
        });
        unroll<n_subsets>([&](auto state) GEARKV_INLINE { cost[state] = next[state]; });
        return word;
    }
    // The cheapest state, the lowest of equals.
    Words last_state() const {
        Float least = cost[0];
        Words state = L::broadcast_word(0);
        unroll<n_subsets - 1>([&](auto i) GEARKV_INLINE {
            const Words better = L::template mark<0>(L::broadcast_word(0), L::less(cost[i + 1], least));
            const Words all = L::broadcast_word(0) - better;
            state = L::merge(all, L::broadcast_word(static_cast<std::uint32_t>(i.value) + 1), state);
            least = xsimd::min(least, cost[i + 1]);
        });
        return state;
    }
};

// Fills the words of L::width channels; the final states of the best paths.
template <class L, class Candidates>
typename L::Words walk_forward(const Candidates& candidates, const float* x, std::uint32_t* words) {
    using Float = typename L::Float;
    TrellisCosts<L> costs;
    for (std::size_t t = 0; t < section_tokens; ++t) {
        const Float entry = L::load(x + t * lane_tile);
        Float low[n_subsets], high[n_subsets], distance[n_subsets];
        typename L::Words word = candidates.find(entry, low, high);
        unroll<n_subsets>([&](auto s) GEARKV_INLINE {
            const Float below = entry - low[s], above = entry - high[s];
            const Float low_square = below * below, high_square = above * above;
            word = L::template mark<4 + s.value>(word, L::less(high_square, low_square));
            distance[s] = xsimd::min(low_square, high_square);
        });
        L::store_words(words + t * lane_tile, costs.step(distance, word));
    }
    return costs.last_state();
}

// ---- back ----

// Writes index | p << 7 of each entry.
template <class L, class LowBits>
void walk_back(std::uint8_t* indices, const std::uint32_t* words, typename L::Words state,
               const LowBits& low_bits) {
    using Words = typename L::Words;
    const Words one = L::broadcast_word(1);
    for (std::size_t t = section_tokens; t-- > 0;) {
        const Words word = L::load_words(words + t * lane_tile);
        const Words p = state & one, p1 = L::template shift_right<1>(state);
        const Words p2 = L::shift_right_by(word, state) & one;
        const Words subset = L::template shift_left<1>(p ^ p2) | p1;
        const Words upper = L::shift_right_by(L::template shift_right<4>(word), subset) & one;
        const Words u = low_bits(word, subset, t) + upper;
        const Words index = L::template shift_left<2>(u) | subset;
        L::store_low_bytes(indices + t * lane_tile, L::template shift_left<7>(p) | index);
        state = L::template shift_left<1>(p2) | p1;
    }
}

template <class L, class Candidates>
void encode_with(const EncodeTrellis& args, const Candidates& candidates) {
    auto* words = static_cast<std::uint32_t*>(args.scratch);
    for (std::size_t lane = 0; lane < lane_tile; lane += L::width) {
        const float* x = args.x + lane;
        const auto state = walk_forward<L>(candidates, x, words + lane);
        walk_back<L>(args.codes + lane, words + lane, state,
                     [&](auto word, auto subset, std::size_t t) GEARKV_INLINE {
                         return candidates.low_bits(word, subset, L::load(x + t * lane_tile));
                     });
    }
}

// Any levels and any magnitude: all levels of a subset are tried. The words hold the free bits of the nearest
// of each subset, 5 bits from bit 8 on.
template <class L>
void encode_searching(const EncodeTrellis& args) {
    using Float = typename L::Float;
    using Words = typename L::Words;
    float levels[2u << max_key_width];
    const std::uint32_t n_levels = 2u << args.width;
    for (std::uint32_t i = 0; i < n_levels; ++i) {
        levels[i] = args.levels != nullptr ? static_cast<float>(args.levels[i])
                                           : 2.0f * static_cast<float>(i) - static_cast<float>(n_levels - 1);
    }
    auto* words = static_cast<std::uint32_t*>(args.scratch);
    for (std::size_t lane = 0; lane < lane_tile; lane += L::width) {
        TrellisCosts<L> costs;
        for (std::size_t t = 0; t < section_tokens; ++t) {
            const Float x = L::load(args.x + t * lane_tile + lane);
            Float distance[n_subsets];
            Words word = L::broadcast_word(0);
            unroll<n_subsets>([&](auto s) GEARKV_INLINE {
                const Float first = x - L::broadcast(levels[s]);
                distance[s] = first * first;
                Words nearest = L::broadcast_word(0);
                for (std::uint32_t i = n_subsets; i < n_levels; i += n_subsets) {
                    const Float d = x - L::broadcast(levels[i + s]);
                    const Float square = d * d;
                    const Words nearer =
                        L::template mark<0>(L::broadcast_word(0), L::less(square, distance[s]));
                    const Words all = L::broadcast_word(0) - nearer;
                    nearest = L::merge(all, L::broadcast_word(i / n_subsets), nearest);
                    distance[s] = xsimd::min(square, distance[s]);
                }
                word = word | L::template shift_left<8 + 5 * s.value>(nearest);
            });
            L::store_words(words + t * lane_tile + lane, costs.step(distance, word));
        }
        walk_back<L>(args.codes + lane, words + lane, costs.last_state(),
                     [](Words word, Words subset, std::size_t) GEARKV_INLINE {
                         const Words at = L::template shift_left<2>(subset) + subset + L::broadcast_word(8);
                         return L::shift_right_by(word, at) & L::broadcast_word(31);
                     });
    }
}

// ---- codes and levels ----

// From index | p << 7 of each entry, in `codes`.
template <class L>
void split_indices(const EncodeTrellis& args) {
    using Words = typename L::Words;
    std::uint8_t table[2 << max_key_width] = {};
    const std::uint32_t n_levels = 2u << args.width;
    if (args.levels != nullptr) __builtin_memcpy(table, args.levels, n_levels);
    const auto low = L::load_table(table), high = L::load_table(table + 16);
    const Words offset = L::broadcast_word((128 - n_levels) * 0x01010101u);
    for (std::size_t i = 0; i < section_tokens * lane_tile; i += 4 * L::width) {
        const Words index = L::load_packed(args.codes + i);
        Words level;
        if (args.levels != nullptr) {
            level = L::template lookup<4>(low, high, index & L::broadcast_word(0x0f0f0f0f), index);
        } else {
            // 2 j + 128 - n_levels, then 129 more: 128 by flipping the top bit, 1 since bit 0 is free.
            level = L::template shift_left<1>(index & L::broadcast_word(0x7f7f7f7f)) + offset;
            level = (level ^ L::broadcast_word(0x80808080u)) | L::broadcast_word(0x01010101);
        }
        L::store_packed(args.chosen + i, level);
        if (args.levels != nullptr && n_levels > 32) {
            for (std::size_t j = i; j < i + 4 * L::width; ++j)
                args.chosen[j] = args.levels[args.codes[j] & 127];
        }
        const Words free_bits = L::template shift_right<1>(index) & L::broadcast_word(0x3e3e3e3e);
        const Words path = L::template shift_right<7>(index) & L::broadcast_word(0x01010101);
        L::store_packed(args.codes + i, free_bits | path);
    }
}

template <class L>
bool are_all_within(const float* x, float limit) {
    using Float = typename L::Float;
    constexpr std::size_t n_parts = 4;
    Float most[n_parts];
    unroll<n_parts>([&](auto i) GEARKV_INLINE { most[i] = L::broadcast(0.0f); });
    for (std::size_t at = 0; at < section_tokens * lane_tile; at += n_parts * L::width) {
        unroll<n_parts>([&](auto i) GEARKV_INLINE {
            const auto magnitude = L::bits(L::load(x + at + i * L::width)) & L::broadcast_word(0x7fffffff);
            most[i] = xsimd::max(most[i], L::from_bits(magnitude));
        });
    }
    float lanes[L::width];
    L::store(lanes, xsimd::max(xsimd::max(most[0], most[1]), xsimd::max(most[2], most[3])));
    for (std::size_t lane = 1; lane < L::width; ++lane)
        lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
    return lanes[0] <= limit;
}

// Encodes if the levels are those of a kind.
template <class L, TensorKind kind, std::uint32_t width>
bool encode_kind(const EncodeTrellis& args) {
    static constexpr CellTable<kind, width> table;
    static_assert(table.is_valid, "levels that the cells do not suit");
    if (args.width != width || __builtin_memcmp(args.levels, table.levels, sizeof(table.levels)) != 0)
        return false;
    encode_with<L>(args, CellCandidates<L>(table));
    return true;
}

template <class L>
bool encode_table(const EncodeTrellis& args) {
    return encode_kind<L, TensorKind::key, 3>(args) || encode_kind<L, TensorKind::value, 3>(args) ||
           encode_kind<L, TensorKind::key, 4>(args) || encode_kind<L, TensorKind::value, 4>(args);
}

template <class L>
void encode_trellis(const EncodeTrellis& args) {
    if (args.width <= 2 && args.levels != nullptr) {
        encode_with<L>(args, PairCandidates<L>(args));
    } else if (!are_all_within<L>(args.x, largest_searched)) {
        encode_searching<L>(args);
    } else if (args.levels == nullptr) {
        encode_with<L>(args, UniformCandidates<L>(args));
    } else if (!encode_table<L>(args)) {
        encode_searching<L>(args);
    }
    split_indices<L>(args);
}

}  // namespace
}  // namespace gearkv
