// Seeded inputs of the speed benchmarks.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "gearkv/codec.hpp"

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

inline void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s\n", status.message());
    std::exit(1);
}

}  // namespace gearkv::bench
