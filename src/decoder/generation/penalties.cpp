#include "decoder/generation/penalties.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace gearkv {
namespace {

std::span<const Token> last(std::span<const Token> tokens, std::uint32_t n) {
    return n < tokens.size() ? tokens.last(n) : tokens;
}

// What became of a logit, as a float that is finite if the logit was.
float narrow(double value, float logit) {
    if (!std::isfinite(logit)) return logit;
    constexpr double largest = static_cast<double>(std::numeric_limits<float>::max());
    return static_cast<float>(std::clamp(value, -largest, largest));
}

// base^exponent, base >= 1, in a fixed order of products; infinity when it is beyond a double.
double power(double base, std::uint64_t exponent) {
    double result = 1.0;
    for (; exponent > 0; exponent >>= 1) {
        if ((exponent & 1) != 0) result *= base;
        base *= base;
    }
    return result;
}

}  // namespace

Penalties::Penalties(const SamplerConfig& config)
    : config_(config),
      repeats_(config.penalty_last_n > 0 &&
               (config.repeat_penalty != 1.0f || config.frequency_penalty != 0.0f ||
                config.presence_penalty != 0.0f)),
      dry_(config.dry_last_n > 0 && config.dry_multiplier > 0.0f),
      breakers_(config.dry_breakers) {
    std::sort(breakers_.begin(), breakers_.end());
}

std::uint32_t Penalties::n_wanted() const noexcept {
    return std::max(repeats_ ? config_.penalty_last_n : 0, dry_ ? config_.dry_last_n : 0);
}

void Penalties::apply(std::span<const Token> history, std::span<float> logits) {
    if (repeats_) penalise_repeats(last(history, config_.penalty_last_n), logits);
    if (dry_) penalise_repetitions(last(history, config_.dry_last_n), logits);
}

void Penalties::penalise_repeats(std::span<const Token> history, std::span<float> logits) {
    sorted_.assign(history.begin(), history.end());
    std::sort(sorted_.begin(), sorted_.end());
    const double repeat = static_cast<double>(config_.repeat_penalty);
    for (auto at = sorted_.begin(); at != sorted_.end() && static_cast<std::size_t>(*at) < logits.size();) {
        const auto end = std::upper_bound(at, sorted_.end(), *at);
        float& logit = logits[static_cast<std::size_t>(*at)];
        double value = static_cast<double>(logit);
        value = value > 0.0 ? value / repeat : value * repeat;
        value -= static_cast<double>(end - at) * static_cast<double>(config_.frequency_penalty) +
                 static_cast<double>(config_.presence_penalty);
        logit = narrow(value, logit);
        at = end;
    }
}

bool Penalties::is_breaker(Token token) const noexcept {
    return std::binary_search(breakers_.begin(), breakers_.end(), token);
}

// Read from its end, history repeats itself where it equals its own beginning: lengths_[k] of the reversed
// history is how far the one that starts at k does (the Z function, in linear time).
void Penalties::find_repetitions(std::span<const Token> history) {
    const std::size_t n = history.size();
    const auto reversed = [&](std::size_t i) { return history[n - 1 - i]; };
    repetitions_.clear();
    std::size_t longest = 0;  // up to the first breaker
    while (longest < n && !is_breaker(reversed(longest)))
        longest += 1;
    lengths_.assign(n, 0);
    std::size_t first = 0, end = 0;  // of the match that reaches furthest
    for (std::size_t k = 1; k < n; k++) {
        std::size_t length = k < end ? std::min<std::size_t>(end - k, lengths_[k - first]) : 0;
        while (k + length < n && reversed(length) == reversed(k + length))
            length += 1;
        lengths_[k] = static_cast<std::uint32_t>(length);
        if (k + length > end) {
            first = k;
            end = k + length;
        }
        const std::size_t repeated = std::min(length, longest);
        const Token next = reversed(k - 1);
        if (repeated >= config_.dry_allowed_length && !is_breaker(next))
            repetitions_.push_back({next, repeated});
    }
}

void Penalties::penalise_repetitions(std::span<const Token> history, std::span<float> logits) {
    find_repetitions(history);
    // The longest of each token first.
    std::sort(repetitions_.begin(), repetitions_.end(), [](const Repetition& a, const Repetition& b) {
        return a.token != b.token ? a.token < b.token : a.length > b.length;
    });
    Token done = -1;
    for (const Repetition& repetition : repetitions_) {
        if (repetition.token == done) continue;
        done = repetition.token;
        if (static_cast<std::size_t>(done) >= logits.size()) break;
        float& logit = logits[static_cast<std::size_t>(done)];
        const double penalty =
            static_cast<double>(config_.dry_multiplier) *
            power(static_cast<double>(config_.dry_base), repetition.length - config_.dry_allowed_length);
        logit = narrow(static_cast<double>(logit) - penalty, logit);
    }
}

}  // namespace gearkv
