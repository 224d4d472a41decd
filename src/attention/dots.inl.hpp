// Integer dot products of bytes (levels or codes) with factors (queries or weights).
//
// A factor becomes an integer, and four of them two words, in the form the level's instructions take:
//   bytes    integer = 256 a + b:  the first word has the four a, the second the four b, all signed bytes
//   shorts   the first word has integers 0 and 2, the second 1 and 3, as signed shorts
// A word of four bytes meets both: with bytes each into a sum of its own, which come together as floats, with
// shorts (L::one_sum) into the same. An integer is at most integer_limit, so a factor is off by at most
// factor_step of the largest of its row, and the sums of max_dim products stay within words.
#pragma once

#include <xsimd/xsimd.hpp>

#include "format/block.hpp"
#include "kernels/kernels.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

template <class L>
inline constexpr float factor_step = 0.5f / static_cast<float>(L::factor_limit) * 1.001f;

// The largest integer of a row of n factors. One sum holds 256 products of 255 and a short, so longer rows
// have shorter integers.
template <class L>
constexpr float integer_limit(std::size_t n) {
    return static_cast<float>(L::one_sum && n > 256 ? L::factor_limit >> (n > 512 ? 2 : 1) : L::factor_limit);
}

// What the products with either word are worth, and the sums of their factors; with one sum the first has
// all.
struct FactorScale {
    float first, second;
    std::int32_t first_sum, second_sum;
};

// A few rows of up to n factors, as words of four.
template <std::size_t n>
struct DotFactors {
    static constexpr std::size_t n_words = n / 4;
    alignas(64) std::uint32_t first[max_rows][n_words];
    alignas(64) std::uint32_t second[max_rows][n_words];
    FactorScale scale[max_rows];
};

// What makes integers of factors, of which the largest has magnitude `end`, and what an integer is worth.
struct FactorUnit {
    float factor, unit;
    FactorUnit(float end, float limit) {
        constexpr float least = 0x1p-100f;  // what is smaller is taken for 0
        factor = end > least ? limit / end : 0.0f;
        unit = end > least ? end / limit : end * 0.0f;
    }
};

// Rounds n factors, a multiple of 4, to integers; `integers` has room for round_up(n, 16), the rest become 0.
template <class L>
FactorScale round_factors(const float* x, std::size_t n, std::int16_t* integers) {
    using Float = typename L::Float;
    using Words = typename L::Words;
    const auto load = [&](std::size_t i) GEARKV_INLINE {
        return i + L::width <= n ? L::load(x + i) : L::load_first(x + i, n - i);
    };
    const Words magnitude = L::broadcast_word(0x7fffffff);
    Float most = L::broadcast(0.0f);
    for (std::size_t i = 0; i < n; i += L::width)
        most = xsimd::max(L::from_bits(L::bits(load(i)) & magnitude), most);
    const float end = L::largest(most);
    const FactorUnit of(end, integer_limit<L>(n));
    // Adding 1.5 2^23 leaves an integer in the low bits.
    const Float shift = L::broadcast(0x1.8p23f), factor = L::broadcast(of.factor);
    Words sums = L::broadcast_word(0), high_sums = sums;  // of integers, and of 256 times their high bytes
    std::size_t i = 0;
    for (; i < n; i += L::width) {
        const Words whole = L::bits(L::fma(load(i), factor, shift)) - L::bits(shift);
        L::store_shorts(integers + i, whole);
        sums = sums + whole;
        if constexpr (!L::one_sum)
            high_sums = high_sums + ((whole + L::broadcast_word(128)) & L::broadcast_word(0xffffff00u));
    }
    for (; i % lane_tile != 0; ++i)
        integers[i] = 0;
    const std::int32_t sum = L::sum_words(sums);
    if constexpr (L::one_sum) {
        return {of.unit, of.unit, sum, 0};
    } else {
        const std::int32_t high_sum = L::sum_words(high_sums) / 256;
        return {256.0f * of.unit, of.unit, high_sum, sum - 256 * high_sum};
    }
}

