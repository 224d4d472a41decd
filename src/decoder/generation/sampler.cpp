// Compiled without contraction of products and sums, so that every machine draws the same tokens.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "decoder/gguf/guarded.hpp"
#include "gearkv/sampler.hpp"

namespace gearkv {
namespace {

// exp(x) for x <= 0 from sums and products alone, relative error below 1e-15; the C library's exp differs in
// the last bits from machine to machine. x = k ln 2 + r with |r| <= ln 2 / 2, and a Taylor series in r.
double exp_of_negative(double x) {
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

// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    // In [0, 1), 53 bits.
    double next() {
        state_ += 0x9e3779b97f4a7c15u;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
    }

  private:
    std::uint64_t state_;
};

struct Candidate {
    float logit;
    Token token;
    double weight;
};

// Order of a max-heap: the best logit on top, the lower token among equals.
bool worse(const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit < b.logit : a.token > b.token;
}

class LogitSampler final : public Sampler {
  public:
    explicit LogitSampler(const SamplerConfig& config) : config_(config), random_(config.seed) {}

    Status sample(const float* logits, std::size_t n_vocab, Token* out) noexcept override {
        if (logits == nullptr || out == nullptr || n_vocab == 0) {
            return Status::error(Code::invalid_argument,
                                 "null logits or output, or a vocabulary of no tokens");
        }
        if (n_vocab > static_cast<std::size_t>(std::numeric_limits<Token>::max())) {
            return Status::error(Code::invalid_argument, "%zu logits, expected at most 2^31 - 1", n_vocab);
        }
        std::size_t best = 0;
        for (std::size_t i = 0; i < n_vocab; i++) {
            if (std::isnan(logits[i])) return Status::error(Code::non_finite, "logit %zu is not a number", i);
            if (logits[i] > logits[best]) best = i;
        }
        if (logits[best] == -std::numeric_limits<float>::infinity()) {
            return Status::error(Code::non_finite, "all %zu logits are -Inf", n_vocab);
        }
        if (config_.temperature == 0.0f) {
            *out = static_cast<Token>(best);
            return {};
        }
        return guarded([&] {
            collect(logits, n_vocab, logits[best]);
            filter(n_vocab);
            *out = draw();
            return Status();
        });
    }

  private:
    // Probability of a logit relative to that of the best one, at temperature 1.
    static double relative(float logit, float best) {
        return logit == best ? 1.0 : exp_of_negative(static_cast<double>(logit) - static_cast<double>(best));
    }

    void collect(const float* logits, std::size_t n_vocab, float best) {
        candidates_.resize(n_vocab);
        for (std::size_t i = 0; i < n_vocab; i++) {
            candidates_[i] = {logits[i], static_cast<Token>(i), relative(logits[i], best)};
        }
        best_ = best;
    }

    // Leaves what top_k, top_p and min_p let pass, best first; in token order when none of them is on.
    void filter(std::size_t n_vocab) {
        const bool top_k = config_.top_k != 0 && config_.top_k < n_vocab;
        if (top_k) {
            std::nth_element(candidates_.begin(), candidates_.begin() + config_.top_k, candidates_.end(),
                             [](const Candidate& a, const Candidate& b) { return worse(b, a); });
            candidates_.resize(config_.top_k);
        }
        if (top_k || config_.top_p < 1.0f || config_.min_p > 0.0f) keep_best();
    }

    // Takes candidates from a heap, so that a short list costs no full sort.
    void keep_best() {
        double total = 0.0;
        if (config_.top_p < 1.0f) total = sum_in_order();
        std::make_heap(candidates_.begin(), candidates_.end(), worse);
        auto end = candidates_.end();
        double covered = 0.0;
        while (end != candidates_.begin()) {
            if (end != candidates_.end()) {
                if (config_.top_p < 1.0f && covered >= static_cast<double>(config_.top_p) * total) break;
                if (candidates_.front().weight < static_cast<double>(config_.min_p)) break;
            }
            std::pop_heap(candidates_.begin(), end--, worse);
            covered += end->weight;
        }
        candidates_.erase(candidates_.begin(), end);
        std::reverse(candidates_.begin(), candidates_.end());
    }

    // The sum must not depend on how nth_element left the candidates, which differs between C++ libraries.
    double sum_in_order() {
        std::sort(candidates_.begin(), candidates_.end(),
                  [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
        double total = 0.0;
        for (const Candidate& candidate : candidates_) {
            total += candidate.weight;
        }
        return total;
    }

    Token draw() {
        double total = 0.0;
        for (Candidate& candidate : candidates_) {
            const double distance = static_cast<double>(candidate.logit) - static_cast<double>(best_);
            const bool best = candidate.logit == best_;
            candidate.weight =
                best ? 1.0 : exp_of_negative(distance / static_cast<double>(config_.temperature));
            total += candidate.weight;
        }
        const double wanted = random_.next() * total;
        double covered = 0.0;
        Token last = candidates_.front().token;
        for (const Candidate& candidate : candidates_) {
            if (candidate.weight == 0.0) continue;
            last = candidate.token;
            covered += candidate.weight;
            if (covered > wanted) break;
        }
        return last;
    }

    SamplerConfig config_;
    Random random_;
    std::vector<Candidate> candidates_;
    float best_ = 0.0f;
};

Status check_config(const SamplerConfig& config) {
    const auto number = [](float value) { return static_cast<double>(value); };
    if (!(config.temperature >= 0.0f) || !std::isfinite(config.temperature)) {
        return Status::error(Code::invalid_argument, "temperature is %g, expected a finite number from 0",
                             number(config.temperature));
    }
    if (!(config.top_p > 0.0f && config.top_p <= 1.0f)) {
        return Status::error(Code::invalid_argument, "top_p is %g, expected above 0 and at most 1",
                             number(config.top_p));
    }
    if (!(config.min_p >= 0.0f && config.min_p < 1.0f)) {
        return Status::error(Code::invalid_argument, "min_p is %g, expected from 0 to below 1",
                             number(config.min_p));
    }
    return {};
}

}  // namespace

Status Sampler::create(const SamplerConfig& config, std::unique_ptr<Sampler>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    const Status status = check_config(config);
    if (!status.ok()) return status;
    return guarded([&] {
        *out = std::make_unique<LogitSampler>(config);
        return Status();
    });
}

}  // namespace gearkv
