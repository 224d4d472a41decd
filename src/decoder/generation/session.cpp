#include <algorithm>
#include <cstring>
#include <vector>

#include "decoder/gguf/guarded.hpp"
#include "decoder/network/forward.hpp"
#include "decoder/network/model.hpp"
#include "gearkv/session.hpp"

namespace gearkv {
namespace {

// `frequencies` must outlive the result.
CacheConfig cache_config(const ModelParams& params, const SessionConfig& config,
                         const std::vector<double>& frequencies) {
    CacheConfig cache;
    cache.n_layers = params.n_layers;
    cache.n_kv_heads = params.n_kv_heads;
    cache.key_dim = params.head_dim;
    cache.value_dim = params.head_dim;
    cache.max_tokens = config.n_ctx != 0 ? config.n_ctx : params.n_ctx;
    cache.spec = config.spec;
    cache.seed = config.seed;
    cache.rollback_tokens = config.rollback_tokens;
    cache.error_every = config.error_every;
    cache.level = config.level;
    cache.rope = {frequencies.data(), params.rope_dim / 2, true};
    return cache;
}

class LlamaSession final : public Session {
  public:
    LlamaSession(std::shared_ptr<const LlamaModel> model, std::unique_ptr<Cache> cache,
                 const LinearKernels& kernels, const SessionConfig& config, Executor& executor)
        : model_(std::move(model)),
          cache_(std::move(cache)),
          n_ctx_(static_cast<std::uint32_t>(cache_->config().max_tokens)),
          kernels_(kernels),
          config_(config),
          chunk_(std::min(config.chunk, n_ctx_)),
          forward_(*model_, kernels, chunk_, executor),
          logits_(model_->params().n_vocab) {}

    // What a state file holds beside the cache; logits [n_vocab] behind it.
    struct Extra {
        std::uint64_t n_tokens;
        std::uint32_t n_vocab;
        std::uint32_t has_logits;
    };

    Status prefill(const Token* tokens, std::size_t n_tokens) noexcept override {
        return feed_prompt(tokens, n_tokens, nullptr);
    }

    Status prefill(const Token* tokens, std::size_t n_tokens, float* all_logits) noexcept override {
        if (all_logits == nullptr) return Status::error(Code::invalid_argument, "null logits");
        return feed_prompt(tokens, n_tokens, all_logits);
    }

    Status decode(Token token) noexcept override {
        if (!failure_.ok()) return failure_;
        if (n_tokens_ == n_ctx_) {
            return Status::error(Code::context_full, "the context holds %u tokens, its limit", n_ctx_);
        }
        const Status status = check_tokens(&token, 1);
        return status.ok() ? feed_chunk(&token, 1, nullptr, true) : status;
    }

    const float* logits() const noexcept override { return has_logits_ ? logits_.data() : nullptr; }
    std::uint64_t n_tokens() const noexcept override { return n_tokens_; }
    std::uint32_t n_ctx() const noexcept override { return n_ctx_; }
    const Cache& cache() const noexcept override { return *cache_; }

    Status truncate(std::uint64_t n_tokens, bool* lossless) noexcept override {
        if (!failure_.ok()) return failure_;
        const Status status = cache_->truncate(n_tokens, lossless);
        if (!status.ok()) return status;
        has_logits_ = has_logits_ && n_tokens == n_tokens_;
        n_tokens_ = n_tokens;
        return {};
    }

    Status remove(std::uint64_t first, std::uint64_t n_tokens) noexcept override {
        if (!failure_.ok()) return failure_;
        const Status status = cache_->remove(first, n_tokens);
        if (status.ok()) n_tokens_ -= n_tokens;
        return status;
    }

    Status fork(Executor& executor, std::unique_ptr<Session>* out) const noexcept override {
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        if (!failure_.ok()) return failure_;
        return guarded([&] {
            std::unique_ptr<Cache> cache;
            if (Status status = cache_->fork(&cache); !status.ok()) return status;
            auto session =
                std::make_unique<LlamaSession>(model_, std::move(cache), kernels_, config_, executor);
            session->go_on(n_tokens_, has_logits_ ? logits_.data() : nullptr);
            *out = std::move(session);
            return Status();
        });
    }

