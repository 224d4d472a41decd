// The streaming KV cache: appended to in float, f16 or bf16, held compressed, attended in place (paper
// sections 3.2 and 3.3).
//
// One layer is a row of immutable compressed blocks followed by a buffer of recent tokens in fp16. Appended
// tokens go to the buffer and are attended uncompressed; when it holds buffer_tokens or more, whole multiples
// of buffer_tokens are compressed once, as one block, and stay so until memory is short. The work is spread
// over the next spread_tokens tokens: a few pieces in every attend, beside the heads, while the tokens are
// still attended in fp16. The block takes their place after a number of tokens, not when it happens to be
// ready, so results depend neither on time nor on threads.
//
// In the trellis presets a channel of keys has more bits the louder queries are in it: some of those that
// attend sees, one in 4 tokens at first and in 256 in the end, tell the widths of the blocks that are made
// later. So equal keys and values make equal blocks only where equal queries came between; without any,
// widths follow from the keys alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "gearkv/codec.hpp"
#include "gearkv/config.hpp"
#include "gearkv/cpu.hpp"
#include "gearkv/executor.hpp"
#include "gearkv/memory.hpp"
#include "gearkv/rope.hpp"
#include "gearkv/status.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

class Cache;

// Working memory that caches have in common, so that hundreds of sequences hold little beside their tokens.
// It grows to what the largest of them needs, outlives them all, and forks of them use it too. Caches of one
// workspace are used by one thread at a time.
class Workspace {
  public:
    // Errors: invalid_argument, out_of_memory; *out is untouched then.
    static Status create(const Allocator& allocator, std::unique_ptr<Workspace>* out) noexcept;
    ~Workspace();
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    std::uint64_t n_bytes() const noexcept;

  private:
    struct Impl;
    friend class Cache;
    friend struct CacheAccess;
    explicit Workspace(Impl* impl) noexcept : impl_(impl) {}
    Impl* impl_;
};

// Keys and values of one layer; all 0 of a layer that reads the keys of another one and has none of its own.
struct LayerDims {
    std::uint32_t n_kv_heads = 0;  // [1, 4096]
    std::uint32_t key_dim = 0;     // channels of a key head, a multiple of 8 in [8, 1024]
    std::uint32_t value_dim = 0;   // channels of a value head, the same range

    bool has_keys() const noexcept { return n_kv_heads > 0; }
    friend bool operator==(const LayerDims& a, const LayerDims& b) noexcept {
        return a.n_kv_heads == b.n_kv_heads && a.key_dim == b.key_dim && a.value_dim == b.value_dim;
    }
    friend bool operator!=(const LayerDims& a, const LayerDims& b) noexcept { return !(a == b); }
};

