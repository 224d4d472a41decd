// What of a stream's past a truncation cannot undo: it tells whether one leaves the stream as if the dropped
// tokens had never come.
#pragma once

#include <algorithm>
#include <cstdint>

namespace gearkv {

// Tokens are numbered as the stream has them now. Truncations to exact_from and sure_from tokens or more undo
// all that was done, but for closings that are opened again.
class Past {
  public:
    // Something was done that a stream of fewer than n_tokens would not have seen done yet.
    void note(std::uint64_t n_tokens) noexcept { exact_from_ = std::max(exact_from_, n_tokens); }
    // A closing is undone that was noted after `exact_from` was all.
    void undo(std::uint64_t exact_from) noexcept { exact_from_ = exact_from; }
    // n tokens come behind n_tokens; `is_long`: a block's worth or more.
    void append(std::uint64_t n_tokens, std::uint64_t n, bool is_long) noexcept {
        prompt_ = is_long;
        if (is_long) {
            long_first_ = n_tokens;
            long_end_ = n_tokens + n;
        }
    }
    // All but n_kept of n_tokens have gone from the end; appends are long from n_long tokens on.
    void truncate(std::uint64_t n_kept, std::uint64_t n_tokens, std::uint64_t n_long) noexcept {
        if (n_kept >= n_tokens) return;
        exact_from_ = std::min(exact_from_, n_kept);
        sure_from_ = std::min(sure_from_, n_kept);
        prompt_ = prompt_at(n_kept, n_long);
        long_first_ = std::min(long_first_, n_kept);
        long_end_ = std::min(long_end_, n_kept);
    }
    // The places of tokens have changed, or a file told of the past: of the n_tokens that there are, none can
    // be taken back as if it had not come.
    void begin_at(std::uint64_t n_tokens) noexcept {
        sure_from_ = n_tokens;
        long_first_ = prompt_ ? 0 : n_tokens;
        long_end_ = n_tokens;
    }
    void restore(std::uint64_t exact_from, bool prompt, std::uint64_t n_tokens) noexcept {
        exact_from_ = exact_from;
        prompt_ = prompt;
        begin_at(n_tokens);
    }

    bool is_exact_at(std::uint64_t n_kept) const noexcept {
        return n_kept >= std::max(exact_from_, sure_from_);
    }
    std::uint64_t exact_from() const noexcept { return exact_from_; }
    // Whether the last append was long; and whether what is left of it would be, with fewer tokens.
    bool prompt() const noexcept { return prompt_; }
    bool prompt_at(std::uint64_t n_kept, std::uint64_t n_long) const noexcept {
        return n_kept > long_first_ && n_kept <= long_end_ && n_kept - long_first_ >= n_long;
    }

  private:
    std::uint64_t exact_from_ = 0;                 // in a state file
    std::uint64_t sure_from_ = 0;                  // not in one
    std::uint64_t long_first_ = 0, long_end_ = 0;  // the tokens of the last long append
    bool prompt_ = false;
};

}  // namespace gearkv
