#include "decoder/text/tokenizer.hpp"

#include <algorithm>

#include "decoder/gguf/guarded.hpp"
#include "decoder/gguf/parts.hpp"
#include "decoder/text/encoder.hpp"
#include "decoder/text/pieces.hpp"
#include "decoder/text/special_tokens.hpp"
#include "decoder/text/split.hpp"
#include "decoder/text/vocabulary.hpp"

namespace gearkv {
namespace {

// Marks treble the bytes of spaces, and pieces count bytes in 32 bits.
constexpr std::size_t max_text_bytes = std::size_t{1} << 30;

bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

bool is_hidden(TokenType type) {
    return type == TokenType::unknown || type == TokenType::control || type == TokenType::unused;
}

class FileTokenizer final : public Tokenizer {
  public:
    Status build(const GgufFile& file, const TokenizerOptions& options) {
        Status status = read_vocabulary(file, &vocabulary_);
        std::string_view chat_template;
        if (status.ok()) status = read_string(file, "tokenizer.chat_template", false, &chat_template);
        chat_template_ = chat_template;
        const SplitRule* rule = nullptr;
        if (status.ok() && vocabulary_.kind == VocabularyKind::byte_bpe) status = choose_rule(options, &rule);
        if (status.ok()) status = read_special_ids(file, rule == nullptr || rule->adds_bos, vocabulary_);
        if (status.ok()) status = special_.build(vocabulary_);
        if (!status.ok()) return status;
        if (rule != nullptr) return create_byte_bpe_encoder(file, *rule, vocabulary_, &encoder_);
        if (vocabulary_.kind == VocabularyKind::marked_bpe)
            return create_marked_bpe_encoder(file, vocabulary_, &encoder_);
        encoder_ = create_sentencepiece_encoder(vocabulary_);
        return {};
    }

    Status encode(std::string_view text, const EncodeOptions& options,
                  std::vector<Token>* out) const noexcept override {
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        if (text.size() > max_text_bytes) {
            return Status::error(Code::prompt_too_long, "a text of %zu bytes, expected at most %zu",
                                 text.size(), max_text_bytes);
        }
        return guarded([&] {
            std::vector<Fragment> fragments;
            special_.cut(text, options.parse_special, &fragments);
            return encode_fragments(text, fragments, options.add_special, out);
        });
    }

    Status encode(const TextPiece* pieces, std::size_t n_pieces, bool add_special,
                  std::vector<Token>* out) const noexcept override {
        if (out == nullptr || (pieces == nullptr && n_pieces > 0)) {
            return Status::error(Code::invalid_argument, "null %s", out == nullptr ? "output" : "pieces");
        }
        std::size_t n_bytes = 0;
        for (std::size_t i = 0; i < n_pieces && n_bytes <= max_text_bytes; i++) {
            n_bytes += std::min(pieces[i].text.size(), max_text_bytes + 1);
        }
        if (n_bytes > max_text_bytes) {
            return Status::error(Code::prompt_too_long, "pieces of more than %zu bytes", max_text_bytes);
        }
        return guarded([&] {
            std::string text;
            for (std::size_t i = 0; i < n_pieces; i++) {
                text += pieces[i].text;
            }
            const std::vector<Fragment> fragments = cut_pieces(vocabulary_, special_, pieces, n_pieces, text);
            return encode_fragments(text, fragments, add_special, out);
        });
    }

    Status decode(Token token, std::string* out) const noexcept override {
        return decode(&token, 1, {.special = false, .at_start = false}, out);
    }

    Status decode(const Token* tokens, std::size_t n, const DecodeOptions& options,
                  std::string* out) const noexcept override {
        if (out == nullptr || (tokens == nullptr && n > 0)) {
            return Status::error(Code::invalid_argument, "null %s", out == nullptr ? "output" : "tokens");
        }
        return guarded([&] {
            std::string text;
            bool at_start = options.at_start;
            for (std::size_t i = 0; i < n; i++) {
                const Status status = decode_next(tokens[i], options.special, &at_start, &text);
                if (!status.ok()) return status;
            }
            *out += text;
            return Status();
        });
    }

