// AVX-512 F, CD, BW, DQ, VL, VBMI, IFMA, VNNI: 16 floats. Later versions of xsimd want IFMA beside VBMI.
#pragma once

#include <immintrin.h>

#include "../../lanes.hpp"

namespace gearkv {
namespace {

struct Avx512 : xsimd::avx512bw {};

}  // namespace
}  // namespace gearkv

GEARKV_DECLARE_ARCH(gearkv::Avx512, avx512bw)

namespace gearkv {
namespace {

struct Lanes : BasicLanes<Lanes, Avx512> {
    static constexpr std::size_t n_registers = 32;

    // xsimd before 9 rounds the product apart.
    static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static Float round(Float a) {
        return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    static constexpr bool scales_by_powers = true;
    static Float scale_by_power(Float a, Float k) { return _mm512_scalef_ps(a, k); }
    static Float to_float(Words a) { return _mm512_cvtepi32_ps(a); }
    static Words to_words(Float a) { return _mm512_cvttps_epi32(a); }
    static Words bits(Float a) { return _mm512_castps_si512(a); }
    static Float from_bits(Words a) { return _mm512_castsi512_ps(a); }
    static Float load_half(const std::uint16_t* x) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    }
    static void store_half(std::uint16_t* x, Float a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    }
    static Words load_shorts(const std::uint16_t* x) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    }
    static void store_low_shorts(std::uint16_t* x, Words a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtepi32_epi16(a));
    }
    static Words load_bytes(const std::uint8_t* x) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    }
    static void store_bytes(std::uint8_t* x, Float a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(a)));
    }
    static float sum(Float a) {
        const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    static float smallest(Float a) { return _mm512_reduce_min_ps(a); }
    static float largest(Float a) { return _mm512_reduce_max_ps(a); }
    static void sum_each(float* out, Float a, Float b, Float c, Float d) {
        const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        const __m512 quarters =
            _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
        const __m256 halves =
            _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
    }

    using Mask = __mmask16;
    using ByteTable = __m512i;  // four times, one for each quarter
    using FloatTable = __m512;
    using FloatIndex = __m512i;
    static Float from_signed(Words a) { return _mm512_cvtepi32_ps(a); }
    static void zip(Float& a, Float& b) {
        const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        const __m512 low = _mm512_permutex2var_ps(a, first, b);
        b = _mm512_permutex2var_ps(a, second, b);
        a = low;
    }
    static std::uint32_t lane_bits(Mask m) { return m; }
    static Mask less(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
    template <std::uint32_t n>
    static Words mark(Words a, Mask m) {
        return _mm512_mask_or_epi32(a, m, a, _mm512_set1_epi32(1 << n));
    }
    static Words merge(Words m, Words a, Words b) { return _mm512_ternarylogic_epi32(m, a, b, 0xca); }
    static Words shift_right_by(Words a, Words n) { return _mm512_srlv_epi32(a, n); }
    static Words load_after_zero(const std::uint32_t* x) {
        return _mm512_alignr_epi32(_mm512_loadu_si512(x), _mm512_setzero_si512(), 15);
    }
    static void store_low_bytes(std::uint8_t* x, Words a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm512_cvtepi32_epi8(a));
    }
    static Words load_packed(const void* x) { return _mm512_loadu_si512(x); }
    static void store_packed(void* x, Words a) { _mm512_storeu_si512(x, a); }
    static ByteTable load_table(const void* x) {
        return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(x)));
    }
    static Words lookup(ByteTable table, Words a) { return _mm512_shuffle_epi8(table, a); }
    template <std::uint32_t n>
    static Words lookup(ByteTable low, ByteTable high, Words a, Words b) {
        const __mmask64 is_high = _mm512_test_epi8_mask(b, _mm512_set1_epi8(static_cast<char>(1 << n)));
        return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(low, a), is_high, high, a);
    }
    static Words turn_bytes(Words a) {
        return _mm512_shuffle_epi8(
            a, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
    }
    static FloatTable load_float_table(const float* x) { return _mm512_loadu_ps(x); }
    static FloatIndex float_index(Words a) { return a; }
    static Float lookup_float(FloatTable table, FloatIndex at) { return _mm512_permutexvar_ps(at, table); }

    // Bytes of a factor: 256 high + low.
    static constexpr int factor_limit = 32639;
    static constexpr bool one_sum = false;
    static constexpr bool signed_bytes = false;
    // Told in assembly, GCC 12 leaves the sums where they are; with the intrinsic it moves and spills them.
    static Words dot_first(Words sum, Words bytes, Words factors) {
        __m512i words = sum;
        __asm__("vpdpbusd %2, %1, %0" : "+v"(words) : "v"(__m512i(bytes)), "v"(__m512i(factors)));
        return words;
    }
    static Words dot_second(Words sum, Words bytes, Words factors) { return dot_first(sum, bytes, factors); }
    static std::int32_t sum_words(Words a) { return _mm512_reduce_add_epi32(a); }
    static void store_shorts(std::int16_t* x, Words a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtepi32_epi16(a));
    }
    static void split_shorts(std::uint32_t* first, std::uint32_t* second, const std::int16_t* x) {
        const __m256i shorts = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(first), _mm256_cvtepi16_epi8(high_bytes(shorts)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(second), _mm256_cvtepi16_epi8(shorts));
    }
    static void split_eights(std::uint32_t* first, std::uint32_t* second, const std::int16_t* x) {
        const __m512i shorts = _mm512_loadu_si512(x);
        const __m512i high = _mm512_srai_epi16(_mm512_add_epi16(shorts, _mm512_set1_epi16(128)), 8);
        store_eights(first, _mm512_cvtepi16_epi8(high));
        store_eights(second, _mm512_cvtepi16_epi8(shorts));
    }

    // Factors become bytes without being laid down as shorts. Adding 1.5 2^23 leaves an integer in the low
    // bytes of a float; 128 more rounds its high byte, and turns the sign of the low one.
    static constexpr bool rounds_bytes = true;
    static float largest_magnitude(const float* x, std::size_t n) {
        constexpr int magnitudes = 0x0b;  // the larger magnitude, as its absolute value
        __m512 most = _mm512_setzero_ps(), other = most;
        std::size_t i = 0;
        for (; i + 2 * width <= n; i += 2 * width) {
            most = _mm512_range_ps(most, _mm512_loadu_ps(x + i), magnitudes);
            other = _mm512_range_ps(other, _mm512_loadu_ps(x + i + width), magnitudes);
        }
        for (; i < n; i += width)
            most = _mm512_range_ps(most, load_first(x + i, n - i < width ? n - i : width), magnitudes);
        return largest(_mm512_max_ps(most, other));
    }
    // The words of n integers, in natural order or as split_eights has them, and the sums of their bytes;
    // whole words of 64 factors are written.
    template <bool eights>
    static void round_bytes(std::uint32_t* first, std::uint32_t* second, const float* x, std::size_t n,
                            float factor, std::int32_t* first_sum, std::int32_t* second_sum) {
        static constexpr ByteOrder<eights> order;
        const __m512i from = _mm512_load_si512(order.from);
        const __m512i ones = _mm512_set1_epi8(1), sign = _mm512_set1_epi8(-128);
        __m512i first_sums = _mm512_setzero_si512(), second_sums = first_sums;
        const Float factors = broadcast(factor), shift = broadcast(0x1.8p23f + 128.0f);
        for (std::size_t i = 0; i < n; i += 4 * width) {
            __m512i whole[4];
            if (i + 4 * width <= n) {
                for (std::size_t k = 0; k < 4; ++k)
                    whole[k] = bits(fma(load(x + i + k * width), factors, shift));
            } else {
                for (std::size_t k = 0; k < 4; ++k) {
                    const std::size_t at = i + k * width, n_left = n > at ? n - at : 0;
                    whole[k] = bits(fma(load_first(x + at, n_left < width ? n_left : width), factors, shift));
                }
            }
            const __m512i low = _mm512_permutex2var_epi8(whole[0], from, whole[1]),
                          high = _mm512_permutex2var_epi8(whole[2], from, whole[3]);
            const __m512i a = _mm512_shuffle_i64x2(low, high, 0xee),
                          b = _mm512_xor_si512(_mm512_shuffle_i64x2(low, high, 0x44), sign);
            first_sums = _mm512_dpbusd_epi32(first_sums, ones, a);
            second_sums = _mm512_dpbusd_epi32(second_sums, ones, b);
            _mm512_storeu_si512(first + i / 4, a);
            _mm512_storeu_si512(second + i / 4, b);
        }
        *first_sum = sum_words(first_sums);
        *second_sum = sum_words(second_sums);
    }

    // Up to 128 entries in registers, of which two are searched by one permutation. Zen 4, gear-2 keys:
    // .94 -> 1.04 GB/s.
    class RowTable {
      public:
        RowTable(const float* x, std::size_t n) : x_(n <= 8 * width ? nullptr : x) {
            if (x_ != nullptr) return;
            for (std::size_t i = 0; i < 8; ++i) {
                const std::size_t first = i * width, n_left = n > first ? n - first : 0;
                parts_[i] = _mm512_maskz_loadu_ps(first_lanes(n_left < width ? n_left : width), x + first);
            }
        }
        Float pick(const std::uint16_t* at) const {
            const __m512i index =
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
            if (x_ != nullptr) return _mm512_i32gather_ps(index, x_, sizeof(float));
            const __m512 first = _mm512_permutex2var_ps(parts_[0], index, parts_[1]),
                         second = _mm512_permutex2var_ps(parts_[2], index, parts_[3]),
                         third = _mm512_permutex2var_ps(parts_[4], index, parts_[5]),
                         fourth = _mm512_permutex2var_ps(parts_[6], index, parts_[7]);
            const __mmask16 odd = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32)),
                            upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
            return _mm512_mask_blend_ps(upper, _mm512_mask_blend_ps(odd, first, second),
                                        _mm512_mask_blend_ps(odd, third, fourth));
        }

      private:
        __m512 parts_[8];
        const float* x_;
    };

    // Up to 4 bits: a table of floats takes the place of a mask and a conversion, since an index is the low 4
    // bits of a lane. Zen 4, keys, one row: 7.1 -> 8.7 GB/s of code words with 2 bits, 6.3 -> 7.4 with 3
    // bits, 13.1 -> 14.0 with 4 bits.
    template <std::uint32_t bits, std::uint32_t first>
    static Float field(Words a) {
        if constexpr (bits > 4) {
            return BasicLanes::field<bits, first>(a);
        } else {
            if constexpr (first > 0) a = shift_right<first>(a);
            return _mm512_permutexvar_ps(a, code_table<bits>());
        }
    }
    static Float load_first(const float* x, std::size_t n, float fill = 0.0f) {
        return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first_lanes(n), x);
    }
    static void store_first(float* x, Float a, std::size_t n) { _mm512_mask_storeu_ps(x, first_lanes(n), a); }
    static Float load_half_first(const std::uint16_t* x, std::size_t n) {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), x));
    }
    static void store_half_first(std::uint16_t* x, Float a, std::size_t n) {
        _mm256_mask_storeu_epi16(x, first_lanes(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    }
    static void store_bytes_first(std::uint8_t* x, Float a, std::size_t n) {
        _mm512_mask_cvtepi32_storeu_epi8(x, first_lanes(n), _mm512_cvttps_epi32(a));
    }

  private:
    // Bytes of 32 words: the low ones of 32 factors, then the next.
    template <bool eights>
    struct ByteOrder {
        alignas(64) std::uint8_t from[64] = {};
        constexpr ByteOrder() {
            for (std::size_t i = 0; i < 64; ++i) {
                const std::size_t at = i % 32, factor = eights ? 8 * (at % 4) + at / 4 : at;
                from[i] = static_cast<std::uint8_t>(4 * factor + i / 32);
            }
        }
    };
    static __m256i high_bytes(__m256i shorts) {
        return _mm256_srai_epi16(_mm256_add_epi16(shorts, _mm256_set1_epi16(128)), 8);
    }
    // Byte 8 i + k to 4 k + i.
    static void store_eights(std::uint32_t* words, __m256i bytes) {
        const __m256i from = _mm256_setr_epi8(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27, 4, 12,
                                              20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), _mm256_permutexvar_epi8(from, bytes));
    }
    // Entry i is the code in the low bits of i.
    template <std::uint32_t bits>
    static __m512 code_table() {
        const __m512i index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        return _mm512_cvtepi32_ps(_mm512_and_si512(index, _mm512_set1_epi32((1 << bits) - 1)));
    }
    static __mmask16 first_lanes(std::size_t n) { return static_cast<__mmask16>((1u << n) - 1); }
};

}  // namespace
}  // namespace gearkv
