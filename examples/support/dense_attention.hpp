// Softmax attention in double precision over uncompressed tensors: what compressed attention is measured
// against.
#pragma once

#include <cstddef>
#include <vector>

namespace gearkv {

// Shapes: queries [n_queries, n_heads, key_dim], keys [n_tokens, n_kv_heads, key_dim],
// values [n_tokens, n_kv_heads, value_dim], contiguous. Query head h reads KV head h / (n_heads /
// n_kv_heads).
struct AttentionShape {
    std::size_t n_queries = 0;
    std::size_t n_tokens = 0;
    std::size_t n_heads = 0;
    std::size_t n_kv_heads = 0;
    std::size_t key_dim = 0;
    std::size_t value_dim = 0;
    double scale = 1.0;
    bool causal = false;  // the last query sees every token, the one before it all but the last, ...
};

// Returns [n_queries, n_heads, value_dim].
std::vector<double> attend_dense(const float* queries, const float* keys, const float* values,
                                 const AttentionShape& shape);

// ||found - expected|| / ||expected|| over all elements (Frobenius); 0 for equal tensors, even of zeros.
template <class Found, class Expected>
double relative_error(const std::vector<Found>& found, const std::vector<Expected>& expected);

extern template double relative_error(const std::vector<double>&, const std::vector<double>&);
extern template double relative_error(const std::vector<float>&, const std::vector<float>&);
extern template double relative_error(const std::vector<float>&, const std::vector<double>&);

}  // namespace gearkv
