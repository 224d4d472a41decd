// Small models of random weights, for calls and refused (build.sh DIR shapes): shapes MODEL FOLDER writes
//   FOLDER/heads.gguf     other heads in every layer, one layer without keys, one without attention (DeciLM)
//   FOLDER/hybrid.gguf    attention in two layers of four, short convolutions in the others (LFM2)
//   FOLDER/latent.gguf    keys and values out of a latent row for each token (MLA, of DeepSeek 2)
//   FOLDER/encoder.gguf   nothing but an encoder (BERT)
//   FOLDER/both.gguf      an encoder, and a decoder with biases of its scores (T5)
// MODEL gives the vocabulary.
#include <ggml.h>
#include <gguf.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr std::int64_t n_channels = 128, n_inner = 256, dim = 32;

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "shapes: %s\n", what.c_str());
    std::exit(1);
}

struct Layer {
    std::uint32_t n_heads, n_kv_heads;
};

// A model on its way to a file.
class Model {
  public:
    Model(const gguf_context* vocabulary, const char* family, const std::vector<Layer>& layers)
        : file_(gguf_init_empty()), family_(family), layers_(layers) {
        tensors_ = ggml_init({std::size_t{64} << 20, nullptr, false});
        if (file_ == nullptr || tensors_ == nullptr) fail("no memory");
        gguf_set_kv(file_, vocabulary);
        gguf_set_val_str(file_, "general.architecture", family);
        std::vector<std::uint32_t> heads, kv_heads;
        for (const Layer& layer : layers) {
            heads.push_back(layer.n_heads);
            kv_heads.push_back(layer.n_kv_heads);
        }
        set("context_length", 4096);
        set("embedding_length", n_channels);
        set("block_count", static_cast<std::uint32_t>(layers.size()));
        set("feed_forward_length", n_inner);
        set("attention.key_length", dim);  // families may set others
        set("attention.value_length", dim);
        set("rope.dimension_count", dim);
        gguf_set_val_f32(file_, key("attention.layer_norm_rms_epsilon").c_str(), 1e-5f);
        gguf_set_arr_data(file_, key("attention.head_count").c_str(), GGUF_TYPE_UINT32, heads.data(),
                          heads.size());
        gguf_set_arr_data(file_, key("attention.head_count_kv").c_str(), GGUF_TYPE_UINT32, kv_heads.data(),
                          kv_heads.size());
        const auto n_tokens = static_cast<std::int64_t>(
            gguf_get_arr_n(vocabulary, gguf_find_key(vocabulary, "tokenizer.ggml.tokens")));
        set("vocab_size", static_cast<std::uint32_t>(n_tokens));
        add("token_embd", n_channels, n_tokens);
    }
    ~Model() {
        gguf_free(file_);
        ggml_free(tensors_);
    }
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    void set(const char* what, std::uint32_t value) { gguf_set_val_u32(file_, key(what).c_str(), value); }
    gguf_context* file() const { return file_; }
    const std::vector<Layer>& layers() const { return layers_; }

