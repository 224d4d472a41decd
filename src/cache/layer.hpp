// One layer of a cache: closed blocks, and the buffer of recent tokens.
#pragma once

#include <algorithm>

#include "attention/attend.hpp"
#include "attention/rope.hpp"
#include "cache/closed_block.hpp"
#include "cache/error_estimate.hpp"
#include "codec/compress.hpp"
#include "gearkv/cache.hpp"

namespace gearkv {

// Longest run of tokens that is compressed as one unit; a longer prompt makes several.
inline constexpr std::uint32_t max_unit_tokens = 4096;

// What all layers of a cache share.
struct CacheContext {
    CacheConfig config;
    const Kernels* kernels = nullptr;
    MemoryLedger ledger;
    HeldBytes held;                       // beside the layers
    Scratch* compress_scratch = nullptr;  // of the cache's working memory
    Scratch* attend_scratch = nullptr;    // likewise, at least a slot for every KV head
    ErrorEstimate errors;

    explicit CacheContext(const CacheConfig& c) noexcept : config(c), ledger(c.allocator, c.max_bytes) {}
    Memory memory() noexcept { return {&ledger, &held}; }
    std::uint32_t dim(TensorKind kind) const noexcept {
        return kind == TensorKind::key ? config.key_dim : config.value_dim;
    }
};

// After a take that failed: over_budget when the cache's limit was the reason, else out_of_memory.
Status memory_error(const CacheContext& context, const char* format, ...) noexcept
    __attribute__((format(printf, 2, 3)));

// Of a layer; 0 without one.
inline std::uint32_t window_of(const CacheConfig& config, std::uint32_t layer) noexcept {
    return config.windows == nullptr ? 0 : config.windows[layer];
}
// The first token of a layer of n_tokens that its window, if it has one, and rollbacks leave visible.
std::uint64_t first_visible(const CacheConfig& config, std::uint32_t layer, std::uint64_t n_tokens) noexcept;

// A run of tokens that is closed as one block.
struct Unit {
    std::uint32_t n_tokens = 0;
    bool prompt = false;  // it came in an append of a block's worth of tokens or more
    bool first = false;   // of its stream
};
Status lay_out_unit(const CacheConfig& config, const TensorSpec& spec, TensorKind kind, const Unit& unit,
                    BlockHeader* out) noexcept;
// The configured number, as far as it is allowed.
std::uint32_t spread_tokens(const CacheConfig& config) noexcept;
// Tokens that a buffer always has room for: a unit, and those that come while it is compressed.
std::uint32_t base_tokens(const CacheConfig& config) noexcept;
// Tokens of the next unit out of n_buffered; 0 when they do not fill one.
std::uint32_t unit_tokens(const CacheConfig& config, std::uint64_t n_buffered) noexcept;
// Bytes of n_tokens keys or values in the buffer.
std::uint64_t buffer_bytes(const CacheConfig& config, TensorKind kind, std::uint64_t n_tokens) noexcept;
// Most blocks a layer can hold that was never cut.
std::uint64_t max_blocks(const CacheConfig& config) noexcept;

// A unit on its way to a closed block. Its tokens are the first of the buffer and attended there until the
// block is finished.
struct PendingUnit {
    NewBlock block;
    std::uint32_t n_tokens = 0;    // 0: there is none
    bool prompt = false;           // as in Unit
    std::uint32_t n_appended = 0;  // tokens since it was begun
    std::uint32_t n_done = 0;      // pieces, first of keys and then of values
    Scratch scratch;               // of a unit too large for what the layers share
};

// Pieces of a compression that may run at once, each with a number below n as its slot.
struct PieceRun {
    std::uint32_t n = 0;
    std::uint32_t first = 0;
    TensorKind kind = TensorKind::key;
    void* block = nullptr;
    void* scratch = nullptr;
    CompressTask task;
    std::atomic<std::uint64_t>* nanoseconds = nullptr;  // where the time of each is added
};
void run_piece(const PieceRun& run, std::uint32_t i, Executor& executor) noexcept;

// A unit that was closed lately, with what it takes to have it pending again. Its tokens are set aside in the
// buffers meanwhile.
struct ReopenableUnit {
    NewBlock block;              // as the last block of the table shows it
    std::uint32_t n_tokens = 0;  // 0: there is none
    bool prompt = false;
    std::uint32_t n_appended = 0;  // while it was pending
    std::uint64_t closed_at = 0;   // tokens of the stream then; with one more it would have been closed too
    std::uint64_t exact_from = 0;  // of the stream before
};

// Rows [token][head][dim padded to 16] in half, or in float for a raw32 tensor. Tokens may be set aside in
// front: they keep their room and are none of the buffer's.
class TokenBuffer {
  public:
    // Room for n_tokens that is never given back before destroy.
    bool create(const CacheConfig& config, const Memory& memory, TensorKind kind,
                std::uint32_t n_tokens) noexcept;
    void destroy(const Memory& memory) noexcept;
    // Makes room for n_tokens, keeping the first n_kept.
    bool grow(const Memory& memory, std::uint64_t n_tokens, std::uint64_t n_kept) noexcept;
    // The first n_tokens of a buffer of the same shape.
    bool copy(const Memory& memory, const TokenBuffer& other, std::uint64_t n_tokens) noexcept;
    // Drops the first n_dropped of n_tokens, and what was set aside, and returns to the base room when the
    // rest fits.
    void drop_front(const Memory& memory, std::uint64_t n_dropped, std::uint64_t n_tokens) noexcept;
    // Drops the last n_dropped of n_tokens, likewise.
    void drop_back(const Memory& memory, std::uint64_t n_dropped, std::uint64_t n_tokens) noexcept;
    // Drops n of n_tokens from `first` on, likewise.
    void remove(const Memory& memory, std::uint64_t first, std::uint64_t n, std::uint64_t n_tokens) noexcept;
    // Sets the first n aside, beside none, until bring_back or drop_front.
    void set_aside(std::uint64_t n) noexcept { n_aside_ = n; }
    void bring_back() noexcept { n_aside_ = 0; }
    void write(const Kernels& kernels, std::uint64_t first, const Rows& rows,
               std::uint32_t n_tokens) noexcept;
    // Turns tokens [first, end) on by the angles of `turn` (attention/rope.hpp).
    void rotate(const Kernels& kernels, const Rotation& turn, std::uint64_t first,
                std::uint64_t end) noexcept;

