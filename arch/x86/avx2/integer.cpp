#include "../integer_lanes.hpp"

namespace gearkv {
namespace {

struct IntegerLanes : WideIntegerLanes<IntegerLanes> {
    static constexpr int bytes_offset = 0;
    static constexpr bool has_columns = false;  // of shorts they are no faster (bench/README.md)
    // Pairs of products with codes below 64 reach 2 * 63 * 127 = 16002.
    static __m256i multiply_codes(__m256i codes, __m256i high, __m256i low) {
        return add_planes(_mm256_maddubs_epi16(codes, high), _mm256_maddubs_epi16(codes, low));
    }
    // Those of signed codes 2 * 128 * 127 = 32512; unsigned ones would saturate.
    static __m256i multiply_bytes(__m256i codes, __m256i high, __m256i low) {
        const __m256i magnitudes = _mm256_abs_epi8(codes);
        return multiply_codes(magnitudes, _mm256_sign_epi8(high, codes), _mm256_sign_epi8(low, codes));
    }

  private:
    static __m256i add_planes(__m256i high, __m256i low) {
        return _mm256_add_epi32(_mm256_madd_epi16(high, _mm256_set1_epi16(128)),
                                _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
    }
};

}  // namespace

constinit const IntegerKernels integer_avx2 = make_integer_kernels<IntegerLanes>(Level::avx2);

}  // namespace gearkv
