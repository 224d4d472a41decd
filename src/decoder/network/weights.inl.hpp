// The blocks of quantised weights for one vector architecture, unpacked to floats. What their bytes mean is
// told by arch/scalar/expand.hpp, whose bits all of these give.
//
// A block of `block` columns is taken in parts of `part` columns, so that every byte of it is loaded once:
//   Head head(block)                  what all its parts need
//   Codes unpack(block, p, head)      part p
//   Float weight<i>(codes, head, p)   lanes i width to (i + 1) width of it
// L has, for 32 bytes at a time, in the order of columns (arch/*/linear_lanes.hpp):
//   Codes load_codes(const uint8_t*)              32 bytes
//   Codes load_nibbles(const uint8_t*)            of 16 bytes all lower halves, then all upper ones
//   Codes lower(Codes), upper(Codes)              the halves of each byte
//   Codes place<from, to, n>(Codes)               n bits of each byte, moved from bit `from` to bit `to`
//   Codes drop_bits(Codes, uint32_t n)            each byte >> n; what comes in above is not defined
//   Codes bits_as_16(const uint8_t*)              16 where a bit of the word is 1, else 0
//   Codes join(Codes a, Codes b)                  a | b
//   Codes less(Codes a, uint8_t n)                a - n
//   CodeTable load_code_table(const int8_t*), Codes look_up(CodeTable, Codes)     16 entries
//   Float code_floats<i>(Codes)                   signed bytes i width to (i + 1) width
//   void scale_bytes(float* out, Float factor, uint64_t bytes)    eight signed bytes, each times factor
//   permutes_floats                               whether lookup_float is one instruction that takes any
//                                                 index for its lowest four bits
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "decoder/gguf/tensor_type.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

template <WeightType of>
struct BlockOf {
    static constexpr WeightType type = of;
    static constexpr std::size_t block = tensor_type(of).block;
    static constexpr std::size_t block_bytes = tensor_type(of).block_bytes;
    static constexpr std::size_t column_bytes(std::size_t column) { return column / block * block_bytes; }
};

template <class T>
T load_as(const std::uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof(value));
    return value;
}

// ---- sixteen values: 4 bits a weight, 32 weights of one scale ----

enum class Nibbles { signed_ints, unsigned_ints, uneven, small_floats };

