// The blocks of every quantised type, as codes and scales of n_rows rows at a time.
//
// L is the lanes of a level (integer.inl.hpp). A type has
//   type                               its WeightType
//   kind                               what its codes are
//   offset                             weights are worth (code - offset) times the scale
//   halves                             whether 16 weights share a scale, else 32
//   has_minimum                        whether each scale has a minimum beside it
//   nibbles_at                         where the nibbles of a block of 32 begin that has no other bits of codes,
//                                      else 0
//   template <k> L::Codes codes(block) the 32 codes from column 32 k of a block on
//   read(rows, at, scales)             the scales of one block of n_rows rows, which starts at rows[r] + at
// What a bit of a block means is told in arch/scalar/expand.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "decoder/network/integer.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

enum class CodeKind {
    five_bits,  // below 32
    six_bits,   // below 64
    bytes,      // signed
};

// Row pointers of one step.
using RowPointers = const std::uint8_t* const*;

template <class L, std::size_t n_scales, std::size_t n_minima>
struct RowScales {
    typename L::Floats scale[n_scales];
    typename L::Floats minimum[n_minima == 0 ? 1 : n_minima];  // with its sign
};

// ---- blocks of 32 ----

template <WeightType weight_type, CodeKind code_kind, int code_offset, bool minimum>
struct SmallBlocks {
    static constexpr WeightType type = weight_type;
    static constexpr CodeKind kind = code_kind;
    static constexpr int offset = code_offset;
    static constexpr bool halves = false, has_minimum = minimum;
    static constexpr std::size_t nibbles_at = 0;
    template <class L>
    using Scales = RowScales<L, 1, minimum ? 1 : 0>;

    template <class L>
    static void read(RowPointers rows, std::size_t at, Scales<L>& scales) {
        if constexpr (minimum) {
            L::split_halves(L::gather_words(rows, at), scales.scale[0], scales.minimum[0]);
        } else {
            scales.scale[0] = L::gather_heads(rows, at);
        }
    }
};

struct TypeQ40 : SmallBlocks<WeightType::q4_0, CodeKind::five_bits, 8, false> {
    static constexpr std::size_t nibbles_at = 2;
    template <class L, std::size_t>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::split_nibbles(block + 2);
    }
};

struct TypeQ41 : SmallBlocks<WeightType::q4_1, CodeKind::five_bits, 0, true> {
    static constexpr std::size_t nibbles_at = 4;
    template <class L, std::size_t>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::split_nibbles(block + 4);
    }
};

struct TypeQ50 : SmallBlocks<WeightType::q5_0, CodeKind::five_bits, 16, false> {
    template <class L, std::size_t>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::either(L::split_nibbles(block + 6), L::template spread_bits<16>(block + 2));
    }
};

struct TypeQ51 : SmallBlocks<WeightType::q5_1, CodeKind::five_bits, 0, true> {
    template <class L, std::size_t>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::either(L::split_nibbles(block + 8), L::template spread_bits<16>(block + 4));
    }
};

struct TypeQ80 : SmallBlocks<WeightType::q8_0, CodeKind::bytes, 0, false> {
    template <class L, std::size_t>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::load_codes(block + 2);
    }
};

alignas(16) constexpr std::int8_t uneven_bytes[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                      1,    13,   25,  38,  53,  69,  89,  113};

struct TypeIq4Nl : SmallBlocks<WeightType::iq4_nl, CodeKind::bytes, 0, false> {
    template <class L, std::size_t>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::lookup(uneven_bytes, L::split_nibbles(block + 2));
    }
};

// Twice a 4-bit float, and 16.
alignas(16) constexpr std::int8_t moved_floats[16] = {16, 17, 18, 19, 20, 22, 24, 28,
                                                      16, 15, 14, 13, 12, 10, 8,  4};

struct TypeMxfp4 : SmallBlocks<WeightType::mxfp4, CodeKind::five_bits, 16, false> {
    template <class L, std::size_t>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::lookup(moved_floats, L::split_nibbles(block + 1));
    }
    // 2^(exponent - 128), below 2^-126 a subnormal: of exponents 0 and 1.
    template <class L>
    static void read(RowPointers rows, std::size_t at, Scales<L>& scales) {
        const auto one = L::broadcast_word(1), exponent = L::template byte<0>(L::gather_words(rows, at));
        const auto subnormal = L::template word_right<31>(L::subtract(exponent, L::broadcast_word(2))),
                   odd = subnormal & exponent;
        const auto normal = L::template word_left<23>(L::subtract(exponent, one)) & L::subtract(subnormal, one);
        scales.scale[0] = L::as_floats(normal | L::template word_left<21>(L::subtract(subnormal, odd)) |
                                       L::template word_left<22>(odd));
    }
};

