// Reading a block back to floats.
#pragma once

#include "format/block.hpp"

namespace gearkv {

// Gives every row of tokens [first, first + n_tokens) of a block to `take`, which may change its dim floats;
// row (token - first) * n_heads + head.
void decompress_rows(const BlockView& view, std::uint32_t first, std::uint32_t n_tokens, void* context,
                     void (*take)(void* context, std::uint64_t row, float* x)) noexcept;

}  // namespace gearkv
