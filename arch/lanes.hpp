// What all vector levels share: the vocabulary that kernels in src/**/*.inl.hpp are written in.
//
// A level has an architecture of its own that inherits everything from xsimd's and lives in an anonymous
// namespace. So every xsimd function a level instantiates is local to its object: neither another level nor a
// program that uses xsimd with other flags can pick it up.
#pragma once

#include <cstddef>
#include <cstdint>

#include <xsimd/xsimd.hpp>

// Declares `arch`, which must be in an anonymous namespace and inherit from `base`, as an architecture of
// xsimd.
#define GEARKV_DECLARE_ARCH(arch, base)                                          \
    namespace xsimd {                                                            \
    namespace types {                                                            \
    XSIMD_DECLARE_SIMD_REGISTER_ALIAS(arch, base);                               \
    template <class T>                                                           \
    struct get_bool_simd_register<T, arch> : get_bool_simd_register<T, base> {}; \
    }                                                                            \
    }

namespace gearkv {
namespace {

// Float lanes and the 32-bit words beside them. `Self` is the level's struct and adds
//   n_registers                            of the architecture
//   Float fma(a, b, c)                     a * b + c, rounded once
//   Float round(a)                         to the nearest integer, half to even, whatever the rounding mode
//   Float to_float(Words a)                of words below 2^31
//   Words to_words(Float a)                of integers in [0, 2^31)
//   Words bits(Float a), Float from_bits(Words a)
//   Float load_half(const uint16_t*)       width halves
//   void store_half(uint16_t*, Float a)    round to nearest even
//   Words load_shorts(const uint16_t*)     width shorts, widened
//   void store_low_shorts(uint16_t*, Words)   words below 65536
//   Words load_bytes(const uint8_t*)       width bytes, widened
//   void store_bytes(uint8_t*, Float a)    integers in [0, 255]
//   float sum(Float a), smallest(Float a), largest(Float a)    over the lanes; none may be NaN
//   void sum_each(float out[4], a, b, c, d)
//   Float from_signed(Words a)             of signed words
//   void zip(Float& a, Float& b)           a and b become the halves of a0 b0 a1 b1 ...
//   Mask less(Float a, Float b)            a < b
//   uint32_t lane_bits(Mask m)             lane i at bit i
//   Words mark<n>(Words a, Mask m)         a, whose bits from n on are 0, with bit n set where m
//   Words merge(Words m, a, b)             bits of a where m has ones, else those of b
//   Words shift_right_by(Words a, Words n) each lane by its own n < 32
//   Words load_after_zero(const uint32_t*) 0, then the first width - 1 words; reads width words
//   void store_low_bytes(uint8_t*, Words)  words below 256
//   Words load_packed(const void*)         4 width bytes, as they are
//   void store_packed(void*, Words)
//   ByteTable, load_table(const void*)     16 bytes
//   Words lookup(ByteTable, Words a)       for each byte of a, all below 16
//   Words lookup<n>(ByteTable low, ByteTable high, Words a, Words b)   high where bit n of b's byte is 1
//   Words turn_bytes(Words a)              byte j of word i of every four words becomes byte i of word j
//   RowTable(const float* x, size_t n)     Float pick(const uint16_t* at): x[at[lane]] for each lane
//   FloatTable, load_float_table(const float*), FloatIndex float_index(Words a), a below 16
//   Float lookup_float(FloatTable, FloatIndex)
//   scales_by_powers                       whether there is Float scale_by_power(Float a, Float k): a 2^k
//   factor_limit                           of integer dot products (src/attention/dots.inl.hpp)
//   one_sum                                whether both words of factors are worth the same
//   signed_bytes                           whether their bytes are signed, else unsigned
//   Words dot_first(Words sum, bytes, factors), dot_second(sum, bytes, factors)
//   int32_t sum_words(Words)               of signed words
//   void store_shorts(int16_t*, Words)     width signed words within the range of shorts
//   void split_shorts(uint32_t first[4], uint32_t second[4], const int16_t[16])     factors in natural order
//   void split_eights(uint32_t first[8], uint32_t second[8], const int16_t[32])     words of 8 i + k, all i
//   rounds_bytes                           whether there are these two, in place of the last three:
//   float largest_magnitude(const float* x, size_t n)
//   void round_bytes<eights>(uint32_t* first, uint32_t* second, const float* x, size_t n, float factor,
//                            int32_t* first_sum, int32_t* second_sum)
//   inserts_nibbles                        whether there are, for every byte:
//   Words insert_upper(Words a, Words b)   the lower nibble of a below that of b
//   Words insert_lower(Words a, Words b)   the upper nibble of a above that of b
//   Words lookup_pair(tables, Words a)     of load_table_pair, below 32
//   Words twice_less(Words a, uint8_t end) 2 a - end
//   pack_words                             words of factors of a pack (src/attention/packs.inl.hpp) where the
//                                          level has packs in place of dot_first to split_eights:
//   void round_shorts(int16_t[16], const float[16], Float f)       of x f, within shorts
//   void pack_shorts(uint32_t* to, size_t step, const int16_t[16])    4 words in natural order; packs are
//                                          `step` apart
//   void pack_eights(uint32_t* to, size_t step, const int16_t[32])    words of 8 i + k for all i, k = 0, 4,
//                                          2, 6, 1, 5, 3, 7
//   Pack, load_packs<n>(Pack (&packs)[n], const uint32_t*& at)     of n rows; at moves on by four
//   PackSum, start_sum(int32_t, int32_t), finish_sum(PackSum, float first, float second)
//   ready_bytes(Words bytes), add_product<word>(PackSum&, ready bytes, const Pack&)
// No function needs an alignment. Those named *_first touch only the first n < width entries.
template <class Self, class Arch>
struct BasicLanes {
    using Float = xsimd::batch<float, Arch>;
    using Words = xsimd::batch<std::uint32_t, Arch>;
    static constexpr std::size_t width = Float::size;
    static constexpr std::size_t pack_words = 0;
    static constexpr bool inserts_nibbles = false;
    static constexpr bool rounds_bytes = false;
    static constexpr bool scales_by_powers = false;

