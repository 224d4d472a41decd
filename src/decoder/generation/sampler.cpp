// Compiled without contraction of products and sums, so that every machine draws the same tokens.
#include "gearkv/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../arch/float_mode.hpp"
#include "decoder/generation/candidates.hpp"
#include "decoder/generation/penalties.hpp"
#include "decoder/gguf/guarded.hpp"

namespace gearkv {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    // In [0, 1), 53 bits.
    double next() {
        state_ += 0x9e3779b97f4a7c15u;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
    }
    std::uint64_t state() const { return state_; }

  private:
    std::uint64_t state_;
};

// The last tokens accepted, as many as are wanted and perhaps more.
class History {
  public:
    // Nothing is allocated by accept up to so many tokens. Throws std::bad_alloc.
    explicit History(std::uint32_t n_wanted) : n_wanted_(n_wanted) {
        tokens_.reserve(2 * std::size_t{std::min(n_wanted, 4096u)});
    }
    // May throw std::bad_alloc, and has then taken nothing.
    void accept(const Token* tokens, std::size_t n) {
        const std::size_t n_new = std::min<std::size_t>(n, n_wanted_);
        if (tokens_.size() + n_new > 2 * std::size_t{n_wanted_}) {
            const std::size_t n_kept = n_wanted_ - n_new;
            tokens_.erase(tokens_.begin(), tokens_.end() - static_cast<std::ptrdiff_t>(n_kept));
        }
        tokens_.insert(tokens_.end(), tokens + (n - n_new), tokens + n);
    }
    void forget() { tokens_.clear(); }
    std::span<const Token> tokens() const {
        const std::span<const Token> all = tokens_;
        return all.size() > n_wanted_ ? all.last(n_wanted_) : all;
    }

  private:
    std::size_t n_wanted_;
    std::vector<Token> tokens_;
};

// A saved sampler, little endian: magic, version u32, random state u64, number of tokens u64, tokens i32.
constexpr char state_magic[8] = {'G', 'K', 'V', 'D', 'R', 'A', 'W', '\n'};
constexpr std::uint32_t state_version = 1;
constexpr std::size_t state_header_bytes = 28;

template <class T>
void put(std::vector<unsigned char>& bytes, T value) {
    for (std::size_t i = 0; i < sizeof(T); i++) {
        bytes.push_back(static_cast<unsigned char>(value >> (8 * i)));
    }
}

template <class T>
T get(const unsigned char* bytes) {
    T value = 0;
    for (std::size_t i = 0; i < sizeof(T); i++) {
        value |= static_cast<T>(T{bytes[i]} << (8 * i));
    }
    return value;
}

class LogitSampler final : public Sampler {
  public:
    explicit LogitSampler(const SamplerConfig& config)
        : config_(config), random_(config.seed), penalties_(config_), history_(penalties_.n_wanted()) {}

    Status sample(const float* logits, std::size_t n_vocab, Token* out) noexcept override {
        const FloatMode mode;
        if (logits == nullptr || out == nullptr || n_vocab == 0) {
            return Status::error(Code::invalid_argument,
                                 "null logits or output, or a vocabulary of no tokens");
        }
        if (n_vocab > static_cast<std::size_t>(std::numeric_limits<Token>::max())) {
            return Status::error(Code::invalid_argument, "%zu logits, expected at most 2^31 - 1", n_vocab);
        }
        for (std::size_t i = 0; i < n_vocab; i++) {
            if (std::isnan(logits[i])) return Status::error(Code::non_finite, "logit %zu is not a number", i);
        }
        return guarded([&] {
            const float* changed = logits;
            if (!config_.logit_bias.empty() || penalties_.active()) {
                changed_.assign(logits, logits + n_vocab);
                if (Status status = add_biases(); !status.ok()) return status;
                penalties_.apply(history_.tokens(), changed_);
                changed = changed_.data();
            }
            return choose(changed, n_vocab, out);
        });
    }

    Status accept(const Token* tokens, std::size_t n) noexcept override {
        if (n == 0) return {};
        if (tokens == nullptr) return Status::error(Code::invalid_argument, "null tokens");
        for (std::size_t i = 0; i < n; i++) {
            if (tokens[i] >= 0) continue;
            return Status::error(Code::bad_token, "token %zu is %d, expected 0 or more", i, tokens[i]);
        }
        return guarded([&] {
            history_.accept(tokens, n);
            return Status();
        });
    }

