// The sampler against its definition, written down plainly in double precision.
#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "gearkv/decoder.hpp"
#include "support/catch.hpp"

using namespace gearkv;

namespace {

struct Choice {
    Token token;
    double logit;
    double p = 0;
};

// Says so when two numbers are too near to each other for the definition to decide.
class Definition {
  public:
    Definition(const SamplerConfig& config, std::uint64_t random) : config_(config), random_(random) {}

    bool ambiguous() const { return ambiguous_; }

    Token sample(std::vector<double> logits, const std::vector<Token>& history) {
        for (const LogitBias& bias : config_.logit_bias)
            logits[static_cast<std::size_t>(bias.token)] += number(bias.bias);
        penalise(logits, history);
        std::vector<Choice> choices;
        for (std::size_t i = 0; i < logits.size(); i++) {
            // The sampler goes on in float.
            const double logit = static_cast<double>(static_cast<float>(logits[i]));
            if (logit > -INFINITY) choices.push_back({static_cast<Token>(i), logit});
        }
        top_n_sigma(choices);
        top_k(choices);
        typical(choices);
        top_p(choices);
        min_p(choices);
        xtc(choices);
        return draw(choices);
    }

  private:
    static double number(float x) { return static_cast<double>(x); }

    bool less(double a, double b) {
        if (std::isfinite(a) && std::isfinite(b) && std::fabs(a - b) < 1e-9) ambiguous_ = true;
        return a < b;
    }
    static bool better(const Choice& a, const Choice& b) {
        return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
    }
    static void normalise(std::vector<Choice>& choices, double temperature = 1.0) {
        double best = -INFINITY, sum = 0;
        for (const Choice& choice : choices)
            best = std::max(best, choice.logit);
        for (Choice& choice : choices)
            sum += choice.p = choice.logit == best ? 1.0 : std::exp((choice.logit - best) / temperature);
        for (Choice& choice : choices)
            choice.p /= sum;
    }

    void penalise(std::vector<double>& logits, std::vector<Token> history) {
        const std::size_t n_last = std::min<std::size_t>(history.size(), config_.penalty_last_n);
        std::map<Token, int> counts;
        for (std::size_t i = history.size() - n_last; i < history.size(); i++)
            counts[history[i]]++;
        for (const auto& [token, count] : counts) {
            double& logit = logits[static_cast<std::size_t>(token)];
            logit =
                logit > 0 ? logit / number(config_.repeat_penalty) : logit * number(config_.repeat_penalty);
            logit -= count * number(config_.frequency_penalty) + number(config_.presence_penalty);
            logit = static_cast<double>(static_cast<float>(logit));
        }
        if (config_.dry_multiplier == 0.0f) return;
        if (history.size() > config_.dry_last_n)
            history.erase(history.begin(), history.end() - config_.dry_last_n);
        const auto breaks = [&](Token token) {
            return std::count(config_.dry_breakers.begin(), config_.dry_breakers.end(), token) > 0;
        };
        std::map<Token, std::size_t> longest;
        for (std::size_t next = 1; next < history.size(); next++) {
            std::size_t length = 0;
            while (length < next && history[next - 1 - length] == history[history.size() - 1 - length] &&
                   !breaks(history[next - 1 - length]))
                length++;
            if (!breaks(history[next])) longest[history[next]] = std::max(longest[history[next]], length);
        }
        for (const auto& [token, length] : longest) {
            if (length < config_.dry_allowed_length) continue;
            logits[static_cast<std::size_t>(token)] -=
                number(config_.dry_multiplier) *
                std::pow(number(config_.dry_base), static_cast<double>(length - config_.dry_allowed_length));
        }
    }

    void top_n_sigma(std::vector<Choice>& choices) {
        if (config_.top_n_sigma == 0.0f) return;
        double mean = 0, variance = 0, best = -INFINITY;
        for (const Choice& choice : choices) {
            mean += choice.logit / static_cast<double>(choices.size());
            best = std::max(best, choice.logit);
        }
        for (const Choice& choice : choices)
            variance += (choice.logit - mean) * (choice.logit - mean) / static_cast<double>(choices.size());
        const double least = best - number(config_.top_n_sigma) * std::sqrt(variance);
        std::erase_if(choices, [&](const Choice& choice) { return less(choice.logit, least); });
    }

