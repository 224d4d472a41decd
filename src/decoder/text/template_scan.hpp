// The text of a chat template cut into what it prints and what it does. Enough of Jinja to read the literals
// off, not to run it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gearkv {

struct TemplateToken {
    enum class Kind { literal, word, sign };
    Kind kind = Kind::sign;
    std::string text;  // a literal without quotes and escapes

    bool is(std::string_view other) const { return kind != Kind::literal && text == other; }
    bool is_literal() const { return kind == Kind::literal; }
};

struct TemplatePart {
    enum class Kind { raw, output, statement };
    Kind kind = Kind::raw;
    std::vector<TemplateToken> tokens;  // of a raw text: one literal

    bool has_word(std::string_view word) const;
    // Whether it starts with this word: the kind of a statement.
    bool starts_with(std::string_view word) const { return !tokens.empty() && tokens[0].is(word); }
    // Whether it names a message's content or role, as a word or as a key.
    bool has_name(std::string_view name) const;
};

// In linear time; anything is accepted, and what is left open ends with the text. Comments are dropped. May
// throw std::bad_alloc.
std::vector<TemplatePart> scan_template(std::string_view text);

}  // namespace gearkv
