// UTF-8, one character at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace gearkv {

// Bytes of the well-formed character at the start of a text that is not empty, and its code point; 0 for
// anything else (a stray or missing byte, a surrogate, an overlong form, more than U+10FFFF).
inline std::size_t decode_character(std::string_view text, std::uint32_t* code_point) noexcept {
    const auto lead = static_cast<unsigned char>(text[0]);
    if (lead < 0x80) {
        *code_point = lead;
        return 1;
    }
    const std::size_t n = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || text.size() < n) return 0;
    std::uint32_t value = lead & (0x7fu >> n);
    for (std::size_t i = 1; i < n; i++) {
        const auto byte = static_cast<unsigned char>(text[i]);
        if ((byte & 0xc0) != 0x80) return 0;
        value = value << 6 | (byte & 0x3f);
    }
    constexpr std::uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (value < smallest[n] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) return 0;
    *code_point = value;
    return n;
}

inline bool is_utf8(std::string_view text) noexcept {
    std::uint32_t code_point;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t n = decode_character(text.substr(at), &code_point);
        if (n == 0) return false;
        at += n;
    }
    return true;
}

// Bytes of the first character of a text that is not empty; a byte that starts none counts as one.
inline std::size_t character_bytes(std::string_view text) noexcept {
    std::uint32_t code_point;
    const std::size_t n = decode_character(text, &code_point);
    return n == 0 ? 1 : n;
}

inline void append_character(std::uint32_t c, std::string* out) {
    const auto put = [&](std::uint32_t byte) { *out += static_cast<char>(byte); };
    if (c < 0x80) {
        put(c);
    } else if (c < 0x800) {
        put(0xc0 | c >> 6);
        put(0x80 | (c & 0x3f));
    } else {
        if (c < 0x10000) {
            put(0xe0 | c >> 12);
        } else {
            put(0xf0 | c >> 18);
            put(0x80 | (c >> 12 & 0x3f));
        }
        put(0x80 | (c >> 6 & 0x3f));
        put(0x80 | (c & 0x3f));
    }
}

}  // namespace gearkv
