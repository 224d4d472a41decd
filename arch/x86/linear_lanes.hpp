// What the decoder's products need of 32 bytes at a time, beside the lanes of an x86 level.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace gearkv {
namespace {

template <class Lanes>
struct CodeLanes : Lanes {
    struct Codes {
        __m256i bytes;
    };
    struct CodeTable {
        __m256i bytes;  // twice
    };

    static __m256i every_byte(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
    static Codes load_codes(const std::uint8_t* x) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))};
    }
    static Codes load_nibbles(const std::uint8_t* x) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
        const __m256i both =
            _mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1);
        return {_mm256_and_si256(both, every_byte(15))};
    }
    static Codes lower(Codes a) { return {_mm256_and_si256(a.bytes, every_byte(15))}; }
    static Codes upper(Codes a) { return {_mm256_and_si256(_mm256_srli_epi16(a.bytes, 4), every_byte(15))}; }
    template <int from, int to, int n>
    static Codes place(Codes a) {
        __m256i moved = a.bytes;
        if constexpr (to > from) moved = _mm256_slli_epi16(moved, to - from);
        if constexpr (to < from) moved = _mm256_srli_epi16(moved, from - to);
        return {_mm256_and_si256(moved, every_byte(((1 << n) - 1) << to))};
    }
    static Codes drop_bits(Codes a, std::uint32_t n) {
        return {_mm256_srl_epi16(a.bytes, _mm_cvtsi32_si128(static_cast<int>(n)))};
    }
    static Codes join(Codes a, Codes b) { return {_mm256_or_si256(a.bytes, b.bytes)}; }
    static Codes less(Codes a, int n) { return {_mm256_sub_epi8(a.bytes, every_byte(n))}; }
    static CodeTable load_code_table(const std::int8_t* x) {
        return {_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(x)))};
    }
    static Codes look_up(CodeTable table, Codes a) { return {_mm256_shuffle_epi8(table.bytes, a.bytes)}; }
};

}  // namespace
}  // namespace gearkv
