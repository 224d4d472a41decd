#include "decoder/text/template_scan.hpp"

#include <algorithm>

namespace gearkv {
namespace {

using Kind = TemplateToken::Kind;

bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

char unescaped(char c) {
    return c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
}

// Reads the literal that starts with a quote at *at.
std::string read_literal(std::string_view text, std::size_t* at) {
    const char quote = text[*at];
    std::string literal;
    for (++*at; *at < text.size() && text[*at] != quote; ++*at) {
        if (text[*at] == '\\' && *at + 1 < text.size()) {
            literal += unescaped(text[++*at]);
        } else {
            literal += text[*at];
        }
    }
    if (*at < text.size()) ++*at;
    return literal;
}

// Reads the tokens of {{ }} or {% %} up to its end, which a literal may contain.
std::vector<TemplateToken> read_code(std::string_view text, std::string_view end, std::size_t* at) {
    std::vector<TemplateToken> tokens;
    while (*at < text.size() && text.compare(*at, end.size(), end) != 0) {
        const char c = text[*at];
        if (c == '\'' || c == '"') {
            tokens.push_back({Kind::literal, read_literal(text, at)});
        } else if (is_word(c)) {
            const std::size_t first = *at;
            while (*at < text.size() && is_word(text[*at])) {
                ++*at;
            }
            tokens.push_back({Kind::word, std::string(text.substr(first, *at - first))});
        } else {
            const bool control = is_space(c) || (c == '-' && text.compare(*at + 1, end.size(), end) == 0);
            if (!control) tokens.push_back({Kind::sign, std::string(1, c)});
            ++*at;
        }
    }
    *at = std::min(text.size(), *at + end.size());
    return tokens;
}

}  // namespace

bool TemplatePart::has_word(std::string_view word) const {
    return std::any_of(tokens.begin(), tokens.end(), [&](const TemplateToken& t) { return t.is(word); });
}

bool TemplatePart::has_name(std::string_view name) const {
    return std::any_of(tokens.begin(), tokens.end(), [&](const TemplateToken& t) {
        return t.kind != TemplateToken::Kind::sign && t.text == name;
    });
}

std::vector<TemplatePart> scan_template(std::string_view text) {
    std::vector<TemplatePart> parts;
    std::size_t at = 0;
    while (at < text.size()) {
        std::size_t open = text.find('{', at);
        while (open != text.npos && open + 1 < text.size() && text[open + 1] != '{' &&
               text[open + 1] != '%' && text[open + 1] != '#') {
            open = text.find('{', open + 1);
        }
        if (open == text.npos || open + 1 >= text.size()) open = text.size();
        if (open > at) {
            parts.push_back(
                {TemplatePart::Kind::raw, {{Kind::literal, std::string(text.substr(at, open - at))}}});
        }
        if (open == text.size()) break;
        const char kind = text[open + 1];
        at = open + 2;
        if (kind == '#') {
            const std::size_t end = text.find("#}", at);
            at = end == text.npos ? text.size() : end + 2;
            continue;
        }
        if (at < text.size() && text[at] == '-') ++at;
        if (kind == '{') {
            parts.push_back({TemplatePart::Kind::output, read_code(text, "}}", &at)});
        } else {
            parts.push_back({TemplatePart::Kind::statement, read_code(text, "%}", &at)});
        }
    }
    return parts;
}

}  // namespace gearkv