    RowSource source(std::uint64_t first) const noexcept;
    TensorRun run() const noexcept;
    void read(const Kernels& kernels, std::uint64_t token, float* out) const noexcept;
    std::uint64_t n_bytes(std::uint64_t n_tokens) const noexcept {
        return n_tokens * token_stride_ * element_bytes_;
    }
    // The rows, for a state file.
    unsigned char* data() noexcept { return data_ + n_bytes(n_aside_); }
    const unsigned char* data() const noexcept { return data_ + n_bytes(n_aside_); }

  private:
    // Keeps n_left tokens from `first` on, counted with those aside, in the base room when they fit.
    void keep(const Memory& memory, std::uint64_t first, std::uint64_t n_left) noexcept;

    unsigned char* data_ = nullptr;  // base_ or a larger run while a prompt is fed
    unsigned char* base_ = nullptr;  // always there
    std::uint64_t base_tokens_ = 0;
    std::uint64_t capacity_ = 0;  // tokens
    std::uint64_t n_aside_ = 0;
    std::size_t dim_ = 0, row_stride_ = 0, token_stride_ = 0, element_bytes_ = 0;
    std::uint32_t n_heads_ = 0;
};

// Where the tokens of a layer are, in their order.
struct LayerShape {
    std::uint64_t n_sinks = 0;
    std::uint64_t n_forgotten = 0;  // counted but not there any more
    std::uint64_t n_closed = 0;     // in blocks
    std::uint64_t n_buffered = 0;

