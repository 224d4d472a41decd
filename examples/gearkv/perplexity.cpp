// gearkv perplexity: what a compressed cache does to the prediction of texts.
//
// A text is cut into windows of ctx tokens, each starting with BOS and overlapping the one before by half,
// so that every token is scored once, with at least half a window before it. Tokens are fed in small chunks:
// a chunk attends itself uncompressed and everything before it as the cache holds it, so nearly all of what a
// scored token sees is compressed. With --second-halves, windows lie side by side and the second half of each
// is scored, which is what llama-perplexity does. All caches are fed in lockstep with one in f16, which is
// the base of the divergence.
//
// With --drift, the beginning of a text is a prompt, and all caches are fed what the one in f16 goes on with.
#include <algorithm>
#include <cmath>
#include <iostream>

#include "command.hpp"
#include "divergence.hpp"
#include "drift.hpp"
#include "failure.hpp"
#include "report.hpp"
#include "sampling.hpp"

namespace gearkv::tool {
namespace {

// The SPECs of the paper's tables, then ours.
const std::vector<std::string> paper_table = {"f16",         "kivi-4", "kcvt-4",  "gearl-kcvt-4",
                                              "gear-kcvt-4", "kivi-2", "gearl-2", "paper:gear-2",
                                              "gear-4",      "gear-3", "gear-2",  "gear-1"};

// What one cache made of one text, or the means over several.
struct Figures {
    double loss = 0;                                      // mean of -ln of the probability of what came
    double byte_loss = 0;                                 // the same for a byte, in bits
    double mean = 0, median = 0, at_99 = 0, at_99_9 = 0;  // KL divergence
    double agreement = 0;
    double bits = 0, percent = 0, percent_of_blocks = 0;

    static constexpr double Figures::*all[] = {
        &Figures::loss,    &Figures::byte_loss,        &Figures::mean,      &Figures::median,
        &Figures::at_99,   &Figures::at_99_9,          &Figures::agreement, &Figures::bits,
        &Figures::percent, &Figures::percent_of_blocks};
};

Figures mean_of(const std::vector<Figures>& several) {
    Figures mean;
    for (const Figures& one : several) {
        for (double Figures::*field : Figures::all)
            mean.*field += one.*field / static_cast<double>(several.size());
    }
    return mean;
}

Figures figures_of(const Divergence& divergence, const Holdings& held) {
    Figures figures;
    figures.mean = divergence.mean();
    figures.median = divergence.at(.5);
    figures.at_99 = divergence.at(.99);
    figures.at_99_9 = divergence.at(.999);
    figures.agreement = divergence.agreement();
    figures.bits = held.bits_per_element();
    figures.percent = held.fp16_percent();
    figures.percent_of_blocks = held.fp16_percent_of_blocks();
    return figures;
}

// One cache under test.
struct Subject {
    NamedSpec spec;
    std::unique_ptr<Session> session;
    std::vector<float> logits;  // [chunk, n_vocab]
    // Of the text at hand:
    double loss = 0;
    Divergence divergence;
    Holdings held;  // at window ends
    // Of every text:
    std::vector<Figures> figures;
    std::vector<Divergence> divergences;  // of generated tokens
};

// What was scored of a text.
struct ScoredText {
    std::string path;
    std::uint64_t n_tokens = 0, n_bytes = 0;
};

class Perplexity final : public Command {
  public:
    explicit Perplexity(CLI::App& parent)
        : Command(
              parent.add_subcommand("perplexity", "Perplexity of texts, and divergence from an f16 cache")) {
        options_.kv = {"gear-4"};
        options_.n_ctx = 1024;
        options_.chunk = 64;
        add_model_option(*app_, options_);
        app_->add_option("--file", files_, "A text; repeatable, for a line of each and their mean")
            ->type_name("FILE")
            ->allow_extra_args(false)
            ->required();
        app_->add_option("--max-tokens", n_max_, "Score no more tokens of a text than this; 0: all")
            ->check(in_range(0, most_tokens))
            ->capture_default_str();
        CLI::Option* halves =
            app_->add_flag("--second-halves", second_halves_,
                           "Score as llama-perplexity does: windows side by side, the second half of each");
        app_->add_option("--drift", n_drift_,
                         "Compare predictions of N tokens that an f16 cache goes on with where a text, of "
                         "the context less N tokens, ends; 0: score the text")
            ->type_name("N")
            ->check(in_range(0, most_tokens))
            ->capture_default_str()
            ->excludes(halves);
        app_->add_option("--temperature,--temp", temperature_,
                         "Of the tokens of --drift; 0 takes the likeliest")
            ->capture_default_str();
        add_kv_option(*app_, options_, true);
        app_->add_option("--table", table_,
                         "paper: the SPECs of the paper's tables beside ours, and shares of fp16")
            ->check(CLI::IsMember({"paper"}))
            ->type_name("NAME")
            ->excludes("--kv");
        add_session_options(*app_, options_);
        add_output_option(*app_, format_);
        add_json_option(*app_, options_);
        add_progress_option(*app_, options_);
    }

