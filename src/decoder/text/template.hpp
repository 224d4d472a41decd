// The templates that have a name, for files without one of their own.
#pragma once

#include <string>
#include <string_view>

namespace gearkv {

// The Jinja of a name; empty when there is none. May throw std::bad_alloc.
std::string named_template(std::string_view name);
// The name of the kin of a template: by the marks it prints around system text, question, answer and
// question, with the end of text as "</s>"; "custom" when they are of none.
const char* kin_of(const std::string& markup);

}  // namespace gearkv
