#include "npy.hpp"

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>

namespace gearkv::npy {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are copied as they lie in the file");

constexpr char magic[] = {'\x93', 'N', 'U', 'M', 'P', 'Y'};
constexpr std::size_t max_dims = 32;  // NumPy's own limit

struct TypeName {
    Type type;
    std::string_view descr;
    std::size_t n_bytes;
};
constexpr TypeName types[] = {{Type::float16, "<f2", 2}, {Type::float32, "<f4", 4}, {Type::int32, "<i4", 4}};

const TypeName& type_name(Type type) {
    return types[static_cast<std::size_t>(type)];
}

struct Header {
    Type type = Type::float32;
    std::vector<std::size_t> shape;
};

// Reads the Python dict literal of a header: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }
class HeaderReader {
  public:
    HeaderReader(const std::string& name, std::string_view text) : name_(name), text_(text) {}

    Header read() {
        Header header;
        bool has_descr = false, has_order = false, has_shape = false;
        expect('{');
        while (!accept('}')) {
            const std::string_view key = read_string();
            expect(':');
            if (key == "descr") {
                header.type = read_type();
                has_descr = true;
            } else if (key == "fortran_order") {
                read_order();
                has_order = true;
            } else if (key == "shape") {
                header.shape = read_shape();
                has_shape = true;
            } else {
                fail("an unknown key in the header");
            }
            if (!accept(',')) {
                expect('}');
                break;
            }
        }
        skip_space();
        if (at_ != text_.size()) fail("text behind the header's dictionary");
        if (!has_descr || !has_order || !has_shape) fail("a header without descr, fortran_order and shape");
        return header;
    }

  private:
    [[noreturn]] void fail(const char* what) const { throw Error(name_ + ": " + what); }

    void skip_space() {
        while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n'))
            ++at_;
    }
    bool accept(char c) {
        skip_space();
        if (at_ == text_.size() || text_[at_] != c) return false;
        ++at_;
        return true;
    }
    void expect(char c) {
        if (!accept(c)) fail("a header that is not a dictionary of descr, fortran_order and shape");
    }
    std::string_view read_string() {
        expect('\'');
        const std::size_t end = text_.find('\'', at_);
        if (end == std::string_view::npos) fail("a string without an end in the header");
        const std::string_view string = text_.substr(at_, end - at_);
        at_ = end + 1;
        return string;
    }
    Type read_type() {
        const std::string_view descr = read_string();
        for (const TypeName& type : types) {
            if (type.descr == descr) return type.type;
        }
        fail("an element type other than <f2, <f4 and <i4");
    }
    void read_order() {
        skip_space();
        if (text_.substr(at_, 5) != "False") fail("elements in Fortran order, expected C order");
        at_ += 5;
    }
    std::vector<std::size_t> read_shape() {
        std::vector<std::size_t> shape;
        expect('(');
        while (!accept(')')) {
            if (shape.size() == max_dims) fail("more than 32 dimensions");
            shape.push_back(read_number());
            if (!accept(',')) {
                expect(')');
                break;
            }
        }
        return shape;
    }
    std::size_t read_number() {
        skip_space();
        const std::size_t start = at_;
        std::size_t number = 0;
        for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
            const auto digit = static_cast<std::size_t>(text_[at_] - '0');
            if (number > (SIZE_MAX - digit) / 10) fail("a dimension too large for this machine");
            number = number * 10 + digit;
        }
        if (at_ == start) fail("a dimension that is not a number");
        return number;
    }

    const std::string& name_;
    std::string_view text_;
    std::size_t at_ = 0;
};

// Length of the header text and where it starts.
struct HeaderPlace {
    std::size_t start, n_chars;
};

HeaderPlace find_header(const std::string& name, const unsigned char* bytes, std::size_t n_bytes) {
    if (n_bytes < 10 || std::memcmp(bytes, magic, sizeof(magic)) != 0)
        throw Error(name + ": not an .npy file");
    const unsigned version = bytes[6];
    if (version != 1 && version != 2) {
        throw Error(name + ": .npy version " + std::to_string(version) + ", expected 1 or 2");
    }
    const std::size_t start = version == 1 ? 10 : 12;
    std::size_t n_chars = bytes[8] | bytes[9] << 8;
    if (version == 2) {
        if (n_bytes < start) throw Error(name + ": the file ends within its header");
        n_chars |= std::size_t{bytes[10]} << 16 | std::size_t{bytes[11]} << 24;
    }
    if (n_chars > n_bytes - start) throw Error(name + ": the file ends within its header");
    return {start, n_chars};
}

std::size_t count_elements(const std::string& name, const std::vector<std::size_t>& shape) {
    std::size_t n = 1;
    for (const std::size_t extent : shape) {
        if (extent != 0 && n > SIZE_MAX / 8 / extent) throw Error(name + ": a shape of too many elements");
        n *= extent;
    }
    return n;
}

}  // namespace

