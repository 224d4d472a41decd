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

class MemoryLedger {
  public:
    explicit MemoryLedger(const Allocator& allocator) noexcept : allocator_(allocator) {}

    // 64-byte aligned; null when the allocator has none.
    void* take(std::uint64_t n_bytes, Use use) noexcept {
        void* pointer = allocator_.allocate(allocator_.context, n_bytes, block_alignment);
        if (pointer != nullptr) held_[static_cast<std::size_t>(use)] += n_bytes;
        return pointer;
    }
    void give_back(void* pointer, std::uint64_t n_bytes, Use use) noexcept {
        if (pointer == nullptr) return;
        allocator_.release(allocator_.context, pointer, n_bytes);
        held_[static_cast<std::size_t>(use)] -= n_bytes;
    }
    std::uint64_t held(Use use) const noexcept { return held_[static_cast<std::size_t>(use)]; }

  private:
    Allocator allocator_;
    std::uint64_t held_[n_uses] = {};
};

// One run of memory that grows on demand and forgets its contents when it does.
class Scratch {
  public:
    // False when the allocator has none; what was there stays.
    bool ensure(MemoryLedger* ledger, std::uint64_t n_bytes) noexcept {
        if (n_bytes <= n_bytes_) return true;
        void* larger = ledger->take(n_bytes, Use::scratch);
        if (larger == nullptr) return false;
        free(ledger);
        data_ = larger;
        n_bytes_ = n_bytes;
        return true;
    }
    void free(MemoryLedger* ledger) noexcept {
        ledger->give_back(data_, n_bytes_, Use::scratch);
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
