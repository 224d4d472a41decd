// Integer products with 128-bit vectors: four rows. `Self` adds
//   int32x4_t multiply_codes<kind>(int32x4_t sum, Codes, const int8_t x[32])        with the products added to any
//   int32x4_t multiply_half<kind>(int32x4_t sum, uint8x16_t, const int8_t x[16])      of the four sums
#pragma once

#include <arm_neon.h>

#include "decoder/network/integer.inl.hpp"

namespace gearkv {
namespace {

template <class Self>
struct NeonIntegerLanes {
    static constexpr std::size_t n_rows = 4;
    template <CodeKind>
    static constexpr bool has_columns = false;
    static constexpr bool has_nibbles = false;
    static constexpr int bytes_offset = 0;
    static constexpr void (*arrange_bytes)(CodeBlock*, std::size_t) = nullptr;
    using Floats = float32x4_t;
    using Words = uint32x4_t;
    struct Codes {
        uint8x16_t low, high;
    };

    static Floats broadcast(float x) { return vdupq_n_f32(x); }
    static Floats load(const float* x) { return vld1q_f32(x); }
    static void store(float* x, Floats a) { vst1q_f32(x, a); }
    static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
    static Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
    static Floats negate(Floats a) { return vnegq_f32(a); }
    static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
    static Floats to_floats(Words a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
    static Floats as_floats(Words a) { return vreinterpretq_f32_u32(a); }

    static Words broadcast_word(std::uint32_t x) { return vdupq_n_u32(x); }
    static Words subtract(Words a, Words b) { return vsubq_u32(a, b); }
    template <std::size_t n>
    static Words word_left(Words a) {
        return vshlq_n_u32(a, n);
    }
    template <std::size_t n>
    static Words word_right(Words a) {
        if constexpr (n == 0) {
            return a;
        } else {
            return vshrq_n_u32(a, n);
        }
    }
    template <std::size_t j>
    static Words byte(Words a) {
        if constexpr (j == 3) return word_right<24>(a);
        return word_right<8 * j>(a) & vdupq_n_u32(0xff);
    }
    template <std::size_t j>
    static Words signed_byte(Words a) {
        if constexpr (j < 3) a = word_left<24 - 8 * j>(a);
        return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a), 24));
    }

