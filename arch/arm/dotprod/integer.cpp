#include "../integer_lanes.hpp"

namespace gearkv {
namespace {

struct IntegerLanes : NeonIntegerLanes<IntegerLanes> {
    template <CodeKind>
    static int32x4_t multiply_half(int32x4_t sum, uint8x16_t codes, const std::int8_t* x) {
        return vdotq_s32(sum, vreinterpretq_s8_u8(codes), vld1q_s8(x));
    }
    template <CodeKind kind>
    static int32x4_t multiply_codes(int32x4_t sum, Codes codes, const std::int8_t* x) {
        return multiply_half<kind>(multiply_half<kind>(sum, codes.low, x), codes.high, x + 16);
    }
};

}  // namespace

constinit const IntegerKernels integer_dotprod = make_integer_kernels<IntegerLanes>(Level::dotprod);

}  // namespace gearkv
