#include <algorithm>
#include <vector>

#include "../arch/float_mode.hpp"
#include "decoder/generation/saved_session.hpp"
#include "decoder/generation/session_executor.hpp"
#include "decoder/generation/session_parts.hpp"
#include "decoder/gguf/guarded.hpp"
#include "gearkv/session.hpp"

namespace gearkv {
namespace {

// The tokens of a layer that were given back behind its window are [first, end).
struct Gap {
    std::uint64_t first;
    std::uint64_t end;
};

class ModelSession final : public Session {
  public:
    ModelSession(std::shared_ptr<const FileModel> model, std::unique_ptr<Cache> cache,
                 const LinearKernels& kernels, const SessionConfig& config, Executor& executor)
        : model_(std::move(model)),
          cache_(std::move(cache)),
          n_ctx_(static_cast<std::uint32_t>(cache_->config().max_tokens)),
          kernels_(kernels),
          config_(config),
          chunk_(std::min(config.chunk, n_ctx_)),
          executor_(executor),
          forward_(*model_, kernels, integer_kernels(config), n_ctx_, chunk_, executor_),
          logits_(model_->params().n_vocab) {
        tokens_.reserve(reserved_tokens(n_ctx_));
        for (std::uint32_t layer = 0; layer < cache_->config().n_layers; ++layer)
            ropes_.push_back(forward_.layer_rope(layer));
        forward_.read_less(config.mass, config.most_share, config.negligible);
    }

    Status prefill(const Token* tokens, std::size_t n_tokens) noexcept override {
        const Status status = check_prompt(tokens, n_tokens, n_tokens_);
        return status.ok() ? feed_prompt(tokens, n_tokens, nullptr) : status;
    }

    Status prefill(const Token* tokens, std::size_t n_tokens, float* all_logits) noexcept override {
        if (all_logits == nullptr) return Status::error(Code::invalid_argument, "null logits");
        const Status status = check_prompt(tokens, n_tokens, n_tokens_);
        return status.ok() ? feed_prompt(tokens, n_tokens, all_logits) : status;
    }

    Status sync(const Token* tokens, std::size_t n_tokens, std::uint64_t* n_reused) noexcept override {
        if (Status status = check_prompt(tokens, n_tokens, 0); !status.ok()) return status;
        const std::uint64_t n_both = std::min<std::uint64_t>(n_tokens, n_tokens_);
        std::uint64_t n_kept = static_cast<std::uint64_t>(
            std::mismatch(tokens, tokens + n_both, tokens_.begin()).first - tokens);
        const bool all = n_kept == n_tokens && n_kept == n_tokens_ && has_logits_;
        if (!all) {
            n_kept = std::min<std::uint64_t>(n_kept, n_tokens - 1);  // the last one gives the logits
            if (truncation_leaves_hole(n_kept)) n_kept = 0;
            if (Status status = truncate(n_kept, nullptr); !status.ok()) return status;
        }
        if (n_reused != nullptr) *n_reused = n_kept;
        return all ? Status() : feed_prompt(tokens + n_kept, n_tokens - n_kept, nullptr);
    }

    Status decode(Token token) noexcept override {
        Status status = check_decode(token);
        if (status.ok()) status = note_tokens(&token, 1);
        if (status.ok()) status = feed_chunk(1, nullptr, true);
        tokens_.resize(n_tokens_);
        return status;
    }

    Status decode(const Token* tokens, std::size_t n, float* all_logits) noexcept override {
        if (!failure_.ok()) return failure_;
        if (tokens == nullptr || all_logits == nullptr)
            return Status::error(Code::invalid_argument, "null tokens or logits");
        if (n == 0 || n > chunk_) {
            return Status::error(Code::wrong_size, "a draft of %zu tokens, expected 1 to the %u of a chunk",
                                 n, chunk_);
        }
        if (n > n_ctx_ - n_tokens_) {
            return Status::error(Code::context_full, "%llu tokens and a draft of %zu, in a context of %u",
                                 static_cast<unsigned long long>(n_tokens_), n, n_ctx_);
        }
        Status status = check_tokens(tokens, n);
        if (status.ok()) status = note_tokens(tokens, n);
        if (status.ok()) status = feed_singly(n, all_logits);
        tokens_.resize(n_tokens_);
        return status;
    }

