// What the decoder's products need beside the lanes of an ARM level.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace gearkv {
namespace {

template <class Lanes>
struct LinearLanes : Lanes {
    using typename Lanes::Float;

    static Float load_halves(const std::uint8_t* x) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(x))); }
    static Float load_bfloats(const std::uint8_t* x) {
        return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(x)), 16));
    }
    static Float load_signed(const std::uint8_t* x) {
        std::uint32_t four;
        std::memcpy(&four, x, sizeof(four));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
    }
    static Float broadcast_half(const std::uint8_t* x) {
        std::uint16_t half;
        std::memcpy(&half, x, sizeof(half));
        return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half)));
    }
};

}  // namespace
}  // namespace gearkv
