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
    static constexpr std::size_t pack_words = 4;

    struct Pack {
        int8x16_t high, low;
    };
    struct PackSum {
        int32x4_t high, low;
    };
    template <std::size_t n>
    [[gnu::always_inline]] static void load_packs(Pack (&packs)[n], const std::uint32_t*& at) {
        if constexpr (n == 1) {
            const int8x16x2_t one = vld1q_s8_x2(reinterpret_cast<const std::int8_t*>(at));
            packs[0] = {one.val[0], one.val[1]};
            at += 32;
        } else {
            load_two<0>(packs, at);
            if constexpr (n == 4) {
                load_two<2>(packs, at);
            } else {
                at += 16;
            }
        }
    }
    static PackSum start_sum(std::int32_t first, std::int32_t second) {
        return {vdupq_n_s32(first), vdupq_n_s32(second)};
    }
    static int8x16_t ready_bytes(Words bytes) { return vreinterpretq_s8_u32(bytes); }
    template <std::size_t word>
    [[gnu::always_inline]] static void add_product(PackSum& sum, int8x16_t bytes, const Pack& pack) {
        sum.high = vdotq_laneq_s32(sum.high, bytes, pack.high, word);
        sum.low = vdotq_laneq_s32(sum.low, bytes, pack.low, word);
    }
    static Float finish_sum(const PackSum& sum, float first, float second) {
        return vfmaq_n_f32(vmulq_n_f32(vcvtq_f32_s32(sum.low), second), vcvtq_f32_s32(sum.high), first);
    }
    static void pack_shorts(std::uint32_t* to, std::size_t, const std::int16_t* x) {
        auto* bytes = reinterpret_cast<std::int8_t*>(to);
        const int8x16_t a = two_bytes(x), b = two_bytes(x + 8);
        vst1q_s8(bytes, vuzp2q_s8(a, b));
        vst1q_s8(bytes + 16, vuzp1q_s8(a, b));
    }
    static void pack_eights(std::uint32_t* to, std::size_t step, const std::int16_t* x) {
        // High bytes of k = 0, 4, 2, 6, low bytes of these, then those of 1, 5, 3, 7.
        const uint8x16_t order = {1, 9, 5, 13, 0, 8, 4, 12, 3, 11, 7, 15, 2, 10, 6, 14};
        const auto row = [&](std::size_t i) { return vqtbl1q_s8(two_bytes(x + 8 * i), order); };
        const int8x16x4_t rows = {{row(0), row(1), row(2), row(3)}};
        std::int8_t packs[64];
        vst4q_s8(packs, rows);
        __builtin_memcpy(to, packs, 32);
        __builtin_memcpy(to + step, packs + 32, 32);
    }

  private:
    template <std::size_t first, std::size_t n>
    [[gnu::always_inline]] static void load_two(Pack (&packs)[n], const std::uint32_t*& at) {
        const int8x16x4_t two = vld1q_s8_x4(reinterpret_cast<const std::int8_t*>(at));
        packs[first] = {two.val[0], two.val[1]};
        packs[first + 1] = {two.val[2], two.val[3]};
        at += 16;
    }
    // Of 8 shorts, low and high in turn.
    static int8x16_t two_bytes(const std::int16_t* x) {
        const uint16x8_t half = vdupq_n_u16(0x80);
        return vreinterpretq_s8_u16(veorq_u16(vaddq_u16(vreinterpretq_u16_s16(vld1q_s16(x)), half), half));
    }
};

}  // namespace
}  // namespace gearkv
