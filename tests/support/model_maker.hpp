// Small random models of every family and shape the decoder accepts, as GGUF files.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "support/blocks.hpp"
#include "support/gguf_writer.hpp"

namespace gearkv::test {

// Metadata that are 0 or empty are not written, unless said otherwise.
struct ModelShape {
    std::string family = "llama";
    std::uint32_t n_embd = 32;
    std::uint32_t n_layers = 1;
    std::uint32_t n_heads = 4;
    std::uint32_t n_kv_heads = 2;
    std::uint32_t head_dim = 8;
    std::uint32_t n_ff = 32;
    std::uint32_t n_ctx = 64;
    std::uint32_t rope_dim = 8;
    float rope_base = 10000.0f;
    float norm_eps = 1e-5f;
    bool own_output = false;
    bool rope_factors = false;      // rope_freqs
    bool rope_factor_sets = false;  // rope_factors_long and _short
    bool biases = false;            // of queries, keys and values
    bool branch_biases = false;     // of the attention output and the feed-forward
    bool fused_qkv = false;
    float attention_scale = 0.0f;
    float attention_cap = -1.0f;  // -1: not written
    float logit_cap = -1.0f;
    float embedding_scale = 0.0f;
    float residual_scale = 0.0f;
    float logit_scale = 0.0f;
    std::uint32_t window = 0;
    std::uint32_t window_period = 0;   // as an integer
    std::vector<bool> window_pattern;  // as an array of booleans
    float local_base = 0.0f;
    std::string scaling;
    float factor = 0.0f;
    float attention_factor = 0.0f;
    std::uint32_t original_context = 0;
    float yarn_fast = 0.0f, yarn_slow = 0.0f, yarn_log_multiplier = 0.0f;
    std::uint32_t matrix_type = gguf_f32;
    std::uint64_t alignment = 32;
    unsigned seed = 1;