// ---- blocks of 256 ----

template <WeightType weight_type, CodeKind code_kind, int code_offset, bool with_halves, bool minimum>
struct LargeBlocks {
    static constexpr WeightType type = weight_type;
    static constexpr CodeKind kind = code_kind;
    static constexpr int offset = code_offset;
    static constexpr bool halves = with_halves, has_minimum = minimum;
    static constexpr std::size_t nibbles_at = 0;
    static constexpr std::size_t n_scales = with_halves ? 16 : 8;
    template <class L>
    using Scales = RowScales<L, n_scales, minimum ? n_scales : 0>;

    // Byte j of word i of every row times `unit`, as factor 4 i + j.
    template <class L, std::size_t n>
    static void expand_bytes(typename L::Floats* out, const typename L::Words (&words)[n],
                             typename L::Floats unit) {
        unroll<n>([&](auto i) GEARKV_INLINE {
            unroll<4>([&](auto j) GEARKV_INLINE {
                out[4 * i + j] = L::multiply(L::to_floats(L::template byte<j>(words[i])), unit);
            });
        });
    }
};

// Scales and minima of 6 bits, packed in twelve bytes.
template <WeightType weight_type>
struct SixBitScales : LargeBlocks<weight_type, CodeKind::five_bits, 0, false, true> {
    using Base = LargeBlocks<weight_type, CodeKind::five_bits, 0, false, true>;
    template <class L>
    static void read(RowPointers rows, std::size_t at, typename Base::template Scales<L>& scales) {
        using Words = typename L::Words;
        Words head[4];  // two halves, then the twelve bytes
        L::gather_quads(rows, at, head);
        typename L::Floats unit, low_unit;
        L::split_halves(head[0], unit, low_unit);
        const Words six = L::broadcast_word(0x3f3f3f3f), four = L::broadcast_word(0x0f0f0f0f),
                    top = L::broadcast_word(0x30303030);
        const Words factors[2] = {head[1] & six,
                                  (head[3] & four) | (L::template word_right<2>(head[1]) & top)};
        const Words minima[2] = {head[2] & six, (L::template word_right<4>(head[3]) & four) |
                                                    (L::template word_right<2>(head[2]) & top)};
        Base::template expand_bytes<L>(scales.scale, factors, unit);
        Base::template expand_bytes<L>(scales.minimum, minima, L::negate(low_unit));
    }
};

struct TypeQ4K : SixBitScales<WeightType::q4_k> {
    template <class L, std::size_t k>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::template field<4 * (k % 2), 4>(L::load_codes(block + 16 + k / 2 * 32));
    }
};

struct TypeQ5K : SixBitScales<WeightType::q5_k> {
    template <class L, std::size_t k>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::either(L::template field<4 * (k % 2), 4>(L::load_codes(block + 48 + k / 2 * 32)),
                         L::template field<k, 1, 4>(L::load_codes(block + 16)));
    }
};

// Bits 2 (k mod 4) and up of byte 32 (k div 4) + column.
template <class L, std::size_t k, std::size_t to = 0>
typename L::Codes two_bit_codes(const std::uint8_t* bytes) {
    return L::template field<2 * (k % 4), 2, to>(L::load_codes(bytes + k / 4 * 32));
}

struct TypeQ6K : LargeBlocks<WeightType::q6_k, CodeKind::six_bits, 32, true, false> {
    template <class L, std::size_t k>
    static typename L::Codes codes(const std::uint8_t* block) {
        const std::uint8_t* low = block + k / 4 * 64 + k % 2 * 32;
        return L::either(L::template field<k % 4 / 2 * 4, 4>(L::load_codes(low)),
                         two_bit_codes<L, k, 4>(block + 128));
    }
    template <class L>
    static void read(RowPointers rows, std::size_t at, Scales<L>& scales) {
        typename L::Words factors[4];
        L::gather_quads(rows, at + 192, factors);
        const auto unit = L::gather_halves(rows, at + 208);
        unroll<4>([&](auto i) GEARKV_INLINE {
            unroll<4>([&](auto j) GEARKV_INLINE {
                scales.scale[4 * i + j] =
                    L::multiply(L::to_floats(L::template signed_byte<j>(factors[i])), unit);
            });
        });
    }
};

