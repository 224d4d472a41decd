#include "cache/layer.hpp"

#include <algorithm>

namespace gearkv {

// ---- tokens come ----

Status LayerStream::advance(CacheContext* context, std::uint32_t n_tokens, Executor& executor) noexcept {
    const CacheConfig& config = context->config;
    const bool is_long = n_tokens >= config.spec.buffer_tokens;
    const bool at_once = config.spread_tokens == 0 || is_long;
    // What is finished here a stream would not have finished without the next token, or without all of a long
    // append.
    const std::uint64_t exact_from = this->n_tokens() + (is_long ? n_tokens : 1);
    tokens_.drop_aside(memory(context),
                       reopenable_.expire(this->n_tokens() + n_tokens, reopen_tokens(config)));
    if (is_long) drop_unbegun(context);
    if (closing_.is_open()) {
        // The next unit begins when it would have begun without spreading.
        if (!at_once && next_unit(*context) == 0 && closing_.n_appended() < spread_tokens(config)) {
            closing_.run(piece_source(*context), closing_.n_due(spread_tokens(config)), executor);
            return {};
        }
        finish_unit(context, !is_long, executor);
        past_.note(exact_from);
    }
    // A unit that was closed can be opened again, but not one that was left out.
    if (is_long && skip_invisible(context)) past_.note(exact_from);
    while (const std::uint32_t n = next_unit(*context)) {
        if (Status status = begin_unit(context, n, past_.prompt()); !status.ok()) return status;
        if (!at_once && next_unit(*context) == 0) return {};
        finish_unit(context, !is_long, executor);
        past_.note(exact_from);
    }
    return {};
}

void LayerStream::append(const CacheContext& context, const Rows& keys, const Rows& values,
                         std::uint32_t n_tokens) noexcept {
    past_.append(this->n_tokens(), n_tokens, n_tokens >= context.config.spec.buffer_tokens);
    tokens_.append(context, keys, values, n_tokens);
    closing_.advance(n_tokens);
}

Status LayerStream::compress(CacheContext* context, Executor& executor) noexcept {
    if (closing_.is_open() || next_unit(*context) > 0) past_.note(n_tokens());
    drop_unbegun(context);
    finish_unit(context, false, executor);
    forget_reopenable(context);
    if (skip_invisible(context)) past_.note(n_tokens());
    while (const std::uint32_t n = next_unit(*context)) {
        if (Status status = begin_unit(context, n, past_.prompt()); !status.ok()) return status;
        finish_unit(context, false, executor);
    }
    return {};
}

PieceRun LayerStream::due_pieces(const CacheContext& context) const noexcept {
    if (is_shared() || !closing_.is_open()) return {};
    return closing_.next(piece_source(context), closing_.n_due(spread_tokens(context.config)));
}

// ---- queries ----

bool LayerStream::wants(const Queries& queries) const noexcept {
    if (rates_.spec(TensorKind::key).backbone != Backbone::trellis) return false;
    const std::uint64_t n = n_tokens(), n_queries = queries.causal ? queries.n_queries : 1;
    return squares_.n_missing(std::max(n - n_queries, first_untold()), n) > 0;
}

bool LayerStream::keep(CacheContext* context, const Queries& queries) noexcept {
    const std::uint64_t n = n_tokens(), n_queries = queries.causal ? queries.n_queries : 1;
    const std::uint64_t first = std::max(n - n_queries, first_untold());
    if (!squares_.reserve(memory(context), squares_.n_missing(first, n))) return false;
    // One that was begun and got no token, after a rollback, would be begun later, and told.
    if (first < tokens_.shape().buffer_start() + closing_.n_tokens()) drop_unbegun(context);
    squares_.keep(context->kernels->codec, queries, first, n);
    return true;
}

// ---- closing units ----

Status LayerStream::begin_unit(CacheContext* context, std::uint32_t n_tokens, bool prompt) noexcept {
    const BlockTable& blocks = tokens_.blocks();
    const bool may_reopen = context->config.rollback_tokens > 0;
    if (!mutable_blocks()->reserve(memory(context), 1) ||
        (may_reopen && !reopenable_.reserve(memory(context)))) {
        return memory_error(*context, "for the table of %llu blocks of layer %u",
                            static_cast<unsigned long long>(blocks.size() + 1), index_);
    }
    ClosingPlan plan;
    bool first[2];
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        first[static_cast<int>(kind)] = blocks.profiles(kind) == nullptr;
        plan.plane_starts[static_cast<int>(kind)] = rates_.planes(kind);
    }
    Status status = plan.lay_out(context->config, index_, rates_.specs(), n_tokens, prompt, first);
    if (!status.ok()) return status;
    fold_squares(context);
    key_weights_ = weigh_buffered(n_tokens);
    if (closing_.begin(memory(context), plan, *context->compress_scratch)) return status;
    return memory_error(*context, "to compress %u tokens of layer %u: %llu bytes and %llu of scratch",
                        n_tokens, index_, static_cast<unsigned long long>(plan.block_bytes()),
                        static_cast<unsigned long long>(plan.scratch_bytes));
}

