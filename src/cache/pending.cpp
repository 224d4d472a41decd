// Compression of one unit of tokens in pieces, spread over the tokens that follow.
#include <algorithm>
#include <chrono>

#include "cache/layer.hpp"

namespace gearkv {

void run_piece(const PieceRun& run, std::uint32_t i, Executor& executor) noexcept {
    const auto start = std::chrono::steady_clock::now();
    compress_piece(run.block, run.scratch, run.task, run.first + i, i, executor);
    const auto time = std::chrono::steady_clock::now() - start;
    run.nanoseconds->fetch_add(
        static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count()),
        std::memory_order_relaxed);
}

Status LayerStream::compress(CacheContext* context, Executor& executor) noexcept {
    if (unit_tokens(context->config, n_buffered_) > 0) exact_from_ = n_tokens();
    finish_unit(context, false, executor);
    skip_invisible(context);
    while (const std::uint32_t n = unit_tokens(context->config, n_buffered_)) {
        if (Status status = begin_unit(context, n, prompt_); !status.ok()) return status;
        finish_unit(context, false, executor);
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
    if (this->n_tokens() + n_tokens > reopenable_.closed_at + config.rollback_tokens)
        forget_reopenable(context);
    if (pending_.n_tokens > 0) {
        // The next unit begins when it would have begun without spreading.
        const bool next_is_full = unit_tokens(config, n_buffered_ - pending_.n_tokens) > 0;
        if (at_once || next_is_full || pending_.n_appended >= spread_tokens(config)) {
            finish_unit(context, !is_long, executor);
            exact_from_ = exact_from;
        } else {
            run_pieces(*context, n_due(*context), executor);
            return {};
        }
    }
    skip_invisible(context);
    while (const std::uint32_t n = unit_tokens(config, n_buffered_)) {
        if (Status status = begin_unit(context, n, prompt_); !status.ok()) return status;
        if (!at_once && unit_tokens(config, n_buffered_ - n) == 0) return {};
        finish_unit(context, !is_long, executor);
        exact_from_ = exact_from;
    }
    return {};
}

BlockBytes LayerStream::block_bytes(TensorKind kind) const noexcept {
    BlockBytes bytes = blocks_.bytes(kind);
    const void* pending = kind == TensorKind::key ? pending_.block.key : pending_.block.value;
    if (pending != nullptr) bytes += bytes_by_part(*static_cast<const BlockHeader*>(pending));
    return bytes;
}

Status LayerStream::begin_unit(CacheContext* context, std::uint32_t n_tokens, bool prompt) noexcept {
    const Memory memory = this->memory(context);
    if (!blocks_.reserve(memory, 1)) {
        return memory_error(*context, "for the table of %llu blocks of layer %u",
                            static_cast<unsigned long long>(blocks_.size() + 1), index_);
    }
    BlockHeader headers[2];
    std::uint64_t scratch_bytes = 0;
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        BlockHeader* header = &headers[static_cast<int>(kind)];
        const Unit unit = {n_tokens, prompt, blocks_.profiles(kind) == nullptr};
        if (Status status = lay_out_unit(context->config, spec(kind), kind, unit, header); !status.ok())
            return status;
        scratch_bytes = std::max(scratch_bytes, compress_scratch_bytes(*header));
    }
    // A trellis needs no more scratch for a long unit.
    const bool large = scratch_bytes > context->compress_scratch->n_bytes();
    if (!take_block(memory, headers[0].n_bytes, headers[1].n_bytes, &pending_.block) ||
        (large && !pending_.scratch.ensure(memory, scratch_bytes))) {
        Status status = memory_error(
            *context, "to compress %u tokens of layer %u: %llu bytes and %llu of scratch", n_tokens, index_,
            static_cast<unsigned long long>(headers[0].n_bytes + headers[1].n_bytes),
            static_cast<unsigned long long>(scratch_bytes));
        drop_unit(context);
        return status;
    }
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        CompressTask begun;
        begun.header = headers[static_cast<int>(kind)];
        begun.plane_starts = planes(kind);
        begin_block(kind == TensorKind::key ? pending_.block.key : pending_.block.value, begun);
    }
    pending_.n_tokens = n_tokens;
    pending_.prompt = prompt;
    pending_.n_appended = pending_.n_done = 0;
    return {};
}