    void run() override {
        if (options_.json) format_ = "json";
        if (!table_.empty()) options_.kv = paper_table;
        const std::vector<NamedSpec> specs = read_specs(options_);
        Machine machine = open_machine(options_);
        model_ = load_model(options_);
        if (options_.n_ctx == 0) options_.n_ctx = model_->params().n_ctx;
        if (options_.n_ctx < 4)
            throw UsageError("--ctx " + std::to_string(options_.n_ctx) + ", expected at least 4");
        if (n_drift_ >= options_.n_ctx)
            throw UsageError("--drift " + std::to_string(n_drift_) + ", expected less than the context of " +
                             std::to_string(options_.n_ctx));
        std::vector<std::vector<Token>> texts;
        for (const std::string& path : files_)
            texts.push_back(read_tokens(path));
        Options exact = options_;
        exact.mass = exact.most_share = 1.0f;
        exact.negligible = 0.0f;
        exact.soft_cache.clear();
        base_ = make_subject(read_spec("f16"), exact, machine);
        for (const NamedSpec& spec : specs)
            subjects_.push_back(make_subject(spec, options_, machine));
        n_drift_ > 0 ? follow_texts(texts) : score_texts(texts);
        if (format_ == "json") return print_as_json(machine);
        if (format_ == "csv") return print_csv(flat_rows());
        print_heading(machine);
        const Table table = n_drift_ > 0 ? drift_table() : table_.empty() ? text_table() : shares_table();
        format_ == "md" ? table.print_markdown(std::cout) : table.print(std::cout);
    }

  private:
    std::vector<Token> read_tokens(const std::string& path) const {
        const Tokenizer& tokenizer = model_->tokenizer();
        std::vector<Token> tokens;
        check(tokenizer.encode(read_text(path), {.add_special = second_halves_ || n_drift_ > 0}, &tokens));
        if (n_max_ != 0 && tokens.size() > n_max_) tokens.resize(n_max_);
        if (tokens.empty()) throw Failure(path + ": no tokens to score");
        if (second_halves_) {
            if (tokens.size() < options_.n_ctx)
                throw Failure(path + ": " + std::to_string(tokens.size()) +
                              " tokens, less than a window of " + std::to_string(options_.n_ctx));
        } else if (n_drift_ > 0) {
            tokens.resize(std::min<std::size_t>(tokens.size(), options_.n_ctx - n_drift_));
        } else if (tokenizer.bos() < 0) {
            throw Failure("the model has no BOS token to start a window with");
        }
        return tokens;
    }

    Subject make_subject(const NamedSpec& spec, const Options& options, Machine& machine) const {
        Subject subject;
        subject.spec = spec;
        subject.session = open_session(model_, options, spec.spec, machine);
        if (n_drift_ == 0) subject.logits.resize(std::size_t{options_.chunk} * model_->params().n_vocab);
        return subject;
    }

    void score_texts(const std::vector<std::vector<Token>>& texts) {
        std::uint64_t n_all = 0;
        for (const std::vector<Token>& tokens : texts)
            n_all += tokens.size();
        Progress progress(options_, "tokens scored", n_all);
        for (std::size_t i = 0; i < texts.size(); ++i) {
            scored_.push_back({files_[i]});
            second_halves_ ? score_second_halves(texts[i], &progress) : score_all(texts[i], &progress);
            const auto n_tokens = static_cast<double>(scored_[i].n_tokens);
            const double n_bytes = std::log(2.0) * static_cast<double>(scored_[i].n_bytes);
            for (Subject& subject : subjects_) {
                Figures figures = figures_of(subject.divergence, subject.held);
                figures.loss = subject.loss / n_tokens;
                figures.byte_loss = subject.loss / n_bytes;
                subject.figures.push_back(figures);
                subject.loss = 0;
                subject.divergence = {};
                subject.held = {};
            }
        }
    }