PieceSource LayerStream::piece_source(const CacheContext& context) const noexcept {
    const LayerShape shape = tokens_.shape();
    PieceSource source;
    source.kernels = context.kernels;
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const int i = static_cast<int>(kind);
        source.rows[i] = tokens_.buffer(kind).source(0);
        source.profiles[i] = tokens_.blocks().profiles(kind);
        source.seeds[i] =
            context.config.seed + 0x100000001b3u * ((shape.n_forgotten + shape.n_closed) * 8192 + index_ * 2 +
                                                    static_cast<std::uint64_t>(kind == TensorKind::value));
    }
    source.key_weights = key_weights_;
    source.shared_scratch = context.compress_scratch;
    source.nanoseconds = &compress_ns_;
    return source;
}

void LayerStream::finish_unit(CacheContext* context, bool reopenable, Executor& executor) noexcept {
    if (!closing_.is_open()) return;
    closing_.run(piece_source(*context), closing_.n_pieces(), executor);
    const bool is_kept = reopenable && context->config.rollback_tokens > 0;
    if (!is_kept) forget_reopenable(context);
    const std::uint64_t n_tokens = this->n_tokens();
    const ClosedUnit unit = closing_.finish(memory(context));
    ClosedBlock block;
    block.owner = unit.block.owner;
    block.key = unit.block.key;
    block.value = unit.block.value;
    block.n_tokens = unit.n_tokens;
    context->errors.measure(*context->kernels, index_, tokens_.run_of(block),
                            tokens_.buffered_run(unit.n_tokens), context->attend_scratch->data(), executor);
    tokens_.close(memory(context), block, is_kept);
    if (is_kept) reopenable_.push({unit, n_tokens, past_.exact_from()});
}

void LayerStream::reopen_units(CacheContext* context, std::uint64_t n_tokens) noexcept {
    while (const ReopenableUnit* last = reopenable_.closed_from(n_tokens)) {
        closing_.drop(memory(context));  // one that was begun later
        tokens_.reopen(memory(context));
        closing_.reopen(last->unit);
        closing_.advance(this->n_tokens() - last->closed_at);
        past_.undo(last->exact_from);
        reopenable_.pop();
    }
}

void LayerStream::drop_unbegun(CacheContext* context) noexcept {
    if (closing_.is_open() && closing_.n_appended() == 0) closing_.drop(memory(context));
}

void LayerStream::forget_reopenable(CacheContext* context) noexcept {
    tokens_.drop_aside(memory(context), tokens_.n_aside());
    reopenable_.clear();
}

bool LayerStream::skip_invisible(CacheContext* context) noexcept {
    const CacheConfig& config = context->config;
    const std::uint64_t first = first_visible(config, index_, n_tokens());
    const std::uint64_t start = tokens_.shape().buffer_start();
    if (first < start + config.spec.buffer_tokens || closing_.is_open()) return false;
    forget_reopenable(context);
    tokens_.skip(memory(context), (first - start) / config.spec.buffer_tokens * config.spec.buffer_tokens);
    has_skipped_ = true;
    return true;
}

// ---- tokens go ----

