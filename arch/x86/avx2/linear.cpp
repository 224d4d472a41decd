#include "decoder/network/linear.inl.hpp"

#include "level.hpp"

namespace gearkv {
namespace {

struct LinearLanes : Lanes {
    static __m128i load_shorts(const std::uint8_t* x) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    }
    static Float load_halves(const std::uint8_t* x) { return _mm256_cvtph_ps(load_shorts(x)); }
    static Float load_bfloats(const std::uint8_t* x) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_shorts(x)), 16));
    }
    static Float load_signed(const std::uint8_t* x) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
    static Float broadcast_half(const std::uint8_t* x) {
        std::int16_t half;
        std::memcpy(&half, x, sizeof(half));
        return _mm256_cvtph_ps(_mm_set1_epi16(half));
    }
};

}  // namespace

constinit const LinearKernels linear_avx2 = make_linear_kernels<LinearLanes>(Level::avx2);

}  // namespace gearkv
