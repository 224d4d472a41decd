// What a Cache is made of.
#pragma once

#include "cache/sequence.hpp"
#include "cache/work_memory.hpp"

namespace gearkv {

struct Cache::Impl : Sequence {
    Workspace::Impl* workspace = nullptr;
    WorkMemory own_work;  // without a workspace
    WorkMemory& working;
    std::uint64_t slot_bytes = 0;
    bool is_taken = false;  // by the batch that is being put together

    explicit Impl(const CacheConfig& config) noexcept;
    // Where `working` takes its memory from.
    Memory work_memory() noexcept { return workspace == nullptr ? context.memory() : workspace->memory(); }
    bool create(const Sequence* shared) noexcept;
    void destroy() noexcept;
    // Closes every full unit of a layer. Errors: of Cache::compress.
    Status compress(std::uint32_t layer, Executor& executor) noexcept;
    // After a layer was attended by n_queries: as CacheConfig::close_prompts says.
    void close_prompt(std::uint32_t layer, std::uint32_t n_queries, Executor& executor) noexcept;
    static Status make(const CacheConfig& config, const Kernels* kernels, const Sequence* shared,
                       std::unique_ptr<Cache>* out) noexcept;
};

// For what saves and loads a cache.
struct CacheAccess {
    using Impl = Cache::Impl;
    using WorkspaceImpl = Workspace::Impl;
    static const Impl& of(const Cache& cache) noexcept { return *cache.impl_; }
    static Impl& of(Cache& cache) noexcept { return *cache.impl_; }
    static Workspace::Impl* of(Workspace* workspace) noexcept {
        return workspace == nullptr ? nullptr : workspace->impl_;
    }
};

}  // namespace gearkv
