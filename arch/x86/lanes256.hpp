// AVX2 + FMA + F16C: 8 floats.
#pragma once

#include <immintrin.h>

#include "../lanes.hpp"

namespace gearkv {
namespace {

template <class Self, class Arch>
struct WideLanes : BasicLanes<Self, Arch> {
    using Base = BasicLanes<Self, Arch>;
    using typename Base::Float;
    using typename Base::Words;
    static constexpr std::size_t n_registers = 16;

    static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    static Float round(Float a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Float to_float(Words a) { return _mm256_cvtepi32_ps(a); }
    static Words to_words(Float a) { return _mm256_cvttps_epi32(a); }
    static Words bits(Float a) { return _mm256_castps_si256(a); }
    static Float from_bits(Words a) { return _mm256_castsi256_ps(a); }
    static Float load_half(const std::uint16_t* x) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    }
    static void store_half(std::uint16_t* x, Float a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    }
    static Words load_shorts(const std::uint16_t* x) {
        return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    }
    static void store_low_shorts(std::uint16_t* x, Words a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(x),
                         _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
    }
    static Words load_bytes(const std::uint8_t* x) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)));
    }
    static void store_bytes(std::uint8_t* x, Float a) {
        const __m256i words = _mm256_cvttps_epi32(a);
        const __m128i shorts =
            _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(x), _mm_packus_epi16(shorts, shorts));
    }
    // 2 bits: a table of floats takes the place of a mask and a conversion, since an index is the low 3 bits
    // of a lane. Zen 4, one row: 5.8 -> 6.9 GB/s of code words; with more rows the multiply-adds are the
    // limit.
    template <std::uint32_t bits, std::uint32_t first>
    static Float field(Words a) {
        if constexpr (bits > 3) {
            return Base::template field<bits, first>(a);
        } else {
            if constexpr (first > 0) a = Base::template shift_right<first>(a);
            constexpr float most = bits == 2 ? 0.0f : 4.0f;
            const __m256 codes = _mm256_setr_ps(0, 1, 2, 3, most, most + 1, most + 2, most + 3);
            return _mm256_permutevar8x32_ps(codes, a);
        }
    }
    static float sum(Float a) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    static float smallest(Float a) {
        const __m128 four = _mm_min_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
    }
    static float largest(Float a) {
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }
    static void sum_each(float* out, Float a, Float b, Float c, Float d) {
        const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
    }

    using Mask = __m256;
    using ByteTable = __m256i;  // twice, one for each half
    struct FloatTable {
        __m256 low, high;
    };
    struct FloatIndex {
        __m256i index;
        __m256 high;
    };
    static Float from_signed(Words a) { return _mm256_cvtepi32_ps(a); }
    static void zip(Float& a, Float& b) {
        const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
        a = _mm256_permute2f128_ps(low, high, 0x20);
        b = _mm256_permute2f128_ps(low, high, 0x31);
    }
    static std::uint32_t lane_bits(Mask m) { return static_cast<std::uint32_t>(_mm256_movemask_ps(m)); }
    static Mask less(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
    template <std::uint32_t n>
    static Words mark(Words a, Mask m) {
        return _mm256_or_si256(a, _mm256_and_si256(_mm256_castps_si256(m), _mm256_set1_epi32(1 << n)));
    }
    static Words merge(Words m, Words a, Words b) {
        return _mm256_or_si256(_mm256_and_si256(m, a), _mm256_andnot_si256(m, b));
    }
    static Words shift_right_by(Words a, Words n) { return _mm256_srlv_epi32(a, n); }
    static Words load_after_zero(const std::uint32_t* x) {
        const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
        const __m256i moved = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 0, 1, 2, 3, 4, 5, 6));
        return _mm256_blend_epi32(moved, _mm256_setzero_si256(), 1);
    }
    static void store_low_bytes(std::uint8_t* x, Words a) {
        const __m128i shorts = _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(x), _mm_packus_epi16(shorts, shorts));
    }
    static std::int32_t sum_words(Words a) {
        const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
        const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
        return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
    }
    static void store_shorts(std::int16_t* x, Words a) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(x),
                         _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
    }
    static Words load_packed(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }
    static void store_packed(void* x, Words a) { _mm256_storeu_si256(static_cast<__m256i*>(x), a); }
    static ByteTable load_table(const void* x) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(x)));
    }
    static Words lookup(ByteTable table, Words a) { return _mm256_shuffle_epi8(table, a); }
    template <std::uint32_t n>
    static Words lookup(ByteTable low, ByteTable high, Words a, Words b) {
        const __m256i is_high = _mm256_slli_epi32(b, 7 - n);  // the top bit of each byte counts
        return _mm256_blendv_epi8(_mm256_shuffle_epi8(low, a), _mm256_shuffle_epi8(high, a), is_high);
    }
    static Words turn_bytes(Words a) {
        return _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2,
                                                                                6, 10, 14, 3, 7, 11, 15)));
    }
    static FloatTable load_float_table(const float* x) {
        return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)};
    }
    static FloatIndex float_index(Words a) { return {a, _mm256_castsi256_ps(_mm256_slli_epi32(a, 28))}; }
    static Float lookup_float(const FloatTable& table, FloatIndex at) {
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, at.index),
                                _mm256_permutevar8x32_ps(table.high, at.index), at.high);
    }
};

}  // namespace
}  // namespace gearkv
