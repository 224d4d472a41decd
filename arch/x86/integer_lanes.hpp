// Integer products with 256-bit vectors: eight rows. `Self` adds, as sums of four products each,
//   multiply_codes(codes, high, low)    codes below 64
//   multiply_bytes(codes, high, low)    signed codes, with bytes_offset added to them
// and what it has of columns (integer.inl.hpp).
#pragma once

#include <immintrin.h>

#include "decoder/network/integer.inl.hpp"

namespace gearkv {
namespace {

template <class Self>
struct WideIntegerLanes {
    static constexpr std::size_t n_rows = 8;
    static constexpr bool has_nibbles = false;
    using Floats = __m256;
    using Words = __m256i;
    using Codes = __m256i;

    static Floats broadcast(float x) { return _mm256_set1_ps(x); }
    static Floats load(const float* x) { return _mm256_loadu_ps(x); }
    static void store(float* x, Floats a) { _mm256_storeu_ps(x, a); }
    static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
    static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
    static Floats negate(Floats a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
    static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
    static Floats to_floats(Words a) { return _mm256_cvtepi32_ps(a); }
    static Floats as_floats(Words a) { return _mm256_castsi256_ps(a); }

    static Words broadcast_word(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
    static Words subtract(Words a, Words b) { return _mm256_sub_epi32(a, b); }
    template <std::size_t n>
    static Words word_left(Words a) {
        return _mm256_slli_epi32(a, n);
    }
    template <std::size_t n>
    static Words word_right(Words a) {
        if constexpr (n == 0) return a;
        return _mm256_srli_epi32(a, n);
    }
    template <std::size_t j>
    static Words byte(Words a) {
        if constexpr (j == 3) return word_right<24>(a);
        return word_right<8 * j>(a) & _mm256_set1_epi32(0xff);
    }
    template <std::size_t j>
    static Words signed_byte(Words a) {
        if constexpr (j < 3) a = word_left<24 - 8 * j>(a);
        return _mm256_srai_epi32(a, 24);
    }

    static Words gather_words(RowPointers rows, std::size_t at) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(four_words(rows, at)), four_words(rows + 4, at),
                                       1);
    }
    static void gather_quads(RowPointers rows, std::size_t at, Words* out) {
        Words two[4];  // rows r and r + 4
        unroll<4>([&](auto r) GEARKV_INLINE {
            two[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(rows[r] + at)),
                                             load_16(rows[r + 4] + at), 1);
        });
        const __m256i a = _mm256_unpacklo_epi32(two[0], two[1]), b = _mm256_unpacklo_epi32(two[2], two[3]),
                      c = _mm256_unpackhi_epi32(two[0], two[1]), d = _mm256_unpackhi_epi32(two[2], two[3]);
        out[0] = _mm256_unpacklo_epi64(a, b);
        out[1] = _mm256_unpackhi_epi64(a, b);
        out[2] = _mm256_unpacklo_epi64(c, d);
        out[3] = _mm256_unpackhi_epi64(c, d);
    }
    static Floats gather_halves(RowPointers rows, std::size_t at) {
        return _mm256_cvtph_ps(_mm_unpacklo_epi64(four_halves(rows, at), four_halves(rows + 4, at)));
    }
    static Floats gather_heads(RowPointers rows, std::size_t at) { return gather_halves(rows, at); }
    static void split_halves(Words a, Floats& low, Floats& high) {
        const __m256i packed = _mm256_permute4x64_epi64(
            _mm256_packus_epi32(a & _mm256_set1_epi32(0xffff), _mm256_srli_epi32(a, 16)), 0xd8);
        low = _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
        high = _mm256_cvtph_ps(_mm256_extracti128_si256(packed, 1));
    }

