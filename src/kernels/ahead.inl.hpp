// Asking for memory while something else is worked on.
#pragma once

#include "kernels/kernels.hpp"

namespace gearkv {
namespace {

// The lines of some memory, a few at each of n_steps steps: all at once they would fill the processor's queue
// of misses, and the work would wait as long as for the bytes themselves.
class AheadLines {
  public:
    AheadLines(const Ahead& ahead, std::size_t n_steps)
        : next_(reinterpret_cast<std::uintptr_t>(ahead.bytes)), lines_per_row_((ahead.row_bytes + 63) / 64) {
        n_row_ = lines_per_row_;
        gap_ = ahead.stride - lines_per_row_ * 64;
        n_left_ = n_steps == 0 || next_ == 0 ? 0 : lines_per_row_ * ahead.n_rows;
        per_step_ = n_left_ == 0 ? 0 : (n_left_ + n_steps - 1) / n_steps;
    }
    // With one row of `also`, which is asked for first.
    AheadLines(const Ahead& ahead, const Ahead& also, std::size_t n_steps) : AheadLines(ahead, n_steps) {
        const std::size_t n_lines = (also.row_bytes + 63) / 64;
        if (also.bytes == nullptr || n_steps == 0 || n_lines == 0) return;
        const auto first = reinterpret_cast<std::uintptr_t>(also.bytes);
        // The way from its end to what was first, as from row to row.
        gap_after_ = gap_;
        gap_ = next_ - (first + n_lines * 64);
        next_ = first;
        n_row_ = n_lines;
        n_left_ += n_lines;
        per_step_ = (n_left_ + n_steps - 1) / n_steps;
        has_also_ = true;
    }
    [[gnu::always_inline]] void step() {
        if (n_left_ == 0) return;
        const std::size_t n = n_left_ < per_step_ ? n_left_ : per_step_;
        n_left_ -= n;
        for (std::size_t i = 0; i < n; ++i) {
            __builtin_prefetch(reinterpret_cast<const void*>(next_), 0, 2);
            next_ += 64;
            if (--n_row_ == 0) {
                n_row_ = lines_per_row_;
                next_ += gap_;
                if (has_also_) {
                    gap_ = gap_after_;
                    has_also_ = false;
                }
            }
        }
    }

  private:
    std::uintptr_t next_;  // not a pointer: it may pass the end of what it came from
    std::size_t lines_per_row_, n_row_, gap_, n_left_, per_step_, gap_after_ = 0;
    bool has_also_ = false;
};

// A copy for the length of a loop: through a reference every line would wait for the one before to be stored.
class LocalAhead {
  public:
    explicit LocalAhead(AheadLines* lines) : lines_(lines), local_(*lines) {}
    LocalAhead(const LocalAhead&) = delete;
    LocalAhead& operator=(const LocalAhead&) = delete;
    ~LocalAhead() { *lines_ = local_; }
    [[gnu::always_inline]] void step() { local_.step(); }

  private:
    AheadLines* lines_;
    AheadLines local_;
};

}  // namespace
}  // namespace gearkv
