// gearkv passkey: does a model still find a number that is hidden in a long text?
//
// A text of filler sentences has one that says the number, at a depth between its beginning (0) and its end
// (1); then comes a question, up to where its answer is the number. Text and question are fed as in recall:
// the text in chunks, the question in one of its own, so that it sees the number as the cache holds it. An
// answer, decoded greedily, counts when it begins with all digits. Sentences, their order and numbers are
// drawn from the seed, length and depth alone.
#include <algorithm>
#include <iostream>
#include <random>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

const std::vector<std::string> filler = {
    "The harbour was quiet that morning, and the boats lay still at their ropes.",
    "A thin rain had fallen in the night and left the stones of the quay dark.",
    "Two gulls stood on the roof of the shed and looked the same way.",
    "The baker carried his trays across the square and nodded to nobody in particular.",
    "In the school they were learning the names of the rivers again.",
    "Someone had mended the blue door, but not the step in front of it.",
    "The clock above the town hall was slow, as it had been for years.",
    "Behind the hills the road went on through orchards and past a closed mill.",
    "A cart of apples stood in the shade, and its driver slept.",
    "Nobody remembered who had planted the row of limes along the wall.",
    "The ferry came over at its usual hour with three people and a dog.",
    "In the reading room the old papers were bound in grey and seldom asked for.",
    "The wind turned to the west towards noon and brought the smell of hay.",
    "Children ran along the dike until their voices could no longer be heard.",
    "The miller's daughter wrote letters at the window and put none of them in the post.",
    "When the tide was out, the wreck of a small boat could be seen in the mud.",
    "The gardener tied up the beans and spoke to them under his breath.",
    "There was music from the inn in the evening, always the same four tunes.",
    "The lamps were lit one after the other, from the bridge up to the church.",
    "A letter had come for the captain, who had been at sea since spring.",
    "The market women counted their coins and folded their white cloths.",
    "Far out a ship went by, too far to tell where it came from.",
};

struct HiddenNumber {
    std::size_t length = 0;
    double depth = 0;
    std::string number;
    std::vector<Token> text, question;
};

class Passkey final : public Command {
  public:
    explicit Passkey(CLI::App& parent)
        : Command(parent.add_subcommand("passkey", "Numbers hidden in long texts, found or not")) {
        options_.kv = {"f16", "gear-4", "gear-2"};
        options_.chunk = 512;
        add_model_option(*app_, options_);
        app_->add_option("--lengths", lengths_, "Tokens of a text, its question and its answer")
            ->delimiter(',')
            ->check(in_range(64, most_tokens))
            ->type_name("N,...")
            ->capture_default_str();
        app_->add_option("--depths", depths_, "Where the number is: 0 at the beginning, 1 at the end")
            ->delimiter(',')
            ->check(CLI::Range(0.0, 1.0))
            ->type_name("DEPTH,...")
            ->capture_default_str();
        app_->add_option("--trials", n_trials_, "Texts of each length and depth")
            ->check(in_range(1, 10000))
            ->capture_default_str();
        app_->add_option("--digits", n_digits_, "Of a number")->check(in_range(1, 18))->capture_default_str();
        add_kv_option(*app_, options_, true);
        add_session_options(*app_, options_);
        add_output_option(*app_, format_);
        add_json_option(*app_, options_);
        add_progress_option(*app_, options_);
    }

    void run() override {
        if (options_.json) format_ = "json";
        const std::vector<NamedSpec> specs = read_specs(options_);
        Machine machine = open_machine(options_);
        model_ = load_model(options_);
        const std::uint32_t longest = *std::max_element(lengths_.begin(), lengths_.end());
        if (options_.n_ctx == 0) options_.n_ctx = model_->params().n_ctx;
        if (longest > options_.n_ctx) {
            throw UsageError("--lengths " + std::to_string(longest) + ", expected at most the context of " +
                             std::to_string(options_.n_ctx));
        }
        options_.n_ctx = longest;
        check(Sampler::create({}, &greedy_));
        measure_sentences();
        for (const std::uint32_t length : lengths_) {
            for (const double depth : depths_) {
                for (std::uint32_t i = 0; i < n_trials_; ++i)
                    cases_.push_back(hide(length, depth, i));
            }
        }
        Progress progress(options_, "texts read", cases_.size() * specs.size());
        for (const NamedSpec& spec : specs)
            ask_all(spec, machine, &progress);
        print(specs, machine);
    }

