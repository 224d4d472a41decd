// The vocabulary of a GGUF file and what its tokens merge to.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "decoder/gguf/gguf.hpp"
#include "gearkv/tokenizer.hpp"

namespace gearkv {

inline constexpr std::uint64_t max_vocab = 1u << 20;            // tokens
inline constexpr std::size_t max_token_bytes = 4096;            // of one text
inline constexpr std::size_t max_vocabulary_bytes = 16u << 20;  // of all texts

enum class TokenType : std::int32_t {
    normal = 1,
    unknown = 2,
    control = 3,
    user_defined = 4,
    unused = 5,
    byte = 6
};

// Checked: as many scores and types as texts, finite scores, byte tokens of the form <0x41>.
struct Vocabulary {
    std::vector<std::string> texts;  // [token], U+2581 standing for a space
    std::vector<float> scores;       // [token], higher merges first
    std::vector<TokenType> types;    // [token]
    Token byte_tokens[256];          // -1 where there is none
    Token bos = -1;
    Token eos = -1;
    bool add_bos = true;
    bool add_space_prefix = true;
};

// Reads the tokenizer.ggml.* values. May throw std::bad_alloc.
// Errors: missing_key, bad_metadata, unsupported_model, bad_tokenizer.
Status read_vocabulary(const GgufFile& file, Vocabulary* out);

// The byte that "<0x41>" stands for; -1 for any other text.
int parse_byte_token(std::string_view text) noexcept;

// Bytes of the first character of a text; a byte that starts no UTF-8 sequence counts as one character.
std::size_t character_bytes(const char* text, std::size_t n) noexcept;

// What a text is made of while it is merged: a token, or a character that occurs only within tokens.
using Symbol = std::uint32_t;
inline constexpr Symbol no_symbol = 0xffffffff;

// Which symbols are characters, and which token two neighbouring symbols make.
// Only normal and user-defined tokens take part, so no text can turn into a control token.
class MergeTable {
  public:
    // May throw std::bad_alloc. Time grows with the bytes of all texts, and with the sorting of the texts.
    explicit MergeTable(const Vocabulary& vocabulary);

    // The symbol of one character, or no_symbol.
    Symbol find_character(const char* text, std::size_t n_bytes) const noexcept;
    // The token, or no_symbol.
    Symbol find_merge(Symbol left, Symbol right) const noexcept;

  private:
    struct Merge {
        Symbol left;
        Symbol right;
        Symbol merged;
    };
    using Entries = std::vector<std::pair<std::string, Symbol>>;  // ascending by text

    void collect_characters(Symbol n_tokens, Entries& entries);
    void collect_merges(const Entries& entries);
    void index_merges(std::size_t n_symbols);

    std::vector<std::pair<std::uint64_t, Symbol>> characters_;  // ascending by key
    std::vector<Merge> merges_;                                 // ascending by left, then right
    std::vector<std::uint32_t> first_merge_;                    // [symbol + 1], into merges_
};

}  // namespace gearkv