    static Status decode_batch(DecodeRequest* requests, std::size_t n) noexcept {
        auto* first = dynamic_cast<ModelSession*>(requests[0].session);
        std::size_t n_marked = 0;
        Status status;
        // Marked, so that a session is not taken twice.
        for (; status.ok() && n_marked < n; n_marked++) {
            status = first == nullptr ? Status::error(Code::invalid_argument, "no session")
                                      : first->check_request(requests[n_marked], n);
            if (!status.ok()) break;
            session_of(requests[n_marked])->in_batch_ = true;
        }
        if (!status.ok()) status = of_request(n_marked, status);
        if (status.ok()) status = first->note_requests(requests, n);
        if (status.ok()) status = first->run_requests(requests, n);
        for (std::size_t i = 0; i < n_marked; i++) {
            ModelSession& session = *session_of(requests[i]);
            session.tokens_.resize(session.n_tokens_);
            session.in_batch_ = false;
        }
        return status;
    }

    const float* logits() const noexcept override { return has_logits_ ? logits_.data() : nullptr; }
    const std::vector<Token>& tokens() const noexcept override { return tokens_; }
    std::uint64_t n_tokens() const noexcept override { return n_tokens_; }
    std::uint32_t n_ctx() const noexcept override { return n_ctx_; }
    std::uint32_t chunk() const noexcept override { return chunk_; }
    const Model& model() const noexcept override { return *model_; }
    const Cache& cache() const noexcept override { return *cache_; }

    Status truncate(std::uint64_t n_tokens, bool* lossless) noexcept override {
        if (!failure_.ok()) return failure_;
        if (n_tokens <= n_tokens_ && truncation_leaves_hole(n_tokens)) {
            if (lossless != nullptr) *lossless = false;
            tokens_.resize(n_tokens);
            return compute_anew();
        }
        const Status status = cache_->truncate(n_tokens, lossless);
        if (!status.ok()) return status;
        if (n_tokens == 0) cache_->reset();
        has_logits_ = has_logits_ && n_tokens == n_tokens_;
        n_tokens_ = n_tokens;
        tokens_.resize(n_tokens);
        return {};
    }

    Status remove(std::uint64_t first, std::uint64_t n_tokens, bool* computed_anew) noexcept override {
        if (!failure_.ok()) return failure_;
        const bool sound = n_tokens > 0 && first <= n_tokens_ && n_tokens <= n_tokens_ - first;
        const bool anew = sound && removal_leaves_hole(first, n_tokens);
        if (computed_anew != nullptr) *computed_anew = anew;
        // The cache also says what is not sound.
        const Status status =
            anew ? Status() : cache_->remove(first, n_tokens, ropes_.data(), forward_.executor());
        if (!status.ok()) return status;
        const auto from = tokens_.begin() + static_cast<std::ptrdiff_t>(first);
        tokens_.erase(from, from + static_cast<std::ptrdiff_t>(n_tokens));
        if (anew) return compute_anew();
        n_tokens_ -= n_tokens;
        return {};
    }

    Status fork(Executor& executor, std::unique_ptr<Session>* out) const noexcept override {
        const FloatMode mode;
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        if (!failure_.ok()) return failure_;
        return guarded([&] {
            std::unique_ptr<Cache> cache;
            if (Status status = cache_->fork(&cache); !status.ok()) return status;
            auto session =
                std::make_unique<ModelSession>(model_, std::move(cache), kernels_, config_, executor);
            session->go_on(tokens_, has_logits_ ? logits_.data() : nullptr);
            *out = std::move(session);
            return Status();
        });
    }

    Status check_save(const char* path) const noexcept override {
        return failure_.ok() ? check_save_target(path, save_options()) : failure_;
    }

