// What becomes of tokens that are there: they are cut off, removed, forgotten, and made smaller.
#include <algorithm>

#include "cache/impl.hpp"
#include "executor/call.hpp"

namespace gearkv {

Status Cache::truncate(std::uint64_t n_tokens, bool* lossless) noexcept {
    const std::uint32_t n_layers = config().n_layers;
    const bool is_empty = this->n_tokens(impl_->longest_layer()) == 0;
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (n_tokens <= this->n_tokens(i) || (this->n_tokens(i) == 0 && !is_empty)) continue;
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
    exact &= !any || config().soft_bytes == 0 || !can_shrink(config().spec);
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
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    const std::uint32_t n_layers = config().n_layers;
    if (n_tokens == 0) return Status::error(Code::wrong_size, "removal of 0 tokens, expected at least 1");
    const bool is_empty = this->n_tokens(impl_->longest_layer()) == 0;
    const auto has_none = [&](std::uint32_t i) { return this->n_tokens(i) == 0 && !is_empty; };
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        const std::uint64_t n_held = this->n_tokens(i);
        if ((first <= n_held && n_tokens <= n_held - first) || has_none(i)) continue;
        return Status::error(Code::wrong_size, "removal of %llu tokens from %llu, layer %u holds %llu",
                             static_cast<unsigned long long>(n_tokens),
                             static_cast<unsigned long long>(first), i,
                             static_cast<unsigned long long>(n_held));
    }
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (has_none(i)) continue;
        const LayerShape kept = impl_->layers[i]->tokens().shape().without(first, n_tokens);
        if (Status status = impl_->check_window(i, kept, "removal"); !status.ok()) return status;
    }
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (has_none(i)) continue;
        if (Status status = impl_->own(i); !status.ok()) return status;
    }
    CacheContext& context = impl_->context;
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (has_none(i)) continue;
        if (Status status = impl_->layers[i]->check_first_block(); !status.ok()) return status;
        impl_->layers[i]->prepare_remove(&context, first, executor);
        if (!impl_->layers[i]->reserve_cut(&context))
            return memory_error(context, "to cut the blocks of layer %u", i);
    }
    float angles[max_dim];
    const RopeConfig& rope = config().rope;
    const Rotation turn = make_rotation(impl_->frequencies, rope.n_pairs, rope.interleaved,
                                        -static_cast<std::int64_t>(n_tokens), angles);
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (this->n_tokens(i) > 0) impl_->layers[i]->remove(&context, first, n_tokens, turn);
    }
    impl_->look_again();
    impl_->note_dropped();
    if (impl_->rates.waits()) impl_->rates.reset(&context);
    return {};
}

Status Cache::shrink(std::uint64_t target_bytes, std::uint64_t* freed) noexcept {
    const MemoryLedger& ledger = impl_->context.ledger;
    const std::uint64_t before = ledger.total();
    const Status status = impl_->shrink(target_bytes);
    if (freed != nullptr) *freed = before - std::min(before, ledger.total());
    return status;
}

Status Cache::forget_before(std::uint32_t layer, std::uint64_t token) noexcept {
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    return impl_->forget_before(layer, token);
}

}  // namespace gearkv
