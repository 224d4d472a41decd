// Which tokens begin and end a text, and which end what a model generates.
#include <algorithm>

#include "decoder/text/vocabulary.hpp"

namespace gearkv {
namespace {

// Tokens that end generation by whatever name a family gives them. Files name one or two of them by id, and
// often not the one that the model was tuned to say.
constexpr std::string_view end_texts[] = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<\xef\xbd\x9c"
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
    "[e~[",
    // Padding, repository and file separators of models that fill in code.
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
    "<REPO>", "<reponame>", "<|file_sep|>"};

// *out keeps its value when the key is absent.
Status read_token_id(const GgufFile& file, const Vocabulary& vocabulary, const char* key, Token* out) {
    if (find_value(file, key) == nullptr) return {};
    std::uint32_t id = 0;
    const Status status = read_integer(file, key, true, {0, vocabulary.n_tokens() - 1}, &id);
    if (!status.ok()) return Status::error(Code::bad_tokenizer, "%s", status.message());
    *out = static_cast<Token>(id);
    return {};
}

// The id that files without a key mean, if that token is of the right type.
Token usual_id(const Vocabulary& vocabulary, Token id, TokenType type) {
    const bool fits = static_cast<std::size_t>(id) < vocabulary.n_tokens() && vocabulary.type(id) == type;
    return fits ? id : -1;
}

Status read_ends(const GgufFile& file, Vocabulary& vocabulary) {
    std::vector<Token>& ends = vocabulary.end_of_generation;
    if (vocabulary.eos >= 0) ends.push_back(vocabulary.eos);
    for (const char* key :
         {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id", "tokenizer.ggml.fim_pad_token_id",
          "tokenizer.ggml.fim_rep_token_id", "tokenizer.ggml.fim_sep_token_id"}) {
        Token token = -1;
        const Status status = read_token_id(file, vocabulary, key, &token);
        if (!status.ok()) return status;
        if (token >= 0) ends.push_back(token);
    }
    for (const std::string_view text : end_texts) {
        // Of a vocabulary of Gemma 4 that is a tag of HTML.
        if (text == "</s>" && vocabulary.kind == VocabularyKind::marked_bpe) continue;
        const Token token = vocabulary.find(text);
        if (token >= 0) ends.push_back(token);
    }
    // Where answers end with one of these, <|end|> only ends a part of one.
    if (vocabulary.find("<|return|>") >= 0 && vocabulary.find("<|call|>") >= 0) {
        std::erase(ends, vocabulary.find("<|end|>"));
    }
    std::sort(ends.begin(), ends.end());
    ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
    return {};
}

Status read_suppressed(const GgufFile& file, Vocabulary& vocabulary) {
    constexpr const char* key = "tokenizer.ggml.suppress_tokens";
    const GgufValue* value = find_value(file, key);
    if (value == nullptr) return {};
    if (value->n > vocabulary.n_tokens()) {
        return Status::error(Code::bad_tokenizer, "'%s' has %llu tokens, the vocabulary %zu", key,
                             static_cast<unsigned long long>(value->n), vocabulary.n_tokens());
    }
    std::vector<std::uint32_t> ids;
    const Status status =
        read_integers(file, key, static_cast<std::uint32_t>(value->n), {0, vocabulary.n_tokens() - 1}, &ids);
    if (!status.ok()) return Status::error(Code::bad_tokenizer, "%s", status.message());
    vocabulary.suppressed.assign(ids.begin(), ids.end());
    return {};
}

}  // namespace

bool ends_generation(std::string_view text) noexcept {
    if (text.empty() || (text[0] != '<' && text[0] != '[' && text[0] != '_')) return false;  // as most are
    return std::find(std::begin(end_texts), std::end(end_texts), text) != std::end(end_texts);
}

Status read_special_ids(const GgufFile& file, bool adds_bos, Vocabulary& vocabulary) {
    if (vocabulary.kind == VocabularyKind::sentencepiece) {
        vocabulary.bos = usual_id(vocabulary, 1, TokenType::control);
        vocabulary.eos = usual_id(vocabulary, 2, TokenType::control);
        vocabulary.unknown = usual_id(vocabulary, 0, TokenType::unknown);
        vocabulary.add_space_prefix = true;
    }
    vocabulary.add_bos = adds_bos;
    Token padding = -1;  // only checked
    const struct {
        const char* key;
        Token* token;
    } ids[] = {{"tokenizer.ggml.bos_token_id", &vocabulary.bos},
               {"tokenizer.ggml.eos_token_id", &vocabulary.eos},
               {"tokenizer.ggml.unknown_token_id", &vocabulary.unknown},
               {"tokenizer.ggml.padding_token_id", &padding}};
    Status status;
    for (const auto& id : ids) {
        if (status.ok()) status = read_token_id(file, vocabulary, id.key, id.token);
    }
    if (status.ok()) status = read_bool(file, "tokenizer.ggml.add_bos_token", false, &vocabulary.add_bos);
    if (vocabulary.kind == VocabularyKind::marked_bpe) vocabulary.add_bos = true;  // whatever the file says
    if (status.ok()) status = read_bool(file, "tokenizer.ggml.add_eos_token", false, &vocabulary.add_eos);
    if (status.ok()) {
        status = read_bool(file, "tokenizer.ggml.add_space_prefix", false, &vocabulary.add_space_prefix);
    }
    if (status.ok()) status = read_ends(file, vocabulary);
    if (status.ok()) status = read_suppressed(file, vocabulary);
    return status;
}

}  // namespace gearkv