    void top_k(std::vector<Choice>& choices) {
        if (config_.top_k == 0) return;
        std::sort(choices.begin(), choices.end(), better);
        if (choices.size() > config_.top_k) choices.resize(config_.top_k);
    }

    void typical(std::vector<Choice>& choices) {
        if (config_.typical_p == 1.0f) return;
        normalise(choices);
        double entropy = 0;
        for (const Choice& choice : choices)
            entropy -= choice.p > 0 ? choice.p * std::log(choice.p) : 0.0;
        const auto shift = [&](const Choice& choice) { return std::fabs(-std::log(choice.p) - entropy); };
        std::sort(choices.begin(), choices.end(), [&](const Choice& a, const Choice& b) {
            if (a.logit == b.logit) return a.token < b.token;
            return less(shift(a), shift(b));
        });
        keep(choices, [&](double covered) { return less(number(config_.typical_p), covered); });
        std::sort(choices.begin(), choices.end(), better);
    }

    void top_p(std::vector<Choice>& choices) {
        if (config_.top_p == 1.0f) return;
        normalise(choices);
        std::sort(choices.begin(), choices.end(), better);
        keep(choices, [&](double covered) { return !less(covered, number(config_.top_p)); });
    }

    template <class Enough>
    static void keep(std::vector<Choice>& choices, const Enough& enough) {
        double covered = 0;
        for (std::size_t i = 0; i < choices.size(); i++) {
            covered += choices[i].p;
            if (enough(covered)) choices.resize(i + 1);
        }
    }

    void min_p(std::vector<Choice>& choices) {
        if (config_.min_p == 0.0f) return;
        std::sort(choices.begin(), choices.end(), better);
        const double least = choices.front().logit + std::log(number(config_.min_p));
        std::erase_if(choices, [&](const Choice& choice) { return less(choice.logit, least); });
    }

    void xtc(std::vector<Choice>& choices) {
        if (config_.xtc_probability == 0.0f) return;
        if (!less(random(), number(config_.xtc_probability))) return;
        normalise(choices);
        std::sort(choices.begin(), choices.end(), better);
        std::size_t n = 0;
        for (const Choice& choice : choices)
            n += less(choice.p, number(config_.xtc_threshold)) ? 0u : 1u;
        if (n >= 2) choices.erase(choices.begin(), choices.begin() + static_cast<std::ptrdiff_t>(n - 1));
    }

    Token draw(std::vector<Choice>& choices) {
        if (config_.temperature == 0.0f)
            return std::min_element(choices.begin(), choices.end(), better)->token;
        normalise(choices, number(config_.temperature));
        const double wanted = random();
        double covered = 0;
        for (const Choice& choice : choices) {
            covered += choice.p;
            if (less(wanted, covered)) return choice.token;
        }
        ambiguous_ = true;
        return choices.back().token;
    }

    double random() {
        random_ += 0x9e3779b97f4a7c15u;
        std::uint64_t z = random_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return std::ldexp(static_cast<double>((z ^ (z >> 31)) >> 11), -53);
    }

    const SamplerConfig& config_;
    std::uint64_t random_;
    bool ambiguous_ = false;
};

class Inputs {
  public:
    explicit Inputs(unsigned seed) : random_(seed) {}

    bool coin(double p = 0.5) { return std::uniform_real_distribution<>()(random_) < p; }
    std::size_t up_to(std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n)(random_); }
    float between(float a, float b) { return std::uniform_real_distribution<float>(a, b)(random_); }

    // Ties, outliers, and tokens that are banned already.
    std::vector<float> logits(std::size_t n) {
        std::vector<float> logits(n);
        const bool coarse = coin(), banned = coin(0.3);
        const float width = coin() ? 3.0f : 0.3f;
        for (float& logit : logits) {
            logit = std::normal_distribution<float>(0.0f, width)(random_);
            if (coarse) logit = std::round(logit * 4.0f) / 4.0f;
            if (banned && coin()) logit = -INFINITY;
        }
        logits[up_to(n - 1)] = between(-2.0f, 6.0f);
        return logits;
    }

