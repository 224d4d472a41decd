// AVX2 + FMA + F16C: 8 floats.
#pragma once

#include "../lanes256.hpp"

namespace gearkv {
namespace {

struct Avx2 : xsimd::fma3<xsimd::avx2> {};

}  // namespace
}  // namespace gearkv

GEARKV_DECLARE_ARCH(gearkv::Avx2, fma3<avx2>)

namespace gearkv {
namespace {

struct Lanes : WideLanes<Lanes, Avx2> {
    // Shorts of a factor, in pairs for every other byte: products of two bytes would need saturating sums.
    static constexpr int factor_limit = 32767;
    static constexpr bool one_sum = true;
    static constexpr bool signed_bytes = false;
    static Words dot_first(Words sum, Words bytes, Words factors) {
        const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi32(0x00ff00ff));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(even, factors));
    }
    static Words dot_second(Words sum, Words bytes, Words factors) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(bytes, 8), factors));
    }
    static void split_shorts(std::uint32_t* first, std::uint32_t* second, const std::int16_t* x) {
        const __m256i pick = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4,
                                              5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        const __m256i shorts = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
        const __m256i pairs = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(shorts, pick), 0xd8);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(first), _mm256_castsi256_si128(pairs));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(second), _mm256_extracti128_si256(pairs, 1));
    }
    static void split_eights(std::uint32_t* first, std::uint32_t* second, const std::int16_t* x) {
        join_eights(first, x, x + 16);
        join_eights(second, x + 8, x + 24);
    }

  private:
    // Eight words of two shorts.
    static void join_eights(std::uint32_t* words, const std::int16_t* low, const std::int16_t* high) {
        const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(low)),
                      b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(words), _mm_unpacklo_epi16(a, b));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(words + 4), _mm_unpackhi_epi16(a, b));
    }
};

}  // namespace
}  // namespace gearkv
