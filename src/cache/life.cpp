// What becomes of tokens that are there: they are cut off, removed, forgotten, and made smaller.
#include <algorithm>

#include "cache/impl.hpp"
#include "executor/call.hpp"

namespace gearkv {
namespace {

// Whether the keys of all layers may move by these ropes.
Status check_ropes(const CacheAccess::Impl& cache, const RopeConfig* ropes) {
    const CacheConfig& config = cache.context.config;
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        const LayerDims dims = config.dims_of(i);
        if (!dims.has_keys()) continue;
        const RopeConfig& rope = ropes == nullptr ? config.rope : ropes[i];
        if (Status status = check_rope(rope, dims.key_dim); !status.ok())
            return Status::error(status.code(), "layer %u: %s", i, status.message());
        const LayerStream* stream = cache.layers[i];
        if (stream == nullptr || stream->rope_in_use().agrees(rope, config.rope)) continue;
        return Status::error(Code::other_rope,
                             "keys of layer %u have moved by another rope, of %u pairs, than this one of %u",
                             i, stream->rope(cache.context).n_pairs, rope.n_pairs);
    }
    return {};
}

// Without ropes, by that of the configuration.
Status remove_tokens(CacheAccess::Impl& cache, std::uint64_t first, std::uint64_t n_tokens,
                     const RopeConfig* ropes, Executor& caller) {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    CacheContext& context = cache.context;
    const CacheConfig& config = context.config;
    if (n_tokens == 0) return Status::error(Code::wrong_size, "removal of 0 tokens, expected at least 1");
    const bool is_empty = cache.n_tokens(cache.longest_layer()) == 0;
    const auto has_none = [&](std::uint32_t i) {
        return cache.n_tokens(i) == 0 && (!is_empty || !config.dims_of(i).has_keys());
    };
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        const std::uint64_t n_held = cache.n_tokens(i);
        if ((first <= n_held && n_tokens <= n_held - first) || has_none(i)) continue;
        return Status::error(Code::wrong_size, "removal of %llu tokens from %llu, layer %u holds %llu",
                             static_cast<unsigned long long>(n_tokens),
                             static_cast<unsigned long long>(first), i,
                             static_cast<unsigned long long>(n_held));
    }
    if (Status status = check_ropes(cache, ropes); !status.ok()) return status;
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        if (has_none(i)) continue;
        const LayerShape kept = cache.layers[i]->tokens().shape().without(first, n_tokens);
        if (Status status = cache.check_window(i, kept, "removal"); !status.ok()) return status;
    }
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        if (has_none(i)) continue;
        if (Status status = cache.own(i); !status.ok()) return status;
    }
    const auto rope_of = [&](std::uint32_t layer) -> const RopeConfig& {
        return ropes == nullptr ? config.rope : ropes[layer];
    };
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        if (has_none(i)) continue;
        LayerStream& stream = *cache.layers[i];
        if (Status status = stream.check_first_block(); !status.ok()) return status;
        if (!stream.reserve_rope(&context, rope_of(i)))
            return memory_error(context, "for the rope of layer %u", i);
        stream.prepare_remove(&context, first, executor);
        if (!stream.reserve_cut(&context)) return memory_error(context, "to cut the blocks of layer %u", i);
    }
    float angles[max_dim];
    Rotation turn;
    const RopeConfig* turned = nullptr;  // by which `turn` is
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        if (cache.n_tokens(i) == 0) continue;
        const RopeConfig& rope = rope_of(i);
        if (turned == nullptr || !is_same(rope, *turned)) {
            turn = make_rotation(rope.frequencies, rope.n_pairs, rope.interleaved,
                                 -static_cast<std::int64_t>(n_tokens), angles);
        }
        turned = &rope;
        cache.layers[i]->remove(&context, first, n_tokens, rope, turn);
    }
    cache.look_again();
    cache.note_dropped();
    if (cache.rates.waits()) cache.rates.reset(&context);
    return {};
}

}  // namespace

Status Cache::truncate(std::uint64_t n_tokens, bool* lossless) noexcept {
    const std::uint32_t n_layers = config().n_layers;
    const bool is_empty = this->n_tokens(impl_->longest_layer()) == 0;
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (n_tokens <= this->n_tokens(i) || (this->n_tokens(i) == 0 && !is_empty)) continue;
        if (!config().dims_of(i).has_keys()) continue;
        return Status::error(Code::wrong_size, "truncation to %llu tokens, layer %u holds %llu",
                             static_cast<unsigned long long>(n_tokens), i,
                             static_cast<unsigned long long>(this->n_tokens(i)));
    }
    const auto is_cut = [&](std::uint32_t i) { return n_tokens < this->n_tokens(i); };
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (!is_cut(i)) continue;
        const LayerShape kept = impl_->layers[i]->tokens().shape().truncated(n_tokens);
        if (Status status = impl_->check_window(i, kept, "truncation"); !status.ok()) return status;
    }
    const auto changes = [&](std::uint32_t i) {
        return is_cut(i) || (this->n_tokens(i) > 0 && !impl_->layers[i]->is_settled());
    };
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (!changes(i)) continue;
        if (Status status = impl_->own(i); !status.ok()) return status;
    }
    bool exact = impl_->truncate_rates(n_tokens), any = false;
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (!changes(i)) continue;
        exact &= impl_->layers[i]->truncate(&impl_->context, n_tokens);
        any = true;
    }
    // Whether blocks shrink, and which, depends on all memory that was ever taken.
    exact &= !any || config().soft_bytes == 0 || !can_shrink(config());
    for (std::uint32_t i = 0; !exact && i < n_layers; ++i) {
        if (this->n_tokens(i) > 0 && !impl_->layers[i]->is_shared()) impl_->layers[i]->note(n_tokens);
    }
    impl_->look_again();
    impl_->note_dropped();
    if (lossless != nullptr) *lossless = exact;
    return {};
}

Status Cache::truncate_to_shortest(std::uint64_t* n_tokens, bool* lossless) noexcept {
    const std::uint64_t n_least = impl_->least_tokens();
    if (Status status = truncate(n_least, lossless); !status.ok()) return status;
    if (n_tokens != nullptr) *n_tokens = n_least;
    return {};
}

Status Cache::remove(std::uint64_t first, std::uint64_t n_tokens, Executor& caller) noexcept {
    return remove_tokens(*impl_, first, n_tokens, nullptr, caller);
}

Status Cache::remove(std::uint64_t first, std::uint64_t n_tokens, const RopeConfig* ropes,
                     Executor& caller) noexcept {
    if (ropes == nullptr) return Status::error(Code::invalid_argument, "ropes are null");
    return remove_tokens(*impl_, first, n_tokens, ropes, caller);
}

Status Cache::shrink(std::uint64_t target_bytes, std::uint64_t* freed, Executor& caller) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    const MemoryLedger& ledger = impl_->context.ledger;
    const std::uint64_t before = ledger.total();
    // The cache itself is of the caller's memory too.
    const Status status = impl_->shrink(target_bytes - std::min<std::uint64_t>(target_bytes, sizeof(Impl)),
                                        UINT64_MAX, executor);
    if (freed != nullptr) *freed = before - std::min(before, ledger.total());
    return status;
}

Status Cache::forget_before(std::uint32_t layer, std::uint64_t token) noexcept {
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    return impl_->forget_before(layer, token);
}

}  // namespace gearkv