    SamplerConfig config(std::size_t n_vocab) {
        SamplerConfig config;
        config.seed = random_();
        if (coin(0.3)) {
            config.repeat_penalty = between(0.8f, 2.0f);
            config.frequency_penalty = between(-0.5f, 0.5f);
            config.presence_penalty = between(-0.5f, 0.5f);
            config.penalty_last_n = static_cast<std::uint32_t>(up_to(40));
        }
        if (coin(0.3)) {
            config.dry_multiplier = between(0.1f, 2.0f);
            config.dry_base = between(1.0f, 2.0f);
            config.dry_allowed_length = 1 + static_cast<std::uint32_t>(up_to(3));
            if (coin()) config.dry_last_n = static_cast<std::uint32_t>(up_to(40));
            if (coin()) config.dry_breakers = {static_cast<Token>(up_to(n_vocab - 1)), 0};
        }
        if (coin(0.3)) config.top_n_sigma = between(0.1f, 3.0f);
        if (coin(0.3)) config.top_k = static_cast<std::uint32_t>(1 + up_to(n_vocab));
        if (coin(0.3)) config.typical_p = between(0.05f, 0.999f);
        if (coin(0.3)) config.top_p = between(0.05f, 0.999f);
        if (coin(0.3)) config.min_p = between(0.0f, 0.9f);
        if (coin(0.3)) {
            config.xtc_probability = coin() ? 1.0f : between(0.1f, 0.9f);
            config.xtc_threshold = between(0.01f, 0.5f);
        }
        config.temperature = coin(0.2) ? 0.0f : between(0.3f, 2.0f);
        return config;
    }

    // Words of few tokens, so that they repeat.
    std::vector<Token> history(std::size_t n, std::size_t n_vocab) {
        std::vector<Token> tokens(n);
        for (Token& token : tokens)
            token = static_cast<Token>(up_to(std::min<std::size_t>(n_vocab - 1, 2)));
        return tokens;
    }

  private:
    std::mt19937_64 random_;
};

}  // namespace

TEST_CASE("every combination of biases, penalties and filters draws what its definition says") {
    Inputs inputs(7);
    int n_decided = 0;
    for (int round = 0; round < 6000; round++) {
        const std::size_t n_vocab = 1 + inputs.up_to(inputs.coin() ? 8 : 300);
        SamplerConfig config = inputs.config(n_vocab);
        const std::vector<float> logits = inputs.logits(n_vocab);
        if (inputs.coin(0.3)) {
            const auto token = static_cast<Token>(inputs.up_to(n_vocab - 1));
            config.logit_bias = {{token, inputs.between(-3, 3)}, {token, 0.5f}};
            const auto other = static_cast<Token>(inputs.up_to(n_vocab - 1));
            if (other != token && n_vocab > 4) config.logit_bias.push_back({other, -INFINITY});
        }
        const std::vector<Token> history = inputs.history(inputs.up_to(60), n_vocab);
        std::unique_ptr<Sampler> sampler;
        REQUIRE(Sampler::create(config, &sampler).ok());
        REQUIRE(sampler->accept(history.data(), history.size()).ok());
        Token found = -1;
        const Status status = sampler->sample(logits.data(), n_vocab, &found);
        if (status.code() == Code::non_finite) continue;  // the only token was banned
        REQUIRE(status.ok());
        Definition definition(config, config.seed);
        const Token expected = definition.sample({logits.begin(), logits.end()}, history);
        if (definition.ambiguous()) continue;
        CAPTURE(round, n_vocab, config.temperature, config.top_k, config.typical_p, config.top_p,
                config.min_p, config.top_n_sigma, config.xtc_probability, config.dry_multiplier);
        REQUIRE(found == expected);
        n_decided++;
    }
    CHECK(n_decided > 5000);
}