    std::uint64_t n_tokens() const noexcept { return n_sinks + n_forgotten + n_closed + n_buffered; }
};

// What of a layer decides how its future goes, beside the tokens themselves.
struct LayerProgress {
    std::uint64_t exact_from = 0;  // a stream of fewer tokens would not have closed all blocks yet
    std::uint32_t pending_tokens = 0;
    std::uint32_t pending_appended = 0;
    bool pending_prompt = false;
    bool prompt = false;  // the last append brought a block's worth of tokens or more
};

// One layer of a sequence. Several caches may show one stream as long as none of them changes it: who wants
// to takes a clone first.
class LayerStream {
  public:
    // In the caller's memory; null when that is short. `rates` are those to begin with.
    static LayerStream* make(CacheContext* context, std::uint32_t index, const KvSpec& rates) noexcept;
    // The same tokens, with blocks of their own users; null when memory is short.
    LayerStream* clone(CacheContext* context) const noexcept;
    // One cache more, or one less: the last one destroys it.
    void join(CacheContext* context) noexcept;
    void leave(CacheContext* context) noexcept;
    bool is_shared() const noexcept { return n_caches_.load(std::memory_order_acquire) > 1; }

    void reset(CacheContext* context) noexcept;
    // Drops all but the first n_tokens, of at least as many. True when the stream is as if the others had
    // never come.
    bool truncate(CacheContext* context, std::uint64_t n_tokens) noexcept;
    // What remove and forget may need. False when memory is short.
    bool reserve_cut(CacheContext* context) noexcept;
    // After reserve_cut: drops tokens [first, first + n), none of them a sink. Those behind move up, and
    // their keys turn by `turn`.
    void remove(CacheContext* context, std::uint64_t first, std::uint64_t n, const Rotation& turn) noexcept;
    // Tokens of the blocks that have none from `token` on, oldest first.
    std::uint64_t n_forgettable(std::uint64_t token) const noexcept;
    // After reserve_cut: gives these blocks back. All tokens keep their places.
    void forget_before(CacheContext* context, std::uint64_t token) noexcept;

    // Room for n_tokens more, in both buffers.
    bool reserve_append(CacheContext* context, std::uint32_t n_tokens) noexcept;
    // After reserve_append; the rows are checked.
    void append(const CacheContext& context, const Rows& keys, const Rows& values,
                std::uint32_t n_tokens) noexcept;
    // Closes every full unit. Errors: out_of_memory, over_budget; the unit stays in the buffer.
    Status compress(CacheContext* context, Executor& executor) noexcept;
    // Before an append of n_tokens: does what is due, and begins the compression of full units. Errors: as
    // above.
    Status advance(CacheContext* context, std::uint32_t n_tokens, Executor& executor) noexcept;
    // Pieces that are due, as many as may run at once; none while others share the stream. They may run
    // beside attention; then note_done.
    PieceRun due_pieces(const CacheContext& context) const noexcept;
    void note_done(const PieceRun& pieces) noexcept {
        if (pieces.n > 0) pending_.n_done += pieces.n;  // else others may be reading
    }

    // Before the first block: the rates that hold until set_planes.
    void share_evenly(const KvSpec& rates) noexcept;
    // Before the first block: the first plane of each head, [n_kv_heads + 1], and the average rate of a
    // tensor.
    void set_planes(const CacheContext& context, TensorKind kind, const std::uint32_t* starts,
                    float rate) noexcept;
    // Null until set_planes.
    const std::uint32_t* planes(TensorKind kind) const noexcept {
        return has_planes_ ? plane_starts_[static_cast<int>(kind)] : nullptr;
    }
    // The tokens in the buffer.
    std::uint64_t n_buffered() const noexcept { return n_buffered_; }
    RowSource buffered_rows(TensorKind kind) const noexcept { return buffer(kind).source(0); }
    // With the rates in use.
    const TensorSpec& spec(TensorKind kind) const noexcept { return specs_[static_cast<int>(kind)]; }

    // Sinks, what is forgotten, blocks, buffer, as far as they hold tokens; runs has room for n_runs().
    std::size_t n_runs() const noexcept {
        return (n_sinks_ > 0) + (n_forgotten_ > 0) + blocks_.size() + (n_buffered_ > 0);
    }
    void list_runs(KvRun* runs) const noexcept;
    // Tokens [first, first + n) in [n, heads, dim], none of them forgotten; either output may be null.
    void read_range(const CacheContext& context, std::uint64_t first, std::uint64_t n, float* keys,
                    float* values) const noexcept;

