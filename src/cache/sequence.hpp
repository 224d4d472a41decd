// What a sequence is, apart from the working memory of calls: layers that hold its tokens, what they share,
// and rates yet to be chosen.
#pragma once

#include "cache/layer.hpp"
#include "cache/rates.hpp"

namespace gearkv {

// Blocks of keys or values of a layer that can go to the same preset's rate.
struct LowerRate {
    std::uint32_t first = 0;  // none of them is before this one
    float error = -1.0f;      // by LayerStream::reencode, of the last one; negative when none is known
};

// Keys or values of a block that could be encoded again.
struct LowerStep {
    std::uint32_t layer = 0;
    TensorKind kind = TensorKind::key;
    std::size_t preset = 0;
    std::uint64_t block = 0;
    BlockHeader lower = {};     // then
    std::uint64_t n_bytes = 0;  // then, of keys and values
    std::uint64_t n_saved = 0;
};

struct Sequence {
    CacheContext context;
    double* frequencies = nullptr;     // of the rotary embedding, [rope.n_pairs]
    std::uint32_t* windows = nullptr;  // [n_layers], null without
    LayerDims* dims = nullptr;         // [n_layers], null where all are alike
    LayerStream** layers = nullptr;    // null: without tokens, and without memory yet, or without keys at all
    RateChooser rates;
    // A layer was appended to that held tokens: those without any are passed over from then on.
    bool has_stepped = false;
    // [drop_low_rank][n_layers] So many first blocks are known not to shrink any more.
    std::uint64_t* irreducible = nullptr;
    LowerRate* lower_rates = nullptr;  // [n_layers][kind][preset]
    Lowering lowering;                 // for soft_bytes, of `lowered`
    LowerStep lowered;

    explicit Sequence(const CacheConfig& config) noexcept : context(config) {}
    // Layers are made too, or taken from `shared`. False when memory is short; destroy() is right in any
    // case.
    bool create(const Sequence* shared) noexcept;
    void destroy() noexcept;

    std::uint64_t n_tokens(std::uint32_t layer) const noexcept {
        return layers[layer] == nullptr ? 0 : layers[layer]->n_tokens();
    }
    Status check_layer(std::uint32_t layer) const noexcept;
    // Whether there is such a layer and it takes tokens. Errors: invalid_argument, no_keys.
    Status check_keys(std::uint32_t layer) const noexcept;
    bool has_keys(std::uint32_t layer) const noexcept { return context.config.dims_of(layer).has_keys(); }
    // Whether no tokens are to come to this layer, as far as can be told.
    bool is_passed_over(std::uint32_t layer) const noexcept {
        return !has_keys(layer) || (has_stepped && n_tokens(layer) == 0);
    }
    // Of the layers that are not passed over; 0 when all are.
    std::uint64_t least_tokens() const noexcept;
    // Of the layer that holds most, the first of several.
    std::uint32_t longest_layer() const noexcept;
    // Before the tokens of an append come to a layer; after tokens have gone.
    void note_append(std::uint32_t layer) noexcept { has_stepped |= n_tokens(layer) > 0; }
    void note_dropped() noexcept { has_stepped &= n_tokens(longest_layer()) > 0; }
    // Before a layer with keys changes: it is there, and no other cache's. Errors: out_of_memory,
    // over_budget.
    Status own(std::uint32_t layer) noexcept;
    Status own_all() noexcept;
    // Whether every layer that is not passed over has queries to choose rates by, and as many tokens as the
    // others: what is measured on a shorter prompt lies nearer, and counts more.
    bool can_choose() const noexcept;
    // Before this layer compresses, if it is about to for the first time. Errors: as above.
    // A layer of fewer than n_needed tokens would not be.
    Status choose_rates(std::uint32_t layer, std::uint64_t n_needed, Executor& executor) noexcept;
    // Before all but n_tokens are dropped: what was kept to choose rates by must not be of them. False when
    // some was, and is dropped too.
    bool truncate_rates(std::uint64_t n_tokens) noexcept;
    // Gives back the blocks of a layer without a token from `token` on, as the caller wishes. Errors: as
    // above, and damaged.
    Status forget_before(std::uint32_t layer, std::uint64_t token) noexcept;
    // Whether the window of a layer would still be whole with this shape, after what `what` says. Errors:
    // forgotten.
    Status check_window(std::uint32_t layer, const LayerShape& shape, const char* what) const noexcept;
    // After a layer has grown: what its window leaves behind goes, and older blocks shrink to soft_bytes.
    // Those are encoded again only as long as their sections are less than n_sections.
    Status keep_within(std::uint32_t layer, std::uint64_t n_sections, Executor& executor) noexcept;

