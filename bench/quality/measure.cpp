#include "measure.hpp"

#include <algorithm>
#include <cmath>

namespace gearkv::quality {

Exact::Exact(const Dataset& data) : data_(data) {
    for (const Layer& layer : data.layers)
        exact_.push_back(attend(layer, layer.keys, layer.values));
}

Exact::Attended Exact::attend(const Layer& layer, const std::vector<float>& keys,
                              const std::vector<float>& values) {
    const AttentionShape& s = layer.shape;
    Attended result;
    result.weights.assign(s.n_queries * s.n_heads * s.n_tokens, 0.0);
    result.out.assign(s.n_queries * s.n_heads * s.value_dim, 0.0);
    const std::size_t n_shared = s.n_heads / s.n_kv_heads;
    for (std::size_t i = 0; i < s.n_queries; ++i) {
        const std::size_t n_seen = s.causal ? s.n_tokens - (s.n_queries - 1 - i) : s.n_tokens;
        for (std::size_t head = 0; head < s.n_heads; ++head) {
            const float* query = layer.queries.data() + (i * s.n_heads + head) * s.key_dim;
            double* weights = result.weights.data() + (i * s.n_heads + head) * s.n_tokens;
            double* out = result.out.data() + (i * s.n_heads + head) * s.value_dim;
            for (std::size_t t = 0; t < n_seen; ++t) {
                const float* key = keys.data() + (t * s.n_kv_heads + head / n_shared) * s.key_dim;
                float sums[8] = {};
                for (std::size_t c = 0; c < s.key_dim; c += 8) {
                    for (std::size_t k = 0; k < 8; ++k)
                        sums[k] += query[c + k] * key[c + k];
                }
                weights[t] = s.scale * (((sums[0] + sums[1]) + (sums[2] + sums[3])) +
                                        ((sums[4] + sums[5]) + (sums[6] + sums[7])));
            }
            const double most = *std::max_element(weights, weights + n_seen);
            double sum = 0;
            for (std::size_t t = 0; t < n_seen; ++t)
                sum += weights[t] = std::exp(weights[t] - most);
            for (std::size_t t = 0; t < n_seen; ++t) {
                weights[t] /= sum;
                const float* value = values.data() + (t * s.n_kv_heads + head / n_shared) * s.value_dim;
                for (std::size_t c = 0; c < s.value_dim; ++c)
                    out[c] += weights[t] * value[c];
            }
        }
    }
    return result;
}

Score Exact::measure(const Format& format) const {
    Score mean;
    const double share = 1.0 / static_cast<double>(data_.layers.size());
    for (std::size_t i = 0; i < data_.layers.size(); ++i) {
        const Layer& layer = data_.layers[i];
        const Reconstruction found = format.run(layer);
        const Attended attended = attend(layer, found.keys, found.values);
        double kl = 0;
        for (std::size_t j = 0; j < attended.weights.size(); ++j) {
            const double exact = exact_[i].weights[j];
            if (exact > 0) kl += exact * std::log(exact / std::max(attended.weights[j], 1e-300));
        }
        mean.bits_per_element += share * found.bits_per_element;
        mean.key_error += share * relative_error(found.keys, layer.keys);
        mean.value_error += share * relative_error(found.values, layer.values);
        mean.output_error += share * relative_error(attended.out, exact_[i].out);
        mean.weight_kl += share * kl / static_cast<double>(layer.shape.n_queries * layer.shape.n_heads);
    }
    return mean;
}

}  // namespace gearkv::quality
