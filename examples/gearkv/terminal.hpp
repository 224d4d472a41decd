// Talking to a person at a terminal, or to what stands in for one.
#pragma once

#include <string>

namespace gearkv::tool {

// Colours, where they belong: a terminal, and no NO_COLOR.
class Colours {
  public:
    explicit Colours(int file) noexcept;
    const char* prompt() const noexcept { return on_ ? "\x1b[1;32m" : ""; }
    const char* quiet() const noexcept { return on_ ? "\x1b[2m" : ""; }
    const char* none() const noexcept { return on_ ? "\x1b[0m" : ""; }

  private:
    bool on_;
};

// Lines of standard input, read so that Ctrl-C comes through.
class LineReader {
  public:
    enum class Result { line, end, interrupted };
    // Without its line end, and without the last of several that a `\` joins. Throws Failure when the system
    // cannot read, or a line has more than 16 MiB.
    Result read(std::string* line);

  private:
    std::string buffer_;
    bool ended_ = false;
};

}  // namespace gearkv::tool
