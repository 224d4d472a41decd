// AVX2 + FMA + F16C + AVX-VNNI: 8 floats.
#pragma once

#include "../lanes256.hpp"

namespace gearkv {
namespace {

struct AvxVnni : xsimd::fma3<xsimd::avx2> {};

}  // namespace
}  // namespace gearkv

GEARKV_DECLARE_ARCH(gearkv::AvxVnni, fma3<avx2>)

namespace gearkv {
namespace {

struct Lanes : WideLanes<Lanes, AvxVnni> {
    // Bytes of a factor: 256 high + low.
    static constexpr int factor_limit = 32639;
    static constexpr bool one_sum = false;
    static constexpr bool signed_bytes = false;
    // As avx512: told in assembly, GCC 12 leaves the sums where they are.
    static Words dot_first(Words sum, Words bytes, Words factors) {
        __m256i words = sum;
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(words) : "x"(__m256i(bytes)), "x"(__m256i(factors)));
        return words;
    }
    static Words dot_second(Words sum, Words bytes, Words factors) { return dot_first(sum, bytes, factors); }
    static void split_shorts(std::uint32_t* first, std::uint32_t* second, const std::int16_t* x) {
        store_four(first, pack(high_bytes(x), high_bytes(x + 8)));
        store_four(second, pack(low_bytes(x), low_bytes(x + 8)));
    }
    static void split_eights(std::uint32_t* first, std::uint32_t* second, const std::int16_t* x) {
        store_eights(first, pack(high_bytes(x), high_bytes(x + 8)),
                     pack(high_bytes(x + 16), high_bytes(x + 24)));
        store_eights(second, pack(low_bytes(x), low_bytes(x + 8)),
                     pack(low_bytes(x + 16), low_bytes(x + 24)));
    }

  private:
    static __m128i load_shorts(const std::int16_t* x) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    }
    static __m128i high_bytes(const std::int16_t* x) {
        return _mm_srai_epi16(_mm_add_epi16(load_shorts(x), _mm_set1_epi16(128)), 8);
    }
    // With their sign, so that packing does not saturate them.
    static __m128i low_bytes(const std::int16_t* x) {
        return _mm_srai_epi16(_mm_slli_epi16(load_shorts(x), 8), 8);
    }
    static __m128i pack(__m128i a, __m128i b) { return _mm_packs_epi16(a, b); }
    static void store_four(std::uint32_t* words, __m128i bytes) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(words), bytes);
    }
    // Rows of eight bytes 0 and 1, 2 and 3; byte 8 i + k to 4 k + i.
    static void store_eights(std::uint32_t* words, __m128i low_rows, __m128i high_rows) {
        const __m128i low = _mm_unpacklo_epi8(low_rows, _mm_unpackhi_epi64(low_rows, low_rows)),
                      high = _mm_unpacklo_epi8(high_rows, _mm_unpackhi_epi64(high_rows, high_rows));
        store_four(words, _mm_unpacklo_epi16(low, high));
        store_four(words + 4, _mm_unpackhi_epi16(low, high));
    }
};

}  // namespace
}  // namespace gearkv
