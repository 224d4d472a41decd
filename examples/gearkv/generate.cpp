// gearkv generate: continue a text with a compressed cache, and show what it cost.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <iostream>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double per_second(std::size_t n, double seconds) {
    return seconds > 0 ? static_cast<double>(n) / seconds : 0.0;
}

// Control characters would drive the terminal: all but line ends and tabs are shown as \xHH.
std::string for_terminal(const std::string& bytes) {
    std::string text;
    for (const char c : bytes) {
        const auto byte = static_cast<unsigned char>(c);
        if ((byte >= 0x20 && byte != 0x7f) || c == '\n' || c == '\t') {
            text += c;
        } else {
            char escaped[8];
            std::snprintf(escaped, sizeof(escaped), "\\x%02X", byte);
            text += escaped;
        }
    }
    return text;
}

// What a run produced.
struct Generated {
    std::string text;
    std::size_t n_prompt = 0;
    std::size_t n_generated = 0;
    std::size_t n_decoded = 0;  // generated tokens that were fed back
    double prefill_seconds = 0;
    double decode_seconds = 0;    // sampling included
    const char* stop = "length";  // length, end of text, context full, interrupted
};

class Generate final : public Command {
  public:
    explicit Generate(CLI::App& parent)
        : Command(parent.add_subcommand("generate", "Continue a text and show speed and cache bytes")) {
        options_.kv = {"gear-4"};
        options_.chunk = SessionConfig().chunk;
        add_model_option(*app_, options_);
        CLI::Option_group* prompt = app_->add_option_group("prompt", "One of");
        prompt->add_option("-p,--prompt", prompt_, "The text to continue");
        prompt->add_option("--file", file_, "A file with the text to continue");
        CLI::Option* load =
            prompt->add_option("--load", load_, "Go on from a session saved by --save")->type_name("STATE");
        prompt->require_option(1);
        app_->add_flag("--map", map_, "Attend the loaded cache where it lies in the file")->needs(load);
        app_->add_option("--save", save_, "Save the session, cache and all, when done")->type_name("STATE");
        app_->add_option("-n", n_tokens_, "Tokens to generate")->capture_default_str();
        app_->add_option("--temperature", sampler_.temperature, "0 takes the likeliest token")
            ->capture_default_str();
        app_->add_option("--top-k", sampler_.top_k, "Sample from this many likeliest tokens; 0: off")
            ->capture_default_str();
        app_->add_option("--top-p", sampler_.top_p,
                         "Sample from the likeliest tokens of this total probability")
            ->capture_default_str();
        app_->add_option("--min-p", sampler_.min_p,
                         "Drop tokens below this share of the likeliest one's probability")
            ->capture_default_str();
        app_->add_flag("--ignore-eos", ignore_eos_, "Go on after the end of text");
        app_->add_option("--stats", stats_, "Where the table goes: stdout, stderr or none")
            ->check(CLI::IsMember({"stdout", "stderr", "none"}))
            ->capture_default_str();
        add_kv_option(*app_, options_, false);
        add_context_options(*app_, options_);
        add_machine_options(*app_, options_);
        add_json_option(*app_, options_);
    }

    void run() override {
        // A loaded session has its own, unless one is asked for: then it must be the same.
        if (!load_.empty() && app_->count("--kv") == 0) options_.kv = {saved_spec()};
        const NamedSpec spec = read_specs(options_).at(0);
        Machine machine = open_machine(options_);
        const std::shared_ptr<const Model> model = load_model(options_);
        const std::unique_ptr<Session> session = open(model, spec.spec, machine);
        const Generated result = generate(*model, *session);
        if (!save_.empty()) check(session->save(save_.c_str()));
        if (options_.json) {
            print_as_json(result, spec, *session, machine);
        } else if (stats_ != "none") {
            print_as_text(stats_ == "stdout" ? std::cout : std::cerr, result, spec, *session, machine);
        }
        check_interrupt();
    }

