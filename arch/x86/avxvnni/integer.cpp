#include "../integer_lanes.hpp"

namespace gearkv {
namespace {

struct IntegerLanes : VnniIntegerLanes<IntegerLanes> {
    static __m256i add_products(__m256i sums, __m256i codes, __m256i x) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(codes), "x"(x));
        return sums;
    }
};

}  // namespace

constinit const IntegerKernels integer_avxvnni = make_integer_kernels<IntegerLanes>(Level::avxvnni);

}  // namespace gearkv
