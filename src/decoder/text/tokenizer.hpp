// The tokenizer of a GGUF file: special tokens cut out, the rest encoded as the kind of vocabulary has it.
#pragma once

#include <memory>

#include "decoder/gguf/gguf.hpp"
#include "gearkv/tokenizer.hpp"

namespace gearkv {

// Keeps nothing of the file. May throw std::bad_alloc. Errors: as Tokenizer::load, but for those of files.
Status create_tokenizer(const GgufFile& file, const TokenizerOptions& options,
                        std::shared_ptr<const Tokenizer>* out);

}  // namespace gearkv
