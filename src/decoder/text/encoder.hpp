// What one kind of vocabulary makes of text without special tokens, and of its own tokens.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "decoder/text/vocabulary.hpp"

namespace gearkv {

class Encoder {
  public:
    virtual ~Encoder() = default;
    // Appends the tokens of a text that is not empty and has less than 1 GiB; `first` says whether it begins
    // a text or follows a special token. May throw std::bad_alloc. Errors: bad_tokenizer, out_of_memory.
    virtual Status encode(std::string_view text, bool first, std::vector<Token>* out) const = 0;
    // Appends the bytes that a normal or byte token stands for. May throw std::bad_alloc.
    virtual void decode(Token token, std::string* out) const = 0;
};

// All refer to a vocabulary that outlives them, and may append symbols to its texts.
std::unique_ptr<Encoder> create_sentencepiece_encoder(const Vocabulary& vocabulary);
struct SplitRule;
// Reads the merges of the file. May throw std::bad_alloc. Errors: missing_key, bad_tokenizer, out_of_memory.
Status create_byte_bpe_encoder(const GgufFile& file, const SplitRule& rule, Vocabulary& vocabulary,
                               std::unique_ptr<Encoder>* out);
Status create_marked_bpe_encoder(const GgufFile& file, Vocabulary& vocabulary, std::unique_ptr<Encoder>* out);

}  // namespace gearkv
