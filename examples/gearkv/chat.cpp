// gearkv chat: a conversation in the terminal, its cache compressed.
#include <unistd.h>

#include <chrono>
#include <ctime>
#include <iostream>

#include "command.hpp"
#include "conversation.hpp"
#include "failure.hpp"
#include "report.hpp"
#include "terminal.hpp"

namespace gearkv::tool {
namespace {

constexpr const char* help_text =
    "/system TEXT   begin anew with this system text; /system alone shows it\n"
    "/reset         begin anew\n"
    "/regen         take the last answer back and draw another one\n"
    "/stats         bytes of the cache beside fp16, tokens per second\n"
    "/save FILE     save conversation and cache\n"
    "/load FILE     go on with a saved conversation\n"
    "/help, /quit\n"
    "A line that begins with // is a question that begins with /. A \\ at its end joins a line with the "
    "next.\n"
    "Ctrl-C stops an answer; at the prompt, Ctrl-D or Ctrl-C twice leaves.\n";

ChatDate today() {
    const std::time_t now = std::time(nullptr);
    std::tm local = {};
    localtime_r(&now, &local);
    return {local.tm_year + 1900, local.tm_mon + 1, local.tm_mday};
}

// Tokens and seconds of one kind of work.
struct Speed {
    std::size_t n = 0;
    double seconds = 0;
    void add(std::size_t n_more, double more) {
        n += n_more;
        seconds += more;
    }
};

class Chat final : public Command {
  public:
    explicit Chat(CLI::App& parent)
        : Command(parent.add_subcommand("chat", "Talk with a model, its cache compressed")) {
        options_.kv = {"gear-4"};
        options_.chunk = SessionConfig().chunk;
        sampling_.config.temperature = 0.8f;
        sampling_.config.top_k = 40;
        sampling_.config.top_p = 0.95f;
        sampling_.config.min_p = 0.05f;
        add_model_option(*app_, options_);
        app_->add_option("-p,--prompt", prompt_, "Answer this one question and leave");
        app_->add_option("--system", system_, "System text, in place of the template's own");
        app_->add_option(
                "--template", template_,
                std::string("Chat template, in place of what the file has: ") + ChatTemplate::names())
            ->type_name("NAME");
        app_->add_flag("--no-think", no_think_,
                       "Answer without a thought before, where the template knows how");
        app_->add_option("-n", max_answer_, "Tokens of an answer at most; 0: what the context has room for")
            ->capture_default_str();
        app_->add_option("--load", load_, "Go on with a conversation saved by /save")->type_name("FILE");
        add_sampling_options(*app_, sampling_);
        add_draft_options(*app_, draft_);
        add_kv_option(*app_, options_, false);
        add_session_options(*app_, options_);
        add_memory_option(*app_, options_);
        add_json_option(*app_, options_);
    }

    void run() override {
        // A saved conversation has its own, unless one is asked for: then it must be the same.
        if (!load_.empty() && app_->count("--kv") == 0) options_.kv = {saved_spec(load_)};
        check_usage_of_options();
        Machine machine = open_machine(options_);
        const std::shared_ptr<const Model> model = load_model(options_);
        (void)fit_to_memory(*model, !load_.empty() || app_->count("--kv") > 0, machine, options_);
        const NamedSpec spec = read_specs(options_).at(0);
        ConversationConfig config;
        config.model = model;
        config.chat = choose_template(*model);
        config.options.date = today();
        config.options.thinking = !no_think_;
        const std::string suggested = take_suggestions(*app_, *model, sampling_);
        if (!suggested.empty() && talks_) remark("sampling as the file suggests: " + suggested);
        config.sampling = sampling_;
        config.seed = options_.seed;
        config.session = session_config(options_, spec.spec, machine);
        config.executor = machine.executor.get();
        config.max_answer = max_answer_;
        config.drafts = draft_;
        Conversation conversation(std::move(config), [this](const std::string& text) { remark(text); });
        if (app_->count("--system") > 0) conversation.set_system(&system_);
        if (!load_.empty()) conversation.load(load_);
        machine_ = &machine;
        spec_ = &spec;
        chat_ = &conversation;
        if (app_->count("--prompt") > 0) {
            ask(prompt_);
            check_interrupt();
        } else {
            listen();
        }
    }

  private:
    // Before a model is loaded for nothing.
    void check_usage_of_options() const {
        check_sizes(options_);
        std::unique_ptr<ChatTemplate> chat;
        if (!template_.empty()) check_usage(ChatTemplate::find(template_, &chat));
    }