    // Token i of the text is scored from the logits at its predecessor, BOS for the first of a window.
    void score_all(const std::vector<Token>& tokens, Progress* progress) {
        const std::size_t n_window = options_.n_ctx - 1;
        std::size_t n_done = 0;
        for (std::size_t start = 0; n_done < tokens.size(); start += options_.n_ctx / 2) {
            const std::size_t end = std::min(start + n_window, tokens.size());
            std::vector<Token> window = {model_->tokenizer().bos()};
            window.insert(window.end(), at(tokens, start), at(tokens, end));
            score_window(window, n_done - start + 1);
            progress->step(end - n_done);
            n_done = end;
        }
    }

    // BOS, if there is to be one, takes the place of a window's first token.
    void score_second_halves(const std::vector<Token>& tokens, Progress* progress) {
        for (std::size_t start = 0; start + options_.n_ctx <= tokens.size(); start += options_.n_ctx) {
            std::vector<Token> window(at(tokens, start), at(tokens, start + options_.n_ctx));
            if (model_->tokenizer().adds_bos()) window[0] = model_->tokenizer().bos();
            score_window(window, options_.n_ctx / 2 + 1);
            progress->step(options_.n_ctx);
        }
    }

    static std::vector<Token>::const_iterator at(const std::vector<Token>& tokens, std::size_t token) {
        return tokens.begin() + static_cast<std::ptrdiff_t>(token);
    }

    // Feeds a window, and scores its tokens from first_scored (at least 1) on.
    void score_window(const std::vector<Token>& window, std::size_t first_scored) {
        base_.session->reset();
        for (Subject& subject : subjects_)
            subject.session->reset();
        for (std::size_t begin = 0; begin < window.size(); begin += options_.chunk) {
            const std::size_t n = std::min<std::size_t>(options_.chunk, window.size() - begin);
            const bool scored = begin + n >= first_scored;
            feed(&base_, window.data() + begin, n, scored);
            for (Subject& subject : subjects_)
                feed(&subject, window.data() + begin, n, scored);
            // The logits of window[i] predict window[i + 1].
            const std::size_t last = std::min(begin + n, window.size() - 1);
            for (std::size_t i = std::max(begin, first_scored - 1); i < last; ++i)
                score_token(i - begin, window[i + 1]);
        }
        for (Subject& subject : subjects_)
            subject.held.add(subject.session->cache());
    }

    // Logits of tokens that are not scored are not computed.
    static void feed(Subject* subject, const Token* tokens, std::size_t n, bool scored) {
        Session& session = *subject->session;
        check(scored ? session.prefill(tokens, n, subject->logits.data()) : session.prefill(tokens, n));
    }

    void score_token(std::size_t row, Token next) {
        check_interrupt();
        std::string bytes;
        check(model_->tokenizer().decode(next, &bytes));
        scored_.back().n_bytes += bytes.size();
        scored_.back().n_tokens += 1;
        const std::size_t n_vocab = model_->params().n_vocab;
        expected_.set(base_.logits.data() + row * n_vocab, n_vocab);
        for (Subject& subject : subjects_) {
            found_.set(subject.logits.data() + row * n_vocab, n_vocab);
            subject.loss -= found_.logs()[static_cast<std::size_t>(next)];
            subject.divergence.add(expected_, found_);
        }
    }

