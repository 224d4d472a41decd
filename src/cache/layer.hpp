// One layer of a sequence: its tokens, the unit that is on its way to a block, and who shares them.
#pragma once

#include <utility>

#include "cache/closing.hpp"
#include "cache/context.hpp"
#include "cache/layer_rates.hpp"
#include "cache/past.hpp"
#include "cache/query_squares.hpp"
#include "cache/reopenable.hpp"
#include "cache/rope_in_use.hpp"
#include "cache/tokens.hpp"
#include "codec/reencode.hpp"

namespace gearkv {

// What of a layer decides how its future goes, beside the tokens themselves.
struct LayerProgress {
    std::uint64_t exact_from = 0;  // a stream of fewer tokens would not have closed all blocks yet
    std::uint32_t pending_tokens = 0;
    std::uint32_t pending_appended = 0;
    bool pending_prompt = false;
    bool prompt = false;  // the last append brought a block's worth of tokens or more
};

// Keys or values of a block on their way to a lower rate.
struct Lowering {
    BlockOwner* source = nullptr;  // of the old pair, of which this is a user; null when there is none
    NewBlock pair;
    BlockHeader lower = {};
    TensorKind tensor = TensorKind::key;
    std::uint64_t block = 0;
    std::uint32_t n_sections = 0, n_done = 0;  // of each head
    bool compares = false;
    SectionSquares squares;

    bool is_open() const noexcept { return source != nullptr; }
    bool is_done() const noexcept { return n_done == n_sections; }
    void drop(const Memory& memory) noexcept {
        if (source == nullptr) return;
        drop_block(memory, pair);
        source->drop_user();
        *this = {};
    }
};

// Several caches may show one stream as long as none of them changes it: who wants to takes a clone first.
class LayerStream {
  public:
    // ---- sharing (layer_sharing.cpp) ----

    // In the caller's memory; null when that is short. `rates` are those to begin with.
    static LayerStream* make(CacheContext* context, std::uint32_t index, const KvSpec& rates) noexcept;
    // The same tokens, with blocks of their own users; null when memory is short.
    LayerStream* clone(CacheContext* context) const noexcept;
    // One cache more, or one less: the last one destroys it.
    void join(CacheContext* context) noexcept;
    void leave(CacheContext* context) noexcept;
    bool is_shared() const noexcept { return n_caches_.load(std::memory_order_acquire) > 1; }
    // An empty stream whose blocks were pushed takes over the rest: rows of sinks and buffer by kind, and how
    // far it was. False when memory is short.
    bool restore(CacheContext* context, const LayerShape& shape, const LayerProgress& progress,
                 const void* const* sinks, const void* const* buffer) noexcept;
    // Before that, what is known of queries. False when memory is short.
    bool restore_squares(CacheContext* context, const double* sum, std::uint64_t n_summed,
                         const SquareRow* rows, const float* levels, std::uint64_t n_rows) noexcept {
        return squares_.restore(memory(context), sum, n_summed, rows, levels, n_rows);
    }
    // And this rope, by which keys of it have moved. False when memory is short.
    bool restore_rope(CacheContext* context, const RopeConfig& rope) noexcept;

    // ---- tokens come ----

    // Before an append of n_tokens: does what is due, and begins the compression of full units. Errors:
    // out_of_memory, over_budget; the unit stays in the buffer.
    Status advance(CacheContext* context, std::uint32_t n_tokens, Executor& executor) noexcept;
    // Room for n_tokens more.
    bool reserve_append(CacheContext* context, std::uint32_t n_tokens) noexcept {
        return tokens_.reserve(memory(context), n_tokens);
    }
    // After reserve_append; the rows are checked.
    void append(const CacheContext& context, const Rows& keys, const Rows& values,
                std::uint32_t n_tokens) noexcept;
    // Closes every full unit. Errors: as advance.
    Status compress(CacheContext* context, Executor& executor) noexcept;
    // Whether these queries, the last of which is of the last token, tell what channels of keys count.
    bool wants(const Queries& queries) const noexcept;
    // Then, with a stream of one cache: keeps what they tell. False when memory is short.
    bool keep(CacheContext* context, const Queries& queries) noexcept;
    // Whether the last append brought a block's worth of tokens or more.
    bool ends_long() const noexcept { return past_.prompt(); }
    // Pieces that are due, as many as may run at once; none while others share the stream. They may run
    // beside attention; then note_done.
    PieceRun due_pieces(const CacheContext& context) const noexcept;
    void note_done(const PieceRun& pieces) noexcept {
        if (pieces.n > 0) closing_.note_done(pieces);  // else others may be reading
    }

