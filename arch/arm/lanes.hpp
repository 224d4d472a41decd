// Advanced SIMD: 4 floats.
#pragma once

#include <arm_neon.h>

#include "../lanes.hpp"

namespace gearkv {
namespace {

template <class Self, class Arch>
struct NeonLanes : BasicLanes<Self, Arch> {
    using Base = BasicLanes<Self, Arch>;
    using typename Base::Float;
    using typename Base::Words;
    static constexpr std::size_t n_registers = 32;

    // xsimd 8 cannot broadcast for an architecture that inherits from neon64.
    static Float broadcast(float x) { return vdupq_n_f32(x); }
    static Words broadcast_word(std::uint32_t x) { return vdupq_n_u32(x); }
    template <std::uint32_t n>
    static Words shift_left(Words a) {
        return vshlq_n_u32(a, n);
    }
    template <std::uint32_t n>
    static Words shift_right(Words a) {
        return vshrq_n_u32(a, n);
    }
    // xsimd 8 divides by an approximate reciprocal.
    static Float divide(Float a, Float b) { return vdivq_f32(a, b); }
    static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
    static Float round(Float a) { return vrndnq_f32(a); }
    static Float to_float(Words a) { return vcvtq_f32_u32(a); }
    // A conversion from fixed point takes the place of a shift: two instructions instead of three. With 2
    // bits there are more masks than registers.
    template <std::uint32_t bits, std::uint32_t first>
    static Float field(Words a) {
        if constexpr (bits == 2 || first == 0) {
            return Base::template field<bits, first>(a);
        } else {
            return vcvtq_n_f32_u32(a & broadcast_word(((1u << bits) - 1) << first), first);
        }
    }
    static Words to_words(Float a) { return vcvtq_u32_f32(a); }
    static Words bits(Float a) { return vreinterpretq_u32_f32(a); }
    static Float from_bits(Words a) { return vreinterpretq_f32_u32(a); }
    static Float load_half(const std::uint16_t* x) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x))); }
    static void store_half(std::uint16_t* x, Float a) { vst1_u16(x, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
    static Words load_bytes(const std::uint8_t* x) {
        std::uint32_t four;
        __builtin_memcpy(&four, x, sizeof(four));
        return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
    }
    static void store_bytes(std::uint8_t* x, Float a) {
        const uint16x4_t shorts = vmovn_u32(vcvtq_u32_f32(a));
        const uint8x8_t bytes = vmovn_u16(vcombine_u16(shorts, shorts));
        const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
        __builtin_memcpy(x, &four, sizeof(four));
    }
    static float sum(Float a) { return vaddvq_f32(a); }
    static float smallest(Float a) { return vminvq_f32(a); }
    static float largest(Float a) { return vmaxvq_f32(a); }
    static void sum_each(float* out, Float a, Float b, Float c, Float d) {
        vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)));
    }
};

}  // namespace
}  // namespace gearkv
