#include "../integer_lanes.hpp"

namespace gearkv {
namespace {

struct IntegerLanes : WideIntegerLanes<IntegerLanes> {
    static constexpr int bytes_offset = 128;
    static constexpr bool has_columns = true;
    static __m256i add_products(__m256i sums, __m256i codes, __m256i x) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(codes), "x"(x));
        return sums;
    }
    static __m256i multiply_codes(__m256i codes, __m256i high, __m256i low) {
        const __m256i sums = add_products(_mm256_setzero_si256(), codes, high);
        return add_products(_mm256_slli_epi32(sums, 7), codes, low);
    }
    static __m256i multiply_bytes(__m256i codes, __m256i high, __m256i low) {
        return multiply_codes(codes ^ _mm256_set1_epi8(-128), high, low);
    }
};

}  // namespace

constinit const IntegerKernels integer_avxvnni = make_integer_kernels<IntegerLanes>(Level::avxvnni);

}  // namespace gearkv
