// From logits to the next token. Used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "gearkv/status.hpp"
#include "gearkv/tokenizer.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

// Added to the logit of a token; -Inf bans it.
struct LogitBias {
    Token token = 0;    // >= 0
    float bias = 0.0f;  // finite or -Inf
};

// As penalty_last_n or dry_last_n: all tokens accepted so far.
inline constexpr std::uint32_t all_tokens = 0xffffffff;

// What is done to the logits, in the order of the fields. What a field says is off is so by default; then
// greedy is left. Each filter looks at probabilities at temperature 1 among the tokens the ones before it
// left, and leaves at least one.
struct SamplerConfig {
    // Of one token several are added. A token outside the vocabulary is refused by sample().
    std::vector<LogitBias> logit_bias;

    // Penalties, for a token that is c > 0 times among the last penalty_last_n accepted: a logit above 0 is
    // divided by repeat_penalty and another one multiplied by it; then c * frequency_penalty +
    // presence_penalty is taken off.
    float repeat_penalty = 1.0f;     // above 0 and finite; 1: off
    float frequency_penalty = 0.0f;  // finite; 0: off
    float presence_penalty = 0.0f;   // finite; 0: off
    std::uint32_t penalty_last_n = 64;

    // DRY: a token that would make the repetition of `len` tokens longer loses
    // dry_multiplier * dry_base^(len - dry_allowed_length), from len = dry_allowed_length on. Repetitions are
    // looked for among the last dry_last_n tokens accepted, and do not reach across a breaker.
    float dry_multiplier = 0.0f;           // >= 0 and finite; 0: off
    float dry_base = 1.75f;                // >= 1 and finite
    std::uint32_t dry_allowed_length = 2;  // >= 1
    std::uint32_t dry_last_n = all_tokens;
    std::vector<Token> dry_breakers;  // >= 0; tokens with a line end or a quote in them, say

    // Keeps logits of at least the largest less so many standard deviations of all finite ones.
    float top_n_sigma = 0.0f;  // >= 0 and finite; 0: off
    std::uint32_t top_k = 0;   // keeps so many of the likeliest; 0: off
    // Keeps those whose -ln p is nearest to the entropy, until their probabilities exceed this.
    float typical_p = 1.0f;  // (0, 1]; 1: off
    float top_p = 1.0f;      // (0, 1]; keeps the likeliest until their probabilities reach this; 1: off
    float min_p = 0.0f;      // [0, 1); keeps those of at least this share of the likeliest's; 0: off
    // XTC: with this probability, of two or more tokens that have at least xtc_threshold only the least
    // likely stays.
    float xtc_probability = 0.0f;  // [0, 1]; 0: off
    float xtc_threshold = 0.1f;    // [0, 0.5]

    float temperature = 0.0f;  // >= 0 and finite; logits are divided by it, 0 takes the likeliest token
    std::uint64_t seed = 0;    // of all random choices
};

// Equal configurations, logits and accepted tokens give equal tokens on every machine.
class Sampler {
  public:
    virtual ~Sampler() = default;
    // Errors: invalid_argument naming the field and its range, out_of_memory. *out is untouched then.
    static Status create(const SamplerConfig& config, std::unique_ptr<Sampler>* out) noexcept;

    // Draws a token; what was drawn counts for penalties once it is accepted. Errors: non_finite (a NaN
    // logit, or none above -Inf, biases included), out_of_memory, invalid_argument; then nothing was drawn.
    // Allocates only for more logits or tokens than in any call before.
    virtual Status sample(const float* logits, std::size_t n_vocab, Token* out) noexcept = 0;

    // Tells what the sequence holds, for penalties and DRY: the prompt, and each token drawn that goes on.
    // Keeps no more of it than they look at. Errors: invalid_argument, bad_token (below 0; none is accepted
    // then), out_of_memory.
    virtual Status accept(const Token* tokens, std::size_t n_tokens) noexcept = 0;
    Status accept(Token token) noexcept { return accept(&token, 1); }
    // As if no token had been accepted. The random state stays.
    virtual void forget() noexcept = 0;

    // Replaces *out by the random state and the accepted tokens that count, in bytes that are the same on
    // every machine. Errors: invalid_argument, out_of_memory.
    virtual Status save(std::vector<unsigned char>* out) const noexcept = 0;
    // Goes on exactly as the sampler that was saved, when the configurations are equal but for the seed.
    // Errors: invalid_argument, not_a_state, bad_version, truncated, corrupt_state, out_of_memory; the
    // sampler is as it was then.
    virtual Status restore(const unsigned char* bytes, std::size_t n_bytes) noexcept = 0;
};

}  // namespace gearkv
#pragma GCC visibility pop