struct CacheConfig {
    std::uint32_t n_layers = 0;    // [1, 4096]
    std::uint32_t n_kv_heads = 0;  // [1, 4096]
    std::uint32_t key_dim = 0;     // channels of a key head, a multiple of 8 in [8, 1024]
    std::uint32_t value_dim = 0;   // channels of a value head, the same range
    // Where layers differ [n_layers], in place of the three above, which are 0 then; null when all are alike;
    // copied. Not all of them are without keys.
    const LayerDims* dims = nullptr;
    // Values are keys too, as in latent attention (MLA): the score of a token is that of its key and that of
    // its value together, key_dim and value_dim channels, and the value is stored once. DeepSeek's caches
    // are n_kv_heads 1, key_dim 64 (what RoPE turns), value_dim 512 (the latent, after its norm). In all
    // layers. Queries come in two parts (Queries::latents). Of the SPEC, k= is for the keys and v= for the
    // latents, which are coded as keys are: f32, f16 or a trellis (gear-1 to gear-4, trellis-RATE), and no
    // auto:BITS; anything else is bad_spec.
    bool latent = false;
    std::uint64_t max_tokens = 0;  // of a layer, [1, 2^31); append fails beyond it, Cache::reserve raises it
    KvSpec spec;                   // of parse_spec; there is none to begin with
    // Tokens over which the compression of one block is spread, at most buffer_tokens; 0 compresses a full
    // buffer at the next append. Costs room for as many more tokens in fp16. Blocks are the same whatever it
    // is. With one thread attend takes longer by what is due: of 8 heads of 128 channels a section of a head
    // with 16 tokens, two panels of 16 channels with 64, one with 128.
    std::uint32_t spread_tokens = 16;
    // The most tokens of a block, rounded down to a multiple of buffer_tokens; 0 for 4,096, or an eighth of
    // the layer's window. Long blocks of a prompt take fewer bytes, by .4 % with a trellis and a tenth with
    // low rank; short ones go sooner when a window leaves them, and all have one size.
    std::uint32_t block_tokens = 0;
    // How far a rollback (Cache::truncate) may go back from the most tokens there were. Of so many tokens it
    // finds every window whole: blocks are given back so much later (`windows`), and one that goes further
    // may be refused with `forgotten`. Of so many, but no more than buffer_tokens, it is lossless too, also
    // where a block was closed among them: the tokens of that block stay in fp16 beside it meanwhile, in
    // room for so many more. Where there is no window, more than buffer_tokens are no use.
    std::uint32_t rollback_tokens = 0;
    std::uint64_t seed = 0;  // start of the subspace iterations; equal inputs and seeds give equal bytes
    // Sliding windows [n_layers], null for none; copied. Above 0: queries of that layer see no more than so
    // many last tokens, and blocks without any of these, nor of rollback_tokens before them, are given back;
    // tokens that a prompt leaves behind are not even compressed. Sinks are kept, and seen inside the window
    // only. What would show a window that is not whole is refused with `forgotten`: a truncation or removal
    // of more than rollback_tokens that leads back to what was given back, queries of tokens further back, a
    // file whose windows were smaller.
    const std::uint32_t* windows = nullptr;
    // Above 0: the most bytes the cache may hold of the allocator's memory, shared ones included
    // (stats().bytes less a few for the object itself). What would exceed it fails with over_budget.
    std::uint64_t max_bytes = 0;
    // Above 0: when the cache holds more after an append or compress, older blocks shrink, as in
    // shrink(soft_bytes). Appends of fewer than buffer_tokens encode little again, one unit of one layer a
    // step as a rule: but blocks are encoded whole, so that long ones (block_tokens) take their time. Which
    // shrink, and when, follows from all that is held: without a workspace from the threads of attend too.
    std::uint64_t soft_bytes = 0;
    // Above 0: every so many blocks of a layer, what attention of its last query loses on one is measured
    // (Cache::layer_stats), at the cost of attending the tokens of that block twice more.
    std::uint32_t error_every = 0;
    // Of a prompt nothing that fills blocks stays in fp16 until the next append: when a layer is attended by
    // buffer_tokens queries or more, and its last append brought as many tokens, what compress does is done
    // behind it. So a chunk is attended once; a second time finds it compressed, and where its queries see
    // what its window has left, `forgotten`. With auto:BITS the first chunk is closed in all layers when the
    // last of them was attended. When memory is short the tokens wait for the next append.
    bool close_prompts = false;
    // By which the keys of all layers come rotated, where Cache::remove, which alone needs it, is not told.
    RopeConfig rope;
    Workspace* workspace = nullptr;  // borrowed; null for working memory of the cache's own
    Level level = Level::automatic;
    Allocator allocator = default_allocator();

    // Of a layer that there is.
    LayerDims dims_of(std::uint32_t layer) const noexcept {
        return dims == nullptr ? LayerDims{n_kv_heads, key_dim, value_dim} : dims[layer];
    }
};

