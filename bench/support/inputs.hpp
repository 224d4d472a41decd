// Seeded inputs of the speed benchmarks.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "gearkv/cache.hpp"

namespace gearkv::bench {

// Gaussian [n_tokens][n_heads][dim]; one channel in 32 is eight times as large, as in keys.
inline std::vector<float> make_rows(std::size_t n_tokens, std::size_t n_heads, std::size_t dim,
                                    unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(n_tokens * n_heads * dim);
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = normal(random) * (i % dim % 32 == 5 ? 8.0f : 1.0f);
    return x;
}

inline Rows rows_of(const std::vector<float>& x, std::size_t n_heads, std::size_t dim,
                    std::size_t first = 0) {
    return {x.data() + first * n_heads * dim, n_heads * dim, dim};
}

// n_queries rows of n_heads, causal.
inline Queries queries_of(const std::vector<float>& q, std::uint32_t n_queries, std::uint32_t n_heads,
                          std::uint32_t dim) {
    return {q.data(), std::size_t{n_heads} * dim,
            dim,      n_queries,
            n_heads,  1.0f / std::sqrt(static_cast<float>(dim)),
            true};
}

inline void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s\n", status.message());
    std::exit(1);
}

}  // namespace gearkv::bench
