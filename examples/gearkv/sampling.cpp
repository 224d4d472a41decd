#include "sampling.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

// "TOKEN=BIAS", BIAS a number or -inf.
LogitBias read_bias(const std::string& text) {
    const std::size_t equals = text.find('=');
    char* end = nullptr;
    LogitBias bias;
    if (equals != std::string::npos && equals > 0) {
        const long token = std::strtol(text.c_str(), &end, 10);
        const bool whole = end == text.c_str() + equals && token >= 0 && token <= 0x7fffffff;
        bias.token = static_cast<Token>(token);
        bias.bias = std::strtof(text.c_str() + equals + 1, &end);
        if (whole && equals + 1 < text.size() && *end == '\0') return bias;
    }
    throw UsageError("--logit-bias " + text + ": expected TOKEN=BIAS, as in 13=-2.5 or 13=-inf");
}

// Tokens with any of these texts in them.
std::vector<Token> tokens_with(const Model& model, const std::vector<std::string>& texts) {
    std::vector<Token> tokens;
    const auto n_vocab = static_cast<Token>(model.params().n_vocab);
    for (Token token = 0; token < n_vocab; ++token) {
        std::string piece;
        check(model.tokenizer().decode(token, &piece));
        for (const std::string& text : texts) {
            if (text.empty() || piece.find(text) == std::string::npos) continue;
            tokens.push_back(token);
            break;
        }
    }
    return tokens;
}

constexpr std::string_view suggestion_prefix = "general.sampling.";

// A name that files use, the option it is a default of, and where it goes; counts below 0 have a meaning.
struct Suggestion {
    const char* name;
    const char* option;
    float SamplerConfig::*number;
    std::uint32_t SamplerConfig::*count;
    std::uint32_t below_zero;
};
constexpr Suggestion suggestions[] = {
    {"temp", "--temperature", &SamplerConfig::temperature, nullptr, 0},
    {"top_k", "--top-k", nullptr, &SamplerConfig::top_k, 0},
    {"top_p", "--top-p", &SamplerConfig::top_p, nullptr, 0},
    {"min_p", "--min-p", &SamplerConfig::min_p, nullptr, 0},
    {"xtc_probability", "--xtc-probability", &SamplerConfig::xtc_probability, nullptr, 0},
    {"xtc_threshold", "--xtc-threshold", &SamplerConfig::xtc_threshold, nullptr, 0},
    {"penalty_last_n", "--repeat-last-n", nullptr, &SamplerConfig::penalty_last_n, all_tokens},
    {"penalty_repeat", "--repeat-penalty", &SamplerConfig::repeat_penalty, nullptr, 0},
    {"penalty_freq", "--frequency-penalty", &SamplerConfig::frequency_penalty, nullptr, 0},
    {"penalty_present", "--presence-penalty", &SamplerConfig::presence_penalty, nullptr, 0},
};

