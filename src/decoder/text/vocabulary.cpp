// Reading and checking a vocabulary.
#include "decoder/text/vocabulary.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace gearkv {
namespace {

int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

// A per-token array: present, of the right type, and as long as the vocabulary (when n is not 0).
Status find_array(const GgufFile& file, const char* key, ValueType element, std::uint64_t n,
                  const GgufValue** out) {
    const GgufValue* value = find_value(file, key);
    if (value == nullptr) return Status::error(Code::missing_key, "the file has no '%s'", key);
    if (!value->is_array || value->element != element) {
        return Status::error(Code::bad_tokenizer, "'%s' is %s%s, expected an array of %s", key,
                             value->is_array ? "an array of " : "", value_type_name(value->element),
                             value_type_name(element));
    }
    if (value->n == 0 || value->n > max_vocab || (n != 0 && value->n != n)) {
        return Status::error(Code::bad_tokenizer, "'%s' has %llu entries, expected %s%llu", key,
                             static_cast<unsigned long long>(value->n), n == 0 ? "1 to " : "",
                             static_cast<unsigned long long>(n == 0 ? max_vocab : n));
    }
    *out = value;
    return {};
}

// The id at `key`. When the key is absent, `fallback` if that is a control token, as old files have it.
Status read_token_id(const GgufFile& file, const Vocabulary& vocabulary, const char* key, Token fallback,
                     Token* out) {
    const std::size_t n = vocabulary.texts.size();
    if (find_value(file, key) == nullptr) {
        const auto index = static_cast<std::size_t>(fallback);
        *out = index < n && vocabulary.types[index] == TokenType::control ? fallback : -1;
        return {};
    }
    std::uint32_t id = 0;
    const Status status = read_integer(file, key, true, {0, n - 1}, &id);
    if (!status.ok()) return Status::error(Code::bad_tokenizer, "%s", status.message());
    *out = static_cast<Token>(id);
    return {};
}

Status read_special_tokens(const GgufFile& file, Vocabulary& vocabulary) {
    Status status = read_token_id(file, vocabulary, "tokenizer.ggml.bos_token_id", 1, &vocabulary.bos);
    if (status.ok())
        status = read_token_id(file, vocabulary, "tokenizer.ggml.eos_token_id", 2, &vocabulary.eos);
    Token checked_only = -1;
    for (const char* key : {"tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"}) {
        if (status.ok()) status = read_token_id(file, vocabulary, key, 0, &checked_only);
    }
    if (status.ok()) status = read_bool(file, "tokenizer.ggml.add_bos_token", false, &vocabulary.add_bos);
    if (status.ok()) {
        status = read_bool(file, "tokenizer.ggml.add_space_prefix", false, &vocabulary.add_space_prefix);
    }
    return status;
}

Status check_token(const Vocabulary& vocabulary, std::size_t i) {
    const std::string& text = vocabulary.texts[i];
    if (!std::isfinite(vocabulary.scores[i])) {
        return Status::error(Code::bad_tokenizer, "token %zu has a score that is not finite", i);
    }
    const TokenType type = vocabulary.types[i];
    if (type < TokenType::normal || type > TokenType::byte) {
        return Status::error(Code::bad_tokenizer, "token %zu has type %d, expected 1 to 6", i,
                             static_cast<int>(type));
    }
    if (type == TokenType::byte && parse_byte_token(text) < 0) {
        return Status::error(Code::bad_tokenizer, "byte token %zu is '%s', expected \"<0x00>\" to \"<0xFF>\"",
                             i, escape_text(text.substr(0, 16)).c_str());
    }
    return {};
}

// Sizes are checked before a text is copied.
Status copy_texts(const GgufValue& texts, std::vector<std::string>* out) {
    StringCursor cursor(texts);
    std::size_t n_bytes = 0;
    out->reserve(static_cast<std::size_t>(texts.n));
    for (std::uint64_t i = 0; i < texts.n; i++) {
        const std::string_view text = cursor.next();
        if (text.size() > max_token_bytes) {
            return Status::error(Code::bad_tokenizer, "token %llu has %zu bytes, expected at most %zu",
                                 static_cast<unsigned long long>(i), text.size(), max_token_bytes);
        }
        n_bytes += text.size();
        if (n_bytes > max_vocabulary_bytes) {
            return Status::error(Code::bad_tokenizer, "the tokens have more than %zu bytes",
                                 max_vocabulary_bytes);
        }
        out->emplace_back(text);
    }
    return {};
}

}  // namespace

int parse_byte_token(std::string_view text) noexcept {
    if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
    const int high = hex_digit(text[3]);
    const int low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::size_t character_bytes(const char* text, std::size_t n) noexcept {
    const auto lead = static_cast<unsigned char>(text[0]);
    const std::size_t length = lead >= 0xf8 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
    if (length > n) return 1;
    for (std::size_t i = 1; i < length; i++) {
        if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 1;
    }
    return length;
}

Status read_vocabulary(const GgufFile& file, Vocabulary* out) {
    std::string_view kind;
    Status status = read_string(file, "tokenizer.ggml.model", true, &kind);
    if (!status.ok()) return status;
    if (kind != "llama") {
        return Status::error(Code::unsupported_model, "tokenizer '%s', expected 'llama'",
                             escape_text(kind.substr(0, 64)).c_str());
    }
    const GgufValue* texts = nullptr;
    const GgufValue* scores = nullptr;
    const GgufValue* types = nullptr;
    status = find_array(file, "tokenizer.ggml.tokens", ValueType::string, 0, &texts);
    if (!status.ok()) return status;
    status = find_array(file, "tokenizer.ggml.scores", ValueType::f32, texts->n, &scores);
    if (status.ok()) status = find_array(file, "tokenizer.ggml.token_type", ValueType::i32, texts->n, &types);
    if (!status.ok()) return status;

    const auto n = static_cast<std::size_t>(texts->n);
    Vocabulary vocabulary;
    status = copy_texts(*texts, &vocabulary.texts);
    if (!status.ok()) return status;
    vocabulary.scores.resize(n);
    std::memcpy(vocabulary.scores.data(), scores->data, n * sizeof(float));
    vocabulary.types.resize(n);
    std::memcpy(vocabulary.types.data(), types->data, n * sizeof(std::int32_t));
    std::fill(std::begin(vocabulary.byte_tokens), std::end(vocabulary.byte_tokens), -1);
    for (std::size_t i = 0; i < n; i++) {
        status = check_token(vocabulary, i);
        if (!status.ok()) return status;
        if (vocabulary.types[i] != TokenType::byte) continue;
        Token& token = vocabulary.byte_tokens[parse_byte_token(vocabulary.texts[i])];
        if (token < 0) token = static_cast<Token>(i);
    }
    status = read_special_tokens(file, vocabulary);
    if (status.ok()) *out = std::move(vocabulary);
    return status;
}

}  // namespace gearkv