template <Nibbles kind>
constexpr std::int8_t nibble_value(int code) {
    constexpr std::int8_t uneven[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};
    constexpr std::int8_t doubled_floats[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    if (kind == Nibbles::signed_ints) return static_cast<std::int8_t>(code - 8);
    if (kind == Nibbles::uneven) return uneven[code];
    if (kind == Nibbles::small_floats) return doubled_floats[code];
    return static_cast<std::int8_t>(code);
}

template <Nibbles kind>
struct NibbleTable {
    alignas(64) float floats[16] = {};
    alignas(16) std::int8_t bytes[16] = {};
    constexpr NibbleTable() {
        for (int code = 0; code < 16; code++) {
            bytes[code] = nibble_value<kind>(code);
            floats[code] = static_cast<float>(bytes[code]);
        }
    }
};
template <Nibbles kind>
constexpr NibbleTable<kind> nibble_table;

// 32 codes as they lie in 16 bytes, or in 32 bytes of which the lower or the upper halves count. With a table
// of floats the scale is multiplied into the table, and a lookup gives the weight.
template <class L, Nibbles kind>
struct NibbleCodes {
    using Float = typename L::Float;

    [[gnu::always_inline]] static typename L::Codes values(typename L::Codes codes) {
        if constexpr (kind == Nibbles::signed_ints) return L::less(codes, 8);
        if constexpr (kind == Nibbles::unsigned_ints) return codes;
        return L::look_up(L::load_code_table(nibble_table<kind>.bytes), codes);
    }
    [[gnu::always_inline]] static typename L::FloatTable scaled(Float scale) {
        return scale * Float(L::load_float_table(nibble_table<kind>.floats));
    }
    [[gnu::always_inline]] static typename L::FloatTable scaled(Float scale, Float low) {
        return L::fma(scale, L::load_float_table(nibble_table<kind>.floats), low);
    }
};

// ---- blocks of 32 ----

template <class L>
struct ScaleAndLow {
    typename L::Float scale, low;
};

template <class L, WeightType type, Nibbles kind, bool has_low, std::size_t codes_at>
struct WeightsNibbles : BlockOf<type> {
    using Float = typename L::Float;
    using Values = NibbleCodes<L, kind>;
    static constexpr std::size_t part = 32;

    static Float scale(const std::uint8_t* block) {
        if constexpr (kind == Nibbles::small_floats) {  // 2^(exponent - 128)
            const std::uint32_t e = block[0];
            return L::from_bits(L::broadcast_word(e < 2 ? 0x00200000u << e : (e - 1) << 23));
        } else {
            return L::broadcast_half(block);
        }
    }

    struct Nothing {};
    struct Unpacked {
        typename L::Words words;  // of the bytes
        typename L::FloatTable table;
    };
    using Codes = std::conditional_t<L::permutes_floats, Unpacked, typename L::Codes>;
    using Head = std::conditional_t<L::permutes_floats, Nothing, ScaleAndLow<L>>;

    static Head head(const std::uint8_t* block) {
        if constexpr (L::permutes_floats) {
            return {};
        } else if constexpr (has_low) {
            return {scale(block), L::broadcast_half(block + 2)};
        } else {
            return {scale(block), scale(block)};
        }
    }
    [[gnu::always_inline]] static Codes unpack(const std::uint8_t* block, std::size_t, const Head&) {
        if constexpr (!L::permutes_floats) {
            return Values::values(L::load_nibbles(block + codes_at));
        } else if constexpr (has_low) {
            return {L::load_bytes(block + codes_at),
                    Values::scaled(scale(block), L::broadcast_half(block + 2))};
        } else {
            return {L::load_bytes(block + codes_at), Values::scaled(scale(block))};
        }
    }
    template <std::size_t i>
    [[gnu::always_inline]] static Float weight(const Codes& codes, const Head& head, std::size_t) {
        if constexpr (L::permutes_floats) {
            static_assert(L::width == 16);
            return L::lookup_float(codes.table, L::template shift_right<4 * i>(codes.words));
        } else if constexpr (has_low) {
            return L::fma(head.scale, L::template code_floats<i>(codes), head.low);
        } else {
            return head.scale * L::template code_floats<i>(codes);
        }
    }
};

template <class L>
using WeightsQ4_0 = WeightsNibbles<L, WeightType::q4_0, Nibbles::signed_ints, false, 2>;
template <class L>
using WeightsQ4_1 = WeightsNibbles<L, WeightType::q4_1, Nibbles::unsigned_ints, true, 4>;
template <class L>
using WeightsIq4Nl = WeightsNibbles<L, WeightType::iq4_nl, Nibbles::uneven, false, 2>;
template <class L>
using WeightsMxfp4 = WeightsNibbles<L, WeightType::mxfp4, Nibbles::small_floats, false, 1>;

template <class L, WeightType type, bool has_low>
struct WeightsFives : BlockOf<type> {
    using Float = typename L::Float;
    using Codes = typename L::Codes;
    using Head = ScaleAndLow<L>;
    static constexpr std::size_t part = 32;
    static constexpr std::size_t bits_at = has_low ? 4 : 2;

    static Head head(const std::uint8_t* block) {
        return {L::broadcast_half(block), L::broadcast_half(block + (has_low ? 2 : 0))};
    }
    [[gnu::always_inline]] static Codes unpack(const std::uint8_t* block, std::size_t, const Head&) {
        const Codes codes = L::join(L::load_nibbles(block + bits_at + 4), L::bits_as_16(block + bits_at));
        return has_low ? codes : L::less(codes, 16);
    }
    template <std::size_t i>
    [[gnu::always_inline]] static Float weight(const Codes& codes, const Head& head, std::size_t) {
        const Float code = L::template code_floats<i>(codes);
        return has_low ? Float(L::fma(head.scale, code, head.low)) : Float(head.scale * code);
    }
};

template <class L>
using WeightsQ5_0 = WeightsFives<L, WeightType::q5_0, false>;
template <class L>
using WeightsQ5_1 = WeightsFives<L, WeightType::q5_1, true>;

// ---- blocks of 256, with scales of their own every 16 or 32 columns ----

constexpr std::uint64_t words(std::uint32_t low, std::uint32_t high) {
    return std::uint64_t{high} << 32 | low;
}

// 32 less in each of eight bytes that are below 64.
constexpr std::uint64_t less_32(std::uint64_t bytes) {
    constexpr std::uint64_t signs = 0x8080808080808080, halves = 0x2020202020202020;
    return ((bytes | signs) - halves) ^ signs;
}

// In memory: a broadcast from there costs no more than a load.
template <class L, std::size_t n>
struct Scales {
    alignas(64) float scale[n];
};
template <class L, std::size_t n>
struct ScalesAndLows {
    alignas(64) float scale[n];
    alignas(64) float low[n];  // to be added
};

template <class L>
struct WeightsTq2_0 : BlockOf<WeightType::tq2_0> {
    using Float = typename L::Float;
    static constexpr std::size_t part = 128;
    using Head = Float;
    struct Codes {
        typename L::Codes codes[4];
    };

    static Head head(const std::uint8_t* block) { return L::broadcast_half(block + 64); }
    [[gnu::always_inline]] static Codes unpack(const std::uint8_t* block, std::size_t p, const Head&) {
        const typename L::Codes bytes = L::load_codes(block + 32 * p);
        return {{L::less(L::template place<0, 0, 2>(bytes), 1), L::less(L::template place<2, 0, 2>(bytes), 1),
                 L::less(L::template place<4, 0, 2>(bytes), 1),
                 L::less(L::template place<6, 0, 2>(bytes), 1)}};
    }
    template <std::size_t i>
    [[gnu::always_inline]] static Float weight(const Codes& codes, const Head& scale, std::size_t) {
        constexpr std::size_t at = i * L::width;
        return scale * L::template code_floats<at % 32 / L::width>(codes.codes[at / 32]);
    }
};

template <class L>
struct WeightsQ2K : BlockOf<WeightType::q2_k> {
    using Float = typename L::Float;
    static constexpr std::size_t part = 128;
    using Head = ScalesAndLows<L, 16>;
    struct Codes {
        typename L::Codes codes[4];
    };

    static Head head(const std::uint8_t* block) {
        const typename L::Float scale = L::broadcast_half(block + 80), low = -L::broadcast_half(block + 82);
        Head head;
        for (std::size_t k = 0; k < 16; k += 8) {
            constexpr std::uint64_t nibbles = 0x0f0f0f0f0f0f0f0f;
            const auto both = load_as<std::uint64_t>(block + k);
            L::scale_bytes(head.scale + k, scale, both & nibbles);
            L::scale_bytes(head.low + k, low, both >> 4 & nibbles);
        }
        return head;
    }
    [[gnu::always_inline]] static Codes unpack(const std::uint8_t* block, std::size_t p, const Head&) {
        const typename L::Codes bytes = L::load_codes(block + 16 + 32 * p);
        return {{L::template place<0, 0, 2>(bytes), L::template place<2, 0, 2>(bytes),
                 L::template place<4, 0, 2>(bytes), L::template place<6, 0, 2>(bytes)}};
    }
    template <std::size_t i>
    [[gnu::always_inline]] static Float weight(const Codes& codes, const Head& head, std::size_t p) {
        constexpr std::size_t at = i * L::width;
        const std::size_t n = 8 * p + at / 16;
        return L::fma(L::broadcast(head.scale[n]),
                      L::template code_floats<at % 32 / L::width>(codes.codes[at / 32]),
                      L::broadcast(head.low[n]));
    }
};

template <class L>
struct WeightsQ3K : BlockOf<WeightType::q3_k> {
    using Float = typename L::Float;
    static constexpr std::size_t part = 128;
    using Head = Scales<L, 16>;
    struct Codes {
        typename L::Codes codes[4];
    };

    static Head head(const std::uint8_t* block) {
        constexpr std::uint32_t nibbles = 0x0f0f0f0f, pairs = 0x30303030;
        const auto a = load_as<std::uint32_t>(block + 96), b = load_as<std::uint32_t>(block + 100),
                   c = load_as<std::uint32_t>(block + 104);
        const std::uint64_t low = words((a & nibbles) | (c << 4 & pairs), (b & nibbles) | (c << 2 & pairs)),
                            high = words((a >> 4 & nibbles) | (c & pairs),
                                         (b >> 4 & nibbles) | (c >> 2 & pairs));
        const Float scale = L::broadcast_half(block + 108);
        Head head;
        L::scale_bytes(head.scale, scale, less_32(low));
        L::scale_bytes(head.scale + 8, scale, less_32(high));
        return head;
    }
    [[gnu::always_inline]] static Codes unpack(const std::uint8_t* block, std::size_t p, const Head&) {
        const typename L::Codes low = L::load_codes(block + 32 + 32 * p);
        const typename L::Codes high = L::drop_bits(L::load_codes(block), static_cast<std::uint32_t>(4 * p));
        Codes out;
        unroll<4>([&](auto j) GEARKV_INLINE {
            out.codes[j] = L::less(
                L::join(L::template place<2 * j.value, 0, 2>(low), L::template place<j.value, 2, 1>(high)),
                4);
        });
        return out;
    }
    template <std::size_t i>
    [[gnu::always_inline]] static Float weight(const Codes& codes, const Head& head, std::size_t p) {
        constexpr std::size_t at = i * L::width;
        return L::broadcast(head.scale[8 * p + at / 16]) *
               L::template code_floats<at % 32 / L::width>(codes.codes[at / 32]);
    }
};

// The eight factors and eight minima of Q4_K and Q5_K, 6 bits each.
template <class L>
ScalesAndLows<L, 8> six_bit_scales(const std::uint8_t* block) {
    constexpr std::uint32_t sixes = 0x3f3f3f3f, nibbles = 0x0f0f0f0f, pairs = 0x30303030;
    const auto a = load_as<std::uint32_t>(block + 4), b = load_as<std::uint32_t>(block + 8),
               c = load_as<std::uint32_t>(block + 12);
    ScalesAndLows<L, 8> head;
    L::scale_bytes(head.scale, L::broadcast_half(block), words(a & sixes, (c & nibbles) | (a >> 2 & pairs)));
    L::scale_bytes(head.low, -L::broadcast_half(block + 2),
                   words(b & sixes, (c >> 4 & nibbles) | (b >> 2 & pairs)));
    return head;
}

template <class L>
struct WeightsQ4K : BlockOf<WeightType::q4_k> {
    using Float = typename L::Float;
    using Values = NibbleCodes<L, Nibbles::unsigned_ints>;
    static constexpr std::size_t part = 64;
    using Head = ScalesAndLows<L, 8>;
    struct Bytes {
        typename L::Codes codes[2];
    };
    struct Unpacked {
        typename L::Words words[2];
        typename L::FloatTable tables[2];
    };
    using Codes = std::conditional_t<L::permutes_floats, Unpacked, Bytes>;

    static Head head(const std::uint8_t* block) { return six_bit_scales<L>(block); }
    [[gnu::always_inline]] static Codes unpack(const std::uint8_t* block, std::size_t p, const Head& head) {
        const std::uint8_t* bytes = block + 16 + 32 * p;
        if constexpr (L::permutes_floats) {
            const auto table = [&](std::size_t k) GEARKV_INLINE {
                return Values::scaled(L::broadcast(head.scale[k]), L::broadcast(head.low[k]));
            };
            return {{L::load_bytes(bytes), L::load_bytes(bytes + 16)}, {table(2 * p), table(2 * p + 1)}};
        } else {
            const typename L::Codes codes = L::load_codes(bytes);
            return {{L::lower(codes), L::upper(codes)}};
        }
    }
    template <std::size_t i>
    [[gnu::always_inline]] static Float weight(const Codes& codes, const Head& head, std::size_t p) {
        constexpr std::size_t at = i * L::width;
        if constexpr (L::permutes_floats) {
            return L::lookup_float(codes.tables[at / 32],
                                   L::template shift_right<at / 32 * 4>(codes.words[i % 2]));
        } else {
            const std::size_t k = 2 * p + at / 32;
            return L::fma(L::broadcast(head.scale[k]),
                          L::template code_floats<at % 32 / L::width>(codes.codes[at / 32]),
                          L::broadcast(head.low[k]));
        }
    }
};

template <class L>
struct WeightsQ5K : BlockOf<WeightType::q5_k> {
    using Float = typename L::Float;
    static constexpr std::size_t part = 64;
    using Head = ScalesAndLows<L, 8>;
    struct Codes {
        typename L::Codes codes[2];
    };

    static Head head(const std::uint8_t* block) { return six_bit_scales<L>(block); }
    [[gnu::always_inline]] static Codes unpack(const std::uint8_t* block, std::size_t p, const Head&) {
        const typename L::Codes low = L::load_codes(block + 48 + 32 * p);
        const typename L::Codes high =
            L::drop_bits(L::load_codes(block + 16), static_cast<std::uint32_t>(2 * p));
        return {{L::join(L::lower(low), L::template place<0, 4, 1>(high)),
                 L::join(L::upper(low), L::template place<1, 4, 1>(high))}};
    }
    template <std::size_t i>
    [[gnu::always_inline]] static Float weight(const Codes& codes, const Head& head, std::size_t p) {
        constexpr std::size_t at = i * L::width;
        const std::size_t k = 2 * p + at / 32;
        return L::fma(L::broadcast(head.scale[k]),
                      L::template code_floats<at % 32 / L::width>(codes.codes[at / 32]),
                      L::broadcast(head.low[k]));
    }
};

template <class L>
struct WeightsQ6K : BlockOf<WeightType::q6_k> {
    using Float = typename L::Float;
    static constexpr std::size_t part = 128;
    using Head = Scales<L, 16>;
    struct Codes {
        typename L::Codes codes[4];
    };

    static Head head(const std::uint8_t* block) {
        Head head;
        const Float scale = L::broadcast_half(block + 208);
        L::scale_bytes(head.scale, scale, load_as<std::uint64_t>(block + 192));
        L::scale_bytes(head.scale + 8, scale, load_as<std::uint64_t>(block + 200));
        return head;
    }
    [[gnu::always_inline]] static Codes unpack(const std::uint8_t* block, std::size_t p, const Head&) {
        const typename L::Codes first = L::load_codes(block + 64 * p),
                                second = L::load_codes(block + 64 * p + 32),
                                high = L::load_codes(block + 128 + 32 * p);
        return {{L::less(L::join(L::lower(first), L::template place<0, 4, 2>(high)), 32),
                 L::less(L::join(L::lower(second), L::template place<2, 4, 2>(high)), 32),
                 L::less(L::join(L::upper(first), L::template place<4, 4, 2>(high)), 32),
                 L::less(L::join(L::upper(second), L::template place<6, 4, 2>(high)), 32)}};
    }
    template <std::size_t i>
    [[gnu::always_inline]] static Float weight(const Codes& codes, const Head& head, std::size_t p) {
        constexpr std::size_t at = i * L::width;
        return L::broadcast(head.scale[8 * p + at / 16]) *
               L::template code_floats<at % 32 / L::width>(codes.codes[at / 32]);
    }
};

template <class L>
struct WeightsIq4Xs : BlockOf<WeightType::iq4_xs> {
    using Float = typename L::Float;
    using Values = NibbleCodes<L, Nibbles::uneven>;
    static constexpr std::size_t part = 32;
    using Head = Scales<L, 8>;
    struct Unpacked {
        typename L::Words words;
        typename L::FloatTable table;
    };
    using Codes = std::conditional_t<L::permutes_floats, Unpacked, typename L::Codes>;

    static Head head(const std::uint8_t* block) {
        const std::uint64_t high = load_as<std::uint16_t>(block + 2), low = load_as<std::uint32_t>(block + 4);
        std::uint64_t factors = 0;
        unroll<8>([&](auto k) GEARKV_INLINE {
            factors |= ((low >> 4 * k & 15) | (high >> 2 * k & 3) << 4) << 8 * k;
        });
        Head head;
        L::scale_bytes(head.scale, L::broadcast_half(block), less_32(factors));
        return head;
    }
    [[gnu::always_inline]] static Codes unpack(const std::uint8_t* block, std::size_t p, const Head& head) {
        const std::uint8_t* bytes = block + 8 + 16 * p;
        if constexpr (L::permutes_floats) {
            return {L::load_bytes(bytes), Values::scaled(L::broadcast(head.scale[p]))};
        } else {
            return Values::values(L::load_nibbles(bytes));
        }
    }
    template <std::size_t i>
    [[gnu::always_inline]] static Float weight(const Codes& codes, const Head& head, std::size_t p) {
        if constexpr (L::permutes_floats) {
            return L::lookup_float(codes.table, L::template shift_right<4 * i>(codes.words));
        } else {
            return L::broadcast(head.scale[p]) * L::template code_floats<i>(codes);
        }
    }
};

}  // namespace
}  // namespace gearkv