  private:
    std::vector<Token> encode(const std::string& text, bool add_special) const {
        std::vector<Token> tokens;
        check(model_->tokenizer().encode(text, {.add_special = add_special}, &tokens));
        return tokens;
    }

    void measure_sentences() {
        for (const std::string& sentence : filler)
            n_tokens_.push_back(encode(" " + sentence, false).size());
    }

    // As many whole sentences as the length has room for.
    HiddenNumber hide(std::uint32_t length, double depth, std::uint32_t trial) const {
        std::mt19937_64 random(options_.seed * 1000003 + length * 10007ull +
                               static_cast<std::uint64_t>(depth * 1000) * 101 + trial);
        HiddenNumber hidden;
        hidden.length = length;
        hidden.depth = depth;
        for (std::uint32_t i = 0; i < n_digits_; ++i)
            hidden.number += static_cast<char>((i == 0 ? '1' : '0') + random() % (i == 0 ? 9 : 10));
        const std::string
            begin = "Somewhere in this text a pass key is hidden. Remember it; you will be asked for it.",
            needle =
                " The pass key is " + hidden.number + ". Remember it: " + hidden.number + " is the pass key.";
        hidden.question = encode("\n\nWhat is the pass key? The pass key is", false);
        const std::size_t n_fixed =
            encode(begin, true).size() + encode(needle, false).size() + hidden.question.size();
        const std::size_t n_answer = n_digits_ + 1;  // a blank before it
        if (n_fixed + n_answer > length) {
            throw UsageError("--lengths " + std::to_string(length) + ", expected at least " +
                             std::to_string(n_fixed + n_answer) + " for number, question and answer");
        }
        std::vector<std::size_t> sentences;
        for (std::size_t n = n_fixed + n_answer;;) {
            const std::size_t next = random() % filler.size();
            if ((n += n_tokens_[next]) > length) break;
            sentences.push_back(next);
        }
        const auto place = static_cast<std::size_t>(depth * static_cast<double>(sentences.size()) + 0.5);
        std::string text = begin;
        for (std::size_t i = 0; i <= sentences.size(); ++i) {
            if (i == place) text += needle;
            if (i < sentences.size()) text += " " + filler[sentences[i]];
        }
        hidden.text = encode(text, true);
        return hidden;
    }

    void ask_all(const NamedSpec& spec, Machine& machine, Progress* progress) {
        const std::unique_ptr<Session> session = open_session(model_, options_, spec.spec, machine);
        std::vector<bool> found;
        double bits = 0, weight = 0;
        for (const HiddenNumber& one : cases_) {
            found.push_back(ask(one, *session));
            const CacheStats stats = session->cache().stats();
            bits += stats.bits_per_element * static_cast<double>(stats.n_tokens);
            weight += static_cast<double>(stats.n_tokens);
            progress->step();
        }
        progress->note(spec.text + ": " +
                       grouped(static_cast<std::uint64_t>(std::count(found.begin(), found.end(), true))) +
                       " of " + grouped(found.size()) + " found");
        found_.push_back(std::move(found));
        bits_.push_back(bits / weight);
    }

    bool ask(const HiddenNumber& one, Session& session) const {
        session.reset();
        check(session.prefill(one.text.data(), one.text.size()));
        check(session.prefill(one.question.data(), one.question.size()));
        std::string said;
        // A token says at least one byte, a blank may stand before the digits.
        for (std::size_t i = 0; i <= one.number.size(); ++i) {
            check_interrupt();
            Token token;
            std::string piece;
            check(greedy_->sample(session.logits(), model_->params().n_vocab, &token));
            check(model_->tokenizer().decode(token, &piece));
            said += piece;
            const std::size_t begin = std::min(said.find_first_not_of(" \n"), said.size());
            const std::string digits = said.substr(begin, one.number.size());
            if (digits == one.number) return true;
            if (one.number.compare(0, digits.size(), digits) != 0 || i == one.number.size()) return false;
            check(session.decode(token));
        }
        return false;
    }

