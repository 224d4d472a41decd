#include "decoder/text/marked_text.hpp"

#include "decoder/gguf/utf8.hpp"

namespace gearkv {
namespace {

constexpr std::string_view space_mark = "\xe2\x96\x81";  // U+2581

}  // namespace

std::string mark_spaces(std::string_view text, bool prefix) {
    std::string marked;
    marked.reserve(text.size() + space_mark.size());
    if (prefix) marked += space_mark;
    for (const char c : text) {
        if (c == ' ') {
            marked += space_mark;
        } else {
            marked += c;
        }
    }
    return marked;
}

void add_characters(const Vocabulary& vocabulary, std::string_view text, Merger& merger) {
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t n = character_bytes(text.substr(at));
        merger.add(static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(n),
                   vocabulary.mergeable.find(vocabulary.texts, text.substr(at, n)));
        at += n;
    }
}

void decode_marked(const Vocabulary& vocabulary, Token token, std::string* out) {
    std::string_view text = vocabulary.text(token);
    if (vocabulary.type(token) == TokenType::byte) {
        *out += static_cast<char>(parse_byte_token(text));
        return;
    }
    for (std::size_t at; (at = text.find(space_mark)) != std::string_view::npos;) {
        out->append(text.substr(0, at));
        *out += ' ';
        text.remove_prefix(at + space_mark.size());
    }
    out->append(text);
}

Status append_byte_tokens(const Vocabulary& vocabulary, std::string_view bytes, std::vector<Token>* out) {
    for (const char c : bytes) {
        if (vocabulary.byte_tokens[static_cast<unsigned char>(c)] < 0)
            return append_unknown(vocabulary, bytes, out);
    }
    for (const char c : bytes) {
        out->push_back(vocabulary.byte_tokens[static_cast<unsigned char>(c)]);
    }
    return {};
}

}  // namespace gearkv