// n_rows rows of n_factors, a multiple of 4: in natural order, or by eights, and then their words have the
// factors 32 j + k, + 8, + 16, + 24 at [j][k].
template <class L, bool eights, std::size_t n>
void set_factors(DotFactors<n>* factors, const float* x, std::size_t stride, std::size_t n_factors,
                 std::size_t n_rows) {
    if constexpr (L::rounds_bytes) {
        static_assert(n % 64 == 0);
        float ends[max_rows];
        for (std::size_t row = 0; row < n_rows; ++row)
            ends[row] = L::largest_magnitude(x + row * stride, n_factors);
        for (std::size_t row = 0; row < n_rows; ++row) {
            const FactorUnit unit(ends[row], integer_limit<L>(n_factors));
            FactorScale& scale = factors->scale[row];
            scale.first = 256.0f * unit.unit;
            scale.second = unit.unit;
            L::template round_bytes<eights>(factors->first[row], factors->second[row], x + row * stride,
                                            n_factors, unit.factor, &scale.first_sum, &scale.second_sum);
        }
    } else {
        constexpr std::size_t step = eights ? 32 : 16;
        for (std::size_t row = 0; row < n_rows; ++row) {
            std::int16_t integers[n];
            factors->scale[row] = round_factors<L>(x + row * stride, n_factors, integers);
            for (std::size_t i = 0; i < n_factors; i += step) {
                std::uint32_t *first = factors->first[row] + i / 4, *second = factors->second[row] + i / 4;
                if constexpr (eights) {
                    L::split_eights(first, second, integers + i);
                } else {
                    L::split_shorts(first, second, integers + i);
                }
            }
        }
    }
}

// Sums of n_rows rows and n_vectors vectors of lanes. With few of them every sum is split in parts, for
// enough of them to hide the latency of a dot product.
template <class L, std::size_t n_rows_, std::size_t n_vectors_>
struct DotSums {
    using Words = typename L::Words;
    static constexpr std::size_t n_rows = n_rows_;
    static constexpr std::size_t n_vectors = n_vectors_;
    static constexpr std::size_t n_parts = n_rows * n_vectors >= 4 ? 1 : 4 / (n_rows * n_vectors);
    Words first[n_parts][n_rows][n_vectors];
    Words second[L::one_sum ? 1 : n_parts][n_rows][n_vectors];  // unused with one sum

    // What the bytes have too much, `bias` each, is taken off before they are added.
    [[gnu::always_inline]] void start(const FactorScale* scale, std::int32_t bias) {
        unroll<n_parts>([&](auto part) GEARKV_INLINE {
            unroll<n_rows>([&](auto r) GEARKV_INLINE {
                const auto word = [&](std::int32_t sum) GEARKV_INLINE {
                    return L::broadcast_word(part == 0 ? static_cast<std::uint32_t>(-bias * sum) : 0);
                };
                unroll<n_vectors>([&](auto v) GEARKV_INLINE {
                    first[part][r][v] = word(scale[r].first_sum);
                    if constexpr (!L::one_sum) second[part][r][v] = word(scale[r].second_sum);
                });
            });
        });
    }
    // Adds four bytes of every lane, which meet the words of each row; rows of words are `stride` apart.
    template <std::size_t part>
    [[gnu::always_inline]] void add(const Words (&bytes)[n_vectors], const std::uint32_t* first_word,
                                    const std::uint32_t* second_word, std::size_t stride) {
        constexpr std::size_t to = part % n_parts;
        unroll<n_rows>([&](auto r) GEARKV_INLINE {
            const Words a = L::broadcast_word(first_word[r * stride]),
                        b = L::broadcast_word(second_word[r * stride]);
            unroll<n_vectors>([&](auto v) GEARKV_INLINE {
                first[to][r][v] = L::dot_first(first[to][r][v], bytes[v], a);
                Words& other = L::one_sum ? first[to][r][v] : second[L::one_sum ? 0 : to][r][v];
                other = L::dot_second(other, bytes[v], b);
            });
        });
    }
    template <std::size_t r, std::size_t v>
    [[gnu::always_inline]] typename L::Float sum(const FactorScale* scale) const {
        Words a = first[0][r][v];
        unroll<n_parts - 1>([&](auto part) GEARKV_INLINE { a = a + first[part + 1][r][v]; });
        if constexpr (L::one_sum) return L::from_signed(a) * L::broadcast(scale[r].first);
        Words b = second[0][r][v];
        unroll<n_parts - 1>([&](auto part)
                                GEARKV_INLINE { b = b + second[L::one_sum ? 0 : part + 1][r][v]; });
        return L::fma(L::from_signed(a), L::broadcast(scale[r].first),
                      L::from_signed(b) * L::broadcast(scale[r].second));
    }
};

// Rows times vectors whose sums fit half of the registers.
template <class L>
inline constexpr std::size_t most_dot_sums = L::n_registers / (L::one_sum ? 2 : 4);

}  // namespace
}  // namespace gearkv
