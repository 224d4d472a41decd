#include "decoder/gguf/gguf.hpp"

#include <algorithm>
#include <bit>

#include "decoder/gguf/checked.hpp"

namespace gearkv {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are read in place");

using Index = unsigned long long;  // what %llu prints

// The bytes of the file from the front to the back.
class Reader {
  public:
    Reader(const std::uint8_t* bytes, std::uint64_t n_bytes)
        : begin_(bytes), at_(bytes), end_(bytes + n_bytes) {}

    std::uint64_t position() const { return static_cast<std::uint64_t>(at_ - begin_); }
    std::uint64_t remaining() const { return static_cast<std::uint64_t>(end_ - at_); }
    const std::uint8_t* cursor() const { return at_; }

    // Moves over n bytes. Errors: truncated.
    Status skip(Checked n, const char* what) {
        if (!n.at_most(remaining())) {
            return Status::error(Code::truncated,
                                 "%s at byte %llu needs %s%llu bytes, the file has %llu more", what,
                                 Index{position()}, n.valid() ? "" : "more than ",
                                 n.valid() ? Index{n.value()} : Index{UINT64_MAX}, Index{remaining()});
        }
        at_ += n.value();
        return {};
    }

    template <class T>
    Status read(T* out, const char* what) {
        const std::uint8_t* from = at_;
        const Status status = skip(sizeof(T), what);
        if (status.ok()) std::memcpy(out, from, sizeof(T));
        return status;
    }

    Status read_text(std::string_view* out, const char* what) {
        std::uint64_t n = 0;
        Status status = read(&n, what);
        if (!status.ok()) return status;
        const std::uint8_t* from = at_;
        status = skip(n, what);
        if (status.ok()) *out = {reinterpret_cast<const char*>(from), static_cast<std::size_t>(n)};
        return status;
    }