    Status save(const char* path) const noexcept override {
        if (!failure_.ok()) return failure_;
        return guarded([&] {
            const Extra extra = {n_tokens_, model_->params().n_vocab, has_logits_};
            const std::size_t n_logits = has_logits_ ? extra.n_vocab * sizeof(float) : 0;
            std::vector<unsigned char> bytes(sizeof(extra) + n_logits);
            std::memcpy(bytes.data(), &extra, sizeof(extra));
            if (n_logits > 0) std::memcpy(bytes.data() + sizeof(extra), logits_.data(), n_logits);
            SaveOptions options;
            options.model = model_->fingerprint();
            options.extra = bytes.data();
            options.n_extra = bytes.size();
            return save_state(*cache_, path, options, forward_.executor());
        });
    }

    std::uint32_t n_vocab() const noexcept { return model_->params().n_vocab; }

    // After a cache of n_tokens was put in; logits may be null.
    void go_on(std::uint64_t n_tokens, const float* logits) noexcept {
        n_tokens_ = n_tokens;
        has_logits_ = logits != nullptr;
        if (has_logits_) std::copy_n(logits, model_->params().n_vocab, logits_.data());
    }

    void reset() noexcept override {
        cache_->reset();
        n_tokens_ = 0;
        has_logits_ = false;
        failure_ = {};
    }

  private:
    Status check_tokens(const Token* tokens, std::size_t n) const noexcept {
        const std::uint32_t n_vocab = model_->params().n_vocab;
        for (std::size_t i = 0; i < n; i++) {
            if (tokens[i] >= 0 && static_cast<std::uint32_t>(tokens[i]) < n_vocab) continue;
            return Status::error(Code::bad_token, "token %zu is %d, expected 0 to %u", i, tokens[i],
                                 n_vocab - 1);
        }
        return {};
    }

    Status feed_prompt(const Token* tokens, std::size_t n, float* all_logits) noexcept {
        if (!failure_.ok()) return failure_;
        if (n == 0) return Status::error(Code::empty_prompt, "a prompt of no tokens, expected at least 1");
        if (tokens == nullptr) return Status::error(Code::invalid_argument, "null tokens");
        if (n > n_ctx_ - n_tokens_) {
            return Status::error(Code::prompt_too_long,
                                 "a prompt of %zu tokens behind %llu others, expected at most %u together", n,
                                 static_cast<unsigned long long>(n_tokens_), n_ctx_);
        }
        Status status = check_tokens(tokens, n);
        for (std::size_t at = 0; status.ok() && at < n; at += chunk_) {
            const std::size_t n_chunk = std::min<std::size_t>(chunk_, n - at);
            float* logits = all_logits == nullptr ? nullptr : all_logits + at * model_->params().n_vocab;
            status = feed_chunk(tokens + at, n_chunk, logits, at + n_chunk == n);
        }
        return status;
    }

    // Feeds up to chunk_ tokens. Logits of all of them go to all_logits unless it is null, those of the last
    // one to logits_ when it is the last of the call. An error that leaves the layers with different tokens
    // ends the session until it is reset.
    Status feed_chunk(const Token* tokens, std::size_t n, float* all_logits, bool last) noexcept {
        bool touched = false;
        Status status = forward_.feed(tokens, n, n_tokens_, *cache_, &touched);
        if (!status.ok() && !touched) return status;
        has_logits_ = false;
        if (status.ok()) status = write_logits(n, all_logits, last);
        if (!status.ok()) {
            failure_ =
                Status::error(status.code(), "the session failed and needs a reset: %s", status.message());
            return failure_;
        }
        n_tokens_ += n;
        has_logits_ = last;
        return {};
    }

    Status write_logits(std::size_t n, float* all_logits, bool last) noexcept {
        const std::size_t n_vocab = model_->params().n_vocab;
        if (all_logits != nullptr) {
            const Status status = forward_.compute_logits(0, n, all_logits);
            if (status.ok() && last) std::copy_n(all_logits + (n - 1) * n_vocab, n_vocab, logits_.data());
            return status;
        }
        return last ? forward_.compute_logits(n - 1, 1, logits_.data()) : Status();
    }

