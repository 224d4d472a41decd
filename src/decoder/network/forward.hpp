// One pass of tokens through a model of any family.
#pragma once

#include <span>
#include <vector>

#include "decoder/network/floats.hpp"
#include "decoder/network/model.hpp"
#include "decoder/network/product.hpp"
#include "decoder/network/rope.hpp"
#include "gearkv/cache.hpp"
#include "gearkv/executor.hpp"

namespace gearkv {

// One sequence of a step of many: a token behind those of a cache.
struct StepRow {
    Token token = 0;
    std::uint64_t position = 0;
    Cache* cache = nullptr;
    const Rope* ropes = nullptr;  // [2], those of its own context
    float* logits = nullptr;      // [n_vocab], written where the status is ok
    Status status;                // what became of it
    bool touched = false;         // some layer of the cache holds the token
};

// Working memory and products of one session. Allocates in its constructor only.
class Forward {
  public:
    // Everything is borrowed. Products of quantised weights are in floats when `integer` is null. Feeds up to
    // `chunk` tokens at once, into a context of n_ctx. May throw std::bad_alloc.
    Forward(const FileModel& model, const LinearKernels& kernels, const IntegerKernels* integer,
            std::uint32_t n_ctx, std::size_t chunk, Executor& executor);

    // Appends n <= chunk tokens at positions [position, position + n) to every layer of the cache.
    // Errors: those of Cache; *touched tells whether some layer already holds the tokens then.
    Status feed(const Token* tokens, std::size_t n, std::uint64_t position, Cache& cache,
                bool* touched) noexcept;

    // The same, to the bit, as feeding the tokens one by one, where the rates of the cache are chosen
    // already.
    Status feed_singly(const Token* tokens, std::size_t n, std::uint64_t position, Cache& cache,
                       bool* touched) noexcept;
    // Logits of all of them, [n, n_vocab], those of compute_logits after each. Errors: non_finite.
    Status compute_single_logits(std::size_t n, float* logits) noexcept;

    // Logits of the tokens [first, first + n) of those fed last, [n, n_vocab]. To be called once per feed.
    // Errors: non_finite.
    Status compute_logits(std::size_t first, std::size_t n, float* logits) noexcept;

    // Room for steps of n sequences, at most `chunk`. May throw std::bad_alloc.
    void reserve_step(std::size_t n) { requests_.reserve(n); }
    // One token of each of n sequences, as many as room was reserved for; every one gets the bits that feed
    // and compute_logits of its token alone would give it. Rows that fail are left behind, and the others go
    // on.
    void step(StepRow* rows, std::size_t n) noexcept;

    const Rope* ropes() const noexcept { return ropes_; }
    Executor& executor() const noexcept { return executor_; }
    // How the keys of a layer are rotated; the frequencies are this object's.
    RopeConfig layer_rope(std::uint32_t layer) const noexcept;
    // Of all queries from now on.
    void read_less(float mass, float most_share, float negligible) noexcept {
        mass_ = mass;
        most_share_ = most_share;
        negligible_ = negligible;
    }
    // Of working memory.
    std::uint64_t n_bytes() const noexcept;

  private:
    // What a branch multiplies last, on its way back to the residual stream.
    struct BranchEnd {
        const Weight& weight;
        const std::vector<float>& bias;
        const std::vector<float>& norm;
    };

    void embed(std::size_t t, Token token, const Rope* ropes, std::uint64_t position) noexcept;
    template <class Attend>
    Status run_layers(std::size_t n, const Attend& attend) noexcept;
    void project(const LayerWeights& layer, std::uint32_t index, std::size_t n) noexcept;
    Rows keys_of(std::size_t t) const noexcept;
    Rows values_of(std::size_t t) const noexcept;
    Queries queries_of(std::uint32_t index, std::size_t t, std::size_t n) const noexcept;
    Status attend(std::uint32_t index, std::size_t n, Cache& cache, bool* touched) noexcept;
    Status attend_singly(std::uint32_t index, std::size_t n, Cache& cache, bool* touched) noexcept;
    void attend_step(std::uint32_t index, StepRow* rows, std::size_t n) noexcept;
    void compute_step_logits(StepRow* rows, std::size_t n) noexcept;
    bool finish_logits(float* logits, std::size_t n) const noexcept;
    void prepare_heads(const LayerWeights& layer, LayerRope rope, std::size_t n) noexcept;
    void feed_forward(const LayerWeights& layer, std::size_t n) noexcept;
    void end_branch(const BranchEnd& end, const float* x, std::size_t n) noexcept;

    // Calls fn(t) for every token t < n, a few tokens to a task.
    template <class Function>
    void for_tokens(std::size_t n, Function&& fn) noexcept;
    // The tokens [first, first + n) of the residual stream with this norm, or as they are without one.
    const float* normalise(std::size_t first, std::size_t n, const std::vector<float>& weight) noexcept;

    const NetworkParams& params_;
    const ModelParams& sizes_;
    const Weights& weights_;
    Executor& executor_;
    ProductEngine engine_;
    float mass_ = 1.0f, most_share_ = 1.0f, negligible_ = 0.0f;
    Rope ropes_[2];    // by LayerRope
    Floats turns_[2];  // [chunk, 2, rope_dim / 2], cosines and sines; empty where no layer has that RoPE
    Floats x_;         // [chunk, n_embd], the residual stream
    Floats normed_;    // [chunk, n_embd]
    Floats room_;      // of the branch at hand, attention or feed-forward:
    std::span<float> query_;               // [chunk, n_heads, head_dim]
    std::span<float> mixed_;               // [chunk, n_heads, head_dim], attention output
    std::span<float> key_;                 // [chunk, n_kv_heads, head_dim]
    std::span<float> value_;               // [chunk, n_kv_heads, head_dim]
    std::span<float> gate_;                // [chunk, n_ff]
    std::span<float> up_;                  // [chunk, n_ff]
    std::vector<AttendRequest> requests_;  // of a step
};

}  // namespace gearkv
