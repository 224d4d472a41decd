// gearkv tokenize: a text as the tokens of a file's vocabulary, and tokens as a text.
#include <unistd.h>

#include <iostream>
#include <iterator>

#include "command.hpp"
#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

std::string read_input() {
    std::string text((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
    check_interrupt();
    if (std::cin.bad()) throw Failure("the standard input cannot be read");
    return text;
}

class Tokenize final : public Command {
  public:
    explicit Tokenize(CLI::App& parent)
        : Command(parent.add_subcommand("tokenize", "A text as tokens, and tokens as a text")) {
        app_->add_option("FILE", path_, "GGUF file with a vocabulary; it need hold no tensors")->required();
        CLI::Option_group* input = app_->add_option_group("input", "One of, else the standard input");
        input->add_option("TEXT", text_, "The text to encode");
        input->add_option("--file", file_, "A file with the text to encode");
        decode_ = input->add_option("--decode", tokens_, "Tokens to make a text of")->type_name("ID");
        decode_->expected(1, CLI::detail::expected_max_vector_size);
        input->require_option(0, 1);
        app_->add_flag("--special", special_,
                       "Texts of control tokens become these tokens; with --decode they are shown");
        app_->add_flag("--no-bos", no_bos_, "Neither BOS before nor EOS behind the tokens");
        app_->add_option("--pre", pre_, "The rule texts are split by, instead of what the file says")
            ->type_name("NAME");
        CLI::Option* ids = app_->add_flag("--ids", ids_only_, "Print the numbers alone, in one line");
        ids->excludes(decode_);
        add_json_option(*app_, options_);
    }

    void run() override {
        std::shared_ptr<const Tokenizer> tokenizer;
        check(Tokenizer::load(path_.c_str(), {pre_.empty() ? nullptr : pre_.c_str()}, &tokenizer));
        if (*tokenizer->note() != '\0') note(tokenizer->note());
        if (decode_->count() > 0) {
            decode(*tokenizer);
        } else {
            encode(*tokenizer);
        }
    }

  private:
    Json start(const Tokenizer& tokenizer) const {
        Json json = start_json("tokenize");
        json["file"] = path_;
        json["kind"] = tokenizer.kind();
        json["pre"] = tokenizer.pre();
        json["vocabulary"] = tokenizer.n_vocab();
        return json;
    }

    void encode(const Tokenizer& tokenizer) {
        const bool given = app_->get_option("TEXT")->count() > 0;
        const std::string text = !file_.empty() ? read_text(file_) : given ? text_ : read_input();
        check(tokenizer.encode(text, {.add_special = !no_bos_, .parse_special = special_}, &tokens_));
        if (options_.json) {
            Json json = start(tokenizer);
            json["bytes"] = text.size();
            json["ids"] = tokens_;
            json["texts"] = Json::array();
            for (const Token token : tokens_) {
                json["texts"].push_back(show(tokenizer, token));
            }
            print_json(json);
        } else if (ids_only_) {
            for (std::size_t i = 0; i < tokens_.size(); ++i)
                std::cout << (i == 0 ? "" : " ") << tokens_[i];
            std::cout << '\n';
        } else {
            for (const Token token : tokens_)
                std::cout << token << '\t' << in_one_line(show(tokenizer, token)) << '\n';
        }
    }

    void decode(const Tokenizer& tokenizer) const {
        std::string text;
        check(tokenizer.decode(tokens_.data(), tokens_.size(), {.special = special_}, &text));
        if (options_.json) {
            Json json = start(tokenizer);
            json["ids"] = tokens_;
            json["text"] = text;
            print_json(json);
        } else {
            std::cout << (terminal_ ? for_terminal(text) : text) << (terminal_ ? "\n" : "");
        }
    }

    // What a token stands for, control tokens included.
    static std::string show(const Tokenizer& tokenizer, Token token) {
        std::string text;
        check(tokenizer.decode(&token, 1, {.special = true, .at_start = false}, &text));
        return text;
    }

    Options options_;
    CLI::Option* decode_;
    std::string path_, text_, file_, pre_;
    std::vector<Token> tokens_;
    bool special_ = false;
    bool no_bos_ = false;
    bool ids_only_ = false;
    bool terminal_ = isatty(STDOUT_FILENO) != 0;
};

}  // namespace

std::unique_ptr<Command> add_tokenize(CLI::App& app) {
    return std::make_unique<Tokenize>(app);
}

}  // namespace gearkv::tool
