// gearkv bench: tokens a second of prompts (pp) and of generation (tg) at several depths of the context.
//
// A session of each SPEC is filled to a depth once, and every repetition runs on a fork of it. All SPECs and
// thread counts take turns in rounds, after one that is not counted, so that what disturbs the machine
// disturbs all of them alike; generation comes right behind a plain read of memory, of which it gets its
// share.
#include <algorithm>
#include <iostream>
#include <random>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"
#include "roofline.hpp"

namespace gearkv::tool {
namespace {

struct Spread {
    double median = 0, least = 0, most = 0;
};

Spread spread_of(std::vector<double> values) {
    if (values.empty()) return {};
    std::sort(values.begin(), values.end());
    const std::size_t half = values.size() / 2;
    const double median = values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
    return {median, values.front(), values.back()};
}

Json to_json(const Spread& spread) {
    return {{"median", spread.median}, {"min", spread.least}, {"max", spread.most}};
}

// One line of the table.
struct TimedCase {
    const NamedSpec* spec = nullptr;
    std::size_t machine = 0;
    bool generates = false;  // tg, else pp
    std::uint32_t n_tokens = 0;
    std::uint32_t depth = 0;
    std::uint64_t read_bytes = 0;  // of weights and cache, by the last token of tg
    std::vector<double> rates;     // tokens a second, of every round
    std::vector<double> shares;    // of the roofline, of every round; tg only

    std::string name() const { return (generates ? "tg " : "pp ") + std::to_string(n_tokens); }
};

// What a session holds that has a depth.
struct Holding {
    const NamedSpec* spec = nullptr;
    std::uint32_t depth = 0;
    std::uint64_t cache_bytes = 0;
    std::uint64_t scratch_bytes = 0;
};

class Bench final : public Command {
  public:
    explicit Bench(CLI::App& parent)
        : Command(parent.add_subcommand("bench", "Tokens a second, of prompts and generated")) {
        options_.kv = {"gear-4"};
        options_.chunk = SessionConfig().chunk;
        add_model_option(*app_, options_);
        const auto add_list = [&](const char* names, std::vector<std::uint32_t>& list, const char* help) {
            app_->add_option(names, list, help)
                ->delimiter(',')
                ->check(in_range(0, most_tokens))
                ->type_name("N,...")
                ->capture_default_str();
        };
        add_list("-p,--prompt", prompts_, "Tokens of prompts, each a test pp; 0: none");
        add_list("-n,--generate", generated_, "Generated tokens, each a test tg; 0: none");
        add_list("-d,--depth", depths_, "Tokens that are in the context before a test");
        app_->add_option("-t,--threads", threads_, "Threads; 0: one per processor")
            ->delimiter(',')
            ->check(in_range(0, 1024))
            ->type_name("N,...")
            ->capture_default_str();
        app_->add_option("-r,--repetitions", n_rounds_, "Rounds that count; their median is told")
            ->check(in_range(1, 1000))
            ->capture_default_str();
        add_output_option(*app_, format_);
        add_kv_option(*app_, options_, true);
        app_->add_option("--chunk", options_.chunk, "Prompt tokens fed at once")
            ->check(in_range(1, 1 << 20))
            ->capture_default_str();
        app_->add_option("--level", options_.level,
                         "Instruction set level; automatic: GEARKV_LEVEL, else the best here")
            ->type_name("LEVEL")
            ->capture_default_str();
        app_->add_option("--seed", options_.seed, "Of the tokens, which are random")
            ->check(in_range(0, UINT64_MAX))
            ->capture_default_str();
        add_products_option(*app_, options_);
        add_json_option(*app_, options_);
        add_progress_option(*app_, options_);
    }

