#include "decoder/network/linear.inl.hpp"

#include "level.hpp"

namespace gearkv {
namespace {

struct LinearLanes : Lanes {
    static __m256i load_shorts(const std::uint8_t* x) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
    }
    static Float load_halves(const std::uint8_t* x) { return _mm512_cvtph_ps(load_shorts(x)); }
    static Float load_bfloats(const std::uint8_t* x) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_shorts(x)), 16));
    }
    static Float load_signed(const std::uint8_t* x) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }
    static Float broadcast_half(const std::uint8_t* x) {
        std::int16_t half;
        std::memcpy(&half, x, sizeof(half));
        return _mm512_cvtph_ps(_mm256_set1_epi16(half));
    }
};

}  // namespace

constinit const LinearKernels linear_avx512 = make_linear_kernels<LinearLanes>(Level::avx512);

}  // namespace gearkv
