// Working memory of the forward pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace gearkv {

// n floats at a cache line, zero at first: a vector load that crosses a line takes twice the time.
class Floats {
  public:
    // Throws std::bad_alloc.
    explicit Floats(std::size_t n) : n_(n) {
        if (n > SIZE_MAX / sizeof(float) - alignment) throw std::bad_alloc();
        data_.reset(static_cast<float*>(::operator new(n * sizeof(float), std::align_val_t(alignment))));
        std::memset(data_.get(), 0, n * sizeof(float));
    }

    float* data() noexcept { return data_.get(); }
    const float* data() const noexcept { return data_.get(); }
    std::size_t size() const noexcept { return n_; }

  private:
    static constexpr std::size_t alignment = 64;
    struct Release {
        void operator()(float* data) const noexcept { ::operator delete(data, std::align_val_t(alignment)); }
    };

    std::size_t n_;
    std::unique_ptr<float, Release> data_;
};

}  // namespace gearkv
