#include "drift.hpp"

#include <algorithm>

#include "failure.hpp"

namespace gearkv::tool {

std::vector<Divergence> follow(Session& exact, const std::vector<Session*>& others,
                               const std::vector<Token>& prompt, std::size_t n_tokens, Sampler& sampler,
                               Progress* progress) {
    const std::size_t n_vocab = exact.model().params().n_vocab;
    exact.reset();
    check(exact.prefill(prompt.data(), prompt.size()));
    for (Session* other : others) {
        other->reset();
        check(other->prefill(prompt.data(), prompt.size()));
    }
    std::vector<Divergence> divergences(others.size());
    Prediction expected, found;
    for (std::size_t i = 0; i < n_tokens; ++i) {
        progress->step();
        expected.set(exact.logits(), n_vocab);
        for (std::size_t j = 0; j < others.size(); ++j) {
            found.set(others[j]->logits(), n_vocab);
            divergences[j].add(expected, found);
        }
        if (i + 1 == n_tokens) break;
        Token token;
        check(sampler.sample(exact.logits(), n_vocab, &token));
        check(sampler.accept(token));
        check(exact.decode(token));
        for (Session* other : others)
            check(other->decode(token));
    }
    return divergences;
}

std::vector<DriftBucket> drift_buckets(std::size_t n_tokens) {
    const std::size_t n = std::min<std::size_t>(8, n_tokens);
    std::vector<DriftBucket> buckets;
    for (std::size_t i = 0; i < n; ++i)
        buckets.push_back({n_tokens * i / n, n_tokens * (i + 1) / n});
    return buckets;
}

}  // namespace gearkv::tool
