// Working memory: what calls need and forget.
#pragma once

#include "attention/attend.hpp"
#include "gearkv/cache.hpp"
#include "memory/ledger.hpp"

namespace gearkv {

// What attention takes, by the layer that takes most.
struct AttendBytes {
    std::uint64_t of_slot = 0;
    std::uint64_t of_heads = 0;  // a slot for each KV head
};
AttendBytes most_attend_bytes(const CacheConfig& config) noexcept;

struct WorkMemory {
    KvRun* runs = nullptr;  // of the layers being attended
    std::uint64_t max_runs = 0;
    Scratch jobs;      // of a batch
    Scratch attend;    // [slot] of attend_scratch_bytes, and parts of outputs
    Scratch turns;     // rotations of the runs being attended
    Scratch compress;  // of the pieces being compressed
    Scratch batch;     // of pieces of other caches at the same time

    // What calls on a cache of this configuration are sure to need. False when memory is short.
    bool create(const CacheConfig& config, const Memory& memory) noexcept;
    // Room for n runs. What it held is forgotten. False when memory is short.
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

}  // namespace gearkv
