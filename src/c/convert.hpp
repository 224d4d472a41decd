// Between the C ABI and the C++ one: handles are the addresses of C++ objects, structures grow at their ends.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "gearkv/cache.hpp"
#include "gearkv/gearkv.h"

namespace gearkv::c {

// The number of a code; GEARKV_DECODER_ERROR for none that has one.
gearkv_code plain(Code code) noexcept;

// Writes a status to *error, unless that is null, and returns its code.
gearkv_code report(const Status& status, gearkv_error* error) noexcept;

inline Cache* cpp(gearkv_cache* cache) noexcept {
    return reinterpret_cast<Cache*>(cache);
}
inline const Cache* cpp(const gearkv_cache* cache) noexcept {
    return reinterpret_cast<const Cache*>(cache);
}
inline Workspace* cpp(gearkv_workspace* workspace) noexcept {
    return reinterpret_cast<Workspace*>(workspace);
}
inline Executor& cpp(gearkv_executor* executor) noexcept {
    return executor == nullptr ? serial_executor() : *reinterpret_cast<Executor*>(executor);
}
inline Allocator cpp(const gearkv_allocator& allocator) noexcept {
    return {allocator.allocate, allocator.release, allocator.context};
}
inline gearkv_allocator plain(const Allocator& allocator) noexcept {
    return {allocator.allocate, allocator.release, allocator.context};
}

inline const LayerDims* cpp(const gearkv_layer_dims* dims) noexcept {
    static_assert(sizeof(LayerDims) == sizeof(gearkv_layer_dims) &&
                  offsetof(LayerDims, key_dim) == offsetof(gearkv_layer_dims, key_dim) &&
                  offsetof(LayerDims, value_dim) == offsetof(gearkv_layer_dims, value_dim));
    return reinterpret_cast<const LayerDims*>(dims);
}

inline bool is_level(gearkv_level level) noexcept {
    return static_cast<unsigned>(level) <= n_levels;
}

inline Status null_argument(const char* name) noexcept {
    return Status::error(Code::invalid_argument, "%s is null", name);
}

// Takes what the caller's header knows of a structure; the rest of *out stays as it is. Errors:
// invalid_argument.
template <class T>
Status take(const T* in, const char* name, T* out) noexcept {
    static_assert(offsetof(T, struct_size) == 0);
    if (in == nullptr) return null_argument(name);
    const std::size_t size = in->struct_size;
    if (size < sizeof(std::size_t)) {
        return Status::error(Code::invalid_argument,
                             "struct_size of %s is %zu, expected that of its type, %zu", name, size,
                             sizeof(T));
    }
    const auto* bytes = reinterpret_cast<const unsigned char*>(in);
    if (size > sizeof(T)) {
        const unsigned char* end = bytes + size;
        const unsigned char* set =
            std::find_if(bytes + sizeof(T), end, [](unsigned char x) { return x != 0; });
        if (set != end) {
            return Status::error(Code::invalid_argument,
                                 "%s sets a field at byte %td, this library knows %zu bytes of it", name,
                                 set - bytes, sizeof(T));
        }
    }
    std::memcpy(static_cast<void*>(out), bytes, std::min(size, sizeof(T)));
    out->struct_size = sizeof(T);
    return {};
}

// Whether a structure can be written to. Errors: invalid_argument.
template <class T>
Status check_output(const T* out, const char* name) noexcept {
    if (out == nullptr) return null_argument(name);
    if (out->struct_size >= sizeof(std::size_t)) return {};
    return Status::error(Code::invalid_argument, "struct_size of %s is %zu, expected that of its type, %zu",
                         name, out->struct_size, sizeof(T));
}

// Gives as much of it as the caller's header knows, and zeros for what this library does not.
template <class T>
void give(const T& value, T* out) noexcept {
    const std::size_t size = out->struct_size;
    std::memcpy(static_cast<void*>(out), &value, std::min(size, sizeof(T)));
    if (size > sizeof(T)) std::memset(reinterpret_cast<unsigned char*>(out) + sizeof(T), 0, size - sizeof(T));
    out->struct_size = size;
}

// What a configuration says, and its SPEC. Errors: invalid_argument, bad_spec.
Status take_config(const gearkv_config* in, CacheConfig* out) noexcept;

// Functions of C as those of the library.
struct Writer {
    gearkv_write write;
    void* context;
};
inline bool write_through(void* context, const void* bytes, std::size_t n_bytes) {
    const auto* writer = static_cast<const Writer*>(context);
    return writer->write(writer->context, bytes, n_bytes) != 0;
}
struct Reader {
    gearkv_read read;
    void* context;
};
inline bool read_through(void* context, void* to, std::size_t n_bytes, std::size_t* n_read) {
    const auto* reader = static_cast<const Reader*>(context);
    return reader->read(reader->context, to, n_bytes, n_read) != 0;
}

}  // namespace gearkv::c