    void run() override {
        if (options_.json) format_ = "json";
        specs_ = read_specs(options_);
        sort_lists();
        for (const unsigned n : threads_) {
            options_.n_threads = n;
            machines_.push_back(open_machine(options_));
        }
        rooflines_.resize(machines_.size());
        const std::shared_ptr<const Model> model = load_model(options_);
        set_context();
        if (options_.n_ctx > model->params().n_ctx) {
            note("up to " + grouped(options_.n_ctx) + " tokens, the model was trained on " +
                 grouped(model->params().n_ctx) + ": speeds alone mean anything there");
        }
        n_vocab_ = model->params().n_vocab;
        weight_bytes_ = weights_of_a_step(*model);
        const Roofline roofline(weight_bytes_);
        std::vector<std::unique_ptr<Session>> bases;
        for (const NamedSpec& spec : specs_)
            bases.push_back(open_session(model, options_, spec.spec, machines_.back()));
        Progress progress(options_, "tests run", n_tests() * depths_.size() * (n_rounds_ + std::uint64_t{1}));
        for (const std::uint32_t depth : depths_) {
            for (const auto& base : bases)
                fill(*base, depth);
            measure(bases, depth, roofline, &progress);
            hold(*model, bases, depth);
        }
        print(*model);
    }

  private:
    std::size_t n_tests() const {
        return specs_.size() * machines_.size() * (prompts_.size() + generated_.size());
    }

    // Depths are reached one after the other.
    void sort_lists() {
        std::sort(depths_.begin(), depths_.end());
        depths_.erase(std::unique(depths_.begin(), depths_.end()), depths_.end());
        std::erase(prompts_, 0u);
        std::erase(generated_, 0u);
        if (prompts_.empty() && generated_.empty())
            throw UsageError("-p 0 and -n 0 leave nothing to measure");
    }

    void set_context() {
        std::uint64_t n = 0;
        for (const std::uint32_t prompt : prompts_)
            n = std::max<std::uint64_t>(n, prompt);
        for (const std::uint32_t generated : generated_)
            n = std::max<std::uint64_t>(n, std::uint64_t{generated} + 1);
        n += depths_.back();
        if (n > most_tokens)
            throw UsageError("depth and test take " + std::to_string(n) + " tokens, expected at most " +
                             std::to_string(most_tokens));
        options_.n_ctx = static_cast<std::uint32_t>(n);
    }

    // All but an embedding that is not the output too: of that a token reads one row.
    static std::uint64_t weights_of_a_step(const Model& model) {
        std::uint64_t n_bytes = 0, embedding = 0;
        bool own_output = false;
        for (const TensorInfo& tensor : model.tensors()) {
            n_bytes += tensor.n_bytes;
            if (tensor.name == "token_embd.weight") embedding = tensor.n_bytes;
            own_output = own_output || tensor.name == "output.weight";
        }
        return own_output ? n_bytes - embedding : n_bytes;
    }

    // What attention reads: blocks, and of the buffers what is filled.
    static std::uint64_t read_bytes(const Cache& cache) {
        const CacheConfig& config = cache.config();
        const CacheBytes bytes = cache.stats().bytes;
        const std::uint64_t row = std::uint64_t{config.n_kv_heads} * (config.key_dim + config.value_dim) * 2;
        std::uint64_t n_bytes = bytes.keys.bytes + bytes.values.bytes;
        for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
            LayerStats stats;
            check(cache.layer_stats(layer, &stats));
            const std::uint64_t elsewhere = stats.n_forgotten + stats.n_closed;
            n_bytes += stats.n_tokens > elsewhere ? (stats.n_tokens - elsewhere) * row : 0;
        }
        return n_bytes;
    }

    std::vector<Token> draw_tokens(std::uint64_t from, std::size_t n, std::uint32_t n_vocab) const {
        std::mt19937_64 random(options_.seed + from);
        std::vector<Token> tokens(n);
        for (Token& token : tokens)
            token = static_cast<Token>(random() % n_vocab);
        return tokens;
    }

    void fill(Session& session, std::uint32_t depth) {
        if (session.n_tokens() == depth) return;
        const std::vector<Token> tokens =
            draw_tokens(session.n_tokens(), depth - session.n_tokens(), n_vocab_);
        check(session.prefill(tokens.data(), tokens.size()));
    }