    static Float load(const float* x) { return Float::load_unaligned(x); }
    static void store(float* x, Float a) { a.store_unaligned(x); }
    static Words load_words(const std::uint32_t* x) { return Words::load_unaligned(x); }
    static void store_words(std::uint32_t* x, Words a) { a.store_unaligned(x); }

    static Float broadcast(float x) { return Float(x); }
    // width signed bytes: moved into [0, 256) and back, both exact.
    static Float load_signed(const std::int8_t* x) {
        const Words moved =
            Self::load_bytes(reinterpret_cast<const std::uint8_t*>(x)) ^ Self::broadcast_word(0x80);
        return Self::to_float(moved) - Self::broadcast(128.0f);
    }
    // The IEEE quotient.
    static Float divide(Float a, Float b) { return a / b; }
    static Words broadcast_word(std::uint32_t x) { return Words(x); }
    template <std::uint32_t n>
    static Words shift_left(Words a) {
        return a << n;
    }
    template <std::uint32_t n>
    static Words shift_right(Words a) {
        return a >> n;
    }

    // a << n in every byte, or in every word, with the upper bits of b below.
    template <std::uint32_t n>
    static Words shift_bytes(Words a, Words b) {
        return Self::merge(Self::broadcast_word((0xffu << n & 0xffu) * 0x01010101u),
                           Self::template shift_left<n>(a), Self::template shift_right<8 - n>(b));
    }
    template <std::uint32_t n>
    static Words shift_words(Words a, Words b) {
        return Self::template shift_left<n>(a) | Self::template shift_right<32 - n>(b);
    }
    // The upper half of every byte, as a number.
    static Words high_nibbles(Words a) {
        return Self::template shift_right<4>(a) & Self::broadcast_word(0x0f0f0f0fu);
    }
    // n bits of every byte of a from `to` on, which are 0, become those of the byte of b from `from` on.
    template <std::uint32_t from, std::uint32_t to, std::uint32_t n>
    static Words put_bits(Words a, Words b) {
        if constexpr (to > from) b = Self::template shift_left<to - from>(b);
        if constexpr (to < from) b = Self::template shift_right<from - to>(b);
        return a | (b & Self::broadcast_word((((1u << n) - 1) << to) * 0x01010101u));
    }