    LayerShape shape() const noexcept { return {n_sinks_, n_forgotten_, blocks_.n_tokens(), n_buffered_}; }
    std::uint64_t n_tokens() const noexcept { return shape().n_tokens(); }
    // For a state file.
    LayerProgress progress() const noexcept;
    const BlockTable& blocks() const noexcept { return blocks_; }
    BlockTable* mutable_blocks() noexcept { return &blocks_; }
    // Puts a smaller block in the place of block i, as BlockTable::reduce.
    bool reduce(CacheContext* context, std::uint64_t i, bool drop_low_rank) noexcept;
    const TokenBuffer& sinks(TensorKind kind) const noexcept {
        return kind == TensorKind::key ? key_sinks_ : value_sinks_;
    }
    const TokenBuffer& buffer(TensorKind kind) const noexcept {
        return kind == TensorKind::key ? key_buffer_ : value_buffer_;
    }
    // An empty stream whose blocks were pushed takes over the rest: rows of sinks and buffer by kind, and how
    // far it was. False when memory is short.
    bool restore(CacheContext* context, const LayerShape& shape, const LayerProgress& progress,
                 const void* const* sinks, const void* const* buffer) noexcept;

    // Of blocks from a file: all, or the one whose profiles later blocks use. Errors: damaged.
    Status check_blocks(Executor& executor) const noexcept { return blocks_.check(blocks_.size(), executor); }
    Status check_first_block() const noexcept {
        return blocks_.check(std::min<std::uint64_t>(blocks_.size(), 1), serial_executor());
    }

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

    // Begins the pending unit again that such a progress had.
    bool take_progress(CacheContext* context, const LayerProgress& progress) noexcept;

    Status begin_unit(CacheContext* context, std::uint32_t n_tokens, bool prompt) noexcept;
    // `reopenable`: as long as rollback_tokens say.
    void finish_unit(CacheContext* context, bool reopenable, Executor& executor) noexcept;
    void drop_unit(CacheContext* context) noexcept;  // without closing it
    // Of the buffer, as many tokens of whole units as are behind the window, and all blocks before them.
    void skip_invisible(CacheContext* context) noexcept;
    void reopen_unit(CacheContext* context) noexcept;
    void forget_reopenable(CacheContext* context) noexcept;
    std::uint32_t n_pieces() const noexcept;  // of the pending unit
    // All pieces of the pending unit below `until`, from the first that is not done.
    void run_pieces(const CacheContext& context, std::uint32_t until, Executor& executor) noexcept;
    PieceRun next_pieces(const CacheContext& context, std::uint32_t until) const noexcept;
    std::uint32_t n_due(const CacheContext& context) const noexcept;
    // A block of the table; the first n tokens of the buffer.
    KvRun block_run(std::uint64_t i) const noexcept;
    KvRun buffered_run(std::uint32_t n) const noexcept {
        return {key_buffer_.run(), value_buffer_.run(), n, 0, 0, {}};
    }
    // Tokens before the buffer, and before the blocks.
    std::uint64_t buffer_start() const noexcept { return n_sinks_ + n_forgotten_ + blocks_.n_tokens(); }

    std::atomic<std::uint32_t> n_caches_{1};
    HeldBytes held_;
    TensorSpec specs_[2];                                  // by kind
    std::uint32_t* plane_starts_[2] = {nullptr, nullptr};  // by kind, [n_kv_heads + 1], with auto:BITS
    bool has_planes_ = false;
    BlockTable blocks_;
    PendingUnit pending_;
    ReopenableUnit reopenable_;
    std::uint64_t n_forgotten_ = 0;
    std::uint64_t n_buffered_ = 0;
    std::uint64_t exact_from_ = 0;
    mutable std::atomic<std::uint64_t> compress_ns_{0};
    std::uint32_t n_sinks_ = 0;
    std::uint32_t index_ = 0;
    bool prompt_ = false;
    TokenBuffer key_sinks_;  // first tokens of the sequence, kept as they are
    TokenBuffer value_sinks_;
    TokenBuffer key_buffer_;
    TokenBuffer value_buffer_;
};

}  // namespace gearkv
