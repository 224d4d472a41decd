// SentencePiece-style BPE over the vocabulary of a GGUF file (`tokenizer.ggml.model` = "llama").
//
// A text is cut into characters; then the adjacent pair whose union is the vocabulary's best-scored token is
// merged, leftmost first among equals, until no pair is a token. What the vocabulary lacks becomes byte
// tokens.
#pragma once

#include <memory>

#include "decoder/text/vocabulary.hpp"

namespace gearkv {

// May throw std::bad_alloc.
std::unique_ptr<Tokenizer> create_tokenizer(Vocabulary vocabulary);

}  // namespace gearkv
