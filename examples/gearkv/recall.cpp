// gearkv recall: does the model still find a fact that lies far back in a compressed cache?
//
// Each line of the file is an object: bucket (nominal distance), distance (tokens from the fact to the
// question), tokens (of the prompt, BOS included), prompt, answer. Everything before the last line of the
// prompt is fed first, in chunks, and the question in a chunk of its own, so that the question and the answer
// see the fact as the cache holds it. Then tokens are decoded greedily; an answer counts when every byte of
// it is right.
#include <iostream>
#include <map>
#include <sstream>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

struct Case {
    std::uint64_t bucket = 0;
    std::string answer;
    std::vector<Token> context;   // BOS and all lines but the last
    std::vector<Token> question;  // the last line
};

struct Count {
    std::uint64_t n_cases = 0, n_exact = 0;
};

// One cache under test.
struct Outcome {
    std::map<std::uint64_t, Count> buckets;
    double bits = 0;    // bits per element times tokens, at the end of each case
    double weight = 0;  // tokens
};

class Recall final : public Command {
  public:
    explicit Recall(CLI::App& parent)
        : Command(parent.add_subcommand("recall", "Exact answers to questions about far-back facts")) {
        options_.kv = {"gear-4"};
        options_.chunk = 512;
        add_model_option(*app_, options_);
        app_->add_option("--file", file_, "Cases, one JSON object a line")->required();
        app_->add_option("--limit", n_limit_, "Cases per bucket; 0: all")
            ->check(in_range(0, UINT32_MAX))
            ->capture_default_str();
        add_kv_option(*app_, options_, true);
        add_session_options(*app_, options_);
        add_json_option(*app_, options_);
        add_progress_option(*app_, options_);
    }

    void run() override {
        const std::vector<NamedSpec> specs = read_specs(options_);
        Machine machine = open_machine(options_);
        model_ = load_model(options_);
        read_cases();
        check(Sampler::create({}, &greedy_));
        std::vector<Outcome> outcomes;
        for (const NamedSpec& spec : specs)
            outcomes.push_back(ask_all(spec, machine));
        options_.json ? print_as_json(specs, outcomes, machine) : print_as_text(specs, outcomes, machine);
    }

  private:
    void read_cases() {
        std::istringstream lines(read_text(file_));
        std::map<std::uint64_t, std::uint64_t> n_taken;
        std::string line;
        for (std::size_t number = 1; std::getline(lines, line); ++number) {
            check_interrupt();
            const std::string place = file_ + ":" + std::to_string(number) + ": ";
            Case a_case;
            std::string prompt;
            std::size_t n_expected = 0;
            try {
                const Json json = Json::parse(line);
                a_case.bucket = json.at("bucket").get<std::uint64_t>();
                a_case.answer = json.at("answer").get<std::string>();
                prompt = json.at("prompt").get<std::string>();
                n_expected = json.at("tokens").get<std::size_t>();
            } catch (const Json::exception& error) {
                throw Failure(place + error.what());
            }
            if (n_limit_ != 0 && n_taken[a_case.bucket]++ >= n_limit_) continue;
            if (a_case.answer.empty()) throw Failure(place + "an empty answer");
            split_prompt(place, prompt, n_expected, &a_case);
            cases_.push_back(std::move(a_case));
        }
        if (cases_.empty()) throw Failure(file_ + ": no cases");
    }

    void split_prompt(const std::string& place, const std::string& prompt, std::size_t n_expected,
                      Case* a_case) {
        std::vector<Token> tokens;
        check(model_->tokenizer().encode(prompt, {}, &tokens));
        if (tokens.size() != n_expected) {
            throw Failure(place + "the prompt is " + std::to_string(tokens.size()) +
                          " tokens, the file says " + std::to_string(n_expected) +
                          ": was it made for another tokenizer?");
        }
        // First token that ends behind the last line end.
        const std::size_t line_start = prompt.rfind('\n') == std::string::npos ? 0 : prompt.rfind('\n') + 1;
        std::string bytes;
        std::size_t n_context = 0;
        for (; n_context < tokens.size(); ++n_context) {
            check(model_->tokenizer().decode(tokens[n_context], &bytes));
            if (bytes.size() > line_start) break;
        }
        const auto middle = tokens.begin() + static_cast<std::ptrdiff_t>(n_context);
        a_case->context.assign(tokens.begin(), middle);
        a_case->question.assign(middle, tokens.end());
        if (a_case->context.empty() || a_case->question.empty()) {
            throw Failure(place + "expected a prompt of several lines that does not end in one");
        }
    }

