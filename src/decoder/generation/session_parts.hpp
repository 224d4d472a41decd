// What a session is made of, before any of it is there.
#pragma once

#include <vector>

#include "decoder/network/forward.hpp"
#include "decoder/network/model.hpp"
#include "decoder/network/rope.hpp"
#include "gearkv/session.hpp"

namespace gearkv {

struct SessionParts {
    const FileModel* model = nullptr;
    const IntegerKernels* integer = nullptr;  // null: all products in floats
    std::uint32_t n_ctx = 0;
    std::uint32_t chunk = 0;             // at most n_ctx
    Rope rope;                           // of the first layer
    std::vector<std::uint32_t> windows;  // [n_layers], or empty
    CacheConfig cache;                   // points to both

    SessionParts() = default;
    SessionParts(const SessionParts&) = delete;
    SessionParts& operator=(const SessionParts&) = delete;
};

// May throw std::bad_alloc. Errors: invalid_argument.
Status make_parts(const Model& model, const SessionConfig& config, SessionParts* out);

// Null when all products are to be in floats.
const IntegerKernels* integer_kernels(const SessionConfig& config) noexcept;

// Room for so many tokens of a session's list is taken at once.
std::size_t reserved_tokens(std::uint32_t n_ctx) noexcept;

// What a session of these parts allocates beside its cache. Takes some of it to find out; may throw
// std::bad_alloc.
std::uint64_t session_scratch_bytes(const SessionParts& parts, const LinearKernels& kernels,
                                    Executor& executor);

}  // namespace gearkv