TEST_CASE("each filter alone draws what its definition says, at every place of the distribution") {
    Inputs inputs(8);
    const auto check = [&](const char* name, const auto& set) {
        CAPTURE(name);
        int n_decided = 0;
        for (int round = 0; round < 300; round++) {
            const std::size_t n_vocab = 2 + inputs.up_to(40);
            const std::vector<float> logits = inputs.logits(n_vocab);
            const std::vector<Token> history = inputs.history(30, n_vocab);
            SamplerConfig config;
            config.temperature = 1.0f;
            config.seed = inputs.up_to(1u << 30);
            set(config);
            std::unique_ptr<Sampler> sampler;
            REQUIRE(Sampler::create(config, &sampler).ok());
            REQUIRE(sampler->accept(history.data(), history.size()).ok());
            Token found = -1;
            REQUIRE(sampler->sample(logits.data(), n_vocab, &found).ok());
            Definition definition(config, config.seed);
            const Token expected = definition.sample({logits.begin(), logits.end()}, history);
            if (definition.ambiguous()) continue;
            REQUIRE(found == expected);
            n_decided++;
        }
        CHECK(n_decided > 200);
    };
    check("nothing", [](SamplerConfig&) {});
    check("repeat", [&](SamplerConfig& config) { config.repeat_penalty = inputs.between(0.5f, 3.0f); });
    check("frequency",
          [&](SamplerConfig& config) { config.frequency_penalty = inputs.between(-1.0f, 1.0f); });
    check("presence", [&](SamplerConfig& config) { config.presence_penalty = inputs.between(-3.0f, 3.0f); });
    check("dry", [&](SamplerConfig& config) { config.dry_multiplier = inputs.between(0.1f, 3.0f); });
    check("top_n_sigma", [&](SamplerConfig& config) { config.top_n_sigma = inputs.between(0.1f, 2.0f); });
    check("top_k",
          [&](SamplerConfig& config) { config.top_k = static_cast<std::uint32_t>(1 + inputs.up_to(20)); });
    check("typical", [&](SamplerConfig& config) { config.typical_p = inputs.between(0.1f, 0.99f); });
    check("top_p", [&](SamplerConfig& config) { config.top_p = inputs.between(0.1f, 0.99f); });
    check("min_p", [&](SamplerConfig& config) { config.min_p = inputs.between(0.01f, 0.9f); });
    check("xtc", [&](SamplerConfig& config) {
        config.xtc_probability = 1.0f;
        config.xtc_threshold = inputs.between(0.01f, 0.4f);
    });
}

TEST_CASE("a permutation of the vocabulary permutes what is kept") {
    Inputs inputs(9);
    std::mt19937 shuffle(1);
    for (int round = 0; round < 200; round++) {
        const std::size_t n = 2 + inputs.up_to(50);
        std::vector<float> logits(n), permuted(n);
        std::vector<Token> to(n);
        for (std::size_t i = 0; i < n; i++) {
            logits[i] = inputs.between(-5.0f, 5.0f);
            to[i] = static_cast<Token>(i);
        }
        std::shuffle(to.begin(), to.end(), shuffle);
        for (std::size_t i = 0; i < n; i++)
            permuted[static_cast<std::size_t>(to[i])] = logits[i];
        SamplerConfig config = inputs.config(n);
        config.repeat_penalty = 1.0f;
        config.frequency_penalty = config.presence_penalty = config.dry_multiplier = 0.0f;
        if (config.top_k == 0) config.top_k = static_cast<std::uint32_t>(n);  // then the best come first
        std::unique_ptr<Sampler> one, other;
        REQUIRE(Sampler::create(config, &one).ok());
        REQUIRE(Sampler::create(config, &other).ok());
        Token a = -1, b = -1;
        REQUIRE(one->sample(logits.data(), n, &a).ok());
        REQUIRE(other->sample(permuted.data(), n, &b).ok());
        CAPTURE(round, config.top_n_sigma, config.typical_p, config.top_p, config.min_p,
                config.xtc_probability);
        REQUIRE(to[static_cast<std::size_t>(a)] == b);
    }
}
