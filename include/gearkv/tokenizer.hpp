// Text to tokens and back, by the vocabulary of a GGUF file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "gearkv/status.hpp"

namespace gearkv {

using Token = std::int32_t;

// SentencePiece-style BPE from the model's own vocabulary. Immutable, shared freely between threads.
class Tokenizer {
  public:
    virtual ~Tokenizer() = default;
    // Replaces *out by the tokens of a UTF-8 text, in n log n steps. Any bytes are accepted (what the
    // vocabulary lacks becomes byte tokens), and no text turns into a control token. With add_bos, the
    // model's BOS is put first if the model asks for one; EOS is never added. *out is untouched after an
    // error. Errors: invalid_argument, bad_tokenizer (a byte the vocabulary cannot express), prompt_too_long
    // (a text above 1 GiB), out_of_memory.
    virtual Status encode(std::string_view text, bool add_bos, std::vector<Token>* out) const noexcept = 0;
    // Appends the bytes a token stands for to *out; control tokens and the unknown token give none. Where the
    // model puts a space before a text, the first token has it. Errors: invalid_argument, bad_token,
    // out_of_memory.
    virtual Status decode(Token token, std::string* out) const noexcept = 0;
    virtual Token bos() const noexcept = 0;  // -1 when the model has none
    virtual Token eos() const noexcept = 0;  // -1 when the model has none
};

}  // namespace gearkv
