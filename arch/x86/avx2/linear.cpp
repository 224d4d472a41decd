#include "decoder/network/linear.inl.hpp"

#include "../linear_lanes.hpp"
#include "level.hpp"

namespace gearkv {
namespace {

struct LinearLanes : CodeLanes<Lanes> {
    static constexpr bool permutes_floats = false;

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
    static void scale_bytes(float* out, Float factor, std::uint64_t bytes) {
        const __m128i eight = _mm_cvtsi64_si128(static_cast<long long>(bytes));
        _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), factor));
    }
    static Codes bits_as_16(const std::uint8_t* x) {
        std::int32_t word;
        std::memcpy(&word, x, sizeof(word));
        const __m256i from = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2,
                                              2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
        const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
        const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), from), bit);
        return {_mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), every_byte(16))};
    }
    template <std::size_t i>
    static Float code_floats(Codes codes) {
        __m128i bytes =
            i < 2 ? _mm256_castsi256_si128(codes.bytes) : _mm256_extracti128_si256(codes.bytes, 1);
        if constexpr (i % 2 != 0) bytes = _mm_srli_si128(bytes, 8);
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
};

}  // namespace

constinit const LinearKernels linear_avx2 = make_linear_kernels<LinearLanes>(Level::avx2);

}  // namespace gearkv
