// Special tokens of a text in pieces, of which only some may have control tokens.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "decoder/text/special_tokens.hpp"
#include "gearkv/tokenizer.hpp"

namespace gearkv {

// The fragments of `text`, which is the pieces in their order. May throw std::bad_alloc.
std::vector<Fragment> cut_pieces(const Vocabulary& vocabulary, const SpecialTokens& special,
                                 const TextPiece* pieces, std::size_t n_pieces, std::string_view text);

}  // namespace gearkv
