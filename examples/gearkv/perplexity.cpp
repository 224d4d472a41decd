// gearkv perplexity: what a compressed cache does to the prediction of a text.
//
// The text is cut into windows of ctx tokens, each starting with BOS and overlapping the one before by half,
// so that every token is scored once, with at least half a window before it. Tokens are fed in small chunks:
// a chunk attends itself uncompressed and everything before it as the cache holds it, so nearly all of what a
// scored token sees is compressed. With --second-halves, windows lie side by side and the second half of each
// is scored, which is what llama-perplexity does. All caches are fed in lockstep with one in f16, which is
// the base of the divergence.
#include <algorithm>
#include <cmath>
#include <iostream>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

// Natural logarithms of the softmax of n logits.
void log_softmax(const float* logits, std::size_t n, std::vector<double>* out) {
    out->assign(logits, logits + n);
    const double largest = *std::max_element(out->begin(), out->end());
    double sum = 0;
    for (const double x : *out)
        sum += std::exp(x - largest);
    const double shift = largest + std::log(sum);
    for (double& x : *out)
        x -= shift;
}

// Sums over scored tokens, of one cache.
struct Score {
    double loss = 0;                  // -ln of the probability of what came
    std::vector<double> divergences;  // KL(f16 || this) of every token
    std::uint64_t n_agree = 0;
    double bits = 0;    // bits per element times tokens, at window ends
    double weight = 0;  // tokens at window ends

    void add(const std::vector<double>& base, const std::vector<double>& own, Token next) {
        loss -= own[static_cast<std::size_t>(next)];
        double divergence = 0;
        for (std::size_t i = 0; i < base.size(); ++i)
            divergence += std::exp(base[i]) * (base[i] - own[i]);
        divergences.push_back(divergence);
        n_agree += std::max_element(base.begin(), base.end()) - base.begin() ==
                   std::max_element(own.begin(), own.end()) - own.begin();
    }
    double mean_divergence() const {
        double sum = 0;
        for (const double x : divergences)
            sum += x;
        return sum / static_cast<double>(divergences.size());
    }
    // The smallest that a share of the tokens does not exceed.
    double divergence_at(double share) const {
        std::vector<double> sorted = divergences;
        const auto n = static_cast<double>(sorted.size());
        const auto at = static_cast<std::size_t>(std::max(std::ceil(share * n) - 1, 0.0));
        std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(at), sorted.end());
        return sorted[at];
    }
    void add_cache(const CacheStats& stats) {
        bits += stats.bits_per_element * static_cast<double>(stats.n_tokens);
        weight += static_cast<double>(stats.n_tokens);
    }
};

// One cache under test.
struct Subject {
    NamedSpec spec;
    std::unique_ptr<Session> session;
    std::vector<float> logits;  // [chunk, n_vocab]
    Score score;
};

class Perplexity final : public Command {
  public:
    explicit Perplexity(CLI::App& parent)
        : Command(
              parent.add_subcommand("perplexity", "Perplexity of a text, and divergence from an f16 cache")) {
        options_.kv = {"gear-4"};
        options_.n_ctx = 1024;
        options_.chunk = 64;
        add_model_option(*app_, options_);
        app_->add_option("--file", file_, "The text")->required();
        app_->add_option("--max-tokens", n_max_, "Score no more tokens than this; 0: all")
            ->check(in_range(0, most_tokens))
            ->capture_default_str();
        app_->add_flag("--second-halves", second_halves_,
                       "Score as llama-perplexity does: windows side by side, the second half of each");
        add_kv_option(*app_, options_, true);
        add_session_options(*app_, options_);
        add_json_option(*app_, options_);
        add_progress_option(*app_, options_);
    }

