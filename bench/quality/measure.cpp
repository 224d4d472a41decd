#include "measure.hpp"

#include <algorithm>
#include <cmath>

namespace gearkv::quality {

namespace {

// Adds a value times its weight; one that weighs next to nothing changes no digit.
void add_value(float weight, const float* value, std::size_t dim, float* out) {
    if (weight < 1e-9f) return;
    for (std::size_t c = 0; c < dim; ++c)
        out[c] += weight * value[c];
}

}  // namespace

Exact::Exact(const Dataset& data, std::size_t n_recent) : data_(data), n_recent_(n_recent) {
    for (const Layer& layer : data.layers) {
        Attended exact;
        score(layer, layer.keys, &exact);
        mix(layer, layer.values, &exact);
        exact_.push_back(std::move(exact));
    }
}

Exact::Seen Exact::seen_by(const Layer& layer, std::size_t query) {
    const AttentionShape& s = layer.shape;
    const std::size_t end = s.causal ? s.n_tokens - (s.n_queries - 1 - query) : s.n_tokens;
    return {layer.window > 0 && end > layer.window ? end - layer.window : 0, end};
}

void Exact::score(const Layer& layer, const std::vector<float>& keys, Attended* attended) {
    const AttentionShape& s = layer.shape;
    attended->scores.assign(s.n_queries * s.n_heads * s.n_tokens, 0.0);
    const std::size_t n_shared = s.n_heads / s.n_kv_heads;
    for (std::size_t i = 0; i < s.n_queries; ++i) {
        const Seen seen = seen_by(layer, i);
        for (std::size_t head = 0; head < s.n_heads; ++head) {
            const float* query = layer.queries.data() + (i * s.n_heads + head) * s.key_dim;
            double* scores = attended->scores.data() + (i * s.n_heads + head) * s.n_tokens;
            for (std::size_t t = seen.begin; t < seen.end; ++t) {
                const float* key = keys.data() + (t * s.n_kv_heads + head / n_shared) * s.key_dim;
                float sums[8] = {};
                for (std::size_t c = 0; c < s.key_dim; c += 8) {
                    for (std::size_t k = 0; k < 8; ++k)
                        sums[k] += query[c + k] * key[c + k];
                }
                scores[t] = s.scale * (((sums[0] + sums[1]) + (sums[2] + sums[3])) +
                                       ((sums[4] + sums[5]) + (sums[6] + sums[7])));
            }
        }
    }
}

void Exact::mix(const Layer& layer, const std::vector<float>& values, Attended* attended) {
    const AttentionShape& s = layer.shape;
    attended->weights.assign(attended->scores.size(), 0.0);
    attended->out.assign(s.n_queries * s.n_heads * s.value_dim, 0.0f);
    const std::size_t n_shared = s.n_heads / s.n_kv_heads;
    for (std::size_t i = 0; i < s.n_queries; ++i) {
        const Seen seen = seen_by(layer, i);
        for (std::size_t head = 0; head < s.n_heads; ++head) {
            const std::size_t row = i * s.n_heads + head;
            const double* scores = attended->scores.data() + row * s.n_tokens;
            double* weights = attended->weights.data() + row * s.n_tokens;
            float* out = attended->out.data() + row * s.value_dim;
            const double most = *std::max_element(scores + seen.begin, scores + seen.end);
            double sum = 0;
            for (std::size_t t = seen.begin; t < seen.end; ++t)
                sum += weights[t] = std::exp(scores[t] - most);
            for (std::size_t t = seen.begin; t < seen.end; ++t) {
                weights[t] /= sum;
                add_value(static_cast<float>(weights[t]),
                          values.data() + (t * s.n_kv_heads + head / n_shared) * s.value_dim, s.value_dim,
                          out);
            }
        }
    }
}

void Exact::mix_recent(const Layer& layer, const Attended& exact, const std::vector<float>& values,
                       Attended* attended) const {
    const AttentionShape& s = layer.shape;
    const std::size_t n_shared = s.n_heads / s.n_kv_heads;
    for (std::size_t i = 0; i < s.n_queries; ++i) {
        const Seen seen = seen_by(layer, i);
        const std::size_t recent = std::max(seen.begin, seen.end - std::min(seen.end, n_recent_));
        for (std::size_t head = 0; head < s.n_heads; ++head) {
            const std::size_t row = i * s.n_heads + head;
            const double* exact_scores = exact.scores.data() + row * s.n_tokens;
            double* scores = attended->scores.data() + row * s.n_tokens;
            float* out = attended->out.data() + row * s.value_dim;
            std::copy(exact_scores + recent, exact_scores + seen.end, scores + recent);
            std::fill_n(out, s.value_dim, 0.0f);
            const double most = *std::max_element(scores + seen.begin, scores + seen.end);
            double sum = 0;
            for (std::size_t t = seen.begin; t < seen.end; ++t) {
                const double weight = std::exp(scores[t] - most);
                const float* value = (t < recent ? values : layer.values).data() +
                                     (t * s.n_kv_heads + head / n_shared) * s.value_dim;
                sum += weight;
                add_value(static_cast<float>(weight), value, s.value_dim, out);
            }
            for (std::size_t c = 0; c < s.value_dim; ++c)
                out[c] /= static_cast<float>(sum);
        }
    }
}

Score Exact::measure(const Format& format) const {
    Score mean;
    const double share = 1.0 / static_cast<double>(data_.layers.size());
    for (std::size_t i = 0; i < data_.layers.size(); ++i) {
        const Layer& layer = data_.layers[i];
        const AttentionShape& s = layer.shape;
        Reconstruction found = format.run(layer);
        if (!format.keeps_sinks()) {
            const auto copy = [&](const std::vector<float>& from, std::size_t dim, std::vector<float>* to) {
                std::copy_n(from.begin(), layer.n_sinks * s.n_kv_heads * dim, to->begin());
            };
            copy(layer.keys, s.key_dim, &found.keys);
            copy(layer.values, s.value_dim, &found.values);
            found.bits_per_element += (16 - found.bits_per_element) * static_cast<double>(layer.n_sinks) /
                                      static_cast<double>(s.n_tokens);
        }
        Attended attended;
        score(layer, found.keys, &attended);
        mix(layer, found.values, &attended);
        double kl = 0;
        for (std::size_t j = 0; j < attended.weights.size(); ++j) {
            const double exact = exact_[i].weights[j];
            if (exact > 0) kl += exact * std::log(exact / std::max(attended.weights[j], 1e-300));
        }
        mean.bits_per_element += share * found.bits_per_element;
        mean.key_error += share * relative_error(found.keys, layer.keys);
        mean.value_error += share * relative_error(found.values, layer.values);
        mean.output_error += share * relative_error(attended.out, exact_[i].out);
        mean.weight_kl += share * kl / static_cast<double>(s.n_queries * s.n_heads);
        if (s.causal) {
            mix_recent(layer, exact_[i], found.values, &attended);
            mean.recent_error += share * relative_error(attended.out, exact_[i].out);
        }
    }
    return mean;
}

}  // namespace gearkv::quality