bool LayerStream::truncate(CacheContext* context, std::uint64_t n_tokens) noexcept {
    const std::uint64_t n_held = this->n_tokens(), n_kept = std::min(n_tokens, n_held);
    if (n_kept == n_held && is_settled()) return true;
    const std::uint32_t n_long = context->config.spec.buffer_tokens;
    reopen_units(context, n_kept);
    const LayerShape held = tokens_.shape();
    const bool in_blocks = n_kept < held.buffer_start() && held.n_forgotten + held.n_closed > 0;
    const bool exact = past_.is_exact_at(n_kept) && !in_blocks;
    // What is left of a long append may be short, and make blocks of another rank.
    const bool is_begun = n_kept + closing_.n_appended() > n_held;
    if (!is_begun && closing_.prompt() != past_.prompt_at(n_kept, n_long)) closing_.drop(memory(context));
    past_.truncate(n_kept, n_held, n_long);
    tokens_.truncate(memory(context), n_kept);
    note_dropped(context, held.n_buffered - tokens_.n_buffered());
    // An open unit that got no token since may have been told by queries that are gone.
    if (squares_.truncate(n_kept)) drop_unbegun(context);
    // A stream that has forgotten all its blocks keeps their profiles.
    if (tokens_.blocks().size() == 0 && !closing_.is_open() && !exact)
        mutable_blocks()->forget_profiles(memory(context));
    if (n_kept == 0) {
        rope_.forget(memory(context));
        squares_.forget(memory(context));
    }
    return exact;
}

void LayerStream::reset(CacheContext* context) noexcept {
    (void)truncate(context, 0);
    mutable_blocks()->destroy(memory(context));  // and its table
    rope_.forget(memory(context));
    squares_.forget(memory(context));
    past_ = {};
}

void LayerStream::settle(CacheContext* context) noexcept {
    forget_reopenable(context);
    past_.note(n_tokens());
}

void LayerStream::note_dropped(CacheContext* context, std::uint64_t n_dropped) noexcept {
    // The open unit's tokens are the first of the buffer, and recent ones were behind them.
    if (tokens_.n_buffered() < std::uint64_t{closing_.n_tokens()} + context->config.spec.recent_tokens)
        closing_.drop(memory(context));
    closing_.rewind(n_dropped);
}

void LayerStream::prepare_remove(CacheContext* context, std::uint64_t first, Executor& executor) noexcept {
    // Its block would be of other rows, or of a seed for another place. Were it dropped instead, a removal
    // every few tokens would keep all of them in fp16.
    if (first >= tokens_.shape().buffer_start() + closing_.n_tokens()) return;
    drop_unbegun(context);
    if (!closing_.is_open()) return;
    finish_unit(context, false, executor);
    past_.note(n_tokens());
}

void LayerStream::remove(CacheContext* context, std::uint64_t first, std::uint64_t n, const RopeConfig& rope,
                         const Rotation& turn) noexcept {
    forget_reopenable(context);
    if (first + n < n_tokens()) rope_.use(rope, context->config.rope);
    tokens_.remove(memory(context), *context->kernels, first, n, turn);
    fold_squares(context);
    squares_.remove(first, n);
    // What goes behind an open unit is no rollback: its time runs on, as far as a state file can tell.
    const std::uint64_t n_appended = closing_.n_appended(), n_buffered = tokens_.n_buffered();
    note_dropped(context, n_appended - std::min(n_appended, n_buffered));
    past_.restore(n_tokens(), past_.prompt(), n_tokens());
    if (n_tokens() == 0) reset(context);
}

void LayerStream::forget(CacheContext* context, std::uint64_t n, bool behind_window) noexcept {
    tokens_.forget(memory(context), n, behind_window);
}

void LayerStream::prepare_smaller(CacheContext* context, std::uint64_t i) noexcept {
    // A unit that is opened again would undo what is noted here; above soft_bytes no truncation is lossless.
    if (context->config.soft_bytes == 0 || i + reopenable_.size() >= tokens_.blocks().size())
        forget_reopenable(context);
    past_.note(n_tokens());
}

bool LayerStream::reduce(CacheContext* context, std::uint64_t i, bool drop_low_rank) noexcept {
    prepare_smaller(context, i);
    return mutable_blocks()->reduce(memory(context), i, drop_low_rank);
}

// ---- what there is ----

Status LayerStream::check_blocks(Executor& executor) const noexcept {
    return tokens_.blocks().check(tokens_.blocks().size(), executor);
}

Status LayerStream::check_first_block() const noexcept {
    return tokens_.blocks().check(std::min<std::uint64_t>(tokens_.blocks().size(), 1), serial_executor());
}

BlockBytes LayerStream::block_bytes(TensorKind kind) const noexcept {
    BlockBytes bytes = tokens_.blocks().bytes(kind);
    if (const BlockHeader* open = closing_.header(kind); open != nullptr) bytes += bytes_by_part(*open);
    return bytes;
}

}  // namespace gearkv
