#include "decoder/network/bind.hpp"

#include <cmath>

namespace gearkv {
namespace {

using Index = unsigned long long;

// Takes tensors out of a file.
class TensorBinder {
  public:
    explicit TensorBinder(const GgufFile& file) : file_(file), used_(file.tensors.size(), false) {}

    Status bind(const std::string& name, std::size_t n_rows, std::size_t n_cols, Weight* out) {
        const GgufTensor* tensor = find_tensor(file_, name);
        if (tensor == nullptr)
            return Status::error(Code::missing_tensor, "the file has no '%s'", name.c_str());
        if (tensor->dims[0] != n_cols || tensor->dims[1] != n_rows || tensor->dims[2] != 1 ||
            tensor->dims[3] != 1) {
            return Status::error(Code::shape_mismatch,
                                 "'%s' is [%llu, %llu, %llu, %llu], expected [%zu, %zu] of the metadata",
                                 name.c_str(), Index{tensor->dims[0]}, Index{tensor->dims[1]},
                                 Index{tensor->dims[2]}, Index{tensor->dims[3]}, n_cols, n_rows);
        }
        used_[static_cast<std::size_t>(tensor - file_.tensors.data())] = true;
        *out = {tensor->data, tensor->type, n_rows, n_cols,
                static_cast<std::size_t>(tensor->n_bytes / n_rows)};
        return {};
    }

    // A vector is expanded to float once.
    Status bind_vector(const std::string& name, std::size_t n, std::vector<float>* out) {
        Weight weight;
        const Status status = bind(name, 1, n, &weight);
        if (!status.ok()) return status;
        out->resize(n);
        linear_scalar.expand[static_cast<std::size_t>(weight.type)](out->data(), weight.data, 0, n);
        return {};
    }

    Status bind_optional_vector(const std::string& name, std::size_t n, std::vector<float>* out) {
        return has(name) ? bind_vector(name, n, out) : Status();
    }

    bool has(const std::string& name) const { return find_tensor(file_, name) != nullptr; }

    Status check_all_used(const Family& family) const {
        constexpr std::size_t n_named = 4;
        std::string names;
        std::size_t n_left = 0;
        for (std::size_t i = 0; i < used_.size(); i++) {
            if (used_[i] || ++n_left > n_named) continue;
            names += n_left > 1 ? ", '" : "'";
            names += std::string(file_.tensors[i].name) + "'";
        }
        if (n_left == 0) return {};
        if (n_left > n_named) names += ", ...";
        return Status::error(Code::unsupported_model,
                             "%zu tensors are no part of a %s model as it is run here: %s", n_left,
                             family.name, names.c_str());
    }

  private:
    const GgufFile& file_;
    std::vector<bool> used_;
};

// Rows [first, first + n_rows) of a matrix.
Weight rows_of(const Weight& whole, std::size_t first, std::size_t n_rows) {
    Weight rows = whole;
    rows.data += first * whole.row_bytes;
    rows.n_rows = n_rows;
    return rows;
}

class LayerBinder {
  public:
    LayerBinder(TensorBinder& binder, const NetworkParams& params, std::uint32_t layer, LayerWeights& out)
        : binder_(binder),
          family_(*params.family),
          prefix_("blk." + std::to_string(layer) + "."),
          d_(params.sizes.n_embd),
          head_(params.sizes.head_dim),
          q_(params.sizes.n_heads * head_),
          kv_(params.sizes.n_kv_heads * head_),
          f_(params.sizes.n_ff),
          out_(out) {}

    Status bind() {
        Status status = bind_norms();
        if (status.ok()) status = binder_.has(prefix_ + "attn_qkv.weight") ? bind_fused() : bind_apart();
        if (status.ok()) status = matrix("attn_output", d_, q_, &out_.attention_output);
        if (status.ok()) status = bind_feed_forward();
        if (status.ok() && family_.may_have_biases) status = bind_branch_biases();
        return status;
    }

  private:
    Status matrix(const char* name, std::size_t n_rows, std::size_t n_cols, Weight* out) {
        return binder_.bind(prefix_ + name + ".weight", n_rows, n_cols, out);
    }
    Status vector(const char* name, std::size_t n, std::vector<float>* out) {
        return binder_.bind_vector(prefix_ + name + ".weight", n, out);
    }
    Status bias(const char* name, std::size_t n, std::vector<float>* out) {
        return binder_.bind_optional_vector(prefix_ + name + ".bias", n, out);
    }

    Status bind_norms() {
        Status status;
        if (family_.pre_norms) status = vector("attn_norm", d_, &out_.attention_norm);
        if (status.ok() && family_.pre_norms) status = vector("ffn_norm", d_, &out_.ffn_norm);
        if (status.ok() && family_.post_norms) {
            status = vector("post_attention_norm", d_, &out_.attention_post_norm);
        }
        if (status.ok() && family_.post_norms) status = vector("post_ffw_norm", d_, &out_.ffn_post_norm);
        if (!status.ok() || family_.head_norm == HeadNorm::none) return status;
        const bool whole = family_.head_norm == HeadNorm::whole;
        status = vector("attn_q_norm", whole ? q_ : head_, &out_.query_norm);
        if (status.ok()) status = vector("attn_k_norm", whole ? kv_ : head_, &out_.key_norm);
        return status;
    }

