// What all layers of a cache share.
#pragma once

#include "cache/error_estimate.hpp"
#include "gearkv/cache.hpp"
#include "memory/ledger.hpp"

namespace gearkv {

// What selections of a layer have read, summed over them.
struct SelectionTally {
    std::uint64_t n = 0;
    double share = 0.0, mass = 0.0;
};

struct CacheContext {
    CacheConfig config;
    const Kernels* kernels = nullptr;
    MemoryLedger ledger;
    HeldBytes held;                       // beside the layers
    Scratch* compress_scratch = nullptr;  // of the cache's working memory
    Scratch* attend_scratch = nullptr;    // likewise, at least a slot for every KV head
    ErrorEstimate errors;
    SelectionTally* selections = nullptr;  // [n_layers], when there was one

    explicit CacheContext(const CacheConfig& c) noexcept : config(c), ledger(c.allocator, c.max_bytes) {}
    Memory memory() noexcept { return {&ledger, &held}; }
};

// After a take that failed: over_budget when the cache's limit was the reason, else out_of_memory.
Status memory_error(const CacheContext& context, const char* format, ...) noexcept
    __attribute__((format(printf, 2, 3)));

}  // namespace gearkv