// Queries of one layer in the caller's memory: element (query, head, channel) is
// data[query * query_stride + head * head_stride + channel * channel_stride], key_dim channels, as in Rows.
// Query head h reads KV head h / (n_heads / n_kv_heads). Both are those of the layer.
//
// All finite queries, scales, slopes and masks have an answer, the same at every level but for rounding:
// scores that no float can hold are still compared by their size, and the softmax is that of the exact ones,
// each to within the rounding of a float of its size. So of scores that far apart the largest has all the
// weight, and equal ones share it.
struct Queries {
    const void* data = nullptr;  // of `type`, below
    std::size_t query_stride = 0;
    std::size_t head_stride = 0;
    std::uint32_t n_queries = 0;
    std::uint32_t n_heads = 0;  // a multiple of n_kv_heads
    float scale = 0.0f;         // of the scores, 1/sqrt(key_dim) as a rule; finite and not 0
    bool causal = true;         // the last query sees every token, the one before it all but the last, ...

    // What models do to scores beyond the scale, in this order; nothing unless set.
    // > 0: scores become soft_cap tanh(score / soft_cap), as in Gemma 2. Finite and not negative.
    float soft_cap = 0.0f;
    // ALiBi [n_heads]: slope times the distance from the last token a query may see is taken off. Finite.
    const float* slopes = nullptr;
    // Added to the scores: element (query, token) of head h at
    // mask[query * mask_query_stride + h * mask_head_stride + token]; -Inf hides a token, else finite. A
    // stride of 0 repeats. A query that sees nothing has an output of zeros.
    const float* mask = nullptr;
    std::size_t mask_query_stride = 0;
    std::size_t mask_head_stride = 0;
    // > 0: of the tokens a query may see, only the last `window`.
    std::uint64_t window = 0;
    // A score for each head that takes part in the softmax and has no value, as in gpt-oss [n_heads]; -Inf
    // for none, else finite.
    const float* sinks = nullptr;
    // > 0: the values of 16 tokens in a row are not read when none of them weighs as much as this share of
    // the heaviest token known by then (those before, and the first and last ones), in any of the up to 8
    // query rows that are attended together; their weights still count in the sum. What is left out weighs at
    // most 16 * negligible for every 16 tokens, where the heaviest has 1. Below 1; 1e-4 is a good value.
    float negligible = 0.0f;
    // < 1: of the keys and values in trellis blocks (gear-1 to gear-4, auto) only those sections of 128
    // tokens are read that together have this share of the weights, heaviest first, for the worst of the
    // query rows attended together (up to 8 of one KV head); the weights of the rest do not count. What a
    // section weighs is estimated from the ranges of its channels. Always read are the last section, first
    // and last tokens in fp16, and whatever is in no trellis block; scores beyond the range of float have
    // everything read. In (0, 1]; with 1, the next one too, attention is the full one to the bit.
    float mass = 1.0f;
    // < 1: at most this share of these sections, rounded up to whole ones, whatever their mass. In (0, 1].
    float most_share = 1.0f;
    // The caller's own selection: tokens that are seen, if the rest allows it too, for each KV head. Head h
    // has the ranges from range_ends[h - 1] (0 for the first) to range_ends[h]: in order, none empty, none
    // overlapping the one before, within the tokens of the layer. All others are as if masked, and what is
    // not needed is not read. Null for all tokens; not along with mass or most_share.
    const TokenRange* ranges = nullptr;
    const std::size_t* range_ends = nullptr;  // [n_kv_heads]

    // Of data, and of the output. In f16 an output saturates at 65504.
    ElementType type = ElementType::f32;
    ElementType out_type = ElementType::f32;
    std::size_t channel_stride = 1;  // of data; not 0
    // Of the output, whose elements have a place of their own each: 0 for value_dim, and for as many as all
    // heads have, which with channels side by side is [n_queries, n_heads, value_dim].
    std::size_t out_query_stride = 0;
    std::size_t out_head_stride = 0;
    std::size_t out_channel_stride = 1;  // not 0
    // Of latents (CacheConfig::latent) what meets the values, value_dim channels of the type and strides of
    // data: where a query is [latent, key] side by side, latents is where it begins, and data value_dim
    // behind it. Null otherwise.
    const void* latents = nullptr;
};

