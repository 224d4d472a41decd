// A model of any family as its paper writes it, token by token, in double: what the decoder is held against.
// Written from descriptions of the families, and from nothing the decoder does.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "support/model_maker.hpp"

namespace gearkv::test {

// What no metadata say, by the name of the family. A test may change one to see that it matters.
struct FamilyFacts {
    explicit FamilyFacts(const ModelShape& shape) {
        const std::string& family = shape.family;
        const bool is_gemma = family == "gemma" || family == "gemma2" || family == "gemma3";
        adjacent = family == "llama" || family == "granite" || family == "smollm3";
        gelu = is_gemma;
        if (is_gemma) embedding_scale = std::sqrt(static_cast<double>(shape.n_embd));
        attention_scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
        if ((family == "gemma2" && shape.n_layers == 46) || (family == "gemma3" && shape.n_layers == 62)) {
            attention_scale = 1.0 / std::sqrt(static_cast<double>(shape.n_embd) / shape.n_heads);
        }
        if (family == "gemma2") attention_cap = 50.0, logit_cap = 30.0, window = 4096, window_period = 2;
        if (family == "gemma3") window_period = 6, local_base = 10000.0, local_is_scaled = false;
        if (family == "olmo2") local_base = static_cast<double>(shape.rope_base), local_is_scaled = false;
        if (family == "smollm3") rope_gap = 4;
        pre_norms = shape.has_pre_norms();
        post_norms = shape.has_post_norms();
        head_norms = shape.has_head_norms();
        whole_norms = shape.has_whole_norms();
        gate_first = true;
        // What the file says goes first.
        if (shape.embedding_scale > 0) embedding_scale = static_cast<double>(shape.embedding_scale);
        if (shape.residual_scale > 0) residual_scale = static_cast<double>(shape.residual_scale);
        if (shape.logit_scale > 0) logit_divisor = static_cast<double>(shape.logit_scale);
        if (shape.attention_scale > 0) attention_scale = static_cast<double>(shape.attention_scale);
        if (shape.attention_cap >= 0) attention_cap = static_cast<double>(shape.attention_cap);
        if (shape.logit_cap >= 0) logit_cap = static_cast<double>(shape.logit_cap);
        if (shape.window > 0) window = shape.window;
        if (shape.window_period > 0) window_period = shape.window_period;
        if (shape.local_base > 0) local_base = static_cast<double>(shape.local_base);
    }

    bool adjacent = false, gelu = false;
    bool pre_norms = true, post_norms = false, head_norms = false, whole_norms = false;
    bool norm_after_rope = false;
    bool gate_first = true;
    double embedding_scale = 1, residual_scale = 1, logit_divisor = 1, attention_scale = 0;
    double attention_cap = 0, logit_cap = 0;
    std::uint32_t window = 0, window_period = 0;
    double local_base = 0;  // 0: windows change nothing about RoPE
    bool local_is_scaled = true;
    std::uint32_t rope_gap = 0;
    bool query_biases = true, key_biases = true, value_biases = true;
};

class ReferenceDecoder {
  public:
    using Vector = std::vector<double>;

    // n_ctx chooses between sets of RoPE factors; 0: the model's context.
    explicit ReferenceDecoder(const ModelMaker& model, std::uint32_t n_ctx = 0)
        : facts(model.shape),
          model_(model),
          shape_(model.shape),
          n_ctx_(n_ctx != 0 ? n_ctx : model.shape.n_ctx),
          keys_(shape_.n_layers),
          values_(shape_.n_layers) {}

    // Logits after one more token.
    Vector feed(std::size_t token) {
        const Vector& embedding = weights("token_embd.weight");
        Vector x(embedding.begin() + static_cast<std::ptrdiff_t>(token * shape_.n_embd),
                 embedding.begin() + static_cast<std::ptrdiff_t>((token + 1) * shape_.n_embd));
        for (double& value : x) {
            value *= facts.embedding_scale;
        }
        for (std::uint32_t layer = 0; layer < shape_.n_layers; layer++) {
            const std::string prefix = "blk." + std::to_string(layer) + ".";
            Vector branch = attend(layer, pre_normalise(x, prefix + "attn_norm.weight"));
            branch = multiply(prefix + "attn_output.weight", branch);
            add_optional(branch, prefix + "attn_output.bias");
            if (facts.post_norms) branch = normalise(branch, prefix + "post_attention_norm.weight");
            add(x, branch, facts.residual_scale);
            branch = feed_forward(prefix, pre_normalise(x, prefix + "ffn_norm.weight"));
            if (facts.post_norms) branch = normalise(branch, prefix + "post_ffw_norm.weight");
            add(x, branch, facts.residual_scale);
        }
        position_++;
        Vector logits = multiply(shape_.own_output ? "output.weight" : "token_embd.weight",
                                 normalise(x, "output_norm.weight"));
        for (double& logit : logits) {
            logit /= facts.logit_divisor;
            if (facts.logit_cap > 0) logit = facts.logit_cap * std::tanh(logit / facts.logit_cap);
        }
        return logits;
    }

