// Tokens fed to a model, with their keys and values in a compressed cache. Used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gearkv/cache.hpp"
#include "gearkv/model.hpp"
#include "gearkv/sampler.hpp"
#include "gearkv/state.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

// The caller's wish to stop, asked before every chunk of a prompt, on the thread of the call.
struct Interrupt {
    bool (*wanted)(void* context) = nullptr;  // null: never; does not throw
    void* context = nullptr;
};

struct SessionConfig {
    KvSpec spec;              // of parse_spec; there is none to begin with
    std::uint32_t n_ctx = 0;  // 0: the model's trained context
    std::uint32_t chunk =
        512;                 // tokens of a prompt processed at once, at least 1; working memory grows with it
    std::uint64_t seed = 0;  // of the cache's subspace iterations
    std::uint32_t rollback_tokens = 0;  // of the cache: the longest draft a truncation takes back losslessly
    std::uint32_t error_every = 0;      // of the cache: blocks from one sample of its error to the next
    // Of the cache, borrowed: sessions that share one have less working memory, and attend together in
    // decode_batch. They are used by one thread at a time.
    Workspace* workspace = nullptr;
    // Above 0: the most bytes the cache may hold, as CacheConfig::max_bytes; what would exceed it fails with
    // over_budget.
    std::uint64_t max_cache_bytes = 0;
    // Above 0: where the cache holds more, its older blocks shrink, as CacheConfig::soft_bytes; in short
    // steps that takes a while.
    std::uint64_t soft_cache_bytes = 0;
    Level level = Level::automatic;
    // Products of quantised weights in floats, in place of integer products with vectors rounded to 15-bit
    // codes in blocks of 32: two or more times slower, and free of that rounding.
    bool float_products = false;
    // How attention reads less than everything, as in Queries: shares of the weights, and values that are
    // negligible. Errors of their own: invalid_argument, of Session::create.
    float mass = 1.0f;
    float most_share = 1.0f;
    float negligible = 0.0f;
    Interrupt interrupt;
};

// What goes into a session file beside the session.
struct SessionAttachments {
    const Sampler* sampler = nullptr;
    std::string_view note;  // bytes of the caller's: the turns of a conversation, say
    // Only the first so many tokens of the session, as SaveOptions::n_tokens; logits go along with all of
    // them only, and the sampler as it is. UINT64_MAX: all.
    std::uint64_t n_tokens = UINT64_MAX;
};

// Where the same goes when the file is loaded; null for what is not wanted.
struct LoadedAttachments {
    // Gets the state saved with the session. From a file without one it gets the session's tokens as those
    // accepted, and keeps its random state.
    Sampler* sampler = nullptr;
    std::string* note = nullptr;
};

class Session;

// What one session of a batch is fed, and what became of it.
struct DecodeRequest {
    Session* session = nullptr;
    Token token = 0;
    Status status;
};

// A draft of n_draft tokens by prompt lookup, written to `draft`: what followed the last occurrence, further
// back, of the last n_match tokens, or of the longest shorter run of at least 2 that has one, and goes on
// with itself where the tokens end. Returns n_draft, or 0 when nothing like that came before.
std::size_t look_up_draft(const Token* tokens, std::size_t n_tokens, std::size_t n_match, std::size_t n_draft,
                          Token* draft) noexcept;

// Results depend on model, config and tokens alone, not on the executor, nor on rounding mode, denormals and
// traps of any thread; these are afterwards as they were. A prompt cut into other chunks gives
// the same logits but for rounding (and the cache's compression, which follows the chunks): matrix products
// give the same bits however tokens are fed (float weights, and all with float_products, in a build with a
// BLAS excepted), attention does not.
//
// After an error, and an interrupt, a session is as it was before the chunk that failed (n_tokens() says
// where that is), and may go on. Only when the error struck after some layer had taken its keys and values,
// the session has failed: that error comes back from every further call, and logits() is null, until reset();
// but for drafts that were taken back without a trace.
class Session {
  public:
    virtual ~Session() = default;
    // The executor is borrowed and must outlive the session. All working memory is taken here; a decode step
    // allocates only what the cache does. A build with OpenBLAS sets its thread count to 1 for the whole
    // process, and does without it where the process has a limit of address space. Errors: invalid_argument,
    // bad_spec, wrong_size, out_of_memory, unknown_level, unavailable_level.
    static Status create(std::shared_ptr<const Model> model, const SessionConfig& config, Executor& executor,
                         std::unique_ptr<Session>* out) noexcept;

