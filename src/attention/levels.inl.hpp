// The levels of a granule, for one vector level of the machine.
//
// The words of a granule hold one bit of four neighbours a byte. The two low bits of a level's index are the
// path bits of the token before and of the token two before, so z0 and z1 are planes too: the path plane
// moved by one and two tokens. For each bit k of the bytes the index bits of all planes are brought together
// and looked up as bytes, four levels a word.
#pragma once

#include <xsimd/xsimd.hpp>

#include "format/trellis.hpp"
#include "kernels/kernels.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

// What the bytes of a word become.
enum class LevelForm {
    biased,     // level + 128, unsigned
    two_sided,  // level, signed
};

// The low bytes of levels, or of levels + 128, which do not borrow from each other; 8 levels are there twice.
template <TensorKind kind, std::uint32_t width, LevelForm form>
struct LevelBytes {
    std::uint8_t entries[32] = {};
    constexpr LevelBytes() {
        for (std::uint32_t i = 0; i < 32; ++i) {
            const int level = trellis_level(kind, width, i & ((2u << width) - 1));
            entries[i] = static_cast<std::uint8_t>(form == LevelForm::two_sided ? level : level + 128);
        }
    }
};

template <class L, TensorKind kind, std::uint32_t width, LevelForm form>
struct TrellisTable {
    typename L::ByteTable low;
    decltype(L::load_table_pair(nullptr)) both;

