// Arithmetic on numbers that come from a file. Every size, count and offset of a model goes through here.
#pragma once

#include <cstdint>

namespace gearkv {

// An unsigned 64-bit number that remembers whether any step of its computation overflowed. Factors are
// checked one by one, so a product that wraps to 0 or to something small is caught as well.
class Checked {
  public:
    constexpr Checked(std::uint64_t value) noexcept : value_(value) {}

    constexpr bool valid() const noexcept { return valid_; }
    // Meaningful when valid().
    constexpr std::uint64_t value() const noexcept { return value_; }
    // Whether the result is exact and at most `limit`.
    constexpr bool at_most(std::uint64_t limit) const noexcept { return valid_ && value_ <= limit; }

    friend constexpr Checked operator+(Checked a, Checked b) noexcept {
        Checked sum(0);
        sum.valid_ = !__builtin_add_overflow(a.value_, b.value_, &sum.value_) && a.valid_ && b.valid_;
        return sum;
    }
    friend constexpr Checked operator*(Checked a, Checked b) noexcept {
        Checked product(0);
        product.valid_ = !__builtin_mul_overflow(a.value_, b.value_, &product.value_) && a.valid_ && b.valid_;
        return product;
    }

  private:
    std::uint64_t value_;
    bool valid_ = true;
};

// The next multiple of `multiple` (> 0).
constexpr Checked round_up_checked(Checked n, std::uint64_t multiple) noexcept {
    const std::uint64_t remainder = n.value() % multiple;
    return remainder == 0 ? n : n + Checked(multiple - remainder);
}

}  // namespace gearkv