    FamilyFacts facts;

  private:
    const Vector& weights(const std::string& name) const { return model_.values(name); }

    static void add(Vector& x, const Vector& y, double scale = 1.0) {
        for (std::size_t i = 0; i < x.size(); i++) {
            x[i] += scale * y[i];
        }
    }
    void add_optional(Vector& x, const std::string& name) const {
        if (!weights(name).empty()) add(x, weights(name));
    }

    Vector multiply(const std::string& name, const Vector& x) const {
        const Vector& w = weights(name);
        Vector y(w.size() / x.size());
        for (std::size_t r = 0; r < y.size(); r++) {
            for (std::size_t c = 0; c < x.size(); c++) {
                y[r] += w[r * x.size() + c] * x[c];
            }
        }
        return y;
    }

    // x / rms(x) * weight, of as many channels at once as there are weights.
    Vector normalise(const Vector& x, const std::string& name) const {
        const Vector& weight = weights(name);
        Vector y(x.size());
        for (std::size_t first = 0; first < x.size(); first += weight.size()) {
            double sum = 0;
            for (std::size_t i = 0; i < weight.size(); i++) {
                sum += x[first + i] * x[first + i];
            }
            const double mean = sum / static_cast<double>(weight.size());
            for (std::size_t i = 0; i < weight.size(); i++) {
                y[first + i] =
                    x[first + i] * weight[i] / std::sqrt(mean + static_cast<double>(shape_.norm_eps));
            }
        }
        return y;
    }
    Vector pre_normalise(const Vector& x, const std::string& name) const {
        return facts.pre_norms ? normalise(x, name) : x;
    }