    std::shared_ptr<const ChatTemplate> choose_template(const Model& model) const {
        std::unique_ptr<ChatTemplate> chat;
        if (!template_.empty()) {
            check_usage(ChatTemplate::find(template_, &chat));
            return chat;
        }
        const Status status = ChatTemplate::recognise(model.tokenizer().chat_template(), &chat);
        if (status.ok()) return chat;
        throw Failure(std::string(code_name(status.code())) + ": " + status.message() +
                      "; --template NAME takes one of: " + ChatTemplate::names());
    }

    // Beside the conversation.
    void remark(const std::string& text) const {
        std::cout << std::flush;
        std::cerr << quiet_.quiet() << for_terminal(text) << quiet_.none() << std::endl;
    }

    // One question after the other, until there are no more.
    void listen() {
        if (talks_)
            remark("template " + std::string(chat_name()) + ", kv " + spec_->text + ", context " +
                   grouped(chat_->session().n_ctx()) + "; /help tells more");
        LineReader reader;
        std::string line;
        bool leaving = false, at_end = false;
        std::size_t n_failed = 0;
        for (;;) {
            if (talks_) std::cerr << quiet_.prompt() << "> " << quiet_.none() << std::flush;
            const LineReader::Result result = reader.read(&line);
            at_end = result == LineReader::Result::end;
            if (at_end) break;
            if (result == LineReader::Result::interrupted) {
                if (leaving || !talks_) check_interrupt();
                take_interrupt();
                std::cerr << '\n';
                remark("Ctrl-C again, or Ctrl-D, leaves");
                leaving = true;
                continue;
            }
            leaving = false;
            if (line.find_first_not_of(" \t\n") == line.npos) continue;
            try {
                if (!act(line)) break;
            } catch (const Failure& error) {
                // A question that failed would be missed in all later answers, a command would not.
                if (!talks_ && (line[0] != '/' || line[1] == '/')) throw;
                remark(error.what());
                n_failed += 1;
            }
            if (!talks_) check_interrupt();
            take_interrupt();
        }
        if (talks_) {
            if (at_end) std::cerr << '\n';
        } else if (n_failed > 0) {
            throw Failure(grouped(n_failed) + (n_failed == 1 ? " command" : " commands") + " failed");
        }
    }

    // False when the line says to leave.
    bool act(const std::string& line) {
        if (line[0] != '/') return ask(line), true;
        if (line.rfind("//", 0) == 0) return ask(line.substr(1)), true;
        const std::size_t space = line.find_first_of(" \t");
        const std::string word = line.substr(0, space);
        const std::size_t begin = space == line.npos ? line.npos : line.find_first_not_of(" \t", space);
        std::string rest = begin == line.npos ? "" : line.substr(begin);
        rest.erase(rest.find_last_not_of(" \t") + 1);
        if (word == "/quit" || word == "/exit") return false;
        if (word == "/help") {
            std::cerr << help_text << std::flush;
        } else if (word == "/stats") {
            print_stats();
        } else if (word == "/reset") {
            chat_->reset();
            remark("a new conversation");
        } else if (word == "/regen") {
            show([&](const Conversation::Show& s) { return chat_->regenerate(s); });
        } else if (word == "/system") {
            change_system(rest);
        } else if (word == "/save") {
            save(rest);
        } else if (word == "/load") {
            if (rest.empty()) throw Failure("/load needs the name of a file");
            chat_->load(rest);
            remark(grouped(chat_->messages().size()) + " messages, " + grouped(chat_->session().n_tokens()) +
                   " tokens, loaded from " + rest);
        } else {
            throw Failure(word.substr(0, 64) +
                          " is unknown; /help lists what there is, and // begins a question with /");
        }
        return true;
    }

    void change_system(const std::string& text) {
        if (text.empty()) {
            const std::string now = chat_->system();
            remark(now.empty() ? "no system text" : now);
            return;
        }
        chat_->set_system(&text);
        remark("a new conversation with this system text");
    }

    void save(const std::string& path) {
        if (path.empty()) throw Failure("/save needs the name of a file");
        chat_->save(path);
        remark(grouped(chat_->session().n_tokens()) + " tokens saved in " + path);
    }

    void ask(const std::string& question) {
        show([&](const Conversation::Show& s) { return chat_->ask(question, s); });
    }

