// How a layer comes to be, is shared, copied and ends.
#include <new>

#include "cache/layer.hpp"

namespace gearkv {

LayerStream* LayerStream::make(CacheContext* context, std::uint32_t index, const KvSpec& rates) noexcept {
    HeldBytes held;
    void* place = context->ledger.take(sizeof(LayerStream), Use::table, &held);
    if (place == nullptr) return nullptr;
    auto* stream = new (place) LayerStream;
    stream->held_ = held;
    if (stream->create(context, index, rates)) return stream;
    stream->destroy(context);
    return nullptr;
}

LayerStream* LayerStream::clone(CacheContext* context) const noexcept {
    LayerStream* stream = make(context, index_, context->config.spec);
    if (stream == nullptr || stream->copy(context, *this)) return stream;
    stream->destroy(context);
    return nullptr;
}

void LayerStream::join(CacheContext* context) noexcept {
    n_caches_.fetch_add(1, std::memory_order_relaxed);
    context->ledger.join(held_);
}

void LayerStream::leave(CacheContext* context) noexcept {
    const HeldBytes held = held_;  // another cache may destroy the stream at once
    if (n_caches_.fetch_sub(1, std::memory_order_acq_rel) > 1) {
        context->ledger.leave(held);
    } else {
        destroy(context);
    }
}

bool LayerStream::create(CacheContext* context, std::uint32_t index, const KvSpec& rates) noexcept {
    index_ = index;
    squares_.create(context->config.dims_of(index));
    return rates_.create(context->config, index, memory(context), rates) &&
           tokens_.create(context->config, index, memory(context));
}

// Pieces of an open unit that the other stream has done are done again.
bool LayerStream::copy(CacheContext* context, const LayerStream& other) noexcept {
    rates_.copy(other.rates_);
    if (!tokens_.copy(memory(context), other.tokens_)) return false;
    if (!reopenable_.copy(memory(context), other.reopenable_)) return false;
    if (!rope_.copy(memory(context), other.rope_)) return false;
    if (!squares_.copy(memory(context), other.squares_)) return false;
    past_ = other.past_;
    return take_progress(context, other.progress());
}

bool LayerStream::restore(CacheContext* context, const LayerShape& shape, const LayerProgress& progress,
                          const void* const* sinks, const void* const* buffer) noexcept {
    past_.restore(progress.exact_from, progress.prompt, shape.n_tokens());
    return tokens_.restore(memory(context), shape, sinks, buffer) && take_progress(context, progress);
}

bool LayerStream::restore_rope(CacheContext* context, const RopeConfig& rope) noexcept {
    if (!reserve_rope(context, rope)) return false;
    rope_.use(rope, context->config.rope);
    return true;
}

LayerProgress LayerStream::progress() const noexcept {
    return {past_.exact_from(), closing_.n_tokens(), closing_.n_appended(), closing_.prompt(),
            past_.prompt()};
}

bool LayerStream::take_progress(CacheContext* context, const LayerProgress& progress) noexcept {
    if (progress.pending_tokens == 0) return true;
    if (!begin_unit(context, progress.pending_tokens, progress.pending_prompt).ok()) return false;
    closing_.advance(progress.pending_appended);
    return true;
}

void LayerStream::destroy(CacheContext* context) noexcept {
    closing_.drop(memory(context));
    tokens_.destroy(memory(context));
    reopenable_.destroy(memory(context));
    rope_.forget(memory(context));
    squares_.destroy(memory(context));
    rates_.destroy(memory(context));
    HeldBytes held = held_;
    this->~LayerStream();
    context->ledger.give_back(this, sizeof(LayerStream), Use::table, &held);
}

}  // namespace gearkv
