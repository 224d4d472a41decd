// Asking for memory while something else is worked on.
#pragma once

#include "kernels.hpp"

namespace gearkv {
namespace {

// The lines of a few bytes, a few at each of n_steps steps: all at once they would fill the processor's queue
// of misses, and the work would wait as long as for the bytes themselves.
class AheadLines {
  public:
    AheadLines(const Ahead& ahead, std::size_t n_steps)
        : next_(static_cast<const char*>(ahead.bytes)), n_left_((ahead.n_bytes + 63) / 64) {
        if (n_steps == 0 || next_ == nullptr) n_left_ = 0;
        per_step_ = n_left_ == 0 ? 0 : (n_left_ + n_steps - 1) / n_steps;
    }
    [[gnu::always_inline]] void step() {
        if (n_left_ == 0) return;
        const std::size_t n = n_left_ < per_step_ ? n_left_ : per_step_;
        for (std::size_t i = 0; i < n; ++i)
            __builtin_prefetch(next_ + i * 64, 0, 2);
        next_ += n * 64;
        n_left_ -= n;
    }

  private:
    const char* next_;
    std::size_t n_left_, per_step_;
};

}  // namespace
}  // namespace gearkv