    void measure(const std::vector<std::unique_ptr<Session>>& bases, std::uint32_t depth,
                 const Roofline& roofline, Progress* progress) {
        std::vector<TimedCase> cases;
        std::vector<const Session*> base_of;
        for (std::size_t s = 0; s < specs_.size(); ++s) {
            for (std::size_t machine = 0; machine < machines_.size(); ++machine) {
                for (const bool generates : {false, true}) {
                    for (const std::uint32_t n : generates ? generated_ : prompts_) {
                        cases.push_back({&specs_[s], machine, generates, n, depth, 0, {}, {}});
                        base_of.push_back(bases[s].get());
                    }
                }
            }
        }
        for (std::uint32_t round = 0; round <= n_rounds_; ++round) {
            for (std::size_t i = 0; i < cases.size(); ++i) {
                TimedCase& one = cases[i];
                const double read = one.generates ? roofline.measure(*machines_[one.machine].executor) : 0.0;
                const double rate = run_once(*base_of[i], &one);
                progress->step();
                if (round == 0) continue;
                one.rates.push_back(rate);
                if (!one.generates) continue;
                rooflines_[one.machine].push_back(read);
                one.shares.push_back(read > 0 ? rate * static_cast<double>(one.read_bytes) / read : 0.0);
            }
        }
        cases_.insert(cases_.end(), cases.begin(), cases.end());
    }

    // Tokens a second.
    double run_once(const Session& base, TimedCase* one) const {
        std::unique_ptr<Session> session;
        check(base.fork(*machines_[one->machine].executor, &session));
        const std::vector<Token> tokens =
            draw_tokens(most_tokens + std::uint64_t{one->depth}, one->n_tokens + std::size_t{1}, n_vocab_);
        if (!one->generates) {
            const auto start = std::chrono::steady_clock::now();
            check(session->prefill(tokens.data(), one->n_tokens));
            return per_second(one->n_tokens, seconds_since(start));
        }
        // The fork copies what it changes, and touches its memory first.
        check(session->decode(tokens.back()));
        const auto start = std::chrono::steady_clock::now();
        for (std::size_t i = 0; i < one->n_tokens; ++i) {
            check_interrupt();
            check(session->decode(tokens[i]));
        }
        const double seconds = seconds_since(start);
        one->read_bytes = weight_bytes_ + read_bytes(session->cache());
        return per_second(one->n_tokens, seconds);
    }

    void hold(const Model& model, const std::vector<std::unique_ptr<Session>>& bases, std::uint32_t depth) {
        for (std::size_t i = 0; i < specs_.size(); ++i) {
            Holding holding = {&specs_[i], depth, 0, 0};
            const CacheBytes bytes = bases[i]->cache().stats().bytes;
            holding.cache_bytes = bytes.bytes - bytes.scratch;
            SessionBytes planned;
            check(session_bytes(model, session_config(options_, specs_[i].spec, machines_.back()),
                                *machines_.back().executor, &planned));
            holding.scratch_bytes = planned.scratch;
            holdings_.push_back(holding);
        }
    }

    std::vector<std::string> cells_of(const TimedCase& one) const {
        const Spread rate = spread_of(one.rates);
        return {one.spec->text,
                std::to_string(machines_[one.machine].executor->n_threads()),
                one.name(),
                grouped(one.depth),
                fixed(rate.median, 1),
                fixed(rate.least, 1) + " - " + fixed(rate.most, 1),
                one.generates ? fixed(100 * spread_of(one.shares).median, 0) + " %" : ""};
    }

    void print(const Model& model) const {
        if (format_ == "json") return print_as_json(model);
        if (format_ == "csv") return print_as_csv();
        const bool md = format_ == "md";
        const auto show = [&](const std::vector<std::vector<std::string>>& rows) {
            Table table(rows[0]);
            for (std::size_t i = 1; i < rows.size(); ++i)
                table.add(rows[i]);
            md ? table.print_markdown(std::cout) : table.print(std::cout);
        };
        std::cout << for_terminal(options_.model) << ": " << model.params().family << ", "
                  << grouped(model.params().n_parameters) << " parameters, a token reads "
                  << grouped(weight_bytes_) << " bytes of weights\nlevel " << level_name(machines_[0].level)
                  << ", " << n_rounds_ << " rounds: median, least - most; chunks of " << options_.chunk
                  << '\n';
        for (std::size_t i = 0; i < machines_.size(); ++i) {
            if (rooflines_[i].empty()) continue;
            const Spread read = spread_of(rooflines_[i]);
            std::cout << (i == 0 ? "roofline, a plain read of memory: " : "; ") << fixed(read.median / 1e9, 1)
                      << " GB/s (" << fixed(read.least / 1e9, 1) << " - " << fixed(read.most / 1e9, 1)
                      << ") with " << machines_[i].executor->n_threads() << " threads";
        }
        std::cout << (generated_.empty() ? "\n" : "\n\n");
        std::vector<std::vector<std::string>> rows = {
            {"kv", "threads", "test", "depth", "tokens/s", "spread", "of roofline"}};
        for (const TimedCase& one : cases_)
            rows.push_back(cells_of(one));
        show(rows);
        std::cout << '\n';
        rows = {{"bytes", "depth", "weights", "cache", "scratch"}};
        for (const Holding& holding : holdings_) {
            rows.push_back({holding.spec->text, grouped(holding.depth), grouped(model_bytes(model)),
                            grouped(holding.cache_bytes), grouped(holding.scratch_bytes)});
        }
        show(rows);
        std::cout << "\nmost resident at any time, with forks and the buffer of the roofline: "
                  << grouped(peak_resident_bytes()) << " bytes\n";
    }

