// The GGUF container, versions 2 and 3, little-endian.
//
//   "GGUF" | version u32 | n_tensors u64 | n_values u64
//   n_values  x ( key string | type u32 | value )          string = length u64, bytes; array = type u32, n
//   u64 n_tensors x ( name string | n_dims u32 | dims u64[n_dims] | type u32 | offset u64 ) padding to
//   `alignment` | tensor data
//
// A GgufFile points into the bytes it was parsed from; nothing in those bytes may be assumed to be aligned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "decoder/gguf/tensor_type.hpp"
#include "gearkv/status.hpp"

namespace gearkv {

inline constexpr std::uint64_t max_gguf_entries = 65536;  // metadata values, and tensors
inline constexpr std::uint64_t max_key_bytes = 65535;     // as the GGUF specification says
inline constexpr std::uint64_t max_tensor_name = 63;      // bytes
inline constexpr std::uint32_t max_alignment = 65536;

enum class ValueType : std::uint32_t {
    u8 = 0,
    i8 = 1,
    u16 = 2,
    i16 = 3,
    u32 = 4,
    i32 = 5,
    f32 = 6,
    boolean = 7,
    string = 8,
    array = 9,
    u64 = 10,
    i64 = 11,
    f64 = 12,
};

// "u32" and so on.
const char* value_type_name(ValueType type) noexcept;
// Bytes of a fixed-size value; 0 for strings, arrays and unknown types.
std::size_t value_bytes(ValueType type) noexcept;

// One metadata entry, checked: `data` holds n elements of type `element` and ends within the file.
struct GgufValue {
    std::string_view key;  // printable ASCII
    ValueType element = ValueType::u8;
    bool is_array = false;
    std::uint64_t n = 1;
    const std::uint8_t* data = nullptr;
};

// One tensor, checked: [data, data + n_bytes) lies within the file and overlaps no other tensor.
struct GgufTensor {
    std::string_view name;  // printable ASCII
    WeightType type = WeightType::f32;
    std::uint32_t n_dims = 0;
    std::uint64_t dims[4] = {1, 1, 1, 1};  // innermost first
    std::uint64_t n_bytes = 0;
    std::uint64_t offset = 0;  // from the start of the tensor data
    const std::uint8_t* data = nullptr;
};

// The bytes of a file, or of one part of a split one.
struct GgufPart {
    const std::uint8_t* bytes = nullptr;
    std::uint64_t n_bytes = 0;
    std::uint64_t header_bytes = 0;  // before the first tensor's data
};

struct GgufFile {
    std::vector<GgufPart> parts;  // one, unless it came out of join_parts
    std::uint32_t version = 0;
    std::uint32_t alignment = 32;
    std::vector<GgufValue> values;            // in file order
    std::vector<GgufTensor> tensors;          // in file order
    std::vector<std::uint32_t> value_by_key;  // indices, ascending by key
    std::vector<std::uint32_t> tensor_by_name;
};

// Parses and checks everything but the meaning of the metadata. May throw std::bad_alloc; memory is bounded
// by a small multiple of n_bytes, time by n_bytes log n_bytes. Errors: not_a_model, bad_version, truncated,
// corrupt_model, bad_metadata (alignment), unsupported_model.
Status parse_gguf(GgufFile* out, const std::uint8_t* bytes, std::uint64_t n_bytes);
// The metadata alone: tensors are counted, and looked at no further. The same errors.
Status parse_gguf_values(GgufFile* out, const std::uint8_t* bytes, std::uint64_t n_bytes);

// Sets tensor_by_name. May throw std::bad_alloc. Errors: corrupt_model (a name twice).
Status index_tensors(GgufFile& file);

// Null when there is none.
const GgufValue* find_value(const GgufFile& file, std::string_view key) noexcept;
const GgufTensor* find_tensor(const GgufFile& file, std::string_view name) noexcept;

// Scalars by key. *out keeps its value when the key is absent, which is an error only when `required`.
// Integers may be stored with any integer type that holds them, floats as f32 or f64.
// Errors: missing_key, bad_metadata (another type, or outside [min, max]).
struct IntegerRange {
    std::uint64_t min = 0;
    std::uint64_t max = 0xffffffff;
};
Status read_integer(const GgufFile& file, std::string_view key, bool required, IntegerRange range,
                    std::uint32_t* out) noexcept;
// An array of n integers that is there. May throw std::bad_alloc. Errors: bad_metadata.
Status read_integers(const GgufFile& file, std::string_view key, std::uint32_t n, IntegerRange range,
                     std::vector<std::uint32_t>* out);
Status read_float(const GgufFile& file, std::string_view key, bool required, float* out) noexcept;
Status read_bool(const GgufFile& file, std::string_view key, bool required, bool* out) noexcept;
Status read_string(const GgufFile& file, std::string_view key, bool required, std::string_view* out) noexcept;

// Walks the strings of a checked value of element type string.
class StringCursor {
  public:
    explicit StringCursor(const GgufValue& value) noexcept : at_(value.data) {}
    // The next one; to be called at most value.n times.
    std::string_view next() noexcept {
        std::uint64_t length;
        std::memcpy(&length, at_, sizeof(length));
        const std::string_view text(reinterpret_cast<const char*>(at_) + sizeof(length),
                                    static_cast<std::size_t>(length));
        at_ += sizeof(length) + length;
        return text;
    }

  private:
    const std::uint8_t* at_;
};

// The value as text for people: strings escaped and cut after 16 KiB, arrays as "string[1024]".
std::string value_text(const GgufValue& value);
// In one line, as gearkv/escape.hpp.
std::string escape_text(std::string_view text);

}  // namespace gearkv