std::size_t Array::n_elements() const {
    return count_elements("array", shape);
}

Array parse(const std::string& name, const unsigned char* bytes, std::size_t n_bytes) {
    const HeaderPlace place = find_header(name, bytes, n_bytes);
    const std::string_view text(reinterpret_cast<const char*>(bytes) + place.start, place.n_chars);
    const Header header = HeaderReader(name, text).read();
    const std::size_t n = count_elements(name, header.shape);
    const std::size_t found = n_bytes - place.start - place.n_chars;
    const std::size_t expected = n * type_name(header.type).n_bytes;
    if (found != expected) {
        throw Error(name + ": " + std::to_string(found) + " bytes of elements, expected " +
                    std::to_string(expected) + " for " + shape_text(header.shape));
    }
    Array array;
    array.type = header.type;
    array.shape = header.shape;
    const unsigned char* data = bytes + place.start + place.n_chars;
    if (header.type == Type::int32) {
        array.ints.resize(n);
        if (n > 0) std::memcpy(array.ints.data(), data, expected);
    } else if (header.type == Type::float32) {
        array.floats.resize(n);
        if (n > 0) std::memcpy(array.floats.data(), data, expected);
    } else {
        array.floats.resize(n);
        for (std::size_t i = 0; i < n; ++i) {
            array.floats[i] = from_half(static_cast<std::uint16_t>(data[2 * i] | data[2 * i + 1] << 8));
        }
    }
    return array;
}

Array load(const std::string& path) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {
        throw Error(path + ": " + (error ? error.message() : "not a regular file"));
    }
    std::ifstream file(path, std::ios::binary);
    std::vector<unsigned char> bytes(std::filesystem::file_size(path, error));
    if (error) throw Error(path + ": " + error.message());
    if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()))) {
        throw Error(path + ": cannot be read");
    }
    return parse(path, bytes.data(), bytes.size());
}

void save(const std::string& path, const Array& array) {
    const TypeName& type = type_name(array.type);
    const std::size_t n = count_elements(path, array.shape);
    if (n != (array.type == Type::int32 ? array.ints.size() : array.floats.size())) {
        throw Error(path + ": the elements do not fill the shape " + shape_text(array.shape));
    }
    std::string shape;
    for (const std::size_t extent : array.shape)
        shape += std::to_string(extent) + ", ";
    std::string header =
        "{'descr': '" + std::string(type.descr) + "', 'fortran_order': False, 'shape': (" + shape + "), }";
    // Elements start at a multiple of 64, behind a newline.
    header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');
    header += '\n';

    std::ofstream file(path, std::ios::binary);
    if (!file) throw Error(path + ": cannot be written");
    file.write(magic, sizeof(magic));
    const char lead[] = {1, 0, static_cast<char>(header.size() & 255), static_cast<char>(header.size() >> 8)};
    file.write(lead, sizeof(lead));
    file << header;
    if (array.type == Type::float16) {
        std::vector<std::uint16_t> halves(n);
        for (std::size_t i = 0; i < n; ++i)
            halves[i] = to_half(array.floats[i]);
        file.write(reinterpret_cast<const char*>(halves.data()), static_cast<std::streamsize>(n * 2));
    } else {
        const void* data =
            array.type == Type::int32 ? static_cast<const void*>(array.ints.data()) : array.floats.data();
        file.write(static_cast<const char*>(data), static_cast<std::streamsize>(n * 4));
    }
    file.close();
    if (file) return;
    std::error_code error;
    if (std::filesystem::is_regular_file(path, error)) std::filesystem::remove(path, error);  // half of it
    throw Error(path + ": cannot be written");
}

std::string shape_text(const std::vector<std::size_t>& shape) {
    if (shape.empty()) return "a single number";
    std::string text;
    for (const std::size_t extent : shape)
        text += (text.empty() ? "" : " x ") + std::to_string(extent);
    return text;
}

float from_half(std::uint16_t half) {
    const std::uint32_t sign = std::uint32_t{half} << 16 & 0x80000000u;
    const std::uint32_t exponent = half >> 10 & 31;
    const std::uint32_t fraction = half & 1023;
    if (exponent == 0) {
        const float tiny = std::ldexp(static_cast<float>(fraction), -24);
        return std::bit_cast<float>(std::bit_cast<std::uint32_t>(tiny) | sign);
    }
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

std::uint16_t to_half(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    const std::uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00);   // NaN
    if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00);  // 65520 and more
    if (magnitude < 0x38800000u) {
        // Below 2^-14: a count of 2^-24, rounded to even by the addition.
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
    }
    const std::uint32_t rebased = magnitude - (112u << 23);
    const std::uint32_t rounded = rebased + 0xfff + (rebased >> 13 & 1);
    return static_cast<std::uint16_t>(sign | rounded >> 13);
}

}  // namespace gearkv::npy