    void run() override {
        const std::vector<NamedSpec> specs = read_specs(options_);
        Machine machine = open_machine(options_);
        model_ = load_model(options_);
        if (options_.n_ctx == 0) options_.n_ctx = model_->params().n_ctx;
        if (options_.n_ctx < 4)
            throw UsageError("--ctx " + std::to_string(options_.n_ctx) + ", expected at least 4");
        read_tokens();
        Options exact = options_;
        exact.mass = exact.most_share = 1.0f;
        exact.negligible = 0.0f;
        base_ = make_subject(read_spec("f16"), exact, machine);
        for (const NamedSpec& spec : specs)
            subjects_.push_back(make_subject(spec, options_, machine));
        score_text();
        options_.json ? print_as_json(machine) : print_as_text(machine);
    }

  private:
    void read_tokens() {
        const Tokenizer& tokenizer = model_->tokenizer();
        check(tokenizer.encode(read_text(file_), {.add_special = second_halves_}, &tokens_));
        if (n_max_ != 0 && tokens_.size() > n_max_) tokens_.resize(n_max_);
        if (tokens_.empty()) throw Failure(file_ + ": no tokens to score");
        if (second_halves_) {
            if (tokens_.size() < options_.n_ctx)
                throw Failure(file_ + ": " + std::to_string(tokens_.size()) +
                              " tokens, less than a window of " + std::to_string(options_.n_ctx));
        } else if (tokenizer.bos() < 0) {
            throw Failure("the model has no BOS token to start a window with");
        }
    }

    Subject make_subject(const NamedSpec& spec, const Options& options, Machine& machine) const {
        Subject subject;
        subject.spec = spec;
        subject.session = open_session(model_, options, spec.spec, machine);
        subject.logits.resize(std::size_t{options_.chunk} * model_->params().n_vocab);
        return subject;
    }

    void score_text() {
        Progress progress(options_, "tokens scored", tokens_.size());
        second_halves_ ? score_second_halves(&progress) : score_all(&progress);
    }

    // Token i of the text is scored from the logits at its predecessor, BOS for the first of a window.
    void score_all(Progress* progress) {
        const std::size_t n_window = options_.n_ctx - 1;
        std::size_t n_done = 0;
        for (std::size_t start = 0; n_done < tokens_.size(); start += options_.n_ctx / 2) {
            const std::size_t end = std::min(start + n_window, tokens_.size());
            std::vector<Token> window = {model_->tokenizer().bos()};
            window.insert(window.end(), at(start), at(end));
            score_window(window, n_done - start + 1);
            progress->step(end - n_done);
            n_done = end;
        }
    }

    // BOS, if there is to be one, takes the place of a window's first token.
    void score_second_halves(Progress* progress) {
        for (std::size_t start = 0; start + options_.n_ctx <= tokens_.size(); start += options_.n_ctx) {
            std::vector<Token> window(at(start), at(start + options_.n_ctx));
            if (model_->tokenizer().adds_bos()) window[0] = model_->tokenizer().bos();
            score_window(window, options_.n_ctx / 2 + 1);
            progress->step(options_.n_ctx);
        }
    }

    std::vector<Token>::const_iterator at(std::size_t token) const {
        return tokens_.begin() + static_cast<std::ptrdiff_t>(token);
    }

    // Feeds a window, and scores its tokens from first_scored (at least 1) on.
    void score_window(const std::vector<Token>& window, std::size_t first_scored) {
        base_.session->reset();
        for (Subject& subject : subjects_)
            subject.session->reset();
        for (std::size_t begin = 0; begin < window.size(); begin += options_.chunk) {
            const std::size_t n = std::min<std::size_t>(options_.chunk, window.size() - begin);
            feed(&base_, window.data() + begin, n);
            for (Subject& subject : subjects_)
                feed(&subject, window.data() + begin, n);
            // The logits of window[i] predict window[i + 1].
            const std::size_t last = std::min(begin + n, window.size() - 1);
            for (std::size_t i = std::max(begin, first_scored - 1); i < last; ++i)
                score_token(i - begin, window[i + 1]);
        }
        for (Subject& subject : subjects_)
            subject.score.add_cache(subject.session->cache().stats());
    }

