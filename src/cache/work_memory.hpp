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

// Scratch to compress a full buffer, whatever its layer. False when a block cannot be laid out.
bool most_compress_bytes(const CacheConfig& config, std::uint64_t* most) noexcept;
// Few heads and rows are split over the tokens, into parts of at least 1,024.
std::uint64_t parts_of(std::uint64_t n_tokens, std::uint64_t n_units) noexcept;
// What one cache's call of attend takes: slots, and parts of its longest sequence.
std::uint64_t call_bytes(const CacheConfig& config, const LayerDims& dims, std::uint64_t slot_bytes,
                         std::uint32_t n_queries, std::uint32_t n_heads, std::uint32_t n_threads) noexcept;

struct WorkMemory {
    KvRun* runs = nullptr;  // of the layers being attended
    std::uint64_t max_runs = 0;
    Scratch jobs;      // of a batch
    Scratch attend;    // [slot] of attend_scratch_bytes, and parts of outputs
    Scratch turns;     // rotations of the runs being attended
    Scratch select;    // which tiles are attended, and what choosing them takes
    Scratch compress;  // of the pieces being compressed
    Scratch batch;     // of pieces of other caches at the same time

    // What calls on a cache of this configuration are sure to need. False when memory is short.
    bool create(const CacheConfig& config, const Memory& memory) noexcept;
    static constexpr std::uint64_t least_runs = 4;
    // So many runs there is room for next, so that few calls of many find them too few.
    static constexpr std::uint64_t grown_runs(std::uint64_t max_runs, std::uint64_t n) noexcept {
        return n > 2 * max_runs ? n : 2 * max_runs;
    }
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