  private:
    std::string saved_spec() const {
        StateInfo info;
        check(inspect_state(load_.c_str(), &info));
        char text[max_spec_chars];
        check(format_spec(info.config.spec, text, sizeof(text)));
        return text;
    }

    std::unique_ptr<Session> open(const std::shared_ptr<const Model>& model, const KvSpec& spec,
                                  Machine& machine) const {
        if (load_.empty()) return open_session(model, options_, spec, machine);
        std::unique_ptr<Session> session;
        check(Session::load(load_.c_str(), model, session_config(options_, spec, machine),
                            map_ ? StateLoading::map : StateLoading::copy, *machine.executor, &session));
        if (session->logits() == nullptr) throw Failure("the saved session has no logits to go on from");
        return session;
    }

    Generated generate(const Model& model, Session& session) {
        const Tokenizer& tokenizer = model.tokenizer();
        sampler_.seed = options_.seed;
        std::unique_ptr<Sampler> sampler;
        check_usage(Sampler::create(sampler_, &sampler));
        Generated result;
        auto start = std::chrono::steady_clock::now();
        if (load_.empty()) {
            std::vector<Token> tokens;
            check(tokenizer.encode(file_.empty() ? prompt_ : read_text(file_), true, &tokens));
            result.n_prompt = tokens.size();
            start = std::chrono::steady_clock::now();
            check(session.prefill(tokens.data(), tokens.size()));
        }
        result.prefill_seconds = seconds_since(start);
        check_interrupt();
        start = std::chrono::steady_clock::now();
        while (result.n_generated < n_tokens_) {
            Token token;
            check(sampler->sample(session.logits(), model.params().n_vocab, &token));
            if (token == tokenizer.eos() && !ignore_eos_) {
                result.stop = "end of text";
                break;
            }
            result.n_generated += 1;
            show(tokenizer, token, &result.text);
            // What is saved goes on behind the last token.
            if (result.n_generated == n_tokens_ && save_.empty()) break;
            if (interrupted() || session.n_tokens() == session.n_ctx()) {
                result.stop = interrupted() ? "interrupted" : "context full";
                break;
            }
            check(session.decode(token));
            result.n_decoded += 1;
        }
        result.decode_seconds = seconds_since(start);
        if (!options_.json) std::cout << std::endl;
        return result;
    }

    void show(const Tokenizer& tokenizer, Token token, std::string* text) const {
        std::string piece;
        check(tokenizer.decode(token, &piece));
        *text += piece;
        if (!options_.json) std::cout << (terminal_ ? for_terminal(piece) : piece) << std::flush;
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
        out << '\n';
        print_bytes(out, report_cache(session.cache().config(), stats.bytes, stats.n_tokens));
        out << "bits per element: " << fixed(stats.bits_per_element, 2) << " ("
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
        json["prefill"] = {{"tokens", result.n_prompt},
                           {"seconds", result.prefill_seconds},
                           {"tokens_per_second", per_second(result.n_prompt, result.prefill_seconds)}};
        json["decode"] = {{"tokens", result.n_decoded},
                          {"seconds", result.decode_seconds},
                          {"tokens_per_second", per_second(result.n_decoded, result.decode_seconds)}};
        json["generated_tokens"] = result.n_generated;
        json["cache"] = to_json(report_cache(session.cache().config(), stats.bytes, stats.n_tokens));
        json["cache"]["bits_per_element"] = stats.bits_per_element;
        json["cache"]["tokens"] = stats.n_tokens;
        json["cache"]["compressed_tokens"] = stats.compressed_tokens;
        print_json(json);
    }

    Options options_;
    SamplerConfig sampler_;
    std::string prompt_, file_, load_, save_, stats_ = "stdout";
    bool map_ = false;
    std::size_t n_tokens_ = 128;
    bool ignore_eos_ = false;
    bool terminal_ = isatty(STDOUT_FILENO) != 0;
};

}  // namespace

std::unique_ptr<Command> add_generate(CLI::App& app) {
    return std::make_unique<Generate>(app);
}

}  // namespace gearkv::tool