    // ---- tokens go ----

    void reset(CacheContext* context) noexcept;
    // Something was done to the sequence that one of fewer than n_tokens would not have seen.
    void note(std::uint64_t n_tokens) noexcept { past_.note(n_tokens); }
    // Whether nothing was done yet on account of an append that did not come after all.
    bool is_settled() const noexcept { return past_.is_exact_at(n_tokens()); }
    // Drops all but the first n_tokens, of at least as many. True when the stream is as if the others had
    // never come: then whatever it is attended by finds the same bits.
    bool truncate(CacheContext* context, std::uint64_t n_tokens) noexcept;
    // What remove and forget_before may need. False when memory is short.
    bool reserve_cut(CacheContext* context) noexcept { return tokens_.reserve_cut(memory(context)); }
    // Before reserve_cut for a removal from `first` on: an open unit is closed that has tokens behind it.
    void prepare_remove(CacheContext* context, std::uint64_t first, Executor& executor) noexcept;
    // Before a removal: room for a rope that the one in use agrees with, by which keys are to move. False
    // when memory is short.
    bool reserve_rope(CacheContext* context, const RopeConfig& rope) noexcept {
        return rope_.reserve(memory(context), rope, context->config.rope);
    }
    // Drops tokens [first, first + n). Those behind move up, and their keys turn by `turn`, of `rope`.
    void remove(CacheContext* context, std::uint64_t first, std::uint64_t n, const RopeConfig& rope,
                const Rotation& turn) noexcept;
    // Tokens of the blocks that have none from `token` on. What a window leaves may still be opened again,
    // and stays until it no longer is.
    std::uint64_t n_forgettable(std::uint64_t token, bool may_reopen) const noexcept {
        return tokens_.n_forgettable(token, may_reopen ? reopenable_.size() : 0);
    }
    // After reserve_cut: gives the first n tokens of blocks back, because the window has left them or the
    // caller masks them. All tokens keep their places.
    void forget(CacheContext* context, std::uint64_t n, bool behind_window) noexcept;
    // Before the caller forgets tokens: no unit is opened again, and none taken back as if it had not come.
    void settle(CacheContext* context) noexcept;
    // Whether a prompt left all blocks behind since the last call. With a stream of one cache.
    bool note_skipped() noexcept { return std::exchange(has_skipped_, false); }
    // Puts a smaller block in the place of block i, as BlockTable::reduce.
    bool reduce(CacheContext* context, std::uint64_t i, bool drop_low_rank) noexcept;
    // ---- a lower rate (reencode.cpp), of a block in memory that is of trellis codes ----
    // `lower` is the same block after one or more of lay_out_lower.
    // What it loses: the square of the error that comes on top beside that of what varies, of keys by the
    // queries that were seen. Of the first section of block i; negative when memory is short. Nothing
    // changes.
    double measure_lower(CacheContext* context, std::uint64_t i, TensorKind tensor, const BlockHeader& lower,
                         Executor& executor) const noexcept;
    // Keys or values of block i are encoded again: a smaller pair is begun, which counts as the cache's, gets
    // n more sections of every head, and takes the place of the old one when it has all. Errors of begin:
    // out_of_memory, over_budget, damaged; nothing has changed then.
    Status begin_lower(CacheContext* context, std::uint64_t i, TensorKind tensor, const BlockHeader& lower,
                       Executor& executor, Lowering* out) const noexcept;
    bool can_go_on(const Lowering& lowering) const noexcept {
        const BlockTable& blocks = tokens_.blocks();
        return lowering.block < blocks.size() && blocks[lowering.block].owner == lowering.source;
    }
    // Errors: out_of_memory, over_budget; nothing has changed then.
    Status go_on_lower(CacheContext* context, Lowering* lowering, std::uint32_t n,
                       Executor& executor) const noexcept;
    // With a stream of one cache. Tells the same as measure_lower, of all of it if it was asked to compare.
    double finish_lower(CacheContext* context, Lowering* lowering) noexcept;

    // ---- what there is ----

