#include "terminal.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "failure.hpp"

namespace gearkv::tool {
namespace {

constexpr std::size_t max_line_bytes = std::size_t{16} << 20;

// Bytes of the well-formed UTF-8 character at the start of a text, and its number; 0 when there is none.
std::size_t read_character(std::string_view text, unsigned long* number) {
    const auto lead = static_cast<unsigned char>(text[0]);
    const std::size_t n = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if ((lead >= 0x80 && lead < 0xc2) || lead > 0xf4 || text.size() < n) return 0;
    unsigned long value = n == 1 ? lead : lead & (0x7fu >> n);
    for (std::size_t i = 1; i < n; i++) {
        const auto byte = static_cast<unsigned char>(text[i]);
        if ((byte & 0xc0) != 0x80) return 0;
        value = value << 6 | (byte & 0x3fu);
    }
    const bool overlong = (n == 3 && value < 0x800) || (n == 4 && value < 0x10000);
    if (overlong || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) return 0;
    *number = value;
    return n;
}

bool is_harmless(unsigned long c) {
    if (c == '\n' || c == '\t') return true;
    const bool control = c < 0x20 || (c >= 0x7f && c < 0xa0);
    const bool reorders = c == 0x061c || c == 0x200e || c == 0x200f || (c >= 0x202a && c <= 0x202e) ||
                          (c >= 0x2066 && c <= 0x2069);
    const bool breaks = c == 0x2028 || c == 0x2029;
    return !control && !reorders && !breaks;
}

}  // namespace

std::string for_terminal(std::string_view text) {
    std::string shown;
    while (!text.empty()) {
        unsigned long c = 0;
        const std::size_t n = read_character(text, &c);
        const std::size_t n_taken = n == 0 ? 1 : n;
        if (n > 0 && is_harmless(c)) {
            shown += text.substr(0, n);
        } else {
            for (std::size_t i = 0; i < n_taken; i++) {
                char escaped[8];
                std::snprintf(escaped, sizeof(escaped), "\\x%02X", static_cast<unsigned char>(text[i]));
                shown += escaped;
            }
        }
        text.remove_prefix(n_taken);
    }
    return shown;
}

Colours::Colours(int file) noexcept {
    const char* no_color = std::getenv("NO_COLOR");
    const char* terminal = std::getenv("TERM");
    const bool unwanted = no_color != nullptr && no_color[0] != '\0';
    const bool dumb = terminal == nullptr || std::strcmp(terminal, "dumb") == 0;
    on_ = isatty(file) != 0 && !unwanted && !dumb;
}

LineReader::Result LineReader::read(std::string* line) {
    line->clear();
    for (;;) {
        std::size_t end;
        while ((end = buffer_.find('\n')) == buffer_.npos && !ended_) {
            if (buffer_.size() > max_line_bytes) throw Failure("a line of more than 16 MiB");
            char bytes[65536];
            if (interrupted()) return Result::interrupted;
            const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof(bytes));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) throw Failure(std::string("standard input: ") + std::strerror(errno));
            if (n == 0) ended_ = true;
            buffer_.append(bytes, static_cast<std::size_t>(n > 0 ? n : 0));
        }
        if (end == buffer_.npos && buffer_.empty() && line->empty()) return Result::end;
        std::string part = buffer_.substr(0, end);
        buffer_.erase(0, end == buffer_.npos ? end : end + 1);
        if (!part.empty() && part.back() == '\r') part.pop_back();
        const bool goes_on = !part.empty() && part.back() == '\\' && !(ended_ && buffer_.empty());
        if (goes_on) part.back() = '\n';
        *line += part;
        if (!goes_on) return Result::line;
        if (line->size() > max_line_bytes) throw Failure("a line of more than 16 MiB");
    }
}

}  // namespace gearkv::tool
