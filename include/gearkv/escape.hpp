// Text that came from a file, a model or a stranger, on its way to a terminal.
#pragma once

#include <string>
#include <string_view>

#include "gearkv/status.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

enum class EscapeStyle {
    lines,     // line ends, tabs and backslashes stay: text of several lines
    one_line,  // they become \n, \t and \\, and the text can be read back
    json,      // as lines, but with \uHHHH: for JSON in writing, whose strings alone hold any of these
};

// Appends the text to *out. What would steer a terminal or reorder a line (C0 and C1 controls, marks,
// embeddings and isolates of direction, line and paragraph separators, U+FEFF, anchors of annotations) and
// bytes that are no UTF-8 become \xHH, byte by byte. Takes whole characters. *out is untouched after an
// error. Errors: invalid_argument, out_of_memory.
Status escape_text(std::string_view text, EscapeStyle style, std::string* out) noexcept;

}  // namespace gearkv
#pragma GCC visibility pop
