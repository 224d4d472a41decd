#include "../integer_lanes.hpp"

namespace gearkv {
namespace {

struct IntegerLanes : NeonIntegerLanes<IntegerLanes> {
    template <CodeKind>
    static int32x4_t multiply_half(int32x4_t sum, uint8x16_t codes, const std::int8_t* x) {
        return vpadalq_s16(sum, add_products(vmull_s8(low(codes), vld1_s8(x)), codes, x));
    }
    // Shorts hold two products of signed bytes, 2 * 128 * 127, and four of codes below 64, 4 * 63 * 127.
    template <CodeKind kind>
    static int32x4_t multiply_codes(int32x4_t sum, Codes codes, const std::int8_t* x) {
        if constexpr (kind == CodeKind::bytes) {
            return multiply_half<kind>(multiply_half<kind>(sum, codes.low, x), codes.high, x + 16);
        } else {
            const int16x8_t half = add_products(vmull_s8(low(codes.low), vld1_s8(x)), codes.low, x);
            const int16x8_t both = vmlal_s8(half, low(codes.high), vld1_s8(x + 16));
            return vpadalq_s16(sum, add_products(both, codes.high, x + 16));
        }
    }

  private:
    static int8x8_t low(uint8x16_t codes) { return vget_low_s8(vreinterpretq_s8_u8(codes)); }
    // The upper eight of sixteen.
    static int16x8_t add_products(int16x8_t sum, uint8x16_t codes, const std::int8_t* x) {
        return vmlal_high_s8(sum, vreinterpretq_s8_u8(codes), vld1q_s8(x));
    }
};

}  // namespace

constinit const IntegerKernels integer_neon = make_integer_kernels<IntegerLanes>(Level::neon);

}  // namespace gearkv