    static Words gather_words(RowPointers rows, std::size_t at) {
        Words words = vdupq_n_u32(load_as<std::uint32_t>(rows[0] + at));
        words = vsetq_lane_u32(load_as<std::uint32_t>(rows[1] + at), words, 1);
        words = vsetq_lane_u32(load_as<std::uint32_t>(rows[2] + at), words, 2);
        return vsetq_lane_u32(load_as<std::uint32_t>(rows[3] + at), words, 3);
    }
    static void gather_quads(RowPointers rows, std::size_t at, Words* out) {
        const auto row = [&](std::size_t r) { return vreinterpretq_u32_u8(vld1q_u8(rows[r] + at)); };
        const Words a = vzip1q_u32(row(0), row(2)), b = vzip1q_u32(row(1), row(3)),
                    c = vzip2q_u32(row(0), row(2)), d = vzip2q_u32(row(1), row(3));
        out[0] = vzip1q_u32(a, b);
        out[1] = vzip2q_u32(a, b);
        out[2] = vzip1q_u32(c, d);
        out[3] = vzip2q_u32(c, d);
    }
    static Floats gather_halves(RowPointers rows, std::size_t at) {
        uint16x4_t halves = vdup_n_u16(load_as<std::uint16_t>(rows[0] + at));
        halves = vset_lane_u16(load_as<std::uint16_t>(rows[1] + at), halves, 1);
        halves = vset_lane_u16(load_as<std::uint16_t>(rows[2] + at), halves, 2);
        halves = vset_lane_u16(load_as<std::uint16_t>(rows[3] + at), halves, 3);
        return vcvt_f32_f16(vreinterpret_f16_u16(halves));
    }
    static Floats gather_heads(RowPointers rows, std::size_t at) { return gather_halves(rows, at); }
    static void split_halves(Words a, Floats& low, Floats& high) {
        low = vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(a)));
        high = vcvt_f32_f16(vreinterpret_f16_u16(vshrn_n_u32(a, 16)));
    }

    static Codes load_codes(const std::uint8_t* x) { return {vld1q_u8(x), vld1q_u8(x + 16)}; }
    static Codes either(Codes a, Codes b) { return {vorrq_u8(a.low, b.low), vorrq_u8(a.high, b.high)}; }
    static Codes split_nibbles(const std::uint8_t* x) {
        const uint8x16_t both = vld1q_u8(x);
        return {vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8(both, 4)};
    }
    template <std::size_t from, std::size_t n, std::size_t to = 0>
    static Codes field(Codes a) {
        return {field<from, n, to>(a.low), field<from, n, to>(a.high)};
    }
    template <int value>
    static Codes spread_bits(const std::uint8_t* x) {
        const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u)),
                         first = vcombine_u8(vdup_n_u8(0), vdup_n_u8(1)),
                         second = vcombine_u8(vdup_n_u8(2), vdup_n_u8(3)),
                         bytes = vreinterpretq_u8_u32(vdupq_n_u32(load_as<std::uint32_t>(x)));
        const auto spread = [&](uint8x16_t order) {
            return vandq_u8(vtstq_u8(vqtbl1q_u8(bytes, order), bit), vdupq_n_u8(value));
        };
        return {spread(first), spread(second)};
    }
    static Codes lookup(const std::int8_t* table, Codes a) {
        const uint8x16_t bytes = vreinterpretq_u8_s8(vld1q_s8(table));
        return {vqtbl1q_u8(bytes, a.low), vqtbl1q_u8(bytes, a.high)};
    }

    template <CodeKind kind, bool halves, std::size_t n>
    [[gnu::always_inline]] static void products(Words (&sums)[n], const Codes (&codes)[n_rows],
                                                const CodeBlock& x) {
        int32x4_t parts[n][n_rows];
        unroll<n_rows>([&](auto r) GEARKV_INLINE {
            if constexpr (halves) {
                parts[0][r] = half<kind>(codes[r].low, x.high, x.low);
                parts[1][r] = half<kind>(codes[r].high, x.high + 16, x.low + 16);
            } else {
                const int32x4_t sum = Self::template multiply_codes<kind>(vdupq_n_s32(0), codes[r], x.high);
                parts[0][r] = Self::template multiply_codes<kind>(vshlq_n_s32(sum, 7), codes[r], x.low);
            }
        });
        unroll<n>([&](auto i) GEARKV_INLINE {
            sums[i] = vreinterpretq_u32_s32(
                vpaddq_s32(vpaddq_s32(parts[i][0], parts[i][1]), vpaddq_s32(parts[i][2], parts[i][3])));
        });
    }

    // Of magnitudes: NaN is larger than all others.
    static std::uint32_t largest_bits(const float* x) {
        uint32x4_t most = vdupq_n_u32(0);
        for (std::size_t i = 0; i < code_block; i += 4)
            most = vmaxq_u32(most, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
        return vmaxvq_u32(most);
    }
    static void round_block(CodeBlock* out, const float* x, float factor) {
        for (std::size_t half = 0; half < 2; ++half) {
            int16x4_t four[4];
            for (std::size_t i = 0; i < 4; ++i) {
                const float32x4_t scaled = vmulq_n_f32(vld1q_f32(x + 16 * half + 4 * i), factor);
                four[i] = vqmovn_s32(vcvtnq_s32_f32(scaled));
            }
            int8x8_t high[2], low[2];
            std::int32_t sum = 0;
            for (std::size_t i = 0; i < 2; ++i) {
                const int16x8_t codes = vcombine_s16(four[2 * i], four[2 * i + 1]);
                const int16x8_t upper = vrshrq_n_s16(codes, 7);
                high[i] = vmovn_s16(upper);
                low[i] = vmovn_s16(vsubq_s16(codes, vshlq_n_s16(upper, 7)));
                sum += vaddlvq_s16(codes);
            }
            vst1q_s8(out->high + 16 * half, vcombine_s8(high[0], high[1]));
            vst1q_s8(out->low + 16 * half, vcombine_s8(low[0], low[1]));
            out->halves[half] = sum;
        }
    }

  private:
    template <CodeKind kind>
    static int32x4_t half(uint8x16_t codes, const std::int8_t* high, const std::int8_t* low) {
        const int32x4_t sum = Self::template multiply_half<kind>(vdupq_n_s32(0), codes, high);
        return Self::template multiply_half<kind>(vshlq_n_s32(sum, 7), codes, low);
    }
    template <class T>
    static T load_as(const std::uint8_t* x) {
        T value;
        std::memcpy(&value, x, sizeof(value));
        return value;
    }
    template <std::size_t from, std::size_t n, std::size_t to>
    static uint8x16_t field(uint8x16_t a) {
        if constexpr (from > to) a = vshrq_n_u8(a, from - to);
        if constexpr (from < to) a = vshlq_n_u8(a, to - from);
        if constexpr (from + n == 8 && to == 0) return a;
        return vandq_u8(a, vdupq_n_u8(((1 << n) - 1) << to));
    }
};

}  // namespace
}  // namespace gearkv
