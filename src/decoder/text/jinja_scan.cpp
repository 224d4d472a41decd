// Templates cut into text, outputs and statements.
#include <algorithm>

#include "decoder/text/jinja_syntax.hpp"

namespace gearkv {
namespace {

using Kind = JinjaToken::Kind;

bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}
bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '_';
}

void append_utf8(std::uint32_t code, std::string* out) {
    if (code < 0x80) {
        *out += static_cast<char>(code);
        return;
    }
    if (code >= 0xd800 && code < 0xe000) throw JinjaError{"half a character in a string"};
    const auto tail = [&](unsigned shift) { *out += static_cast<char>(0x80 | ((code >> shift) & 0x3f)); };
    if (code < 0x800) {
        *out += static_cast<char>(0xc0 | (code >> 6));
    } else {
        *out += static_cast<char>(0xe0 | (code >> 12));
        tail(6);
    }
    tail(0);
}

class Scanner {
  public:
    explicit Scanner(std::string_view text) {
        for (std::size_t i = 0; i < text.size(); i++) {
            const bool pair = text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n';
            if (!pair) text_ += text[i] == '\r' ? '\n' : text[i];
        }
        if (!text_.empty() && text_.back() == '\n') text_.pop_back();
    }

    std::vector<JinjaPart> scan() {
        while (at_ < text_.size()) {
            const std::size_t open = find_open();
            add_text(open);
            if (open == text_.size()) break;
            const char kind = text_[open + 1];
            at_ = open + 2;
            if (kind == '%' && take_word("raw", false)) {
                read_raw();
                continue;
            }
            if (at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '+')) at_++;
            if (kind == '#') {
                const std::size_t end = text_.find("#}", at_);
                if (end == text_.npos) throw JinjaError{"a comment without an end"};
                const char before = end > at_ ? text_[end - 1] : '\0';
                at_ = end + 2;
                end_block(before);
            } else {
                read_code(kind == '{' ? "}}" : "%}");
            }
        }
        return std::move(parts_);
    }

  private:
    std::size_t find_open() const {
        for (std::size_t open = text_.find('{', at_); open != text_.npos; open = text_.find('{', open + 1)) {
            const char next = open + 1 < text_.size() ? text_[open + 1] : '\0';
            if (next == '{' || next == '%' || next == '#') return open;
        }
        return text_.size();
    }

    // The text up to `open`, without the white space that what stands there takes.
    void add_text(std::size_t open) {
        std::size_t end = open;
        if (open < text_.size()) {
            const char sign = open + 2 < text_.size() ? text_[open + 2] : '\0';
            std::size_t first = open;
            while (first > at_ && is_space(text_[first - 1])) {
                first--;
            }
            if (sign == '-') {
                end = first;
            } else if (text_[open + 1] != '{' && sign != '+') {
                // A block alone on its line takes what indents it.
                const std::size_t line_end = open == at_ ? text_.npos : text_.rfind('\n', open - 1);
                const bool inside = line_end != text_.npos && line_end >= at_;
                const std::size_t begin = inside ? line_end + 1 : at_;
                const bool starts_line = inside || at_ == 0 || text_[at_ - 1] == '\n';
                if (starts_line && first <= begin) end = begin;
            }
        }
        if (end > at_) {
            parts_.emplace_back();
            parts_.back().text = text_.substr(at_, end - at_);
        }
    }

    // What follows a block: a line end goes, with '-' all white space.
    void end_block(char before) {
        if (before == '-') {
            skip_space();
        } else if (before != '+' && at_ < text_.size() && text_[at_] == '\n') {
            at_++;
        }
    }

    void skip_space() {
        while (at_ < text_.size() && is_space(text_[at_])) {
            at_++;
        }
    }

    // Moves behind a statement of this one word and returns true, if it is what stands behind the opening.
    bool take_word(std::string_view word, bool trims) {
        const std::size_t start = at_;
        if (at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '+')) at_++;
        skip_space();
        if (is_here(word)) {
            at_ += word.size();
            skip_space();
            const char sign = at_ < text_.size() ? text_[at_] : '\0';
            const bool marked = sign == '-' || (sign == '+' && trims);
            if (text_.compare(std::min(at_ + (marked ? 1 : 0), text_.size()), 2, "%}") == 0) {
                at_ += marked ? 3 : 2;
                if (trims || marked) end_block(marked ? sign : '\0');
                return true;
            }
        }
        at_ = start;
        return false;
    }

    // Text that is not looked at, up to its end.
    void read_raw() {
        const std::size_t begin = at_;
        for (std::size_t end = text_.find("{%", at_); end != text_.npos; end = text_.find("{%", end + 2)) {
            at_ = end + 2;
            if (!take_word("endraw", true)) continue;
            const std::size_t behind = at_;
            at_ = begin;
            add_text(end);
            at_ = behind;
            return;
        }
        throw JinjaError{"a raw text without an end"};
    }

    bool is_here(std::string_view what) const { return text_.compare(at_, what.size(), what) == 0; }

    void read_code(std::string_view end) {
        const bool is_output = end == "}}";
        JinjaPart part;
        part.kind = is_output ? JinjaPart::Kind::output : JinjaPart::Kind::statement;
        std::string open;  // brackets, in which an end is none
        for (;;) {
            skip_space();
            if (at_ >= text_.size()) throw JinjaError{"a block without an end"};
            const char c = text_[at_];
            const bool marked = (c == '-' || (c == '+' && !is_output)) && text_.compare(at_ + 1, 2, end) == 0;
            if (open.empty() && (marked || is_here(end))) {
                at_ += marked ? 3 : 2;
                if (!is_output) {
                    end_block(marked ? c : '\0');
                } else if (marked) {
                    skip_space();
                }
                parts_.push_back(std::move(part));
                return;
            }
            if (c == '\'' || c == '"') {
                part.tokens.push_back({Kind::string, read_string()});
            } else if (is_word(c)) {
                part.tokens.push_back(read_word());
            } else {
                part.tokens.push_back({Kind::sign, read_sign(&open)});
            }
        }
    }

    JinjaToken read_word() {
        const std::size_t first = at_;
        while (at_ < text_.size() && is_word(text_[at_])) {
            at_++;
        }
        const std::string word = text_.substr(first, at_ - first);
        if (!is_digit(word[0])) return {Kind::name, word};
        const bool real = at_ + 1 < text_.size() && text_[at_] == '.' && is_digit(text_[at_ + 1]);
        if (real || word.size() > 18 || !std::all_of(word.begin(), word.end(), is_digit))
            throw JinjaError{"a number that is not a short integer"};
        return {Kind::integer, word};
    }

    std::string read_sign(std::string* open) {
        for (const char* two : {"==", "!=", "<=", ">=", "//", "**"}) {
            if (is_here(two)) {
                at_ += 2;
                return two;
            }
        }
        const char c = text_[at_++];
        if (c == '(' || c == '[' || c == '{') *open += c;
        if (c == ')' || c == ']' || c == '}') {
            const char mate = c == ')' ? '(' : c == ']' ? '[' : '{';
            if (open->empty() || open->back() != mate) throw JinjaError{"a bracket that was not opened"};
            open->pop_back();
        }
        if (std::string_view("()[]{}<>=+-*/%~|.,:").find(c) == std::string_view::npos)
            throw JinjaError{"a sign that is none of Jinja's"};
        return {c};
    }

    std::string read_string() {
        const char quote = text_[at_++];
        std::string string;
        for (; at_ < text_.size() && text_[at_] != quote; at_++) {
            if (text_[at_] == '\\' && at_ + 1 < text_.size()) {
                at_++;
                read_escape(&string);
            } else {
                string += text_[at_];
            }
        }
        if (at_ >= text_.size()) throw JinjaError{"a string without an end"};
        at_++;
        return string;
    }

    void read_escape(std::string* string) {
        const char c = text_[at_];
        const std::size_t n_digits = c == 'x' ? 2 : c == 'u' ? 4 : 0;
        if (n_digits > 0) {
            std::uint32_t code = 0;
            for (std::size_t i = 1; i <= n_digits; i++) {
                const char digit = at_ + i < text_.size() ? text_[at_ + i] : '\0';
                const std::size_t value = std::string_view("0123456789abcdefABCDEF").find(digit);
                if (value == std::string_view::npos) throw JinjaError{"an escape without its digits"};
                code = code * 16 + static_cast<std::uint32_t>(value < 16 ? value : value - 6);
            }
            at_ += n_digits;
            append_utf8(code, string);
            return;
        }
        if (is_digit(c) || c == 'U' || c == 'N') throw JinjaError{"an escape that is not known"};
        static constexpr std::string_view names = "ntrbfva\\'\"", codes = "\n\t\r\b\f\v\a\\'\"";
        const std::size_t known = names.find(c);
        if (known != names.npos) {
            *string += codes[known];
        } else if (c != '\n') {
            *string += '\\';
            *string += c;
        }
    }

    std::string text_;
    std::size_t at_ = 0;
    std::vector<JinjaPart> parts_;
};

}  // namespace

std::vector<JinjaPart> scan_jinja(std::string_view text) {
    return Scanner(text).scan();
}

}  // namespace gearkv
