// Texts in which U+2581 stands for a space, of vocabularies with byte tokens.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "decoder/text/merger.hpp"
#include "decoder/text/vocabulary.hpp"

namespace gearkv {

// May throw std::bad_alloc, all of them.
std::string mark_spaces(std::string_view text, bool prefix);
// The characters of a text, each a piece, with their symbols.
void add_characters(const Vocabulary& vocabulary, std::string_view text, Merger& merger);
// Appends the bytes that a normal or byte token stands for.
void decode_marked(const Vocabulary& vocabulary, Token token, std::string* out);
// What is in no token: its bytes, or one unknown token for all of them. Errors: bad_tokenizer.
Status append_byte_tokens(const Vocabulary& vocabulary, std::string_view bytes, std::vector<Token>* out);

}  // namespace gearkv
