// Attention in double precision with everything that is done to scores.
#pragma once

#include <cmath>
#include <limits>

#include "caches.hpp"

namespace gearkv::testing {

inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

inline Tensor expected_output(const Queries& queries, const Tensor& q, const Tensor& k, const Tensor& v) {
    const std::size_t n = k.n_tokens, n_shared = q.n_heads / k.n_heads;
    Tensor out = {q.n_tokens, q.n_heads, v.dim, std::vector<double>(q.n_tokens * q.n_heads * v.dim)};
    for (std::size_t i = 0; i < q.n_tokens; ++i) {
        const std::size_t end = queries.causal ? n - (q.n_tokens - 1 - i) : n;
        const std::size_t first = queries.window > 0 && end > queries.window ? end - queries.window : 0;
        for (std::size_t h = 0; h < q.n_heads; ++h) {
            std::vector<double> scores(end, -HUGE_VAL);
            double most = queries.sinks != nullptr ? static_cast<double>(queries.sinks[h]) : -HUGE_VAL;
            for (std::size_t t = first; t < end; ++t) {
                double score = 0.0;
                for (std::size_t c = 0; c < q.dim; ++c)
                    score += q.at(i, h, c) * k.at(t, h / n_shared, c);
                score *= static_cast<double>(queries.scale);
                const auto cap = static_cast<double>(queries.soft_cap);
                if (cap > 0.0) score = cap * std::tanh(score / cap);
                if (queries.slopes != nullptr)
                    score -= static_cast<double>(queries.slopes[h]) * static_cast<double>(end - 1 - t);
                if (queries.mask != nullptr) {
                    score += static_cast<double>(
                        queries.mask[i * queries.mask_query_stride + h * queries.mask_head_stride + t]);
                }
                scores[t] = score;
                most = std::max(most, score);
            }
            if (most == -HUGE_VAL) continue;
            double sum =
                queries.sinks != nullptr ? std::exp(static_cast<double>(queries.sinks[h]) - most) : 0.0;
            for (std::size_t t = first; t < end; ++t) {
                const double weight = std::exp(scores[t] - most);
                sum += weight;
                for (std::size_t c = 0; c < v.dim; ++c)
                    out.at(i, h, c) += weight * v.at(t, h / n_shared, c);
            }
            for (std::size_t c = 0; c < v.dim && sum > 0.0; ++c)
                out.at(i, h, c) /= sum;
        }
    }
    return out;
}

inline Tensor attend_with(Cache* cache, const Queries& queries, std::size_t value_dim,
                          Executor& executor = serial_executor()) {
    std::vector<float> out(std::size_t{queries.n_queries} * queries.n_heads * value_dim, -1.0f);
    const Status status = cache->attend(0, queries, out.data(), out.size(), executor);
    INFO(status.message());
    REQUIRE(status.ok());
    return to_tensor(out.data(), queries.n_queries, queries.n_heads, value_dim);
}

}  // namespace gearkv::testing
