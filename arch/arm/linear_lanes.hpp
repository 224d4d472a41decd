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

    static constexpr bool permutes_floats = false;
    struct Codes {
        uint8x16_t low, high;
    };
    using CodeTable = uint8x16_t;
    template <class Function>
    [[gnu::always_inline]] static Codes each(Codes a, Function&& fn) {
        return {fn(a.low), fn(a.high)};
    }
    static Codes load_codes(const std::uint8_t* x) { return {vld1q_u8(x), vld1q_u8(x + 16)}; }
    static Codes load_nibbles(const std::uint8_t* x) {
        const uint8x16_t bytes = vld1q_u8(x);
        return {vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8(bytes, 4)};
    }
    static Codes lower(Codes a) {
        return {vandq_u8(a.low, vdupq_n_u8(15)), vandq_u8(a.high, vdupq_n_u8(15))};
    }
    static Codes upper(Codes a) { return {vshrq_n_u8(a.low, 4), vshrq_n_u8(a.high, 4)}; }
    template <int from, int to, int n>
    static Codes place(Codes a) {
        return each(a, [](uint8x16_t x) {
            if constexpr (to > from) x = vshlq_n_u8(x, to - from);
            if constexpr (to < from) x = vshrq_n_u8(x, from - to);
            // A shift to the bottom has already taken away what was below, and there is nothing above.
            if constexpr (to == 0 && from + n == 8) return x;
            return vandq_u8(x, vdupq_n_u8(((1 << n) - 1) << to));
        });
    }
    static Codes drop_bits(Codes a, std::uint32_t n) {
        const int8x16_t by = vdupq_n_s8(static_cast<std::int8_t>(-static_cast<int>(n)));
        return {vshlq_u8(a.low, by), vshlq_u8(a.high, by)};
    }
    static Codes bits_as_16(const std::uint8_t* x) {
        const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
        const auto spread = [&](std::size_t at) {
            const uint8x16_t bytes = vcombine_u8(vdup_n_u8(x[at]), vdup_n_u8(x[at + 1]));
            return vandq_u8(vtstq_u8(bytes, bit), vdupq_n_u8(16));
        };
        return {spread(0), spread(2)};
    }
    static Codes join(Codes a, Codes b) { return {vorrq_u8(a.low, b.low), vorrq_u8(a.high, b.high)}; }
    static Codes less(Codes a, std::uint8_t n) {
        return {vsubq_u8(a.low, vdupq_n_u8(n)), vsubq_u8(a.high, vdupq_n_u8(n))};
    }
    static void scale_bytes(float* out, Float factor, std::uint64_t bytes) {
        const int16x8_t eight = vmovl_s8(vcreate_s8(bytes));
        vst1q_f32(out, vmulq_f32(factor, vcvtq_f32_s32(vmovl_s16(vget_low_s16(eight)))));
        vst1q_f32(out + 4, vmulq_f32(factor, vcvtq_f32_s32(vmovl_high_s16(eight))));
    }
    static CodeTable load_code_table(const std::int8_t* x) { return vreinterpretq_u8_s8(vld1q_s8(x)); }
    static Codes look_up(CodeTable table, Codes a) {
        return {vqtbl1q_u8(table, a.low), vqtbl1q_u8(table, a.high)};
    }
    // Four bytes, each to the top of a word of its own, which a conversion from fixed point brings down.
    template <std::size_t i>
    static Float code_floats(Codes codes) {
        constexpr auto none = static_cast<std::uint8_t>(255), first = static_cast<std::uint8_t>(i % 4 * 4);
        static constexpr std::uint8_t from[16] = {none, none, none, first,     none, none, none, first + 1,
                                                  none, none, none, first + 2, none, none, none, first + 3};
        const uint8x16_t words = vqtbl1q_u8(i < 4 ? codes.low : codes.high, vld1q_u8(from));
        return vcvtq_n_f32_s32(vreinterpretq_s32_u8(words), 24);
    }
};

}  // namespace
}  // namespace gearkv
