// Products of quantised weights with codes for one vector architecture.
//
// Lanes are rows: n_rows rows of weights go through a block of columns together, so that their sums leave the
// integers side by side and every float step serves all of them.
//
// L is the integer lanes of an arch folder; nothing needs an alignment:
//   n_rows
//   Floats                             one float for each row
//     broadcast, load(const float*), store(float*, Floats), add, multiply, negate, fma(a, b, c)
//     to_floats(Words)                 of signed words; as_floats(Words): their bits
//   Words                              one 32-bit word for each row, with & and |
//     broadcast_word, subtract, word_left<n>, word_right<n>
//     byte<j>, signed_byte<j>          byte j of each word
//     gather_words(rows, at)           the word at rows[r] + at
//     gather_quads(rows, at, Words out[4])    four words in a row
//     gather_halves(rows, at)          the half at rows[r] + at, as Floats
//     gather_heads(rows, at)           the same where rows[r] + at is the beginning of a block of 16 bytes or more
//     split_halves(Words, Floats& low, Floats& high)
//   Codes                              32 bytes
//     load_codes, split_nibbles(16 bytes): low nibbles, then high ones, either(a, b): a | b
//     field<from, n, to = 0>(Codes)    n bits of each byte from `from` on, moved to `to`
//     spread_bits<value>(4 bytes)      value where the bit is set, else 0
//     lookup(const int8_t table[16], Codes)
//   products<kind, halves>(Words (&sums)[1 or 2], const Codes (&codes)[n_rows], const CodeBlock& x)
//                                      sum_c codes[r][c] (128 x.high[c] + x.low[c]), of all 32 or of the
//                                      halves
//   bytes_offset                       of CodeKind::bytes: products() has it added to every code
//   arrange_bytes(CodeBlock*, n)       what blocks go through before products() and column_products() get
//                                      them for CodeKind::bytes, or null
//   has_columns<kind>                  whether several vectors are better met with codes turned round:
//     to_columns<kind>(Codes (&codes)[n_rows])    word j of all rows in columns j, ready for
//     column_products<kind>(sums[n_tokens], columns, x, x_stride)    the sums of products() with vectors that
//                                                 stand x_stride blocks apart
//   has_nibbles                      whether one vector meets nibbles turned round before they are split:
//     nibble_products(words, x)      the sums of products(); words of gather_quads, low nibbles first
//   round_block(CodeBlock*, const float*, float factor): codes and halves; largest_bits(const float*)   of 32
//   entries
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "decoder/network/integer.hpp"
#include "decoder/network/integer_types.inl.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

// Lines of the rows after these, asked for in their order while these are worked on, two to five at a time:
// many at once would fill the processor's queue of misses. Its own prefetchers lose their place at the end of
// every row.
class NextRows {
  public:
    NextRows(const std::uint8_t* first, std::size_t n_bytes)
        : next_(reinterpret_cast<std::uintptr_t>(first)), fits_first_cache_(n_bytes <= most_bytes) {}
    template <std::size_t n_bytes>
    [[gnu::always_inline]] void step() {
        unroll<(n_bytes + 63) / 64>([&](auto line) GEARKV_INLINE {
            const auto* at = reinterpret_cast<const void*>(next_ + 64 * line);
            if (fits_first_cache_) {
                __builtin_prefetch(at, 0, 3);
            } else {
                __builtin_prefetch(at, 0, 2);
            }
        });
        next_ += n_bytes;
    }

  private:
    static constexpr std::size_t most_bytes = 12 * 1024;  // beside the rows at hand and the vector

    std::uintptr_t next_;  // not a pointer: it may pass the end of the weights
    bool fits_first_cache_;
};