    const LayerTokens& tokens() const noexcept { return tokens_; }
    // By which keys have moved, if any have.
    const RopeInUse& rope_in_use() const noexcept { return rope_; }
    const RopeConfig& rope(const CacheContext& context) const noexcept {
        return rope_.get(context.config.rope);
    }
    BlockTable* mutable_blocks() noexcept { return tokens_.mutable_blocks(); }
    std::uint64_t n_tokens() const noexcept { return tokens_.n_tokens(); }
    const QuerySquares& squares() const noexcept { return squares_; }
    // As QuerySquares::weigh, of the first n buffered tokens and those before.
    const float* weigh_buffered(std::uint64_t n) noexcept {
        return squares_.weigh(tokens_.shape().buffer_start() + n);
    }
    const LayerRates& rates() const noexcept { return rates_; }
    LayerRates* mutable_rates() noexcept { return &rates_; }
    // For a state file.
    LayerProgress progress() const noexcept;
    // Of blocks from a file: all, or the one whose profiles later blocks use. Errors: damaged.
    Status check_blocks(Executor& executor) const noexcept;
    Status check_first_block() const noexcept;
    const HeldBytes& held() const noexcept { return held_; }
    double compress_seconds() const noexcept {
        return 1e-9 * static_cast<double>(compress_ns_.load(std::memory_order_relaxed));
    }
    // Blocks, the one being compressed included.
    BlockBytes block_bytes(TensorKind kind) const noexcept;
    Memory memory(CacheContext* context) noexcept { return {&context->ledger, &held_}; }

  private:
    LayerStream() noexcept = default;
    bool create(CacheContext* context, std::uint32_t index, const KvSpec& rates) noexcept;
    bool copy(CacheContext* context, const LayerStream& other) noexcept;
    void destroy(CacheContext* context) noexcept;
    // Begins the unit again that such a progress had open.
    bool take_progress(CacheContext* context, const LayerProgress& progress) noexcept;

    // Tokens of the next unit behind an open one, should it begin now; 0 when they do not fill one.
    std::uint32_t next_unit(const CacheContext& context) const noexcept {
        return unit_tokens(context.config, index_, tokens_.n_buffered() - closing_.n_tokens());
    }
    Status begin_unit(CacheContext* context, std::uint32_t n_tokens, bool prompt) noexcept;
    // `reopenable`: as long as rollback_tokens say.
    void finish_unit(CacheContext* context, bool reopenable, Executor& executor) noexcept;
    // All that a stream of n_tokens would not have closed yet.
    void reopen_units(CacheContext* context, std::uint64_t n_tokens) noexcept;
    void forget_reopenable(CacheContext* context) noexcept;
    // An open unit that got no token since it was begun, after a rollback: the next append would begin it.
    // What asks whether a unit is open, and not only how far it is, drops such a one first.
    void drop_unbegun(CacheContext* context) noexcept;
    // The first token whose query may still be kept: those of an open unit are told.
    std::uint64_t first_untold() const noexcept {
        return tokens_.shape().buffer_start() + (closing_.n_appended() > 0 ? closing_.n_tokens() : 0);
    }
    // What is known of queries of tokens that are in blocks for good is summed up.
    void fold_squares(CacheContext* context) noexcept {
        squares_.fold(memory(context), tokens_.shape().buffer_start() - tokens_.n_aside());
    }
    // After tokens went, n_dropped of them from the back of the buffer.
    void note_dropped(CacheContext* context, std::uint64_t n_dropped) noexcept;
    // Of the buffer, as many tokens of whole units as are behind the window, and all blocks before them. True
    // when there were any.
    bool skip_invisible(CacheContext* context) noexcept;
    void prepare_smaller(CacheContext* context, std::uint64_t i) noexcept;
    PieceSource piece_source(const CacheContext& context) const noexcept;

    std::atomic<std::uint32_t> n_caches_{1};
    HeldBytes held_;
    std::uint32_t index_ = 0;
    LayerRates rates_;
    LayerTokens tokens_;
    RopeInUse rope_;
    QuerySquares squares_;
    const float* key_weights_ = nullptr;  // of the open unit
    Closing closing_;
    ReopenableUnits reopenable_;
    Past past_;
    bool has_skipped_ = false;
    mutable std::atomic<std::uint64_t> compress_ns_{0};
};

}  // namespace gearkv
