// Reading a block back to floats.
#pragma once

#include "format/block.hpp"

namespace gearkv {

// Tokens [first, first + n_tokens) of a block as [n_tokens, n_heads, dim] float.
void decompress_rows(const BlockView& view, std::uint32_t first, std::uint32_t n_tokens, float* out) noexcept;

}  // namespace gearkv