void LayerStream::finish_unit(CacheContext* context, bool reopenable, Executor& executor) noexcept {
    if (pending_.n_tokens == 0) return;
    run_pieces(*context, n_pieces(), executor);
    forget_reopenable(context);
    const Memory memory = this->memory(context);
    const NewBlock& block = pending_.block;
    const bool is_kept = reopenable && context->config.rollback_tokens > 0;
    const std::uint64_t n_tokens = this->n_tokens();
    blocks_.push({block.owner, block.key, block.value, 0, pending_.n_tokens});
    context->errors.measure(*context->kernels, index_, block_run(blocks_.size() - 1),
                            buffered_run(pending_.n_tokens), context->attend_scratch->data(), executor);
    for (TokenBuffer* buffer : {&key_buffer_, &value_buffer_}) {
        if (is_kept) {
            buffer->set_aside(pending_.n_tokens);
        } else {
            buffer->drop_front(memory, pending_.n_tokens, n_buffered_);
        }
    }
    if (is_kept)
        reopenable_ = {block, pending_.n_tokens, pending_.prompt, pending_.n_appended, n_tokens, exact_from_};
    n_buffered_ -= pending_.n_tokens;
    pending_.block = {};
    drop_unit(context);
}

void LayerStream::reopen_unit(CacheContext* context) noexcept {
    drop_unit(context);  // one that was begun later
    blocks_.pop();
    for (TokenBuffer* buffer : {&key_buffer_, &value_buffer_})
        buffer->bring_back();
    n_buffered_ += reopenable_.n_tokens;
    pending_.block = reopenable_.block;
    pending_.n_tokens = reopenable_.n_tokens;
    pending_.prompt = reopenable_.prompt;
    pending_.n_appended =
        reopenable_.n_appended + static_cast<std::uint32_t>(n_tokens() - reopenable_.closed_at);
    pending_.n_done = n_pieces();
    exact_from_ = reopenable_.exact_from;
    reopenable_ = {};
}

void LayerStream::forget_reopenable(CacheContext* context) noexcept {
    if (reopenable_.n_tokens == 0) return;
    for (TokenBuffer* buffer : {&key_buffer_, &value_buffer_})
        buffer->drop_front(memory(context), 0, n_buffered_);
    reopenable_ = {};
}

void LayerStream::drop_unit(CacheContext* context) noexcept {
    const Memory memory = this->memory(context);
    drop_block(memory, pending_.block);
    pending_.block = {};
    pending_.scratch.free(memory);
    pending_.n_tokens = 0;
}

// ---- pieces of the pending unit: those of keys, then those of values ----

std::uint32_t LayerStream::n_pieces() const noexcept {
    return gearkv::n_pieces(*static_cast<const BlockHeader*>(pending_.block.key)) +
           gearkv::n_pieces(*static_cast<const BlockHeader*>(pending_.block.value));
}

std::uint32_t LayerStream::n_due(const CacheContext& context) const noexcept {
    if (pending_.n_tokens == 0 || spread_tokens(context.config) == 0) return 0;
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
    const std::uint64_t n_closed = n_forgotten_ + blocks_.n_tokens();
    run.task.seed = context.config.seed + 0x100000001b3u * (n_closed * 8192 + index_ * 2 + (keys ? 0 : 1));
    run.task.profiles = blocks_.profiles(run.kind);
    const bool large = compress_scratch_bytes(run.task.header) > context.compress_scratch->n_bytes();
    run.scratch = large ? pending_.scratch.data() : context.compress_scratch->data();
    run.nanoseconds = &compress_ns_;
    run.n = std::min(
        {stage_left(run.task.header, run.first), piece_slots(run.task.header), until - pending_.n_done});
    return run;
}

PieceRun LayerStream::due_pieces(const CacheContext& context) const noexcept {
    return is_shared() ? PieceRun() : next_pieces(context, n_due(context));
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

}  // namespace gearkv