// Adds the products of 32 columns of n_rows rows with one vector, given their sums, scales and minima.
template <class L, class Type, std::size_t n>
[[gnu::always_inline]] inline void add_products(typename L::Floats& sum, typename L::Words (&products)[n],
                                                const typename L::Floats* scales,
                                                const typename L::Floats* minima, const CodeBlock& x) {
    using Floats = typename L::Floats;
    constexpr int offset = Type::kind == CodeKind::bytes ? L::bytes_offset : Type::offset;
    static_assert((offset & (offset - 1)) == 0);
    const Floats scale = L::broadcast(x.scale);
    typename L::Words totals[n];  // of the vector's codes; in vectors, as single words are slow to get there
    unroll<n>([&](auto i) GEARKV_INLINE {
        totals[i] = L::broadcast_word(
            static_cast<std::uint32_t>(Type::halves ? x.halves[i] : x.halves[0] + x.halves[1]));
    });
    unroll<n>([&](auto i) GEARKV_INLINE {
        if constexpr (offset != 0)
            products[i] =
                L::subtract(products[i], L::template word_left<std::countr_zero(offset + 0u)>(totals[i]));
        sum = L::fma(L::to_floats(products[i]), L::multiply(scales[i], scale), sum);
    });
    if constexpr (Type::has_minimum) {
        unroll<n>([&](auto i) GEARKV_INLINE {
            const Floats x_sum =
                Type::halves ? L::multiply(scale, L::to_floats(totals[i])) : L::broadcast(x.sum);
            sum = L::fma(minima[i], x_sum, sum);
        });
    }
}

// The sums of blocks that share a scale.
template <class Type>
constexpr std::size_t n_sums = Type::halves ? 2 : 1;

// Whether a vector meets the nibbles of n_rows rows word by word.
template <class L, class Type, std::size_t n_tokens>
constexpr bool by_nibbles = L::has_nibbles && Type::nibbles_at != 0 && n_tokens == 1;

// n_rows rows with n_tokens vectors. Weights are unpacked once for all of these.
template <class L, class Type, std::size_t n_tokens>
void multiply_rows(typename L::Floats (&sums)[n_tokens], RowPointers rows, const IntegerArgs& args,
                   std::size_t first_token) {
    using Floats = typename L::Floats;
    constexpr std::size_t block = tensor_type(Type::type).block, bytes = tensor_type(Type::type).block_bytes;
    const std::uint8_t* row[L::n_rows];
    unroll<L::n_rows>([&](auto r) GEARKV_INLINE { row[r] = rows[r]; });
    const CodeBlock* x[n_tokens];
    Floats local[n_tokens];
    unroll<n_tokens>([&](auto t) GEARKV_INLINE {
        x[t] = args.x + (first_token + t) * args.x_stride;
        local[t] = L::broadcast(0.0f);
    });
    NextRows next(rows[0] + L::n_rows * args.row_bytes, L::n_rows * args.row_bytes);
    const std::size_t n_bytes = args.n_cols / block * bytes;
    std::size_t at_x = 0;
    for (std::size_t at = 0; at < n_bytes; at += bytes, at_x += block / code_block) {
        typename Type::template Scales<L> scales;
        Type::template read<L>(row, at, scales);
        unroll<block / code_block>([&](auto k) GEARKV_INLINE {
            if (first_token == 0) next.template step<bytes * L::n_rows * code_block / block>();
            [[maybe_unused]] typename L::Codes codes[L::n_rows];
            if constexpr (!by_nibbles<L, Type, n_tokens>) {
                unroll<L::n_rows>(
                    [&](auto r) GEARKV_INLINE { codes[r] = Type::template codes<L, k.value>(row[r] + at); });
            }
            unroll<n_tokens>([&](auto t) GEARKV_INLINE {
                typename L::Words products[n_sums<Type>];
                if constexpr (by_nibbles<L, Type, n_tokens>) {
                    typename L::Words words[4];
                    L::gather_quads(row, at + Type::nibbles_at, words);
                    products[0] = L::nibble_products(words, x[t][at_x + k]);
                } else {
                    L::template products<Type::kind, Type::halves>(products, codes, x[t][at_x + k]);
                }
                constexpr std::size_t at_scale = k.value * n_sums<Type>;
                add_products<L, Type>(local[t], products, scales.scale + at_scale,
                                      scales.minimum + (Type::has_minimum ? at_scale : 0), x[t][at_x + k]);
            });
        });
    }
    unroll<n_tokens>([&](auto t) GEARKV_INLINE { sums[t] = local[t]; });
}

template <class L>
void store_rows(float* y, typename L::Floats sums, std::size_t n, bool accumulate) {
    if (n == L::n_rows) {
        L::store(y, accumulate ? L::add(L::load(y), sums) : sums);
        return;
    }
    float each[L::n_rows];
    L::store(each, sums);
    for (std::size_t r = 0; r < n; ++r)
        y[r] = accumulate ? y[r] + each[r] : each[r];
}

