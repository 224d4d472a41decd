#include "../integer_lanes.hpp"

namespace gearkv {
namespace {

// Vectors of 256 bits: two of them a cycle do what one of 512 does, and a block is one.
struct IntegerLanes : VnniIntegerLanes<IntegerLanes> {
    static __m256i add_products(__m256i sums, __m256i codes, __m256i x) {
        return _mm256_dpbusd_epi32(sums, codes, x);
    }
    template <int value>
    static __m256i spread_bits(const std::uint8_t* x) {
        std::uint32_t bits;
        std::memcpy(&bits, x, sizeof(bits));
        return _mm256_maskz_set1_epi8(bits, value);
    }
};

}  // namespace

constinit const IntegerKernels integer_avx512 = make_integer_kernels<IntegerLanes>(Level::avx512);

}  // namespace gearkv
