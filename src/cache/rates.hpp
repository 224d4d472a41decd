// "auto:BITS": how many planes every layer, head and tensor gets, by what they save of the attention output.
#pragma once

#include "cache/layer.hpp"

namespace gearkv {

// The spec as given, or with the rates of a layer's even share of the budget. Errors: bad_spec when blocks of
// its shape take more than the budget at the lowest rates.
Status initial_spec(const CacheConfig& config, std::uint32_t layer, KvSpec* out) noexcept;
// What a layer with keys begins with: keys and values of the initial spec, or those of the rule that holds
// for it. The configuration is checked.
KvSpec first_spec(const CacheConfig& config, std::uint32_t layer) noexcept;

// Some of the last queries of a layer.
struct QuerySample {
    static constexpr std::uint32_t most_queries = 64;

    float* rows = nullptr;                // [query][head][key_dim]
    std::uint64_t visible[most_queries];  // tokens the query could see
    std::uint32_t n_queries = 0;
    std::uint32_t next = 0;  // to be replaced
    std::uint32_t n_heads = 0;
    float scale = 0.0f;
    std::uint64_t n_tokens = 0;  // that the last one came with; not in a state file
};

// Keeps queries until the first block is about to be compressed, and chooses then.
class RateChooser {
  public:
    // False when memory is short; destroy() is right in any case. Does nothing for a spec without auto_bits.
    bool create(CacheContext* context) noexcept;
    bool copy(CacheContext* context, const RateChooser& other) noexcept;
    void destroy(CacheContext* context) noexcept;
    // Chooses anew for the next sequence.
    void reset(CacheContext* context) noexcept;

    // Whether rates are still to be chosen.
    bool waits() const noexcept { return samples_ != nullptr && !is_done_; }
    // For a state file. What is kept of a layer, or null; and back again, with `rows` of its queries. False
    // when memory is short.
    const QuerySample* sample(std::uint32_t layer) const noexcept {
        return samples_ == nullptr ? nullptr : &samples_[layer];
    }
    bool restore(CacheContext* context, std::uint32_t layer, const QuerySample& sample,
                 const void* rows) noexcept;
    // What is kept of a layer is dropped when it has seen more than n_tokens, and false is the answer.
    bool truncate(CacheContext* context, std::uint32_t layer, std::uint64_t n_tokens) noexcept;
    void set_done(bool is_done) noexcept { is_done_ = is_done; }
    // Errors: out_of_memory, over_budget.
    Status keep(CacheContext* context, std::uint32_t layer, const Queries& queries,
                std::uint64_t n_tokens) noexcept;
    // Whether a layer has tokens and queries.
    bool can_measure(std::uint32_t i, const LayerStream& layer) const noexcept {
        return samples_[i].n_queries > 0 && layer.tokens().n_buffered() > 0;
    }
    // Sets the planes of all layers whose queries see enough of their tokens; the others keep their even
    // share. No layer has a block. Errors: out_of_memory; nothing is set then.
    Status choose(CacheContext* context, LayerStream* const* layers, Executor& executor) noexcept;

  private:
    void forget_queries(CacheContext* context) noexcept;
    void forget_queries(CacheContext* context, std::uint32_t layer) noexcept;

    QuerySample* samples_ = nullptr;  // by layer
    bool is_done_ = false;
};

}  // namespace gearkv
