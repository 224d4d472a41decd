#include "cache/tokens.hpp"

#include <algorithm>
#include <utility>

#include "cache/rules.hpp"
#include "codec/decompress.hpp"

namespace gearkv {
namespace {

// Where the rows of a block go, turned if they are keys that have moved.
struct ReadRows {
    const CodecKernels& kernels;
    Rotation turn;
    std::uint32_t n_heads, dim;
    const OutRows& out;
    std::uint64_t first;  // the token of the output that comes first
};

void take_rows(const BlockView& block, std::uint32_t first, std::uint32_t n_tokens, ReadRows to) {
    decompress_rows(block, first, n_tokens, &to, [](void* context, std::uint64_t row, float* x) {
        const auto& to = *static_cast<const ReadRows*>(context);
        rotate(to.turn, x);
        put_row(to.kernels, to.out, to.first + row / to.n_heads, row % to.n_heads, to.dim, ElementType::f32,
                x);
    });
}

}  // namespace

LayerShape LayerShape::truncated(std::uint64_t n) const noexcept {
    const auto kept = [&](std::uint64_t start, std::uint64_t count) {
        return std::clamp(n, start, start + count) - start;
    };
    return {kept(0, n_sinks), kept(n_sinks, n_forgotten), kept(gap_end(), n_closed),
            kept(buffer_start(), n_buffered), kept(n_sinks, n_left)};
}

LayerShape LayerShape::without(std::uint64_t first, std::uint64_t n) const noexcept {
    const auto kept = [&](std::uint64_t start, std::uint64_t count) {
        return count -
               (std::clamp(first + n, start, start + count) - std::clamp(first, start, start + count));
    };
    return {kept(0, n_sinks), kept(n_sinks, n_forgotten), kept(gap_end(), n_closed),
            kept(buffer_start(), n_buffered), kept(n_sinks, n_left)};
}

bool LayerTokens::create(const CacheConfig& config, std::uint32_t layer, const Memory& memory) noexcept {
    dims_ = config.dims_of(layer);
    return buffer_.create(config, layer, memory, base_tokens(config), buffer_step(config, layer)) &&
           sinks_.create(config, layer, memory, config.spec.sink_tokens);
}

bool LayerTokens::copy(const Memory& memory, const LayerTokens& other) noexcept {
    blocks_.destroy(memory);
    n_forgotten_ = other.n_forgotten_;
    n_left_ = other.n_left_;
    return blocks_.copy(memory, other.blocks_) && sinks_.copy(memory, other.sinks_) &&
           buffer_.copy(memory, other.buffer_);
}

void LayerTokens::destroy(const Memory& memory) noexcept {
    buffer_.destroy(memory);
    sinks_.destroy(memory);
    blocks_.destroy(memory);
}

bool LayerTokens::restore(const Memory& memory, const LayerShape& shape, const void* const* sinks,
                          const void* const* buffer) noexcept {
    if (!buffer_.reserve(memory, shape.n_buffered)) return false;
    sinks_.fill(sinks, shape.n_sinks);
    buffer_.fill(buffer, shape.n_buffered);
    n_forgotten_ = shape.n_forgotten;
    n_left_ = shape.n_left;
    return true;
}

void LayerTokens::append(const CacheContext& context, const Rows& keys, const Rows& values,
                         std::uint32_t n_tokens) noexcept {
    const auto skip = [](const Rows& rows, std::size_t n) {
        Rows rest = rows;
        rest.data = element_at(rows.data, rows.type, n * rows.token_stride);
        return rest;
    };
    // Where sinks were removed, what is behind them goes on as it was.
    const bool has_others = this->n_tokens() > sinks_.n_tokens();
    const auto n_missing =
        static_cast<std::uint32_t>(has_others ? 0 : context.config.spec.sink_tokens - sinks_.n_tokens());
    const std::uint32_t n_sinks = std::min(n_missing, n_tokens);
    sinks_.append(*context.kernels, keys, values, n_sinks);
    buffer_.append(*context.kernels, skip(keys, n_sinks), skip(values, n_sinks), n_tokens - n_sinks);
}

void LayerTokens::close(const Memory& memory, const ClosedBlock& block, bool set_aside) noexcept {
    blocks_.push(block);
    if (set_aside) {
        buffer_.set_aside(block.n_tokens);
    } else {
        buffer_.drop_front(memory, block.n_tokens);
    }
}

void LayerTokens::reopen(const Memory& memory) noexcept {
    const std::uint64_t n = blocks_[blocks_.size() - 1].n_tokens;
    blocks_.pop(memory);
    buffer_.bring_back(n);
}

void LayerTokens::truncate(const Memory& memory, std::uint64_t n_tokens) noexcept {
    const LayerShape held = shape(), kept = held.truncated(n_tokens);
    buffer_.drop_back(memory, held.n_buffered - kept.n_buffered);
    blocks_.truncate(memory, kept.n_closed);
    n_forgotten_ = kept.n_forgotten;
    n_left_ = kept.n_left;
    sinks_.drop_back(memory, held.n_sinks - kept.n_sinks);
}

void LayerTokens::remove(const Memory& memory, const Kernels& kernels, std::uint64_t first, std::uint64_t n,
                         const Rotation& turn) noexcept {
    const LayerShape held = shape(), kept = held.without(first, n);
    const std::uint64_t end = first + n;
    // The part of the range in [start, start + count), from start.
    const auto part = [&](std::uint64_t start, std::uint64_t count) {
        const std::uint64_t from = std::clamp(first, start, start + count);
        return std::pair(from - start, std::clamp(end, start, start + count) - from);
    };
    const auto [sinks_at, n_sinks] = part(0, held.n_sinks);
    const auto [closed_at, closed] = part(held.gap_end(), held.n_closed);
    const auto [buffered_at, buffered] = part(held.buffer_start(), held.n_buffered);
    // Blocks behind the range move even when none of their tokens goes.
    const std::uint64_t from = first > held.gap_end() ? closed_at : 0;
    blocks_.remove(memory, from, closed, n);
    sinks_.remove(memory, sinks_at, n_sinks);
    buffer_.remove(memory, buffered_at, buffered);
    n_forgotten_ = kept.n_forgotten;
    n_left_ = kept.n_left;
    if (turn.n_pairs == 0) return;
    sinks_.rotate_keys(kernels, turn, sinks_at);
    buffer_.rotate_keys(kernels, turn, buffered_at);
}

std::uint64_t LayerTokens::n_forgettable(std::uint64_t token, std::uint64_t n_kept) const noexcept {
    const std::uint64_t start = shape().gap_end();
    std::uint64_t n = 0;
    for (std::uint64_t i = 0; i + n_kept < blocks_.size() && start + n + blocks_[i].n_tokens <= token; ++i)
        n += blocks_[i].n_tokens;
    return n;
}

void LayerTokens::forget(const Memory& memory, std::uint64_t n, bool behind_window) noexcept {
    blocks_.remove(memory, 0, n, 0);
    n_forgotten_ += n;
    if (behind_window) n_left_ = n_forgotten_;
}

void LayerTokens::skip(const Memory& memory, std::uint64_t n) noexcept {
    n_forgotten_ += blocks_.n_tokens() + n;
    n_left_ = n_forgotten_;
    blocks_.truncate(memory, 0);
    blocks_.forget_profiles(memory);
    buffer_.drop_front(memory, n);
}

void LayerTokens::list_runs(KvRun* runs) const noexcept {
    if (sinks_.n_tokens() > 0) *runs++ = sinks_.run(sinks_.n_tokens());
    if (n_forgotten_ > 0) *runs++ = gap_run(n_forgotten_);
    for (std::uint64_t i = 0; i < blocks_.size(); ++i)
        *runs++ = run_of(blocks_[i]);
    if (buffer_.n_tokens() > 0) *runs = buffer_.run(buffer_.n_tokens());
}

KvRun LayerTokens::run_of(const ClosedBlock& block) const noexcept {
    return {run_of_block(blocks_.view_of(block, TensorKind::key)),
            run_of_block(blocks_.view_of(block, TensorKind::value)),
            block.first + block.n_tokens,
            block.first,
            block.shift,
            {}};
}

void LayerTokens::read_range(const CacheContext& context, const RopeConfig& rope, std::uint64_t first,
                             std::uint64_t n, const OutRows* keys, const OutRows* values) const noexcept {
    const LayerShape held = shape();
    const auto read_row = [&](const KvBuffer& from, std::uint64_t token, std::uint64_t at) {
        if (keys != nullptr) from.of(TensorKind::key).read(*context.kernels, token, *keys, at - first);
        if (values != nullptr) from.of(TensorKind::value).read(*context.kernels, token, *values, at - first);
    };
    const std::uint64_t end = first + n;
    std::uint64_t at = first;
    for (; at < std::min(end, held.n_sinks); ++at)
        read_row(sinks_, at, at);
    std::uint64_t start = held.gap_end();
    for (std::uint64_t i = 0; i < blocks_.size() && at < end; ++i) {
        const std::uint64_t stop = start + blocks_[i].n_tokens;
        if (at < stop) {
            const auto from = blocks_[i].first + static_cast<std::uint32_t>(at - start);
            const auto count = static_cast<std::uint32_t>(std::min(stop, end) - at);
            if (keys != nullptr) {
                // To where their tokens are now.
                float angles[max_dim];
                Rotation turn;
                if (blocks_[i].shift != 0 && rope.n_pairs > 0) {
                    turn = make_rotation(rope.frequencies, rope.n_pairs, rope.interleaved, blocks_[i].shift,
                                         angles);
                }
                take_rows(blocks_.view(i, TensorKind::key), from, count,
                          {context.kernels->codec, turn, dims_.n_kv_heads, dims_.key_dim, *keys, at - first});
            }
            if (values != nullptr) {
                take_rows(
                    blocks_.view(i, TensorKind::value), from, count,
                    {context.kernels->codec, {}, dims_.n_kv_heads, dims_.value_dim, *values, at - first});
            }
            at += count;
        }
        start = stop;
    }
    for (; at < end; ++at)
        read_row(buffer_, at - held.buffer_start(), at);
}

}  // namespace gearkv
