// Compressed blocks and who holds them: a block is written once and may then be shown by any number of
// caches.
#pragma once

#include <algorithm>
#include <atomic>

#include "gearkv/executor.hpp"
#include "memory/ledger.hpp"

namespace gearkv {

// Memory that blocks lie in. The last user destroys it, on whatever thread that is.
struct BlockOwner {
    std::atomic<std::uint32_t> n_users{1};
    void (*destroy)(BlockOwner* self) noexcept = nullptr;

    void add_user() noexcept { n_users.fetch_add(1, std::memory_order_relaxed); }
    void drop_user() noexcept {
        if (n_users.fetch_sub(1, std::memory_order_acq_rel) == 1) destroy(this);
    }
};

// Beside every pair of blocks, in the same piece of memory.
inline constexpr std::uint64_t bytes_beside_block = block_alignment;

// What the bytes of a pair from a file must be. Whoever needs them first looks.
struct BlockCheck {
    std::uint64_t key_checksum = 0, value_checksum = 0;
    std::atomic<bool> is_done{false};
};

// Keys and values of the same tokens, or of some of them: a block keeps its bytes and shows tokens
// [first, first + n_tokens). Each entry is one user of its owner.
struct ClosedBlock {
    BlockOwner* owner = nullptr;
    const void* key = nullptr;
    const void* value = nullptr;
    std::uint32_t first = 0;
    std::uint32_t n_tokens = 0;
    std::int64_t shift = 0;               // of the tokens' positions since their keys were rotated
    bool is_mapped = false;               // in a file, not in the caller's memory
    bool is_reduced[2] = {false, false};  // by kind: it once took more
    std::uint32_t n_saved = 0;            // so much more, in block_alignment
    BlockCheck* check = nullptr;          // of bytes from a file, in the owner's memory

    std::uint64_t n_bytes() const noexcept;  // of both
};

// Whether a block from a file, of the right header, is what was written there. Errors: damaged, bad_block.
Status check_block(const BlockView& view, std::uint64_t checksum) noexcept;

// A pair of blocks yet to be written, in the caller's memory; null when there is none. It counts as the
// holder's until drop_block.
struct NewBlock {
    BlockOwner* owner = nullptr;
    void* key = nullptr;
    void* value = nullptr;
};
bool take_block(const Memory& memory, std::uint64_t key_bytes, std::uint64_t value_bytes,
                NewBlock* out) noexcept;
void drop_block(const Memory& memory, const NewBlock& block) noexcept;
// It counts as another holder's.
void hand_over_block(const Memory& from, const Memory& to, const NewBlock& block) noexcept;

// The closed blocks of one layer, oldest first, and what they have in common.
class BlockTable {
  public:
    // Of an empty one. False when memory is short; destroy() is right in any case.
    bool copy(const Memory& memory, const BlockTable& other) noexcept;
    void destroy(const Memory& memory) noexcept;

    // Room for n more entries: a table grows with its blocks.
    bool reserve(const Memory& memory, std::uint64_t n) noexcept;
    // Entries of a table that had `capacity` and is to hold n.
    static constexpr std::uint64_t grown(std::uint64_t capacity, std::uint64_t n) noexcept {
        constexpr std::uint64_t least = 4;
        return std::max({2 * capacity, n, least});
    }
    // Takes over the caller's use of the owner and what it counts.
    void push(const ClosedBlock& block) noexcept;
    // Drops all behind the first n_tokens. Profiles stay, also without a block.
    void truncate(const Memory& memory, std::uint64_t n_tokens) noexcept;
    // Takes the last block out. Its user and what it counts in memory go to the caller; the profiles that it
    // carries for others go with it.
    void pop(const Memory& memory) noexcept;
    void forget_profiles(const Memory& memory) noexcept;
    // Drops tokens [first, first + n) and moves the positions of those behind them down by n_moved. There is
    // room for one more entry, and profiles are kept.
    void remove(const Memory& memory, std::uint64_t first, std::uint64_t n, std::uint64_t n_moved) noexcept;
    // Whether block i is in memory and has outliers, or low rank where that may go too.
    bool can_reduce(std::uint64_t i, bool drop_low_rank) const noexcept;
    // Puts one without these in its place. False when memory is short.
    bool reduce(const Memory& memory, std::uint64_t i, bool drop_low_rank) noexcept;
    // Puts a smaller pair of the same tokens in the place of block i, and in that of all entries that show
    // it.
    void replace(const Memory& memory, std::uint64_t i, const NewBlock& smaller) noexcept;
    // Before the first block goes and others stay: what it carries for all of them gets a place of its own.
    bool keep_profiles(const Memory& memory) noexcept;
    // Profiles of `kind` from elsewhere, n_bytes of them.
    bool set_profiles(const Memory& memory, TensorKind kind, const void* bytes,
                      std::uint64_t n_bytes) noexcept;

    std::uint64_t size() const noexcept { return size_; }
    std::uint64_t n_tokens() const noexcept { return n_tokens_; }
    const ClosedBlock& operator[](std::uint64_t i) const noexcept { return blocks_[i]; }
    // Looks at the bytes of the first n blocks that come from a file and that nobody has looked at. Errors:
    // damaged.
    Status check(std::uint64_t n, Executor& executor) const noexcept;
    BlockView view(std::uint64_t i, TensorKind kind) const noexcept { return view_of(blocks_[i], kind); }
    // The same of a block that is about to be pushed.
    BlockView view_of(const ClosedBlock& block, TensorKind kind) const noexcept;
    // What the first block carries for all; null but for a trellis.
    const unsigned char* profiles(TensorKind kind) const noexcept;
    // Null while the first block is there, also where a cut that there was no memory for has kept a copy.
    const unsigned char* own_profiles(TensorKind kind) const noexcept;
    std::uint64_t profile_bytes(TensorKind kind) const noexcept {
        return profile_bytes_[static_cast<int>(kind)];
    }
    // Of all blocks, mapped ones included.
    const BlockBytes& bytes(TensorKind kind) const noexcept { return bytes_[static_cast<int>(kind)]; }
    std::uint64_t mapped_bytes() const noexcept { return mapped_bytes_; }
    // Blocks that once took more, keys and values each; how much more.
    std::uint64_t n_reduced() const noexcept { return n_reduced_; }
    std::uint64_t saved_bytes() const noexcept { return n_saved_ * block_alignment; }
    // Of blocks that another table shows too. Of one of them somebody may be a user without showing it.
    std::uint64_t shared_bytes(const BlockOwner* used) const noexcept;

  private:
    // Whether entry i lies in the same block as the one before it.
    bool continues(std::uint64_t i) const noexcept { return i > 0 && blocks_[i].key == blocks_[i - 1].key; }
    void count(const ClosedBlock& block, std::uint64_t sign) noexcept;
    // Before entry i is overwritten and its user dropped; `is_last` when no other entry of its block stays.
    void uncount(const Memory& memory, std::uint64_t i, bool is_last) noexcept;
    void forget_profiles_of(const Memory& memory, TensorKind kind) noexcept;

    ClosedBlock* blocks_ = nullptr;
    std::uint64_t size_ = 0;
    std::uint64_t capacity_ = 0;
    std::uint64_t n_tokens_ = 0;
    BlockBytes bytes_[2];  // by kind
    std::uint64_t mapped_bytes_ = 0;
    std::uint64_t n_reduced_ = 0;
    std::uint64_t n_saved_ = 0;                        // in block_alignment
    unsigned char* profiles_[2] = {nullptr, nullptr};  // by kind, when the first block is gone
    std::uint64_t profile_bytes_[2] = {0, 0};
};

}  // namespace gearkv