    // Of so many inputs; a norm without outputs.
    void add(const std::string& name, std::int64_t n_in, std::int64_t n_out = 0, std::int64_t n_heads = 1) {
        ggml_tensor* const tensor = n_out > 0
                                        ? ggml_new_tensor_3d(tensors_, GGML_TYPE_F32, n_in, n_out, n_heads)
                                        : ggml_new_tensor_1d(tensors_, GGML_TYPE_F32, n_in);
        ggml_set_name(tensor, (name + ".weight").c_str());
        std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(n_in)));
        auto* const data = static_cast<float*>(tensor->data);
        for (std::int64_t i = 0; i < ggml_nelements(tensor); ++i)
            data[i] = n_out > 0 ? normal(random_) : 1.0f;
        gguf_add_tensor(file_, tensor);
    }
    void add_to(std::size_t layer, const char* name, std::int64_t n_in, std::int64_t n_out = 0,
                std::int64_t n_heads = 1) {
        add("blk." + std::to_string(layer) + "." + name, n_in, n_out, n_heads);
    }
    // A norm with a bias.
    void add_norm(const std::string& name) {
        add(name, n_channels);
        ggml_tensor* const bias = ggml_new_tensor_1d(tensors_, GGML_TYPE_F32, n_channels);
        ggml_set_name(bias, (name + ".bias").c_str());
        std::memset(bias->data, 0, ggml_nbytes(bias));
        gguf_add_tensor(file_, bias);
    }
    void add_attention(std::size_t layer) {
        const auto [n_heads, n_kv_heads] = layers_[layer];
        add_to(layer, "attn_q", n_channels, n_heads * dim);
        add_to(layer, "attn_k", n_channels, n_kv_heads * dim);
        add_to(layer, "attn_v", n_channels, n_kv_heads * dim);
        add_to(layer, "attn_output", n_heads * dim, n_channels);
    }
    void add_inner(std::size_t layer) {
        add_to(layer, "ffn_norm", n_channels);
        add_to(layer, "ffn_gate", n_channels, n_inner);
        add_to(layer, "ffn_up", n_channels, n_inner);
        add_to(layer, "ffn_down", n_inner, n_channels);
    }
    void write(const std::string& path) const {
        if (!gguf_write_to_file(file_, path.c_str(), false)) fail("cannot write " + path);
    }

  private:
    std::string key(const char* what) const { return family_ + "." + what; }

    gguf_context* file_;
    ggml_context* tensors_;
    std::string family_;
    std::vector<Layer> layers_;
    std::mt19937 random_{1};
};

void write_heads(const gguf_context* vocabulary, const std::string& path) {
    Model model(vocabulary, "deci", {{4, 2}, {4, 4}, {4, 0}, {8, 1}, {0, 0}, {2, 2}});
    model.add("output_norm", n_channels);
    for (std::size_t i = 0; i < model.layers().size(); ++i) {
        if (model.layers()[i].n_heads > 0) model.add_to(i, "attn_norm", n_channels);
        if (model.layers()[i].n_kv_heads > 0)
            model.add_attention(i);
        else if (model.layers()[i].n_heads > 0)
            model.add_to(i, "attn_output", n_channels, n_channels);
        model.add_inner(i);
    }
    model.write(path);
}

void write_hybrid(const gguf_context* vocabulary, const std::string& path) {
    constexpr std::uint32_t n_places = 3;  // of a convolution
    Model model(vocabulary, "lfm2", {{4, 0}, {4, 2}, {4, 0}, {4, 1}});
    model.set("shortconv.l_cache", n_places);
    model.add("token_embd_norm", n_channels);
    for (std::size_t i = 0; i < model.layers().size(); ++i) {
        model.add_to(i, "attn_norm", n_channels);
        if (model.layers()[i].n_kv_heads > 0) {
            model.add_attention(i);
            model.add_to(i, "attn_q_norm", dim);
            model.add_to(i, "attn_k_norm", dim);
        } else {
            model.add_to(i, "shortconv.conv", n_places, n_channels);
            model.add_to(i, "shortconv.in_proj", n_channels, 3 * n_channels);
            model.add_to(i, "shortconv.out_proj", n_channels, n_channels);
        }
        model.add_inner(i);
    }
    model.write(path);
}