    TrellisTable() {
        static constexpr LevelBytes<kind, width, form> levels;
        low = L::load_table(levels.entries);
        both = L::load_table_pair(levels.entries);
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
template <class L, TensorKind kind, std::uint32_t width, LevelForm form, std::uint32_t k>
[[gnu::always_inline]] inline typename L::Words join_levels(const TrellisTable<L, kind, width, form>& table,
                                                            const IndexPlanes<L, width>& planes,
                                                            typename L::Words index) {
    typename L::Words bytes;
    if constexpr (width <= 3) {
        bytes = L::lookup(table.low, index);
    } else if constexpr (width == 4) {
        bytes = L::template lookup_pair<k>(table.both, index, planes.bits[4]);
    } else {
        // 2 j - (2^(width+1) - 1), as unsigned bytes 128 more
        bytes = L::template shift_left<1>(index);
        unroll<width - 3>([&](auto i) GEARKV_INLINE {
            bytes = L::template put_bits<k, 5 + i.value, 1>(bytes, planes.bits[4 + i.value]);
        });
        constexpr std::uint32_t end = (2u << width) - 1;
        bytes = bytes + L::broadcast_word((128 - end) * 0x01010101u);
        if constexpr (form == LevelForm::two_sided) bytes = bytes ^ L::broadcast_word(0x80808080u);
        return bytes;
    }
    return bytes;
}

// Whether the upper bits of an index are joined for two words at once: where L has shifts with insert.
template <class L, std::uint32_t width, LevelForm form>
inline constexpr bool joins_top = L::inserts_nibbles&& width >= 4 && form == LevelForm::two_sided;

// The levels of the nibbles of `index`, the lower ones and the upper ones, whose upper bits are those from
// `first` on in `top`: plane 4, or fields of two bits of planes 4 and 5.
template <class L, TensorKind kind, std::uint32_t width, LevelForm form, std::uint32_t k, class Body>
[[gnu::always_inline]] inline void join_two(const TrellisTable<L, kind, width, form>& table,
                                            const IndexPlanes<L, width>& planes, typename L::Words index,
                                            typename L::Words top, const Body& body) {
    using Words = typename L::Words;
    constexpr std::uint32_t first = width == 4 ? k : k / 2 * 2;
    if constexpr (first > 0) top = L::template shift_right<first>(top);
    top = top & L::broadcast_word(width == 4 ? 0x11111111u : 0x33333333u);
    const auto finish = [&](auto at, Words full) GEARKV_INLINE {
        if constexpr (width == 4) {
            body(at, L::lookup_pair(table.both, full));
        } else {
            if constexpr (width == 6) full = L::template put_bits<at.value, 6, 1>(full, planes.bits[6]);
            body(at, L::twice_less(full, (2u << width) - 1));
        }
    };
    finish(Index<k>(), L::insert_upper(index, top));
    finish(Index<k + 4>(), L::insert_lower(top, index));
}

// When the words of k are visited: 0, 4, 2, 6, 1, 5, 3, 7.
template <std::size_t k>
inline constexpr std::size_t visit_place = k % 2 * 4 + k % 4 / 2 * 2 + k / 4;

// body(Index<k>, words) for k = 0 to 7, in the order of visit_place.
template <class L, TensorKind kind, std::uint32_t width, LevelForm form, class Body>
[[gnu::always_inline]] inline void visit_levels(const TrellisTable<L, kind, width, form>& table,
                                                const IndexPlanes<L, width>& planes, const Body& body) {
    using Words = typename L::Words;
    unroll<2>([&](auto odd) GEARKV_INLINE {
        // Fields of two bits: tokens of one parity.
        // A width of 1 has no others: what the table does not depend on may be anything.
        Words low_pair, high_pair, top = planes.bits[width >= 4 ? 4 : 0];
        constexpr std::size_t fifth = width > 4 ? 5 : 0;
        if constexpr (odd == 0) {
            low_pair = interleave<L, 1, 0x55555555u>(planes.bits[0], planes.bits[1]);
            high_pair = width > 1 ? planes.bits[2 * (width > 1)] : low_pair;
            if constexpr (width > 2) high_pair = interleave<L, 1, 0x55555555u>(high_pair, planes.bits[3]);
            if constexpr (width > 4 && joins_top<L, width, form>)
                top = interleave<L, 1, 0x55555555u>(top, planes.bits[fifth]);
        } else {
            if constexpr (width > 4 && joins_top<L, width, form>)
                top = interleave_upper<L, 1, 0x55555555u>(top, planes.bits[fifth]);
            low_pair = interleave_upper<L, 1, 0x55555555u>(planes.bits[0], planes.bits[1]);
            if constexpr (width > 2) {
                high_pair = interleave_upper<L, 1, 0x55555555u>(planes.bits[2], planes.bits[3]);
            } else if constexpr (width == 2) {
                high_pair = L::template shift_right<1>(planes.bits[2]);
            } else {
                high_pair = low_pair;
            }
        }
        unroll<2>([&](auto upper) GEARKV_INLINE {
            // Fields of four bits: every fourth token. With a width of 2 the table does not depend on bit 3,
            // with one of 1 on bits 2 and 3.
            Words index;
            if constexpr (width == 1) {
                index = upper == 0 ? low_pair : L::template shift_right<2>(low_pair);
            } else if constexpr (upper == 0) {
                index = interleave<L, 2, 0x33333333u>(low_pair, high_pair);
            } else {
                index = interleave_upper<L, 2, 0x33333333u>(low_pair, high_pair);
            }
            constexpr std::size_t k = odd.value + 2 * upper.value;
            if constexpr (joins_top<L, width, form>) {
                join_two<L, kind, width, form, k>(table, planes, index, top, body);
            } else {
                const Words low_index = index & L::broadcast_word(0x0f0f0f0fu);
                body(Index<k>(), join_levels<L, kind, width, form, k>(table, planes, low_index));
                index = L::high_nibbles(index);
                body(Index<k + 4>(), join_levels<L, kind, width, form, k + 4>(table, planes, index));
            }
        });
    });
}

// ---- keys: lane l has tokens 8 l to 8 l + 7 ----
// The levels of a few granules are laid down as words, which all rows then share.

inline constexpr std::size_t most_granules = 32;  // at a time: 16 KiB of words

using KeyLevels = std::uint32_t[8][key_plane_words];  // [k][l]: token 8 l + k

// body(Index<k>, words, l): the words of some tokens 8 l + k, from l on.
template <class L, std::uint32_t width, LevelForm form, class Body>
[[gnu::always_inline]] inline void visit_key_levels(const std::uint32_t* words, const Body& body) {
    using Words = typename L::Words;
    const TrellisTable<L, TensorKind::key, width, form> table;
    for (std::size_t lane = 0; lane < key_plane_words; lane += L::width) {
        const Words path = L::load_words(words + lane);
        const Words before = lane == 0 ? L::load_after_zero(words) : L::load_words(words + lane - 1);
        IndexPlanes<L, width> planes;
        planes.bits[0] = L::template shift_bytes<1>(path, before);
        planes.bits[1] = path ^ L::template shift_bytes<2>(path, before);
        unroll<width - 1>([&](auto i) GEARKV_INLINE {
            planes.bits[2 + i] = L::load_words(words + (i + 1) * key_plane_words + lane);
        });
        visit_levels<L, TensorKind::key, width, form>(
            table, planes, [&](auto k, auto joined) GEARKV_INLINE { body(k, joined, lane); });
    }
}

template <class L, std::uint32_t width, LevelForm form>
void join_key_granule(KeyLevels& levels, const std::uint32_t* words) {
    visit_key_levels<L, width, form>(words, [&](auto k, auto joined, std::size_t lane)
                                                GEARKV_INLINE { L::store_words(levels[k] + lane, joined); });
}

// Granules by width, those of width 0 first: a width that differs from granule to granule would be
// mispredicted every other time.
struct WidthOrder {
    std::uint8_t granule[most_granules];
    std::uint16_t words[most_granules];      // first word of each granule, counted from the first of all
    std::uint32_t first[max_key_width + 2];  // place of each width's first granule

    WidthOrder(const std::uint8_t* widths, std::size_t n) {
        static_assert(most_granules < 256 && max_key_width < 7);
        std::uint64_t counts = 0;  // a byte for each width
        for (std::size_t g = 0; g < n; ++g)
            counts += std::uint64_t{1} << (8 * widths[g]);
        std::uint64_t next = counts * 0x0101010101010100u;  // of all smaller widths
        for (std::size_t width = 0; width < max_key_width + 2; ++width)
            first[width] = next >> (8 * width) & 255;
        std::uint32_t at = 0;
        for (std::size_t g = 0; g < n; ++g) {
            const std::uint32_t width = widths[g];
            const std::uint32_t place = next >> (8 * width) & 255;
            next += std::uint64_t{1} << (8 * width);
            granule[place] = static_cast<std::uint8_t>(g);
            words[place] = static_cast<std::uint16_t>(at);
            at += width * key_plane_words;
        }
    }
};

template <class L, LevelForm form, std::uint32_t width = 1>
void join_key_levels(KeyLevels* levels, const std::uint32_t* words, const WidthOrder& order) {
    if constexpr (width <= max_key_width) {
        for (std::uint32_t i = order.first[width]; i < order.first[width + 1]; ++i)
            join_key_granule<L, width, form>(levels[i], words + order.words[i]);
        join_key_levels<L, form, width + 1>(levels, words, order);
    }
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

// Calls score(part) for most_granules granules of a section after the other.
template <class Score>
void for_granules(const ScoreTrellis& args, const Score& score) {
    ScoreTrellis part = args;
    for (std::size_t g = 0; g < args.n_granules; g += most_granules) {
        const std::size_t n_left = args.n_granules - g;
        part.n_granules = static_cast<std::uint32_t>(n_left < most_granules ? n_left : most_granules);
        score(part);
        for (std::size_t i = 0; i < part.n_granules; ++i)
            part.words += part.widths[i] * key_plane_words;
        part.widths += part.n_granules;
        part.query += part.n_granules * key_granule;
        part.ahead = part.also = {};
    }
}

// ---- values: lanes are channels, words have 32 tokens ----

// The slices of a section that are mixed, two a round: those of a word where all are, else brought together,
// and then rounds are fewer. One that is left over goes with its neighbour, which counts for nothing there.
struct SliceRounds {
    static constexpr std::uint32_t most = section_tokens / (2 * slice_tokens);
    std::uint32_t n = 0;
    std::uint8_t low[most], high[most];
    std::uint8_t spare = all_slices;  // the neighbour, in the last round

    explicit SliceRounds(std::uint32_t slices) {
        n = (static_cast<std::uint32_t>(__builtin_popcount(slices & all_slices)) + 1) / 2;
        if (n == most) slices = all_slices;
        for (std::uint32_t i = 0; i < n; ++i) {
            const std::uint8_t first = take(slices);
            if (slices == 0) spare = first ^ 1;
            const std::uint8_t second = slices == 0 ? spare : take(slices);
            low[i] = first < second ? first : second;
            high[i] = first < second ? second : first;
        }
    }

    // Rows of weights in the order of the rounds, zeros behind them, in `moved`, which is not needed when all
    // are mixed. Returns the distance between rows.
    std::size_t order_weights(const float** weights, std::size_t stride, float (*moved)[section_tokens],
                              std::size_t n_rows) const {
        if (n == most) return stride;
        for (std::size_t row = 0; row < n_rows; ++row) {
            const float* from = *weights + row * stride;
            float* to = moved[row];
            const auto put = [&](std::uint8_t slice, bool is_spare) {
                constexpr std::size_t n_bytes = slice_tokens * sizeof(float);
                if (is_spare) {
                    __builtin_memset(to, 0, n_bytes);
                } else {
                    __builtin_memcpy(to, from + slice * slice_tokens, n_bytes);
                }
                to += slice_tokens;
            };
            for (std::uint32_t i = 0; i < n; ++i) {
                put(low[i], i + 1 == n && low[i] == spare);
                put(high[i], i + 1 == n && high[i] == spare);
            }
            for (; to < moved[row] + section_tokens; to += slice_tokens)
                __builtin_memset(to, 0, slice_tokens * sizeof(float));
        }
        *weights = moved[0];
        return section_tokens;
    }

  private:
    static std::uint8_t take(std::uint32_t& slices) {
        const auto first = static_cast<std::uint8_t>(__builtin_ctz(slices));
        slices &= slices - 1;
        return first;
    }
};

// The planes of the 32 tokens of one word.
template <class L, std::uint32_t width>
[[gnu::always_inline]] inline IndexPlanes<L, width> load_word_planes(const std::uint32_t* words,
                                                                     std::size_t word) {
    using Words = typename L::Words;
    words += word * lane_tile;
    IndexPlanes<L, width> planes;
    const Words path = L::load_words(words);
    const Words before = word == 0 ? L::broadcast_word(0) : L::load_words(words - lane_tile);
    planes.bits[0] = L::template shift_words<1>(path, before);
    planes.bits[1] = path ^ L::template shift_words<2>(path, before);
    unroll<width - 1>([&](auto i) GEARKV_INLINE {
        planes.bits[2 + i] = L::load_words(words + (i + 1) * value_plane_words);
    });
    return planes;
}

// Those of two slices, `low` in the lower half of a word.
template <class L, std::uint32_t width>
[[gnu::always_inline]] inline IndexPlanes<L, width> load_slice_planes(const std::uint32_t* words,
                                                                      std::size_t low, std::size_t high) {
    using Words = typename L::Words;
    const std::uint32_t *of_low = words + low / 2 * lane_tile, *of_high = words + high / 2 * lane_tile;
    const Words upper = L::broadcast_word(0xffff0000u);
    // The path of a slice in the upper half, and of the one before it in the lower.
    const auto path_of = [&](const std::uint32_t* at, std::size_t slice) GEARKV_INLINE {
        const Words path = L::load_words(at);
        if (slice % 2 != 0) return path;
        return L::template shift_words<16>(path,
                                           slice == 0 ? L::broadcast_word(0) : L::load_words(at - lane_tile));
    };
    const Words a = path_of(of_low, low), b = path_of(of_high, high);
    const auto join = [&](Words in_high, Words in_low) GEARKV_INLINE {
        return L::merge(upper, in_high, L::template shift_right<16>(in_low));
    };
    IndexPlanes<L, width> planes;
    planes.bits[0] = join(L::template shift_left<1>(b), L::template shift_left<1>(a));
    planes.bits[1] = join(b ^ L::template shift_left<2>(b), a ^ L::template shift_left<2>(a));
    const Words low_by = L::broadcast_word(low % 2 * 16), high_by = L::broadcast_word(high % 2 * 16);
    unroll<width - 1>([&](auto i) GEARKV_INLINE {
        constexpr std::size_t plane = (i.value + 1) * value_plane_words;
        const Words in_low = L::shift_right_by(L::load_words(of_low + plane), low_by),
                    in_high = L::shift_right_by(L::load_words(of_high + plane), high_by);
        planes.bits[2 + i] = L::merge(upper, L::template shift_left<16>(in_high), in_low);
    });
    return planes;
}

// body(Index<k>, words, first token) for the words of each 32 tokens, in the order of the rounds: byte i of a
// word has token 8 i + k.
template <class L, std::uint32_t width, LevelForm form, class Body>
[[gnu::always_inline]] inline void visit_value_levels(const std::uint32_t* words, const SliceRounds& rounds,
                                                      const Body& body) {
    const TrellisTable<L, TensorKind::value, width, form> table;
    for (std::size_t i = 0; i < rounds.n; ++i) {
        const std::size_t low = rounds.low[i], high = rounds.high[i];
        IndexPlanes<L, width> planes;
        if (low % 2 == 0 && high == low + 1) {
            planes = load_word_planes<L, width>(words, low / 2);
        } else {
            planes = load_slice_planes<L, width>(words, low, high);
        }
        visit_levels<L, TensorKind::value, width, form>(
            table, planes, [&](auto k, auto levels) GEARKV_INLINE { body(k, levels, 32 * i); });
    }
}

}  // namespace
}  // namespace gearkv
