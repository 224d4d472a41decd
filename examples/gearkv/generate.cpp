// gearkv generate: continue a text with a compressed cache, and show what it cost.
#include <unistd.h>

#include <chrono>
#include <iostream>

#include "command.hpp"
#include "drafting.hpp"
#include "failure.hpp"
#include "report.hpp"
#include "sampling.hpp"

namespace gearkv::tool {
namespace {

// What a run produced.
struct Generated {
    std::string text;
    std::size_t n_prompt = 0;  // tokens fed
    std::size_t n_reused = 0;  // tokens of the prompt that a loaded session had already
    std::size_t n_generated = 0;
    std::size_t n_decoded = 0;  // generated tokens that were fed back
    double prefill_seconds = 0;
    double decode_seconds = 0;    // sampling included
    SpeculationStats drafts;
    const char* stop = "length";  // length, end of text, stop text, context full, interrupted
};

class Generate final : public Command {
  public:
    explicit Generate(CLI::App& parent)
        : Command(parent.add_subcommand("generate", "Continue a text and show speed and cache bytes")) {
        options_.kv = {"gear-4"};
        options_.chunk = SessionConfig().chunk;
        add_model_option(*app_, options_);
        CLI::Option_group* begin = app_->add_option_group("beginning", "What the text begins with");
        CLI::Option* prompt = begin->add_option("-p,--prompt", prompt_, "The text to continue");
        begin->add_option("--file", file_, "A file with the text to continue")->excludes(prompt);
        CLI::Option* load = begin
                                ->add_option("--load", load_,
                                             "Go on from a session saved by --save; with a text, compute "
                                             "only what the session does not begin with")
                                ->type_name("STATE");
        begin->require_option(1, 2);
        app_->add_flag("--map", map_, "Attend the loaded cache where it lies in the file")->needs(load);
        app_->add_option("--save", save_, "Save the session, cache and all, when done or interrupted")
            ->type_name("STATE");
        app_->add_option("-n", n_tokens_, "Tokens to generate")->capture_default_str();
        add_sampling_options(*app_, sampling_);
        add_draft_options(*app_, draft_);
        app_->add_option("--stats", stats_, "Where the table goes: stdout, stderr or none")
            ->check(CLI::IsMember({"stdout", "stderr", "none"}))
            ->capture_default_str();
        add_kv_option(*app_, options_, false);
        add_session_options(*app_, options_);
        add_memory_option(*app_, options_);
        add_json_option(*app_, options_);
    }

    void run() override {
        // A loaded session has its own, unless one is asked for: then it must be the same.
        if (!load_.empty() && app_->count("--kv") == 0) options_.kv = {saved_spec(load_)};
        check_sizes(options_);
        Machine machine = open_machine(options_);
        const std::shared_ptr<const Model> model = load_model(options_);
        fit_ = fit_to_memory(*model, !load_.empty() || app_->count("--kv") > 0, machine, options_);
        const NamedSpec spec = read_specs(options_).at(0);
        const std::string suggested = take_suggestions(*app_, *model, sampling_);
        if (!suggested.empty()) note("sampling as the file suggests: " + suggested);
        const std::unique_ptr<Sampler> sampler = make_sampler(sampling_, *model, options_.seed);
        const std::unique_ptr<StopMatcher> stops = make_stop_matcher(sampling_);
        SessionConfig config = session_config(options_, spec.spec, machine);
        const Drafting drafting(draft_, *model, *machine.executor, config);
        const std::unique_ptr<Session> session = open(model, config, machine, *sampler);
        if (!save_.empty()) check(session->check_save(save_.c_str()));
        Generated result;
        feed_prompt(*model, *session, *sampler, result);
        const std::unique_ptr<Speculation> decoder = drafting.speculate(*session);
        generate(*model, *decoder, session->n_ctx(), *sampler, *stops, result);
        save(*session, *sampler);
        if (options_.json) {
            print_as_json(result, spec, *session, machine);
        } else if (stats_ != "none") {
            print_as_text(stats_ == "stdout" ? std::cout : std::cerr, result, spec, *session, machine);
        }
        check_interrupt();
    }

