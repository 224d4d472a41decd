// Matrix products of quantised weights with integer products: rows of a weight matrix times vectors whose
// entries have become 15-bit codes.
//
// A vector is cut into blocks of 32 entries, x[c] = scale * code[c] with codes in [-16256, 16256], once for
// all products it enters. (With 8 bits perplexity of SmolLM2 was .1 % off, and the roundings of an fp16 cache
// grew to a divergence of .003 nats a token; with two planes of 8 bits both are .000001.) A result is summed
// over blocks in their order, each sum of products an exact integer:
//
//   acc = fma(sum_c w_code[c] * code[c], w_scale * scale, acc)    one step for 32 weights that share a scale,
//                                                                 two for halves of 16 with scales of their
//                                                                 own
//   acc = fma(w_minimum, scale * sum_c code[c], acc)              types with a minimum; likewise one or two
//
// and every level takes these steps in this order: a result has the same bits at every level, for any number
// of rows and of vectors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "decoder/gguf/tensor_type.hpp"
#include "gearkv/cpu.hpp"

namespace gearkv {

inline constexpr std::size_t code_block = 32;
inline constexpr float largest_code = 16256.0f;

struct alignas(16) CodeBlock {
    std::int8_t high[code_block];  // code = 128 high + low, high in [-127, 127]
    std::int8_t low[code_block];   // in [-64, 63]
    float scale;                   // NaN when an entry is no number or infinite
    float sum;                     // scale * sum of the codes
    std::int32_t halves[2];        // sums of codes 0 to 15 and 16 to 31
};
static_assert(sizeof(CodeBlock) == 80);

// y[t][r] = sum_c w[r][c] x[t][c] for every t and r, as above.
struct IntegerArgs {
    float* y = nullptr;
    std::size_t y_stride = 0;         // floats from one vector's results to the next
    const std::uint8_t* w = nullptr;  // row 0, of any alignment
    std::size_t row_bytes = 0;
    const CodeBlock* x = nullptr;  // arranged as the type wants them
    std::size_t x_stride = 0;      // blocks from one vector to the next
    std::size_t n_rows = 0;
    std::size_t n_cols = 0;    // whole blocks of the type
    std::size_t n_tokens = 0;  // vectors
    bool accumulate = false;   // add to y instead of writing it
};

// One struct per level. Kernels allocate nothing and never read or write outside the arrays as described.
struct IntegerKernels {
    Level level;
    // Null for types whose weights are floats.
    void (*multiply[n_weight_types])(const IntegerArgs& args);
    // Rounds n_blocks blocks of x, half to even. A block whose largest magnitude is below 2^-112 becomes 0.
    void (*round)(CodeBlock* out, const float* x, std::size_t n_blocks);
    // What codes go through after that, in place, for products with weights of a type: an order of the
    // level's own. Null where they stay as they are.
    void (*arrange[n_weight_types])(CodeBlock* blocks, std::size_t n_blocks) = {};
};

// The tables, one per level of the build, filled in arch/.
extern const IntegerKernels integer_scalar;
extern const IntegerKernels integer_avx2;
extern const IntegerKernels integer_avxvnni;
extern const IntegerKernels integer_avx512;
extern const IntegerKernels integer_neon;
extern const IntegerKernels integer_dotprod;

// The table of a level that is available; null otherwise. Level::automatic is resolved.
const IntegerKernels* find_integer_kernels(Level level) noexcept;

}  // namespace gearkv
