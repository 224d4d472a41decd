#include "cache/layer.hpp"

#include <algorithm>

#include "codec/decompress.hpp"

namespace gearkv {
namespace {

std::uint64_t plane_starts_bytes(const CacheConfig& config) {
    return (config.n_kv_heads + std::uint64_t{1}) * sizeof(std::uint32_t);
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
    const std::uint64_t most = std::max(max_unit_tokens / step, 1u) * std::uint64_t{step};
    return static_cast<std::uint32_t>(std::min(n_buffered / step * step, most));
}

std::uint32_t spread_tokens(const CacheConfig& config) noexcept {
    return std::min(config.spread_tokens, config.spec.buffer_tokens);
}

std::uint32_t base_tokens(const CacheConfig& config) noexcept {
    return config.spec.buffer_tokens + spread_tokens(config);
}

std::uint64_t max_blocks(const CacheConfig& config) noexcept {
    return config.max_tokens / config.spec.buffer_tokens;
}

bool LayerStream::create(CacheContext* context, std::uint32_t index, const KvSpec& rates) noexcept {
    index_ = index;
    share_evenly(rates);
    block_capacity_ = std::max<std::uint64_t>(max_blocks(context->config), 1);
    blocks_ =
        static_cast<ClosedBlock*>(context->ledger.take(block_capacity_ * sizeof(ClosedBlock), Use::table));
    const KvSpec& spec = context->config.spec;
    for (std::uint32_t*& starts : plane_starts_) {
        if (spec.auto_bits == 0.0f) continue;
        starts = static_cast<std::uint32_t*>(
            context->ledger.take(plane_starts_bytes(context->config), Use::table));
        if (starts == nullptr) return false;
    }
    const std::uint32_t n_base = base_tokens(context->config);
    return blocks_ != nullptr && key_buffer_.create(context, TensorKind::key, n_base) &&
           value_buffer_.create(context, TensorKind::value, n_base) &&
           key_sinks_.create(context, TensorKind::key, spec.sink_tokens) &&
           value_sinks_.create(context, TensorKind::value, spec.sink_tokens);
}

void LayerStream::destroy(CacheContext* context) noexcept {
    reset(context);
    key_buffer_.destroy(context);
    value_buffer_.destroy(context);
    key_sinks_.destroy(context);
    value_sinks_.destroy(context);
    context->ledger.give_back(blocks_, block_capacity_ * sizeof(ClosedBlock), Use::table);
    blocks_ = nullptr;
    for (std::uint32_t*& starts : plane_starts_) {
        context->ledger.give_back(starts, plane_starts_bytes(context->config), Use::table);
        starts = nullptr;
    }
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

void LayerStream::free_block(CacheContext* context, void* block) noexcept {
    const auto& header = *static_cast<const BlockHeader*>(block);
    // Unsigned sums wrap: adding the number's complement takes it off.
    context->bytes(static_cast<TensorKind>(header.kind)) += bytes_by_part(header) * ~std::uint64_t{0};
    context->ledger.give_back(block, header.n_bytes, Use::block);
}

void LayerStream::drop_block(CacheContext* context) noexcept {
    const ClosedBlock& block = blocks_[--n_blocks_];
    free_block(context, block.key);
    free_block(context, block.value);
    context->n_blocks -= 2;
    n_closed_ -= block.n_tokens;
}

bool LayerStream::reserve_block(CacheContext* context) noexcept {
    if (n_blocks_ < block_capacity_) return true;
    const std::uint64_t n = 2 * block_capacity_;
    auto* larger = static_cast<ClosedBlock*>(context->ledger.take(n * sizeof(ClosedBlock), Use::table));
    if (larger == nullptr) return false;
    std::copy_n(blocks_, n_blocks_, larger);
    context->ledger.give_back(blocks_, block_capacity_ * sizeof(ClosedBlock), Use::table);
    blocks_ = larger;
    block_capacity_ = n;
    return true;
}

bool LayerStream::truncate(CacheContext* context, std::uint64_t n_tokens) noexcept {
    const std::uint64_t n_kept = std::min(n_tokens, this->n_tokens());
    const std::uint64_t before_buffer = n_sinks_ + n_closed_;
    const bool exact = n_kept == this->n_tokens() || n_kept >= std::max(exact_from_, before_buffer);
    exact_from_ = std::min(exact_from_, n_kept);
    const std::uint64_t n_buffered = n_kept > before_buffer ? n_kept - before_buffer : 0;
    // The pending unit's tokens are the first of the buffer.
    if (n_buffered < pending_.n_tokens) drop_unit(context);
    if (pending_.n_tokens > 0) {
        const std::uint64_t n_dropped = n_buffered_ - n_buffered;
        pending_.n_appended -=
            static_cast<std::uint32_t>(std::min<std::uint64_t>(n_dropped, pending_.n_appended));
    }
    for (TokenBuffer* buffer : {&key_buffer_, &value_buffer_})
        buffer->drop_back(context, n_buffered_ - n_buffered, n_buffered_);
    n_buffered_ = n_buffered;
    while (n_blocks_ > 0 && n_sinks_ + n_closed_ - blocks_[n_blocks_ - 1].n_tokens >= n_kept)
        drop_block(context);
    if (n_sinks_ + n_closed_ > n_kept && n_blocks_ > 0) {
        const std::uint64_t n_dropped = n_sinks_ + n_closed_ - n_kept;
        blocks_[n_blocks_ - 1].n_tokens -= static_cast<std::uint32_t>(n_dropped);
        n_closed_ -= n_dropped;
    }
    n_sinks_ = static_cast<std::uint32_t>(std::min<std::uint64_t>(n_sinks_, n_kept));
    return exact;
}

void LayerStream::reset(CacheContext* context) noexcept {
    (void)truncate(context, 0);
    prompt_ = false;
}

bool LayerStream::reserve_append(CacheContext* context, std::uint32_t n_tokens) noexcept {
    return key_buffer_.grow(context, n_buffered_ + n_tokens, n_buffered_) &&
           value_buffer_.grow(context, n_buffered_ + n_tokens, n_buffered_);
}

void LayerStream::append(const CacheContext& context, const Rows& keys, const Rows& values,
                         std::uint32_t n_tokens) noexcept {
    prompt_ = n_tokens >= context.config.spec.buffer_tokens;
    const auto skip = [](const Rows& rows, std::size_t n) {
        return Rows{rows.data + n * rows.token_stride, rows.token_stride, rows.head_stride};
    };
    const std::uint32_t n_sinks = std::min(context.config.spec.sink_tokens - n_sinks_, n_tokens);
    key_sinks_.write(context, n_sinks_, keys, n_sinks);
    value_sinks_.write(context, n_sinks_, values, n_sinks);
    n_sinks_ += n_sinks;
    key_buffer_.write(context, n_buffered_, skip(keys, n_sinks), n_tokens - n_sinks);
    value_buffer_.write(context, n_buffered_, skip(values, n_sinks), n_tokens - n_sinks);
    n_buffered_ += n_tokens - n_sinks;
    if (pending_.n_tokens > 0) pending_.n_appended += n_tokens;
}

Status LayerStream::compress(CacheContext* context, Executor& executor) noexcept {
    if (unit_tokens(context->config, n_buffered_) > 0) exact_from_ = n_tokens();
    finish_unit(context, executor);
    while (const std::uint32_t n = unit_tokens(context->config, n_buffered_)) {
        if (Status status = begin_unit(context, n); !status.ok()) return status;
        finish_unit(context, executor);
    }
    return {};
}

Status LayerStream::advance(CacheContext* context, std::uint32_t n_tokens, Executor& executor) noexcept {
    const CacheConfig& config = context->config;
    const bool is_long = n_tokens >= config.spec.buffer_tokens;
    const bool at_once = config.spread_tokens == 0 || is_long;
    // What is finished here a stream would not have finished without the next token, or without all of a long
    // append.
    const std::uint64_t exact_from = this->n_tokens() + (is_long ? n_tokens : 1);
    if (pending_.n_tokens > 0) {
        // The next unit begins when it would have begun without spreading.
        const bool next_is_full = unit_tokens(config, n_buffered_ - pending_.n_tokens) > 0;
        if (at_once || next_is_full || pending_.n_appended >= spread_tokens(config)) {
            finish_unit(context, executor);
            exact_from_ = exact_from;
        } else {
            run_pieces(*context, n_due(*context), executor);
            return {};
        }
    }
    while (const std::uint32_t n = unit_tokens(config, n_buffered_)) {
        if (Status status = begin_unit(context, n); !status.ok()) return status;
        if (!at_once && unit_tokens(config, n_buffered_ - n) == 0) return {};
        finish_unit(context, executor);
        exact_from_ = exact_from;
    }
    return {};
}

Status LayerStream::begin_unit(CacheContext* context, std::uint32_t n_tokens) noexcept {
    pending_.n_tokens = n_tokens;
    pending_.n_appended = pending_.n_done = 0;
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        if (Status status = begin_tensor(context, kind, n_tokens); !status.ok()) {
            drop_unit(context);
            return status;
        }
    }
    return {};
}

Status LayerStream::begin_tensor(CacheContext* context, TensorKind kind, std::uint32_t n_tokens) noexcept {
    if (!reserve_block(context)) {
        return Status::error(Code::out_of_memory, "no memory for the table of %llu blocks of layer %u",
                             static_cast<unsigned long long>(n_blocks_ + 1), index_);
    }
    BlockHeader header;
    if (Status status =
            lay_out_unit(context->config, spec(kind), kind, {n_tokens, prompt_, n_blocks_ == 0}, &header);
        !status.ok()) {
        return status;
    }
    const std::uint64_t scratch_bytes = compress_scratch_bytes(header);
    // A trellis needs no more for a long unit.
    const bool large = scratch_bytes > context->compress_scratch.n_bytes();
    void* block = context->ledger.take(header.n_bytes, Use::block);
    if (block == nullptr || (large && !pending_.scratch.ensure(&context->ledger, scratch_bytes))) {
        context->ledger.give_back(block, header.n_bytes, Use::block);
        return Status::error(Code::out_of_memory,
                             "no memory to compress %u tokens of layer %u: %llu bytes and %llu of scratch",
                             n_tokens, index_, static_cast<unsigned long long>(header.n_bytes),
                             static_cast<unsigned long long>(scratch_bytes));
    }
    CompressTask begun;
    begun.header = header;
    if (has_planes_) begun.plane_starts = plane_starts_[static_cast<int>(kind)];
    begin_block(block, begun);
    context->bytes(kind) += bytes_by_part(header);
    (kind == TensorKind::key ? pending_.block.key : pending_.block.value) = block;
    return {};
}

void LayerStream::finish_unit(CacheContext* context, Executor& executor) noexcept {
    if (pending_.n_tokens == 0) return;
    run_pieces(*context, n_pieces(), executor);
    pending_.block.n_tokens = pending_.n_tokens;
    blocks_[n_blocks_++] = pending_.block;
    context->n_blocks += 2;
    key_buffer_.drop_front(context, pending_.n_tokens, n_buffered_);
    value_buffer_.drop_front(context, pending_.n_tokens, n_buffered_);
    n_closed_ += pending_.n_tokens;
    n_buffered_ -= pending_.n_tokens;
    pending_.block = {};
    drop_unit(context);
}

void LayerStream::drop_unit(CacheContext* context) noexcept {
    for (void* block : {pending_.block.key, pending_.block.value}) {
        if (block != nullptr) free_block(context, block);
    }
    pending_.block = {};
    pending_.scratch.free(&context->ledger);
    pending_.n_tokens = 0;
}

// ---- pieces of the pending unit: those of keys, then those of values ----

std::uint32_t LayerStream::n_pieces() const noexcept {
    return gearkv::n_pieces(*static_cast<const BlockHeader*>(pending_.block.key)) +
           gearkv::n_pieces(*static_cast<const BlockHeader*>(pending_.block.value));
}

std::uint32_t LayerStream::n_due(const CacheContext& context) const noexcept {
    if (pending_.n_tokens == 0) return 0;
    const std::uint64_t n = std::min(pending_.n_appended, spread_tokens(context.config));
    return static_cast<std::uint32_t>(ceil_div(n_pieces() * n, spread_tokens(context.config)));
}

PieceRun LayerStream::next_pieces(const CacheContext& context, std::uint32_t until) const noexcept {
    PieceRun run;
    if (pending_.n_done >= until) return run;
    const auto& key = *static_cast<const BlockHeader*>(pending_.block.key);
    const std::uint32_t n_key = gearkv::n_pieces(key);
    const bool keys = pending_.n_done < n_key;
    run.kind = keys ? TensorKind::key : TensorKind::value;
    run.block = keys ? pending_.block.key : pending_.block.value;
    run.first = keys ? pending_.n_done : pending_.n_done - n_key;
    run.task.kernels = context.kernels;
    run.task.rows = (keys ? key_buffer_ : value_buffer_).source(0);
    run.task.header = *static_cast<const BlockHeader*>(run.block);
    run.task.seed = context.config.seed + 0x100000001b3u * (n_closed_ * 8192 + index_ * 2 + (keys ? 0 : 1));
    if (n_blocks_ > 0) run.task.profiles = profiles(run.kind);
    const bool large = compress_scratch_bytes(run.task.header) > context.compress_scratch.n_bytes();
    run.scratch = large ? pending_.scratch.data() : context.compress_scratch.data();
    run.n = std::min(
        {stage_left(run.task.header, run.first), piece_slots(run.task.header), until - pending_.n_done});
    return run;
}

PieceRun LayerStream::due_pieces(const CacheContext& context) const noexcept {
    return next_pieces(context, n_due(context));
}

void LayerStream::run_pieces(const CacheContext& context, std::uint32_t until, Executor& executor) noexcept {
    while (pending_.n_done < until) {
        const PieceRun run = next_pieces(context, until);
        if (run.n == 1) {
            run_piece(run, 0, executor);  // which may spread over the executor itself
        } else {
            parallel_for(executor, run.n,
                         [&](std::size_t i) { run_piece(run, static_cast<std::uint32_t>(i), executor); });
        }
        note_done(run);
    }
}

const unsigned char* LayerStream::profiles(TensorKind kind) const noexcept {
    return trusted_block(kind == TensorKind::key ? blocks_[0].key : blocks_[0].value).profiles;
}

BlockView LayerStream::view(std::uint64_t block, TensorKind kind) const noexcept {
    BlockView view = trusted_block(kind == TensorKind::key ? blocks_[block].key : blocks_[block].value);
    if (view.trellis() && view.profiles == nullptr) view.use_profiles(profiles(kind));
    return view;
}

void LayerStream::list_runs(KvRun* runs) const noexcept {
    if (n_sinks_ > 0) *runs++ = {key_sinks_.run(), value_sinks_.run(), n_sinks_};
    for (std::uint64_t i = 0; i < n_blocks_; ++i) {
        *runs++ = {run_of_block(view(i, TensorKind::key)), run_of_block(view(i, TensorKind::value)),
                   blocks_[i].n_tokens};
    }
    if (n_buffered_ > 0) {
        *runs = {key_buffer_.run(), value_buffer_.run(), static_cast<std::uint32_t>(n_buffered_)};
    }
}

void LayerStream::read_range(const CacheContext& context, std::uint64_t first, std::uint64_t n, float* keys,
                             float* values) const noexcept {
    const std::uint64_t key_row = std::uint64_t{context.config.n_kv_heads} * context.config.key_dim;
    const std::uint64_t value_row = std::uint64_t{context.config.n_kv_heads} * context.config.value_dim;
    const auto read_rows = [&](const TokenBuffer& from_keys, const TokenBuffer& from_values,
                               std::uint64_t token, std::uint64_t at) {
        if (keys != nullptr) from_keys.read(context, token, keys + (at - first) * key_row);
        if (values != nullptr) from_values.read(context, token, values + (at - first) * value_row);
    };
    const std::uint64_t end = first + n;
    std::uint64_t at = first;
    for (; at < std::min<std::uint64_t>(end, n_sinks_); ++at)
        read_rows(key_sinks_, value_sinks_, at, at);
    std::uint64_t start = n_sinks_;
    for (std::uint64_t i = 0; i < n_blocks_ && at < end; ++i) {
        const std::uint64_t stop = start + blocks_[i].n_tokens;
        if (at < stop) {
            const auto from = static_cast<std::uint32_t>(at - start);
            const auto count = static_cast<std::uint32_t>(std::min(stop, end) - at);
            if (keys != nullptr)
                decompress_rows(view(i, TensorKind::key), from, count, keys + (at - first) * key_row);
            if (values != nullptr) {
                decompress_rows(view(i, TensorKind::value), from, count, values + (at - first) * value_row);
            }
            at += count;
        }
        start = stop;
    }
    for (; at < end; ++at)
        read_rows(key_buffer_, value_buffer_, at - n_sinks_ - n_closed_, at);
}

}  // namespace gearkv