    // How many numbers of this length, and of this depth unless that is below 0, were found.
    std::uint64_t n_found(std::size_t spec, std::uint32_t length, double depth) const {
        std::uint64_t n = 0;
        for (std::size_t i = 0; i < cases_.size(); ++i) {
            if (cases_[i].length == length && (depth < 0 || cases_[i].depth == depth)) n += found_[spec][i];
        }
        return n;
    }

    void print(const std::vector<NamedSpec>& specs, const Machine& machine) const {
        if (format_ == "json" || format_ == "csv") return print_rows(specs, machine);
        std::cout << grouped(cases_.size()) << " texts, " << n_trials_ << " of each length and depth ("
                  << depths_.size() << " depths), numbers of " << n_digits_ << " digits, seed "
                  << options_.seed << ", chunk " << options_.chunk << ", level " << level_name(machine.level)
                  << ", threads " << machine.executor->n_threads() << "; found by length in tokens\n\n";
        std::vector<std::string> header = {"kv"};
        for (const std::uint32_t length : lengths_)
            header.push_back(grouped(length));
        header.push_back("all");
        header.push_back("bits/element");
        Table table(header);
        for (std::size_t i = 0; i < specs.size(); ++i) {
            std::vector<std::string> row = {specs[i].text};
            std::uint64_t n_all = 0;
            for (const std::uint32_t length : lengths_) {
                const std::uint64_t n = n_found(i, length, -1);
                n_all += n;
                row.push_back(std::to_string(n) + "/" + std::to_string(depths_.size() * n_trials_));
            }
            row.push_back(std::to_string(n_all) + "/" + std::to_string(cases_.size()));
            row.push_back(fixed(bits_[i], 2));
            table.add(row);
        }
        format_ == "md" ? table.print_markdown(std::cout) : table.print(std::cout);
    }

    void print_rows(const std::vector<NamedSpec>& specs, const Machine& machine) const {
        Json results = Json::array(), rows = Json::array();
        for (std::size_t i = 0; i < specs.size(); ++i) {
            Json result = {{"kv", specs[i].canonical}, {"bits_per_element", bits_[i]}};
            for (const std::uint32_t length : lengths_) {
                for (const double depth : depths_) {
                    const Json cell = {{"length", length},
                                       {"depth", depth},
                                       {"texts", n_trials_},
                                       {"found", n_found(i, length, depth)}};
                    Json row = {{"kv", specs[i].canonical}};
                    row.update(cell);
                    rows.push_back(row);
                    result["cells"].push_back(cell);
                }
            }
            results.push_back(result);
        }
        if (format_ == "csv") return print_csv(rows);
        Json json = start_json("passkey", &machine);
        json["model"] = options_.model;
        json["chunk"] = options_.chunk;
        json["seed"] = options_.seed;
        json["digits"] = n_digits_;
        for (const HiddenNumber& one : cases_)
            json["cases"].push_back({{"length", one.length},
                                     {"depth", one.depth},
                                     {"number", one.number},
                                     {"tokens", one.text.size() + one.question.size()}});
        json["results"] = results;
        print_json(json);
    }

    Options options_;
    std::vector<std::uint32_t> lengths_ = {1024, 2048, 4096, 8192};
    std::vector<double> depths_ = {0.1, 0.3, 0.5, 0.7, 0.9};
    std::uint32_t n_trials_ = 1, n_digits_ = 5;
    std::string format_ = "text";
    std::shared_ptr<const Model> model_;
    std::unique_ptr<Sampler> greedy_;
    std::vector<std::size_t> n_tokens_;  // of each sentence
    std::vector<HiddenNumber> cases_;
    std::vector<std::vector<bool>> found_;  // [SPEC, case]
    std::vector<double> bits_;
};

}  // namespace

std::unique_ptr<Command> add_passkey(CLI::App& app) {
    return std::make_unique<Passkey>(app);
}

}  // namespace gearkv::tool