    void forget() noexcept override { history_.forget(); }

    Status save(std::vector<unsigned char>* out) const noexcept override {
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        return guarded([&] {
            const std::span<const Token> tokens = history_.tokens();
            std::vector<unsigned char> bytes(state_magic, state_magic + sizeof(state_magic));
            bytes.reserve(state_header_bytes + tokens.size() * sizeof(Token));
            put(bytes, state_version);
            put(bytes, random_.state());
            put(bytes, std::uint64_t{tokens.size()});
            for (const Token token : tokens) {
                put(bytes, static_cast<std::uint32_t>(token));
            }
            *out = std::move(bytes);
            return Status();
        });
    }

    Status restore(const unsigned char* bytes, std::size_t n_bytes) noexcept override {
        if (bytes == nullptr && n_bytes > 0) return Status::error(Code::invalid_argument, "null bytes");
        const std::size_t n_magic = std::min(n_bytes, sizeof(state_magic));
        if (n_magic > 0 && std::memcmp(bytes, state_magic, n_magic) != 0)
            return Status::error(Code::not_a_state, "the bytes are no saved sampler");
        if (n_bytes < state_header_bytes) {
            return Status::error(Code::truncated, "a saved sampler of %zu bytes, expected at least %zu",
                                 n_bytes, state_header_bytes);
        }
        const auto version = get<std::uint32_t>(bytes + 8);
        if (version != state_version) {
            return Status::error(Code::bad_version, "a saved sampler of version %u, expected %u", version,
                                 state_version);
        }
        const auto n_tokens = get<std::uint64_t>(bytes + 20);
        const std::size_t n_left = n_bytes - state_header_bytes;
        if (n_left % sizeof(Token) != 0 || n_left / sizeof(Token) != n_tokens) {
            return Status::error(n_left / sizeof(Token) < n_tokens ? Code::truncated : Code::corrupt_state,
                                 "a saved sampler of %llu tokens in %zu bytes",
                                 static_cast<unsigned long long>(n_tokens), n_left);
        }
        return guarded([&] {
            std::vector<Token> tokens;
            for (std::size_t at = state_header_bytes; at < n_bytes; at += sizeof(Token)) {
                tokens.push_back(static_cast<Token>(get<std::uint32_t>(bytes + at)));
                if (tokens.back() >= 0) continue;
                return Status::error(Code::corrupt_state,
                                     "a saved sampler holds token %d, expected 0 or more", tokens.back());
            }
            History history(penalties_.n_wanted());
            history.accept(tokens.data(), tokens.size());
            history_ = std::move(history);
            random_ = Random(get<std::uint64_t>(bytes + 12));
            return Status();
        });
    }

  private:
    Status add_biases() {
        constexpr float banned = -std::numeric_limits<float>::infinity();
        for (const LogitBias& bias : config_.logit_bias) {
            if (static_cast<std::size_t>(bias.token) >= changed_.size()) {
                return Status::error(Code::invalid_argument,
                                     "logit_bias has token %d, expected below the %zu of the vocabulary",
                                     bias.token, changed_.size());
            }
            float& logit = changed_[static_cast<std::size_t>(bias.token)];
            // A ban holds for a logit of +Inf too.
            logit = bias.bias == banned ? banned : logit + bias.bias;
        }
        return {};
    }

