// How the predictions of compressed caches leave those of an f16 one while a text is generated.
#pragma once

#include <cstddef>
#include <vector>

#include "divergence.hpp"
#include "gearkv/decoder.hpp"
#include "report.hpp"

namespace gearkv::tool {

// Feeds the prompt to all, then n_tokens tokens that the sampler draws by what `exact` predicts. Returns the
// divergence of each of the others: of as many predictions, the first of them right behind the prompt.
std::vector<Divergence> follow(Session& exact, const std::vector<Session*>& others,
                               const std::vector<Token>& prompt, std::size_t n_tokens, Sampler& sampler,
                               Progress* progress);

// A range of generated tokens, from begin to end.
struct DriftBucket {
    std::size_t begin = 0, end = 0;
};
// Up to eight, as long as each other but for rounding.
std::vector<DriftBucket> drift_buckets(std::size_t n_tokens);

}  // namespace gearkv::tool