// Whether the value is one that a sampler takes; then it is in the configuration.
bool set_suggestion(const Suggestion& suggestion, const std::string& text, SamplerConfig& config) {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return false;
    SamplerConfig alone;  // checked without the others
    if (suggestion.number != nullptr) {
        alone.*suggestion.number = static_cast<float>(value);
    } else if (value != std::floor(value) || value > 0x7fffffff) {
        return false;
    } else {
        alone.*suggestion.count = value < 0 ? suggestion.below_zero : static_cast<std::uint32_t>(value);
    }
    std::unique_ptr<Sampler> sampler;
    if (!Sampler::create(alone, &sampler).ok()) return false;
    if (suggestion.number != nullptr) {
        config.*suggestion.number = alone.*suggestion.number;
    } else {
        config.*suggestion.count = alone.*suggestion.count;
    }
    return true;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> suggested_sampling(const Model& model) {
    std::vector<std::pair<std::string, std::string>> found;
    for (const auto& [key, value] : model.metadata()) {
        if (std::string_view(key).starts_with(suggestion_prefix))
            found.emplace_back(key.substr(suggestion_prefix.size()), value);
    }
    return found;
}

std::string take_suggestions(const CLI::App& app, const Model& model, SamplingOptions& options) {
    std::string taken;
    for (const auto& suggested : suggested_sampling(model)) {
        const auto& [name, value] = suggested;
        const auto known = std::find_if(std::begin(suggestions), std::end(suggestions),
                                        [&](const Suggestion& s) { return s.name == suggested.first; });
        const bool is_known = known != std::end(suggestions);
        if (is_known && app.count(known->option) > 0) continue;
        if (is_known && set_suggestion(*known, value, options.config)) {
            taken += (taken.empty() ? "" : ", ") + name + " " + value;
        } else if (value != "0" || is_known) {
            note("the file suggests " + name + " " + in_one_line(value) +
                 " for sampling, which is not obeyed");
        }
    }
    return taken;
}

void add_sampling_options(CLI::App& app, SamplingOptions& options) {
    SamplerConfig& config = options.config;
    const auto add = [&](const char* name, auto& value, const char* help) {
        return app.add_option(name, value, help)->capture_default_str()->group("Sampling");
    };
    add("--temperature,--temp", config.temperature, "0 takes the likeliest token");
    add("--top-k", config.top_k, "Sample from this many likeliest tokens; 0: off");
    add("--top-p", config.top_p, "Sample from the likeliest tokens of this total probability; 1: off");
    add("--min-p", config.min_p, "Drop tokens below this share of the likeliest one's probability; 0: off");
    add("--typical", config.typical_p,
        "Sample from the tokens nearest to the entropy, of this total probability; 1: off");
    add("--top-n-sigma", config.top_n_sigma,
        "Drop tokens so many standard deviations of the logits below the likeliest; 0: off");
    add("--repeat-penalty", config.repeat_penalty, "Divides the logits of tokens that came lately; 1: off");
    add("--frequency-penalty", config.frequency_penalty,
        "Taken off for each time a token came lately; 0: off");
    add("--presence-penalty", config.presence_penalty, "Taken off when a token came lately; 0: off");
    add("--repeat-last-n", config.penalty_last_n, "How many last tokens that is, those of the prompt too");
    add("--dry-multiplier", config.dry_multiplier,
        "DRY: penalty on what would make a repetition longer; 0: off");
    add("--dry-base", config.dry_base, "DRY: factor for each token of the repetition beyond the allowed");
    add("--dry-allowed-length", config.dry_allowed_length, "DRY: shortest repetition with a penalty");
    app.add_option("--dry-last-n", config.dry_last_n, "DRY: how many last tokens count; all by default")
        ->group("Sampling");
    app.add_option("--dry-breaker", options.dry_breakers,
                   "DRY: text that ends a repetition, repeatable; a line end, : \" and * by default")
        ->type_name("TEXT")
        ->allow_extra_args(false)
        ->group("Sampling");
    add("--xtc-probability", config.xtc_probability,
        "XTC: how often all likely tokens but the last of them are dropped; 0: off");
    add("--xtc-threshold", config.xtc_threshold, "XTC: the probability of a likely token");
    app.add_option("--logit-bias", options.logit_bias,
                   "Add BIAS to a token's logit, -inf bans it; repeatable")
        ->type_name("TOKEN=BIAS")
        ->allow_extra_args(false)
        ->group("Sampling");
    app.add_option("--stop", options.stops, "End before this text comes; repeatable")
        ->type_name("TEXT")
        ->allow_extra_args(false);
    app.add_flag("--ignore-eos", options.ignore_eos, "Go on after the end of text");
}

std::unique_ptr<Sampler> make_sampler(const SamplingOptions& options, const Model& model,
                                      std::uint64_t seed) {
    SamplerConfig config = options.config;
    config.seed = seed;
    for (const std::string& text : options.logit_bias) {
        config.logit_bias.push_back(read_bias(text));
        const LogitBias& bias = config.logit_bias.back();
        if (static_cast<std::uint32_t>(bias.token) < model.params().n_vocab) continue;
        throw UsageError("--logit-bias " + text + ": the vocabulary has " +
                         std::to_string(model.params().n_vocab) + " tokens");
    }
    for (const Token token : model.tokenizer().suppressed())
        config.logit_bias.push_back({token, -std::numeric_limits<float>::infinity()});
    if (config.dry_multiplier > 0.0f) config.dry_breakers = tokens_with(model, options.dry_breakers);
    std::unique_ptr<Sampler> sampler;
    check_usage(Sampler::create(config, &sampler));
    return sampler;
}

std::unique_ptr<StopMatcher> make_stop_matcher(const SamplingOptions& options) {
    std::unique_ptr<StopMatcher> matcher;
    check_usage(StopMatcher::create(options.stops, &matcher));
    return matcher;
}

}  // namespace gearkv::tool