    Status save(const char* path, const SessionAttachments& attached,
                Status* warning) const noexcept override {
        return save_with(attached, [&](const SaveOptions& options) {
            return save_state(*cache_, path, options, forward_.executor(), warning);
        });
    }

    Status save(const ByteSink& sink, const SessionAttachments& attached) const noexcept override {
        return save_with(attached, [&](const SaveOptions& options) {
            return save_state(*cache_, sink, options, forward_.executor());
        });
    }

    Status save(void* to, std::size_t n_room, const SessionAttachments& attached,
                std::size_t* n_written) const noexcept override {
        return save_with(attached, [&](const SaveOptions& options) {
            return save_state(*cache_, to, n_room, options, forward_.executor(), n_written);
        });
    }

    Status saved_bytes(std::uint64_t* n_bytes, const SessionAttachments& attached,
                       bool* lossless) const noexcept override {
        return save_with(attached, [&](const SaveOptions& options) {
            return state_bytes(*cache_, options, n_bytes, lossless);
        });
    }

    std::uint32_t n_vocab() const noexcept { return model_->params().n_vocab; }

    // After a cache of these tokens was put in; logits may be null. May throw std::bad_alloc.
    void go_on(const std::vector<Token>& tokens, const float* logits) {
        tokens_.assign(tokens.begin(), tokens.end());
        n_tokens_ = tokens.size();
        has_logits_ = logits != nullptr;
        if (has_logits_) std::copy_n(logits, n_vocab(), logits_.data());
    }

    void reset() noexcept override {
        cache_->reset();
        tokens_.clear();
        n_tokens_ = 0;
        has_logits_ = false;
        failure_ = {};
    }

  private:
    // Puts together what goes beside the cache.
    template <class Save>
    Status save_with(const SessionAttachments& attached, const Save& save) const noexcept {
        if (!failure_.ok()) return failure_;
        return guarded([&] {
            const bool all = attached.n_tokens == UINT64_MAX || attached.n_tokens == n_tokens_;
            const std::uint64_t n_tokens = std::min(attached.n_tokens, n_tokens_);
            SavedSession saved;
            saved.n_vocab = n_vocab();
            saved.tokens.assign(tokens_.begin(), tokens_.begin() + static_cast<std::ptrdiff_t>(n_tokens));
            if (all && has_logits_) saved.logits.assign(logits_.data(), logits_.data() + n_vocab());
            saved.note = attached.note;
            if (attached.sampler != nullptr) {
                if (Status status = attached.sampler->save(&saved.sampler); !status.ok()) return status;
            }
            const std::vector<unsigned char> bytes = write_saved_session(saved);
            SaveOptions options = save_options();
            options.extra = bytes.data();
            options.n_extra = bytes.size();
            if (!all) options.n_tokens = attached.n_tokens;  // of too many the cache says so
            return save(options);
        });
    }

    SaveOptions save_options() const noexcept {
        SaveOptions options;
        options.model = model_->fingerprint();
        options.kept = model_->file_ids().data();
        options.n_kept = model_->file_ids().size();
        return options;
    }

    Status check_tokens(const Token* tokens, std::size_t n) const noexcept {
        for (std::size_t i = 0; i < n; i++) {
            if (tokens[i] >= 0 && static_cast<std::uint32_t>(tokens[i]) < n_vocab()) continue;
            return Status::error(Code::bad_token, "token %zu is %d, expected 0 to %u", i, tokens[i],
                                 n_vocab() - 1);
        }
        return {};
    }

    static ModelSession* session_of(const DecodeRequest& request) noexcept {
        return static_cast<ModelSession*>(request.session);
    }

    static Status of_request(std::size_t i, const Status& status) noexcept {
        return Status::error(status.code(), "request %zu: %s", i, status.message());
    }