// What one sequence of a batch asks.
struct AttendRequest {
    Cache* cache = nullptr;
    Queries queries;
    void* out = nullptr;       // as of attend; of no other request
    std::size_t n_floats = 0;  // elements there is room for
};

// Bytes of a cache by part, as allocated. `bytes` is the sum.
struct CacheBytes {
    std::uint64_t bytes = 0;
    BlockBytes keys;  // all blocks, the one being compressed included
    BlockBytes values;
    std::uint64_t buffer = 0;   // fp16 (f32 with raw32) tokens not yet in a closed block, and room for more
    std::uint64_t scratch = 0;  // working memory of attend and compress that is kept
    std::uint64_t tables = 0;   // block tables and bookkeeping
    // Of these:
    std::uint64_t shared = 0;  // in blocks and layers that other caches show too
    std::uint64_t mapped = 0;  // in blocks of a mapped state file, not in the allocator's memory
};

struct CacheStats {
    CacheBytes bytes;
    std::uint64_t n_tokens = 0;           // of the layer that holds most
    std::uint64_t n_blocks = 0;           // closed, all layers, keys and values
    std::uint64_t compressed_tokens = 0;  // of that layer (the first of several), in closed blocks
    std::uint64_t n_shrunk = 0;           // blocks that shrink or soft_bytes made smaller, and that are there
    double bits_per_element = 0.0;        // blocks and buffered tokens, per stored key and value element
    double compress_seconds = 0.0;        // spent compressing, all threads together
    std::uint64_t shrunk_bytes = 0;       // that n_shrunk blocks took more once
};

struct LayerStats {
    std::uint64_t n_tokens = 0;
    std::uint64_t n_sinks = 0;      // first of them
    std::uint64_t n_forgotten = 0;  // of them, behind the sinks, given back
    std::uint64_t n_closed = 0;     // of them, in blocks
    std::uint64_t n_blocks = 0;     // keys and values
    std::uint64_t n_shrunk = 0;     // of them, smaller than they were
    double compress_seconds = 0.0;
    // Relative error of the attention output: its L2 norm over query heads and channels, when a query attends
    // the tokens of one closed block, compressed instead of fp16; root mean square over the sampled blocks.
    // 0 without a sample. A fork begins without.
    double output_error = 0.0;
    std::uint64_t n_sampled = 0;  // blocks
    // Of the queries with mass, most_share or ranges, each KV head and up to 8 rows counted once: how many,
    // and means of the share of tiles of 128 tokens that was read, and of the estimated share of the weights
    // there, of the row that has least (1 of ranges). A fork begins without.
    std::uint64_t n_selections = 0;
    double share_read = 1.0;
    double mass_read = 1.0;
    std::uint64_t shrunk_bytes = 0;  // that n_shrunk blocks took more once
};

// Exact bytes a cache of this configuration holds in blocks and buffers with n_tokens in every layer, less
// what windows leave behind, when the first prompt_tokens came in one append, the others one by one, and
// compress was called after the first and last of them; nothing has shrunk, and buffers are full. `tables`,
// not in `bytes`, is what is kept of queries at most; other tables and scratch are not told. Errors: as
// Cache::create; wrong_size, when 64 bits do not hold them. *out is untouched then.
Status bytes_required(const CacheConfig& config, std::uint64_t n_tokens, std::uint64_t prompt_tokens,
                      CacheBytes* out) noexcept;

