// Tokenizers of both kinds, on vocabularies made for the purpose.
#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "gearkv/decoder.hpp"
#include "support/catch.hpp"
#include "support/vocabulary_maker.hpp"

using namespace gearkv;
using namespace gearkv::test;
using nlohmann::json;

namespace {

std::shared_ptr<const Model> tiny_model() {
    std::shared_ptr<const Model> model;
    const Status status = Model::load(GEARKV_MODEL_DIR "/tiny-q8_0.gguf", &model);
    INFO(status.message());
    REQUIRE(status.ok());
    return model;
}

std::shared_ptr<const Tokenizer> make(const GgufWriter& file, const TokenizerOptions& options = {}) {
    std::shared_ptr<const Tokenizer> tokenizer;
    const Status status = try_tokenizer(file, &tokenizer, options);
    INFO(status.message());
    REQUIRE(status.ok());
    return tokenizer;
}

std::shared_ptr<const Tokenizer> make_tokenizer(const std::vector<Entry>& entries,
                                                bool space_prefix = false) {
    GgufWriter file = sentencepiece_file(entries);
    file.set("tokenizer.ggml.add_space_prefix", space_prefix);
    return make(file);
}

constexpr EncodeOptions plain = {.add_special = false, .parse_special = false};

std::vector<Token> encode(const Tokenizer& tokenizer, std::string_view text,
                          const EncodeOptions& options = plain) {
    std::vector<Token> tokens;
    const Status status = tokenizer.encode(text, options, &tokens);
    INFO(status.message());
    REQUIRE(status.ok());
    return tokens;
}

// As a whole, which must be what its tokens give one by one.
std::string decode(const Tokenizer& tokenizer, const std::vector<Token>& tokens,
                   const DecodeOptions& options = {}) {
    std::string text;
    REQUIRE(tokenizer.decode(tokens.data(), tokens.size(), options, &text).ok());
    const std::shared_ptr<const Tokenizer> shared(std::shared_ptr<const Tokenizer>(), &tokenizer);
    TextStream stream(shared, options);
    std::string streamed;
    for (const Token token : tokens) {
        REQUIRE(stream.push(token, &streamed).ok());
    }
    REQUIRE(stream.flush(&streamed).ok());
    REQUIRE(streamed == text);
    return text;
}

// The definition, quadratic: merge the best-scored pair, leftmost among equals, until none is a token.
std::vector<std::string> merge_plainly(const std::vector<Entry>& entries, std::vector<std::string> pieces) {
    const auto find = [&](const std::string& text) -> const Entry* {
        for (const Entry& entry : entries) {
            if (entry.text == text) return &entry;
        }
        return nullptr;
    };
    for (;;) {
        const Entry* best = nullptr;
        std::size_t at = 0;
        for (std::size_t i = 0; i + 1 < pieces.size(); i++) {
            const Entry* entry = find(pieces[i] + pieces[i + 1]);
            if (entry == nullptr || (best != nullptr && entry->score <= best->score)) continue;
            best = entry;
            at = i;
        }
        if (best == nullptr) return pieces;
        pieces[at] += pieces[at + 1];
        pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
}

}  // namespace

TEST_CASE("the reference prompt encodes to its tokens") {
    const auto model = tiny_model();
    const json reference = json::parse(std::ifstream(GEARKV_DATA_DIR "/tiny-logits.json"));
    const auto text = reference["text"].get<std::string>();
    CHECK(encode(model->tokenizer(), text, {}) == reference["tokens"].get<std::vector<Token>>());
    CHECK(model->tokenizer().bos() == 1);
    CHECK(model->tokenizer().eos() == 2);
}

TEST_CASE("recall prompts encode to as many tokens as recorded and decode to themselves") {
    const auto model = tiny_model();
    std::ifstream lines(GEARKV_DATA_DIR "/recall_sample.jsonl");
    int n_cases = 0;
    for (std::string line; std::getline(lines, line); n_cases++) {
        const json sample = json::parse(line);
        const auto prompt = sample["prompt"].get<std::string>();
        const std::vector<Token> tokens = encode(model->tokenizer(), prompt, {});
        CHECK(tokens.size() == sample["tokens"].get<std::size_t>());
        CHECK(decode(model->tokenizer(), tokens) == prompt);
    }
    CHECK(n_cases == 16);
}

TEST_CASE("any bytes survive encoding and decoding") {
    const auto model = tiny_model();
    const Tokenizer& tokenizer = model->tokenizer();
    std::mt19937 random(1);
    for (int round = 0; round < 500; round++) {
        std::string text;
        const std::size_t n = random() % 60;
        for (std::size_t i = 0; i < n; i++) {
            text += static_cast<char>(
                round % 2 == 0 ? random() : "the code of \xe2\x96\x81\xf0\x9f\x98\x80"[random() % 19]);
        }
        // A space and the mark that stands for it cannot be told apart once encoded.
        std::string expected;
        for (std::size_t i = 0; i < text.size(); i++) {
            const bool mark = text.compare(i, 3, "\xe2\x96\x81") == 0;
            expected += mark ? ' ' : text[i];
            i += mark ? 2 : 0;
        }
        CHECK(decode(tokenizer, encode(tokenizer, text)) == expected);
    }
    const std::string with_nul("a\0b", 3);
    CHECK(decode(tokenizer, encode(tokenizer, with_nul)) == with_nul);
    CHECK(decode(tokenizer, encode(tokenizer, "\xed\xa0\x80 lone surrogate")) ==
          "\xed\xa0\x80 lone surrogate");
    CHECK(encode(tokenizer, "").empty());
    CHECK(encode(tokenizer, "", {}) == std::vector<Token>{1});
}

TEST_CASE("text never becomes a control token") {
    const auto model = tiny_model();
    for (const Token token : encode(model->tokenizer(), "<s></s><unk><0x41>")) {
        CHECK(token > 2);
    }
    const auto tokenizer = make_tokenizer({{"<", 0},
                                           {"s", 0},
                                           {">", 0},
                                           {"<s", 1},
                                           {"<s>", 2, TokenType::control},
                                           {"ss", 3, TokenType::unused}});
    CHECK(encode(*tokenizer, "<s>") == std::vector<Token>{3, 2});
    CHECK(encode(*tokenizer, "ss") == std::vector<Token>{1, 1});
}

TEST_CASE("higher scores merge first, and the leftmost of equal pairs") {
    const auto tokenizer = make_tokenizer({{"a", 0}, {"b", 0}, {"c", 0}, {"ab", -2}, {"bc", -1}, {"aa", -3}});
    CHECK(encode(*tokenizer, "abc") == std::vector<Token>{0, 4});
    CHECK(encode(*tokenizer, "aaa") == std::vector<Token>{5, 0});
    CHECK(encode(*tokenizer, "aaaa") == std::vector<Token>{5, 5});
}

TEST_CASE("merging agrees with the quadratic definition") {
    std::mt19937 random(3);
    for (int round = 0; round < 200; round++) {
        std::vector<Entry> entries = {{"a", 0}, {"b", 0}, {"c", 0}, {"\xc3\xa9", 0}};
        const std::vector<std::string> letters = {"a", "b", "c", "\xc3\xa9"};
        for (int i = 0; i < 12; i++) {
            std::string text;
            for (std::size_t n = 2 + random() % 4; n > 0; n--) {
                text += letters[random() % 4];
            }
            const bool known =
                std::any_of(entries.begin(), entries.end(), [&](const Entry& e) { return e.text == text; });
            if (!known) entries.push_back({text, -static_cast<float>(random() % 6)});
        }
        const auto tokenizer = make_tokenizer(entries);
        std::vector<std::string> pieces;
        std::string text;
        for (int i = 0; i < 40; i++) {
            pieces.push_back(letters[random() % 4]);
            text += pieces.back();
        }
        std::vector<std::string> found;
        for (const Token token : encode(*tokenizer, text)) {
            found.push_back(entries[static_cast<std::size_t>(token)].text);
        }
        REQUIRE(found == merge_plainly(entries, pieces));
    }
}

TEST_CASE("tokens may consist of characters that are no tokens themselves") {
    const auto tokenizer = make_tokenizer({{"xy", 0}, {"xyz", 1}, {"<0x78>", 0, TokenType::byte}});
    CHECK(encode(*tokenizer, "xyz") == std::vector<Token>{1});
    CHECK(encode(*tokenizer, "xyx") == std::vector<Token>{0, 2});
    std::vector<Token> tokens = {42};
    const Status status = tokenizer->encode("xyy", plain, &tokens);
    CHECK(status.code() == Code::bad_tokenizer);
    CHECK(std::string(status.message()).find("nothing for 'y'") != std::string::npos);
    CHECK(tokens == std::vector<Token>{42});
}

TEST_CASE("of equal texts the lowest token stands for all") {
    const auto tokenizer = make_tokenizer({{"a", 0}, {"a", 5}, {"aa", 0}, {"aa", 7}, {"", 9}});
    CHECK(encode(*tokenizer, "aaa") == std::vector<Token>{2, 0});
    std::string text;
    REQUIRE(tokenizer->decode(4, &text).ok());
    CHECK(text.empty());
}

TEST_CASE("a space prefix is added when the vocabulary asks for one") {
    const std::vector<Entry> entries = {{"\xe2\x96\x81", 0},
                                        {"a", 0},
                                        {"\xe2\x96\x81"
                                         "a",
                                         1}};
    const auto with = make_tokenizer(entries, true);
    const auto without = make_tokenizer(entries, false);
    CHECK(encode(*with, "a a") == std::vector<Token>{2, 2});
    CHECK(encode(*without, "a a") == std::vector<Token>{1, 2});
    CHECK(decode(*with, encode(*with, "a a")) == "a a");
    CHECK(decode(*with, encode(*with, "a a"), {.at_start = false}) == " a a");
    CHECK(decode(*with, encode(*with, " a")) == " a");
    CHECK(encode(*with, "").empty());
}

TEST_CASE("a token outside the vocabulary decodes to an error and leaves the text") {
    const auto tokenizer = make_tokenizer({{"a", 0}, {"</s>", 0, TokenType::control}});
    std::string text = "before";
    CHECK(tokenizer->decode(-1, &text).code() == Code::bad_token);
    CHECK(tokenizer->decode(2, &text).code() == Code::bad_token);
    CHECK(tokenizer->decode(0, nullptr).code() == Code::invalid_argument);
    CHECK(tokenizer->encode("a", plain, nullptr).code() == Code::invalid_argument);
    REQUIRE(tokenizer->decode(1, &text).ok());
    CHECK(text == "before");
}
