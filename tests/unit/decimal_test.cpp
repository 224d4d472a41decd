// Floats read without the C++ library are those it reads.
#include "format/decimal.hpp"

#include <random>
#include <string>

#include "support/catch.hpp"

namespace gearkv::testing {
namespace {

#if defined(__cpp_lib_to_chars)

void check_same(const std::string& text) {
    float expected = -7.0f, found = -7.0f;
    const char *first = text.data(), *last = first + text.size();
    const auto [end, error] = std::from_chars(first, last, expected);
    const auto [found_end, found_error] = read_decimal(first, last, &found);
    CAPTURE(text);
    REQUIRE(found_error == error);
    REQUIRE(found_end == end);
    REQUIRE(found == expected);
}

TEST_CASE("decimals are read as the library reads them", "[once]") {
    for (const char* text : {"",          ".",        "x",
                             "2",         "2.",       ".5",
                             "0.02",      "00.0200",  "1e",
                             "1e+",       "1e-",      "1e-05,",
                             "2.5e1x",    "1.5.2",    "e5",
                             ".e5",       "0",        "0e9",
                             "65504",     "1e10",     "3.4028235e38",
                             "16777217",  "16777219", "0.1000000014901161",
                             "8388608.5", "8388609.5"})
        check_same(text);
    std::mt19937 random(3);
    for (int i = 0; i < 200000; ++i) {
        const auto bits = static_cast<std::uint32_t>((random() & 0x7fffff) | (100 + random() % 50) << 23);
        float x;
        std::memcpy(&x, &bits, sizeof(x));
        char text[40];
        const auto end = std::to_chars(text, text + sizeof(text), x).ptr;
        check_same({text, static_cast<std::size_t>(end - text)});
    }
    // Between two floats, and a digit more or less.
    for (int i = 0; i < 20000; ++i) {
        const std::uint64_t odd = 2 * (8388608 + random() % 8388608) + 1;
        const std::string middle = std::to_string(odd / 2) + ".5";
        check_same(middle);
        check_same(middle + "001");
        check_same(std::to_string(odd / 2) + ".4999");
    }
}

#endif

TEST_CASE("what no float holds is refused", "[once]") {
    float x = 1.0f;
    for (const std::string& text :
         {std::string("1e39"), std::string("4e38"), std::string("1e9999999"), std::string(2000, '9')}) {
        CAPTURE(text);
        CHECK(read_decimal(text.data(), text.data() + text.size(), &x).ec == std::errc::result_out_of_range);
    }
    const std::string tiny = "1e-99999999";
    CHECK(read_decimal(tiny.data(), tiny.data() + tiny.size(), &x).ec == std::errc());
    CHECK(x == 0.0f);
}

}  // namespace
}  // namespace gearkv::testing