    // Whether it can be of a batch of n of which this session is the first.
    Status check_request(const DecodeRequest& request, std::size_t n) const noexcept {
        const auto* other = dynamic_cast<const ModelSession*>(request.session);
        if (other == nullptr) return Status::error(Code::invalid_argument, "no session");
        if (n > chunk_) {
            return Status::error(Code::wrong_size, "%zu sessions, expected at most the %u tokens of a chunk",
                                 n, chunk_);
        }
        if (other->in_batch_) return Status::error(Code::invalid_argument, "a session that came before");
        if (other->model_ != model_)
            return Status::error(Code::other_model, "a session of another model than that of request 0");
        if (&other->kernels_ != &kernels_ || other->config_.float_products != config_.float_products) {
            return Status::error(
                Code::invalid_argument, "products at level %s%s, expected level %s%s as request 0 has",
                level_name(other->kernels_.level), other->config_.float_products ? " in floats" : "",
                level_name(kernels_.level), config_.float_products ? " in floats" : "");
        }
        return other->check_decode(request.token);
    }

    Status check_decode(Token token) const noexcept {
        if (!failure_.ok()) return failure_;
        if (n_tokens_ == n_ctx_)
            return Status::error(Code::context_full, "the context holds %u tokens, its limit", n_ctx_);
        return check_tokens(&token, 1);
    }

    Status note_requests(DecodeRequest* requests, std::size_t n) noexcept {
        Status status = guarded([&] {
            rows_.resize(n);
            forward_.reserve_step(n);
            return Status();
        });
        for (std::size_t i = 0; status.ok() && i < n; i++) {
            status = session_of(requests[i])->note_tokens(&requests[i].token, 1);
        }
        return status;
    }

    Status run_requests(DecodeRequest* requests, std::size_t n) noexcept {
        const FloatMode mode;
        for (std::size_t i = 0; i < n; i++) {
            ModelSession& session = *session_of(requests[i]);
            rows_[i] = {requests[i].token,
                        session.n_tokens_,
                        session.cache_.get(),
                        session.forward_.ropes(),
                        session.logits_.data(),
                        {},
                        false};
        }
        forward_.step(rows_.data(), n);
        Status first_error;
        for (std::size_t i = 0; i < n; i++) {
            requests[i].status =
                session_of(requests[i])->end_feed(rows_[i].status, rows_[i].touched, 1, true);
            if (first_error.ok() && !requests[i].status.ok()) first_error = of_request(i, requests[i].status);
        }
        return first_error;
    }

    // After n tokens were fed, or were not. What failed when some layers had taken them ends the session.
    Status end_feed(const Status& status, bool touched, std::size_t n, bool has_logits) noexcept {
        if (!status.ok() && !touched) return status;
        has_logits_ = status.ok() && has_logits;
        if (!status.ok()) return fail(status);
        n_tokens_ += n;
        return {};
    }

    Status fail(const Status& status) noexcept {
        failure_ = Status::error(status.code(), "the session failed and needs a reset: %s", status.message());
        return failure_;
    }

    // Of a prompt behind n_before tokens.
    Status check_prompt(const Token* tokens, std::size_t n, std::uint64_t n_before) const noexcept {
        if (!failure_.ok()) return failure_;
        if (n == 0) return Status::error(Code::empty_prompt, "a prompt of no tokens, expected at least 1");
        if (tokens == nullptr) return Status::error(Code::invalid_argument, "null tokens");
        if (n > n_ctx_ - n_before) {
            return Status::error(Code::prompt_too_long,
                                 "a prompt of %zu tokens behind %llu others, expected at most %u together", n,
                                 static_cast<unsigned long long>(n_before), n_ctx_);
        }
        return check_tokens(tokens, n);
    }

    // Puts tokens behind those in the cache; tokens_ is to be cut to n_tokens_ after they were fed or not.
    Status note_tokens(const Token* tokens, std::size_t n) noexcept {
        return guarded([&] {
            tokens_.insert(tokens_.end(), tokens, tokens + n);
            return Status();
        });
    }

    // Of checked tokens.
    Status feed_prompt(const Token* tokens, std::size_t n, float* all_logits) noexcept {
        Status status = note_tokens(tokens, n);
        if (status.ok()) status = feed_noted(all_logits, true);
        tokens_.resize(n_tokens_);
        return status;
    }

