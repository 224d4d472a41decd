#include "gearkv/speculation.hpp"

#include <algorithm>
#include <vector>

#include "decoder/gguf/guarded.hpp"

namespace gearkv {
namespace {

// How long a draft is to be, by how the last ones fared.
class DraftLength {
  public:
    explicit DraftLength(std::size_t most) : most_(most), length_(most) {}

    // Of the draft for the next pass.
    std::size_t next() {
        if (wait_ > 0) return wait_--, 0;
        return length_;
    }
    void learn(std::size_t n_drafted, std::size_t n_right) {
        if (n_right > 0) pause_ = 1;
        if (n_right == n_drafted) {
            length_ = std::min(2 * length_, most_);
        } else if (n_right > 0) {
            length_ = std::min(n_right + 1, most_);
        } else if (length_ > 1) {
            length_ /= 2;
        } else {
            wait_ = pause_;
            pause_ = std::min<std::size_t>(2 * pause_, longest_pause);
        }
    }

  private:
    static constexpr std::size_t longest_pause = 32;  // passes

    std::size_t most_, length_;
    std::size_t pause_ = 1, wait_ = 0;
};

Token likeliest(const float* logits, std::size_t n_vocab) {
    return static_cast<Token>(std::max_element(logits, logits + n_vocab) - logits);
}

Status check_vocabulary(const Tokenizer& found, const Tokenizer& expected) {
    if (found.n_vocab() != expected.n_vocab()) {
        return Status::error(Code::other_model, "a drafter with %zu tokens, expected the %zu of the session",
                             found.n_vocab(), expected.n_vocab());
    }
    for (std::size_t i = 0; i < expected.n_vocab(); i++) {
        const auto token = static_cast<Token>(i);
        if (found.text(token) == expected.text(token)) continue;
        return Status::error(Code::other_model, "a drafter whose token %zu has another text", i);
    }
    return {};
}

class SessionSpeculation final : public Speculation {
  public:
    SessionSpeculation(Session& session, const SpeculationConfig& config)
        : session_(session),
          config_(config),
          n_vocab_(session.model().params().n_vocab),
          length_(config.n_draft),
          n_tokens_(session.n_tokens()),
          fed_(config.n_draft + 1),
          logits_(fed_.size() * n_vocab_) {}

    Status decode(Token token) noexcept override {
        if (at_ + 1 < n_fed_ && fed_[at_ + 1] == token) {
            at_++;
            n_tokens_++;
            stats_.n_tokens++;
            stats_.n_right++;
            return {};
        }
        if (Status status = settle(); !status.ok()) return status;
        return guarded([&] {
            std::size_t n_draft = 0;
            if (Status status = draft(token, &n_draft); !status.ok()) return status;
            return feed(token, n_draft);
        });
    }

    const float* logits() const noexcept override {
        if (n_fed_ > 1) return row();
        if (session_.logits() != nullptr) return session_.logits();
        return has_row_ && session_.n_tokens() == n_tokens_ ? row() : nullptr;
    }

    std::uint64_t n_tokens() const noexcept override { return n_fed_ > 1 ? n_tokens_ : session_.n_tokens(); }

    Status settle() noexcept override {
        if (n_fed_ > 1) {
            if (at_ + 1 < n_fed_) {
                if (Status status = session_.truncate(n_tokens_); !status.ok()) return status;
            }
            length_.learn(n_fed_ - 1, at_);
            has_row_ = true;
        }
        n_fed_ = 0;
        return {};
    }

    SpeculationStats stats() const noexcept override { return stats_; }

  private:
    const float* row() const { return logits_.data() + at_ * n_vocab_; }

    // Puts what may follow `token` behind it into fed_. May throw std::bad_alloc.
    Status draft(Token token, std::size_t* n_draft) {
        const std::uint64_t room = session_.n_ctx() - session_.n_tokens();
        const std::size_t most = room < 2 ? 0 : std::min<std::uint64_t>(length_.next(), room - 1);
        if (most == 0) return {};
        context_.assign(session_.tokens().begin(), session_.tokens().end());
        context_.push_back(token);
        if (config_.drafter == nullptr) {
            *n_draft = look_up_draft(context_.data(), context_.size(), config_.n_match, most, &fed_[1]);
            return {};
        }
        Session& drafter = *config_.drafter;
        if (context_.size() > drafter.n_ctx()) return {};
        if (Status status = drafter.sync(context_.data(), context_.size()); !status.ok()) return status;
        for (;;) {
            fed_[1 + *n_draft] = likeliest(drafter.logits(), n_vocab_);
            if (++*n_draft == most || drafter.n_tokens() == drafter.n_ctx()) return {};
            if (Status status = drafter.decode(fed_[*n_draft]); !status.ok()) return status;
        }
    }

    Status feed(Token token, std::size_t n_draft) {
        fed_[0] = token;
        Status status;
        if (n_draft > 0) status = session_.decode(fed_.data(), n_draft + 1, logits_.data());
        // What a draft has no room for, the token may have.
        const bool drafted = n_draft > 0 && status.ok();
        if (!drafted) status = session_.decode(token);
        if (!status.ok()) return status;
        n_fed_ = drafted ? n_draft + 1 : 0;
        at_ = 0;
        has_row_ = false;
        n_tokens_ = session_.n_tokens() - (drafted ? n_draft : 0);
        stats_.n_tokens++;
        stats_.n_passes++;
        if (drafted) stats_.n_drafted += n_draft;
        return {};
    }

    Session& session_;
    const SpeculationConfig config_;
    const std::size_t n_vocab_;
    DraftLength length_;
    std::uint64_t n_tokens_;     // of the session without what is but guessed
    std::vector<Token> fed_;     // [n_draft + 1], by the last pass
    std::vector<float> logits_;  // [n_draft + 1, n_vocab], after each of these
    std::size_t n_fed_ = 0;      // 0: the session has its tokens and nothing else
    std::size_t at_ = 0;         // the last of them that decode was given
    bool has_row_ = false;       // settled, and the logits of at_ are those of the session
    std::vector<Token> context_;
    SpeculationStats stats_;
};

}  // namespace

Status Speculation::create(Session& session, const SpeculationConfig& config,
                           std::unique_ptr<Speculation>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    if (config.drafter == &session)
        return Status::error(Code::invalid_argument, "a session as its own drafter");
    const std::uint64_t most =
        std::min<std::uint64_t>(session.chunk() - 1, session.cache().config().rollback_tokens);
    if (config.n_draft > most) {
        return Status::error(
            Code::wrong_size,
            "drafts of %u tokens, expected at most %llu, by the session's rollback_tokens and chunk",
            config.n_draft, static_cast<unsigned long long>(most));
    }
    if (config.n_match < 2)
        return Status::error(Code::wrong_size, "a lookup of %u tokens, expected at least 2", config.n_match);
    if (config.drafter != nullptr) {
        const Status status =
            check_vocabulary(config.drafter->model().tokenizer(), session.model().tokenizer());
        if (!status.ok()) return status;
    }
    return guarded([&] {
        *out = std::make_unique<SessionSpeculation>(session, config);
        return Status();
    });
}

}  // namespace gearkv
