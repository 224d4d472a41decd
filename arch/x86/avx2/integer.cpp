#include "../integer_lanes.hpp"

namespace gearkv {
namespace {

struct IntegerLanes : WideIntegerLanes<IntegerLanes> {
    static constexpr int bytes_offset = 0;
    static constexpr bool has_nibbles = true;
    template <CodeKind>
    static constexpr bool has_columns = true;

    // A load and a blend put a half in its place, of what lies up to 14 bytes before it: not in a row's first
    // block.
    static Floats gather_heads(RowPointers rows, std::size_t at) {
        if (at < 14) return gather_halves(rows, at);
        __m128i halves = load_16(rows[0] + at);
        unroll<n_rows - 1>([&](auto i) GEARKV_INLINE {
            constexpr int r = i + 1;
            halves = _mm_blend_epi16(halves, load_16(rows[r] + at - 2 * r), 1 << r);
        });
        return _mm256_cvtph_ps(halves);
    }
    // Pairs of products with codes below 64 reach 2 * 63 * 127 = 16002.
    static __m256i multiply_codes(__m256i codes, __m256i high, __m256i low) {
        return add_planes(_mm256_maddubs_epi16(codes, high), _mm256_maddubs_epi16(codes, low));
    }
    // Signed codes leave no room for sums in shorts, so that they meet whole codes: shorts, the even entries
    // first.
    static __m256i multiply_bytes(__m256i codes, __m256i even, __m256i odd) {
        return multiply_shorts(even_bytes(codes), even, odd_bytes(codes), odd);
    }
    static void arrange_bytes(CodeBlock* blocks, std::size_t n_blocks) {
        for (CodeBlock* block = blocks; block < blocks + n_blocks; ++block) {
            const __m256i high = load_codes(block->high), low = load_codes(block->low);
            const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(high, 8), 1),
                          odd = _mm256_srai_epi16(high & _mm256_set1_epi16(-256), 1);
            store_codes(block->high, _mm256_add_epi16(even, even_bytes(low)));
            store_codes(block->low, _mm256_add_epi16(odd, odd_bytes(low)));
        }
    }

    template <CodeKind>
    [[gnu::always_inline]] static void to_columns(__m256i (&codes)[n_rows]) {
        transpose(codes);
    }
    // Shorts hold eight products of codes below 32 with a high byte, four of codes below 64, and twice as
    // many with a low one: 8 * 31 * 127, 4 * 63 * 127.
    template <CodeKind kind, std::size_t n_tokens, std::size_t n>
    [[gnu::always_inline]] static void column_products(__m256i (&sums)[n_tokens][n],
                                                       const __m256i (&columns)[n_rows], const CodeBlock* x,
                                                       std::size_t x_stride) {
        if constexpr (kind == CodeKind::bytes) {
            byte_columns(sums, columns, x, x_stride);
            return;
        }
        constexpr std::size_t n_words = 8 / n;
        constexpr std::size_t n_high = kind == CodeKind::six_bits ? 2 : 4;  // words whose products fit
        constexpr std::size_t n_low = 2 * n_high < n_words ? 2 * n_high : n_words;
        unroll<n>([&](auto part) GEARKV_INLINE {
            __m256i high[n_tokens], low[n_tokens];
            unroll<n_words>([&](auto j) GEARKV_INLINE {
                constexpr std::size_t word = part * n_words + j;
                const __m256i column = columns[word];
                unroll<n_tokens>([&](auto t) GEARKV_INLINE {
                    const CodeBlock& block = x[t * x_stride];
                    add_pairs<j, n_high, j + 1 == n_high>(sums[t][part], high[t], column,
                                                          word_of(block.high, word), 128);
                    add_pairs<j, n_low, false>(sums[t][part], low[t], column, word_of(block.low, word), 1);
                });
            });
        });
    }

    // Shorts hold all sixteen products of a row's nibbles: 16 * 15 * 127.
    // Half of the vector's words come by shuffles, as loads of vectors are what a core does fewest of.
    [[gnu::always_inline]] static __m256i nibble_products(const __m256i (&words)[4], const CodeBlock& x) {
        __m256i high[2], low[2];
        unroll<2>([&](auto half) GEARKV_INLINE {  // low nibbles, high ones
            const __m256i x_low = _mm256_broadcastsi128_si256(load_16(x.low + 16 * half));
            unroll<4>([&](auto j) GEARKV_INLINE {
                const __m256i codes = field<4 * half, 4>(words[j]),
                              by_high = _mm256_maddubs_epi16(codes, word_of(x.high, 4 * half + j)),
                              by_low =
                                  _mm256_maddubs_epi16(codes, _mm256_shuffle_epi32(x_low, j.value * 0x55));
                high[half] = j == 0 ? by_high : _mm256_add_epi16(high[half], by_high);
                low[half] = j == 0 ? by_low : _mm256_add_epi16(low[half], by_low);
            });
        });
        return add_planes(_mm256_add_epi16(high[0], high[1]), _mm256_add_epi16(low[0], low[1]));
    }

  private:
    static __m256i even_bytes(__m256i a) { return _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8); }
    static __m256i odd_bytes(__m256i a) { return _mm256_srai_epi16(a, 8); }
    static __m256i multiply_shorts(__m256i even, __m256i even_x, __m256i odd, __m256i odd_x) {
        return _mm256_add_epi32(_mm256_madd_epi16(even, even_x), _mm256_madd_epi16(odd, odd_x));
    }
    static void store_codes(void* x, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(x), a); }

    template <std::size_t n_tokens>
    [[gnu::always_inline]] static void byte_columns(__m256i (&sums)[n_tokens][1],
                                                    const __m256i (&columns)[n_rows], const CodeBlock* x,
                                                    std::size_t x_stride) {
        unroll<8>([&](auto word) GEARKV_INLINE {
            const __m256i even = even_bytes(columns[word]), odd = odd_bytes(columns[word]);
            unroll<n_tokens>([&](auto t) GEARKV_INLINE {
                const CodeBlock& block = x[t * x_stride];
                const __m256i products =
                    multiply_shorts(even, word_of(block.high, word), odd, word_of(block.low, word));
                sums[t][0] = word == 0 ? products : _mm256_add_epi32(sums[t][0], products);
            });
        });
    }
    // Adds products of word j in shorts, and after every n words the shorts, times `factor`, to the sum, or
    // begins it.
    template <std::size_t j, std::size_t n, bool begins>
    [[gnu::always_inline]] static void add_pairs(__m256i& sum, __m256i& shorts, __m256i column, __m256i x,
                                                 short factor) {
        const __m256i pairs = _mm256_maddubs_epi16(column, x);
        shorts = j % n == 0 ? pairs : _mm256_add_epi16(shorts, pairs);
        if constexpr (j % n == n - 1) {
            const __m256i words = _mm256_madd_epi16(shorts, _mm256_set1_epi16(factor));
            sum = begins ? words : _mm256_add_epi32(sum, words);
        }
    }
    static __m256i add_planes(__m256i high, __m256i low) {
        return _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(128)),
                                _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
    }
};

}  // namespace

constinit const IntegerKernels integer_avx2 = make_integer_kernels<IntegerLanes>(Level::avx2);

}  // namespace gearkv
