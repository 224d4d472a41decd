#include "decoder/linear.inl.hpp"

#include <arm_neon.h>

namespace gearkv {
namespace {

struct NeonLanes : FloatLanes<xsimd::neon64> {
    static constexpr std::size_t n_registers = 32;

    static Batch load_half(const std::uint8_t* x) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(x))); }
    static Batch load_bfloat(const std::uint8_t* x) {
        return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(x)), 16));
    }
    static Batch load_bytes(const std::uint8_t* x) {
        std::int32_t four;
        std::memcpy(&four, x, sizeof(four));
        const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
    }
    static Batch broadcast_half(const std::uint8_t* x) {
        std::uint16_t half;
        std::memcpy(&half, x, sizeof(half));
        return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half)));
    }
    static void sum(float* out, Batch a, Batch b, Batch c, Batch d) {
        vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
    }
};

}  // namespace

const LinearKernels linear_neon = make_linear_kernels<NeonLanes>(Level::neon);

}  // namespace gearkv
