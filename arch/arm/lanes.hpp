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
    static Words load_shorts(const std::uint16_t* x) { return vmovl_u16(vld1_u16(x)); }
    static void store_low_shorts(std::uint16_t* x, Words a) { vst1_u16(x, vmovn_u32(a)); }
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

    using Mask = uint32x4_t;
    using ByteTable = uint8x16_t;
    using FloatTable = uint8x16x4_t;
    using FloatIndex = uint8x16_t;  // of the bytes of each float
    static Float from_signed(Words a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
    static void zip(Float& a, Float& b) {
        const float32x4_t low = vzip1q_f32(a, b);
        b = vzip2q_f32(a, b);
        a = low;
    }
    static std::uint32_t lane_bits(Mask m) {
        const std::uint32_t bits[4] = {1, 2, 4, 8};
        return vaddvq_u32(vandq_u32(m, vld1q_u32(bits)));
    }
    static Mask less(Float a, Float b) { return vcltq_f32(a, b); }
    template <std::uint32_t n>
    static Words mark(Words a, Mask m) {
        return vorrq_u32(a, vandq_u32(m, vdupq_n_u32(1u << n)));
    }
    static Words merge(Words m, Words a, Words b) { return vbslq_u32(m, a, b); }
    template <std::uint32_t n>
    static Words shift_bytes(Words a, Words b) {
        return vreinterpretq_u32_u8(
            vsriq_n_u8(vshlq_n_u8(vreinterpretq_u8_u32(a), n), vreinterpretq_u8_u32(b), 8 - n));
    }
    template <std::uint32_t n>
    static Words shift_words(Words a, Words b) {
        return vsriq_n_u32(vshlq_n_u32(a, n), b, 32 - n);
    }
    static Words high_nibbles(Words a) {
        return vreinterpretq_u32_u8(vshrq_n_u8(vreinterpretq_u8_u32(a), 4));
    }
    template <std::uint32_t from, std::uint32_t to, std::uint32_t n>
    static Words put_bits(Words a, Words b) {
        if constexpr (to > from) b = vshlq_n_u32(b, to - from);
        if constexpr (to < from) b = vshrq_n_u32(b, from - to);
        return vbslq_u32(vdupq_n_u32((((1u << n) - 1) << to) * 0x01010101u), b, a);
    }
    static constexpr bool inserts_nibbles = true;
    static Words insert_upper(Words a, Words b) {
        return vreinterpretq_u32_u8(vsliq_n_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b), 4));
    }
    static Words insert_lower(Words a, Words b) {
        return vreinterpretq_u32_u8(vsriq_n_u8(vreinterpretq_u8_u32(a), vreinterpretq_u8_u32(b), 4));
    }
    static Words lookup_pair(const uint8x16x2_t& tables, Words a) {
        return vreinterpretq_u32_u8(vqtbl2q_u8(tables, vreinterpretq_u8_u32(a)));
    }
    static Words twice_less(Words a, std::uint8_t end) {
        return vreinterpretq_u32_u8(vsubq_u8(vshlq_n_u8(vreinterpretq_u8_u32(a), 1), vdupq_n_u8(end)));
    }
    static void round_shorts(std::int16_t* out, const float* x, Float factor) {
        const auto round = [&](std::size_t i) {
            return vreinterpretq_s16_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + i), factor)));
        };
        vst1q_s16(out, vuzp1q_s16(round(0), round(4)));
        vst1q_s16(out + 8, vuzp1q_s16(round(8), round(12)));
    }
    static Words shift_right_by(Words a, Words n) {
        return vshlq_u32(a, vnegq_s32(vreinterpretq_s32_u32(n)));
    }
    static Words load_after_zero(const std::uint32_t* x) {
        return vextq_u32(vdupq_n_u32(0), vld1q_u32(x), 3);
    }
    static void store_low_bytes(std::uint8_t* x, Words a) {
        const uint16x4_t shorts = vmovn_u32(a);
        const uint8x8_t bytes = vmovn_u16(vcombine_u16(shorts, shorts));
        const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
        __builtin_memcpy(x, &four, sizeof(four));
    }
    static Words load_packed(const void* x) {
        return vreinterpretq_u32_u8(vld1q_u8(static_cast<const std::uint8_t*>(x)));
    }
    static void store_packed(void* x, Words a) {
        vst1q_u8(static_cast<std::uint8_t*>(x), vreinterpretq_u8_u32(a));
    }
    static ByteTable load_table(const void* x) { return vld1q_u8(static_cast<const std::uint8_t*>(x)); }
    static Words lookup(ByteTable table, Words a) {
        return vreinterpretq_u32_u8(vqtbl1q_u8(table, vreinterpretq_u8_u32(a)));
    }
    template <std::uint32_t n>
    static Words lookup(ByteTable low, ByteTable high, Words a, Words b) {
        return vreinterpretq_u32_u8(vqtbl2q_u8({{low, high}}, vreinterpretq_u8_u32(put_bits<n, 4, 1>(a, b))));
    }
    // GCC makes constants anew for every use, unless it knows nothing of them.
    static uint8x16x2_t load_table_pair(const std::uint8_t* x) {
        __asm__("" : "+r"(x));
        return vld1q_u8_x2(x);
    }
    template <std::uint32_t n>
    static Words lookup_pair(const uint8x16x2_t& tables, Words a, Words b) {
        return lookup_pair(tables, put_bits<n, 4, 1>(a, b));
    }
    static Words turn_bytes(Words a) {
        static constexpr std::uint8_t from[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
        return vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(a), vld1q_u8(from)));
    }
    static FloatTable load_float_table(const float* x) {
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(x);
        return {{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}};
    }
    static FloatIndex float_index(Words a) {
        return vreinterpretq_u8_u32(vmlaq_u32(vdupq_n_u32(0x03020100), a, vdupq_n_u32(0x04040404)));
    }
    static Float lookup_float(const FloatTable& table, FloatIndex at) {
        return vreinterpretq_f32_u8(vqtbl4q_u8(table, at));
    }
};

}  // namespace
}  // namespace gearkv
