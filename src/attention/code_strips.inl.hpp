// The product of code words with a few vectors, which scoring keys and mixing values share: lanes run along
// one dimension (tokens of keys, channels of values), the words of a lane along the other, the depth.
//
//   out[row][lane] (+)= bias[row] + sum_d factor[row][d] * code(lane, d)
#pragma once

#include "kernels/kernels.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

// Codes between two steps along the words: those of a word, with 3 bits those of a word of the high plane.
template <std::uint32_t bits>
constexpr std::size_t unit_codes = bits == 3 ? 32 : 32 / bits;

// The words of n_strips times 16 lanes.
struct CodeStrip {
    const std::uint32_t* low;  // first word of the first lane; the only plane unless the codes have 3 bits
    std::size_t low_step;      // words from one unit to the next
    std::size_t half_step;     // 3 bits: words from the first to the second word of a unit
    const std::uint32_t* high;
    std::size_t high_step;
    std::size_t n_units;
    std::size_t n_strips;
    std::size_t strip_step;  // words from one strip to the next, in both planes
    Ahead ahead;
};

// Factors of one or more rows, and where the sums of each row go.
struct CodeRows {
    const float* factor;  // readable for whole units
    std::size_t factor_stride;
    float* out;  // lanes of each row
    std::size_t out_stride;
    const float* bias;
    bool is_added;  // to what is in out
};

// Vectors of sums of one row to their lanes.
template <class L>
[[gnu::always_inline]] inline void put_sum(float* out, typename L::Float sum, bool is_added) {
    L::store(out, is_added ? L::load(out) + sum : sum);
}

}  // namespace
}  // namespace gearkv