// A life of a cache, as far as its memory depends on it: prompt_tokens come in one append, the others one by
// one. After each append to a layer its new tokens are attended, and the prompt is compressed, before the
// next layer has its turn; in the end all layers are compressed. What selecting takes, some KiB, is not told.
struct CacheLife {
    std::uint64_t n_tokens = 0;
    std::uint64_t prompt_tokens = 0;  // of them
    std::uint32_t n_heads = 0;  // of queries, a multiple of n_kv_heads in every layer; 0: nothing is attended
    std::uint32_t n_threads = 1;  // of the executor
};
// The least max_bytes that this life keeps to, and what the cache holds when it holds most: blocks, buffers,
// scratch and tables, `bytes` their sum. With one byte less a call fails with over_budget. An allocator needs
// room for the object itself beside it, less than a KiB. Working memory in a workspace is not counted,
// soft_bytes not heeded. It takes a few KiB for each layer, given back, and time by layers and tokens, a
// millisecond for 10^5 of both together. Errors: as bytes_required; bad_spec of auto:BITS, whose rates nobody
// knows before; wrong_size. *out is untouched then.
Status bytes_required(const CacheConfig& config, const CacheLife& life, CacheBytes* out) noexcept;

// One sequence. Not thread-safe: one call at a time per cache; different caches are independent.
//
// All layers hold the same number of tokens between two steps of a model. A layer may never get any, because
// it reads the keys of another one: truncate and remove pass over a layer without tokens. Whoever has to wait
// for all layers (auto:BITS in compress, truncate_to_shortest) takes one without tokens for one that they are
// still to come to, until another layer is appended to that holds some: then a step has gone by without it.
// Of a layer that is without keys by CacheConfig::dims this is known from the start, and it takes no memory;
// append and attend refuse it with `no_keys`, all else finds it empty.
class Cache {
  public:
    // Errors: invalid_argument, wrong_size, bad_spec, non_finite (a rope), out_of_memory, over_budget,
    // unknown_level, unavailable_level. *out is untouched then.
    static Status create(const CacheConfig& config, std::unique_ptr<Cache>* out) noexcept;
    ~Cache();
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;

    // Appends n_tokens >= 1 keys and values [n_tokens, n_kv_heads, dim] to a layer; of latents these are the
    // parts of one row, wherever they lie in it. First it does what is due
    // of the compression of earlier tokens; of a long prompt that is all but the last block, and all of it
    // when n_tokens fill a block themselves. The tokens are attended in fp16 until then. After an error the
    // cache is as it was, but that earlier tokens may have been compressed, or given back where they are
    // behind a window. Errors: invalid_argument, no_keys, wrong_size, capacity_exceeded, non_finite,
    // not_representable (beyond 65504, with f32 beyond 2^64), out_of_memory, over_budget.
    Status append(std::uint32_t layer, const Rows& keys, const Rows& values, std::uint32_t n_tokens,
                  Executor& executor) noexcept;

    // Softmax attention of the queries over the layer's tokens; out is [n_queries, n_heads, value_dim] of
    // queries.out_type, with its strides and room for n_floats elements, and not where the queries are. Reads
    // the compressed form in place; no full-size temporary. Allocates when a call needs more scratch than all
    // before it, and to keep what queries tell. Errors: invalid_argument, no_keys, wrong_size (more queries
    // than tokens when causal, head counts, an output without room or whose elements overlap), non_finite,
    // forgotten (the first query sees what its window left behind since), out_of_memory, over_budget; out is
    // untouched then.
    Status attend(std::uint32_t layer, const Queries& queries, void* out, std::size_t n_floats,
                  Executor& executor) noexcept;

    // attend for many sequences at once: their heads share one round of the executor instead of one each, and
    // what is due of their compressions runs beside. Every output has the bits that attend gives. The caches
    // are different ones and have one workspace, unless there is one request only; there may be none. Errors:
    // of attend, naming the request; invalid_argument. No output is touched then.
    static Status attend_batch(std::uint32_t layer, const AttendRequest* requests, std::size_t n_requests,
                               Executor& executor) noexcept;

