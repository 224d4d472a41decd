// How the next token is chosen and what ends a text: options of the commands that generate.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gearkv/decoder.hpp"

namespace gearkv::tool {

struct SamplingOptions {
    SamplerConfig config;                 // but for what needs a vocabulary, and the seed
    std::vector<std::string> logit_bias;  // TOKEN=BIAS
    std::vector<std::string> dry_breakers = {"\n", ":", "\"", "*"};
    std::vector<std::string> stops;
    bool ignore_eos = false;
};

// Defaults are what `options` holds at that moment.
void add_sampling_options(CLI::App& app, SamplingOptions& options);

// What a file suggests, `general.sampling.NAME`: names and values as text.
std::vector<std::pair<std::string, std::string>> suggested_sampling(const Model& model);
// Puts what the file suggests into the options of a command, but for what its command line gives; what there
// is no option for, or is no value of one, is noted on stderr. Returns what was taken: "temp 0.6, top_k 20".
std::string take_suggestions(const CLI::App& app, const Model& model, SamplingOptions& options);

// Throw UsageError.
std::unique_ptr<Sampler> make_sampler(const SamplingOptions& options, const Model& model, std::uint64_t seed);
std::unique_ptr<StopMatcher> make_stop_matcher(const SamplingOptions& options);

}  // namespace gearkv::tool
