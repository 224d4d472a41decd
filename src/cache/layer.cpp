#include "cache/layer.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <new>

#include "codec/decompress.hpp"

namespace gearkv {
namespace {

std::uint64_t plane_starts_bytes(const CacheConfig& config) {
    return (config.n_kv_heads + std::uint64_t{1}) * sizeof(std::uint32_t);
}

// Keys that were read, to where their tokens are now.
void turn_rows(const CacheConfig& config, std::int64_t shift, std::size_t n_rows, float* rows) {
    if (shift == 0 || config.rope.n_pairs == 0) return;
    float angles[max_dim];
    const Rotation turn =
        make_rotation(config.rope.frequencies, config.rope.n_pairs, config.rope.interleaved, shift, angles);
    for (std::size_t i = 0; i < n_rows; ++i)
        rotate(turn, rows + i * config.key_dim);
}

}  // namespace

Status lay_out_unit(const CacheConfig& config, const TensorSpec& spec, TensorKind kind, const Unit& unit,
                    BlockHeader* out) noexcept {
    const bool keys = kind == TensorKind::key;
    const BlockShape shape = {kind, unit.n_tokens, config.n_kv_heads,
                              keys ? config.key_dim : config.value_dim};
    return lay_out_block(shape, spec, unit.prompt ? spec.rank_prompt : spec.rank_decode, out, unit.first);
}

std::uint32_t unit_tokens(const CacheConfig& config, std::uint64_t n_buffered) noexcept {
    const std::uint32_t step = config.spec.buffer_tokens;
    const std::uint32_t wanted = config.block_tokens == 0 ? max_unit_tokens : config.block_tokens;
    const std::uint64_t most = std::max(std::min(wanted, max_unit_tokens) / step, 1u) * std::uint64_t{step};
    const std::uint64_t n = n_buffered - std::min<std::uint64_t>(n_buffered, config.spec.recent_tokens);
    return static_cast<std::uint32_t>(std::min(n / step * step, most));
}

std::uint32_t spread_tokens(const CacheConfig& config) noexcept {
    return std::min(config.spread_tokens, config.spec.buffer_tokens);
}

std::uint32_t base_tokens(const CacheConfig& config) noexcept {
    return config.spec.buffer_tokens + config.spec.recent_tokens + spread_tokens(config) +
           config.rollback_tokens;
}

std::uint64_t first_visible(const CacheConfig& config, std::uint32_t layer, std::uint64_t n_tokens) noexcept {
    const std::uint32_t window = window_of(config, layer);
    if (window == 0) return 0;
    const std::uint64_t n_visible = std::uint64_t{window} + config.rollback_tokens;
    return n_tokens > n_visible ? n_tokens - n_visible : 0;
}

std::uint64_t max_blocks(const CacheConfig& config) noexcept {
    return config.max_tokens / config.spec.buffer_tokens;
}

Status memory_error(const CacheContext& context, const char* format, ...) noexcept {
    char what[160];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof(what), format, arguments);
    va_end(arguments);
    const MemoryLedger& ledger = context.ledger;
    if (!ledger.over_limit()) return Status::error(Code::out_of_memory, "no memory %s", what);
    return Status::error(Code::over_budget, "no memory %s: %llu bytes are held and max_bytes is %llu", what,
                         static_cast<unsigned long long>(ledger.total()),
                         static_cast<unsigned long long>(ledger.max_bytes()));
}

// ---- making, sharing and ending ----

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
    KvSpec rates = context->config.spec;
    rates.key = specs_[0];
    rates.value = specs_[1];
    LayerStream* stream = make(context, index_, rates);
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
    const Memory memory = this->memory(context);
    const CacheConfig& config = context->config;
    index_ = index;
    share_evenly(rates);
    for (std::uint32_t*& starts : plane_starts_) {
        if (config.spec.auto_bits == 0.0f) continue;
        starts = static_cast<std::uint32_t*>(memory.take(plane_starts_bytes(config), Use::table));
        if (starts == nullptr) return false;
    }
    const std::uint32_t n_base = base_tokens(config), n_sinks = config.spec.sink_tokens;
    return blocks_.create(memory, std::max<std::uint64_t>(max_blocks(config), 1)) &&
           key_buffer_.create(config, memory, TensorKind::key, n_base) &&
           value_buffer_.create(config, memory, TensorKind::value, n_base) &&
           key_sinks_.create(config, memory, TensorKind::key, n_sinks) &&
           value_sinks_.create(config, memory, TensorKind::value, n_sinks);
}