    static std::uint64_t model_bytes(const Model& model) {
        std::uint64_t n_bytes = 0;
        for (const TensorInfo& tensor : model.tensors())
            n_bytes += tensor.n_bytes;
        return n_bytes;
    }

    void print_as_csv() const {
        std::cout << "kv,threads,test,tokens,depth,tokens_per_second,least,most,roofline_share,read_bytes\n";
        for (const TimedCase& one : cases_) {
            const Spread rate = spread_of(one.rates);
            // A SPEC may have commas of its own.
            std::cout << '"' << one.spec->canonical << "\"," << machines_[one.machine].executor->n_threads()
                      << (one.generates ? ",tg," : ",pp,") << one.n_tokens << ',' << one.depth << ','
                      << fixed(rate.median, 3) << ',' << fixed(rate.least, 3) << ',' << fixed(rate.most, 3)
                      << ',';
            if (one.generates) std::cout << fixed(spread_of(one.shares).median, 4) << ',' << one.read_bytes;
            std::cout << (one.generates ? "\n" : ",\n");
        }
    }

    void print_as_json(const Model& model) const {
        Json json = start_json("bench");
        json["level"] = level_name(machines_[0].level);
        json["model"] = options_.model;
        json["family"] = model.params().family;
        json["parameters"] = model.params().n_parameters;
        json["chunk"] = options_.chunk;
        json["repetitions"] = n_rounds_;
        json["weight_bytes_per_token"] = weight_bytes_;
        for (std::size_t i = 0; i < machines_.size(); ++i) {
            if (rooflines_[i].empty()) continue;
            json["roofline"].push_back({{"threads", machines_[i].executor->n_threads()},
                                        {"bytes_per_second", to_json(spread_of(rooflines_[i]))}});
        }
        for (const TimedCase& one : cases_) {
            Json result = {{"kv", one.spec->canonical},
                           {"threads", machines_[one.machine].executor->n_threads()},
                           {"test", one.generates ? "tg" : "pp"},
                           {"tokens", one.n_tokens},
                           {"depth", one.depth},
                           {"tokens_per_second", to_json(spread_of(one.rates))},
                           {"samples", one.rates}};
            if (one.generates) {
                result["roofline_share"] = to_json(spread_of(one.shares));
                result["read_bytes"] = one.read_bytes;
            }
            json["results"].push_back(result);
        }
        for (const Holding& holding : holdings_) {
            json["memory"].push_back({{"kv", holding.spec->canonical},
                                      {"depth", holding.depth},
                                      {"weights", model_bytes(model)},
                                      {"cache", holding.cache_bytes},
                                      {"scratch", holding.scratch_bytes}});
        }
        json["peak_resident_bytes"] = peak_resident_bytes();
        print_json(json);
    }

    Options options_;
    std::vector<std::uint32_t> prompts_ = {512}, generated_ = {128}, depths_ = {0};
    std::vector<unsigned> threads_ = {0};
    std::uint32_t n_rounds_ = 5;
    std::string format_ = "text";

    std::vector<NamedSpec> specs_;
    std::vector<Machine> machines_;
    std::uint32_t n_vocab_ = 0;
    std::uint64_t weight_bytes_ = 0;
    std::vector<std::vector<double>> rooflines_;  // by machine, bytes a second of every round
    std::vector<TimedCase> cases_;
    std::vector<Holding> holdings_;
};

}  // namespace

std::unique_ptr<Command> add_bench(CLI::App& app) {
    return std::make_unique<Bench>(app);
}

}  // namespace gearkv::tool