    static Codes load_codes(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }
    static Codes either(Codes a, Codes b) { return a | b; }
    static Codes split_nibbles(const std::uint8_t* x) {
        const __m256i shifts = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
        return _mm256_srlv_epi32(_mm256_broadcastsi128_si256(load_16(x)), shifts) & _mm256_set1_epi8(15);
    }
    template <std::size_t from, std::size_t n, std::size_t to = 0>
    static Codes field(Codes a) {
        if constexpr (from > to) a = _mm256_srli_epi16(a, from - to);
        if constexpr (from < to) a = _mm256_slli_epi16(a, to - from);
        return a & _mm256_set1_epi8(static_cast<char>(((1 << n) - 1) << to));
    }
    template <int value>
    static Codes spread_bits(const std::uint8_t* x) {
        int bits;
        std::memcpy(&bits, x, sizeof(bits));
        const __m256i bytes =
                          _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303),
                      bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
        const __m256i each = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), bytes) & bit;
        return _mm256_cmpeq_epi8(each, bit) & _mm256_set1_epi8(value);
    }
    static Codes lookup(const std::int8_t* table, Codes a) {
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load_16(table)), a);
    }

    template <CodeKind kind, bool halves, std::size_t n>
    [[gnu::always_inline]] static void products(Words (&sums)[n], const Codes (&codes)[n_rows],
                                                const CodeBlock& x) {
        const __m256i x_high = load_codes(x.high), x_low = load_codes(x.low);
        __m256i fours[2];
        unroll<2>([&](auto i) GEARKV_INLINE {
            __m256i parts[4];
            unroll<4>([&](auto r) GEARKV_INLINE {
                if constexpr (kind == CodeKind::bytes) {
                    parts[r] = Self::multiply_bytes(codes[4 * i + r], x_high, x_low);
                } else {
                    parts[r] = Self::multiply_codes(codes[4 * i + r], x_high, x_low);
                }
            });
            const __m256i a = add_pairs(parts[0], parts[1]), b = add_pairs(parts[2], parts[3]);
            fours[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        });
        const __m256i low = _mm256_permute2x128_si256(fours[0], fours[1], 0x20),
                      high = _mm256_permute2x128_si256(fours[0], fours[1], 0x31);
        if constexpr (halves) {
            sums[0] = low;
            sums[1] = high;
        } else {
            sums[0] = _mm256_add_epi32(low, high);
        }
    }

    // Eight by eight words.
    [[gnu::always_inline]] static void transpose(Codes (&codes)[n_rows]) {
        __m256i pairs[8], fours[8];
        unroll<4>([&](auto i) GEARKV_INLINE {
            pairs[2 * i] = _mm256_unpacklo_epi32(codes[2 * i], codes[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_epi32(codes[2 * i], codes[2 * i + 1]);
        });
        unroll<2>([&](auto half) GEARKV_INLINE {  // rows 0 to 3, 4 to 7
            unroll<2>([&](auto i) GEARKV_INLINE {
                const __m256i a = pairs[4 * half + i], b = pairs[4 * half + 2 + i];
                fours[4 * half + 2 * i] = _mm256_unpacklo_epi64(a, b);
                fours[4 * half + 2 * i + 1] = _mm256_unpackhi_epi64(a, b);
            });
        });
        unroll<4>([&](auto j) GEARKV_INLINE {  // words j and j + 4
            codes[j] = _mm256_permute2x128_si256(fours[j], fours[4 + j], 0x20);
            codes[4 + j] = _mm256_permute2x128_si256(fours[j], fours[4 + j], 0x31);
        });
    }

    // Of magnitudes: NaN is larger than all others.
    static std::uint32_t largest_bits(const float* x) {
        const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
        __m256i most = _mm256_setzero_si256();
        for (std::size_t i = 0; i < code_block; i += 8)
            most = _mm256_max_epi32(most, _mm256_castps_si256(load(x + i)) & magnitude);
        __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
        return static_cast<std::uint32_t>(_mm_cvtsi128_si32(four));
    }
    static void round_block(CodeBlock* out, const float* x, float factor) {
        __m256i words[4];
        unroll<4>([&](auto i) GEARKV_INLINE {
            const __m256 rounded = _mm256_round_ps(multiply(load(x + 8 * i), broadcast(factor)),
                                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            words[i] = _mm256_cvttps_epi32(rounded);
        });
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        __m256i high[2], low[2], sums[2];
        unroll<2>([&](auto i) GEARKV_INLINE {
            const __m256i codes = _mm256_packs_epi32(words[2 * i], words[2 * i + 1]);
            high[i] = _mm256_srai_epi16(_mm256_add_epi16(codes, _mm256_set1_epi16(64)), 7);
            low[i] = _mm256_sub_epi16(codes, _mm256_slli_epi16(high[i], 7));
            sums[i] = _mm256_madd_epi16(codes, _mm256_set1_epi16(1));
            out->halves[i] =
                sum(_mm_add_epi32(_mm256_castsi256_si128(sums[i]), _mm256_extracti128_si256(sums[i], 1)));
        });
        const auto store = [&](std::int8_t* to, const __m256i(&shorts)[2]) {
            const __m256i bytes = _mm256_packs_epi16(shorts[0], shorts[1]);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(bytes, order));
        };
        store(out->high, high);
        store(out->low, low);
    }

  protected:
    static Words word_of(const std::int8_t* x, std::size_t i) {
        int word;
        std::memcpy(&word, x + 4 * i, sizeof(word));
        return _mm256_set1_epi32(word);
    }
    static __m128i load_16(const void* x) { return _mm_loadu_si128(static_cast<const __m128i*>(x)); }

  private:
    static int load_word(const std::uint8_t* x) {
        int word;
        std::memcpy(&word, x, sizeof(word));
        return word;
    }
    static int load_short(const std::uint8_t* x) {
        std::uint16_t word;
        std::memcpy(&word, x, sizeof(word));
        return word;
    }
    static __m128i four_words(RowPointers rows, std::size_t at) {
        __m128i words = _mm_cvtsi32_si128(load_word(rows[0] + at));
        words = _mm_insert_epi32(words, load_word(rows[1] + at), 1);
        words = _mm_insert_epi32(words, load_word(rows[2] + at), 2);
        return _mm_insert_epi32(words, load_word(rows[3] + at), 3);
    }
    static __m128i four_halves(RowPointers rows, std::size_t at) {
        __m128i halves = _mm_cvtsi32_si128(load_short(rows[0] + at));
        halves = _mm_insert_epi16(halves, load_short(rows[1] + at), 1);
        halves = _mm_insert_epi16(halves, load_short(rows[2] + at), 2);
        return _mm_insert_epi16(halves, load_short(rows[3] + at), 3);
    }
    static int sum(__m128i a) {
        a = _mm_add_epi32(a, _mm_shuffle_epi32(a, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(a, _mm_shuffle_epi32(a, 0xb1)));
    }

    static __m256i add_pairs(__m256i a, __m256i b) {
        return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    }
};

// With dpbusd, which adds four products of unsigned codes with bytes to a sum: `Self` adds
//   add_products(sums, codes, x)
template <class Self>
struct VnniIntegerLanes : WideIntegerLanes<Self> {
    using Base = WideIntegerLanes<Self>;
    static constexpr int bytes_offset = 128;
    static constexpr void (*arrange_bytes)(CodeBlock*, std::size_t) = nullptr;
    template <CodeKind>
    static constexpr bool has_columns = true;

    static __m256i multiply_codes(__m256i codes, __m256i high, __m256i low) {
        const __m256i sums = Self::add_products(_mm256_setzero_si256(), codes, high);
        return Self::add_products(_mm256_slli_epi32(sums, 7), codes, low);
    }
    static __m256i multiply_bytes(__m256i codes, __m256i high, __m256i low) {
        return multiply_codes(codes ^ _mm256_set1_epi8(-128), high, low);
    }

    template <CodeKind kind>
    [[gnu::always_inline]] static void to_columns(__m256i (&codes)[Base::n_rows]) {
        Base::transpose(codes);
        if constexpr (kind == CodeKind::bytes) {
            for (__m256i& column : codes)
                column = column ^ _mm256_set1_epi8(-128);
        }
    }
    template <CodeKind, std::size_t n_tokens, std::size_t n>
    [[gnu::always_inline]] static void column_products(__m256i (&sums)[n_tokens][n],
                                                       const __m256i (&columns)[Base::n_rows],
                                                       const CodeBlock* x, std::size_t x_stride) {
        constexpr std::size_t n_words = 8 / n;
        unroll<n>([&](auto part) GEARKV_INLINE {
            __m256i high[n_tokens], low[n_tokens];
            unroll<n_tokens>([&](auto t) GEARKV_INLINE { high[t] = low[t] = _mm256_setzero_si256(); });
            unroll<n_words>([&](auto j) GEARKV_INLINE {
                const std::size_t word = part * n_words + j;
                unroll<n_tokens>([&](auto t) GEARKV_INLINE {
                    const CodeBlock& block = x[t * x_stride];
                    high[t] = Self::add_products(high[t], columns[word], Base::word_of(block.high, word));
                    low[t] = Self::add_products(low[t], columns[word], Base::word_of(block.low, word));
                });
            });
            unroll<n_tokens>([&](auto t) GEARKV_INLINE {
                sums[t][part] = _mm256_add_epi32(_mm256_slli_epi32(high[t], 7), low[t]);
            });
        });
    }
};

}  // namespace
}  // namespace gearkv
