// A small Llama-family decoder on top of the core: GGUF model, tokenizer, session, sampler.
//
// A Model is immutable and may be shared by any number of Sessions on any threads. A Session owns its cache and
// is used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gearkv/cache.hpp"

namespace gearkv {

using Token = std::int32_t;

// Sizes of a llama-architecture model, as its metadata states them.
struct ModelParams {
    std::uint32_t n_vocab = 0;
    std::uint32_t n_embd = 0;
    std::uint32_t n_layers = 0;
    std::uint32_t n_heads = 0;
    std::uint32_t n_kv_heads = 0;
    std::uint32_t head_dim = 0;
    std::uint32_t n_ff = 0;
    std::uint32_t n_ctx = 0;      // trained context
    std::uint32_t rope_dim = 0;   // channels that are rotated, in adjacent pairs
    float rope_base = 0.0f;
    float norm_eps = 0.0f;
};

// One tensor of the file.
struct TensorInfo {
    std::string name;
    std::string type;                        // "F16", "Q8_0", ...
    std::vector<std::uint64_t> shape;        // innermost first, as GGUF counts
    std::uint64_t n_bytes = 0;
};

// SentencePiece-style BPE from the model's own vocabulary. Immutable, shared freely between threads.
class Tokenizer {
  public:
    virtual ~Tokenizer() = default;
    // Tokens of a UTF-8 text; any bytes are accepted (what the vocabulary lacks becomes byte tokens).
    // With add_bos, the model's BOS is put first if the model asks for one. Text is not searched for special
    // tokens. Errors: out_of_memory, bad_tokenizer (a byte the vocabulary cannot express).
    virtual Status encode(std::string_view text, bool add_bos, std::vector<Token>* out) const noexcept = 0;
    // The bytes a token stands for, appended to *out; control tokens give none.
    // Errors: bad_token, out_of_memory.
    virtual Status decode(Token token, std::string* out) const noexcept = 0;
    virtual Token bos() const noexcept = 0;  // -1 when the model has none
    virtual Token eos() const noexcept = 0;  // -1 when the model has none
};

class Model {
  public:
    virtual ~Model() = default;
    // Maps a GGUF v2 or v3 file (F32, F16, BF16, Q8_0 tensors; llama architecture). The file must stay as it is
    // while the model lives. Errors: io_error, not_a_model, bad_version, truncated, corrupt_model, missing_key,
    // bad_metadata, unsupported_model, missing_tensor, shape_mismatch, bad_tokenizer, out_of_memory.
    static Status load(const char* path, std::shared_ptr<const Model>* out) noexcept;

    virtual const ModelParams& params() const noexcept = 0;
    virtual const Tokenizer& tokenizer() const noexcept = 0;
    virtual const std::vector<TensorInfo>& tensors() const noexcept = 0;
    // Scalar metadata as text, strings with control characters escaped; arrays as their type and length.
    virtual const std::vector<std::pair<std::string, std::string>>& metadata() const noexcept = 0;
};

struct SessionConfig {
    KvSpec spec;
    std::uint32_t n_ctx = 0;      // 0: the model's trained context
    std::uint32_t chunk = 512;    // tokens of a prompt processed at once
    std::uint64_t seed = 0;       // of the cache's subspace iterations
    Level level = Level::automatic;
};

class Session {
  public:
    virtual ~Session() = default;
    // The executor is borrowed and must outlive the session.
    // Errors: invalid_argument, bad_spec, out_of_memory, unknown_level, unavailable_level.
    static Status create(std::shared_ptr<const Model> model, const SessionConfig& config, Executor& executor,
                         std::unique_ptr<Session>* out) noexcept;

    // Feeds a prompt in chunks. logits() then belongs to its last token.
    // Errors: empty_prompt, prompt_too_long, bad_token (nothing was fed then), out_of_memory.
    virtual Status prefill(const Token* tokens, std::size_t n_tokens) noexcept = 0;
    // The same, and writes the logits of every token, [n_tokens, n_vocab], to all_logits.
    virtual Status prefill(const Token* tokens, std::size_t n_tokens, float* all_logits) noexcept = 0;
    // Feeds one token. Errors: context_full, bad_token, out_of_memory.
    virtual Status decode(Token token) noexcept = 0;
    // Logits after the last token fed, [n_vocab]; null before the first.
    virtual const float* logits() const noexcept = 0;

    virtual std::uint64_t n_tokens() const noexcept = 0;
    virtual std::uint32_t n_ctx() const noexcept = 0;
    virtual const Cache& cache() const noexcept = 0;
    virtual void reset() noexcept = 0;
};

// temperature 0 is greedy. Filters apply in this order: top_k, top_p, min_p, then temperature.
struct SamplerConfig {
    float temperature = 0.0f;     // >= 0
    std::uint32_t top_k = 0;      // 0: off
    float top_p = 1.0f;           // (0, 1]
    float min_p = 0.0f;           // [0, 1)
    std::uint64_t seed = 0;
};

// Equal seeds and logits give equal tokens on every machine.
class Sampler {
  public:
    virtual ~Sampler() = default;
    // Errors: invalid_argument naming the field, out_of_memory.
    static Status create(const SamplerConfig& config, std::unique_ptr<Sampler>* out) noexcept;
    // Errors: non_finite (a NaN logit, or none above -Inf), out_of_memory, invalid_argument.
    virtual Status sample(const float* logits, std::size_t n_vocab, Token* out) noexcept = 0;
};

}  // namespace gearkv