    // Feeds tokens_ from n_tokens_ on, up to its end or the chunk where that stops.
    Status feed_noted(float* all_logits, bool wants_logits) noexcept {
        const std::uint64_t first = n_tokens_;
        while (n_tokens_ < tokens_.size()) {
            if (config_.interrupt.wanted != nullptr && config_.interrupt.wanted(config_.interrupt.context)) {
                return Status::error(Code::interrupted, "interrupted with %llu tokens to go",
                                     static_cast<unsigned long long>(tokens_.size() - n_tokens_));
            }
            const std::size_t n = std::min<std::size_t>(chunk_, tokens_.size() - n_tokens_);
            const bool last = n_tokens_ + n == tokens_.size();
            float* logits = all_logits == nullptr ? nullptr : all_logits + (n_tokens_ - first) * n_vocab();
            if (Status status = feed_chunk(n, logits, last && wants_logits); !status.ok()) return status;
        }
        return {};
    }

    // Empties the cache and feeds tokens_ again.
    Status compute_anew() noexcept {
        cache_->reset();
        n_tokens_ = 0;
        has_logits_ = false;
        const Status status = feed_noted(nullptr, false);
        tokens_.resize(n_tokens_);
        return status;
    }

    // Whether the token that comes next, as number n_tokens of a layer, sees some of the gap.
    static bool sees(std::uint64_t window, std::uint64_t n_tokens, Gap gap) noexcept {
        const std::uint64_t first_seen = n_tokens + 1 > window ? n_tokens + 1 - window : 0;
        return std::max(first_seen, gap.first) < std::min(n_tokens, gap.end);
    }

    template <class Sees>
    bool any_gap(const Sees& sees_gap) const noexcept {
        const CacheConfig& cache = cache_->config();
        if (cache.windows == nullptr) return false;
        for (std::uint32_t layer = 0; layer < cache.n_layers; layer++) {
            LayerStats stats;
            if (cache.windows[layer] == 0 || !cache_->layer_stats(layer, &stats).ok()) continue;
            if (stats.n_forgotten > 0 &&
                sees_gap(cache.windows[layer], Gap{stats.n_sinks, stats.n_sinks + stats.n_forgotten}))
                return true;
        }
        return false;
    }

    bool truncation_leaves_hole(std::uint64_t n_tokens) const noexcept {
        if (n_tokens == n_tokens_) return false;
        return any_gap([&](std::uint32_t window, Gap gap) { return sees(window, n_tokens, gap); });
    }

    bool removal_leaves_hole(std::uint64_t first, std::uint64_t n_removed) const noexcept {
        const auto moved = [&](std::uint64_t token) {
            return token - (std::clamp(token, first, first + n_removed) - first);
        };
        return any_gap([&](std::uint32_t window, Gap gap) {
            return sees(window, n_tokens_ - n_removed, {moved(gap.first), moved(gap.end)});
        });
    }

    // Feeds up to chunk_ of tokens_, from n_tokens_ on. Logits of all of them go to all_logits unless it is
    // null, those of the last one to logits_ when it is the last of the call. An error that leaves the layers
    // with different tokens ends the session until it is reset. All of the decoder's arithmetic is in here,
    // and in what makes a session.
    Status feed_chunk(std::size_t n, float* all_logits, bool last) noexcept {
        const FloatMode mode;
        bool touched = false;
        Status status = forward_.feed(tokens_.data() + n_tokens_, n, n_tokens_, *cache_, &touched);
        if (status.ok()) status = write_logits(n, all_logits, last);
        return end_feed(status, touched, n, last);
    }

    Status feed_singly(std::size_t n, float* all_logits) noexcept {
        const FloatMode mode;
        bool touched = false;
        Status status = forward_.feed_singly(tokens_.data() + n_tokens_, n, n_tokens_, *cache_, &touched);
        if (status.ok()) status = forward_.compute_single_logits(n, all_logits);
        if (status.ok()) std::copy_n(all_logits + (n - 1) * n_vocab(), n_vocab(), logits_.data());
        // What a draft has no room for, its first token may have.
        bool lossless = false;
        if (!status.ok() && touched && cache_->truncate(n_tokens_, &lossless).ok()) touched = !lossless;
        return end_feed(status, touched, n, true);
    }

