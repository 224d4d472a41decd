#include "cache/closing.hpp"

#include <algorithm>
#include <chrono>

namespace gearkv {

void run_group(const PieceRun& run, std::uint32_t i, Executor& executor) noexcept {
    const auto start = std::chrono::steady_clock::now();
    std::uint32_t first = run.first;
    for (std::uint32_t before = 0; before < i; ++before)
        first += group_left(run.task.header, first);
    const std::uint32_t n = std::min(group_left(run.task.header, first), run.end - first);
    compress_pieces(run.block, run.scratch, run.task, first, n, i, executor);
    const auto time = std::chrono::steady_clock::now() - start;
    run.nanoseconds->fetch_add(
        static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count()),
        std::memory_order_relaxed);
}

Status ClosingPlan::lay_out(const CacheConfig& config, std::uint32_t layer, const TensorSpec (&specs)[2],
                            std::uint32_t n_tokens, bool prompt, const bool (&first)[2]) noexcept {
    const LayerDims dims = config.dims_of(layer);
    unit = {n_tokens, prompt, false};
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const int i = static_cast<int>(kind);
        Status status = lay_out_unit(config, dims, specs[i], kind, {n_tokens, prompt, first[i]}, &headers[i]);
        if (!status.ok()) return status;
        scratch_bytes = std::max(scratch_bytes, compress_scratch_bytes(headers[i]));
    }
    return {};
}

bool Closing::begin(const Memory& memory, const ClosingPlan& plan, const Scratch& shared_scratch) noexcept {
    // A trellis needs no more scratch for a long unit.
    const bool large = plan.scratch_bytes > shared_scratch.n_bytes();
    if (!take_block(memory, plan.headers[0].n_bytes, plan.headers[1].n_bytes, &block_) ||
        (large && !scratch_.ensure(memory, plan.scratch_bytes))) {
        drop(memory);
        return false;
    }
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        CompressTask begun;
        begun.header = plan.headers[static_cast<int>(kind)];
        begun.plane_starts = plan.plane_starts[static_cast<int>(kind)];
        begin_block(kind == TensorKind::key ? block_.key : block_.value, begun);
    }
    n_tokens_ = plan.unit.n_tokens;
    prompt_ = plan.unit.prompt;
    n_appended_ = n_done_ = 0;
    return true;
}

void Closing::advance(std::uint64_t n) noexcept {
    if (is_open()) n_appended_ += static_cast<std::uint32_t>(n);
}

void Closing::rewind(std::uint64_t n) noexcept {
    n_appended_ -= static_cast<std::uint32_t>(std::min<std::uint64_t>(n, n_appended_));
}

ClosedUnit Closing::finish(const Memory& memory) noexcept {
    const ClosedUnit unit = {block_, n_tokens_, prompt_, n_appended_};
    block_ = {};
    drop(memory);
    return unit;
}

void Closing::reopen(const ClosedUnit& unit) noexcept {
    block_ = unit.block;
    n_tokens_ = unit.n_tokens;
    prompt_ = unit.prompt;
    n_appended_ = unit.n_appended;
    n_done_ = n_pieces();
}

void Closing::drop(const Memory& memory) noexcept {
    drop_block(memory, block_);
    block_ = {};
    scratch_.free(memory);
    n_tokens_ = 0;
}

std::uint32_t Closing::n_pieces() const noexcept {
    return gearkv::n_pieces(*header(TensorKind::key)) + gearkv::n_pieces(*header(TensorKind::value));
}

std::uint32_t Closing::n_due(std::uint32_t n_spread) const noexcept {
    if (!is_open() || n_spread == 0) return 0;
    return static_cast<std::uint32_t>(
        ceil_div(n_pieces() * std::uint64_t{std::min(n_appended_, n_spread)}, std::uint64_t{n_spread}));
}

PieceRun Closing::next(const PieceSource& source, std::uint32_t until) const noexcept {
    PieceRun run;
    if (n_done_ >= until) return run;
    const std::uint32_t n_key = gearkv::n_pieces(*header(TensorKind::key));
    const bool keys = n_done_ < n_key;
    run.kind = keys ? TensorKind::key : TensorKind::value;
    const int i = static_cast<int>(run.kind);
    run.block = keys ? block_.key : block_.value;
    run.first = keys ? n_done_ : n_done_ - n_key;
    run.task.kernels = source.kernels;
    run.task.rows = source.rows[i];
    run.task.header = *header(run.kind);
    run.task.seed = source.seeds[i];
    run.task.profiles = source.profiles[i];
    run.task.key_weights = keys ? source.key_weights : nullptr;
    const bool large = compress_scratch_bytes(run.task.header) > source.shared_scratch->n_bytes();
    run.scratch = large ? scratch_.data() : source.shared_scratch->data();
    run.nanoseconds = source.nanoseconds;
    run.end = run.first;
    const std::uint32_t end = run.first + std::min(stage_left(run.task.header, run.first), until - n_done_);
    for (; run.end < end && run.n < piece_slots(run.task.header); ++run.n)
        run.end = std::min(run.end + group_left(run.task.header, run.end), end);
    return run;
}

void Closing::run(const PieceSource& source, std::uint32_t until, Executor& executor) noexcept {
    while (n_done_ < until) {
        const PieceRun pieces = next(source, until);
        if (pieces.n == 1) {
            run_group(pieces, 0, executor);  // which may spread over the executor itself
        } else {
            parallel_for(executor, pieces.n,
                         [&](std::size_t i) { run_group(pieces, static_cast<std::uint32_t>(i), executor); });
        }
        note_done(pieces);
    }
}

}  // namespace gearkv
