// Memory of one cache: everything goes through the caller's allocator and is counted.
#pragma once

#include <cstdint>
#include <cstring>

#include "format/block.hpp"
#include "gearkv/memory.hpp"

namespace gearkv {

// What a piece of memory serves; blocks are counted by part from their headers.
enum class Use : std::uint8_t { block, buffer, scratch, table };
inline constexpr std::size_t n_uses = 4;

// Bytes held for each use.
class HeldBytes {
  public:
    std::uint64_t& operator[](Use use) noexcept { return bytes_[static_cast<std::size_t>(use)]; }
    std::uint64_t operator[](Use use) const noexcept { return bytes_[static_cast<std::size_t>(use)]; }
    std::uint64_t total() const noexcept {
        std::uint64_t sum = 0;
        for (const std::uint64_t n : bytes_)
            sum += n;
        return sum;
    }

  private:
    std::uint64_t bytes_[n_uses] = {};
};

// What one cache holds of the caller's memory, alone or together with others, and how much it may.
class MemoryLedger {
  public:
    // max_bytes of 0: no limit.
    MemoryLedger(const Allocator& allocator, std::uint64_t max_bytes) noexcept
        : allocator_(allocator), max_bytes_(max_bytes) {}

    // 64-byte aligned, counted in *held; null when the allocator has none or the limit is reached.
    void* take(std::uint64_t n_bytes, Use use, HeldBytes* held) noexcept {
        over_limit_ = max_bytes_ > 0 && (n_bytes > max_bytes_ || total_ > max_bytes_ - n_bytes);
        if (over_limit_) return nullptr;
        void* pointer = allocator_.allocate(allocator_.context, n_bytes, block_alignment);
        if (pointer != nullptr) count(n_bytes, use, held);
        return pointer;
    }
    void give_back(void* pointer, std::uint64_t n_bytes, Use use, HeldBytes* held) noexcept {
        if (pointer == nullptr) return;
        allocator_.release(allocator_.context, pointer, n_bytes);
        discount(n_bytes, use, held);
    }
    // Memory that came or goes by other ways than take and give_back.
    void count(std::uint64_t n_bytes, Use use, HeldBytes* held) noexcept {
        (*held)[use] += n_bytes;
        total_ += n_bytes;
    }
    void discount(std::uint64_t n_bytes, Use use, HeldBytes* held) noexcept {
        (*held)[use] -= n_bytes;
        total_ -= n_bytes;
    }
    // What is counted in `held` is this cache's too, or no longer.
    void join(const HeldBytes& held) noexcept { total_ += held.total(); }
    void leave(const HeldBytes& held) noexcept { total_ -= held.total(); }

    std::uint64_t total() const noexcept { return total_; }
    std::uint64_t max_bytes() const noexcept { return max_bytes_; }
    // Whether it was the limit that refused the last take.
    bool over_limit() const noexcept { return over_limit_; }
    const Allocator& allocator() const noexcept { return allocator_; }

  private:
    Allocator allocator_;
    std::uint64_t max_bytes_;
    std::uint64_t total_ = 0;
    bool over_limit_ = false;
};

// Where a part of a cache takes its memory from and counts it.
class Memory {
  public:
    Memory(MemoryLedger* ledger, HeldBytes* held) noexcept : ledger_(ledger), held_(held) {}
    void* take(std::uint64_t n_bytes, Use use) const noexcept { return ledger_->take(n_bytes, use, held_); }
    void give_back(void* pointer, std::uint64_t n_bytes, Use use) const noexcept {
        ledger_->give_back(pointer, n_bytes, use, held_);
    }
    void count(std::uint64_t n_bytes, Use use) const noexcept { ledger_->count(n_bytes, use, held_); }
    void discount(std::uint64_t n_bytes, Use use) const noexcept { ledger_->discount(n_bytes, use, held_); }
    const Allocator& allocator() const noexcept { return ledger_->allocator(); }

  private:
    MemoryLedger* ledger_;
    HeldBytes* held_;
};

// One run of memory that grows on demand and forgets its contents when it does.
class Scratch {
  public:
    // False when the allocator has none; what was there stays.
    bool ensure(const Memory& memory, std::uint64_t n_bytes) noexcept {
        if (n_bytes <= n_bytes_) return true;
        void* larger = memory.take(n_bytes, Use::scratch);
        if (larger == nullptr) return false;
        free(memory);
        data_ = larger;
        n_bytes_ = n_bytes;
        return true;
    }
    void free(const Memory& memory) noexcept {
        memory.give_back(data_, n_bytes_, Use::scratch);
        data_ = nullptr;
        n_bytes_ = 0;
    }
    void* data() const noexcept { return data_; }
    std::uint64_t n_bytes() const noexcept { return n_bytes_; }

  private:
    void* data_ = nullptr;
    std::uint64_t n_bytes_ = 0;
};

}  // namespace gearkv
