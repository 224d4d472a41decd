#include "gearkv/escape.hpp"

#include <algorithm>
#include <cstdio>

#include "decoder/gguf/gguf.hpp"
#include "decoder/gguf/guarded.hpp"
#include "decoder/gguf/utf8.hpp"

namespace gearkv {
namespace {

bool steers(std::uint32_t c) {
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c || c == 0x200e || c == 0x200f ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x206f) || c == 0xfeff ||
           (c >= 0xfff9 && c <= 0xfffb);
}

// What stands for a character that ends, moves or escapes within a line; null for any other.
const char* mark_in_line(std::uint32_t c) {
    return c == '\n' ? "\\n" : c == '\t' ? "\\t" : c == '\\' ? "\\\\" : nullptr;
}

void append_escaped(std::string_view text, EscapeStyle style, std::string* out) {
    char escaped[8];
    for (std::size_t at = 0; at < text.size();) {
        std::uint32_t c = 0;
        const std::size_t n = decode_character(text.substr(at), &c);
        const std::string_view bytes = text.substr(at, std::max<std::size_t>(n, 1));
        at += bytes.size();
        const char* mark = n == 1 ? mark_in_line(c) : nullptr;
        if (mark != nullptr && style == EscapeStyle::one_line) {
            *out += mark;
        } else if (n != 0 && (mark != nullptr || !steers(c))) {
            *out += bytes;
        } else if (n != 0 && style == EscapeStyle::json) {
            std::snprintf(escaped, sizeof(escaped), "\\u%04x", c & 0xffff);
            *out += escaped;
        } else {
            for (const char byte : bytes) {
                std::snprintf(escaped, sizeof(escaped), "\\x%02x", static_cast<unsigned char>(byte));
                *out += escaped;
            }
        }
    }
}

}  // namespace

Status escape_text(std::string_view text, EscapeStyle style, std::string* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    if (style != EscapeStyle::lines && style != EscapeStyle::one_line && style != EscapeStyle::json)
        return Status::error(Code::invalid_argument, "style %d of escapes", static_cast<int>(style));
    return guarded([&] {
        std::string escaped;
        escaped.reserve(text.size());
        append_escaped(text, style, &escaped);
        *out += escaped;
        return Status();
    });
}

std::string escape_text(std::string_view text) {
    std::string escaped;
    append_escaped(text, EscapeStyle::one_line, &escaped);
    return escaped;
}

}  // namespace gearkv