    Status bind_apart() {
        Status status = matrix("attn_q", q_, d_, &out_.query);
        if (status.ok()) status = matrix("attn_k", kv_, d_, &out_.key);
        if (status.ok()) status = matrix("attn_v", kv_, d_, &out_.value);
        if (status.ok()) status = bias("attn_q", q_, &out_.query_bias);
        if (status.ok()) status = bias("attn_k", kv_, &out_.key_bias);
        if (status.ok()) status = bias("attn_v", kv_, &out_.value_bias);
        return status.ok() ? check_biases(out_.query_bias, out_.key_bias, out_.value_bias) : status;
    }

    // Rows of queries, keys, values in one tensor.
    Status bind_fused() {
        Weight whole;
        std::vector<float> biases;
        Status status = matrix("attn_qkv", q_ + 2 * kv_, d_, &whole);
        if (status.ok()) status = bias("attn_qkv", q_ + 2 * kv_, &biases);
        if (!status.ok()) return status;
        out_.query = rows_of(whole, 0, q_);
        out_.key = rows_of(whole, q_, kv_);
        out_.value = rows_of(whole, q_ + kv_, kv_);
        if (!biases.empty()) {
            const auto keys = biases.begin() + static_cast<std::ptrdiff_t>(q_);
            const auto values = keys + static_cast<std::ptrdiff_t>(kv_);
            out_.query_bias.assign(biases.begin(), keys);
            out_.key_bias.assign(keys, values);
            out_.value_bias.assign(values, biases.end());
        }
        return check_biases(out_.query_bias, out_.key_bias, out_.value_bias);
    }

    Status check_biases(const std::vector<float>& query, const std::vector<float>& key,
                        const std::vector<float>& value) const {
        if (!family_.needs_biases || !(query.empty() || key.empty() || value.empty())) return {};
        return Status::error(Code::missing_tensor, "the file has no '%sattn_%s.bias', which %s models have",
                             prefix_.c_str(),
                             query.empty() ? "q"
                             : key.empty() ? "k"
                                           : "v",
                             family_.name);
    }

    Status bind_feed_forward() {
        Status status;
        if (family_.fused_gate) {
            Weight whole;
            status = matrix("ffn_up", 2 * f_, d_, &whole);
            if (!status.ok()) return status;
            out_.gate = rows_of(whole, 0, f_);
            out_.up = rows_of(whole, f_, f_);
        } else {
            status = matrix("ffn_gate", f_, d_, &out_.gate);
            if (status.ok()) status = matrix("ffn_up", f_, d_, &out_.up);
        }
        if (status.ok()) status = matrix("ffn_down", d_, f_, &out_.down);
        return status;
    }

    Status bind_branch_biases() {
        Status status = bias("attn_output", d_, &out_.attention_output_bias);
        if (status.ok()) status = bias("ffn_gate", f_, &out_.gate_bias);
        if (status.ok()) status = bias("ffn_up", f_, &out_.up_bias);
        if (status.ok()) status = bias("ffn_down", d_, &out_.down_bias);
        return status;
    }

    TensorBinder& binder_;
    const Family& family_;
    std::string prefix_;
    std::size_t d_, head_, q_, kv_, f_;
    LayerWeights& out_;
};

Status bind_factors(TensorBinder& binder, const std::string& name, std::size_t n, std::vector<float>* out) {
    const Status status = binder.bind_vector(name, n, out);
    if (!status.ok()) return status;
    for (const float factor : *out) {
        if (std::isfinite(factor) && factor > 0.0f) continue;
        return Status::error(Code::bad_metadata, "'%s' holds %g, expected finite factors above 0",
                             name.c_str(), static_cast<double>(factor));
    }
    return {};
}

Status bind_rope_factors(TensorBinder& binder, const NetworkParams& params, Weights& out) {
    const std::string plain = "rope_freqs.weight";
    const std::string longer = "rope_factors_long.weight";
    const std::string shorter = "rope_factors_short.weight";
    const std::size_t n = params.sizes.rope_dim / 2;
    const bool has_sets = binder.has(longer) || binder.has(shorter);
    if (binder.has(plain)) {
        if (has_sets) {
            return Status::error(Code::unsupported_model, "both '%s' and '%s' or its like, expected one",
                                 plain.c_str(), longer.c_str());
        }
        return bind_factors(binder, plain, n, &out.rope_factors);
    }
    if (!has_sets) return {};
    const Status status = bind_factors(binder, longer, n, &out.rope_factors_long);
    return status.ok() ? bind_factors(binder, shorter, n, &out.rope_factors_short) : status;
}

}  // namespace

Status bind_weights(const GgufFile& file, const NetworkParams& params, Weights* out) {
    TensorBinder binder(file);
    const ModelParams& sizes = params.sizes;
    Status status = binder.bind("token_embd.weight", sizes.n_vocab, sizes.n_embd, &out->embedding);
    if (!status.ok()) return status;
    for (std::uint32_t layer = 0; layer < sizes.n_layers; layer++) {
        out->layers.emplace_back();
        status = LayerBinder(binder, params, layer, out->layers.back()).bind();
        if (!status.ok()) return status;
    }
    status = binder.bind_vector("output_norm.weight", sizes.n_embd, &out->output_norm);
    if (!status.ok()) return status;
    out->output = out->embedding;
    if (binder.has("output.weight")) {
        status = binder.bind("output.weight", sizes.n_vocab, sizes.n_embd, &out->output);
    }
    if (status.ok()) status = bind_rope_factors(binder, params, *out);
    if (status.ok()) status = binder.check_all_used(*params.family);
    return status;
}

}  // namespace gearkv
