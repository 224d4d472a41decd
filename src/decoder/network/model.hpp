// A llama-architecture model: checked sizes, and weights where they lie in the file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "decoder/gguf/gguf.hpp"
#include "decoder/network/linear.hpp"
#include "file/mapped_file.hpp"
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

// d = n_embd, q = n_heads * head_dim, kv = n_kv_heads * head_dim, f = n_ff
struct LayerWeights {
    std::vector<float> attention_norm;  // [d]
    Weight query;                       // [q, d]
    Weight key;                         // [kv, d]
    Weight value;                       // [kv, d]
    Weight attention_output;            // [d, q]
    std::vector<float> ffn_norm;        // [d]
    Weight gate;                        // [f, d]
    Weight up;                          // [f, d]
    Weight down;                        // [d, f]
};

struct Weights {
    Weight embedding;  // [n_vocab, d]
    std::vector<LayerWeights> layers;
    std::vector<float> output_norm;   // [d]
    Weight output;                    // [n_vocab, d]; the embedding when the file has no own
    std::vector<float> rope_factors;  // [rope_dim / 2], by which frequencies are divided; empty: all 1
};

class LlamaModel final : public Model {
  public:
    const ModelParams& params() const noexcept override { return params_; }
    const Tokenizer& tokenizer() const noexcept override { return *tokenizer_; }
    const std::vector<TensorInfo>& tensors() const noexcept override { return tensors_; }
    const std::vector<std::pair<std::string, std::string>>& metadata() const noexcept override {
        return metadata_;
    }
    ModelFingerprint fingerprint() const noexcept override { return fingerprint_; }
    const Weights& weights() const noexcept { return weights_; }

    // A model over bytes that outlive it. May throw std::bad_alloc. Errors: as Model::load, but for io_error.
    static Status load_bytes(const std::uint8_t* bytes, std::uint64_t n_bytes,
                             std::shared_ptr<const LlamaModel>* out);
    // The same over a mapping the model keeps.
    static Status load_file(MappedFile file, std::shared_ptr<const LlamaModel>* out);

  private:
    static Status build(const std::uint8_t* bytes, std::uint64_t n_bytes, LlamaModel& model);

    MappedFile file_;
    ModelParams params_;
    ModelFingerprint fingerprint_;
    Weights weights_;
    std::unique_ptr<Tokenizer> tokenizer_;
    std::vector<TensorInfo> tensors_;
    std::vector<std::pair<std::string, std::string>> metadata_;
};

}  // namespace gearkv
