#include "cache/reopenable.hpp"

#include <algorithm>

namespace gearkv {

bool ReopenableUnits::reserve(const Memory& memory) noexcept {
    if (size_ < capacity_) return true;
    const std::uint64_t capacity = grown(capacity_);
    auto* larger = static_cast<ReopenableUnit*>(memory.take(capacity * sizeof(ReopenableUnit), Use::table));
    if (larger == nullptr) return false;
    std::copy_n(units_, size_, larger);
    memory.give_back(units_, capacity_ * sizeof(ReopenableUnit), Use::table);
    units_ = larger;
    capacity_ = capacity;
    return true;
}

bool ReopenableUnits::copy(const Memory& memory, const ReopenableUnits& other) noexcept {
    for (std::uint64_t i = 0; i < other.size_; ++i) {
        if (!reserve(memory)) return false;
        push(other.units_[i]);
    }
    return true;
}

void ReopenableUnits::destroy(const Memory& memory) noexcept {
    memory.give_back(units_, capacity_ * sizeof(ReopenableUnit), Use::table);
    units_ = nullptr;
    size_ = capacity_ = 0;
}

std::uint64_t ReopenableUnits::expire(std::uint64_t n_tokens, std::uint64_t n_rollback) noexcept {
    std::uint64_t n = 0, n_rows = 0;
    for (; n < size_ && n_tokens > units_[n].closed_at + n_rollback; ++n)
        n_rows += units_[n].unit.n_tokens;
    std::copy(units_ + n, units_ + size_, units_);
    size_ -= n;
    return n_rows;
}

}  // namespace gearkv