    // ---- shrink.cpp ----
    Status shrink(std::uint64_t target_bytes, std::uint64_t n_sections, Executor& executor) noexcept;
    // What a step that brings n_tokens to the first of its layers may encode again.
    std::uint64_t soft_sections(std::uint32_t layer, std::uint32_t n_tokens) const noexcept;
    // The first block of a layer from i on that can shrink; its number of blocks when there is none.
    std::uint64_t next_reducible(std::uint32_t layer, std::uint64_t i, bool drop_low_rank) noexcept;
    // After blocks of any layer have gone, or of one.
    void look_again() noexcept;
    void look_again(std::uint32_t layer) noexcept;
    // What lower rates cost is measured again.
    void forget_prices() noexcept;

  private:
    // Outliers and low rank go, of blocks that have some. Errors: out_of_memory, over_budget.
    Status drop_parts(std::uint64_t target_bytes) noexcept;
    // One of the two, of every block there is memory for: whether any went, and what memory was short of.
    Status drop_parts_once(std::uint64_t target_bytes, bool drop_low_rank, bool* any,
                           Status* short_of) noexcept;
    Status lower_steps(std::uint64_t target_bytes, std::uint64_t n_sections, Executor& executor) noexcept;
    // After begin_lower. Errors: out_of_memory, over_budget.
    Status finish_step() noexcept;
    // All at once, and not beyond the target: every block is encoded once, whatever the rate it goes to. What
    // is left then takes steps. Errors: out_of_memory, over_budget, damaged.
    Status lower_far(std::uint64_t target_bytes, Executor& executor) noexcept;
    struct FarRate;
    Status plan_far(std::uint64_t target_bytes, FarRate* plan, Executor& executor) noexcept;
    LowerRate* lower_rates_of(std::uint32_t layer, TensorKind kind) noexcept;
    // The first block of a layer that goes to this preset's rate, and to less than `too_large` bytes with
    // what is beside it; false when there is none.
    bool find_lower(std::uint32_t layer, TensorKind kind, std::size_t preset, std::uint64_t too_large,
                    LowerStep* out) noexcept;
    // Of all of them the one where a byte costs least. What is not known yet is measured, as long as *n_done
    // is less than n_sections; then, and when there is none, false. Errors: out_of_memory, over_budget.
    Status find_cheapest(std::uint64_t too_large, std::uint64_t n_sections, Executor& executor,
                         std::uint64_t* n_done, LowerStep* out, bool* found) noexcept;

    // The first n tokens of blocks, as LayerStream::forget. Errors: as forget_before.
    Status give_back(std::uint32_t layer, std::uint64_t n, bool by_caller, bool behind_window) noexcept;

  public:
    // What create takes beside the layers, without auto:BITS.
    static std::uint64_t created_bytes(const CacheConfig& config) noexcept;
    static std::uint64_t irreducible_bytes(const CacheConfig& config) noexcept {
        return 2 * config.n_layers * sizeof(std::uint64_t);
    }
    static std::uint64_t lower_rates_bytes(const CacheConfig& config) noexcept;
};

}  // namespace gearkv
