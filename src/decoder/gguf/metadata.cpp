// Metadata by key and as text.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "decoder/gguf/gguf.hpp"

namespace gearkv {
namespace {

constexpr std::size_t max_text_bytes = 16384;  // of a string shown to people

template <class T>
T load(const std::uint8_t* data) {
    T value;
    std::memcpy(&value, data, sizeof(value));
    return value;
}

// The scalar at `key`, or null with *status set when it is absent but required, or an array.
const GgufValue* find_scalar(const GgufFile& file, std::string_view key, bool required, Status* status) {
    const GgufValue* value = find_value(file, key);
    const int n = static_cast<int>(key.size());
    if (value == nullptr) {
        if (required) *status = Status::error(Code::missing_key, "the file has no '%.*s'", n, key.data());
        return nullptr;
    }
    if (value->is_array) {
        *status =
            Status::error(Code::bad_metadata, "'%.*s' is an array, expected a single value", n, key.data());
        return nullptr;
    }
    return value;
}

Status wrong_type(const GgufValue& value, const char* expected) {
    return Status::error(Code::bad_metadata, "'%.*s' is of type %s, expected %s",
                         static_cast<int>(value.key.size()), value.key.data(), value_type_name(value.element),
                         expected);
}

// An integer of any stored type as sign and magnitude; false when it is not an integer.
bool load_integer(const GgufValue& value, bool* negative, std::uint64_t* magnitude) {
    std::int64_t number = 0;
    *negative = false;
    switch (value.element) {
        case ValueType::u8:
            *magnitude = load<std::uint8_t>(value.data);
            return true;
        case ValueType::u16:
            *magnitude = load<std::uint16_t>(value.data);
            return true;
        case ValueType::u32:
            *magnitude = load<std::uint32_t>(value.data);
            return true;
        case ValueType::u64:
            *magnitude = load<std::uint64_t>(value.data);
            return true;
        case ValueType::i8:
            number = load<std::int8_t>(value.data);
            break;
        case ValueType::i16:
            number = load<std::int16_t>(value.data);
            break;
        case ValueType::i32:
            number = load<std::int32_t>(value.data);
            break;
        case ValueType::i64:
            number = load<std::int64_t>(value.data);
            break;
        default:
            return false;
    }
    *negative = number < 0;
    *magnitude = *negative ? 0 - static_cast<std::uint64_t>(number) : static_cast<std::uint64_t>(number);
    return true;
}

Status load_in_range(const GgufValue& value, IntegerRange range, std::uint32_t* out) {
    bool negative = false;
    std::uint64_t magnitude = 0;
    if (!load_integer(value, &negative, &magnitude)) return wrong_type(value, "an integer");
    if (negative || magnitude < range.min || magnitude > range.max) {
        return Status::error(
            Code::bad_metadata, "'%.*s' is %s%llu, expected %llu to %llu", static_cast<int>(value.key.size()),
            value.key.data(), negative ? "-" : "", static_cast<unsigned long long>(magnitude),
            static_cast<unsigned long long>(range.min), static_cast<unsigned long long>(range.max));
    }
    *out = static_cast<std::uint32_t>(magnitude);
    return {};
}

bool is_integer(ValueType type) {
    return value_bytes(type) > 0 && type != ValueType::boolean && type != ValueType::f32 &&
           type != ValueType::f64;
}

std::string scalar_text(const GgufValue& value) {
    bool negative = false;
    std::uint64_t magnitude = 0;
    if (load_integer(value, &negative, &magnitude)) {
        std::string text(negative ? "-" : "");
        text += std::to_string(magnitude);
        return text;
    }
    if (value.element == ValueType::boolean) return value.data[0] != 0 ? "true" : "false";
    char text[40];  // shortest text that reads back to the same number, whatever the locale
    const std::to_chars_result result =
        value.element == ValueType::f32 ? std::to_chars(text, text + sizeof(text), load<float>(value.data))
                                        : std::to_chars(text, text + sizeof(text), load<double>(value.data));
    return std::string(text, result.ptr);
}

}  // namespace

const char* value_type_name(ValueType type) noexcept {
    constexpr const char* names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                     "bool", "string", "array", "u64", "i64", "f64"};
    const auto index = static_cast<std::size_t>(type);
    return index < std::size(names) ? names[index] : "?";
}

Status read_integer(const GgufFile& file, std::string_view key, bool required, IntegerRange range,
                    std::uint32_t* out) noexcept {
    Status status;
    const GgufValue* value = find_scalar(file, key, required, &status);
    return value == nullptr ? status : load_in_range(*value, range, out);
}

Status read_integers(const GgufFile& file, std::string_view key, std::uint32_t n, IntegerRange range,
                     std::vector<std::uint32_t>* out) {
    const GgufValue* value = find_value(file, key);
    if (value == nullptr || !value->is_array || !is_integer(value->element)) {
        return Status::error(Code::bad_metadata, "'%.*s' is no array of integers",
                             static_cast<int>(key.size()), key.data());
    }
    if (value->n != n) {
        return Status::error(Code::bad_metadata, "'%.*s' has %llu entries, expected %u",
                             static_cast<int>(key.size()), key.data(),
                             static_cast<unsigned long long>(value->n), n);
    }
    out->resize(n);
    GgufValue element = *value;
    for (std::uint32_t& number : *out) {
        const Status status = load_in_range(element, range, &number);
        if (!status.ok()) return status;
        element.data += value_bytes(value->element);
    }
    return {};
}

Status read_float(const GgufFile& file, std::string_view key, bool required, float* out) noexcept {
    Status status;
    const GgufValue* value = find_scalar(file, key, required, &status);
    if (value == nullptr) return status;
    double number = 0;
    if (value->element == ValueType::f32) {
        number = static_cast<double>(load<float>(value->data));
    } else if (value->element == ValueType::f64) {
        number = load<double>(value->data);
    } else {
        return wrong_type(*value, "a float");
    }
    if (!(std::fabs(number) <= 3.4028234663852886e38)) {
        return Status::error(Code::bad_metadata, "'%.*s' is %g, expected a finite float",
                             static_cast<int>(key.size()), key.data(), number);
    }
    *out = static_cast<float>(number);
    return {};
}

Status read_bool(const GgufFile& file, std::string_view key, bool required, bool* out) noexcept {
    Status status;
    const GgufValue* value = find_scalar(file, key, required, &status);
    if (value == nullptr) return status;
    if (value->element != ValueType::boolean) return wrong_type(*value, "a bool");
    *out = value->data[0] != 0;
    return {};
}

Status read_string(const GgufFile& file, std::string_view key, bool required,
                   std::string_view* out) noexcept {
    Status status;
    const GgufValue* value = find_scalar(file, key, required, &status);
    if (value == nullptr) return status;
    if (value->element != ValueType::string) return wrong_type(*value, "a string");
    *out = StringCursor(*value).next();
    return {};
}

std::string value_text(const GgufValue& value) {
    if (value.is_array)
        return std::string(value_type_name(value.element)) + "[" + std::to_string(value.n) + "]";
    if (value.element != ValueType::string) return scalar_text(value);
    const std::string_view text = StringCursor(value).next();
    std::string out = escape_text(text.substr(0, max_text_bytes));
    if (text.size() > max_text_bytes) out += "... (" + std::to_string(text.size()) + " bytes)";
    return out;
}

}  // namespace gearkv
