// Factors of integer dot products: queries and weights as two signed bytes each,
//
//   factor = scale (256 high + low),   |256 high + low| <= 32639
//
// so that a factor is off by at most factor_step of the largest of its row. Sums of max_dim products of a
// byte of codes and one of factors stay below 2^25: those of high and of low bytes are exact in words.
#pragma once

#include <xsimd/xsimd.hpp>

#include "kernels.hpp"
#include "unroll.inl.hpp"

namespace gearkv {
namespace {

inline constexpr float largest_factor = 32639.0f;
inline constexpr float factor_step = 0.5f / largest_factor * 1.001f;

// How the bytes of a row were made, and their sums.
struct FactorScale {
    float low;   // of a low byte
    float high;  // 256 times that
    std::int32_t low_sum, high_sum;
};

// Bytes of a few rows of up to n factors. Four factors are one word, the first in its lowest byte.
template <std::size_t n>
struct FactorBytes {
    alignas(64) std::uint8_t high[max_rows][n];
    alignas(64) std::uint8_t low[max_rows][n];
    FactorScale scale[max_rows];
};

// Sums of high and of low bytes of n_rows rows and n_vectors vectors of lanes. With few of them every sum is
// split in parts, for enough of them to hide the latency of a dot product.
template <class L, std::size_t n_rows_, std::size_t n_vectors_>
struct ByteSums {
    using Words = typename L::Words;
    static constexpr std::size_t n_rows = n_rows_;
    static constexpr std::size_t n_vectors = n_vectors_;
    static constexpr std::size_t n_parts = n_rows * n_vectors >= 4 ? 1 : 4 / (n_rows * n_vectors);
    Words high[n_parts][n_rows][n_vectors], low[n_parts][n_rows][n_vectors];

    // What the bytes have too much, `bias` each, is taken off before they are added.
    [[gnu::always_inline]] void start(const FactorScale* scale, std::int32_t bias) {
        unroll<n_parts>([&](auto part) GEARKV_INLINE {
            unroll<n_rows>([&](auto r) GEARKV_INLINE {
                unroll<n_vectors>([&](auto v) GEARKV_INLINE {
                    const bool first = part == 0;
                    const auto word = [&](std::int32_t sum) GEARKV_INLINE {
                        return L::broadcast_word(first ? static_cast<std::uint32_t>(-bias * sum) : 0);
                    };
                    high[part][r][v] = word(scale[r].high_sum);
                    low[part][r][v] = word(scale[r].low_sum);
                });
            });
        });
    }
    // Adds four bytes of every lane, which meet the four factors at high_at and low_at of each row.
    template <std::size_t part>
    [[gnu::always_inline]] void add(const Words (&bytes)[n_vectors], const std::uint8_t* high_at,
                                    const std::uint8_t* low_at, std::size_t stride) {
        constexpr std::size_t to = part % n_parts;
        unroll<n_rows>([&](auto r) GEARKV_INLINE {
            const Words high_four = four_factors(high_at + r * stride),
                        low_four = four_factors(low_at + r * stride);
            unroll<n_vectors>([&](auto v) GEARKV_INLINE {
                high[to][r][v] = L::dot(high[to][r][v], bytes[v], high_four);
                low[to][r][v] = L::dot(low[to][r][v], bytes[v], low_four);
            });
        });
    }
    template <std::size_t r, std::size_t v>
    [[gnu::always_inline]] typename L::Float sum(const FactorScale* scale) const {
        Words high_sum = high[0][r][v], low_sum = low[0][r][v];
        unroll<n_parts - 1>([&](auto part) GEARKV_INLINE {
            high_sum = high_sum + high[part + 1][r][v];
            low_sum = low_sum + low[part + 1][r][v];
        });
        return L::fma(L::from_signed(high_sum), L::broadcast(scale[r].high),
                      L::from_signed(low_sum) * L::broadcast(scale[r].low));
    }

  private:
    [[gnu::always_inline]] static Words four_factors(const std::uint8_t* at) {
        std::uint32_t word;
        __builtin_memcpy(&word, at, sizeof(word));
        return L::broadcast_word(word);
    }
};

// Bytes of n factors; high and low have room for round_up(n, 16).
template <class L>
FactorScale split_factors(const float* x, std::size_t n, std::uint8_t* high, std::uint8_t* low) {
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
    constexpr float least = 0x1p-100f;  // what is smaller is taken for 0
    const float inverse = end > least ? largest_factor / end : 0.0f;
    FactorScale scale = {end > least ? end / largest_factor : end * 0.0f, 0.0f, 0, 0};
    scale.high = scale.low * 256.0f;
    // Adding 1.5 2^23 leaves an integer in the low bits.
    const Float shift = L::broadcast(0x1.8p23f), factor = L::broadcast(inverse);
    Words low_sums = L::broadcast_word(0), high_sums = low_sums;
    for (std::size_t i = 0; i < n; i += L::width) {
        const Words whole = L::bits(L::fma(load(i), factor, shift)) - L::bits(shift);
        const Words rounded = whole + L::broadcast_word(128);
        const Words high_part = L::template shift_right<8>(rounded);
        L::store_low_bytes(low + i, whole);
        L::store_low_bytes(high + i, high_part);
        // The words are 256 high + low; both parts are summed as words.
        const Words high_bits = rounded & L::broadcast_word(0xffffff00u);
        high_sums = high_sums + high_bits;
        low_sums = low_sums + (whole - high_bits);
    }
    scale.low_sum = L::sum_words(low_sums);
    scale.high_sum = L::sum_words(high_sums) / 256;
    return scale;
}

}  // namespace
}  // namespace gearkv