// Pieces of a pending unit that the other stream has done are done again.
bool LayerStream::copy(CacheContext* context, const LayerStream& other) noexcept {
    const Memory memory = this->memory(context);
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const std::uint32_t* starts = other.planes(kind);
        if (starts != nullptr) set_planes(*context, kind, starts, other.spec(kind).rate);
    }
    blocks_.destroy(memory);
    if (!blocks_.copy(memory, other.blocks_) || !key_sinks_.copy(memory, other.key_sinks_, other.n_sinks_) ||
        !value_sinks_.copy(memory, other.value_sinks_, other.n_sinks_) ||
        !key_buffer_.copy(memory, other.key_buffer_, other.n_buffered_) ||
        !value_buffer_.copy(memory, other.value_buffer_, other.n_buffered_)) {
        return false;
    }
    n_sinks_ = other.n_sinks_;
    n_forgotten_ = other.n_forgotten_;
    n_buffered_ = other.n_buffered_;
    reopenable_ = other.reopenable_;
    return take_progress(context, other.progress());
}

bool LayerStream::restore(CacheContext* context, const LayerShape& shape, const LayerProgress& progress,
                          const void* const* sinks, const void* const* buffer) noexcept {
    const Memory memory = this->memory(context);
    if (!key_buffer_.grow(memory, shape.n_buffered, 0) || !value_buffer_.grow(memory, shape.n_buffered, 0))
        return false;
    const auto fill = [](TokenBuffer* to, const void* from, std::uint64_t n) {
        if (n > 0) std::memcpy(to->data(), from, to->n_bytes(n));
    };
    fill(&key_sinks_, sinks[0], shape.n_sinks);
    fill(&value_sinks_, sinks[1], shape.n_sinks);
    fill(&key_buffer_, buffer[0], shape.n_buffered);
    fill(&value_buffer_, buffer[1], shape.n_buffered);
    n_sinks_ = static_cast<std::uint32_t>(shape.n_sinks);
    n_forgotten_ = shape.n_forgotten;
    n_buffered_ = shape.n_buffered;
    return take_progress(context, progress);
}

LayerProgress LayerStream::progress() const noexcept {
    if (pending_.n_tokens == 0) return {exact_from_, 0, 0, false, prompt_};
    return {exact_from_, pending_.n_tokens, pending_.n_appended, pending_.prompt, prompt_};
}

bool LayerStream::take_progress(CacheContext* context, const LayerProgress& progress) noexcept {
    exact_from_ = progress.exact_from;
    prompt_ = progress.prompt;
    if (progress.pending_tokens == 0) return true;
    if (!begin_unit(context, progress.pending_tokens, progress.pending_prompt).ok()) return false;
    pending_.n_appended = progress.pending_appended;
    return true;
}

void LayerStream::destroy(CacheContext* context) noexcept {
    reset(context);
    const Memory memory = this->memory(context);
    for (TokenBuffer* buffer : {&key_buffer_, &value_buffer_, &key_sinks_, &value_sinks_})
        buffer->destroy(memory);
    blocks_.destroy(memory);
    for (std::uint32_t*& starts : plane_starts_)
        memory.give_back(starts, plane_starts_bytes(context->config), Use::table);
    HeldBytes held = held_;
    this->~LayerStream();
    context->ledger.give_back(this, sizeof(LayerStream), Use::table, &held);
}

void LayerStream::set_planes(const CacheContext& context, TensorKind kind, const std::uint32_t* starts,
                             float rate) noexcept {
    std::copy_n(starts, context.config.n_kv_heads + 1, plane_starts_[static_cast<int>(kind)]);
    specs_[static_cast<int>(kind)].rate = rate;
    has_planes_ = true;
}

void LayerStream::share_evenly(const KvSpec& rates) noexcept {
    specs_[static_cast<int>(TensorKind::key)] = rates.key;
    specs_[static_cast<int>(TensorKind::value)] = rates.value;
    has_planes_ = false;
}

// ---- appending and reading ----

bool LayerStream::reserve_append(CacheContext* context, std::uint32_t n_tokens) noexcept {
    return key_buffer_.grow(memory(context), n_buffered_ + n_tokens, n_buffered_) &&
           value_buffer_.grow(memory(context), n_buffered_ + n_tokens, n_buffered_);
}