    Outcome ask_all(const NamedSpec& spec, Machine& machine) {
        const std::unique_ptr<Session> session = open_session(model_, options_, spec.spec, machine);
        Outcome outcome;
        Progress progress(options_, "cases with " + spec.text, cases_.size());
        for (const Case& a_case : cases_) {
            Count& count = outcome.buckets[a_case.bucket];
            count.n_cases += 1;
            count.n_exact += ask(a_case, *session);
            const CacheStats stats = session->cache().stats();
            outcome.bits += stats.bits_per_element * static_cast<double>(stats.n_tokens);
            outcome.weight += static_cast<double>(stats.n_tokens);
            progress.step();
        }
        return outcome;
    }

    bool ask(const Case& a_case, Session& session) {
        session.reset();
        check(session.prefill(a_case.context.data(), a_case.context.size()));
        check(session.prefill(a_case.question.data(), a_case.question.size()));
        std::string said;
        // Every token but a control token says at least one byte.
        for (std::size_t i = 0; i < a_case.answer.size(); ++i) {
            check_interrupt();
            Token token;
            check(greedy_->sample(session.logits(), model_->params().n_vocab, &token));
            check(model_->tokenizer().decode(token, &said));
            if (said.size() >= a_case.answer.size()) break;
            if (a_case.answer.compare(0, said.size(), said) != 0) return false;
            check(session.decode(token));
        }
        return said.compare(0, a_case.answer.size(), a_case.answer) == 0;
    }

    void print_as_json(const std::vector<NamedSpec>& specs, const std::vector<Outcome>& outcomes,
                       const Machine& machine) const {
        Json json = start_json("recall", &machine);
        json["model"] = options_.model;
        json["file"] = file_;
        json["chunk"] = options_.chunk;
        for (std::size_t i = 0; i < specs.size(); ++i) {
            Json row = {{"kv", specs[i].canonical},
                        {"bits_per_element", outcomes[i].bits / outcomes[i].weight}};
            for (const auto& [bucket, count] : outcomes[i].buckets) {
                row["buckets"].push_back(
                    {{"bucket", bucket}, {"cases", count.n_cases}, {"exact", count.n_exact}});
            }
            json["results"].push_back(row);
        }
        print_json(json);
    }

    void print_as_text(const std::vector<NamedSpec>& specs, const std::vector<Outcome>& outcomes,
                       const Machine& machine) const {
        std::cout << grouped(cases_.size()) << " cases, chunk " << options_.chunk << ", level "
                  << level_name(machine.level) << ", threads " << machine.executor->n_threads()
                  << "; exact answers by distance in tokens\n\n";
        std::vector<std::string> header = {"kv"};
        for (const auto& [bucket, count] : outcomes[0].buckets)
            header.push_back(std::to_string(bucket));
        header.push_back("bits/element");
        Table table(header);
        for (std::size_t i = 0; i < specs.size(); ++i) {
            std::vector<std::string> row = {specs[i].text};
            for (const auto& [bucket, count] : outcomes[i].buckets) {
                row.push_back(std::to_string(count.n_exact) + "/" + std::to_string(count.n_cases));
            }
            row.push_back(fixed(outcomes[i].bits / outcomes[i].weight, 2));
            table.add(row);
        }
        table.print(std::cout);
    }

    Options options_;
    std::string file_;
    std::uint64_t n_limit_ = 0;
    std::shared_ptr<const Model> model_;
    std::unique_ptr<Sampler> greedy_;
    std::vector<Case> cases_;
};

}  // namespace

std::unique_ptr<Command> add_recall(CLI::App& app) {
    return std::make_unique<Recall>(app);
}

}  // namespace gearkv::tool