template <class L, class Type, std::size_t n_tokens>
void multiply_tile(RowPointers rows, const IntegerArgs& args, std::size_t first_row,
                   std::size_t first_token) {
    typename L::Floats sums[n_tokens];
    multiply_rows<L, Type, n_tokens>(sums, rows, args, first_token);
    const std::size_t n = args.n_rows - first_row < L::n_rows ? args.n_rows - first_row : L::n_rows;
    for (std::size_t t = 0; t < n_tokens; ++t)
        store_rows<L>(args.y + (first_token + t) * args.y_stride + first_row, sums[t], n, args.accumulate);
}

// Vectors and columns that share codes turned into columns, which lie in the first cache meanwhile.
constexpr std::size_t panel_tokens = 64;
constexpr std::size_t panel_columns = 512;

// Columns of n_rows rows, unpacked.
template <class L, class Type>
struct Panel {
    typename L::Codes columns[panel_columns / code_block][L::n_rows];
    typename Type::template Scales<L> scales[panel_columns / tensor_type(Type::type).block];
};

template <class L, class Type>
void unpack_panel(Panel<L, Type>& panel, RowPointers rows, std::size_t at, std::size_t n_blocks) {
    constexpr std::size_t block = tensor_type(Type::type).block, bytes = tensor_type(Type::type).block_bytes;
    const std::uint8_t* row[L::n_rows];
    unroll<L::n_rows>([&](auto r) GEARKV_INLINE { row[r] = rows[r]; });
    for (std::size_t b = 0; b < n_blocks; ++b, at += bytes) {
        Type::template read<L>(row, at, panel.scales[b]);
        unroll<block / code_block>([&](auto k) GEARKV_INLINE {
            auto& columns = panel.columns[b * (block / code_block) + k];
            typename L::Codes codes[L::n_rows];
            unroll<L::n_rows>(
                [&](auto r) GEARKV_INLINE { codes[r] = Type::template codes<L, k.value>(row[r] + at); });
            L::template to_columns<Type::kind>(codes);
            unroll<L::n_rows>([&](auto r) GEARKV_INLINE { columns[r] = codes[r]; });
        });
    }
}

// Adds the products of a panel with n_tokens vectors. Sums of several vectors grow side by side: those of one
// alone would wait for each other.
template <class L, class Type, std::size_t n_tokens>
void multiply_panel(typename L::Floats* sums, const Panel<L, Type>& panel, std::size_t n_blocks,
                    const CodeBlock* x, std::size_t x_stride, NextRows* next) {
    constexpr std::size_t block = tensor_type(Type::type).block, bytes = tensor_type(Type::type).block_bytes,
                          n = n_sums<Type>;
    typename L::Floats local[n_tokens];
    unroll<n_tokens>([&](auto t) GEARKV_INLINE { local[t] = sums[t]; });
    const auto* columns = panel.columns;
    for (std::size_t b = 0; b < n_blocks; ++b) {
        for (std::size_t k = 0; k < block / code_block; ++k, ++columns, ++x) {
            if (next != nullptr) next->template step<bytes * L::n_rows * code_block / block>();
            typename L::Words products[n_tokens][n];
            L::template column_products<Type::kind>(products, *columns, x, x_stride);
            const auto* scales = panel.scales[b].scale + n * k;
            const auto* minima = panel.scales[b].minimum + (Type::has_minimum ? n * k : 0);
            unroll<n_tokens>([&](auto t) GEARKV_INLINE {
                add_products<L, Type>(local[t], products[t], scales, minima, x[t * x_stride]);
            });
        }
    }
    unroll<n_tokens>([&](auto t) GEARKV_INLINE { sums[t] = local[t]; });
}