void write_latent(const gguf_context* vocabulary, const std::string& path) {
    constexpr std::uint32_t n_latent = 48, n_query_latent = 64, n_turned = 16;
    Model model(vocabulary, "deepseek2", {{4, 1}, {4, 1}});
    const auto n_layers = static_cast<std::uint32_t>(model.layers().size());
    model.set("leading_dense_block_count", n_layers);
    model.set("expert_shared_count", 0);
    model.set("expert_feed_forward_length", n_inner);
    model.set("attention.q_lora_rank", n_query_latent);
    model.set("attention.kv_lora_rank", n_latent);
    model.set("attention.key_length", n_latent + n_turned);
    model.set("attention.value_length", n_latent);
    model.set("attention.key_length_mla", dim + n_turned);
    model.set("attention.value_length_mla", dim);
    model.set("rope.dimension_count", n_turned);
    model.add("output_norm", n_channels);
    for (std::size_t i = 0; i < n_layers; ++i) {
        const std::int64_t n_heads = model.layers()[i].n_heads;
        model.add_to(i, "attn_norm", n_channels);
        model.add_to(i, "attn_q_a_norm", n_query_latent);
        model.add_to(i, "attn_kv_a_norm", n_latent);
        model.add_to(i, "attn_q_a", n_channels, n_query_latent);
        model.add_to(i, "attn_q_b", n_query_latent, n_heads * (dim + n_turned));
        model.add_to(i, "attn_kv_a_mqa", n_channels, n_latent + n_turned);
        model.add_to(i, "attn_k_b", dim, n_latent, n_heads);
        model.add_to(i, "attn_v_b", n_latent, dim, n_heads);
        model.add_to(i, "attn_output", n_heads * dim, n_channels);
        model.add_inner(i);
    }
    model.write(path);
}

void write_encoder(const gguf_context* vocabulary, const std::string& path) {
    Model model(vocabulary, "bert", {{4, 4}, {4, 4}});
    gguf_set_val_f32(model.file(), "bert.attention.layer_norm_epsilon", 1e-5f);
    gguf_set_val_bool(model.file(), "bert.attention.causal", false);
    gguf_set_val_u32(model.file(), "tokenizer.ggml.token_type_count", 2);
    model.add("token_types", n_channels, 2);
    model.add("position_embd", n_channels, 4096);
    model.add_norm("token_embd_norm");
    for (std::size_t i = 0; i < model.layers().size(); ++i) {
        model.add_attention(i);
        model.add_norm("blk." + std::to_string(i) + ".attn_output_norm");
        model.add_to(i, "ffn_up", n_channels, n_inner);
        model.add_to(i, "ffn_down", n_inner, n_channels);
        model.add_norm("blk." + std::to_string(i) + ".layer_output_norm");
    }
    model.write(path);
}

void write_both(const gguf_context* vocabulary, const std::string& path) {
    constexpr std::uint32_t n_buckets = 32;
    Model model(vocabulary, "t5", {{4, 4}});
    model.set("attention.relative_buckets_count", n_buckets);
    model.set("decoder_start_token_id", 0);
    const std::int64_t n_heads = model.layers()[0].n_heads;
    for (const char* side : {"enc", "dec"}) {
        const std::string stem = side, layer = stem + ".blk.0.";
        model.add(stem + ".output_norm", n_channels);
        model.add(layer + "attn_rel_b", n_heads, n_buckets);
        for (const char* kind : {"attn", "cross_attn"}) {
            if (stem == "enc" && kind[0] == 'c') continue;
            model.add(layer + kind + "_norm", n_channels);
            for (const char* part : {"_q", "_k", "_v", "_o"})
                model.add(layer + kind + part, n_channels, n_channels);
        }
        model.add(layer + "ffn_norm", n_channels);
        model.add(layer + "ffn_up", n_channels, n_inner);
        model.add(layer + "ffn_down", n_inner, n_channels);
    }
    model.write(path);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return std::fprintf(stderr, "shapes MODEL FOLDER\n"), 2;
    gguf_context* const vocabulary = gguf_init_from_file(argv[1], {true, nullptr});
    if (vocabulary == nullptr) fail(std::string("no model ") + argv[1]);
    write_heads(vocabulary, std::string(argv[2]) + "/heads.gguf");
    write_hybrid(vocabulary, std::string(argv[2]) + "/hybrid.gguf");
    write_latent(vocabulary, std::string(argv[2]) + "/latent.gguf");
    write_encoder(vocabulary, std::string(argv[2]) + "/encoder.gguf");
    write_both(vocabulary, std::string(argv[2]) + "/both.gguf");
    gguf_free(vocabulary);
    return 0;
}
