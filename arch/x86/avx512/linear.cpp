#include "decoder/linear.inl.hpp"

#include <immintrin.h>

namespace gearkv {
namespace {

struct Avx512Lanes : FloatLanes<xsimd::avx512bw> {
    static constexpr std::size_t n_registers = 32;

    // xsimd before 9 has no AVX-512 fma and falls back to a product and a sum: half the speed.
    static Batch fma(Batch a, Batch b, Batch c) { return _mm512_fmadd_ps(a, b, c); }

    static Batch load_half(const std::uint8_t* x) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    }
    static Batch load_bfloat(const std::uint8_t* x) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static Batch load_bytes(const std::uint8_t* x) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }
    static Batch broadcast_half(const std::uint8_t* x) {
        std::int16_t half;
        std::memcpy(&half, x, sizeof(half));
        return _mm512_cvtph_ps(_mm256_set1_epi16(half));
    }
    static void sum(float* out, Batch a, Batch b, Batch c, Batch d) {
        const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        const __m512 quarters = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        const __m256 halves =
            _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
    }
};

}  // namespace

const LinearKernels linear_avx512 = make_linear_kernels<Avx512Lanes>(Level::avx512);

}  // namespace gearkv