// n_rows rows with up to panel_tokens vectors.
template <class L, class Type>
void multiply_columns(RowPointers rows, const IntegerArgs& args, std::size_t first_row,
                      std::size_t first_token, std::size_t n_tokens) {
    constexpr std::size_t block = tensor_type(Type::type).block, bytes = tensor_type(Type::type).block_bytes;
    Panel<L, Type> panel;
    typename L::Floats sums[panel_tokens];
    for (std::size_t t = 0; t < n_tokens; ++t)
        sums[t] = L::broadcast(0.0f);
    NextRows next(rows[0] + L::n_rows * args.row_bytes, L::n_rows * args.row_bytes);
    for (std::size_t column = 0; column < args.n_cols; column += panel_columns) {
        const std::size_t n_cols =
            args.n_cols - column < panel_columns ? args.n_cols - column : panel_columns;
        unpack_panel<L, Type>(panel, rows, column / block * bytes, n_cols / block);
        const CodeBlock* x = args.x + first_token * args.x_stride + column / code_block;
        const auto add = [&](std::size_t t, auto n) GEARKV_INLINE {
            multiply_panel<L, Type, n.value>(sums + t, panel, n_cols / block, x + t * args.x_stride,
                                             args.x_stride, first_token + t == 0 ? &next : nullptr);
        };
        std::size_t t = 0;
        for (; t + 4 <= n_tokens; t += 4)
            add(t, Index<4>());
        if (n_tokens & 2) add(t, Index<2>());
        if (n_tokens & 1) add(n_tokens - 1, Index<1>());
    }
    const std::size_t n = args.n_rows - first_row < L::n_rows ? args.n_rows - first_row : L::n_rows;
    for (std::size_t t = 0; t < n_tokens; ++t)
        store_rows<L>(args.y + (first_token + t) * args.y_stride + first_row, sums[t], n, args.accumulate);
}

template <class L, class Type>
void multiply_codes(const IntegerArgs& args) {
    for (std::size_t row = 0; row < args.n_rows; row += L::n_rows) {
        // Behind the last row it stands again, and what comes of it is dropped.
        const std::uint8_t* rows[L::n_rows];
        for (std::size_t r = 0; r < L::n_rows; ++r) {
            const std::size_t at = row + r < args.n_rows ? row + r : args.n_rows - 1;
            rows[r] = args.w + at * args.row_bytes;
        }
        if constexpr (L::template has_columns<Type::kind>) {
            if (args.n_tokens == 1) multiply_tile<L, Type, 1>(rows, args, row, 0);
            for (std::size_t t = 0; args.n_tokens > 1 && t < args.n_tokens; t += panel_tokens) {
                const std::size_t n = args.n_tokens - t;
                multiply_columns<L, Type>(rows, args, row, t, n < panel_tokens ? n : panel_tokens);
            }
        } else {
            for_rows<4>(args.n_tokens, [&](std::size_t t, auto n) GEARKV_INLINE {
                multiply_tile<L, Type, n.value>(rows, args, row, t);
            });
        }
    }
}

// ---- codes ----

// Bits of a float below which a block counts as 0: its factor would be infinite.
constexpr std::uint32_t smallest_bits = (127 - 112) << 23;
constexpr std::uint32_t infinite_bits = 0x7f800000;

template <class L>
void round_codes(CodeBlock* out, const float* x, std::size_t n_blocks) {
    for (std::size_t i = 0; i < n_blocks; ++i, ++out, x += code_block) {
        const std::uint32_t bits = L::largest_bits(x);
        if (bits < smallest_bits) {
            std::memset(out, 0, sizeof(*out));
            continue;
        }
        float largest;
        std::memcpy(&largest, &bits, sizeof(largest));
        L::round_block(out, x, largest_code / largest);
        out->scale = bits < infinite_bits ? largest / largest_code : __builtin_nanf("");
        out->sum = out->scale * static_cast<float>(out->halves[0] + out->halves[1]);
    }
}

template <class L, class... Types>
constexpr IntegerKernels fill_kernels(Level level) {
    IntegerKernels kernels = {level, {}, round_codes<L>, {}};
    ((kernels.multiply[static_cast<std::size_t>(Types::type)] = multiply_codes<L, Types>), ...);
    ((kernels.arrange[static_cast<std::size_t>(Types::type)] =
          Types::kind == CodeKind::bytes ? L::arrange_bytes : nullptr),
     ...);
    return kernels;
}

template <class L>
constexpr IntegerKernels make_integer_kernels(Level level) {
    return fill_kernels<L, TypeQ40, TypeQ41, TypeQ50, TypeQ51, TypeQ80, TypeQ2K, TypeQ3K, TypeQ4K, TypeQ5K,
                        TypeQ6K, TypeIq4Nl, TypeIq4Xs, TypeMxfp4, TypeTq20>(level);
}

}  // namespace
}  // namespace gearkv
