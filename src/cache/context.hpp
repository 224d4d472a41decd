// What all layers of a cache share.
#pragma once

#include "cache/error_estimate.hpp"
#include "gearkv/cache.hpp"
#include "memory/ledger.hpp"

namespace gearkv {

struct CacheContext {
    CacheConfig config;
    const Kernels* kernels = nullptr;
    MemoryLedger ledger;
    HeldBytes held;                       // beside the layers
    Scratch* compress_scratch = nullptr;  // of the cache's working memory
    Scratch* attend_scratch = nullptr;    // likewise, at least a slot for every KV head
    ErrorEstimate errors;

    explicit CacheContext(const CacheConfig& c) noexcept : config(c), ledger(c.allocator, c.max_bytes) {}
    Memory memory() noexcept { return {&ledger, &held}; }
};

// After a take that failed: over_budget when the cache's limit was the reason, else out_of_memory.
Status memory_error(const CacheContext& context, const char* format, ...) noexcept
    __attribute__((format(printf, 2, 3)));

}  // namespace gearkv