    std::shared_ptr<const LlamaModel> model_;
    std::unique_ptr<Cache> cache_;
    std::uint32_t n_ctx_;
    const LinearKernels& kernels_;
    SessionConfig config_;
    std::uint32_t chunk_;
    Forward forward_;
    Floats logits_;  // [n_vocab]
    std::uint64_t n_tokens_ = 0;
    bool has_logits_ = false;
    Status failure_;  // what ended the session, ok while it lives
};

// What create and load share: `make_cache` fills a cache, and `take_over` what goes with it.
template <class MakeCache, class TakeOver>
Status make_session(std::shared_ptr<const Model> model, const SessionConfig& config, Executor& executor,
                    std::unique_ptr<Session>* out, const MakeCache& make_cache, const TakeOver& take_over) {
    if (model == nullptr || out == nullptr)
        return Status::error(Code::invalid_argument, "null model or output");
    if (config.chunk == 0)
        return Status::error(Code::invalid_argument, "a chunk of 0 tokens, expected at least 1");
    auto llama = std::dynamic_pointer_cast<const LlamaModel>(std::move(model));
    if (llama == nullptr)
        return Status::error(Code::invalid_argument, "a model that Model::load did not make");
    return guarded([&] {
        const std::vector<double> frequencies =
            rope_frequencies(llama->params(), llama->weights().rope_factors);
        std::unique_ptr<Cache> cache;
        Status status = make_cache(*llama, cache_config(llama->params(), config, frequencies), &cache);
        if (!status.ok()) return status;
        const LinearKernels* kernels = find_linear_kernels(cache->level());
        if (kernels == nullptr) {
            return Status::error(Code::unavailable_level, "no matrix kernels for level %s",
                                 level_name(cache->level()));
        }
        auto session =
            std::make_unique<LlamaSession>(std::move(llama), std::move(cache), *kernels, config, executor);
        status = take_over(session.get());
        if (status.ok()) *out = std::move(session);
        return status;
    });
}

}  // namespace

Status Session::create(std::shared_ptr<const Model> model, const SessionConfig& config, Executor& executor,
                       std::unique_ptr<Session>* out) noexcept {
    const auto make_cache = [](const LlamaModel&, const CacheConfig& cache, std::unique_ptr<Cache>* made) {
        return Cache::create(cache, made);
    };
    return make_session(std::move(model), config, executor, out, make_cache,
                        [](LlamaSession*) { return Status(); });
}

Status Session::load(const char* path, std::shared_ptr<const Model> model, const SessionConfig& config,
                     StateLoading loading, Executor& executor, std::unique_ptr<Session>* out) noexcept {
    using Extra = LlamaSession::Extra;
    std::vector<unsigned char> bytes;
    std::size_t n_bytes = 0;
    const auto make_cache = [&](const LlamaModel& llama, const CacheConfig& cache,
                                std::unique_ptr<Cache>* made) {
        bytes.resize(sizeof(Extra) + std::size_t{llama.params().n_vocab} * sizeof(float));
        LoadOptions options;
        options.model = llama.fingerprint();
        options.loading = loading;
        options.extra = bytes.data();
        options.extra_capacity = bytes.size();
        return load_state(path, cache, options, executor, made, &n_bytes);
    };
    const auto take_over = [&](LlamaSession* session) {
        Extra extra = {};
        if (n_bytes >= sizeof(extra)) std::memcpy(&extra, bytes.data(), sizeof(extra));
        const std::uint32_t n_vocab = session->n_vocab();
        const std::size_t expected = sizeof(extra) + (extra.has_logits == 1 ? n_vocab * sizeof(float) : 0);
        bool whole = n_bytes == expected && extra.has_logits <= 1 && extra.n_vocab == n_vocab;
        for (std::uint32_t i = 0; i < session->cache().config().n_layers; ++i)
            whole &= session->cache().n_tokens(i) == extra.n_tokens;
        if (!whole) {
            return Status::error(Code::corrupt_state,
                                 "the file holds a cache, but not the rest of a session with it");
        }
        std::vector<float> logits(extra.has_logits == 1 ? n_vocab : 0);
        if (!logits.empty())
            std::memcpy(logits.data(), bytes.data() + sizeof(extra), logits.size() * sizeof(float));
        session->go_on(extra.n_tokens, logits.empty() ? nullptr : logits.data());
        return Status();
    };
    return make_session(std::move(model), config, executor, out, make_cache, take_over);
}

}  // namespace gearkv