    // Compresses now all that fills blocks. Calling it after attend frees the room of a long prompt. With
    // auto:BITS it does nothing until every layer was attended and has as many tokens. What is behind the
    // window of the last token is given back, which queries of tokens before it may still want: attend first.
    // Errors: invalid_argument, out_of_memory, over_budget; the tokens stay in the buffer then.
    Status compress(std::uint32_t layer, Executor& executor) noexcept;

    // Writes tokens [first, first + n_tokens) as they are attended, [n_tokens, n_kv_heads, dim] of `type`
    // each, to outputs with room for so many elements; either output may be null. In f16 numbers saturate at
    // 65504. Errors: invalid_argument, wrong_size (no room), forgotten; nothing is written then.
    Status read(std::uint32_t layer, std::uint64_t first, std::uint64_t n_tokens, void* keys,
                std::size_t n_key_floats, void* values, std::size_t n_value_floats,
                ElementType type = ElementType::f32) noexcept;
    // The same to where rows of any type and stride lie; either may be null. Errors: those above; wrong_size
    // (elements that overlap).
    Status read(std::uint32_t layer, std::uint64_t first, std::uint64_t n_tokens, const OutRows* keys,
                const OutRows* values) noexcept;

    // Drops the tokens from n_tokens on in every layer, for speculative decoding and edits. What stays is not
    // touched: a compressed block keeps its bytes and shows fewer tokens, and later tokens start a new one.
    // *lossless, when given, tells whether the cache is as if the dropped tokens had never come, so that
    // every later output has the same bits, up to the next truncation that is not lossless: all of them were
    // in the buffer, and no block was closed on their account, in any layer, or the blocks were opened again.
    // It is so for rollbacks of up to rollback_tokens (no more than buffer_tokens) that came in appends
    // shorter than a buffer, when compress, remove, forget_before and shrink were not called since, nor the
    // cache saved and loaded; but not where auto:BITS has seen queries of dropped tokens and is yet to
    // choose, or chose among them, nor when soft_bytes is set and blocks can shrink. Errors: wrong_size (a
    // layer holds fewer tokens, or none holds any), forgotten (CacheConfig::windows), out_of_memory and
    // over_budget (of a fork only); nothing is dropped then.
    Status truncate(std::uint64_t n_tokens, bool* lossless = nullptr) noexcept;

    // After an error in the middle of a step, when the first layers have its tokens and the others do not:
    // truncate to the tokens of the shortest layer, whose number *n_tokens gets when given. All are dropped
    // when the first step failed. *lossless tells, too, whether a layer that refused the tokens is as it was
    // before it. Errors: as truncate, of which `forgotten` needs tokens that an append or compress of this
    // step has given back; nothing is dropped then.
    Status truncate_to_shortest(std::uint64_t* n_tokens = nullptr, bool* lossless = nullptr) noexcept;

    // Drops n_tokens tokens from `first` on in every layer; those behind move up, as in a context shift.
    // Blocks are not rewritten: they hide tokens, and go when none is left. Keys turn to their new positions
    // by the rope of their layer: those in blocks when they are attended (their queries turn instead,
    // exactly), sinks and those in the buffer at once, rounded to fp16 again. Sinks that go are not replaced:
    // whatever is first then need not be one, and tokens to come are only where no token but sinks is left. A
    // block that is being compressed of tokens that go or move is finished first, at once: no more stays
    // uncompressed than without removals, whatever their rhythm.
    //
    // The ropes are `ropes`, one for every layer [n_layers], of which one with 0 pairs turns nothing; or
    // CacheConfig::rope for all of them. The first by which keys of a layer move holds for it until it is
    // empty, and others are refused; forks and state files take it along. Where it is not CacheConfig::rope a
    // copy is kept. Errors: wrong_size, forgotten (CacheConfig::windows), other_rope, out_of_memory,
    // over_budget; what Cache::create says of a rope, naming the layer; nothing is dropped then, but such a
    // block may have been finished.
    Status remove(std::uint64_t first, std::uint64_t n_tokens,
                  Executor& executor = serial_executor()) noexcept;
    Status remove(std::uint64_t first, std::uint64_t n_tokens, const RopeConfig* ropes,
                  Executor& executor = serial_executor()) noexcept;