  private:
    std::unique_ptr<Session> open(const std::shared_ptr<const Model>& model, const SessionConfig& config,
                                  Machine& machine, Sampler& sampler) const {
        std::unique_ptr<Session> session;
        if (load_.empty()) {
            check(Session::create(model, config, *machine.executor, &session));
            return session;
        }
        // Random choices go on too, unless there is a new seed for them.
        const LoadedAttachments attached = {app_->count("--seed") == 0 ? &sampler : nullptr, nullptr};
        check(Session::load(load_.c_str(), model, config, map_ ? StateLoading::map : StateLoading::copy,
                            *machine.executor, &session, attached));
        return session;
    }

    void save(const Session& session, const Sampler& sampler) const {
        if (save_.empty()) return;
        Status warning;
        check(session.save(save_.c_str(), {&sampler, {}}, &warning));
        if (!warning.ok()) note(std::string("saved, but ") + warning.message());
    }

    // What the text begins with; without a text the tokens that a loaded session has.
    std::vector<Token> read_prompt(const Model& model, const Session& session) const {
        std::vector<Token> tokens = session.tokens();
        if (prompt_.empty() && file_.empty() && !load_.empty()) {
            if (tokens.empty()) throw Failure("the saved session has no tokens to go on from");
            return tokens;
        }
        check(model.tokenizer().encode(file_.empty() ? prompt_ : read_text(file_), {}, &tokens));
        if (tokens.size() > model.params().n_ctx) {
            note("a prompt of " + grouped(tokens.size()) + " tokens, the model was trained on " +
                 grouped(model.params().n_ctx) + ": expect it to lose the thread");
        }
        return tokens;
    }

    void feed_prompt(const Model& model, Session& session, Sampler& sampler, Generated& result) const {
        const std::vector<Token> tokens = read_prompt(model, session);
        const auto start = std::chrono::steady_clock::now();
        std::uint64_t n_reused = 0;
        const Status status = session.sync(tokens.data(), tokens.size(), &n_reused);
        if (status.code() == Code::interrupted) save(session, sampler);
        check(status);
        result.prefill_seconds = seconds_since(start);
        result.n_reused = load_.empty() ? 0 : n_reused;
        result.n_prompt = tokens.size() - n_reused;
        sampler.forget();
        check(sampler.accept(tokens.data(), tokens.size()));
    }

    void generate(const Model& model, Speculation& decoder, std::uint32_t n_ctx, Sampler& sampler,
                  StopMatcher& stops, Generated& result) {
        const Tokenizer& tokenizer = model.tokenizer();
        TextStream stream(model.shared_tokenizer(), {false, false});
        const bool saves = !save_.empty();
        const auto start = std::chrono::steady_clock::now();
        while (result.n_generated < n_tokens_) {
            const bool full = decoder.n_tokens() == n_ctx;
            if (interrupted() || (full && saves)) {
                result.stop = interrupted() ? "interrupted" : "context full";
                break;
            }
            Token token;
            check(sampler.sample(decoder.logits(), model.params().n_vocab, &token));
            if (tokenizer.is_end_of_generation(token) && !sampling_.ignore_eos) {
                result.stop = "end of text";
                break;
            }
            result.n_generated += 1;
            check(sampler.accept(token));
            std::string piece;
            check(stream.push(token, &piece));
            show(piece, stops, result.text);
            if (stops.stopped_by() >= 0) result.stop = "stop text";
            const bool last = result.n_generated == n_tokens_ || stops.stopped_by() >= 0;
            // What is saved goes on behind the last token.
            if (last && !saves) break;
            if (full) {
                result.stop = "context full";
                break;
            }
            check(decoder.decode(token));
            result.n_decoded += 1;
            if (last) break;
        }
        check(decoder.settle());
        result.decode_seconds = seconds_since(start);
        result.drafts = decoder.stats();
        std::string half, rest;
        check(stream.flush(&half));
        show(half, stops, result.text);
        check(stops.finish(&rest));
        print(rest, result.text);
        if (!options_.json) std::cout << std::endl;
    }

