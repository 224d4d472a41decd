// What a Cache is made of.
#pragma once

#include "cache/layer.hpp"
#include "cache/rates.hpp"

namespace gearkv {

// What calls need and forget.
struct WorkMemory {
    KvRun* runs = nullptr;  // of the layers being attended
    std::uint64_t max_runs = 0;
    Scratch jobs;      // of a batch
    Scratch attend;    // [slot] of attend_scratch_bytes, and parts of outputs
    Scratch turns;     // rotations of the runs being attended
    Scratch compress;  // of the pieces being compressed
    Scratch batch;     // of pieces of other caches at the same time

    // Room for n runs, of a table that may be cut into more blocks than its tokens would make. What it held
    // is forgotten. False when memory is short.
    bool reserve_runs(const Memory& memory, std::uint64_t n) noexcept;
    void free(const Memory& memory) noexcept;
};

struct Workspace::Impl {
    MemoryLedger ledger;
    HeldBytes held;
    WorkMemory work;

    explicit Impl(const Allocator& allocator) noexcept : ledger(allocator, 0) {}
    Memory memory() noexcept { return {&ledger, &held}; }
};

struct Cache::Impl {
    explicit Impl(const CacheConfig& config) noexcept;

    CacheContext context;
    double* frequencies = nullptr;     // of the rotary embedding, [rope.n_pairs]
    std::uint32_t* windows = nullptr;  // [n_layers], null without
    // [drop_low_rank][n_layers] So many first blocks are known not to shrink any more.
    std::uint64_t* irreducible = nullptr;
    LayerStream** layers = nullptr;  // null: without tokens, and without memory yet
    RateChooser rates;
    Workspace::Impl* workspace = nullptr;
    WorkMemory own_work;  // without a workspace
    WorkMemory& working;
    std::uint64_t slot_bytes = 0;
    bool is_taken = false;  // by the batch that is being put together

    // Where `working` takes its memory from.
    Memory work_memory() noexcept { return workspace == nullptr ? context.memory() : workspace->memory(); }

    // Layers are made too, or taken from `shared`.
    bool create(const Impl* shared) noexcept;
    void destroy() noexcept;
    static Status make(const CacheConfig& config, const Kernels* kernels, const Impl* shared,
                       std::unique_ptr<Cache>* out) noexcept;
    std::uint64_t n_tokens(std::uint32_t layer) const noexcept {
        return layers[layer] == nullptr ? 0 : layers[layer]->n_tokens();
    }
    // Before a layer changes: it is there, and no other cache's. Errors: out_of_memory, over_budget.
    Status own(std::uint32_t layer) noexcept;
    Status own_all() noexcept;
    // Gives back the blocks of a layer without a token from `token` on. Errors: as above, and damaged.
    Status forget_before(std::uint32_t layer, std::uint64_t token) noexcept;
    // After a layer has grown: what its window leaves behind goes, and older blocks shrink to soft_bytes.
    Status keep_within(std::uint32_t layer) noexcept;
    Status shrink(std::uint64_t target_bytes) noexcept;
    // The first block of a layer from i on that can shrink; its number of blocks when there is none.
    std::uint64_t next_reducible(std::uint32_t layer, std::uint64_t i, bool drop_low_rank) noexcept;
    // After blocks of any layer have gone.
    void look_again() noexcept;
    Status check_layer(std::uint32_t layer) const noexcept;
    // Before this layer compresses, if it is about to for the first time.
    Status choose_rates(std::uint32_t layer, Executor& executor) noexcept;
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