struct TypeQ3K : LargeBlocks<WeightType::q3_k, CodeKind::five_bits, 4, true, false> {
    template <class L, std::size_t k>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::either(two_bit_codes<L, k>(block + 32), L::template field<k, 1, 2>(L::load_codes(block)));
    }
    template <class L>
    static void read(RowPointers rows, std::size_t at, Scales<L>& scales) {
        using Words = typename L::Words;
        const Words a = L::gather_words(rows, at + 96), b = L::gather_words(rows, at + 100),
                    high = L::gather_words(rows, at + 104);
        const Words four = L::broadcast_word(0x0f0f0f0f), two = L::broadcast_word(0x30303030);
        const Words factors[4] = {
            (a & four) | (L::template word_left<4>(high) & two),
            (b & four) | (L::template word_left<2>(high) & two),
            (L::template word_right<4>(a) & four) | (high & two),
            (L::template word_right<4>(b) & four) | (L::template word_right<2>(high) & two)};
        const auto unit = L::gather_halves(rows, at + 108);
        const auto middle = L::broadcast_word(32);
        unroll<4>([&](auto i) GEARKV_INLINE {
            unroll<4>([&](auto j) GEARKV_INLINE {
                const auto factor = L::subtract(L::template byte<j>(factors[i]), middle);
                scales.scale[4 * i + j] = L::multiply(L::to_floats(factor), unit);
            });
        });
    }
};

struct TypeQ2K : LargeBlocks<WeightType::q2_k, CodeKind::five_bits, 0, true, true> {
    template <class L, std::size_t k>
    static typename L::Codes codes(const std::uint8_t* block) {
        return two_bit_codes<L, k>(block + 16);
    }
    template <class L>
    static void read(RowPointers rows, std::size_t at, Scales<L>& scales) {
        using Words = typename L::Words;
        Words both[4], minima[4];
        L::gather_quads(rows, at, both);
        const Words four = L::broadcast_word(0x0f0f0f0f);
        unroll<4>([&](auto i) GEARKV_INLINE {
            minima[i] = L::template word_right<4>(both[i]) & four;
            both[i] = both[i] & four;
        });
        typename L::Floats unit, low_unit;
        L::split_halves(L::gather_words(rows, at + 80), unit, low_unit);
        expand_bytes<L>(scales.scale, both, unit);
        expand_bytes<L>(scales.minimum, minima, L::negate(low_unit));
    }
};

struct TypeIq4Xs : LargeBlocks<WeightType::iq4_xs, CodeKind::bytes, 0, false, false> {
    template <class L, std::size_t k>
    static typename L::Codes codes(const std::uint8_t* block) {
        return L::lookup(uneven_bytes, L::split_nibbles(block + 8 + 16 * k));
    }
    template <class L>
    static void read(RowPointers rows, std::size_t at, Scales<L>& scales) {
        const auto head = L::gather_words(rows, at), low = L::gather_words(rows, at + 4);
        typename L::Floats unit, unused;
        L::split_halves(head, unit, unused);
        const auto four = L::broadcast_word(15), two = L::broadcast_word(0x30),
                   middle = L::broadcast_word(32);
        unroll<8>([&](auto k) GEARKV_INLINE {
            const auto factor = (L::template word_right<4 * k>(low) & four) |
                                (L::template word_right<12 + 2 * k>(head) & two);
            scales.scale[k] = L::multiply(L::to_floats(L::subtract(factor, middle)), unit);
        });
    }
};

struct TypeTq20 : LargeBlocks<WeightType::tq2_0, CodeKind::five_bits, 1, false, false> {
    template <class L, std::size_t k>
    static typename L::Codes codes(const std::uint8_t* block) {
        return two_bit_codes<L, k>(block);
    }
    template <class L>
    static void read(RowPointers rows, std::size_t at, Scales<L>& scales) {
        const auto unit = L::gather_halves(rows, at + 64);
        unroll<8>([&](auto k) GEARKV_INLINE { scales.scale[k] = unit; });
    }
};

}  // namespace
}  // namespace gearkv