    void follow_texts(const std::vector<std::vector<Token>>& texts) {
        SamplingOptions sampling;
        sampling.config.temperature = temperature_;
        sampling.config.top_k = 40;
        sampling.config.top_p = 0.95f;
        sampling.config.min_p = 0.05f;
        for (const Token token : model_->tokenizer().end_of_generation())  // the text goes on
            sampling.logit_bias.push_back(std::to_string(token) + "=-inf");
        std::vector<Session*> sessions;
        for (const Subject& subject : subjects_)
            sessions.push_back(subject.session.get());
        Progress progress(options_, "tokens generated", n_drift_ * texts.size());
        for (std::size_t i = 0; i < texts.size(); ++i) {
            const std::unique_ptr<Sampler> sampler = make_sampler(sampling, *model_, options_.seed);
            const std::vector<Divergence> found =
                follow(*base_.session, sessions, texts[i], n_drift_, *sampler, &progress);
            scored_.push_back({files_[i], texts[i].size(), 0});
            for (std::size_t j = 0; j < subjects_.size(); ++j) {
                Holdings held;
                held.add(sessions[j]->cache());
                subjects_[j].figures.push_back(figures_of(found[j], held));
                subjects_[j].divergences.push_back(found[j]);
            }
        }
    }

    // Mean over the texts.
    static double mean_drift(const Subject& subject, DriftBucket bucket) {
        double mean = 0;
        for (const Divergence& one : subject.divergences)
            mean += one.mean_of(bucket.begin, bucket.end) / static_cast<double>(subject.divergences.size());
        return mean;
    }

    Json to_json(const Figures& figures) const {
        Json json;
        if (n_drift_ == 0) {
            json["perplexity"] = std::exp(figures.loss);
            json["bits_per_byte"] = figures.byte_loss;
        }
        json["kl_divergence"] = figures.mean;
        json["kl_median"] = figures.median;
        json["kl_99"] = figures.at_99;
        json["kl_99_9"] = figures.at_99_9;
        json["top1_agreement"] = figures.agreement;
        json["bits_per_element"] = figures.bits;
        json["fp16_percent"] = figures.percent;
        json["fp16_percent_of_blocks"] = figures.percent_of_blocks;
        return json;
    }

    void print_as_json(const Machine& machine) const {
        Json json = start_json("perplexity", &machine);
        json["model"] = options_.model;
        if (files_.size() == 1) {
            json["file"] = files_[0];
        } else {
            json["files"] = files_;
        }
        json["ctx"] = options_.n_ctx;
        json["chunk"] = options_.chunk;
        std::uint64_t n_tokens = 0, n_bytes = 0;
        for (const ScoredText& text : scored_) {
            n_tokens += text.n_tokens;
            n_bytes += text.n_bytes;
        }
        if (n_drift_ > 0) {
            json["prompt_tokens"] = n_tokens;
            json["drift"] = n_drift_;
            json["seed"] = options_.seed;
            json["temperature"] = temperature_;
        } else {
            json["tokens"] = n_tokens;
            json["bytes"] = n_bytes;
        }
        for (const Subject& subject : subjects_) {
            Json row = {{"kv", subject.spec.canonical}};
            row.update(to_json(mean_of(subject.figures)));
            for (std::size_t i = 0; i < files_.size(); ++i) {
                if (files_.size() == 1 && n_drift_ == 0) break;
                Json one = {{"file", files_[i]}};
                one.update(to_json(subject.figures[i]));
                if (n_drift_ > 0) one["kl"] = subject.divergences[i].all();
                row["files"].push_back(one);
            }
            if (n_drift_ > 0) {
                for (const DriftBucket bucket : drift_buckets(n_drift_)) {
                    row["buckets"].push_back({{"first", bucket.begin + 1},
                                              {"last", bucket.end},
                                              {"kl_divergence", mean_drift(subject, bucket)}});
                }
            }
            json["results"].push_back(row);
        }
        print_json(json);
    }

    // A line of every text, and of their mean.
    Json flat_rows() const {
        Json rows = Json::array();
        for (const Subject& subject : subjects_) {
            for (std::size_t i = 0; i <= files_.size(); ++i) {
                if (i == files_.size() && i == 1) continue;
                const bool all = i == files_.size();
                Json row = {{"kv", subject.spec.canonical}, {"file", all ? "mean" : files_[i]}};
                row.update(to_json(all ? mean_of(subject.figures) : subject.figures[i]));
                rows.push_back(row);
            }
        }
        return rows;
    }

