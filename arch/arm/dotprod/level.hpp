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
    static constexpr bool has_dot = true;
    static constexpr bool signed_bytes = true;
    static Words dot(Words sum, Words a, Words b) {
        return vreinterpretq_u32_s32(
            vdotq_s32(vreinterpretq_s32_u32(sum), vreinterpretq_s8_u32(a), vreinterpretq_s8_u32(b)));
    }
    static std::int32_t sum_words(Words a) { return vaddvq_s32(vreinterpretq_s32_u32(a)); }
    static void interleave_eights(std::uint8_t* x) {
        const uint8x8x4_t rows = {{vld1_u8(x), vld1_u8(x + 8), vld1_u8(x + 16), vld1_u8(x + 24)}};
        vst4_u8(x, rows);
    }
};

}  // namespace
}  // namespace gearkv