void LayerStream::append(const CacheContext& context, const Rows& keys, const Rows& values,
                         std::uint32_t n_tokens) noexcept {
    prompt_ = n_tokens >= context.config.spec.buffer_tokens;
    const auto skip = [](const Rows& rows, std::size_t n) {
        return Rows{rows.data + n * rows.token_stride, rows.token_stride, rows.head_stride};
    };
    const std::uint32_t n_sinks = std::min(context.config.spec.sink_tokens - n_sinks_, n_tokens);
    key_sinks_.write(*context.kernels, n_sinks_, keys, n_sinks);
    value_sinks_.write(*context.kernels, n_sinks_, values, n_sinks);
    n_sinks_ += n_sinks;
    key_buffer_.write(*context.kernels, n_buffered_, skip(keys, n_sinks), n_tokens - n_sinks);
    value_buffer_.write(*context.kernels, n_buffered_, skip(values, n_sinks), n_tokens - n_sinks);
    n_buffered_ += n_tokens - n_sinks;
    if (pending_.n_tokens > 0) pending_.n_appended += n_tokens;
}

// ---- dropping tokens ----

bool LayerStream::truncate(CacheContext* context, std::uint64_t n_tokens) noexcept {
    const Memory memory = this->memory(context);
    const std::uint64_t n_kept = std::min(n_tokens, this->n_tokens());
    if (reopenable_.n_tokens > 0 && n_kept <= reopenable_.closed_at) reopen_unit(context);
    const bool in_blocks = n_kept < buffer_start() && n_forgotten_ + blocks_.n_tokens() > 0;
    // What the dropped tokens pushed out of the window cannot be seen again.
    const std::uint32_t window = window_of(context->config, index_);
    const bool in_window = window == 0 || n_forgotten_ == 0 || n_kept >= n_sinks_ + n_forgotten_ + window;
    const bool exact = n_kept == this->n_tokens() || (n_kept >= exact_from_ && !in_blocks && in_window);
    exact_from_ = std::min(exact_from_, n_kept);
    const std::uint64_t n_buffered = n_kept > buffer_start() ? n_kept - buffer_start() : 0;
    // The pending unit's tokens are the first of the buffer, and recent ones were behind them.
    if (n_buffered < std::uint64_t{pending_.n_tokens} + context->config.spec.recent_tokens)
        drop_unit(context);
    if (pending_.n_tokens > 0) {
        const std::uint64_t n_dropped = n_buffered_ - n_buffered;
        pending_.n_appended -=
            static_cast<std::uint32_t>(std::min<std::uint64_t>(n_dropped, pending_.n_appended));
    }
    for (TokenBuffer* buffer : {&key_buffer_, &value_buffer_})
        buffer->drop_back(memory, n_buffered_ - n_buffered, n_buffered_);
    n_buffered_ = n_buffered;
    const std::uint64_t before_blocks = n_sinks_ + n_forgotten_;
    blocks_.truncate(memory, n_kept > before_blocks ? n_kept - before_blocks : 0);
    if (blocks_.size() == 0 && pending_.n_tokens == 0) blocks_.forget_profiles(memory);
    n_sinks_ = static_cast<std::uint32_t>(std::min<std::uint64_t>(n_sinks_, n_kept));
    n_forgotten_ = std::min(n_forgotten_, n_kept - n_sinks_);
    return exact;
}

void LayerStream::reset(CacheContext* context) noexcept {
    (void)truncate(context, 0);
    prompt_ = false;
}

bool LayerStream::reserve_cut(CacheContext* context) noexcept {
    return blocks_.reserve(memory(context), 1) && blocks_.keep_profiles(memory(context));
}

void LayerStream::remove(CacheContext* context, std::uint64_t first, std::uint64_t n,
                         const Rotation& turn) noexcept {
    const Memory memory = this->memory(context);
    forget_reopenable(context);
    const std::uint64_t end = first + n;
    // The part of the range in [start, start + count), from start.
    const auto part = [&](std::uint64_t start, std::uint64_t count) {
        const std::uint64_t from = std::clamp(first, start, start + count);
        return std::pair(from - start, std::clamp(end, start, start + count) - from);
    };
    const std::uint64_t blocks_start = n_sinks_ + n_forgotten_;
    const auto [forgotten_at, forgotten] = part(n_sinks_, n_forgotten_);
    const auto [closed_at, closed] = part(blocks_start, blocks_.n_tokens());
    const auto [buffered_at, buffered] = part(buffer_start(), n_buffered_);
    if (buffered_at < pending_.n_tokens) drop_unit(context);
    // Blocks behind the range move even when none of their tokens goes.
    const std::uint64_t from = first > blocks_start ? closed_at : 0;
    blocks_.remove(memory, from, closed, n);
    key_buffer_.remove(memory, buffered_at, buffered, n_buffered_);
    value_buffer_.remove(memory, buffered_at, buffered, n_buffered_);
    n_forgotten_ -= forgotten;
    n_buffered_ -= buffered;
    if (turn.n_pairs > 0) key_buffer_.rotate(*context->kernels, turn, buffered_at, n_buffered_);
    exact_from_ = n_tokens();
}

