// Text to tokens and back, by the vocabulary of a GGUF file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gearkv/status.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

using Token = std::int32_t;

// What a token is for, as GGUF numbers it.
enum class TokenType : std::int32_t {
    normal = 1,
    unknown = 2,       // stands for what the vocabulary cannot express
    control = 3,       // marks of the model's own, such as the start of a turn
    user_defined = 4,  // cut out of every text as it stands
    unused = 5,
    byte = 6,  // one byte, written <0x41>
};

struct EncodeOptions {
    // BOS before and EOS behind the tokens, where the vocabulary asks for them.
    bool add_special = true;
    // Texts of control and unknown tokens become these tokens, as chat templates need it. Leave it off for
    // text that comes from a user: then nothing in it turns into a control token.
    bool parse_special = false;
};

// A part of a text, with or without its control tokens.
struct TextPiece {
    std::string_view text;
    bool parse_special = false;
};

struct DecodeOptions {
    // Control, unknown and unused tokens appear as their texts; without it they give nothing.
    bool special = false;
    // The tokens begin a text: the space that some vocabularies put before each text is taken off again.
    // Turn it off for tokens that continue something.
    bool at_start = true;
};

struct TokenizerOptions {
    // The rule by which texts are split, instead of what `tokenizer.ggml.pre` says; null: what the file says.
    // Vocabularies of kind "llama" and "gemma4" split nothing by it and take no notice of it.
    const char* pre = nullptr;
};

// The names that `tokenizer.ggml.pre` and TokenizerOptions::pre may have, in order, with commas between them.
const char* split_rule_names() noexcept;

// SentencePiece ("llama"), byte-level BPE ("gpt2") and BPE on characters ("gemma4") vocabularies. Immutable,
// shared freely between threads.
class Tokenizer {
  public:
    virtual ~Tokenizer() = default;

    // Reads the vocabulary of a GGUF v2 or v3 file, which need hold no tensors; what else is in the file is
    // looked at no further. Of a split model any part will do. The file is closed again. *out is untouched
    // after an error. Errors: invalid_argument, io_error, not_a_model, bad_version, truncated, corrupt_model,
    // missing_key, bad_metadata, unsupported_model (a kind of vocabulary or a split rule that is not known),
    // bad_tokenizer, out_of_memory.
    static Status load(const char* path, const TokenizerOptions& options,
                       std::shared_ptr<const Tokenizer>* out) noexcept;

    // Replaces *out by the tokens of a UTF-8 text, in n log n steps. Any bytes are accepted: those that are
    // no UTF-8 are encoded one by one where the vocabulary has a token for every byte, and as U+FFFD where a
    // byte-level one has not. What the vocabulary cannot express becomes its unknown token.
    // *out is untouched after an error. Errors: invalid_argument, bad_tokenizer (something the vocabulary
    // cannot express, and no unknown token), prompt_too_long (a text above 1 GiB), out_of_memory.
    virtual Status encode(std::string_view text, const EncodeOptions& options,
                          std::vector<Token>* out) const noexcept = 0;
    // The same for pieces that are one text: tokens reach across their borders. Control tokens are recognised
    // in the pieces that say so alone; the others have neither BOS, nor tokens that end a generation or stand
    // in those pieces (white space aside), even where these are user-defined. Without such tokens the ids are
    // those of the whole text, encoded with parse_special. Errors: as above.
    virtual Status encode(const TextPiece* pieces, std::size_t n_pieces, bool add_special,
                          std::vector<Token>* out) const noexcept = 0;
    // Appends the bytes one token stands for to *out, whatever is before it: where the model puts a space
    // before a text, the first token has it. Control, unknown and unused tokens give none.
    // Errors: invalid_argument, bad_token, out_of_memory.
    virtual Status decode(Token token, std::string* out) const noexcept = 0;
    // Appends the text of n tokens. Encoding and decoding with `special` give every text back, but for
    // U+2581, which SentencePiece vocabularies use for a space, for what became the unknown token or U+FFFD,
    // and for spaces that a vocabulary drops behind special tokens. *out is untouched after an error.
    // Errors: as above.
    virtual Status decode(const Token* tokens, std::size_t n, const DecodeOptions& options,
                          std::string* out) const noexcept = 0;

    // Tokens are 0 to n_vocab() - 1.
    virtual std::size_t n_vocab() const noexcept = 0;
    // As the file has it: U+2581 for spaces, or bytes as byte-level BPE maps them. Empty for a token outside
    // the vocabulary. Valid as long as the tokenizer.
    virtual std::string_view text(Token token) const noexcept = 0;
    // TokenType::unused for a token outside the vocabulary.
    virtual TokenType type(Token token) const noexcept = 0;
    // The lowest token with exactly this text, as the file has it; -1 when there is none.
    virtual Token find(std::string_view text) const noexcept = 0;

    // -1 where the vocabulary has none.
    virtual Token bos() const noexcept = 0;
    virtual Token eos() const noexcept = 0;
    virtual Token unknown() const noexcept = 0;
    // Whether encode adds them.
    virtual bool adds_bos() const noexcept = 0;
    virtual bool adds_eos() const noexcept = 0;

    // Tokens after which a model has said what it had to say: EOS, the ends of a turn and of a message, and
    // what separates files. Ascending.
    virtual const std::vector<Token>& end_of_generation() const noexcept = 0;
    virtual bool is_end_of_generation(Token token) const noexcept = 0;
    // Tokens that the file says are never to be generated (tokenizer.ggml.suppress_tokens): for biases of
    // -Inf.
    virtual const std::vector<Token>& suppressed() const noexcept = 0;

    // The text of `tokenizer.chat_template`, as ChatTemplate::recognise wants it; empty where there is none.
    virtual std::string_view chat_template() const noexcept = 0;

    // "llama", "gpt2" or "gemma4".
    virtual const char* kind() const noexcept = 0;
    // The split rule in use; empty where texts are not split.
    virtual const char* pre() const noexcept = 0;
    // What a person should know who relies on this vocabulary, such as a split rule that was guessed; empty
    // as a rule.
    virtual const char* note() const noexcept = 0;

  private:
    friend class TextStream;
    // Appends the text of one token; *at_start is whether it begins a text, and whether the next one will.
    // May throw std::bad_alloc. Errors: bad_token.
    virtual Status decode_next(Token token, bool special, bool* at_start, std::string* out) const = 0;
};

// Tokens to text, one by one, as they are generated. What push returns is always whole UTF-8 characters
// (given that the vocabulary's texts are): a character whose bytes come in several tokens is held back until
// it is whole. For one thread at a time.
class TextStream {
  public:
    TextStream(std::shared_ptr<const Tokenizer> tokenizer, const DecodeOptions& options = {})
        : tokenizer_(std::move(tokenizer)), options_(options), at_start_(options.at_start) {}

    // Appends to *out what can be shown after this token. Nothing has changed after an error.
    // Errors: invalid_argument, bad_token, out_of_memory.
    Status push(Token token, std::string* out) noexcept;
    // Appends what is held back as it is, which is half a character, and starts anew in the same text.
    // Errors: invalid_argument, out_of_memory.
    Status flush(std::string* out) noexcept;
    // Bytes held back, 0 to 3.
    std::size_t n_held() const noexcept { return held_.size(); }

  private:
    std::shared_ptr<const Tokenizer> tokenizer_;
    DecodeOptions options_;
    bool at_start_;
    std::string held_;
};

}  // namespace gearkv
#pragma GCC visibility pop