    Status write_logits(std::size_t n, float* all_logits, bool last) noexcept {
        if (all_logits != nullptr) {
            const Status status = forward_.compute_logits(0, n, all_logits);
            if (status.ok() && last) std::copy_n(all_logits + (n - 1) * n_vocab(), n_vocab(), logits_.data());
            return status;
        }
        return last ? forward_.compute_logits(n - 1, 1, logits_.data()) : Status();
    }

    std::shared_ptr<const FileModel> model_;
    std::unique_ptr<Cache> cache_;
    std::uint32_t n_ctx_;
    const LinearKernels& kernels_;
    SessionConfig config_;
    std::uint32_t chunk_;
    SessionExecutor executor_;
    Forward forward_;
    std::vector<RopeConfig> ropes_;  // [n_layers], of forward_
    Floats logits_;                  // [n_vocab]
    std::vector<Token> tokens_;      // those in the cache, and during a call those that are still to be fed
    std::uint64_t n_tokens_ = 0;
    bool has_logits_ = false;
    std::vector<StepRow> rows_;  // of a batch whose first session this is
    bool in_batch_ = false;
    Status failure_;  // what ended the session, ok while it lives
};

// What create and load share: `make_cache` fills a cache, and `take_over` what goes with it.
template <class MakeCache, class TakeOver>
Status make_session(std::shared_ptr<const Model> model, const SessionConfig& config, Executor& executor,
                    std::unique_ptr<Session>* out, const MakeCache& make_cache, const TakeOver& take_over) {
    const FloatMode mode;
    if (model == nullptr || out == nullptr)
        return Status::error(Code::invalid_argument, "null model or output");
    if (!(config.mass > 0.0f && config.mass <= 1.0f && config.most_share > 0.0f &&
          config.most_share <= 1.0f && config.negligible >= 0.0f && config.negligible < 1.0f)) {
        return Status::error(Code::invalid_argument,
                             "mass %g, most_share %g, negligible %g, expected (0, 1], (0, 1] and [0, 1)",
                             static_cast<double>(config.mass), static_cast<double>(config.most_share),
                             static_cast<double>(config.negligible));
    }
    return guarded([&] {
        SessionParts parts;
        if (Status status = make_parts(*model, config, &parts); !status.ok()) return status;
        std::unique_ptr<Cache> cache;
        Status status = make_cache(*parts.model, parts.cache, &cache);
        if (!status.ok()) return status;
        const LinearKernels* kernels = find_linear_kernels(cache->level());
        if (kernels == nullptr) {
            return Status::error(Code::unavailable_level, "no matrix kernels for level %s",
                                 level_name(cache->level()));
        }
        auto session = std::make_unique<ModelSession>(std::static_pointer_cast<const FileModel>(model),
                                                      std::move(cache), *kernels, config, executor);
        status = take_over(session.get());
        if (status.ok()) *out = std::move(session);
        return status;
    });
}

Status restore_sampler(const SavedSession& saved, Sampler* sampler) {
    if (!saved.sampler.empty()) return sampler->restore(saved.sampler.data(), saved.sampler.size());
    std::vector<unsigned char> before;
    if (Status status = sampler->save(&before); !status.ok()) return status;
    sampler->forget();
    const Status status = sampler->accept(saved.tokens.data(), saved.tokens.size());
    if (!status.ok()) (void)sampler->restore(before.data(), before.size());
    return status;
}

// Room in a vector, for load_state to ask for; null when there is none.
void* resize_bytes(void* context, std::size_t n_bytes) noexcept {
    auto* bytes = static_cast<std::vector<unsigned char>*>(context);
    const Status status = guarded([&] {
        bytes->resize(n_bytes);
        return Status();
    });
    return status.ok() ? bytes->data() : nullptr;
}

// `load_cache` is load_state from somewhere.
template <class LoadCache>
Status load_session(std::shared_ptr<const Model> model, const SessionConfig& config, Executor& executor,
                    std::unique_ptr<Session>* out, const LoadedAttachments& attached,
                    const LoadCache& load_cache) noexcept {
    std::vector<unsigned char> bytes;
    const auto make_cache = [&](const FileModel& file_model, const CacheConfig& cache,
                                std::unique_ptr<Cache>* made) {
        LoadOptions options;
        options.model = file_model.fingerprint();
        options.make_room = resize_bytes;
        options.make_room_context = &bytes;
        return load_cache(cache, options, made);
    };
    const auto take_over = [&](ModelSession* session) {
        SavedSession saved;
        if (Status status = read_saved_session(bytes, session->n_vocab(), &saved); !status.ok())
            return status;
        for (std::uint32_t i = 0; i < session->cache().config().n_layers; ++i) {
            if (session->cache().n_tokens(i) == saved.tokens.size()) continue;
            return Status::error(Code::corrupt_state, "a session of %zu tokens with a cache of %llu",
                                 saved.tokens.size(),
                                 static_cast<unsigned long long>(session->cache().n_tokens(i)));
        }
        session->go_on(saved.tokens, saved.logits.empty() ? nullptr : saved.logits.data());
        std::string note(attached.note != nullptr ? saved.note : std::string_view());
        if (attached.sampler != nullptr) {
            const Status status = restore_sampler(saved, attached.sampler);
            if (!status.ok()) return status;
        }
        if (attached.note != nullptr) attached.note->swap(note);
        return Status();
    };
    return make_session(std::move(model), config, executor, out, make_cache, take_over);
}

}  // namespace

Status Session::create(std::shared_ptr<const Model> model, const SessionConfig& config, Executor& executor,
                       std::unique_ptr<Session>* out) noexcept {
    const auto make_cache = [](const FileModel&, const CacheConfig& cache, std::unique_ptr<Cache>* made) {
        return Cache::create(cache, made);
    };
    return make_session(std::move(model), config, executor, out, make_cache,
                        [](ModelSession*) { return Status(); });
}

Status Session::decode_batch(DecodeRequest* requests, std::size_t n_requests) noexcept {
    if (n_requests == 0) return {};
    if (requests == nullptr) return Status::error(Code::invalid_argument, "requests are null");
    return ModelSession::decode_batch(requests, n_requests);
}

Status Session::load(const char* path, std::shared_ptr<const Model> model, const SessionConfig& config,
                     StateLoading loading, Executor& executor, std::unique_ptr<Session>* out,
                     const LoadedAttachments& attached) noexcept {
    const auto load_cache = [&](const CacheConfig& cache, LoadOptions& options,
                                std::unique_ptr<Cache>* made) {
        options.loading = loading;
        return load_state(path, cache, options, executor, made);
    };
    return load_session(std::move(model), config, executor, out, attached, load_cache);
}

Status Session::load(const ByteSource& source, std::shared_ptr<const Model> model,
                     const SessionConfig& config, Executor& executor, std::unique_ptr<Session>* out,
                     const LoadedAttachments& attached) noexcept {
    const auto load_cache = [&](const CacheConfig& cache, const LoadOptions& options,
                                std::unique_ptr<Cache>* made) {
        return load_state(source, cache, options, executor, made);
    };
    return load_session(std::move(model), config, executor, out, attached, load_cache);
}

Status Session::load(const void* bytes, std::size_t n_bytes, std::shared_ptr<const Model> model,
                     const SessionConfig& config, Executor& executor, std::unique_ptr<Session>* out,
                     const LoadedAttachments& attached) noexcept {
    const auto load_cache = [&](const CacheConfig& cache, const LoadOptions& options,
                                std::unique_ptr<Cache>* made) {
        return load_state(bytes, n_bytes, cache, options, executor, made);
    };
    return load_session(std::move(model), config, executor, out, attached, load_cache);
}

}  // namespace gearkv