  private:
    const std::uint8_t* begin_;
    const std::uint8_t* at_;
    const std::uint8_t* end_;
};

// Names are printed and compared; the specification wants ASCII.
Status check_name(std::string_view name, std::uint64_t max_bytes, const char* what, std::uint64_t index) {
    if (name.empty() || name.size() > max_bytes) {
        return Status::error(Code::corrupt_model, "%s %llu has a name of %llu bytes, expected 1 to %llu",
                             what, Index{index}, Index{name.size()}, Index{max_bytes});
    }
    for (const char c : name) {
        if (c <= ' ' || c > '~') {
            return Status::error(Code::corrupt_model, "%s %llu has byte 0x%02x in its name, expected ASCII",
                                 what, Index{index}, static_cast<unsigned char>(c));
        }
    }
    return {};
}

int length_of(std::string_view text) {
    return static_cast<int>(std::min<std::size_t>(text.size(), 63));
}

Status read_elements(Reader& reader, GgufValue& value) {
    value.data = reader.cursor();
    if (value.element != ValueType::string) {
        const Status status = reader.skip(Checked(value.n) * value_bytes(value.element), "a metadata value");
        if (!status.ok() || value.element != ValueType::boolean) return status;
        for (std::uint64_t i = 0; i < value.n; i++) {
            if (value.data[i] > 1) {
                return Status::error(Code::corrupt_model, "'%.*s' holds boolean byte %u, expected 0 or 1",
                                     length_of(value.key), value.key.data(), value.data[i]);
            }
        }
        return {};
    }
    // Strings are at least 8 bytes long, so the loop is bounded by the file even when n is not.
    for (std::uint64_t i = 0; i < value.n; i++) {
        std::string_view text;
        const Status status = reader.read_text(&text, "a metadata string");
        if (!status.ok()) return status;
    }
    return {};
}

Status read_value(Reader& reader, std::uint64_t index, GgufValue* out) {
    GgufValue value;
    Status status = reader.read_text(&value.key, "a metadata key");
    if (!status.ok()) return status;
    status = check_name(value.key, max_key_bytes, "metadata key", index);
    if (!status.ok()) return status;
    std::uint32_t type = 0;
    status = reader.read(&type, "a metadata type");
    if (!status.ok()) return status;
    value.is_array = type == static_cast<std::uint32_t>(ValueType::array);
    if (value.is_array) {
        status = reader.read(&type, "an array type");
        if (status.ok()) status = reader.read(&value.n, "an array length");
        if (!status.ok()) return status;
        if (type == static_cast<std::uint32_t>(ValueType::array)) {
            return Status::error(Code::unsupported_model, "'%.*s' is an array of arrays",
                                 length_of(value.key), value.key.data());
        }
    }
    if (type > static_cast<std::uint32_t>(ValueType::f64)) {
        return Status::error(Code::corrupt_model, "'%.*s' has value type %u, expected 0 to 12",
                             length_of(value.key), value.key.data(), type);
    }
    value.element = static_cast<ValueType>(type);
    status = read_elements(reader, value);
    if (status.ok()) *out = value;
    return status;
}

Status read_dims(Reader& reader, GgufTensor& tensor, Checked* n_elements) {
    Status status = reader.read(&tensor.n_dims, "a tensor's number of dimensions");
    if (!status.ok()) return status;
    const int n = length_of(tensor.name);
    if (tensor.n_dims == 0 || tensor.n_dims > 4) {
        return Status::error(Code::corrupt_model, "tensor '%.*s' has %u dimensions, expected 1 to 4", n,
                             tensor.name.data(), tensor.n_dims);
    }
    for (std::uint32_t i = 0; i < tensor.n_dims; i++) {
        status = reader.read(&tensor.dims[i], "a tensor's dimension");
        if (!status.ok()) return status;
        if (tensor.dims[i] == 0 || tensor.dims[i] > INT64_MAX) {
            return Status::error(Code::corrupt_model,
                                 "tensor '%.*s' has %llu entries in dimension %u, expected "
                                 "1 to 2^63 - 1",
                                 n, tensor.name.data(), Index{tensor.dims[i]}, i);
        }
        *n_elements = *n_elements * tensor.dims[i];
    }
    if (!n_elements->at_most(INT64_MAX)) {
        return Status::error(Code::corrupt_model, "tensor '%.*s' has more than 2^63 - 1 elements", n,
                             tensor.name.data());
    }
    return {};
}

// Bytes of a tensor from its type; every row is whole blocks.
Status size_tensor(std::uint32_t type_id, Checked n_elements, GgufTensor& tensor) {
    const int n = length_of(tensor.name);
    const TensorType* type = find_tensor_type(type_id);
    if (type == nullptr) {
        const char* name = refused_type_name(type_id);
        return Status::error(Code::unsupported_model, "tensor '%.*s' has %s%stype %u, expected one of %s", n,
                             tensor.name.data(), name != nullptr ? name : "", name != nullptr ? ", " : "",
                             type_id, tensor_type_names().c_str());
    }
    if (tensor.dims[0] % type->block != 0) {
        return Status::error(Code::corrupt_model,
                             "tensor '%.*s' has rows of %llu elements, expected a multiple "
                             "of %u for %s",
                             n, tensor.name.data(), Index{tensor.dims[0]}, type->block, type->name);
    }
    const Checked n_bytes = Checked(n_elements.value() / type->block) * type->block_bytes;
    if (!n_bytes.at_most(INT64_MAX)) {
        return Status::error(Code::corrupt_model, "tensor '%.*s' is larger than 2^63 - 1 bytes", n,
                             tensor.name.data());
    }
    tensor.type = type->type;
    tensor.n_bytes = n_bytes.value();
    return {};
}

Status read_tensor(Reader& reader, std::uint64_t index, std::uint32_t alignment, GgufTensor* out) {
    GgufTensor tensor;
    Status status = reader.read_text(&tensor.name, "a tensor name");
    if (!status.ok()) return status;
    status = check_name(tensor.name, max_tensor_name, "tensor", index);
    if (!status.ok()) return status;
    Checked n_elements(1);
    status = read_dims(reader, tensor, &n_elements);
    if (!status.ok()) return status;
    std::uint32_t type = 0;
    status = reader.read(&type, "a tensor type");
    if (status.ok()) status = reader.read(&tensor.offset, "a tensor offset");
    if (status.ok()) status = size_tensor(type, n_elements, tensor);
    if (!status.ok()) return status;
    if (tensor.offset % alignment != 0) {
        return Status::error(Code::corrupt_model,
                             "tensor '%.*s' starts at offset %llu, expected a multiple of %u",
                             length_of(tensor.name), tensor.name.data(), Index{tensor.offset}, alignment);
    }
    *out = tensor;
    return {};
}

// Sets every tensor's data, which must lie in [data_start, n_bytes) without touching that of another.
Status place_tensors(GgufFile& file, const std::uint8_t* bytes, std::uint64_t n_bytes, Checked data_start) {
    GgufPart part = {bytes, n_bytes, n_bytes};
    std::vector<std::uint32_t> by_offset(file.tensors.size());
    for (std::uint32_t i = 0; i < by_offset.size(); i++) {
        GgufTensor& tensor = file.tensors[i];
        const Checked begin = data_start + tensor.offset;
        const Checked end = begin + tensor.n_bytes;
        if (!end.at_most(n_bytes)) {
            return Status::error(Code::truncated,
                                 "tensor '%.*s' of %llu bytes at offset %llu ends beyond the "
                                 "file's %llu bytes",
                                 length_of(tensor.name), tensor.name.data(), Index{tensor.n_bytes},
                                 Index{tensor.offset}, Index{n_bytes});
        }
        tensor.data = bytes + begin.value();
        part.header_bytes = std::min(part.header_bytes, begin.value());
        by_offset[i] = i;
    }
    file.parts = {part};
    std::sort(by_offset.begin(), by_offset.end(), [&](std::uint32_t a, std::uint32_t b) {
        return file.tensors[a].offset < file.tensors[b].offset;
    });
    for (std::size_t i = 1; i < by_offset.size(); i++) {
        const GgufTensor& before = file.tensors[by_offset[i - 1]];
        const GgufTensor& after = file.tensors[by_offset[i]];
        if (before.data + before.n_bytes > after.data) {
            return Status::error(Code::corrupt_model, "tensors '%.*s' and '%.*s' overlap",
                                 length_of(before.name), before.name.data(), length_of(after.name),
                                 after.name.data());
        }
    }
    return {};
}

// Indices of entries ascending by name. Sorting finds duplicates in n log n whatever the names are, where a
// hash table could be filled with names chosen to collide.
template <class Entry>
Status index_names(const std::vector<Entry>& entries, std::string_view Entry::*name, const char* what,
                   std::vector<std::uint32_t>* out) {
    out->resize(entries.size());
    for (std::uint32_t i = 0; i < entries.size(); i++) {
        (*out)[i] = i;
    }
    std::sort(out->begin(), out->end(),
              [&](std::uint32_t a, std::uint32_t b) { return entries[a].*name < entries[b].*name; });
    for (std::size_t i = 1; i < out->size(); i++) {
        const std::string_view text = entries[(*out)[i]].*name;
        if (text == entries[(*out)[i - 1]].*name) {
            return Status::error(Code::corrupt_model, "%s '%.*s' stands twice in the file", what,
                                 length_of(text), text.data());
        }
    }
    return {};
}

template <class Entry>
const Entry* find_by_name(const std::vector<Entry>& entries, std::string_view Entry::*name,
                          const std::vector<std::uint32_t>& index, std::string_view wanted) noexcept {
    const auto at =
        std::lower_bound(index.begin(), index.end(), wanted,
                         [&](std::uint32_t i, std::string_view key) { return entries[i].*name < key; });
    return at != index.end() && entries[*at].*name == wanted ? &entries[*at] : nullptr;
}

Status read_version(Reader& reader, GgufFile& file) {
    if (reader.remaining() < 4 || std::memcmp(reader.cursor(), "GGUF", 4) != 0) {
        return Status::error(Code::not_a_model, "a file of %llu bytes that does not start with \"GGUF\"",
                             Index{reader.remaining()});
    }
    Status status = reader.skip(4, "the magic");
    if (status.ok()) status = reader.read(&file.version, "the version");
    if (!status.ok()) return status;
    if (file.version == 2 || file.version == 3) return {};
    if (file.version == 0x02000000 || file.version == 0x03000000) {
        return Status::error(Code::bad_version, "a big-endian GGUF file, expected a little-endian one");
    }
    return Status::error(Code::bad_version, "GGUF version %u, expected 2 or 3", file.version);
}

// Refuses counts whose smallest possible entries do not fit the file, before anything is reserved for them.
Status check_count(const Reader& reader, std::uint64_t n, std::uint64_t min_bytes, const char* what) {
    if (n > max_gguf_entries) {
        return Status::error(Code::corrupt_model, "%llu %s, expected at most %llu", Index{n}, what,
                             Index{max_gguf_entries});
    }
    const Checked needed = Checked(n) * min_bytes;
    if (!needed.at_most(reader.remaining())) {
        return Status::error(Code::truncated, "%llu %s need at least %llu bytes, the file has %llu more",
                             Index{n}, what, Index{needed.value()}, Index{reader.remaining()});
    }
    return {};
}

Status read_alignment(GgufFile& file) {
    const GgufValue* value = find_value(file, "general.alignment");
    if (value == nullptr) return {};
    if (value->is_array || value->element != ValueType::u32) {
        return Status::error(Code::bad_metadata, "general.alignment is %s%s, expected u32",
                             value->is_array ? "an array of " : "", value_type_name(value->element));
    }
    std::memcpy(&file.alignment, value->data, sizeof(file.alignment));
    if (!std::has_single_bit(file.alignment) || file.alignment > max_alignment) {
        return Status::error(Code::bad_metadata, "general.alignment is %u, expected a power of two up to %u",
                             file.alignment, max_alignment);
    }
    return {};
}

// Everything before the tensors.
Status read_values(Reader& reader, GgufFile& file, std::uint64_t* n_tensors) {
    Status status = read_version(reader, file);
    std::uint64_t n_values = 0;
    if (status.ok()) status = reader.read(n_tensors, "the number of tensors");
    if (status.ok()) status = reader.read(&n_values, "the number of metadata values");
    if (status.ok()) status = check_count(reader, n_values, 8 + 1 + 4 + 1, "metadata values");
    if (status.ok()) status = check_count(reader, *n_tensors, 8 + 1 + 4 + 8 + 4 + 8, "tensors");
    if (!status.ok()) return status;
    file.values.resize(static_cast<std::size_t>(n_values));
    for (std::size_t i = 0; i < file.values.size(); i++) {
        status = read_value(reader, i, &file.values[i]);
        if (!status.ok()) return status;
    }
    return index_names(file.values, &GgufValue::key, "metadata key", &file.value_by_key);
}

}  // namespace

