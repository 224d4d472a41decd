// What a session of a model will take of memory, and which SPEC and context fit what there is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "gearkv/session.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

// The most bytes a session takes while n_ctx tokens are fed, in prompts of any length and one by one.
struct SessionBytes {
    std::uint64_t weights = 0;  // tensors of the mapped file, shared by all sessions of a model
    std::uint64_t cache = 0;    // blocks and buffers, as bytes_required
    std::uint64_t scratch =
        0;  // activations, working memory, tables, and a chunk of a prompt before it is compressed
    std::uint64_t total() const noexcept { return weights + cache + scratch; }
};

// For a session of this configuration on this executor. Nothing is left of the memory taken to find out, a
// few MiB at most. auto:BITS is counted at an even share of its bits, which its rates keep within. Errors:
// those of Session::create.
Status session_bytes(const Model& model, const SessionConfig& config, Executor& executor,
                     SessionBytes* out) noexcept;

// What is wanted, and what is free to choose.
struct FitRequest {
    std::uint64_t max_bytes = 0;    // for all of it
    std::uint64_t other_bytes = 0;  // of them taken already: the program, a vocabulary
    // The SPEC, or none: then the first of f16, gear-4, gear-3, gear-2 and gear-1 that fits.
    std::string spec;
    // Tokens of context, or 0: the trained context if it fits, else as much as does.
    std::uint32_t n_ctx = 0;
    SessionConfig session;  // all else
};

// A SPEC and a context, with what they take.
struct FitRow {
    std::string spec;
    std::uint32_t n_ctx = 0;
    std::uint32_t chunk = 0;
    SessionBytes bytes;
    bool fits = false;
};

struct Fit {
    // Whether anything does that is what was wanted. When nothing does, `choice` is what needs least.
    bool fits = false;
    FitRow choice;
    std::string reason;  // for people, one sentence about the choice or about what would fit
    // Every SPEC to choose from, with the context that is wanted and the longest one that fits.
    std::vector<FitRow> table;
};

// Chooses. With a free context that does not fit whole in f16 or gear-4 to gear-2, 4,096 tokens at fewer bits
// are worth more than fewer at more: of gear-4 to gear-1 the first that has room for so many is taken, with
// all it has room for. When nothing fits, chunks of 64 tokens are tried. Contexts are multiples of 256 unless they are given
// or the trained one. Errors: as session_bytes; *out is untouched then.
Status fit_session(const Model& model, const FitRequest& request, Executor& executor, Fit* out) noexcept;

}  // namespace gearkv
#pragma GCC visibility pop
