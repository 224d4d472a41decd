// How far attention on a closed block is from attention on the tokens it was made of, sampled as blocks
// close.
#pragma once

#include "attention/attend.hpp"
#include "gearkv/cache.hpp"
#include "memory/ledger.hpp"

namespace gearkv {

// Errors of the blocks of one layer that were looked at, as sums of squares over query heads and channels.
struct ErrorSample {
    double error = 0.0;
    double output = 0.0;
    std::uint64_t n_blocks = 0;  // looked at
    std::uint64_t n_closed = 0;
};

// Keeps the last query of every layer. A block is attended by it alone, compressed and in fp16: what other
// tokens weigh does not enter.
class ErrorEstimate {
  public:
    // Every `every`-th block of a layer; 0 does nothing, and needs no memory. False when memory is short;
    // destroy() is right in any case.
    bool create(const CacheConfig& config, const Memory& memory) noexcept;
    void destroy(const Memory& memory) noexcept;
    static std::uint64_t created_bytes(const CacheConfig& config) noexcept {
        return config.error_every == 0 ? 0 : config.n_layers * (sizeof(ErrorSample) + sizeof(Query));
    }
    // Of one query that is kept.
    static std::uint64_t row_floats(const LayerDims& dims, bool latent) noexcept {
        return std::uint64_t{dims.key_dim} + (latent ? dims.value_dim : 0);
    }
    void reset() noexcept;

    // The last of them. False when memory is short; the query before stays then.
    bool keep(const Kernels& kernels, const Memory& memory, std::uint32_t layer, const LayerDims& dims,
              const Queries& queries) noexcept;
    // Keys and values of the block and of its tokens; `scratch` has a slot of attend_scratch_bytes for every
    // KV head.
    void measure(const Kernels& kernels, std::uint32_t layer, const KvRun& block, const KvRun& tokens,
                 void* scratch, Executor& executor) noexcept;
    const ErrorSample* sample(std::uint32_t layer) const noexcept {
        return samples_ == nullptr ? nullptr : &samples_[layer];
    }

  private:
    struct Query {
        float* rows = nullptr;  // [head][key_dim], and of latents [head][value_dim] behind them
        LayerDims dims;
        bool latent = false;
        std::uint32_t n_heads = 0;  // 0: there was none yet
        float scale = 0.0f;         // 0: there is none
        float soft_cap = 0.0f;

        std::uint64_t n_bytes() const noexcept { return n_heads * row_floats(dims, latent) * sizeof(float); }
        const float* latents() const noexcept { return rows + std::uint64_t{n_heads} * dims.key_dim; }
        std::uint64_t n_out() const noexcept { return std::uint64_t{n_heads} * dims.value_dim; }
    };
    std::uint64_t outputs_bytes() const noexcept { return 2 * most_out_ * sizeof(float); }
    void attend(const Kernels& kernels, const Query& query, const KvRun& run, void* scratch, float* out,
                Executor& executor) noexcept;

    ErrorSample* samples_ = nullptr;  // by layer
    Query* queries_ = nullptr;        // by layer
    float* outputs_ = nullptr;        // two of the layer that has the largest
    std::uint64_t most_out_ = 0;      // floats of one
    std::uint32_t every_ = 0, n_layers_ = 0;
};

}  // namespace gearkv