std::uint64_t LayerStream::n_forgettable(std::uint64_t token) const noexcept {
    const std::uint64_t start = n_sinks_ + n_forgotten_;
    std::uint64_t n = 0;
    for (std::uint64_t i = 0; i < blocks_.size() && start + n + blocks_[i].n_tokens <= token; ++i)
        n += blocks_[i].n_tokens;
    return n;
}

void LayerStream::forget_before(CacheContext* context, std::uint64_t token) noexcept {
    const std::uint64_t n = n_forgettable(token);
    if (n == blocks_.n_tokens()) forget_reopenable(context);
    blocks_.remove(memory(context), 0, n, 0);
    n_forgotten_ += n;
}

void LayerStream::skip_invisible(CacheContext* context) noexcept {
    const CacheConfig& config = context->config;
    const std::uint64_t first = first_visible(config, index_, n_tokens());
    if (first < buffer_start() + config.spec.buffer_tokens || pending_.n_tokens > 0) return;
    const Memory memory = this->memory(context);
    const std::uint64_t n = (first - buffer_start()) / config.spec.buffer_tokens * config.spec.buffer_tokens;
    forget_reopenable(context);
    n_forgotten_ += blocks_.n_tokens() + n;
    blocks_.truncate(memory, 0);
    blocks_.forget_profiles(memory);
    key_buffer_.drop_front(memory, n, n_buffered_);
    value_buffer_.drop_front(memory, n, n_buffered_);
    n_buffered_ -= n;
}

bool LayerStream::reduce(CacheContext* context, std::uint64_t i, bool drop_low_rank) noexcept {
    if (i + 1 == blocks_.size()) forget_reopenable(context);
    return blocks_.reduce(memory(context), i, drop_low_rank);
}

void LayerStream::list_runs(KvRun* runs) const noexcept {
    if (n_sinks_ > 0) *runs++ = {key_sinks_.run(), value_sinks_.run(), n_sinks_, 0, 0, {}};
    if (n_forgotten_ > 0) *runs++ = gap_run(n_forgotten_);
    for (std::uint64_t i = 0; i < blocks_.size(); ++i)
        *runs++ = block_run(i);
    if (n_buffered_ > 0) *runs = buffered_run(static_cast<std::uint32_t>(n_buffered_));
}

KvRun LayerStream::block_run(std::uint64_t i) const noexcept {
    const ClosedBlock& block = blocks_[i];
    return {run_of_block(blocks_.view(i, TensorKind::key)),
            run_of_block(blocks_.view(i, TensorKind::value)),
            block.first + block.n_tokens,
            block.first,
            block.shift,
            {}};
}

void LayerStream::read_range(const CacheContext& context, std::uint64_t first, std::uint64_t n, float* keys,
                             float* values) const noexcept {
    const std::uint64_t key_row = std::uint64_t{context.config.n_kv_heads} * context.config.key_dim;
    const std::uint64_t value_row = std::uint64_t{context.config.n_kv_heads} * context.config.value_dim;
    const auto read_rows = [&](const TokenBuffer& from_keys, const TokenBuffer& from_values,
                               std::uint64_t token, std::uint64_t at) {
        if (keys != nullptr) from_keys.read(*context.kernels, token, keys + (at - first) * key_row);
        if (values != nullptr) from_values.read(*context.kernels, token, values + (at - first) * value_row);
    };
    const std::uint64_t end = first + n;
    std::uint64_t at = first;
    for (; at < std::min<std::uint64_t>(end, n_sinks_); ++at)
        read_rows(key_sinks_, value_sinks_, at, at);
    std::uint64_t start = n_sinks_ + n_forgotten_;
    for (std::uint64_t i = 0; i < blocks_.size() && at < end; ++i) {
        const std::uint64_t stop = start + blocks_[i].n_tokens;
        if (at < stop) {
            const auto from = blocks_[i].first + static_cast<std::uint32_t>(at - start);
            const auto count = static_cast<std::uint32_t>(std::min(stop, end) - at);
            if (keys != nullptr) {
                float* to = keys + (at - first) * key_row;
                decompress_rows(blocks_.view(i, TensorKind::key), from, count, to);
                turn_rows(context.config, blocks_[i].shift, count * std::size_t{context.config.n_kv_heads},
                          to);
            }
            if (values != nullptr) {
                decompress_rows(blocks_.view(i, TensorKind::value), from, count,
                                values + (at - first) * value_row);
            }
            at += count;
        }
        start = stop;
    }
    for (; at < end; ++at)
        read_rows(key_buffer_, value_buffer_, at - buffer_start(), at);
}

}  // namespace gearkv