    // Of logits that are numbers. Nothing random is taken before all that can fail is done.
    Status choose(const float* logits, std::size_t n_vocab, Token* out) {
        const float* best = std::max_element(logits, logits + n_vocab);
        if (*best == -std::numeric_limits<float>::infinity())
            return Status::error(Code::non_finite, "all %zu logits are -Inf", n_vocab);
        const bool greedy = config_.temperature == 0.0f;
        // No other filter can drop the likeliest token.
        if (greedy && config_.typical_p == 1.0f && config_.xtc_probability == 0.0f) {
            *out = static_cast<Token>(best - logits);
            return {};
        }
        candidates_.collect(logits, n_vocab);
        const auto number = [](float value) { return static_cast<double>(value); };
        if (config_.top_n_sigma > 0.0f) candidates_.keep_top_n_sigma(number(config_.top_n_sigma));
        if (config_.top_k > 0) candidates_.keep_top_k(config_.top_k);
        if (config_.typical_p < 1.0f) candidates_.keep_typical(number(config_.typical_p));
        if (config_.top_p < 1.0f) candidates_.keep_top_p(number(config_.top_p));
        if (config_.min_p > 0.0f) candidates_.keep_min_p(number(config_.min_p));
        if (config_.xtc_probability > 0.0f && random_.next() < number(config_.xtc_probability))
            candidates_.drop_top_choices(number(config_.xtc_threshold));
        *out = greedy ? candidates_.best() : candidates_.draw(random_.next(), number(config_.temperature));
        return {};
    }

    SamplerConfig config_;
    Random random_;
    Penalties penalties_;
    History history_;
    std::vector<float> changed_;  // logits with biases and penalties
    Candidates candidates_;
};

// The first field that is out of its range.
class ConfigCheck {
  public:
    // [least, most], or without an end of it.
    void within(const char* name, float value, float least, float most, bool least_too = true,
                bool most_too = true) {
        const bool above = least_too ? value >= least : value > least;
        const bool below = most_too ? value <= most : value < most;
        if (!status_.ok() || (above && below && std::isfinite(value))) return;
        const auto number = [](float x) { return static_cast<double>(x); };
        if (most == std::numeric_limits<float>::max()) {
            status_ = Status::error(Code::invalid_argument, "%s is %g, expected a finite number %s %g", name,
                                    number(value), least_too ? "from" : "above", number(least));
        } else {
            status_ = Status::error(Code::invalid_argument, "%s is %g, expected %s %g and %s %g", name,
                                    number(value), least_too ? "at least" : "above", number(least),
                                    most_too ? "at most" : "below", number(most));
        }
    }
    void finite(const char* name, float value) {
        if (!status_.ok() || std::isfinite(value)) return;
        status_ = Status::error(Code::invalid_argument, "%s is %g, expected a finite number", name,
                                static_cast<double>(value));
    }
    void holds(bool condition, const char* message) {
        if (status_.ok() && !condition) status_ = Status::error(Code::invalid_argument, "%s", message);
    }
    const Status& status() const { return status_; }

  private:
    Status status_;
};

Status check_config(const SamplerConfig& config) {
    constexpr float largest = std::numeric_limits<float>::max();
    ConfigCheck check;
    for (const LogitBias& bias : config.logit_bias) {
        check.holds(bias.token >= 0, "logit_bias has a token below 0");
        check.holds(bias.bias <= largest,
                    "logit_bias has a bias that is NaN or +Inf, expected finite or -Inf");
    }
    check.within("repeat_penalty", config.repeat_penalty, 0.0f, largest, false);
    check.finite("frequency_penalty", config.frequency_penalty);
    check.finite("presence_penalty", config.presence_penalty);
    check.within("dry_multiplier", config.dry_multiplier, 0.0f, largest);
    check.within("dry_base", config.dry_base, 1.0f, largest);
    check.holds(config.dry_allowed_length >= 1, "dry_allowed_length is 0, expected at least 1");
    for (const Token token : config.dry_breakers) {
        check.holds(token >= 0, "dry_breakers has a token below 0");
    }
    check.within("top_n_sigma", config.top_n_sigma, 0.0f, largest);
    check.within("typical_p", config.typical_p, 0.0f, 1.0f, false);
    check.within("top_p", config.top_p, 0.0f, 1.0f, false);
    check.within("min_p", config.min_p, 0.0f, 1.0f, true, false);
    check.within("xtc_probability", config.xtc_probability, 0.0f, 1.0f);
    check.within("xtc_threshold", config.xtc_threshold, 0.0f, 0.5f);
    check.within("temperature", config.temperature, 0.0f, largest);
    return check.status();
}

}  // namespace

Status Sampler::create(const SamplerConfig& config, std::unique_ptr<Sampler>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    const Status status = check_config(config);
    if (!status.ok()) return status;
    return guarded([&] {
        *out = std::make_unique<LogitSampler>(config);
        return Status();
    });
}

}  // namespace gearkv
