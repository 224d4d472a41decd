// A model: what its file says about the forward pass, checked, and weights where they lie in the file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "decoder/gguf/parts.hpp"
#include "decoder/network/linear.hpp"
#include "decoder/network/params.hpp"
#include "gearkv/model.hpp"

namespace gearkv {

// A matrix [n_rows, n_cols] in the file, rows one after the other, of any alignment.
struct Weight {
    const std::uint8_t* data = nullptr;
    WeightType type = WeightType::f32;
    std::size_t n_rows = 0;
    std::size_t n_cols = 0;
    std::size_t row_bytes = 0;
};

// d = n_embd, q = n_heads * head_dim, kv = n_kv_heads * head_dim, f = n_ff. Vectors are empty where the
// model has none; norms of heads are [head_dim], or [q] and [kv] over all heads at once.
struct LayerWeights {
    std::vector<float> attention_norm;         // [d]
    Weight query;                              // [q, d]
    Weight key;                                // [kv, d]
    Weight value;                              // [kv, d]
    std::vector<float> query_bias;             // [q]
    std::vector<float> key_bias;               // [kv]
    std::vector<float> value_bias;             // [kv]
    std::vector<float> query_norm;             // of heads
    std::vector<float> key_norm;               // of heads
    Weight attention_output;                   // [d, q]
    std::vector<float> attention_output_bias;  // [d]
    std::vector<float> attention_post_norm;    // [d]
    std::vector<float> ffn_norm;               // [d]
    Weight gate;                               // [f, d]
    Weight up;                                 // [f, d]
    Weight down;                               // [d, f]
    std::vector<float> gate_bias;              // [f]
    std::vector<float> up_bias;                // [f]
    std::vector<float> down_bias;              // [d]
    std::vector<float> ffn_post_norm;          // [d]
};

// Frequencies of RoPE are divided by the factors, [rope_dim / 2] each; empty: all 1.
struct Weights {
    Weight embedding;  // [n_vocab, d]
    std::vector<LayerWeights> layers;
    std::vector<float> output_norm;         // [d]
    Weight output;                          // [n_vocab, d]; the embedding when the file has no own
    std::vector<float> rope_factors;        // at any length
    std::vector<float> rope_factors_short;  // up to the original context; these two or neither
    std::vector<float> rope_factors_long;   // beyond it
};

class FileModel final : public Model {
  public:
    const ModelParams& params() const noexcept override { return network_.sizes; }
    const Tokenizer& tokenizer() const noexcept override { return *tokenizer_; }
    std::shared_ptr<const Tokenizer> shared_tokenizer() const noexcept override { return tokenizer_; }
    const std::vector<TensorInfo>& tensors() const noexcept override { return tensors_; }
    const std::vector<std::pair<std::string, std::string>>& metadata() const noexcept override {
        return metadata_;
    }
    ModelFingerprint fingerprint() const noexcept override { return fingerprint_; }
    const NetworkParams& network() const noexcept { return network_; }
    const Weights& weights() const noexcept { return weights_; }
    // Of the files the weights lie in; none when they lie in the caller's memory.
    const std::vector<FileId>& file_ids() const noexcept { return file_ids_; }

    // A model over bytes that outlive it. May throw std::bad_alloc. Errors: as Model::load, but for io_error.
    static Status load_bytes(const std::uint8_t* bytes, std::uint64_t n_bytes,
                             std::shared_ptr<const FileModel>* out, const ModelOptions& options = {});
    // The same over mappings the model keeps.
    static Status load_file(GgufModel file, std::shared_ptr<const FileModel>* out,
                            const ModelOptions& options = {});

  private:
    static Status build(const GgufFile& file, const ModelOptions& options, FileModel& model);

    std::vector<MappedFile> files_;
    std::vector<FileId> file_ids_;
    NetworkParams network_;
    ModelFingerprint fingerprint_;
    Weights weights_;
    std::shared_ptr<const Tokenizer> tokenizer_;
    std::vector<TensorInfo> tensors_;
    std::vector<std::pair<std::string, std::string>> metadata_;
};

}  // namespace gearkv