    // Gives back the blocks of a layer that have no token from `token` on, for layers with a sliding window
    // that CacheConfig::windows does not name: token = n_tokens - window. Sinks stay, tokens keep their
    // numbers, and those given back are attended no more, as if masked; whether a later truncation wants them
    // is the caller's to know. Errors: invalid_argument, out_of_memory, over_budget.
    Status forget_before(std::uint32_t layer, std::uint64_t token) noexcept;

    // Makes older blocks smaller until the cache holds at most target_bytes, or none is left that can be.
    // Outliers go, in all blocks before any loses its low rank too: what stays is copied. Keys and values in
    // trellis codes (gear-1 to gear-4, auto) are encoded again at the next lower rate of a preset, down to
    // that of gear-1, block by block: those of the layer first where a byte costs least, by what attention is
    // estimated to lose (of keys by the queries that were seen), and of these the oldest. They are encoded
    // out of what is left of them: the error of the second encoding comes on top of the first one. Caches of
    // equal lives shrink to equal bytes, on any number of threads; but what is held counts working memory,
    // which attend takes by threads where there is no workspace, and what rates cost is in no state file,
    // but measured anew. Blocks of a mapped file stay there, sinks and tokens in fp16 stay as they are. A fork gets blocks of its own, while the others keep theirs. *freed,
    // when given, gets the bytes given back. Errors: out_of_memory and over_budget (a smaller block is made
    // before the one it replaces goes), damaged (a file's blocks); what shrank by then stays so.
    Status shrink(std::uint64_t target_bytes, std::uint64_t* freed = nullptr,
                  Executor& executor = serial_executor()) noexcept;

    // A second cache with the same tokens and configuration. Nothing is copied until one of the two changes a
    // layer: then that layer's buffer and table are, and its blocks never. Any number of forks, ended in any
    // order and used on any threads; the allocator outlives them all. Errors: invalid_argument,
    // out_of_memory, over_budget; *out is untouched then.
    Status fork(std::unique_ptr<Cache>* out) const noexcept;

    // Raises CacheConfig::max_tokens, if it is less. Takes no memory: what there is grows with tokens. Forks
    // keep theirs. Errors: wrong_size (not in [1, 2^31)).
    Status reserve(std::uint64_t max_tokens) noexcept;

    // Forgets all tokens and gives back their memory.
    void reset() noexcept;

    // 0 for a layer that does not exist.
    std::uint64_t n_tokens(std::uint32_t layer) const noexcept;
    // The first token of a layer from which on all are there: 0, or the one behind those that were given back
    // (before these are sinks). What a window of w tokens gave back, it lacks after a truncation to n tokens,
    // more than there are sinks, when n < w + first_token: that is refused. 0 for a layer that does not
    // exist.
    std::uint64_t first_token(std::uint32_t layer) const noexcept;
    CacheStats stats() const noexcept;
    // Errors: invalid_argument; *out is untouched then.
    Status layer_stats(std::uint32_t layer, LayerStats* out) const noexcept;
    // The spec of this layer alone: that of the rule that holds for it, if any; and with auto:BITS its rates,
    // an even share until they are chosen, then averages over the heads. Errors: invalid_argument; *out is
    // untouched then.
    Status layer_spec(std::uint32_t layer, KvSpec* out) const noexcept;
    const CacheConfig& config() const noexcept;
    // The level in use, never automatic.
    Level level() const noexcept;

  private:
    struct Impl;
    friend struct CacheAccess;
    explicit Cache(Impl* impl) noexcept : impl_(impl) {}
    Impl* impl_;
};

}  // namespace gearkv
#pragma GCC visibility pop