    std::size_t n_vocab() const noexcept override { return vocabulary_.n_tokens(); }
    std::string_view text(Token token) const noexcept override {
        return contains(token) ? vocabulary_.text(token) : std::string_view();
    }
    TokenType type(Token token) const noexcept override {
        return contains(token) ? vocabulary_.type(token) : TokenType::unused;
    }
    Token find(std::string_view text) const noexcept override { return vocabulary_.find(text); }
    Token bos() const noexcept override { return vocabulary_.bos; }
    Token eos() const noexcept override { return vocabulary_.eos; }
    Token unknown() const noexcept override { return vocabulary_.unknown; }
    bool adds_bos() const noexcept override { return vocabulary_.add_bos && vocabulary_.bos >= 0; }
    bool adds_eos() const noexcept override { return vocabulary_.add_eos && vocabulary_.eos >= 0; }
    const std::vector<Token>& end_of_generation() const noexcept override {
        return vocabulary_.end_of_generation;
    }
    const std::vector<Token>& suppressed() const noexcept override { return vocabulary_.suppressed; }
    bool is_end_of_generation(Token token) const noexcept override {
        const std::vector<Token>& ends = vocabulary_.end_of_generation;
        return std::binary_search(ends.begin(), ends.end(), token);
    }
    std::string_view chat_template() const noexcept override { return chat_template_; }
    const char* kind() const noexcept override {
        return vocabulary_.kind == VocabularyKind::sentencepiece ? "llama"
               : vocabulary_.kind == VocabularyKind::byte_bpe    ? "gpt2"
                                                                 : "gemma4";
    }
    const char* pre() const noexcept override { return pre_.c_str(); }
    const char* note() const noexcept override { return note_; }

  private:
    bool contains(Token token) const noexcept {
        return token >= 0 && static_cast<std::size_t>(token) < vocabulary_.n_tokens();
    }

    Status choose_rule(const TokenizerOptions& options, const SplitRule** out) {
        const bool chosen = options.pre != nullptr;
        pre_ = chosen ? options.pre : vocabulary_.pre;
        if (pre_.empty()) {
            pre_ = "default";
            note_ =
                "the file does not say by which rule its texts are split; 'default' is a guess that many "
                "vocabularies differ from";
        } else if (pre_ == "default" && !chosen) {
            note_ =
                "the file names the split rule 'default', which often means that the right one was not "
                "known";
        }
        *out = find_split_rule(pre_);
        if (*out != nullptr) return {};
        return Status::error(
            Code::unsupported_model, "split rule '%s' is not known; known are %s and names of the same rules",
            escape_text(std::string_view(pre_).substr(0, 32)).c_str(), main_split_rule_names());
    }

    Status encode_fragments(std::string_view text, const std::vector<Fragment>& fragments, bool add_special,
                            std::vector<Token>* out) const {
        std::vector<Token> tokens;
        if (add_special && adds_bos()) tokens.push_back(vocabulary_.bos);
        Token before = -1;
        bool first = true;
        for (const Fragment& fragment : fragments) {
            if (fragment.token >= 0) {
                tokens.push_back(fragment.token);
                before = fragment.token;
                first = true;
                continue;
            }
            std::string_view part = text.substr(fragment.begin, fragment.end - fragment.begin);
            if (before >= 0 && drops_space_behind(before)) {
                while (!part.empty() && is_space(part.front())) {
                    part.remove_prefix(1);
                }
            }
            if (part.empty()) continue;
            const Status status = encoder_->encode(part, first, &tokens);
            if (!status.ok()) return status;
            first = false;
        }
        if (add_special && adds_eos()) tokens.push_back(vocabulary_.eos);
        *out = std::move(tokens);
        return {};
    }

    bool drops_space_behind(Token token) const {
        if (!vocabulary_.strips_after_special) return false;
        const std::string_view text = vocabulary_.text(token);
        return text != "<unk>" && text != "<s>" && text != "<|endoftext|>";
    }

    // Undoes what encode does: a space is put before text that begins or follows a special token.
    Status decode_next(Token token, bool special, bool* at_start, std::string* out) const override {
        if (!contains(token)) {
            return Status::error(Code::bad_token, "token %d, expected 0 to %zu", token,
                                 vocabulary_.n_tokens() - 1);
        }
        const TokenType type = vocabulary_.type(token);
        if (type == TokenType::normal || type == TokenType::byte) {
            const std::size_t begin = out->size();
            encoder_->decode(token, out);
            if (*at_start && vocabulary_.add_space_prefix && (*out)[begin] == ' ') out->erase(begin, 1);
            *at_start = false;
            return {};
        }
        if (special || !is_hidden(type)) *out += vocabulary_.text(token);
        *at_start = true;
        return {};
    }

    Vocabulary vocabulary_;
    SpecialTokens special_;
    std::unique_ptr<Encoder> encoder_;  // refers to vocabulary_
    std::string pre_;
    std::string chat_template_;
    const char* note_ = "";
};

}  // namespace

Status create_tokenizer(const GgufFile& file, const TokenizerOptions& options,
                        std::shared_ptr<const Tokenizer>* out) {
    auto tokenizer = std::make_shared<FileTokenizer>();
    const Status status = tokenizer->build(file, options);
    if (status.ok()) *out = std::move(tokenizer);
    return status;
}

Status Tokenizer::load(const char* path, const TokenizerOptions& options,
                       std::shared_ptr<const Tokenizer>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] {
        GgufModel model;
        const Status status = open_gguf_values(path, &model);
        return status.ok() ? create_tokenizer(model.file, options, out) : status;
    });
}

}  // namespace gearkv
