#include "decoder/network/linear.inl.hpp"

#include "../linear_lanes.hpp"
#include "level.hpp"

namespace gearkv {
namespace {

struct LinearLanes : CodeLanes<Lanes> {
    static constexpr bool permutes_floats = true;

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
    static void scale_bytes(float* out, Float factor, std::uint64_t bytes) {
        const __m128i eight = _mm_cvtsi64_si128(static_cast<long long>(bytes));
        _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)),
                                            _mm512_castps512_ps256(factor)));
    }
    static Codes bits_as_16(const std::uint8_t* x) {
        __mmask32 bits;
        std::memcpy(&bits, x, sizeof(bits));
        return {_mm256_maskz_mov_epi8(bits, every_byte(16))};
    }
    template <std::size_t i>
    static Float code_floats(Codes codes) {
        const __m128i bytes =
            i == 0 ? _mm256_castsi256_si128(codes.bytes) : _mm256_extracti128_si256(codes.bytes, 1);
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }
};

}  // namespace

constinit const LinearKernels linear_avx512 = make_linear_kernels<LinearLanes>(Level::avx512);

}  // namespace gearkv
