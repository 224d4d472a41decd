// ARMv8.0 Advanced SIMD.
#pragma once

#include "../lanes.hpp"

namespace gearkv {
namespace {

struct Neon : xsimd::neon64 {};

}  // namespace
}  // namespace gearkv

GEARKV_DECLARE_ARCH(gearkv::Neon, neon64)

namespace gearkv {
namespace {

struct Lanes : NeonLanes<Lanes, Neon> {
    // Factors are shorts, and so become the bytes they meet: those of bytes 0 and 2 of all lanes, and those
    // of bytes 1 and 3.
    static constexpr int factor_limit = 32767;
    static constexpr bool one_sum = true;
    static constexpr bool signed_bytes = true;
    static constexpr std::size_t pack_words = 1;

    struct Pack {
        int16x8_t even, odd;
    };
    struct PackSum {
        int32x4_t low, high;  // two words of a lane each, lanes 0 and 1, 2 and 3
    };
    struct Shorts {
        int16x8_t even, odd;
    };
    template <std::size_t n>
    [[gnu::always_inline]] static void load_packs(Pack (&packs)[n], const std::uint32_t*& at) {
        __asm__ volatile("" ::: "memory");
        if constexpr (n == 1) {
            const uint32x4x2_t one = vld2q_dup_u32(at);
            packs[0] = {vreinterpretq_s16_u32(one.val[0]), vreinterpretq_s16_u32(one.val[1])};
            at += 8;
        } else {
            load_two<0>(packs, at);
            if constexpr (n == 4) {
                load_two<2>(packs, at);
            } else {
                at += 4;
            }
        }
    }
    static PackSum start_sum(std::int32_t first, std::int32_t) {
        const int32x4_t sum = {first, 0, first, 0};
        return {sum, sum};
    }
    static Shorts ready_bytes(Words bytes) {
        const int16x8_t shorts = vreinterpretq_s16_u32(bytes);
        return {vshrq_n_s16(vshlq_n_s16(shorts, 8), 8), vshrq_n_s16(shorts, 8)};
    }
    template <std::size_t>
    [[gnu::always_inline]] static void add_product(PackSum& sum, const Shorts& bytes, const Pack& pack) {
        sum.low = vmlal_s16(sum.low, vget_low_s16(bytes.even), vget_low_s16(pack.even));
        sum.high = vmlal_high_s16(sum.high, bytes.even, pack.even);
        sum.low = vmlal_s16(sum.low, vget_low_s16(bytes.odd), vget_low_s16(pack.odd));
        sum.high = vmlal_high_s16(sum.high, bytes.odd, pack.odd);
    }
    static Float finish_sum(const PackSum& sum, float first, float) {
        return vmulq_n_f32(vcvtq_f32_s32(vpaddq_s32(sum.low, sum.high)), first);
    }
    static void pack_shorts(std::uint32_t* to, std::size_t step, const std::int16_t* x) {
        const uint8x16_t order = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(x);
        store_two(to, step, vqtbl1q_u8(vld1q_u8(bytes), order));
        store_two(to + 2 * step, step, vqtbl1q_u8(vld1q_u8(bytes + 16), order));
    }
    static void pack_eights(std::uint32_t* to, std::size_t step, const std::int16_t* x) {
        const uint8x16_t order = {0, 1, 8, 9, 4, 5, 12, 13, 2, 3, 10, 11, 6, 7, 14, 15};
        const auto row = [&](std::size_t i) {
            const auto* bytes = reinterpret_cast<const std::uint8_t*>(x + 8 * i);
            return vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(bytes), order));
        };
        const uint16x8_t a = row(0), b = row(1), c = row(2), d = row(3);
        const uint32x4_t even[2] = {vreinterpretq_u32_u16(vzip1q_u16(a, c)),
                                    vreinterpretq_u32_u16(vzip2q_u16(a, c))},
                         odd[2] = {vreinterpretq_u32_u16(vzip1q_u16(b, d)),
                                   vreinterpretq_u32_u16(vzip2q_u16(b, d))};
        for (std::size_t half = 0; half < 2; ++half, to += 4 * step) {
            store_two(to, step, vreinterpretq_u8_u32(vzip1q_u32(even[half], odd[half])));
            store_two(to + 2 * step, step, vreinterpretq_u8_u32(vzip2q_u32(even[half], odd[half])));
        }
    }

  private:
    template <std::size_t first, std::size_t n>
    [[gnu::always_inline]] static void load_two(Pack (&packs)[n], const std::uint32_t*& at) {
        const uint32x4x4_t two = vld4q_dup_u32(at);
        packs[first] = {vreinterpretq_s16_u32(two.val[0]), vreinterpretq_s16_u32(two.val[1])};
        packs[first + 1] = {vreinterpretq_s16_u32(two.val[2]), vreinterpretq_s16_u32(two.val[3])};
        at += 4;
    }
    static void store_two(std::uint32_t* to, std::size_t step, uint8x16_t packs) {
        vst1_u8(reinterpret_cast<std::uint8_t*>(to), vget_low_u8(packs));
        vst1_u8(reinterpret_cast<std::uint8_t*>(to + step), vget_high_u8(packs));
    }
};

}  // namespace
}  // namespace gearkv
