#include "decoder/generation/candidates.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace gearkv {

// x = k ln 2 + r with |r| <= ln 2 / 2, and a Taylor series in r; the C library's exp differs in the last bits
// from machine to machine.
double exp_of_negative(double x) noexcept {
    if (!(x > -700.0)) return 0.0;
    constexpr double ln2_high = 6.93147180369123816490e-01;  // 33 bits, so that k * ln2_high is exact
    constexpr double ln2_low = 1.90821492927058770002e-10;
    const double k = std::floor(x * 1.44269504088896338700 + 0.5);
    const double r = (x - k * ln2_high) - k * ln2_low;
    double sum = 1.0;
    for (int i = 13; i >= 1; i--) {
        sum = 1.0 + sum * r / i;
    }
    return std::ldexp(sum, static_cast<int>(k));
}

void Candidates::collect(const float* logits, std::size_t n_vocab) {
    candidates_.clear();
    candidates_.reserve(n_vocab);
    for (std::size_t i = 0; i < n_vocab; i++) {
        if (logits[i] == -std::numeric_limits<float>::infinity()) continue;
        candidates_.push_back({logits[i], static_cast<Token>(i), 0.0, 0.0});
    }
    sorted_ = false;
    weighted_ = false;
}

void Candidates::weigh(double temperature) noexcept {
    float best = candidates_.front().logit;
    for (const Candidate& candidate : candidates_) {
        best = std::max(best, candidate.logit);
    }
    for (Candidate& candidate : candidates_) {
        // Of two infinite logits the difference is no number.
        const double distance = static_cast<double>(candidate.logit) - static_cast<double>(best);
        candidate.weight = candidate.logit == best ? 1.0 : exp_of_negative(distance / temperature);
    }
}

void Candidates::weigh_once() noexcept {
    if (!weighted_) weigh(1.0);
    weighted_ = true;
}

void Candidates::sort() noexcept {
    if (!sorted_) std::sort(candidates_.begin(), candidates_.end(), better);
    sorted_ = true;
}

double Candidates::total() const noexcept {
    CompensatedSum sum;
    for (const Candidate& candidate : candidates_) {
        sum.add(candidate.weight);
    }
    return sum.value();
}

// From a heap, so that a short list costs no full sort.
template <class Before, class Enough>
void Candidates::take_first(const Before& before, const Enough& enough) noexcept {
    const auto after = [&](const Candidate& a, const Candidate& b) { return before(b, a); };
    std::make_heap(candidates_.begin(), candidates_.end(), after);
    auto end = candidates_.end();
    CompensatedSum covered;
    do {
        std::pop_heap(candidates_.begin(), end--, after);
        covered.add(end->weight);
    } while (end != candidates_.begin() && !enough(covered.value()));
    candidates_.erase(candidates_.begin(), end);
    sorted_ = false;
    sort();
}

void Candidates::keep_top_n_sigma(double n) noexcept {
    CompensatedSum sum, squares;
    std::size_t n_finite = 0;
    double best = -std::numeric_limits<double>::infinity();
    for (const Candidate& candidate : candidates_) {
        best = std::max(best, static_cast<double>(candidate.logit));
        if (!std::isfinite(candidate.logit)) continue;
        sum.add(static_cast<double>(candidate.logit));
        n_finite += 1;
    }
    if (n_finite == 0) return;
    const double mean = sum.value() / static_cast<double>(n_finite);
    for (const Candidate& candidate : candidates_) {
        if (!std::isfinite(candidate.logit)) continue;
        const double distance = static_cast<double>(candidate.logit) - mean;
        squares.add(distance * distance);
    }
    const double least = best - n * std::sqrt(squares.value() / static_cast<double>(n_finite));
    std::erase_if(candidates_,
                  [&](const Candidate& candidate) { return static_cast<double>(candidate.logit) < least; });
}

void Candidates::keep_top_k(std::size_t k) noexcept {
    if (k < candidates_.size()) {
        const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(k);
        std::nth_element(candidates_.begin(), end, candidates_.end(), better);
        candidates_.erase(end, candidates_.end());
        sorted_ = false;
    }
    sort();
}

// With d = ln p less that of the best, -ln p less the entropy is the mean of d less d: no logarithm needed.
void Candidates::keep_typical(double p) noexcept {
    weigh_once();
    const double best = static_cast<double>(best_logit());
    const double sum = total();
    CompensatedSum distances;
    const auto distance = [&](const Candidate& candidate) {
        const double logit = static_cast<double>(candidate.logit);
        return logit == best ? 0.0 : logit - best;
    };
    for (const Candidate& candidate : candidates_) {
        if (candidate.weight > 0.0) distances.add(candidate.weight * distance(candidate));
    }
    const double mean = distances.value() / sum;
    for (Candidate& candidate : candidates_) {
        candidate.shift = std::fabs(mean - distance(candidate));
    }
    const auto nearer = [](const Candidate& a, const Candidate& b) {
        return a.shift != b.shift ? a.shift < b.shift : better(a, b);
    };
    take_first(nearer, [&](double covered) { return covered > p * sum; });
    weighted_ = false;  // the best one may be gone
}

void Candidates::keep_top_p(double p) noexcept {
    weigh_once();
    const double sum = total();
    take_first(better, [&](double covered) { return covered >= p * sum; });
}

void Candidates::keep_min_p(double p) noexcept {
    weigh_once();
    std::erase_if(candidates_, [&](const Candidate& candidate) { return candidate.weight < p; });
    sort();
}

void Candidates::drop_top_choices(double threshold) noexcept {
    weigh_once();
    sort();
    const double least = threshold * total();
    std::size_t n_choices = 0;
    while (n_choices < candidates_.size() && candidates_[n_choices].weight >= least)
        n_choices += 1;
    if (n_choices < 2) return;
    candidates_.erase(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(n_choices - 1));
}

Token Candidates::best() const noexcept {
    return std::min_element(candidates_.begin(), candidates_.end(), better)->token;
}

float Candidates::best_logit() const noexcept {
    return std::min_element(candidates_.begin(), candidates_.end(), better)->logit;
}

Token Candidates::draw(double place, double temperature) noexcept {
    weigh(temperature);
    weighted_ = false;
    const double wanted = place * total();
    CompensatedSum covered;
    Token last = candidates_.front().token;
    for (const Candidate& candidate : candidates_) {
        if (candidate.weight == 0.0) continue;
        last = candidate.token;
        covered.add(candidate.weight);
        if (covered.value() > wanted) break;
    }
    return last;
}

}  // namespace gearkv
