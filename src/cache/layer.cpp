#include "cache/layer.hpp"

#include <algorithm>

#include "codec/decompress.hpp"

namespace gearkv {
namespace {

void add_bytes(BlockBytes* total, const BlockBytes& block, std::int64_t sign) {
    const auto add = [sign](std::uint64_t* to, std::uint64_t n) {
        *to += static_cast<std::uint64_t>(sign) * n;
    };
    add(&total->bytes, block.bytes);
    add(&total->header, block.header);
    add(&total->codes, block.codes);
    add(&total->scales, block.scales);
    add(&total->low_rank, block.low_rank);
    add(&total->outliers, block.outliers);
    add(&total->padding, block.padding);
}

}  // namespace

Status lay_out_unit(const CacheConfig& config, TensorKind kind, const Unit& unit, BlockHeader* out) noexcept {
    const bool keys = kind == TensorKind::key;
    const TensorSpec& spec = keys ? config.spec.key : config.spec.value;
    const BlockShape shape = {kind, unit.n_tokens, config.n_kv_heads,
                              keys ? config.key_dim : config.value_dim};
    return lay_out_block(shape, spec, unit.prompt ? spec.rank_prompt : spec.rank_decode, out, unit.first);
}

std::uint32_t unit_tokens(const CacheConfig& config, std::uint64_t n_buffered) noexcept {
    const std::uint32_t step = config.spec.buffer_tokens;
    const std::uint64_t most = std::max(max_unit_tokens / step, 1u) * std::uint64_t{step};
    return static_cast<std::uint32_t>(std::min(n_buffered / step * step, most));
}

std::uint64_t max_blocks(const CacheConfig& config) noexcept {
    return config.max_tokens / config.spec.buffer_tokens;
}

bool LayerStream::create(CacheContext* context, std::uint32_t index) noexcept {
    index_ = index;
    const std::uint64_t n = std::max<std::uint64_t>(max_blocks(context->config), 1);
    blocks_ = static_cast<ClosedBlock*>(context->ledger.take(n * sizeof(ClosedBlock), Use::table));
    const KvSpec& spec = context->config.spec;
    return blocks_ != nullptr && key_buffer_.create(context, TensorKind::key, spec.buffer_tokens) &&
           value_buffer_.create(context, TensorKind::value, spec.buffer_tokens) &&
           key_sinks_.create(context, TensorKind::key, spec.sink_tokens) &&
           value_sinks_.create(context, TensorKind::value, spec.sink_tokens);
}

void LayerStream::destroy(CacheContext* context) noexcept {
    reset(context);
    key_buffer_.destroy(context);
    value_buffer_.destroy(context);
    key_sinks_.destroy(context);
    value_sinks_.destroy(context);
    const std::uint64_t n = std::max<std::uint64_t>(max_blocks(context->config), 1);
    context->ledger.give_back(blocks_, n * sizeof(ClosedBlock), Use::table);
    blocks_ = nullptr;
}

void LayerStream::free_block(CacheContext* context, void* block) noexcept {
    const auto& header = *static_cast<const BlockHeader*>(block);
    add_bytes(&context->bytes(static_cast<TensorKind>(header.kind)), bytes_by_part(header), -1);
    --context->n_blocks;
    context->ledger.give_back(block, header.n_bytes, Use::block);
}

void LayerStream::reset(CacheContext* context) noexcept {
    for (std::uint64_t i = 0; i < n_blocks_; ++i) {
        free_block(context, blocks_[i].key);
        free_block(context, blocks_[i].value);
    }
    if (n_buffered_ > 0) {
        key_buffer_.drop_front(context, n_buffered_, n_buffered_);
        value_buffer_.drop_front(context, n_buffered_, n_buffered_);
    }
    n_blocks_ = n_closed_ = n_buffered_ = 0;
    n_sinks_ = 0;
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
}

Status LayerStream::compress(CacheContext* context, Executor& executor) noexcept {
    while (const std::uint32_t n = unit_tokens(context->config, n_buffered_)) {
        if (Status status = close_unit(context, n, executor); !status.ok()) return status;
    }
    return {};
}

Status LayerStream::close_unit(CacheContext* context, std::uint32_t n_tokens, Executor& executor) noexcept {
    ClosedBlock block;
    if (Status status = compress_tensor(context, TensorKind::key, n_tokens, executor, &block.key);
        !status.ok()) {
        return status;
    }
    if (Status status = compress_tensor(context, TensorKind::value, n_tokens, executor, &block.value);
        !status.ok()) {
        free_block(context, block.key);
        return status;
    }
    blocks_[n_blocks_++] = block;
    key_buffer_.drop_front(context, n_tokens, n_buffered_);
    value_buffer_.drop_front(context, n_tokens, n_buffered_);
    n_closed_ += n_tokens;
    n_buffered_ -= n_tokens;
    return {};
}

Status LayerStream::compress_tensor(CacheContext* context, TensorKind kind, std::uint32_t n_tokens,
                                    Executor& executor, void** out) noexcept {
    CompressTask task;
    task.kernels = context->kernels;
    task.rows = (kind == TensorKind::key ? key_buffer_ : value_buffer_).source(0);
    task.seed =
        context->config.seed + 0x100000001b3u * (n_closed_ * 8192 + index_ * 2 + static_cast<unsigned>(kind));
    if (Status status =
            lay_out_unit(context->config, kind, {n_tokens, prompt_, n_blocks_ == 0}, &task.header);
        !status.ok())
        return status;

    if (n_blocks_ > 0) task.profiles = profiles(kind);
    const std::uint64_t scratch_bytes = compress_scratch_bytes(task.header);
    const bool keep = n_tokens <= context->config.spec.buffer_tokens;
    Scratch large;
    Scratch* scratch = keep ? &context->compress_scratch : &large;
    void* block = context->ledger.take(task.header.n_bytes, Use::block);
    if (block == nullptr || !scratch->ensure(&context->ledger, scratch_bytes)) {
        context->ledger.give_back(block, task.header.n_bytes, Use::block);
        return Status::error(Code::out_of_memory,
                             "no memory to compress %u tokens of layer %u: %llu bytes and %llu of scratch",
                             n_tokens, index_, static_cast<unsigned long long>(task.header.n_bytes),
                             static_cast<unsigned long long>(scratch_bytes));
    }
    compress_into(block, scratch->data(), task, executor);
    large.free(&context->ledger);
    add_bytes(&context->bytes(kind), bytes_by_part(task.header), 1);
    ++context->n_blocks;
    *out = block;
    return {};
}

const unsigned char* LayerStream::profiles(TensorKind kind) const noexcept {
    return trusted_block(kind == TensorKind::key ? blocks_[0].key : blocks_[0].value).profiles;
}

BlockView LayerStream::view(std::uint64_t block, TensorKind kind) const noexcept {
    BlockView view = trusted_block(kind == TensorKind::key ? blocks_[block].key : blocks_[block].value);
    if (view.profiles == nullptr) view.profiles = profiles(kind);
    return view;
}

void LayerStream::list_runs(KvRun* runs) const noexcept {
    if (n_sinks_ > 0) *runs++ = {key_sinks_.run(), value_sinks_.run(), n_sinks_};
    for (std::uint64_t i = 0; i < n_blocks_; ++i) {
        const BlockView key = view(i, TensorKind::key);
        *runs++ = {run_of_block(key), run_of_block(view(i, TensorKind::value)), key.header->n_tokens};
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
        const BlockView key = view(i, TensorKind::key);
        const std::uint64_t stop = start + key.header->n_tokens;
        if (at < stop) {
            const auto from = static_cast<std::uint32_t>(at - start);
            const auto count = static_cast<std::uint32_t>(std::min(stop, end) - at);
            if (keys != nullptr) decompress_rows(key, from, count, keys + (at - first) * key_row);
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
