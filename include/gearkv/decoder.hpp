// A small Llama-family decoder on top of the core: GGUF model, tokenizer, session, sampler.
//
// A Model is immutable and may be shared by any number of Sessions on any threads. A Session owns its cache
// and is used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gearkv/cache.hpp"
#include "gearkv/state.hpp"

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
    std::uint32_t n_ctx = 0;     // trained context
    std::uint32_t rope_dim = 0;  // channels that are rotated, in adjacent pairs
    float rope_base = 0.0f;
    float norm_eps = 0.0f;
};

// One tensor of the file.
struct TensorInfo {
    std::string name;
    std::string type;                  // "F16", "Q8_0", ...
    std::vector<std::uint64_t> shape;  // innermost first, as GGUF counts
    std::uint64_t n_bytes = 0;
};

// SentencePiece-style BPE from the model's own vocabulary. Immutable, shared freely between threads.
class Tokenizer {
  public:
    virtual ~Tokenizer() = default;
    // Replaces *out by the tokens of a UTF-8 text, in n log n steps. Any bytes are accepted (what the
    // vocabulary lacks becomes byte tokens), and no text turns into a control token. With add_bos, the
    // model's BOS is put first if the model asks for one; EOS is never added. *out is untouched after an
    // error. Errors: invalid_argument, bad_tokenizer (a byte the vocabulary cannot express), prompt_too_long
    // (a text above 1 GiB), out_of_memory.
    virtual Status encode(std::string_view text, bool add_bos, std::vector<Token>* out) const noexcept = 0;
    // Appends the bytes a token stands for to *out; control tokens and the unknown token give none. Where the
    // model puts a space before a text, the first token has it. Errors: invalid_argument, bad_token,
    // out_of_memory.
    virtual Status decode(Token token, std::string* out) const noexcept = 0;
    virtual Token bos() const noexcept = 0;  // -1 when the model has none
    virtual Token eos() const noexcept = 0;  // -1 when the model has none
};

class Model {
  public:
    virtual ~Model() = default;
    // Maps a GGUF v2 or v3 file: llama architecture, F32, F16, BF16 or Q8_0 tensors, "llama" tokenizer, no
    // RoPE scaling but by rope_freqs, no biases, no experts, not split. What would be computed wrongly is
    // refused. The file may come from anybody, but must stay as it is while the model lives: cutting a mapped
    // file short raises SIGBUS at the next read. *out is untouched after an error. Errors: invalid_argument,
    // io_error (also for all that is no regular file), not_a_model, bad_version, truncated, corrupt_model,
    // missing_key, bad_metadata, unsupported_model, missing_tensor, shape_mismatch, bad_tokenizer,
    // out_of_memory.
    static Status load(const char* path, std::shared_ptr<const Model>* out) noexcept;

    virtual const ModelParams& params() const noexcept = 0;
    virtual const Tokenizer& tokenizer() const noexcept = 0;
    virtual const std::vector<TensorInfo>& tensors() const noexcept = 0;
    // In file order: scalars as text, arrays as their type and length. Strings are cut after 16 KiB; what
    // could steer a terminal and what is no UTF-8 is escaped as \xHH.
    virtual const std::vector<std::pair<std::string, std::string>>& metadata() const noexcept = 0;
    // Names the file for saved sessions: its metadata, its size and the first 4 KiB of every tensor.
    virtual ModelFingerprint fingerprint() const noexcept = 0;
};

struct SessionConfig {
    KvSpec spec;
    std::uint32_t n_ctx = 0;  // 0: the model's trained context
    std::uint32_t chunk =
        512;                 // tokens of a prompt processed at once, at least 1; working memory grows with it
    std::uint64_t seed = 0;  // of the cache's subspace iterations
    std::uint32_t rollback_tokens = 0;  // of the cache: the longest draft a truncation takes back losslessly
    std::uint32_t error_every = 0;      // of the cache: blocks from one sample of its error to the next
    Level level = Level::automatic;
};

