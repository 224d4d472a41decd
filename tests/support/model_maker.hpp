// Small random llama models of every shape the decoder accepts, as GGUF files.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "support/blocks.hpp"
#include "support/gguf_writer.hpp"

namespace gearkv::test {

struct ModelShape {
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
    bool rope_factors = false;
    std::uint32_t matrix_type = gguf_f32;
    std::uint64_t alignment = 32;
    unsigned seed = 1;
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
        const std::uint64_t q = std::uint64_t{shape.n_heads} * shape.head_dim;
        const std::uint64_t kv = std::uint64_t{shape.n_kv_heads} * shape.head_dim;
        add_matrix("token_embd.weight", n_vocab, d, 1.0f);
        for (std::uint32_t layer = 0; layer < shape.n_layers; layer++) {
            const std::string prefix = "blk." + std::to_string(layer) + ".";
            add_vector(prefix + "attn_norm.weight", d);
            add_matrix(prefix + "attn_q.weight", q, d);
            add_matrix(prefix + "attn_k.weight", kv, d);
            add_matrix(prefix + "attn_v.weight", kv, d);
            add_matrix(prefix + "attn_output.weight", d, q);
            add_vector(prefix + "ffn_norm.weight", d);
            add_matrix(prefix + "ffn_gate.weight", shape.n_ff, d);
            add_matrix(prefix + "ffn_up.weight", shape.n_ff, d);
            add_matrix(prefix + "ffn_down.weight", d, shape.n_ff);
        }
        add_vector("output_norm.weight", d);
        if (shape.own_output) add_matrix("output.weight", n_vocab, d);
        if (shape.rope_factors) add_vector("rope_freqs.weight", shape.rope_dim / 2);
    }

    // What the weights of a tensor stand for, row after row.
    const std::vector<double>& values(const std::string& name) const {
        for (const auto& [tensor, values] : values_) {
            if (tensor == name) return values;
        }
        static const std::vector<double> none;
        return none;
    }

    ModelShape shape;
    std::uint32_t n_vocab = 0;
    GgufWriter file;

  private:
    void set_metadata() {
        file.set("general.architecture", "llama");
        file.set("llama.block_count", shape.n_layers);
        file.set("llama.embedding_length", shape.n_embd);
        file.set("llama.feed_forward_length", shape.n_ff);
        file.set("llama.context_length", shape.n_ctx);
        file.set("llama.attention.head_count", shape.n_heads);
        file.set("llama.attention.head_count_kv", shape.n_kv_heads);
        file.set("llama.attention.key_length", shape.head_dim);
        file.set("llama.attention.value_length", shape.head_dim);
        file.set("llama.attention.layer_norm_rms_epsilon", shape.norm_eps);
        file.set("llama.rope.dimension_count", shape.rope_dim);
        file.set("llama.rope.freq_base", shape.rope_base);
        if (shape.alignment != 32) file.set("general.alignment", static_cast<std::uint32_t>(shape.alignment));
        file.alignment = shape.alignment;
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
        values_.emplace_back(name, std::vector<double>());
        GgufWriter::Tensor& tensor = file.tensor(name);
        tensor.dims = dims;
        tensor.type = type;
        tensor.data = encode_weights(weights, type, &values_.back().second);
    }

    std::mt19937 random_;
    std::vector<std::pair<std::string, std::vector<double>>> values_;
};

}  // namespace gearkv::test
