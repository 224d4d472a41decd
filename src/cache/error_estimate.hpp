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
    void reset() noexcept;

    // False when memory is short; the query before stays then.
    bool keep(const Memory& memory, std::uint32_t layer, const Queries& queries) noexcept;
    // Keys and values of the block and of its tokens; `scratch` has a slot of attend_scratch_bytes for every
    // KV head.
    void measure(const Kernels& kernels, std::uint32_t layer, const KvRun& block, const KvRun& tokens,
                 void* scratch, Executor& executor) noexcept;
    const ErrorSample* sample(std::uint32_t layer) const noexcept {
        return samples_ == nullptr ? nullptr : &samples_[layer];
    }

  private:
    struct Query {
        float scale = 0.0f;  // 0: there is none yet
        float soft_cap = 0.0f;
    };
    std::uint64_t query_floats() const noexcept { return std::uint64_t{n_heads_} * key_dim_; }
    std::uint64_t rows_bytes() const noexcept;
    void attend(const Kernels& kernels, std::uint32_t layer, const KvRun& run, void* scratch, float* out,
                Executor& executor) noexcept;

    ErrorSample* samples_ = nullptr;  // by layer
    Query* queries_ = nullptr;        // by layer
    float* rows_ = nullptr;           // [layer][head][key_dim], then two outputs of [head][value_dim]
    std::uint32_t every_ = 0, n_layers_ = 0, n_kv_heads_ = 0, key_dim_ = 0, value_dim_ = 0;
    std::uint32_t n_heads_ = 0;  // of the queries; 0 until there is one
};

}  // namespace gearkv