    template <class Ask>
    void show(const Ask& ask_model) {
        const auto print = [this](std::string_view text) {
            if (options_.json) return;
            std::cout << (terminal_ ? for_terminal(text) : std::string(text)) << std::flush;
        };
        const Answer answer = ask_model(print);
        last_ = answer;
        prefill_.add(answer.n_prompt - answer.n_reused, answer.prefill_seconds);
        decode_.add(answer.n_decoded, answer.decode_seconds);
        if (options_.json) {
            print_as_json(answer);
        } else {
            std::cout << std::endl;
        }
        if (answer.n_forgotten > 0)
            remark(grouped(answer.n_forgotten) + " of the oldest messages left the context to make room");
        const std::string_view stop = answer.stop;
        if (!options_.json && stop != "end of text" && stop != "stop string")
            remark("stopped: " + std::string(stop));
    }

    const char* chat_name() const { return chat_->chat().name(); }

    void print_stats() const {
        const Session& session = chat_->session();
        const CacheStats stats = session.cache().stats();
        std::ostream& out = std::cout;
        out << "context: " << grouped(session.n_tokens()) << " of " << grouped(session.n_ctx()) << " tokens, "
            << chat_->messages().size() << " messages\n";
        if (stats.n_tokens > 0) {
            const CacheReport report = report_cache(session.cache().config(), stats.bytes, stats.n_tokens);
            Table bytes({"cache", "bytes", "of fp16", "bits/element"});
            bytes.add({spec_->text, grouped(report.stored_bytes()), fixed(report.ratio(), 3),
                       fixed(report.bits_per_element(), 2)});
            bytes.add({"fp16", grouped(report.fp16_bytes()), "1.000", "16.00"});
            bytes.print(out);
            out << grouped(stats.compressed_tokens) << " of " << grouped(stats.n_tokens)
                << " tokens compressed";
            if (stats.compressed_tokens < stats.n_tokens && report.ratio() > 0.5)
                out << "; the last ones are in fp16, in a buffer of a length that does not grow";
            out << "\n";
        }
        Table speed({"", "tokens", "tokens/s", "last answer", "tokens/s"});
        speed.add({"prefill", grouped(prefill_.n), fixed(per_second(prefill_.n, prefill_.seconds), 1),
                   grouped(last_.n_prompt - last_.n_reused),
                   fixed(per_second(last_.n_prompt - last_.n_reused, last_.prefill_seconds), 1)});
        speed.add({"decode", grouped(decode_.n), fixed(per_second(decode_.n, decode_.seconds), 1),
                   grouped(last_.n_decoded), fixed(per_second(last_.n_decoded, last_.decode_seconds), 1)});
        speed.print(out);
        if (const SpeculationStats drafts = chat_->drafts(); drafts.n_drafted > 0)
            out << "drafts: " << describe(drafts) << '\n';
        out << std::flush;
    }

    void print_as_json(const Answer& answer) const {
        const Session& session = chat_->session();
        const CacheStats stats = session.cache().stats();
        const std::size_t n_prefilled = answer.n_prompt - answer.n_reused;
        Json json = start_json("chat", machine_);
        json["model"] = options_.model;
        json["kv"] = spec_->canonical;
        json["template"] = chat_name();
        json["text"] = answer.text;
        json["stop"] = answer.stop;
        json["prefill"] = {{"tokens", n_prefilled},
                           {"reused", answer.n_reused},
                           {"seconds", answer.prefill_seconds},
                           {"tokens_per_second", per_second(n_prefilled, answer.prefill_seconds)}};
        json["decode"] = {{"tokens", answer.n_decoded},
                          {"seconds", answer.decode_seconds},
                          {"tokens_per_second", per_second(answer.n_decoded, answer.decode_seconds)}};
        json["generated_tokens"] = answer.n_generated;
        json["forgotten_messages"] = answer.n_forgotten;
        json["cache"] = to_json(report_cache(session.cache().config(), stats.bytes, stats.n_tokens));
        json["cache"]["tokens"] = stats.n_tokens;
        json["cache"]["compressed_tokens"] = stats.compressed_tokens;
        json["cache"]["allocated_bytes"] = stats.bytes.bytes;
        print_json(json);
        std::cout << std::flush;
    }

    Options options_;
    SamplingOptions sampling_;
    DraftOptions draft_;
    std::string prompt_, system_, template_, load_;
    std::size_t max_answer_ = 0;
    bool no_think_ = false;
    Conversation* chat_ = nullptr;
    const Machine* machine_ = nullptr;
    const NamedSpec* spec_ = nullptr;
    Answer last_;
    Speed prefill_, decode_;
    bool terminal_ = isatty(STDOUT_FILENO) != 0;
    bool talks_ = isatty(STDIN_FILENO) != 0;
    Colours quiet_{STDERR_FILENO};
};

}  // namespace

std::unique_ptr<Command> add_chat(CLI::App& app) {
    return std::make_unique<Chat>(app);
}

}  // namespace gearkv::tool
