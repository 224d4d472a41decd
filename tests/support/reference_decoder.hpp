// A llama model as the paper writes it, token by token, in double: what the decoder is held against.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "support/model_maker.hpp"

namespace gearkv::test {

class ReferenceDecoder {
  public:
    using Vector = std::vector<double>;

    explicit ReferenceDecoder(const ModelMaker& model)
        : model_(model), keys_(model.shape.n_layers), values_(model.shape.n_layers) {}

    // Logits after one more token.
    Vector feed(std::size_t token) {
        const ModelShape& shape = model_.shape;
        const Vector& embedding = model_.values("token_embd.weight");
        Vector x(embedding.begin() + static_cast<std::ptrdiff_t>(token * shape.n_embd),
                 embedding.begin() + static_cast<std::ptrdiff_t>((token + 1) * shape.n_embd));
        for (std::uint32_t layer = 0; layer < shape.n_layers; layer++) {
            const std::string prefix = "blk." + std::to_string(layer) + ".";
            add(x, multiply(prefix + "attn_output.weight",
                            attend(layer, normalise(x, prefix + "attn_norm.weight"))));
            const Vector h = normalise(x, prefix + "ffn_norm.weight");
            Vector gate = multiply(prefix + "ffn_gate.weight", h);
            const Vector up = multiply(prefix + "ffn_up.weight", h);
            for (std::size_t i = 0; i < gate.size(); i++) {
                gate[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
            }
            add(x, multiply(prefix + "ffn_down.weight", gate));
        }
        position_++;
        return multiply(shape.own_output ? "output.weight" : "token_embd.weight",
                        normalise(x, "output_norm.weight"));
    }

  private:
    static void add(Vector& x, const Vector& y) {
        for (std::size_t i = 0; i < x.size(); i++) {
            x[i] += y[i];
        }
    }

    Vector multiply(const std::string& name, const Vector& x) const {
        const Vector& w = model_.values(name);
        Vector y(w.size() / x.size());
        for (std::size_t r = 0; r < y.size(); r++) {
            for (std::size_t c = 0; c < x.size(); c++) {
                y[r] += w[r * x.size() + c] * x[c];
            }
        }
        return y;
    }

    Vector normalise(const Vector& x, const std::string& weight) const {
        double sum = 0;
        for (const double value : x) {
            sum += value * value;
        }
        const double scale =
            1.0 / std::sqrt(sum / static_cast<double>(x.size()) + static_cast<double>(model_.shape.norm_eps));
        Vector y(x.size());
        for (std::size_t i = 0; i < x.size(); i++) {
            y[i] = x[i] * scale * model_.values(weight)[i];
        }
        return y;
    }

    // Each pair of a head turns by position * base^(-2 i / rope_dim) / factor.
    void rotate(Vector& x) const {
        const ModelShape& shape = model_.shape;
        for (std::size_t head = 0; head < x.size() / shape.head_dim; head++) {
            for (std::uint32_t i = 0; i < shape.rope_dim / 2; i++) {
                double angle =
                    position_ * std::pow(static_cast<double>(shape.rope_base), -2.0 * i / shape.rope_dim);
                if (shape.rope_factors) angle /= model_.values("rope_freqs.weight")[i];
                double& even = x[head * shape.head_dim + 2 * i];
                double& odd = x[head * shape.head_dim + 2 * i + 1];
                const double turned = even * std::cos(angle) - odd * std::sin(angle);
                odd = even * std::sin(angle) + odd * std::cos(angle);
                even = turned;
            }
        }
    }

    Vector attend(std::uint32_t layer, const Vector& h) {
        const ModelShape& shape = model_.shape;
        const std::string prefix = "blk." + std::to_string(layer) + ".";
        Vector query = multiply(prefix + "attn_q.weight", h);
        Vector key = multiply(prefix + "attn_k.weight", h);
        rotate(query);
        rotate(key);
        keys_[layer].push_back(key);
        values_[layer].push_back(multiply(prefix + "attn_v.weight", h));
        Vector out(query.size());
        for (std::uint32_t head = 0; head < shape.n_heads; head++) {
            const std::size_t q = std::size_t{head} * shape.head_dim;
            const std::size_t kv = std::size_t{head / (shape.n_heads / shape.n_kv_heads)} * shape.head_dim;
            Vector weights;
            for (const Vector& k : keys_[layer]) {
                double score = 0;
                for (std::uint32_t c = 0; c < shape.head_dim; c++) {
                    score += query[q + c] * k[kv + c];
                }
                weights.push_back(score / std::sqrt(static_cast<double>(shape.head_dim)));
            }
            const double top = *std::max_element(weights.begin(), weights.end());
            double sum = 0;
            for (double& weight : weights) {
                weight = std::exp(weight - top);
                sum += weight;
            }
            for (std::size_t t = 0; t < weights.size(); t++) {
                for (std::uint32_t c = 0; c < shape.head_dim; c++) {
                    out[q + c] += weights[t] / sum * values_[layer][t][kv + c];
                }
            }
        }
        return out;
    }

    const ModelMaker& model_;
    std::vector<std::vector<Vector>> keys_;    // [layer][token][kv channels]
    std::vector<std::vector<Vector>> values_;  // [layer][token][kv channels]
    double position_ = 0;
};

}  // namespace gearkv::test
