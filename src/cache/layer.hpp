// One layer of a cache: closed blocks, and the buffer of recent tokens.
#pragma once

#include "attention/attend.hpp"
#include "cache/memory_ledger.hpp"
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
    Scratch compress_scratch;
    BlockBytes key_bytes;  // of all closed blocks
    BlockBytes value_bytes;
    std::uint64_t n_blocks = 0;

    explicit CacheContext(const CacheConfig& c) noexcept : config(c), ledger(c.allocator) {}
    std::uint32_t dim(TensorKind kind) const noexcept {
        return kind == TensorKind::key ? config.key_dim : config.value_dim;
    }
    const TensorSpec& spec(TensorKind kind) const noexcept {
        return kind == TensorKind::key ? config.spec.key : config.spec.value;
    }
    BlockBytes& bytes(TensorKind kind) noexcept { return kind == TensorKind::key ? key_bytes : value_bytes; }
};

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
// Most blocks a layer can hold.
std::uint64_t max_blocks(const CacheConfig& config) noexcept;

// Keys and values of the same tokens, immutable. A truncated one shows its first n_tokens.
struct ClosedBlock {
    void* key = nullptr;
    void* value = nullptr;
    std::uint32_t n_tokens = 0;
};

// A unit on its way to a closed block. Its tokens are the first of the buffer and attended there until the
// block is finished.
struct PendingUnit {
    ClosedBlock block;
    std::uint32_t n_tokens = 0;    // 0: there is none
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
};
inline void run_piece(const PieceRun& run, std::uint32_t i, Executor& executor) noexcept {
    compress_piece(run.block, run.scratch, run.task, run.first + i, i, executor);
}

// Rows [token][head][dim padded to 16] in half, or in float for a raw32 tensor.
class TokenBuffer {
  public:
    // Room for n_tokens that is never given back before destroy.
    bool create(CacheContext* context, TensorKind kind, std::uint32_t n_tokens) noexcept;
    void destroy(CacheContext* context) noexcept;
    // Makes room for n_tokens, keeping the first n_kept.
    bool grow(CacheContext* context, std::uint64_t n_tokens, std::uint64_t n_kept) noexcept;
    // Drops the first n_dropped of n_tokens and returns to the base room when the rest fits.
    void drop_front(CacheContext* context, std::uint64_t n_dropped, std::uint64_t n_tokens) noexcept;
    // Drops the last n_dropped of n_tokens, likewise.
    void drop_back(CacheContext* context, std::uint64_t n_dropped, std::uint64_t n_tokens) noexcept;
    void write(const CacheContext& context, std::uint64_t first, const Rows& rows,
               std::uint32_t n_tokens) noexcept;

    RowSource source(std::uint64_t first) const noexcept;
    TensorRun run() const noexcept;
    void read(const CacheContext& context, std::uint64_t token, float* out) const noexcept;
    std::uint64_t capacity() const noexcept { return capacity_; }

  private:
    // Keeps n_left tokens from `first` on, in the base room when they fit.
    void keep(CacheContext* context, std::uint64_t first, std::uint64_t n_left) noexcept;

    unsigned char* data_ = nullptr;  // base_ or a larger run while a prompt is fed
    unsigned char* base_ = nullptr;  // buffer_tokens, always there
    std::uint64_t base_tokens_ = 0;
    std::uint64_t capacity_ = 0;  // tokens
    std::size_t dim_ = 0, row_stride_ = 0, token_stride_ = 0, element_bytes_ = 0;
    std::uint32_t n_heads_ = 0;
    TensorKind kind_ = TensorKind::key;
};

class LayerStream {
  public:
    // False when memory is short; destroy() is right in any case. `rates` are those to begin with.
    bool create(CacheContext* context, std::uint32_t index, const KvSpec& rates) noexcept;
    void destroy(CacheContext* context) noexcept;
    void reset(CacheContext* context) noexcept;
    // Drops all but the first n_tokens, of at least as many. True when the stream is as if the others had
    // never come.
    bool truncate(CacheContext* context, std::uint64_t n_tokens) noexcept;

