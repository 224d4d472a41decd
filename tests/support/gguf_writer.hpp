// Writes GGUF files, sound and unsound ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace gearkv::test {

using Bytes = std::vector<std::uint8_t>;

template <class T>
void put(Bytes& out, T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&value);
    out.insert(out.end(), bytes, bytes + sizeof(T));
}

inline void put_text(Bytes& out, std::string_view text) {
    put(out, std::uint64_t{text.size()});
    out.insert(out.end(), text.begin(), text.end());
}

template <class T>
void overwrite(Bytes& bytes, std::size_t at, T value) {
    std::memcpy(bytes.data() + at, &value, sizeof(value));
}

// The number of a value type in the file.
template <class T>
constexpr std::uint32_t gguf_type() {
    if constexpr (std::is_same_v<T, std::uint8_t>) return 0;
    if constexpr (std::is_same_v<T, std::int8_t>) return 1;
    if constexpr (std::is_same_v<T, std::uint16_t>) return 2;
    if constexpr (std::is_same_v<T, std::int16_t>) return 3;
    if constexpr (std::is_same_v<T, std::uint32_t>) return 4;
    if constexpr (std::is_same_v<T, std::int32_t>) return 5;
    if constexpr (std::is_same_v<T, float>) return 6;
    if constexpr (std::is_same_v<T, bool>) return 7;
    if constexpr (std::is_same_v<T, std::uint64_t>) return 10;
    if constexpr (std::is_same_v<T, std::int64_t>) return 11;
    return 12;
}
inline constexpr std::uint32_t gguf_string = 8;
inline constexpr std::uint32_t gguf_array = 9;

inline constexpr std::uint32_t gguf_f32 = 0;
inline constexpr std::uint32_t gguf_f16 = 1;
inline constexpr std::uint32_t gguf_q8_0 = 8;
inline constexpr std::uint32_t gguf_bf16 = 30;

// Metadata and tensors in the order they were first set. Setting a key again replaces its value in place.
class GgufWriter {
  public:
    struct Value {
        std::string key;
        std::uint32_t type;
        Bytes payload;
    };
    struct Tensor {
        std::string name;
        std::vector<std::uint64_t> dims;
        std::uint32_t type;
        Bytes data;
    };

    template <class T>
    void set(const std::string& key, T value) {
        Bytes payload;
        put(payload, value);
        set_raw(key, gguf_type<T>(), payload);
    }
    void set(const std::string& key, const std::string& text) {
        Bytes payload;
        put_text(payload, text);
        set_raw(key, gguf_string, payload);
    }
    void set(const std::string& key, const char* text) { set(key, std::string(text)); }
    template <class T>
    void set_array(const std::string& key, const std::vector<T>& elements) {
        Bytes payload;
        put(payload, gguf_type<T>());
        put(payload, std::uint64_t{elements.size()});
        for (const T& element : elements) {
            put(payload, element);
        }
        set_raw(key, gguf_array, payload);
    }
    void set_array(const std::string& key, const std::vector<std::string>& elements) {
        Bytes payload;
        put(payload, gguf_string);
        put(payload, std::uint64_t{elements.size()});
        for (const std::string& element : elements) {
            put_text(payload, element);
        }
        set_raw(key, gguf_array, payload);
    }
    void set_raw(const std::string& key, std::uint32_t type, Bytes payload) {
        for (Value& value : values) {
            if (value.key != key) continue;
            value.type = type;
            value.payload = std::move(payload);
            return;
        }
        values.push_back({key, type, std::move(payload)});
    }
    void erase(const std::string& key) {
        std::erase_if(values, [&](const Value& value) { return value.key == key; });
    }

    Tensor& tensor(const std::string& name) {
        for (Tensor& tensor : tensors) {
            if (tensor.name == name) return tensor;
        }
        tensors.push_back({name, {}, gguf_f32, {}});
        return tensors.back();
    }
    void erase_tensor(const std::string& name) {
        std::erase_if(tensors, [&](const Tensor& tensor) { return tensor.name == name; });
    }

    // All that is in front of the tensors' data; n_bytes(i) tells how long those of tensor i are.
    template <class CountBytes>
    Bytes write_header(const CountBytes& n_bytes) const {
        Bytes out = {'G', 'G', 'U', 'F'};
        put(out, version);
        put(out, std::uint64_t{tensors.size()});
        put(out, std::uint64_t{values.size()});
        for (const Value& value : values) {
            put_text(out, value.key);
            put(out, value.type);
            out.insert(out.end(), value.payload.begin(), value.payload.end());
        }
        std::uint64_t offset = 0;
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            const Tensor& tensor = tensors[i];
            put_text(out, tensor.name);
            put(out, static_cast<std::uint32_t>(tensor.dims.size()));
            for (const std::uint64_t dim : tensor.dims) {
                put(out, dim);
            }
            put(out, tensor.type);
            put(out, offset);
            offset = pad(offset + n_bytes(i));
        }
        out.resize(pad(out.size()));
        return out;
    }

    // The file; *header_bytes is set to where its tensor data start.
    Bytes write(std::size_t* header_bytes = nullptr) const {
        Bytes out = write_header([&](std::size_t i) { return tensors[i].data.size(); });
        if (header_bytes != nullptr) *header_bytes = out.size();
        for (const Tensor& tensor : tensors) {
            out.insert(out.end(), tensor.data.begin(), tensor.data.end());
            out.resize(pad(out.size()));
        }
        return out;
    }

    std::uint64_t pad(std::uint64_t n) const { return (n + alignment - 1) / alignment * alignment; }

    std::uint32_t version = 3;
    std::uint64_t alignment = 32;  // used for padding; set "general.alignment" as well when it is not 32
    std::vector<Value> values;
    std::vector<Tensor> tensors;
};

}  // namespace gearkv::test
