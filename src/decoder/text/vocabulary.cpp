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

// A per-token array: present, of one of two types, and as long as the vocabulary (when n is not 0).
Status find_array(const GgufFile& file, const char* key, ValueType element, ValueType other, std::uint64_t n,
                  const GgufValue** out) {
    const GgufValue* value = find_value(file, key);
    if (value == nullptr) return Status::error(Code::missing_key, "the file has no '%s'", key);
    if (!value->is_array || (value->element != element && value->element != other)) {
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

// Sizes are checked before a text is copied.
Status copy_texts(const GgufValue& texts, TokenTexts* out) {
    StringCursor lengths(texts);
    std::size_t n_bytes = 0;
    for (std::uint64_t i = 0; i < texts.n; i++) {
        const std::size_t n = lengths.next().size();
        if (n > max_token_bytes) {
            return Status::error(Code::bad_tokenizer, "token %llu has %zu bytes, expected at most %zu",
                                 static_cast<unsigned long long>(i), n, max_token_bytes);
        }
        n_bytes += n;
        if (n_bytes > max_vocabulary_bytes) {
            return Status::error(Code::bad_tokenizer, "the tokens have more than %zu bytes",
                                 max_vocabulary_bytes);
        }
    }
    out->reserve(static_cast<std::size_t>(texts.n), n_bytes);
    StringCursor cursor(texts);
    for (std::uint64_t i = 0; i < texts.n; i++) {
        out->append(cursor.next());
    }
    return {};
}

Status read_types(const GgufFile& file, Vocabulary& vocabulary) {
    const std::size_t n = vocabulary.texts.size();
    const char* key = "tokenizer.ggml.token_type";
    vocabulary.types.assign(n, TokenType::normal);
    // Old files of the byte-level kind have none.
    if (vocabulary.kind != VocabularyKind::byte_bpe || find_value(file, key) != nullptr) {
        const GgufValue* types = nullptr;
        const Status status = find_array(file, key, ValueType::i32, ValueType::i32, n, &types);
        if (!status.ok()) return status;
        std::memcpy(vocabulary.types.data(), types->data, n * sizeof(std::int32_t));
    }
    for (std::size_t i = 0; i < n; i++) {
        TokenType& type = vocabulary.types[i];
        if (type < TokenType::normal || type > TokenType::byte) {
            return Status::error(Code::bad_tokenizer, "token %zu has type %d, expected 1 to 6", i,
                                 static_cast<int>(type));
        }
        // Some files have the ends of turns as ordinary or user-defined tokens, which text could turn into.
        if (ends_generation(vocabulary.texts[i])) type = TokenType::control;
    }
    return {};
}

// Numbers in the order of the scores, which may be floats or integers.
std::uint32_t priority_of(float score) {
    score += 0.0f;  // -0 is 0
    std::uint32_t bits;
    std::memcpy(&bits, &score, sizeof(bits));
    return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
std::uint32_t priority_of(std::int32_t score) {
    return static_cast<std::uint32_t>(score) ^ 0x80000000u;
}

Status read_scores(const GgufFile& file, Vocabulary& vocabulary) {
    const std::size_t n = vocabulary.texts.size();
    const GgufValue* scores = nullptr;
    const Status status =
        find_array(file, "tokenizer.ggml.scores", ValueType::f32, ValueType::i32, n, &scores);
    if (!status.ok()) return status;
    vocabulary.priorities.resize(n);
    for (std::size_t i = 0; i < n; i++) {
        const std::uint8_t* data = scores->data + i * sizeof(float);
        if (scores->element == ValueType::i32) {
            std::int32_t score;
            std::memcpy(&score, data, sizeof(score));
            vocabulary.priorities[i] = priority_of(score);
            continue;
        }
        float score;
        std::memcpy(&score, data, sizeof(score));
        if (!std::isfinite(score)) {
            return Status::error(Code::bad_tokenizer, "token %zu has a score that is not finite", i);
        }
        vocabulary.priorities[i] = priority_of(score);
    }
    return {};
}

Status find_byte_tokens(Vocabulary& vocabulary) {
    std::fill(std::begin(vocabulary.byte_tokens), std::end(vocabulary.byte_tokens), -1);
    for (std::size_t i = 0; i < vocabulary.n_tokens(); i++) {
        if (vocabulary.types[i] != TokenType::byte) continue;
        const int byte = parse_byte_token(vocabulary.texts[i]);
        if (byte < 0) {
            return Status::error(Code::bad_tokenizer,
                                 "byte token %zu is '%s', expected \"<0x00>\" to \"<0xFF>\"", i,
                                 escape_text(vocabulary.texts[i].substr(0, 16)).c_str());
        }
        Token& token = vocabulary.byte_tokens[byte];
        if (token < 0) token = static_cast<Token>(i);
    }
    return {};
}

Status index_texts(Vocabulary& vocabulary) {
    std::size_t n_mergeable = 0;
    // User-defined texts are cut out before anything merges. SentencePiece files may have runs of U+2581
    // among them, which only the marked text holds; byte-level ones are no mapped bytes, though they may look
    // alike.
    const auto is_mergeable = [&](std::size_t i) {
        const TokenType type = vocabulary.types[i];
        const bool own = type == TokenType::user_defined && vocabulary.kind != VocabularyKind::byte_bpe;
        return (type == TokenType::normal || own) && !vocabulary.texts[i].empty();
    };
    for (std::size_t i = 0; i < vocabulary.n_tokens(); i++) {
        n_mergeable += is_mergeable(i);
    }
    vocabulary.mergeable.reserve(vocabulary.texts, n_mergeable);
    vocabulary.others.reserve(vocabulary.texts, vocabulary.n_tokens() - n_mergeable);
    for (std::size_t i = 0; i < vocabulary.n_tokens(); i++) {
        TextIndex& index = is_mergeable(i) ? vocabulary.mergeable : vocabulary.others;
        if (index.add(vocabulary.texts, static_cast<Symbol>(i))) continue;
        return Status::error(Code::bad_tokenizer, "token %zu collides with too many others", i);
    }
    return {};
}

Status read_kind(const GgufFile& file, VocabularyKind* out) {
    std::string_view kind;
    const Status status = read_string(file, "tokenizer.ggml.model", true, &kind);
    if (!status.ok()) return status;
    if (kind != "llama" && kind != "gpt2" && kind != "gemma4") {
        return Status::error(Code::unsupported_model, "tokenizer '%s', expected 'llama', 'gpt2' or 'gemma4'",
                             escape_text(kind.substr(0, 64)).c_str());
    }
    *out = kind == "llama"  ? VocabularyKind::sentencepiece
           : kind == "gpt2" ? VocabularyKind::byte_bpe
                            : VocabularyKind::marked_bpe;
    return {};
}

// The models of this name were trained with white space dropped behind special tokens, which no key of the
// file tells.
bool strips_after_special(const GgufFile& file) {
    std::string_view name;
    if (!read_string(file, "general.name", false, &name).ok()) return false;
    std::string lower(name);
    for (char& c : lower) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
    return lower.find("phi-3") != std::string::npos || lower.find("phi3") != std::string::npos;
}

}  // namespace

int parse_byte_token(std::string_view text) noexcept {
    if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
    const int high = hex_digit(text[3]);
    const int low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

Status append_unknown(const Vocabulary& vocabulary, std::string_view what, std::vector<Token>* out) {
    if (vocabulary.unknown < 0) {
        return Status::error(Code::bad_tokenizer, "the vocabulary has nothing for '%s', and no unknown token",
                             escape_text(what.substr(0, 16)).c_str());
    }
    out->push_back(vocabulary.unknown);
    return {};
}

Token Vocabulary::find(std::string_view text) const noexcept {
    const Symbol a = mergeable.find(texts, text);
    const Symbol b = others.find(texts, text);
    const Symbol lowest = a < b ? a : b;
    return lowest < n_tokens() ? static_cast<Token>(lowest) : -1;
}

Status read_vocabulary(const GgufFile& file, Vocabulary* out) {
    Vocabulary vocabulary;
    Status status = read_kind(file, &vocabulary.kind);
    const GgufValue* texts = nullptr;
    if (status.ok()) {
        status = find_array(file, "tokenizer.ggml.tokens", ValueType::string, ValueType::string, 0, &texts);
    }
    if (status.ok()) status = copy_texts(*texts, &vocabulary.texts);
    if (status.ok()) status = read_types(file, vocabulary);
    if (status.ok() && vocabulary.kind == VocabularyKind::sentencepiece)
        status = read_scores(file, vocabulary);
    if (status.ok() && vocabulary.kind != VocabularyKind::byte_bpe) status = find_byte_tokens(vocabulary);
    if (status.ok()) status = index_texts(vocabulary);
    std::string_view pre;
    if (status.ok()) status = read_string(file, "tokenizer.ggml.pre", false, &pre);
    if (!status.ok()) return status;
    vocabulary.pre = pre;
    vocabulary.strips_after_special = strips_after_special(file);
    *out = std::move(vocabulary);
    return {};
}

}  // namespace gearkv
