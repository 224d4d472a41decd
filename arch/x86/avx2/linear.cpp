#include "decoder/linear.inl.hpp"

#include <immintrin.h>

namespace gearkv {
namespace {

struct Avx2Lanes : FloatLanes<xsimd::fma3<xsimd::avx2>> {
    static constexpr std::size_t n_registers = 16;

    static Batch load_half(const std::uint8_t* x) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    }
    static Batch load_bfloat(const std::uint8_t* x) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    static Batch load_bytes(const std::uint8_t* x) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
    static Batch broadcast_half(const std::uint8_t* x) {
        std::int16_t half;
        std::memcpy(&half, x, sizeof(half));
        return _mm256_cvtph_ps(_mm_set1_epi16(half));
    }
    static void sum(float* out, Batch a, Batch b, Batch c, Batch d) {
        const __m256 ab = _mm256_hadd_ps(a, b);
        const __m256 cd = _mm256_hadd_ps(c, d);
        const __m256 halves = _mm256_hadd_ps(ab, cd);
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
    }
};

}  // namespace

const LinearKernels linear_avx2 = make_linear_kernels<Avx2Lanes>(Level::avx2);

}  // namespace gearkv