    bool has_pre_norms() const { return family != "olmo2"; }
    bool has_post_norms() const { return family == "gemma2" || family == "gemma3" || family == "olmo2"; }
    bool has_head_norms() const { return family == "qwen3" || family == "gemma3"; }
    bool has_whole_norms() const { return family == "olmo2"; }
    bool has_fused_gate() const { return family == "phi3"; }
};

// Bytes of a matrix in the file, and in *values what they stand for. Types other than F32, F16, BF16 and Q8_0
// get random blocks of their own, which only the first weights tell apart.
inline Bytes encode_weights(const std::vector<float>& x, std::uint32_t type, std::vector<double>* values) {
    Bytes out;
    values->clear();
    if (type == gguf_q8_0) {
        for (std::size_t i = 0; i < x.size(); i += 32) {
            const float scale = 1.0f / 1024.0f * static_cast<float>(1 + i / 32 % 3);  // exact in half
            put(out, to_half(scale));
            for (std::size_t j = 0; j < 32; j++) {
                const long code = std::max(-128L, std::min(127L, std::lround(x[i + j] / scale)));
                put(out, static_cast<std::int8_t>(code));
                values->push_back(static_cast<double>(scale) * static_cast<double>(code));
            }
        }
        return out;
    }
    if (const TensorType* found = find_tensor_type(type); found != nullptr && found->block > 1) {
        std::uint32_t seed;
        std::memcpy(&seed, x.data(), sizeof(seed));
        out = random_blocks(found->type, x.size(), seed);
        const std::vector<float> kept = expand_blocks(found->type, out);
        values->assign(kept.begin(), kept.end());
        return out;
    }
    for (const float value : x) {
        std::uint32_t bits;
        float kept = value;
        if (type == gguf_f16) {
            int exponent;
            const float fraction = std::frexp(value, &exponent);
            kept = std::ldexp(std::round(std::ldexp(fraction, 11)), exponent - 11);
            if (std::fabs(kept) < 0x1p-14f) kept = std::ldexp(std::round(std::ldexp(value, 24)), -24);
        }
        if (type == gguf_bf16) {
            std::memcpy(&bits, &kept, sizeof(bits));
            bits &= 0xffff0000u;
            std::memcpy(&kept, &bits, sizeof(kept));
            put(out, static_cast<std::uint16_t>(bits >> 16));
        } else if (type == gguf_f16) {
            put(out, to_half(kept));
        } else {
            put(out, kept);
        }
        values->push_back(static_cast<double>(kept));
    }
    return out;
}

// Three control tokens, 256 byte tokens, then "a" to "z", the space mark and some merges of them.
inline std::vector<std::string> test_vocabulary() {
    std::vector<std::string> texts = {"<unk>", "<s>", "</s>"};
    for (int byte = 0; byte < 256; byte++) {
        const char* digits = "0123456789ABCDEF";
        texts.push_back(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
    }
    for (char c = 'a'; c <= 'z'; c++) {
        texts.emplace_back(1, c);
    }
    for (const char* text : {"\xe2\x96\x81", "th", "the", "\xe2\x96\x81the", "he", "an", "and"}) {
        texts.emplace_back(text);
    }
    return texts;
}

class ModelMaker {
  public:
    explicit ModelMaker(const ModelShape& shape) : shape(shape), random_(shape.seed) {
        set_metadata();
        set_tokenizer();
        const std::uint64_t d = shape.n_embd;
        add_matrix("token_embd.weight", n_vocab, d, 1.0f);
        for (std::uint32_t layer = 0; layer < shape.n_layers; layer++) {
            add_layer("blk." + std::to_string(layer) + ".");
        }
        add_vector("output_norm.weight", d);
        if (shape.own_output) add_matrix("output.weight", n_vocab, d);
        if (shape.rope_factors) add_vector("rope_freqs.weight", shape.rope_dim / 2);
        if (shape.rope_factor_sets) {
            add_vector("rope_factors_long.weight", shape.rope_dim / 2);
            add_vector("rope_factors_short.weight", shape.rope_dim / 2);
        }
    }

    // What the weights of a tensor stand for, row after row.
    const std::vector<double>& values(const std::string& name) const {
        static const std::vector<double> none;
        const auto found = values_.find(name);
        return found == values_.end() ? none : found->second;
    }

    ModelShape shape;
    std::uint32_t n_vocab = 0;
    GgufWriter file;

  private:
    void set_metadata() {
        const std::string prefix = shape.family + ".";
        file.set("general.architecture", shape.family);
        file.set(prefix + "block_count", shape.n_layers);
        file.set(prefix + "embedding_length", shape.n_embd);
        file.set(prefix + "feed_forward_length", shape.n_ff);
        file.set(prefix + "context_length", shape.n_ctx);
        file.set(prefix + "attention.head_count", shape.n_heads);
        file.set(prefix + "attention.head_count_kv", shape.n_kv_heads);
        file.set(prefix + "attention.key_length", shape.head_dim);
        file.set(prefix + "attention.value_length", shape.head_dim);
        file.set(prefix + "attention.layer_norm_rms_epsilon", shape.norm_eps);
        file.set(prefix + "rope.dimension_count", shape.rope_dim);
        file.set(prefix + "rope.freq_base", shape.rope_base);
        set_optional("attention.scale", shape.attention_scale);
        if (shape.attention_cap >= 0.0f) file.set(prefix + "attn_logit_softcapping", shape.attention_cap);
        if (shape.logit_cap >= 0.0f) file.set(prefix + "final_logit_softcapping", shape.logit_cap);
        set_optional("embedding_scale", shape.embedding_scale);
        set_optional("residual_scale", shape.residual_scale);
        set_optional("logit_scale", shape.logit_scale);
        set_optional("attention.sliding_window", shape.window);
        set_optional("attention.sliding_window_pattern", shape.window_period);
        if (!shape.window_pattern.empty()) {
            file.set_array(prefix + "attention.sliding_window_pattern", shape.window_pattern);
        }
        set_optional("rope.freq_base_swa", shape.local_base);
        if (!shape.scaling.empty()) file.set(prefix + "rope.scaling.type", shape.scaling);
        set_optional("rope.scaling.factor", shape.factor);
        set_optional("rope.scaling.attn_factor", shape.attention_factor);
        set_optional("rope.scaling.original_context_length", shape.original_context);
        set_optional("rope.scaling.yarn_beta_fast", shape.yarn_fast);
        set_optional("rope.scaling.yarn_beta_slow", shape.yarn_slow);
        set_optional("rope.scaling.yarn_log_multiplier", shape.yarn_log_multiplier);
        if (shape.alignment != 32) file.set("general.alignment", static_cast<std::uint32_t>(shape.alignment));
        file.alignment = shape.alignment;
    }

    template <class T>
    void set_optional(const std::string& key, T value) {
        if (value != T{}) file.set(shape.family + "." + key, value);
    }

    void add_layer(const std::string& prefix) {
        const std::uint64_t d = shape.n_embd;
        const std::uint64_t q = std::uint64_t{shape.n_heads} * shape.head_dim;
        const std::uint64_t kv = std::uint64_t{shape.n_kv_heads} * shape.head_dim;
        const std::uint64_t f = shape.n_ff;
        if (shape.has_pre_norms()) add_vector(prefix + "attn_norm.weight", d);
        if (shape.fused_qkv) {
            add_matrix(prefix + "attn_qkv.weight", q + 2 * kv, d);
            if (shape.biases) add_bias(prefix + "attn_qkv.bias", q + 2 * kv);
        } else {
            add_matrix(prefix + "attn_q.weight", q, d);
            add_matrix(prefix + "attn_k.weight", kv, d);
            add_matrix(prefix + "attn_v.weight", kv, d);
            if (shape.biases) {
                add_bias(prefix + "attn_q.bias", q);
                add_bias(prefix + "attn_k.bias", kv);
                add_bias(prefix + "attn_v.bias", kv);
            }
        }
        if (shape.has_head_norms() || shape.has_whole_norms()) {
            add_vector(prefix + "attn_q_norm.weight", shape.has_whole_norms() ? q : shape.head_dim);
            add_vector(prefix + "attn_k_norm.weight", shape.has_whole_norms() ? kv : shape.head_dim);
        }
        add_matrix(prefix + "attn_output.weight", d, q);
        if (shape.has_post_norms()) add_vector(prefix + "post_attention_norm.weight", d);
        if (shape.has_pre_norms()) add_vector(prefix + "ffn_norm.weight", d);
        if (!shape.has_fused_gate()) add_matrix(prefix + "ffn_gate.weight", f, d);
        add_matrix(prefix + "ffn_up.weight", shape.has_fused_gate() ? 2 * f : f, d);
        add_matrix(prefix + "ffn_down.weight", d, f);
        if (shape.branch_biases) {
            add_bias(prefix + "attn_output.bias", d);
            add_bias(prefix + "ffn_gate.bias", f);
            add_bias(prefix + "ffn_up.bias", f);
            add_bias(prefix + "ffn_down.bias", d);
        }
        if (shape.has_post_norms()) add_vector(prefix + "post_ffw_norm.weight", d);
    }

    void set_tokenizer() {
        const std::vector<std::string> texts = test_vocabulary();
        n_vocab = static_cast<std::uint32_t>(texts.size());
        std::vector<float> scores(n_vocab);
        std::vector<std::int32_t> types(n_vocab, 1);
        for (std::uint32_t i = 0; i < n_vocab; i++) {
            if (i >= 285) scores[i] = -static_cast<float>(i);
            if (i < 3) types[i] = i == 0 ? 2 : 3;
            if (i >= 3 && i < 259) types[i] = 6;
        }
        file.set("tokenizer.ggml.model", "llama");
        file.set_array("tokenizer.ggml.tokens", texts);
        file.set_array("tokenizer.ggml.scores", scores);
        file.set_array("tokenizer.ggml.token_type", types);
        file.set("tokenizer.ggml.bos_token_id", std::uint32_t{1});
        file.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
        file.set("tokenizer.ggml.add_space_prefix", false);
    }

    void add_matrix(const std::string& name, std::uint64_t n_rows, std::uint64_t n_cols, float size = 0.0f) {
        if (size == 0.0f) size = 1.0f / std::sqrt(static_cast<float>(n_cols));
        std::normal_distribution<float> normal(0.0f, size);
        add(name, {n_cols, n_rows}, shape.matrix_type, [&] { return normal(random_); });
    }
    void add_vector(const std::string& name, std::uint64_t n) {
        std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
        add(name, {n}, gguf_f32, [&] { return uniform(random_); });
    }
    void add_bias(const std::string& name, std::uint64_t n) {
        std::normal_distribution<float> normal(0.0f, 0.5f);
        add(name, {n}, gguf_f32, [&] { return normal(random_); });
    }
    template <class Draw>
    void add(const std::string& name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
             Draw&& draw) {
        std::uint64_t n = 1;
        for (const std::uint64_t dim : dims) {
            n *= dim;
        }
        std::vector<float> weights(n);
        for (float& weight : weights) {
            weight = draw();
        }
        GgufWriter::Tensor& tensor = file.tensor(name);
        tensor.dims = dims;
        tensor.type = type;
        tensor.data = encode_weights(weights, type, &values_[name]);
    }

    std::mt19937 random_;
    std::unordered_map<std::string, std::vector<double>> values_;
};

}  // namespace gearkv::test
