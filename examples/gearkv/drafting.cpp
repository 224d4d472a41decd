#include "drafting.hpp"

#include <algorithm>

#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {

void add_draft_options(CLI::App& app, DraftOptions& options) {
    CLI::Option* draft =
        app.add_option("--draft", options.n_draft,
                       "Guess up to N tokens ahead, from what came before; the text stays as it is without, "
                       "but with --soft-cache")
            ->type_name("N")
            ->check(in_range(0, 63))
            ->capture_default_str();
    app.add_option("--draft-model", options.model,
                   "Guess by this smaller model of the same vocabulary instead")
        ->type_name("MODEL")
        ->needs(draft);
}

Drafting::Drafting(const DraftOptions& options, const Model& model, Executor& executor, SessionConfig& config)
    : n_draft_(options.n_draft) {
    if (n_draft_ == 0) return;
    config.rollback_tokens = n_draft_;
    config.chunk = std::max(config.chunk, n_draft_ + 1);
    if (options.model.empty()) return;
    std::shared_ptr<const Model> small;
    check(Model::load(options.model.c_str(), &small));
    SessionConfig drafts = config;
    drafts.max_cache_bytes = drafts.soft_cache_bytes = 0;
    const std::uint32_t n_ctx = config.n_ctx == 0 ? model.params().n_ctx : config.n_ctx;
    drafts.n_ctx = std::min(n_ctx, small->params().n_ctx);
    check(Session::create(small, drafts, executor, &drafter_));
}

std::unique_ptr<Speculation> Drafting::speculate(Session& session) const {
    SpeculationConfig config;
    config.n_draft = n_draft_;
    config.drafter = drafter_.get();
    std::unique_ptr<Speculation> speculation;
    check(Speculation::create(session, config, &speculation));
    return speculation;
}

std::string describe(const SpeculationStats& stats) {
    return grouped(stats.n_right) + " of " + grouped(stats.n_drafted) + " guesses right, " +
           grouped(stats.n_tokens) + " tokens in " + grouped(stats.n_passes) + " passes";
}

}  // namespace gearkv::tool
