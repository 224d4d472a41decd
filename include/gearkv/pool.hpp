// Memory for the caches of many sequences: taken once, never grown, handed out as blocks of a few sizes.
#pragma once

#include <cstdint>
#include <memory>

#include "gearkv/memory.hpp"
#include "gearkv/status.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

struct PoolOptions {
    std::uint64_t n_bytes = 0;           // to hand out, a multiple of slab_bytes
    std::uint64_t slab_bytes = 1 << 16;  // a power of two in [4 KiB, 1 GiB]
    // Where all of it comes from; outlives the pool. With page_allocator({.prefault = true}) no block has its
    // first touch to pay for.
    Allocator from = page_allocator();
};

// What a server decides on admission by.
struct PoolStats {
    std::uint64_t n_bytes = 0;          // of the pool
    std::uint64_t held_bytes = 0;       // in blocks that are out, each a multiple of 64
    std::uint64_t most_held_bytes = 0;  // ever
    std::uint64_t taken_bytes = 0;      // in slabs that are in use, wholly or in part
    std::uint64_t longest_bytes = 0;    // longest run of free slabs: the largest block to be had now
    std::uint64_t n_blocks = 0;         // that are out
    std::uint64_t n_free_slabs = 0;
    // Blocks given back that were not out, or had another size (in multiples of 64 bytes): the caller's
    // error, which is counted and changes nothing.
    std::uint64_t n_refused = 0;
};

// A pool of n_bytes, cut in slabs. Slabs in a row form a run, which serves blocks of one size, rounded up to
// 64 bytes, as long as any of them is out, and is free for any other size then. A run has at most 1/16 behind
// its last block; it may have more when no run as long as that takes is free, and while so few blocks of its
// size are out that such a run would stand empty. Beside the slabs the pool takes 32 bytes + slab_bytes / 512
// for each of them and about 8 KiB, all at its creation.
//
// Taking a block and giving it back takes a lock and never asks the system. Any thread may do so at any time.
class BlockPool {
  public:
    // Errors: invalid_argument, wrong_size (n_bytes, slab_bytes), out_of_memory; *out is untouched then.
    static Status create(const PoolOptions& options, std::unique_ptr<BlockPool>* out) noexcept;
    // Gives all memory back; that blocks are still out is the caller's error.
    ~BlockPool();
    BlockPool(const BlockPool&) = delete;
    BlockPool& operator=(const BlockPool&) = delete;

    // For CacheConfig::allocator and the like, as long as the pool lives. Blocks are 64-byte aligned; null
    // when no run is free that holds one, and then nothing has changed. Given back is what was taken, once;
    // all else is counted in n_refused and stays as it is.
    Allocator allocator() noexcept;
    PoolStats stats() const noexcept;

  private:
    struct Impl;
    explicit BlockPool(Impl* impl) noexcept : impl_(impl) {}
    Impl* impl_;
};

}  // namespace gearkv
#pragma GCC visibility pop