    // Feeds a prompt in chunks. logits() then belongs to its last token.
    // Errors: invalid_argument, empty_prompt, prompt_too_long, bad_token (nothing was fed then), interrupted,
    // out_of_memory, non_finite (weights that are no numbers), not_representable (keys or values beyond what
    // the cache can hold).
    virtual Status prefill(const Token* tokens, std::size_t n_tokens) noexcept = 0;
    // The same, and writes the logits of every token, [n_tokens, n_vocab], to all_logits.
    virtual Status prefill(const Token* tokens, std::size_t n_tokens, float* all_logits) noexcept = 0;
    // Makes these the tokens of the session, with logits of the last one. Those at the beginning that it has
    // already are not computed again, but for the last one when its logits are gone; *n_reused, when given,
    // tells how many. Beyond them it forgets, as truncate, and feeds, as prefill. Errors: those of both;
    // after invalid_argument, empty_prompt, prompt_too_long and bad_token the session is as it was.
    virtual Status sync(const Token* tokens, std::size_t n_tokens,
                        std::uint64_t* n_reused = nullptr) noexcept = 0;
    // Feeds one token. Errors: context_full, bad_token, out_of_memory, non_finite, not_representable.
    virtual Status decode(Token token) noexcept = 0;
    // Feeds tokens, to verify a draft, and writes the logits after each of them, [n_tokens, n_vocab], to
    // all_logits. The same, to the bit, as so many calls of decode, with weights read once for all tokens;
    // but where auto:BITS is yet to choose its rates, or soft_cache_bytes makes blocks shrink, which follows
    // from all that is held. truncate takes back those behind the first wrong one, without a trace within
    // SessionConfig::rollback_tokens, with these two exceptions; logits() is null then, and what the next token
    // is chosen by stands in all_logits. Errors: those of decode, invalid_argument (null), wrong_size (no
    // tokens, or more than a chunk has, which is no longer than the context).
    virtual Status decode(const Token* tokens, std::size_t n_tokens, float* all_logits) noexcept = 0;
    // The same as decode(token) for many sessions of one model at once, whose weights are read once for all
    // of them; on the executor of the first session and in its working memory. Every session ends with the
    // logits and the cache, to the bit, that decode(token) alone would leave it with (float weights in a
    // build with a BLAS included), and an error strikes that session alone: its status, and its state, are
    // those of decode, and the others go on. Returns ok, or the first of these errors with the number of its
    // request.
    //
    // Nothing is fed, and no status written, when a request is refused: invalid_argument (null, a session
    // twice, of another level, or with float_products where the first is without), other_model, wrong_size
    // (more sessions than SessionConfig::chunk of the first), context_full, bad_token, the error that a
    // session has failed with, out_of_memory. Takes memory only for more sessions than the first one has
    // seen.
    static Status decode_batch(DecodeRequest* requests, std::size_t n_requests) noexcept;
    // Logits after the last token fed, [n_vocab], valid until the next call; null when there are none.
    virtual const float* logits() const noexcept = 0;

    // Forgets the tokens from n_tokens on, as Cache::truncate; logits() is null until more are fed. Where the
    // next token would see, in a layer with a window, tokens that were given back behind the window, those
    // that stay are computed anew. Errors: wrong_size, out_of_memory; nothing is forgotten then. When tokens
    // are computed anew those of prefill, and fewer may be left.
    virtual Status truncate(std::uint64_t n_tokens, bool* lossless = nullptr) noexcept = 0;
    // A context shift: forgets n_tokens tokens from `first` on, and those behind them move up, as
    // Cache::remove, every layer by its own RoPE. logits() stay, but where tokens have to be computed anew,
    // as in truncate. *anew, when given, tells whether they had to be. Errors: wrong_size, out_of_memory;
    // nothing is forgotten then. When tokens are computed anew those of prefill, and fewer may be left.
    virtual Status remove(std::uint64_t first, std::uint64_t n_tokens, bool* anew = nullptr) noexcept = 0;
    // A second session with the same tokens, as Cache::fork, on an executor of its own or the same. Errors:
    // invalid_argument, out_of_memory.
    virtual Status fork(Executor& executor, std::unique_ptr<Session>* out) const noexcept = 0;
    // Writes cache, tokens and logits to a file, as save_state, and what is attached; load goes on where it
    // was. n_ctx, chunk and level may be others; spec and model may not. The model's own file is not
    // replaced. Errors: those of save_state and load_state, of Sampler::save and restore; bad_version for a
    // file without tokens, as sessions were saved before they had any. After an error of load nothing it was
    // given is changed. *warning: as save_state.
    virtual Status save(const char* path, const SessionAttachments& attached = {},
                        Status* warning = nullptr) const noexcept = 0;
    // The same bytes through a function, and to memory with room for n_room: as the save_state of each.
    virtual Status save(const ByteSink& sink, const SessionAttachments& attached = {}) const noexcept = 0;
    virtual Status save(void* to, std::size_t n_room, const SessionAttachments& attached = {},
                        std::size_t* n_written = nullptr) const noexcept = 0;
    // How many bytes each of these writes, as state_bytes.
    virtual Status saved_bytes(std::uint64_t* n_bytes, const SessionAttachments& attached = {},
                               bool* lossless = nullptr) const noexcept = 0;
    // Whether save could begin now, as check_save_target.
    virtual Status check_save(const char* path) const noexcept = 0;
    static Status load(const char* path, std::shared_ptr<const Model> model, const SessionConfig& config,
                       StateLoading loading, Executor& executor, std::unique_ptr<Session>* out,
                       const LoadedAttachments& attached = {}) noexcept;
    // The same through a function, and out of memory: as the load_state of each.
    static Status load(const ByteSource& source, std::shared_ptr<const Model> model,
                       const SessionConfig& config, Executor& executor, std::unique_ptr<Session>* out,
                       const LoadedAttachments& attached = {}) noexcept;
    static Status load(const void* bytes, std::size_t n_bytes, std::shared_ptr<const Model> model,
                       const SessionConfig& config, Executor& executor, std::unique_ptr<Session>* out,
                       const LoadedAttachments& attached = {}) noexcept;

    // The tokens in the cache, in their order; valid until the next call that is not const.
    virtual const std::vector<Token>& tokens() const noexcept = 0;
    virtual std::uint64_t n_tokens() const noexcept = 0;
    virtual std::uint32_t n_ctx() const noexcept = 0;
    // Of the configuration, but no longer than the context.
    virtual std::uint32_t chunk() const noexcept = 0;
    virtual const Model& model() const noexcept = 0;
    virtual const Cache& cache() const noexcept = 0;
    // Forgets all tokens and any failure.
    virtual void reset() noexcept = 0;
};

}  // namespace gearkv
#pragma GCC visibility pop
