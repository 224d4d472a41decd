#include "cache/rope_in_use.hpp"

#include <algorithm>
#include <cmath>

namespace gearkv {

bool is_frequency(double x) noexcept {
    return std::isfinite(x * 0x1p31);
}

// Without pairs there is nothing to pair up.
bool is_same(const RopeConfig& a, const RopeConfig& b) noexcept {
    return a.n_pairs == b.n_pairs && (a.n_pairs == 0 || a.interleaved == b.interleaved) &&
           std::equal(a.frequencies, a.frequencies + a.n_pairs, b.frequencies);
}

Status check_rope(const RopeConfig& rope, std::uint32_t key_dim) noexcept {
    if (rope.n_pairs > key_dim / 2) {
        return Status::error(Code::wrong_size, "rope.n_pairs is %u, expected at most half of the %u channels",
                             rope.n_pairs, key_dim);
    }
    if (rope.n_pairs > 0 && rope.frequencies == nullptr)
        return Status::error(Code::invalid_argument, "rope.frequencies is null");
    for (std::uint32_t i = 0; i < rope.n_pairs; ++i) {
        if (is_frequency(rope.frequencies[i])) continue;
        return Status::error(Code::non_finite, "rope.frequencies[%u] is %g, expected finite over 2^31 tokens",
                             i, rope.frequencies[i]);
    }
    return {};
}

bool RopeInUse::agrees(const RopeConfig& rope, const RopeConfig& of_cache) const noexcept {
    return !is_in_use() || is_same(rope, get(of_cache));
}

bool RopeInUse::reserve(const Memory& memory, const RopeConfig& rope, const RopeConfig& of_cache) noexcept {
    return is_in_use() || is_same(rope, of_cache) || make_room(memory, rope.n_pairs);
}

bool RopeInUse::make_room(const Memory& memory, std::uint32_t n_pairs) noexcept {
    if (n_pairs <= n_frequencies_) return true;
    forget(memory);
    frequencies_ = static_cast<double*>(memory.take(n_pairs * sizeof(double), Use::table));
    if (frequencies_ == nullptr) return false;
    n_frequencies_ = n_pairs;
    return true;
}

void RopeInUse::use(const RopeConfig& rope, const RopeConfig& of_cache) noexcept {
    if (is_in_use()) return;
    if (is_same(rope, of_cache)) {
        source_ = Source::of_cache;
    } else {
        keep(rope);
    }
}

void RopeInUse::keep(const RopeConfig& rope) noexcept {
    source_ = Source::own;
    own_ = rope;
    own_.frequencies = frequencies_;
    std::copy_n(rope.frequencies, rope.n_pairs, frequencies_);
}

void RopeInUse::forget(const Memory& memory) noexcept {
    memory.give_back(frequencies_, n_frequencies_ * sizeof(double), Use::table);
    frequencies_ = nullptr;
    n_frequencies_ = 0;
    source_ = Source::none;
    own_ = {};
}

bool RopeInUse::copy(const Memory& memory, const RopeInUse& other) noexcept {
    if (other.source_ == Source::own) {
        if (!make_room(memory, other.own_.n_pairs)) return false;
        keep(other.own_);
    }
    source_ = other.source_;
    return true;
}

}  // namespace gearkv