std::size_t value_bytes(ValueType type) noexcept {
    switch (type) {
        case ValueType::u8:
        case ValueType::i8:
        case ValueType::boolean:
            return 1;
        case ValueType::u16:
        case ValueType::i16:
            return 2;
        case ValueType::u32:
        case ValueType::i32:
        case ValueType::f32:
            return 4;
        case ValueType::u64:
        case ValueType::i64:
        case ValueType::f64:
            return 8;
        case ValueType::string:
        case ValueType::array:
            break;
    }
    return 0;
}

Status parse_gguf_values(GgufFile* out, const std::uint8_t* bytes, std::uint64_t n_bytes) {
    GgufFile file;
    Reader reader(bytes, n_bytes);
    std::uint64_t n_tensors = 0;
    const Status status = read_values(reader, file, &n_tensors);
    if (status.ok()) *out = std::move(file);
    return status;
}

Status parse_gguf(GgufFile* out, const std::uint8_t* bytes, std::uint64_t n_bytes) {
    GgufFile file;
    Reader reader(bytes, n_bytes);
    std::uint64_t n_tensors = 0;
    Status status = read_values(reader, file, &n_tensors);
    if (status.ok()) status = read_alignment(file);
    if (!status.ok()) return status;

    file.tensors.resize(static_cast<std::size_t>(n_tensors));
    for (std::size_t i = 0; i < file.tensors.size(); i++) {
        status = read_tensor(reader, i, file.alignment, &file.tensors[i]);
        if (!status.ok()) return status;
    }
    status = index_tensors(file);
    if (status.ok()) {
        status = place_tensors(file, bytes, n_bytes, round_up_checked(reader.position(), file.alignment));
    }
    if (status.ok()) *out = std::move(file);
    return status;
}

Status index_tensors(GgufFile& file) {
    return index_names(file.tensors, &GgufTensor::name, "tensor", &file.tensor_by_name);
}

const GgufValue* find_value(const GgufFile& file, std::string_view key) noexcept {
    return find_by_name(file.values, &GgufValue::key, file.value_by_key, key);
}

const GgufTensor* find_tensor(const GgufFile& file, std::string_view name) noexcept {
    return find_by_name(file.tensors, &GgufTensor::name, file.tensor_by_name, name);
}

}  // namespace gearkv
