// Speculative decoding: a session is fed guesses behind the token it is asked to, so that its weights are
// read once for all of them. Used by one thread at a time, the one that uses the session.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "gearkv/session.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

struct SpeculationConfig {
    // The longest draft: below the session's chunk, and at most its rollback_tokens; 0: none, as the session
    // alone.
    std::uint32_t n_draft = 8;
    std::uint32_t n_match = 3;  // of a prompt lookup, at least 2: as look_up_draft
    // Borrowed: a session of a smaller model with the same vocabulary, whose likeliest tokens are the drafts
    // in place of those of a prompt lookup. It is fed what it lacks of the tokens, and gives no drafts where
    // its context ends.
    Session* drafter = nullptr;
};

struct SpeculationStats {
    std::uint64_t n_tokens = 0;   // given to decode
    std::uint64_t n_drafted = 0;  // guesses fed
    std::uint64_t n_right = 0;    // of them, those that decode was then given
    std::uint64_t n_passes = 0;   // through the model
};

// decode and logits stand in for those of the session: whatever chooses the tokens, greedy or not, is shown
// the same logits, to the bit, as without drafts (but where auto:BITS is yet to choose its rates, or
// soft_cache_bytes makes blocks shrink), and so chooses the same tokens. Drafts grow while they hold, shrink when they do not, and pause after some that
// failed from the first token on.
class Speculation {
  public:
    virtual ~Speculation() = default;
    // The session is borrowed, may have tokens and must outlive this; not the drafter's. Takes n_draft + 1
    // times the logits of a token. Errors: invalid_argument, wrong_size (n_draft, n_match), other_model (a
    // drafter with another vocabulary), out_of_memory.
    static Status create(Session& session, const SpeculationConfig& config,
                         std::unique_ptr<Speculation>* out) noexcept;

    // Feeds a token, and with it a draft when the token is none that was guessed. Errors: those of
    // Session::decode; and, of a drafter, those of Session::sync: then nothing was fed, and decode may be
    // called again, which asks the drafter again.
    virtual Status decode(Token token) noexcept = 0;
    // After the last token given to decode, [n_vocab], valid until the next call here or of the session;
    // those of the session when nothing has been given since it was used by itself.
    virtual const float* logits() const noexcept = 0;
    // Tokens of the session without guesses that are yet to come true.
    virtual std::uint64_t n_tokens() const noexcept = 0;

    // Takes back what was but guessed, as truncate, without a trace. To be called before anything else is
    // done with the session; then the session may be used by itself, and decode goes on from there. Where it
    // took tokens back, Session::logits is null, and logits() still has them while the session has as many
    // tokens. Errors: those of Session::truncate.
    virtual Status settle() noexcept = 0;
    virtual SpeculationStats stats() const noexcept = 0;
};

}  // namespace gearkv
#pragma GCC visibility pop
