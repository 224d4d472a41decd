// Drafts: options of the commands that generate, and what decodes with them.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "options.hpp"

namespace gearkv::tool {

struct DraftOptions {
    std::uint32_t n_draft = 0;  // 0: none
    std::string model;          // empty: prompt lookup
};
void add_draft_options(CLI::App& app, DraftOptions& options);

// Sessions of the draft model and of the other one's tokens.
class Drafting {
  public:
    // Loads the draft model. `config` is that of the sessions that decode, and gets what drafts need. Throws
    // Failure.
    Drafting(const DraftOptions& options, const Model& model, Executor& executor, SessionConfig& config);
    // Decodes with drafts, or without where there are to be none. Throws Failure.
    std::unique_ptr<Speculation> speculate(Session& session) const;

  private:
    std::uint32_t n_draft_;
    std::unique_ptr<Session> drafter_;
};

// "12 of 40 guesses right, 100 tokens in 88 passes"
std::string describe(const SpeculationStats& stats);

}  // namespace gearkv::tool
