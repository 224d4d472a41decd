#include "dense_attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace gearkv {
namespace {

double dot(const float* a, const float* b, std::size_t n) {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i)
        sum += double{a[i]} * double{b[i]};
    return sum;
}

}  // namespace

std::vector<double> attend_dense(const float* queries, const float* keys, const float* values,
                                 const AttentionShape& shape) {
    std::vector<double> out(shape.n_queries * shape.n_heads * shape.value_dim);
    std::vector<double> weights(shape.n_tokens);
    for (std::size_t row = 0; row < shape.n_queries * shape.n_heads; ++row) {
        const std::size_t query = row / shape.n_heads;
        const std::size_t kv_head = row % shape.n_heads / (shape.n_heads / shape.n_kv_heads);
        const std::size_t n_visible =
            shape.causal ? shape.n_tokens - (shape.n_queries - 1 - query) : shape.n_tokens;
        double largest = -std::numeric_limits<double>::infinity();
        for (std::size_t t = 0; t < n_visible; ++t) {
            const float* key = keys + (t * shape.n_kv_heads + kv_head) * shape.key_dim;
            weights[t] = shape.scale * dot(queries + row * shape.key_dim, key, shape.key_dim);
            largest = std::max(largest, weights[t]);
        }
        double sum = 0;
        double* out_row = out.data() + row * shape.value_dim;
        for (std::size_t t = 0; t < n_visible; ++t) {
            const double weight = std::exp(weights[t] - largest);
            const float* value = values + (t * shape.n_kv_heads + kv_head) * shape.value_dim;
            for (std::size_t c = 0; c < shape.value_dim; ++c)
                out_row[c] += weight * double{value[c]};
            sum += weight;
        }
        for (std::size_t c = 0; c < shape.value_dim; ++c)
            out_row[c] /= sum;
    }
    return out;
}

template <class Found, class Expected>
double relative_error(const std::vector<Found>& found, const std::vector<Expected>& expected) {
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double e = expected[i];
        difference += (found[i] - e) * (found[i] - e);
        norm += e * e;
    }
    return difference == 0 ? 0.0 : std::sqrt(difference / norm);
}

template double relative_error(const std::vector<double>&, const std::vector<double>&);
template double relative_error(const std::vector<float>&, const std::vector<float>&);
template double relative_error(const std::vector<float>&, const std::vector<double>&);

}  // namespace gearkv
