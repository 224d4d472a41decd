// What the tokens so far do to the logits of the next one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "gearkv/sampler.hpp"

namespace gearkv {

// Results are floats that are finite where the logits were: a penalty beyond them leaves the lowest.
class Penalties {
  public:
    // May throw std::bad_alloc.
    explicit Penalties(const SamplerConfig& config);

    bool active() const noexcept { return repeats_ || dry_; }
    // The last tokens that matter, of those there are.
    std::uint32_t n_wanted() const noexcept;
    // Tokens beyond the vocabulary count as part of a repetition and are not penalised. May throw
    // std::bad_alloc; the logits may have changed then.
    void apply(std::span<const Token> history, std::span<float> logits);

  private:
    struct Repetition {
        Token token;           // that would make it longer
        std::uint64_t length;  // of what stands before
    };

    void penalise_repeats(std::span<const Token> history, std::span<float> logits);
    void penalise_repetitions(std::span<const Token> history, std::span<float> logits);
    bool is_breaker(Token token) const noexcept;
    void find_repetitions(std::span<const Token> history);

    const SamplerConfig& config_;
    bool repeats_, dry_;
    std::vector<Token> breakers_;  // ascending
    // Working memory of one call.
    std::vector<Token> sorted_;
    std::vector<std::uint32_t> lengths_;
    std::vector<Repetition> repetitions_;
};

}  // namespace gearkv
