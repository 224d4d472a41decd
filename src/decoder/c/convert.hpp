// Between the C ABI of the decoder and the C++ one.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "c/convert.hpp"
#include "decoder/gguf/guarded.hpp"
#include "gearkv/gearkv_decoder.h"
#include "gearkv/model.hpp"
#include "gearkv/session.hpp"

struct gearkv_tokenizer {
    std::shared_ptr<const gearkv::Tokenizer> tokenizer;
};

struct gearkv_model {
    std::shared_ptr<const gearkv::Model> model;
    gearkv_tokenizer tokenizer;
};

namespace gearkv::c {

// Does what may meet exceptions, and reports what came of it.
template <class Function>
gearkv_code answer(gearkv_error* error, Function&& fn) noexcept {
    return report(guarded(fn), error);
}

// What a step of a handle with a text appends is all that is shown, and is the caller's until the next one. A
// step that fails leaves what the last one gave.
template <class Handle, class Step>
gearkv_code take_step(Handle* handle, const char* name, const char** text, std::size_t* n_bytes,
                      const char* n_name, gearkv_error* error, const Step& step) noexcept {
    return answer(error, [&]() -> Status {
        if (handle == nullptr) return null_argument(name);
        if (text == nullptr) return null_argument("text");
        if (n_bytes == nullptr) return null_argument(n_name);
        std::string shown;
        if (Status status = step(&shown); !status.ok()) return status;
        handle->text = std::move(shown);
        *text = handle->text.c_str();
        *n_bytes = handle->text.size();
        return {};
    });
}

inline Sampler* cpp(gearkv_sampler* sampler) noexcept {
    return reinterpret_cast<Sampler*>(sampler);
}
inline const Sampler* cpp(const gearkv_sampler* sampler) noexcept {
    return reinterpret_cast<const Sampler*>(sampler);
}

// What the handle of a session has; null for null.
Session* session_of(gearkv_session* session) noexcept;

// A text of the caller's. Errors: invalid_argument.
inline Status take_text(const char* text, std::size_t n_bytes, const char* name,
                        std::string_view* out) noexcept {
    if (text == nullptr && n_bytes > 0) return null_argument(name);
    *out = text == nullptr ? std::string_view() : std::string_view(text, n_bytes);
    return {};
}

// Options that may be null. Errors: invalid_argument.
template <class T>
Status take_options(const T* in, T* out) noexcept {
    return in == nullptr ? Status() : take(in, "options", out);
}

// Writes n values where there is room for them, and their number in any case. Errors: invalid_argument,
// wrong_size.
template <class T, class Out>
Status give_all(const T* from, std::size_t n, Out* out, std::size_t n_room, std::size_t* n_out,
                const char* what) noexcept {
    static_assert(sizeof(T) == sizeof(Out));
    if (n_out == nullptr)
        return Status::error(Code::invalid_argument, "the output of the number of %s is null", what);
    *n_out = n;
    if (n > n_room || (out == nullptr && n > 0))
        return Status::error(Code::wrong_size, "room for %zu %s, %zu are needed", out == nullptr ? 0 : n_room,
                             what, n);
    if (n > 0) std::memcpy(out, from, n * sizeof(T));
    return {};
}

// The same for a text, with a zero behind it. Errors: as above.
inline Status give_text(const std::string& text, char* out, std::size_t n_room,
                        std::size_t* n_bytes) noexcept {
    if (n_bytes == nullptr)
        return Status::error(Code::invalid_argument, "the output of the number of bytes is null");
    *n_bytes = text.size();
    if (out == nullptr || n_room <= text.size()) {
        return Status::error(Code::wrong_size, "room for %zu bytes, %zu are needed",
                             out == nullptr ? 0 : n_room, text.size() + 1);
    }
    std::memcpy(out, text.c_str(), text.size() + 1);
    return {};
}

}  // namespace gearkv::c