    // Room for n_tokens more, in both buffers.
    bool reserve_append(CacheContext* context, std::uint32_t n_tokens) noexcept;
    // After reserve_append; the rows are checked.
    void append(const CacheContext& context, const Rows& keys, const Rows& values,
                std::uint32_t n_tokens) noexcept;
    // Closes every full unit. Errors: out_of_memory; the unit stays in the buffer.
    Status compress(CacheContext* context, Executor& executor) noexcept;
    // Before an append of n_tokens: does what is due, and begins the compression of full units. Errors: as
    // above.
    Status advance(CacheContext* context, std::uint32_t n_tokens, Executor& executor) noexcept;
    // Pieces that are due, as many as may run at once. They may run beside attention; then note_done.
    PieceRun due_pieces(const CacheContext& context) const noexcept;
    void note_done(const PieceRun& pieces) noexcept { pending_.n_done += pieces.n; }

    // Before the first block: the rates that hold until set_planes.
    void share_evenly(const KvSpec& rates) noexcept;
    // Before the first block: the first plane of each head, [n_kv_heads + 1], and the average rate of a
    // tensor.
    void set_planes(const CacheContext& context, TensorKind kind, const std::uint32_t* starts,
                    float rate) noexcept;
    // The tokens in the buffer.
    std::uint64_t n_buffered() const noexcept { return n_buffered_; }
    RowSource buffered_rows(TensorKind kind) const noexcept { return buffer(kind).source(0); }
    // With the rates in use.
    const TensorSpec& spec(TensorKind kind) const noexcept { return specs_[static_cast<int>(kind)]; }

    // Sinks, blocks, buffer, as far as they hold tokens; runs has room for n_runs().
    std::size_t n_runs() const noexcept { return (n_sinks_ > 0) + n_blocks_ + (n_buffered_ > 0); }
    void list_runs(KvRun* runs) const noexcept;
    // Tokens [first, first + n) in [n, heads, dim]; either output may be null.
    void read_range(const CacheContext& context, std::uint64_t first, std::uint64_t n, float* keys,
                    float* values) const noexcept;

    std::uint64_t n_tokens() const noexcept { return n_sinks_ + n_closed_ + n_buffered_; }
    std::uint64_t n_closed() const noexcept { return n_closed_; }

  private:
    Status begin_unit(CacheContext* context, std::uint32_t n_tokens) noexcept;
    Status begin_tensor(CacheContext* context, TensorKind kind, std::uint32_t n_tokens) noexcept;
    void finish_unit(CacheContext* context, Executor& executor) noexcept;
    void drop_unit(CacheContext* context) noexcept;   // without closing it
    void drop_block(CacheContext* context) noexcept;  // the last one
    // Room for one more in the table, which truncated blocks can fill before the tokens are as many as
    // allowed.
    bool reserve_block(CacheContext* context) noexcept;
    std::uint32_t n_pieces() const noexcept;  // of the pending unit
    // All pieces of the pending unit below `until`, from the first that is not done.
    void run_pieces(const CacheContext& context, std::uint32_t until, Executor& executor) noexcept;
    PieceRun next_pieces(const CacheContext& context, std::uint32_t until) const noexcept;
    std::uint32_t n_due(const CacheContext& context) const noexcept;
    // What the first block carries for all; null but for a trellis.
    const unsigned char* profiles(TensorKind kind) const noexcept;
    BlockView view(std::uint64_t block, TensorKind kind) const noexcept;
    void free_block(CacheContext* context, void* block) noexcept;
    const TokenBuffer& buffer(TensorKind kind) const noexcept {
        return kind == TensorKind::key ? key_buffer_ : value_buffer_;
    }

    TensorSpec specs_[2];                                  // by kind
    std::uint32_t* plane_starts_[2] = {nullptr, nullptr};  // by kind, [n_kv_heads + 1], with auto:BITS
    bool has_planes_ = false;
    ClosedBlock* blocks_ = nullptr;
    PendingUnit pending_;
    std::uint64_t n_blocks_ = 0;
    std::uint64_t block_capacity_ = 0;
    std::uint64_t n_closed_ = 0;
    std::uint64_t n_buffered_ = 0;
    std::uint64_t exact_from_ = 0;  // a stream of fewer tokens would not have closed all blocks yet
    std::uint32_t n_sinks_ = 0;
    std::uint32_t index_ = 0;
    bool prompt_ = false;    // the last append brought a block's worth of tokens or more
    TokenBuffer key_sinks_;  // first tokens of the sequence, kept as they are
    TokenBuffer value_sinks_;
    TokenBuffer key_buffer_;
    TokenBuffer value_buffer_;
};

}  // namespace gearkv
