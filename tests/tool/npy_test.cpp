// .npy files and halves of examples/support.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "npy.hpp"
#include "support/catch.hpp"

using namespace gearkv;

namespace {

// A version 1 file, or version 2 with `wide`, of this header text and these element bytes.
std::vector<unsigned char> make_file(const std::string& header, std::size_t n_data, bool wide = false) {
    std::vector<unsigned char> file = {
        0x93, 'N', 'U', 'M', 'P', 'Y', static_cast<unsigned char>(wide ? 2 : 1), 0};
    for (int i = 0; i < (wide ? 4 : 2); ++i)
        file.push_back(static_cast<unsigned char>(header.size() >> (8 * i)));
    file.insert(file.end(), header.begin(), header.end());
    for (std::size_t i = 0; i < n_data; ++i)
        file.push_back(static_cast<unsigned char>(i));
    return file;
}

std::string message_of(const std::vector<unsigned char>& file) {
    try {
        // A copy of the exact length lets the address sanitizer see reads behind the end.
        const std::vector<unsigned char> exact(file.begin(), file.end());
        npy::parse("file", exact.data(), exact.size());
    } catch (const npy::Error& error) {
        return error.what();
    }
    return "";
}

std::string message_of(const std::string& header, std::size_t n_data) {
    return message_of(make_file(header, n_data));
}

struct TemporaryFile {
    std::string path = (std::filesystem::temp_directory_path() / "gearkv-npy-test.npy").string();
    ~TemporaryFile() { std::filesystem::remove(path); }
};

}  // namespace

TEST_CASE("arrays of every type survive a file", "[npy]") {
    const TemporaryFile file;
    npy::Array array;
    array.shape = {2, 3};
    SECTION("float32") {
        array.floats = {0.0f, -1.5f, 1e-40f, 3e38f, 0.1f, std::numeric_limits<float>::infinity()};
    }
    SECTION("float16") {
        array.type = npy::Type::float16;
        array.floats = {0.0f, -1.5f, 65504.0f, 5.9604645e-8f, 0.25f, -std::numeric_limits<float>::infinity()};
    }
    SECTION("int32") {
        array.type = npy::Type::int32;
        array.ints = {0, -1, 2147483647, -2147483647 - 1, 5, 6};
    }
    SECTION("no elements") {
        array.shape = {4, 0};
    }
    SECTION("a single number") {
        array.shape = {};
        array.floats = {7.0f};
    }
    npy::save(file.path, array);
    const npy::Array again = npy::load(file.path);
    CHECK(again.type == array.type);
    CHECK(again.shape == array.shape);
    CHECK(again.floats == array.floats);
    CHECK(again.ints == array.ints);
    CHECK(std::filesystem::file_size(file.path) % 2 == 0);
}

TEST_CASE("version 2 headers and any order of keys are read", "[npy]") {
    const auto file = make_file("{'shape':(3,),'descr':'<i4','fortran_order':False}   \n", 12, true);
    const npy::Array array = npy::parse("file", file.data(), file.size());
    CHECK(array.shape == std::vector<std::size_t>{3});
    CHECK(array.ints == std::vector<std::int32_t>{0x03020100, 0x07060504, 0x0b0a0908});
}

TEST_CASE("a file cut at any byte is refused, and so is one with more", "[npy]") {
    for (const bool wide : {false, true}) {
        const auto file =
            make_file("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", 24, wide);
        REQUIRE(message_of(file).empty());
        for (std::size_t n = 0; n < file.size(); ++n) {
            INFO("cut to " << n << " of " << file.size());
            CHECK_FALSE(message_of({file.begin(), file.begin() + static_cast<std::ptrdiff_t>(n)}).empty());
        }
        auto longer = file;
        longer.push_back(0);
        CHECK(message_of(longer) == "file: 25 bytes of elements, expected 24 for 2 x 3");
    }
}

TEST_CASE("hostile headers are refused with a reason", "[npy]") {
    const std::string rest = "'fortran_order': False, 'shape': ";
    const auto with_shape = [&](const std::string& shape) {
        return "{'descr': '<f4', " + rest + shape + "}";
    };
    CHECK(message_of(with_shape("(4,)"), 16).empty());
    const struct {
        std::string header, reason;
    } cases[] = {
        {with_shape("(4294967296, 4294967296)"), "too many elements"},
        {with_shape("(2305843009213693952,)"), "too many elements"},
        {with_shape("(99999999999999999999,)"), "too large"},
        {with_shape("(-4,)"), "not a number"},
        {with_shape("(4"), "not a dictionary"},
        {with_shape("(1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1)"), "32 dimensions"},
        {with_shape("4"), "not a dictionary"},
        {with_shape("(4,)") + "x", "behind the header"},
        {"{'descr': '<f8', " + rest + "(4,)}", "element type"},
        {"{'descr': '<f4, " + rest + "(4,)}", "element type"},
        {"{'descr", "without an end"},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (4,)}", "Fortran"},
        {"{'descr': '<f4', 'shape': (4,)}", "without descr"},
        {"{'descr': '<f4', 'more': 1, " + rest + "(4,)}", "unknown key"},
        {"", "not a dictionary"},
        {"{}", "without descr"},
    };
    for (const auto& c : cases) {
        const std::string message = message_of(c.header, 16);
        INFO(c.header << " gave \"" << message << '"');
        CHECK(message.find(c.reason) != std::string::npos);
    }
    auto version = make_file(with_shape("(4,)"), 16);
    version[6] = 3;
    CHECK(message_of(version) == "file: .npy version 3, expected 1 or 2");
}

TEST_CASE("every half survives the way through float", "[npy]") {
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
        const auto half = static_cast<std::uint16_t>(bits);
        const float value = npy::from_half(half);
        if (std::isnan(value)) {
            REQUIRE((bits & 0x7fff) > 0x7c00);
            REQUIRE(std::isnan(npy::from_half(npy::to_half(value))));
        } else {
            REQUIRE(npy::to_half(value) == half);
        }
    }
    CHECK(npy::from_half(0x0001) == std::ldexp(1.0f, -24));
    CHECK(npy::from_half(0x3c01) == 1.0f + std::ldexp(1.0f, -10));
    CHECK(std::signbit(npy::from_half(0x8000)));
}

TEST_CASE("floats between two halves go to the nearer one, ties to even", "[npy]") {
    for (std::uint16_t half = 0; half < 0x7bff; ++half) {
        const float below = npy::from_half(half),
                    above = npy::from_half(static_cast<std::uint16_t>(half + 1));
        const float middle = 0.5f * (below + above);  // exact in float
        REQUIRE(npy::to_half(middle) == half + half % 2);
        REQUIRE(npy::to_half(std::nextafter(middle, 0.0f)) == half);
        REQUIRE(npy::to_half(-std::nextafter(middle, 1e9f)) == (0x8000 | (half + 1)));
    }
    CHECK(npy::to_half(65519.996f) == 0x7bff);
    CHECK(npy::to_half(65520.0f) == 0x7c00);
    CHECK(npy::to_half(-1e30f) == 0xfc00);
    CHECK(npy::to_half(1e-30f) == 0);
}
