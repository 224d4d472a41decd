// The rotary embedding by which keys of a layer have moved: all of them by the same.
#pragma once

#include "gearkv/rope.hpp"
#include "memory/ledger.hpp"

namespace gearkv {

// Radians a token that are finite over every distance there can be.
bool is_frequency(double x) noexcept;
bool is_same(const RopeConfig& a, const RopeConfig& b) noexcept;
// Errors: wrong_size, invalid_argument, non_finite.
Status check_rope(const RopeConfig& rope, std::uint32_t key_dim) noexcept;

// None is in use until keys move. Then it is that of the cache's configuration, which all calls are told, or
// another one, of which there is a copy.
class RopeInUse {
  public:
    bool is_in_use() const noexcept { return source_ != Source::none; }
    const RopeConfig& get(const RopeConfig& of_cache) const noexcept {
        return source_ == Source::own ? own_ : of_cache;
    }
    // Null when it is that of the configuration, or none.
    const RopeConfig* own() const noexcept { return source_ == Source::own ? &own_ : nullptr; }
    // Whether keys may move by `rope`, for all that have moved before.
    bool agrees(const RopeConfig& rope, const RopeConfig& of_cache) const noexcept;

    // Room for a rope that agrees. False when memory is short.
    bool reserve(const Memory& memory, const RopeConfig& rope, const RopeConfig& of_cache) noexcept;
    // After reserve.
    void use(const RopeConfig& rope, const RopeConfig& of_cache) noexcept;
    // No token is left.
    void forget(const Memory& memory) noexcept;
    // False when memory is short.
    bool copy(const Memory& memory, const RopeInUse& other) noexcept;

  private:
    bool make_room(const Memory& memory, std::uint32_t n_pairs) noexcept;
    // After make_room.
    void keep(const RopeConfig& rope) noexcept;

    enum class Source : std::uint8_t { none, of_cache, own };
    Source source_ = Source::none;
    double* frequencies_ = nullptr;  // [n_frequencies_], of own_ or reserved
    std::uint32_t n_frequencies_ = 0;
    RopeConfig own_;
};

}  // namespace gearkv