    // What is surely no part of a stop text.
    void show(const std::string& piece, StopMatcher& stops, std::string& text) const {
        std::string released;
        check(stops.feed(piece, &released));
        print(released, text);
    }

    void print(const std::string& bytes, std::string& text) const {
        text += bytes;
        if (!options_.json) std::cout << (terminal_ ? for_terminal(bytes) : bytes) << std::flush;
    }

    static void print_as_text(std::ostream& out, const Generated& result, const NamedSpec& spec,
                              const Session& session, const Machine& machine) {
        const CacheStats stats = session.cache().stats();
        out << "\nkv " << spec.text << ", level " << level_name(machine.level) << ", threads "
            << machine.executor->n_threads() << ", stopped by " << result.stop << "\n\n";
        Table speed({"", "tokens", "seconds", "tokens/s"});
        speed.add({"prefill", grouped(result.n_prompt), fixed(result.prefill_seconds, 3),
                   fixed(per_second(result.n_prompt, result.prefill_seconds), 1)});
        speed.add({"decode", grouped(result.n_decoded), fixed(result.decode_seconds, 3),
                   fixed(per_second(result.n_decoded, result.decode_seconds), 1)});
        speed.print(out);
        if (result.drafts.n_drafted > 0) out << "drafts: " << describe(result.drafts) << '\n';
        out << '\n';
        const CacheReport report = report_cache(session.cache().config(), stats.bytes, stats.n_tokens);
        print_bytes(out, report);
        out << "bits per element: " << fixed(report.bits_per_element(), 2) << ", "
            << fixed(stats.bits_per_element, 2) << " without the room for tokens to come ("
            << grouped(stats.compressed_tokens) << " of " << grouped(stats.n_tokens)
            << " tokens compressed)\n";
    }

    void print_as_json(const Generated& result, const NamedSpec& spec, const Session& session,
                       const Machine& machine) const {
        const CacheStats stats = session.cache().stats();
        Json json = start_json("generate", &machine);
        json["model"] = options_.model;
        json["kv"] = spec.canonical;
        json["text"] = result.text;
        json["stop"] = result.stop;
        json["reused_tokens"] = result.n_reused;
        json["prefill"] = {{"tokens", result.n_prompt},
                           {"seconds", result.prefill_seconds},
                           {"tokens_per_second", per_second(result.n_prompt, result.prefill_seconds)}};
        json["decode"] = {{"tokens", result.n_decoded},
                          {"seconds", result.decode_seconds},
                          {"tokens_per_second", per_second(result.n_decoded, result.decode_seconds)}};
        json["drafts"] = {{"drafted", result.drafts.n_drafted},
                          {"right", result.drafts.n_right},
                          {"passes", result.drafts.n_passes}};
        json["generated_tokens"] = result.n_generated;
        json["ctx"] = session.n_ctx();
        json["peak_resident_bytes"] = peak_resident_bytes();
        if (fit_) json["fit"] = to_json(*fit_, options_.memory_bytes);
        json["cache"] = to_json(report_cache(session.cache().config(), stats.bytes, stats.n_tokens));
        json["cache"]["stored_bits_per_element"] = json["cache"]["bits_per_element"];  // with room for more
        json["cache"]["bits_per_element"] = stats.bits_per_element;
        json["cache"]["tokens"] = stats.n_tokens;
        json["cache"]["compressed_tokens"] = stats.compressed_tokens;
        print_json(json);
    }

    Options options_;
    SamplingOptions sampling_;
    DraftOptions draft_;
    std::optional<Fit> fit_;
    std::string prompt_, file_, load_, save_, stats_ = "stdout";
    bool map_ = false;
    std::size_t n_tokens_ = 128;
    bool terminal_ = isatty(STDOUT_FILENO) != 0;
};

}  // namespace

std::unique_ptr<Command> add_generate(CLI::App& app) {
    return std::make_unique<Generate>(app);
}

}  // namespace gearkv::tool
