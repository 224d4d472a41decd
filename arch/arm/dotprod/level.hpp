// ARMv8.2 Advanced SIMD with the dot product instructions.
#pragma once

#include "../lanes.hpp"

namespace gearkv {
namespace {

struct Dotprod : xsimd::neon64 {};

}  // namespace
}  // namespace gearkv

GEARKV_DECLARE_ARCH(gearkv::Dotprod, neon64)

namespace gearkv {
namespace {

struct Lanes : NeonLanes<Lanes, Dotprod> {
    // Bytes of a factor: 256 high + low.
    static constexpr int factor_limit = 32639;
    static constexpr bool one_sum = false;
    static constexpr bool signed_bytes = true;
    static Words dot_first(Words sum, Words bytes, Words factors) {
        return vreinterpretq_u32_s32(vdotq_s32(vreinterpretq_s32_u32(sum), vreinterpretq_s8_u32(bytes),
                                               vreinterpretq_s8_u32(factors)));
    }
    static Words dot_second(Words sum, Words bytes, Words factors) { return dot_first(sum, bytes, factors); }
    static std::int32_t sum_words(Words a) { return vaddvq_s32(vreinterpretq_s32_u32(a)); }
    static void store_shorts(std::int16_t* x, Words a) { vst1_s16(x, vmovn_s32(vreinterpretq_s32_u32(a))); }
    static void split_shorts(std::uint32_t* first, std::uint32_t* second, const std::int16_t* x) {
        const int16x8_t low = vld1q_s16(x), high = vld1q_s16(x + 8);
        vst1q_s8(reinterpret_cast<std::int8_t*>(first), vcombine_s8(high_bytes(low), high_bytes(high)));
        vst1q_s8(reinterpret_cast<std::int8_t*>(second), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
    static void split_eights(std::uint32_t* first, std::uint32_t* second, const std::int16_t* x) {
        const int16x8x4_t rows = {{vld1q_s16(x), vld1q_s16(x + 8), vld1q_s16(x + 16), vld1q_s16(x + 24)}};
        const int8x8x4_t high = {{high_bytes(rows.val[0]), high_bytes(rows.val[1]), high_bytes(rows.val[2]),
                                  high_bytes(rows.val[3])}};
        const int8x8x4_t low = {
            {vmovn_s16(rows.val[0]), vmovn_s16(rows.val[1]), vmovn_s16(rows.val[2]), vmovn_s16(rows.val[3])}};
        vst4_s8(reinterpret_cast<std::int8_t*>(first), high);
        vst4_s8(reinterpret_cast<std::int8_t*>(second), low);
    }

  private:
    static int8x8_t high_bytes(int16x8_t shorts) {
        return vshrn_n_s16(vaddq_s16(shorts, vdupq_n_s16(128)), 8);
    }
};

}  // namespace
}  // namespace gearkv
