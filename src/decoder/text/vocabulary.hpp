// The vocabulary of a GGUF file, read and checked.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "decoder/gguf/gguf.hpp"
#include "decoder/text/token_texts.hpp"
#include "gearkv/tokenizer.hpp"

namespace gearkv {

inline constexpr std::uint64_t max_vocab = 1u << 20;            // tokens
inline constexpr std::size_t max_token_bytes = 4096;            // of one text
inline constexpr std::size_t max_vocabulary_bytes = 16u << 20;  // of all texts

enum class VocabularyKind { sentencepiece, byte_bpe, marked_bpe };  // llama, gpt2, gemma4

// Checked: as many types (and scores) as tokens, finite scores, byte tokens of the form <0x41>, ids within
// the vocabulary.
struct Vocabulary {
    VocabularyKind kind = VocabularyKind::sentencepiece;
    TokenTexts texts;                       // [token]; further symbols may be appended
    std::vector<TokenType> types;           // [token]
    std::vector<std::uint32_t> priorities;  // [token], higher merges first; sentencepiece alone
    TextIndex mergeable;                    // what text can merge into: no control tokens above all
    TextIndex others;                       // the rest
    std::string pre;                        // how the file says texts are split; empty when it does not say
    Token byte_tokens[256];                 // not byte_bpe: -1 where there is none
    Token bos = -1;
    Token eos = -1;
    Token unknown = -1;
    bool add_bos = false;
    bool add_eos = false;
    bool add_space_prefix = false;
    bool strips_after_special = false;     // white space behind most special tokens is dropped
    std::vector<Token> end_of_generation;  // ascending
    std::vector<Token> suppressed;         // as the file has them

    std::size_t n_tokens() const noexcept { return types.size(); }
    TokenType type(Token token) const noexcept { return types[static_cast<std::size_t>(token)]; }
    std::string_view text(Token token) const noexcept { return texts[static_cast<std::size_t>(token)]; }
    // The lowest token with this text, or -1.
    Token find(std::string_view text) const noexcept;
};

// Reads the tokenizer.ggml.* values but for the merges. Of equal texts the lowest token stands for all. May
// throw std::bad_alloc. Errors: missing_key, bad_metadata, unsupported_model, bad_tokenizer.
Status read_vocabulary(const GgufFile& file, Vocabulary* out);

// Whether a text is one of those by which some family ends what it generates.
bool ends_generation(std::string_view text) noexcept;

// BOS, EOS, unknown and end-of-generation tokens, and what is put around a text; `adds_bos` is what holds
// when the file does not say. Errors: bad_metadata, bad_tokenizer.
Status read_special_ids(const GgufFile& file, bool adds_bos, Vocabulary& vocabulary);

// Appends the unknown token for `what`. May throw std::bad_alloc. Errors: bad_tokenizer (there is none).
Status append_unknown(const Vocabulary& vocabulary, std::string_view what, std::vector<Token>* out);

// The byte that "<0x41>" stands for; -1 for any other text.
int parse_byte_token(std::string_view text) noexcept;

}  // namespace gearkv
