// Units that were closed lately and may be opened again, as long as a rollback can take back the tokens that
// closed them.
#pragma once

#include "cache/closing.hpp"

namespace gearkv {

struct ReopenableUnit {
    ClosedUnit unit;
    std::uint64_t closed_at = 0;   // tokens of the stream then; with one more it would have been closed too
    std::uint64_t exact_from = 0;  // of the stream before
};

// Oldest first. They are the last blocks of the table, and their rows are the tokens set aside, in the same
// order. closed_at never falls.
class ReopenableUnits {
  public:
    // Room for one more. False when memory is short.
    bool reserve(const Memory& memory) noexcept;
    static constexpr std::uint64_t grown(std::uint64_t capacity) noexcept {
        return capacity == 0 ? 4 : 2 * capacity;
    }
    bool copy(const Memory& memory, const ReopenableUnits& other) noexcept;
    void destroy(const Memory& memory) noexcept;

    // After reserve.
    void push(const ReopenableUnit& unit) noexcept { units_[size_++] = unit; }
    // The last one, when it was closed with n_tokens or more; null otherwise.
    const ReopenableUnit* closed_from(std::uint64_t n_tokens) const noexcept {
        return size_ > 0 && units_[size_ - 1].closed_at >= n_tokens ? &units_[size_ - 1] : nullptr;
    }
    void pop() noexcept { --size_; }
    // Forgets those that no rollback of n_rollback reaches any more with n_tokens, and returns how many
    // tokens they have; forgets all.
    std::uint64_t expire(std::uint64_t n_tokens, std::uint64_t n_rollback) noexcept;
    void clear() noexcept { size_ = 0; }

    std::uint64_t size() const noexcept { return size_; }

  private:
    ReopenableUnit* units_ = nullptr;
    std::uint64_t size_ = 0, capacity_ = 0;
};

}  // namespace gearkv
