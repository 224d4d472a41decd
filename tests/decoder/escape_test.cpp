// What would steer a terminal is written out.
#include <string>

#include "gearkv/escape.hpp"
#include "support/catch.hpp"

using namespace gearkv;

TEST_CASE("what steers a terminal becomes hexadecimal in every style", "[escape]") {
    const std::string text = "a\tb\n\\\x1b[2J\xc2\x9b\xe2\x80\xae\xbf\xc3\xa9";
    std::string lines, one_line, json = "before ";
    REQUIRE(escape_text(text, EscapeStyle::lines, &lines).ok());
    CHECK(lines == "a\tb\n\\\\x1b[2J\\xc2\\x9b\\xe2\\x80\\xae\\xbf\xc3\xa9");
    REQUIRE(escape_text(text, EscapeStyle::one_line, &one_line).ok());
    CHECK(one_line == "a\\tb\\n\\\\\\x1b[2J\\xc2\\x9b\\xe2\\x80\\xae\\xbf\xc3\xa9");
    REQUIRE(escape_text("\xe2\x80\xae", EscapeStyle::json, &json).ok());
    CHECK(json == "before \\u202e");
}

TEST_CASE("without an output, or in no style, nothing is escaped", "[escape]") {
    std::string out = "as it was";
    CHECK(escape_text("x", EscapeStyle::lines, nullptr).code() == Code::invalid_argument);
    CHECK(escape_text("x", static_cast<EscapeStyle>(9), &out).code() == Code::invalid_argument);
    CHECK(out == "as it was");
}
