// The tokens of a layer, and where they lie.
#pragma once

#include <algorithm>

#include "cache/closed_block.hpp"
#include "cache/context.hpp"
#include "cache/token_buffer.hpp"

namespace gearkv {

// How many of them, in their order.
struct LayerShape {
    std::uint64_t n_sinks = 0;
    std::uint64_t n_forgotten = 0;  // counted but not there any more
    std::uint64_t n_closed = 0;     // in blocks
    std::uint64_t n_buffered = 0;
    std::uint64_t n_left =
        0;  // first of what is forgotten, that a window has left; the caller masks the rest

    std::uint64_t n_tokens() const noexcept { return n_sinks + n_forgotten + n_closed + n_buffered; }
    std::uint64_t gap_end() const noexcept { return n_sinks + n_forgotten; }
    std::uint64_t buffer_start() const noexcept { return gap_end() + n_closed; }
    // With the first n tokens alone; without those in [first, first + n).
    LayerShape truncated(std::uint64_t n) const noexcept;
    LayerShape without(std::uint64_t first, std::uint64_t n) const noexcept;
    std::uint64_t left_end() const noexcept { return n_sinks + n_left; }
    // Whether a query of tokens [first, end) sees what a window has left, and cannot be attended. It is so
    // for the query of no shape's last token.
    bool lacks(std::uint64_t first, std::uint64_t end) const noexcept {
        return n_left > 0 && first < left_end() && end > n_sinks;
    }
};
// The first token that the query of the last of n_tokens sees through a window; 0 for none.
inline std::uint64_t first_seen(std::uint64_t n_tokens, std::uint64_t window) noexcept {
    return window == 0 || n_tokens < window ? 0 : n_tokens - window;
}

// Sinks, a gap of what is forgotten, closed blocks, the buffer: every token is in one of them, and they
// follow each other in this order. Tokens become sinks, while there is room, as long as nothing else holds
// any.
class LayerTokens {
  public:
    // False when memory is short; destroy() is right in any case.
    bool create(const CacheConfig& config, std::uint32_t layer, const Memory& memory) noexcept;
    // After create: what the other holds, with blocks of their own users.
    bool copy(const Memory& memory, const LayerTokens& other) noexcept;
    void destroy(const Memory& memory) noexcept;
    // After create, and with blocks pushed, the rest: rows by kind. False when memory is short.
    bool restore(const Memory& memory, const LayerShape& shape, const void* const* sinks,
                 const void* const* buffer) noexcept;

    LayerShape shape() const noexcept {
        return {sinks_.n_tokens(), n_forgotten_, blocks_.n_tokens(), buffer_.n_tokens(), n_left_};
    }
    std::uint64_t n_tokens() const noexcept { return shape().n_tokens(); }
    std::uint64_t n_buffered() const noexcept { return buffer_.n_tokens(); }
    const BlockTable& blocks() const noexcept { return blocks_; }
    BlockTable* mutable_blocks() noexcept { return &blocks_; }
    const TokenBuffer& sinks(TensorKind kind) const noexcept { return sinks_.of(kind); }
    const TokenBuffer& buffer(TensorKind kind) const noexcept { return buffer_.of(kind); }

    // Room for n_more tokens in the buffer.
    bool reserve(const Memory& memory, std::uint64_t n_more) noexcept {
        return buffer_.reserve(memory, n_more);
    }
    // After reserve; the rows are checked.
    void append(const CacheContext& context, const Rows& keys, const Rows& values,
                std::uint32_t n_tokens) noexcept;

    // The first tokens of the buffer become a block, of which the table has room for one more; with
    // `set_aside` their rows stay, and as long as they do reopen makes those of the last block the first of
    // the buffer again. The oldest n of them are dropped.
    void close(const Memory& memory, const ClosedBlock& block, bool set_aside) noexcept;
    void reopen(const Memory& memory) noexcept;
    void drop_aside(const Memory& memory, std::uint64_t n) noexcept { buffer_.drop_aside(memory, n); }
    std::uint64_t n_aside() const noexcept { return buffer_.n_aside(); }

    // Drops all but the first n_tokens, of at least as many.
    void truncate(const Memory& memory, std::uint64_t n_tokens) noexcept;
    // What remove and forget may need. False when memory is short.
    bool reserve_cut(const Memory& memory) noexcept {
        return blocks_.reserve(memory, 1) && blocks_.keep_profiles(memory);
    }
    // After reserve_cut: drops tokens [first, first + n). Those behind move up, and their keys turn by
    // `turn`.
    void remove(const Memory& memory, const Kernels& kernels, std::uint64_t first, std::uint64_t n,
                const Rotation& turn) noexcept;
    // Tokens of the first blocks that have none from `token` on, all but the last n_kept blocks.
    std::uint64_t n_forgettable(std::uint64_t token, std::uint64_t n_kept) const noexcept;
    // After reserve_cut: the first n tokens of blocks, all of some, go into the gap.
    void forget(const Memory& memory, std::uint64_t n, bool behind_window) noexcept;
    // All blocks go into the gap, and the first n of the buffer behind them: a window has left them.
    void skip(const Memory& memory, std::uint64_t n) noexcept;

    // Sinks, gap, blocks, buffer, as far as they hold tokens; runs has room for n_runs().
    std::size_t n_runs() const noexcept {
        return (sinks_.n_tokens() > 0) + (n_forgotten_ > 0) + blocks_.size() + (buffer_.n_tokens() > 0);
    }
    void list_runs(KvRun* runs) const noexcept;
    // A block of the table, or one about to be.
    KvRun run_of(const ClosedBlock& block) const noexcept;
    // The first n tokens of the buffer.
    KvRun buffered_run(std::uint64_t n) const noexcept { return buffer_.run(n); }
    // Tokens [first, first + n), none of them forgotten, keys turned by `rope` where they have moved; either
    // output may be null.
    void read_range(const CacheContext& context, const RopeConfig& rope, std::uint64_t first, std::uint64_t n,
                    const OutRows* keys, const OutRows* values) const noexcept;

  private:
    LayerDims dims_;
    KvBuffer sinks_;  // first tokens of the sequence, kept as they are
    std::uint64_t n_forgotten_ = 0;
    std::uint64_t n_left_ = 0;  // as in LayerShape
    BlockTable blocks_;
    KvBuffer buffer_;
};

}  // namespace gearkv
