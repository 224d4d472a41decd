#include "terminal.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "failure.hpp"

namespace gearkv::tool {
namespace {

constexpr std::size_t max_line_bytes = std::size_t{16} << 20;

}  // namespace

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