// Results depend on model, config and tokens alone, not on the executor. A prompt cut into other chunks gives
// the same logits but for rounding (and the cache's compression, which follows the chunks).
//
// After an error a session is as it was before the chunk that failed (n_tokens() says where that is), and may
// go on. Only when the error struck after some layer had taken its keys and values, the session has failed:
// that error comes back from every further call, and logits() is null, until reset().
class Session {
  public:
    virtual ~Session() = default;
    // The executor is borrowed and must outlive the session. All working memory is taken here; a decode step
    // allocates only what the cache does. A build with OpenBLAS sets its thread count to 1 for the whole
    // process. Errors: invalid_argument, bad_spec, wrong_size, out_of_memory, unknown_level,
    // unavailable_level.
    static Status create(std::shared_ptr<const Model> model, const SessionConfig& config, Executor& executor,
                         std::unique_ptr<Session>* out) noexcept;

    // Feeds a prompt in chunks. logits() then belongs to its last token.
    // Errors: invalid_argument, empty_prompt, prompt_too_long, bad_token (nothing was fed then),
    // out_of_memory, non_finite (weights that are no numbers), not_representable (keys or values beyond what
    // the cache can hold).
    virtual Status prefill(const Token* tokens, std::size_t n_tokens) noexcept = 0;
    // The same, and writes the logits of every token, [n_tokens, n_vocab], to all_logits.
    virtual Status prefill(const Token* tokens, std::size_t n_tokens, float* all_logits) noexcept = 0;
    // Feeds one token. Errors: context_full, bad_token, out_of_memory, non_finite, not_representable.
    virtual Status decode(Token token) noexcept = 0;
    // Logits after the last token fed, [n_vocab], valid until the next call; null when there are none.
    virtual const float* logits() const noexcept = 0;

    // Forgets the tokens from n_tokens on, as Cache::truncate; logits() is null until more are fed. Errors:
    // wrong_size, out_of_memory; nothing is forgotten then.
    virtual Status truncate(std::uint64_t n_tokens, bool* lossless = nullptr) noexcept = 0;
    // A context shift: forgets n_tokens tokens from `first` on, and those behind them move up, as
    // Cache::remove. logits() stay. Errors: wrong_size, invalid_argument, out_of_memory; nothing is forgotten
    // then.
    virtual Status remove(std::uint64_t first, std::uint64_t n_tokens) noexcept = 0;
    // A second session with the same tokens, as Cache::fork, on an executor of its own or the same. Errors:
    // invalid_argument, out_of_memory.
    virtual Status fork(Executor& executor, std::unique_ptr<Session>* out) const noexcept = 0;
    // Writes cache and logits to a file, as save_state; load goes on where it was, with the same tokens.
    // n_ctx, chunk and level may be others; spec and model may not. Errors: those of save_state and
    // load_state.
    virtual Status save(const char* path) const noexcept = 0;
    static Status load(const char* path, std::shared_ptr<const Model> model, const SessionConfig& config,
                       StateLoading loading, Executor& executor, std::unique_ptr<Session>* out) noexcept;

    virtual std::uint64_t n_tokens() const noexcept = 0;
    virtual std::uint32_t n_ctx() const noexcept = 0;
    virtual const Cache& cache() const noexcept = 0;
    // Forgets all tokens and any failure.
    virtual void reset() noexcept = 0;
};

// temperature 0 is greedy. Filters apply in this order: top_k, top_p, min_p, then temperature.
struct SamplerConfig {
    float temperature = 0.0f;  // >= 0
    std::uint32_t top_k = 0;   // 0: off
    float top_p = 1.0f;        // (0, 1]
    float min_p = 0.0f;        // [0, 1)
    std::uint64_t seed = 0;
};

// Equal seeds and logits give equal tokens on every machine. Used by one thread at a time.
class Sampler {
  public:
    virtual ~Sampler() = default;
    // Errors: invalid_argument naming the field, out_of_memory.
    static Status create(const SamplerConfig& config, std::unique_ptr<Sampler>* out) noexcept;
    // Draws a token. Errors: non_finite (a NaN logit, or none above -Inf), out_of_memory, invalid_argument;
    // then nothing was drawn. Allocates only for more logits than in any call before.
    virtual Status sample(const float* logits, std::size_t n_vocab, Token* out) noexcept = 0;
};

}  // namespace gearkv