    Vector feed_forward(const std::string& prefix, const Vector& h) const {
        Vector gate, up;
        if (shape_.has_fused_gate()) {
            const Vector both = multiply(prefix + "ffn_up.weight", h);
            const auto middle = both.begin() + static_cast<std::ptrdiff_t>(both.size() / 2);
            gate.assign(both.begin(), middle);
            up.assign(middle, both.end());
            if (!facts.gate_first) std::swap(gate, up);
        } else {
            gate = multiply(prefix + "ffn_gate.weight", h);
            up = multiply(prefix + "ffn_up.weight", h);
            add_optional(gate, prefix + "ffn_gate.bias");
            add_optional(up, prefix + "ffn_up.bias");
        }
        for (std::size_t i = 0; i < gate.size(); i++) {
            const double x = gate[i];
            const double pi = 3.14159265358979323846;
            gate[i] = facts.gelu
                          ? 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / pi) * (x + 0.044715 * x * x * x)))
                          : x / (1.0 + std::exp(-x));
            gate[i] *= up[i];
        }
        Vector out = multiply(prefix + "ffn_down.weight", gate);
        add_optional(out, prefix + "ffn_down.bias");
        return out;
    }

    bool is_local(std::uint32_t layer) const {
        if (facts.window == 0) return false;
        if (!shape_.window_pattern.empty()) return shape_.window_pattern[layer];
        return facts.window_period == 0 || layer % facts.window_period < facts.window_period - 1;
    }

    // Radians that pair i turns at the current position, and what its channels grow by.
    double angle(std::uint32_t i, bool scaled, double base, double* growth) const {
        const double d = shape_.rope_dim;
        double theta = position_ * std::pow(base, -2.0 * i / d);
        *growth = 1.0;
        if (!scaled) return theta;
        const double factor = shape_.factor > 0 ? static_cast<double>(shape_.factor) : 1.0;
        const double context = shape_.n_ctx;
        const double original = shape_.original_context > 0 ? shape_.original_context : context;
        if (shape_.rope_factors) theta /= weights("rope_freqs.weight")[i];
        if (shape_.rope_factor_sets) {
            theta /= weights(n_ctx_ > original ? "rope_factors_long.weight" : "rope_factors_short.weight")[i];
            *growth = std::sqrt(1.0 + std::log(context / original) / std::log(original));
        }
        if (shape_.scaling.empty() || shape_.scaling == "linear") theta /= factor;
        if (shape_.scaling == "yarn") {
            const double fast = shape_.yarn_fast > 0 ? static_cast<double>(shape_.yarn_fast) : 32.0;
            const double slow = shape_.yarn_slow > 0 ? static_cast<double>(shape_.yarn_slow) : 1.0;
            const double tau = 6.28318530717958647692;
            const double low =
                std::max(0.0, std::floor(d * std::log(original / (tau * fast)) / (2 * std::log(base))));
            const double high =
                std::min(d - 1, std::ceil(d * std::log(original / (tau * slow)) / (2 * std::log(base))));
            const double r = 1.0 - std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0);
            theta *= r + (1.0 - r) / factor;
            *growth = (1.0 + 0.1 * std::log(factor)) /
                      (1.0 + 0.1 * static_cast<double>(shape_.yarn_log_multiplier) * std::log(factor));
        }
        const auto stated = static_cast<double>(shape_.attention_factor);
        if (stated > 0) *growth = shape_.rope_factor_sets ? stated : *growth * stated;
        return theta;
    }

    void rotate(Vector& x, std::uint32_t layer) const {
        if (facts.rope_gap > 0 && (layer + 1) % facts.rope_gap == 0) return;
        const bool own = is_local(layer) && facts.local_base > 0;
        const double base = own ? facts.local_base : static_cast<double>(shape_.rope_base);
        for (std::size_t head = 0; head < x.size() / shape_.head_dim; head++) {
            for (std::uint32_t i = 0; i < shape_.rope_dim / 2; i++) {
                double growth;
                const double theta = angle(i, !is_local(layer) || facts.local_is_scaled, base, &growth);
                const std::size_t first = head * shape_.head_dim;
                double& a = x[first + (facts.adjacent ? 2 * i : i)];
                double& b = x[first + (facts.adjacent ? 2 * i + 1 : i + shape_.rope_dim / 2)];
                const double turned = a * std::cos(theta) - b * std::sin(theta);
                b = growth * (a * std::sin(theta) + b * std::cos(theta));
                a = growth * turned;
            }
        }
    }

    void project(const std::string& prefix, const Vector& h, Vector* query, Vector* key,
                 Vector* value) const {
        if (shape_.fused_qkv) {
            Vector all = multiply(prefix + "attn_qkv.weight", h);
            add_optional(all, prefix + "attn_qkv.bias");
            const auto q = static_cast<std::ptrdiff_t>(shape_.n_heads * shape_.head_dim);
            const auto kv = static_cast<std::ptrdiff_t>(shape_.n_kv_heads * shape_.head_dim);
            query->assign(all.begin(), all.begin() + q);
            key->assign(all.begin() + q, all.begin() + q + kv);
            value->assign(all.begin() + q + kv, all.end());
            return;
        }
        *query = multiply(prefix + "attn_q.weight", h);
        *key = multiply(prefix + "attn_k.weight", h);
        *value = multiply(prefix + "attn_v.weight", h);
        if (facts.query_biases) add_optional(*query, prefix + "attn_q.bias");
        if (facts.key_biases) add_optional(*key, prefix + "attn_k.bias");
        if (facts.value_biases) add_optional(*value, prefix + "attn_v.bias");
    }

    Vector attend(std::uint32_t layer, const Vector& h) {
        const std::string prefix = "blk." + std::to_string(layer) + ".";
        Vector query, key, value;
        project(prefix, h, &query, &key, &value);
        const auto normalise_both = [&] {
            if (!facts.head_norms && !facts.whole_norms) return;
            query = normalise(query, prefix + "attn_q_norm.weight");
            key = normalise(key, prefix + "attn_k_norm.weight");
        };
        if (!facts.norm_after_rope) normalise_both();
        rotate(query, layer);
        rotate(key, layer);
        if (facts.norm_after_rope) normalise_both();
        keys_[layer].push_back(key);
        values_[layer].push_back(value);
        Vector out(query.size());
        for (std::uint32_t head = 0; head < shape_.n_heads; head++) {
            attend_head(layer, head, query, out);
        }
        return out;
    }

    void attend_head(std::uint32_t layer, std::uint32_t head, const Vector& query, Vector& out) const {
        const std::size_t q = std::size_t{head} * shape_.head_dim;
        const std::size_t kv = std::size_t{head / (shape_.n_heads / shape_.n_kv_heads)} * shape_.head_dim;
        const std::size_t n = keys_[layer].size();
        const std::size_t first = is_local(layer) && n > facts.window ? n - facts.window : 0;
        Vector scores(n);
        double top = -HUGE_VAL;
        for (std::size_t t = first; t < n; t++) {
            for (std::uint32_t c = 0; c < shape_.head_dim; c++) {
                scores[t] += query[q + c] * keys_[layer][t][kv + c];
            }
            scores[t] *= facts.attention_scale;
            if (facts.attention_cap > 0) {
                scores[t] = facts.attention_cap * std::tanh(scores[t] / facts.attention_cap);
            }
            top = std::max(top, scores[t]);
        }
        double sum = 0;
        for (std::size_t t = first; t < n; t++) {
            sum += std::exp(scores[t] - top);
        }
        for (std::size_t t = first; t < n; t++) {
            const double weight = std::exp(scores[t] - top) / sum;
            for (std::uint32_t c = 0; c < shape_.head_dim; c++) {
                out[q + c] += weight * values_[layer][t][kv + c];
            }
        }
    }

    const ModelMaker& model_;
    const ModelShape& shape_;
    std::uint32_t n_ctx_;
    std::vector<std::vector<Vector>> keys_;    // [layer][token][kv channels]
    std::vector<std::vector<Vector>> values_;  // [layer][token][kv channels]
    double position_ = 0;
};

}  // namespace gearkv::test
