// A model file: sizes, tensors, metadata and vocabulary. Immutable, and shared by any number of sessions on
// any threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gearkv/state.hpp"
#include "gearkv/status.hpp"
#include "gearkv/tokenizer.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

// Sizes of a model, as its metadata state them.
struct ModelParams {
    const char* family = "";         // "llama", "gemma3", ..., as general.architecture has it; never ends
    std::uint64_t n_parameters = 0;  // elements of all tensors
    std::uint32_t n_vocab = 0;
    std::uint32_t n_embd = 0;
    std::uint32_t n_layers = 0;
    std::uint32_t n_heads = 0;
    std::uint32_t n_kv_heads = 0;
    std::uint32_t head_dim = 0;
    std::uint32_t n_ff = 0;
    std::uint32_t n_ctx = 0;     // trained context
    std::uint32_t rope_dim = 0;  // channels of a head that are rotated
    float rope_base = 0.0f;      // of the layers that see all tokens, where others have one of their own
    float norm_eps = 0.0f;
    // [n_layers] tokens that a layer sees, its own last ones; 0 for all. Empty when all layers see all
    // tokens.
    std::vector<std::uint32_t> windows;
};

// One tensor of the file.
struct TensorInfo {
    std::string name;
    std::string type;                  // "F16", "Q8_0", ...
    std::vector<std::uint64_t> shape;  // innermost first, as GGUF counts
    std::uint64_t n_bytes = 0;
};

// What a GGUF file says of itself, whether it can be run or not.
struct ModelFile {
    std::vector<std::pair<std::string, std::string>> metadata;  // as Model::metadata
    std::vector<TensorInfo> tensors;  // none of a file with tensors of a type that is not known here
};
// Reads it; of a split model as Model::load, of which part makes no difference. Errors: invalid_argument,
// io_error, not_a_model, bad_version, truncated, corrupt_model, bad_metadata, unsupported_model (arrays of
// arrays), out_of_memory. *out is untouched then.
Status read_model_file(const char* path, ModelFile* out) noexcept;

struct ModelOptions {
    const char* pre = nullptr;  // as in TokenizerOptions
};

class Model {
  public:
    virtual ~Model() = default;
    // Maps a GGUF v2 or v3 file. Families: llama (1 to 3.2, Mistral, SmolLM 1 and 2), qwen2, qwen3, gemma,
    // gemma2, gemma3, phi3, smollm3, granite, olmo2; RoPE unscaled, linear, YaRN, by rope_freqs (Llama 3) or
    // by short and long factors (Phi); F32, F16, BF16, Q2_K to Q8_0, IQ4_NL, IQ4_XS, MXFP4 or TQ2_0 tensors;
    // any vocabulary that Tokenizer::load reads; dense. Of a split model, NAME-00001-of-00003.gguf, any part
    // opens all, which must lie side by side. What would be computed wrongly is refused by name: tensors that
    // are left over, and metadata of the architecture that are not obeyed. The files may come from anybody,
    // but must stay as they are while the model lives: cutting a mapped file short raises SIGBUS at the next
    // read. *out is untouched after an error. Errors: invalid_argument, io_error (a missing part, all that is
    // no regular file), not_a_model, bad_version, truncated, corrupt_model, missing_key, bad_metadata,
    // unsupported_model, missing_tensor, shape_mismatch, bad_tokenizer, out_of_memory.
    static Status load(const char* path, std::shared_ptr<const Model>* out,
                       const ModelOptions& options = {}) noexcept;

    virtual const ModelParams& params() const noexcept = 0;
    virtual const Tokenizer& tokenizer() const noexcept = 0;
    // The same, for what may outlive the model.
    virtual std::shared_ptr<const Tokenizer> shared_tokenizer() const noexcept = 0;
    virtual const std::vector<TensorInfo>& tensors() const noexcept = 0;
    // In file order: scalars as text, arrays as their type and length. Strings are cut after 16 KiB; what
    // could steer a terminal and what is no UTF-8 is escaped as \xHH.
    virtual const std::vector<std::pair<std::string, std::string>>& metadata() const noexcept = 0;
    // Names the file for saved sessions: its metadata, its size and the first 4 KiB of every tensor.
    virtual ModelFingerprint fingerprint() const noexcept = 0;
};

}  // namespace gearkv
#pragma GCC visibility pop