    // Two tables of bytes for lookup<n>.
    static auto load_table_pair(const std::uint8_t* x) {
        struct Pair {
            typename Self::ByteTable low, high;
        };
        return Pair{Self::load_table(x), Self::load_table(x + 16)};
    }
    template <std::uint32_t n, class Pair>
    static Words lookup_pair(const Pair& tables, Words a, Words b) {
        return Self::template lookup<n>(tables.low, tables.high, a, b);
    }

    static Float load_first(const float* x, std::size_t n, float fill = 0.0f) {
        float lanes[width];
        for (std::size_t i = 0; i < width; ++i)
            lanes[i] = i < n ? x[i] : fill;
        return load(lanes);
    }
    static void store_first(float* x, Float a, std::size_t n) {
        float lanes[width];
        store(lanes, a);
        for (std::size_t i = 0; i < n; ++i)
            x[i] = lanes[i];
    }
    static Float load_half_first(const std::uint16_t* x, std::size_t n) {
        std::uint16_t lanes[width];
        for (std::size_t i = 0; i < width; ++i)
            lanes[i] = i < n ? x[i] : 0;
        return Self::load_half(lanes);
    }
    static void store_half_first(std::uint16_t* x, Float a, std::size_t n) {
        std::uint16_t lanes[width];
        Self::store_half(lanes, a);
        for (std::size_t i = 0; i < n; ++i)
            x[i] = lanes[i];
    }
    // Upper halves of floats; round to nearest even, NaN quiet.
    static Float load_bfloat(const std::uint16_t* x) {
        return Self::from_bits(Self::template shift_left<16>(Self::load_shorts(x)));
    }
    static void store_bfloat(std::uint16_t* x, Float a) {
        const Words bits = Self::bits(a), upper = Self::template shift_right<16>(bits);
        const Words rounded = bits + Self::broadcast_word(0x7fff) + (upper & Self::broadcast_word(1));
        // The difference is negative for NaN alone.
        const Words above = Self::broadcast_word(0x7f800000) - (bits & Self::broadcast_word(0x7fffffff));
        const Words is_nan = Self::broadcast_word(0) - Self::template shift_right<31>(above);
        Self::store_low_shorts(x, Self::merge(is_nan, upper | Self::broadcast_word(0x40),
                                              Self::template shift_right<16>(rounded)));
    }
    static Float load_bfloat_first(const std::uint16_t* x, std::size_t n) {
        std::uint16_t lanes[width];
        for (std::size_t i = 0; i < width; ++i)
            lanes[i] = i < n ? x[i] : 0;
        return load_bfloat(lanes);
    }
    static void store_bfloat_first(std::uint16_t* x, Float a, std::size_t n) {
        std::uint16_t lanes[width];
        store_bfloat(lanes, a);
        for (std::size_t i = 0; i < n; ++i)
            x[i] = lanes[i];
    }
    static void store_bytes_first(std::uint8_t* x, Float a, std::size_t n) {
        std::uint8_t lanes[width];
        Self::store_bytes(lanes, a);
        for (std::size_t i = 0; i < n; ++i)
            x[i] = lanes[i];
    }

    class RowTable {
      public:
        RowTable(const float* x, std::size_t) : x_(x) {}
        Float pick(const std::uint16_t* at) const {
            float lanes[width];
            for (std::size_t i = 0; i < width; ++i)
                lanes[i] = x_[at[i]];
            return load(lanes);
        }

      private:
        const float* x_;
    };

    // The field of `bits` bits that starts at bit `first`.
    template <std::uint32_t bits, std::uint32_t first>
    static Float field(Words a) {
        if constexpr (first > 0) a = Self::template shift_right<first>(a);
        if constexpr (first + bits < 32) a = a & Self::broadcast_word((1u << bits) - 1);
        return Self::to_float(a);
    }
};

}  // namespace
}  // namespace gearkv