    void print_heading(const Machine& machine) const {
        for (const ScoredText& text : scored_) {
            std::cout << in_one_line(text.path) << ": " << grouped(text.n_tokens)
                      << (n_drift_ > 0 ? " tokens of prompt" : " tokens scored, ");
            if (n_drift_ == 0) std::cout << grouped(text.n_bytes) << " bytes";
            std::cout << (scored_.size() > 1 ? "\n" : ", ");
        }
        if (n_drift_ > 0) {
            std::cout << grouped(n_drift_) << " generated, temperature " << fixed(temperature_, 2)
                      << ", seed " << options_.seed << ", ";
        }
        std::cout << "ctx " << options_.n_ctx << ", chunk " << options_.chunk << ", level "
                  << level_name(machine.level) << ", threads " << machine.executor->n_threads() << "\n\n";
    }

    static std::string percent(double value, int n_digits) { return fixed(value, n_digits) + " %"; }

    static void add_divergence(const Figures& figures, std::vector<std::string>* cells) {
        cells->push_back(fixed(figures.mean, 5));
        cells->push_back(fixed(figures.median, 5));
        cells->push_back(fixed(figures.at_99, 4));
        cells->push_back(fixed(figures.at_99_9, 4));
        cells->push_back(percent(100 * figures.agreement, 2));
    }

    Table text_table() const {
        const bool several = files_.size() > 1;
        std::vector<std::string> header = {"kv"};
        if (several) header.push_back("file");
        for (const char* name : {"perplexity", "bits/byte", "KL from f16", "median", "99 %", "99.9 %",
                                 "top-1 same", "bits/element"})
            header.push_back(name);
        Table table(header);
        for (const Subject& subject : subjects_) {
            const auto add = [&](const std::string& file, const Figures& figures) {
                std::vector<std::string> cells = {subject.spec.text};
                if (several) cells.push_back(in_one_line(file));
                cells.push_back(fixed(std::exp(figures.loss), 3));
                cells.push_back(fixed(figures.byte_loss, 4));
                add_divergence(figures, &cells);
                cells.push_back(fixed(figures.bits, 2));
                table.add(cells);
            };
            for (std::size_t i = 0; i < files_.size(); ++i)
                add(files_[i].substr(files_[i].rfind('/') + 1), subject.figures[i]);
            if (several) add("mean", mean_of(subject.figures));
        }
        return table;
    }

    // The paper's kind of table: means over the texts.
    Table shares_table() const {
        Table table({"kv", "of fp16", "tail included", "perplexity", "KL from f16", "median", "99 %",
                     "99.9 %", "top-1 same"});
        for (const Subject& subject : subjects_) {
            const Figures figures = mean_of(subject.figures);
            std::vector<std::string> cells = {subject.spec.text, percent(figures.percent_of_blocks, 1),
                                              percent(figures.percent, 1), fixed(std::exp(figures.loss), 3)};
            add_divergence(figures, &cells);
            table.add(cells);
        }
        return table;
    }

    // Mean divergence by range of generated tokens, then of them all; means over the texts.
    Table drift_table() const {
        std::vector<std::string> header = {"kv"};
        const std::vector<DriftBucket> buckets = drift_buckets(n_drift_);
        for (const DriftBucket bucket : buckets)
            header.push_back("to " + grouped(bucket.end));
        for (const char* name : {"all", "median", "99 %", "99.9 %", "top-1 same", "bits/element"})
            header.push_back(name);
        Table table(header);
        for (const Subject& subject : subjects_) {
            const Figures figures = mean_of(subject.figures);
            std::vector<std::string> cells = {subject.spec.text};
            for (const DriftBucket bucket : buckets)
                cells.push_back(fixed(mean_drift(subject, bucket), 5));
            add_divergence(figures, &cells);
            cells.push_back(fixed(figures.bits, 2));
            table.add(cells);
        }
        return table;
    }

    Options options_;
    std::vector<std::string> files_;
    std::size_t n_max_ = 0, n_drift_ = 0;
    float temperature_ = 0.8f;
    bool second_halves_ = false;
    std::string table_, format_ = "text";
    std::shared_ptr<const Model> model_;
    std::vector<ScoredText> scored_;
    Subject base_;
    std::vector<Subject> subjects_;
    Prediction expected_, found_;
};

}  // namespace

std::unique_ptr<Command> add_perplexity(CLI::App& app) {
    return std::make_unique<Perplexity>(app);
}

}  // namespace gearkv::tool