    static void feed(Subject* subject, const Token* tokens, std::size_t n) {
        check(subject->session->prefill(tokens, n, subject->logits.data()));
    }

    void score_token(std::size_t row, Token next) {
        check_interrupt();
        std::string bytes;
        check(model_->tokenizer().decode(next, &bytes));
        n_text_bytes_ += bytes.size();
        ++n_scored_;
        const std::size_t n_vocab = model_->params().n_vocab;
        log_softmax(base_.logits.data() + row * n_vocab, n_vocab, &base_probabilities_);
        for (Subject& subject : subjects_) {
            log_softmax(subject.logits.data() + row * n_vocab, n_vocab, &own_probabilities_);
            subject.score.add(base_probabilities_, own_probabilities_, next);
        }
    }

    double perplexity(const Score& score) const {
        return std::exp(score.loss / static_cast<double>(n_scored_));
    }
    double bits_per_byte(const Score& score) const {
        return score.loss / std::log(2.0) / static_cast<double>(n_text_bytes_);
    }
    double agreement(const Score& score) const {
        return static_cast<double>(score.n_agree) / static_cast<double>(n_scored_);
    }

    void print_as_json(const Machine& machine) const {
        Json json = start_json("perplexity", &machine);
        json["model"] = options_.model;
        json["file"] = file_;
        json["ctx"] = options_.n_ctx;
        json["chunk"] = options_.chunk;
        json["tokens"] = n_scored_;
        json["bytes"] = n_text_bytes_;
        for (const Subject& subject : subjects_) {
            const Score& score = subject.score;
            json["results"].push_back({{"kv", subject.spec.canonical},
                                       {"perplexity", perplexity(score)},
                                       {"bits_per_byte", bits_per_byte(score)},
                                       {"kl_divergence", score.mean_divergence()},
                                       {"kl_median", score.divergence_at(.5)},
                                       {"kl_99", score.divergence_at(.99)},
                                       {"kl_99_9", score.divergence_at(.999)},
                                       {"top1_agreement", agreement(score)},
                                       {"bits_per_element", score.bits / score.weight}});
        }
        print_json(json);
    }

    void print_as_text(const Machine& machine) const {
        std::cout << in_one_line(file_) << ": " << grouped(n_scored_) << " tokens scored, "
                  << grouped(n_text_bytes_) << " bytes, ctx " << options_.n_ctx << ", chunk "
                  << options_.chunk << ", level " << level_name(machine.level) << ", threads "
                  << machine.executor->n_threads() << "\n\n";
        Table table({"kv", "perplexity", "bits/byte", "KL from f16", "median", "99 %", "99.9 %", "top-1 same",
                     "bits/element"});
        for (const Subject& subject : subjects_) {
            const Score& score = subject.score;
            table.add({subject.spec.text, fixed(perplexity(score), 3), fixed(bits_per_byte(score), 4),
                       fixed(score.mean_divergence(), 5), fixed(score.divergence_at(.5), 5),
                       fixed(score.divergence_at(.99), 4), fixed(score.divergence_at(.999), 4),
                       fixed(100 * agreement(score), 2) + " %", fixed(score.bits / score.weight, 2)});
        }
        table.print(std::cout);
    }

    Options options_;
    std::string file_;
    std::size_t n_max_ = 0;
    bool second_halves_ = false;
    std::shared_ptr<const Model> model_;
    std::vector<Token> tokens_;
    std::uint64_t n_scored_ = 0, n_text_bytes_ = 0;  // of the scored tokens
    Subject base_;
    std::vector<Subject> subjects_;
    std::vector<double> base_probabilities_, own_probabilities_;  // natural logarithms
};

}  // namespace

std::unique_ptr<Command> add_perplexity(CLI::App& app) {
    return std::make_unique<Perplexity>(app);
}

}  // namespace gearkv::tool
