// The tokens that may still be drawn, and the filters that leave fewer of them.
//
// Everything is computed from sums, products and square roots in a fixed order, without contraction and
// without the C library's exp and log, so that every machine keeps the same tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gearkv/tokenizer.hpp"

namespace gearkv {

// exp(x) for x <= 0, relative error below 1e-15.
double exp_of_negative(double x) noexcept;

// A sum with the rounding errors of its steps added at the end (Neumaier 1974).
class CompensatedSum {
  public:
    void add(double x) noexcept {
        const double sum = sum_ + x;
        const bool larger = (sum_ < 0 ? -sum_ : sum_) >= (x < 0 ? -x : x);
        error_ += larger ? (sum_ - sum) + x : (x - sum) + sum_;
        sum_ = sum;
    }
    double value() const noexcept { return sum_ + error_; }

  private:
    double sum_ = 0.0, error_ = 0.0;
};

class Candidates {
  public:
    // Takes the logits above -Inf, of which there is at least one and none is NaN. Allocates only for more
    // logits than ever before; may throw std::bad_alloc then.
    void collect(const float* logits, std::size_t n_vocab);

    // Each as SamplerConfig describes it, and called when it is on.
    void keep_top_n_sigma(double n) noexcept;
    void keep_top_k(std::size_t k) noexcept;
    void keep_typical(double p) noexcept;
    void keep_top_p(double p) noexcept;
    void keep_min_p(double p) noexcept;
    void drop_top_choices(double threshold) noexcept;

    // The likeliest, the lowest token among equals.
    Token best() const noexcept;
    // The one at `place` in [0, 1) of the sum of probabilities at this temperature, > 0.
    Token draw(double place, double temperature) noexcept;

    std::size_t size() const noexcept { return candidates_.size(); }

  private:
    struct Candidate {
        float logit;
        Token token;
        double weight;  // of the probability, 1 for the best
        double shift;   // of keep_typical: how far -ln p is from the entropy
    };
    // The better one first, the lower token among equals.
    static bool better(const Candidate& a, const Candidate& b) noexcept {
        return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
    }

    float best_logit() const noexcept;
    void weigh(double temperature) noexcept;
    // At temperature 1, for a filter: not before one needs it, since most vocabularies are cut to a few
    // first.
    void weigh_once() noexcept;
    void sort() noexcept;
    double total() const noexcept;
    // Takes candidates in the order of `before`, until `enough` of the weight so far says so. They are
    // sorted then.
    template <class Before, class Enough>
    void take_first(const Before& before, const Enough& enough) noexcept;

    std::vector<Candidate> candidates_;
    bool sorted_ = false;    // best first; else in the order of their tokens
    bool weighted_ = false;  // at temperature 1, against the best one there is
};

}  // namespace gearkv
