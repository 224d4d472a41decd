// Special tokens in texts, what ends a generation, and the stream of a text.
#include <algorithm>
#include <random>

#include "gearkv/decoder.hpp"
#include "support/catch.hpp"
#include "support/vocabulary_maker.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

constexpr TokenType control = TokenType::control;
constexpr TokenType user_defined = TokenType::user_defined;
constexpr EncodeOptions plain = {.add_special = false, .parse_special = false};
constexpr EncodeOptions parsing = {.add_special = false, .parse_special = true};

std::shared_ptr<const Tokenizer> make(const GgufWriter& file) {
    std::shared_ptr<const Tokenizer> tokenizer;
    const Status status = try_tokenizer(file, &tokenizer);
    INFO(status.message());
    REQUIRE(status.ok());
    return tokenizer;
}

std::vector<Token> encode(const Tokenizer& tokenizer, std::string_view text, const EncodeOptions& options) {
    std::vector<Token> tokens;
    REQUIRE(tokenizer.encode(text, options, &tokens).ok());
    return tokens;
}

std::string decode(const Tokenizer& tokenizer, const std::vector<Token>& tokens, bool special = true) {
    std::string text;
    REQUIRE(tokenizer.decode(tokens.data(), tokens.size(), {.special = special}, &text).ok());
    return text;
}

// The definition: for each text, longest first and then by token, every occurrence in what is left.
std::vector<Token> cut_plainly(const std::vector<Entry>& entries, const std::string& text) {
    std::vector<std::size_t> order(entries.size());
    for (std::size_t i = 0; i < order.size(); i++) {
        order[i] = i;
    }
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return entries[a].text.size() > entries[b].text.size();
    });
    std::vector<Token> at(text.size(), -1);  // the token that starts here; -2: within one
    for (const std::size_t i : order) {
        const std::string& wanted = entries[i].text;
        for (std::size_t begin = 0; begin + wanted.size() <= text.size(); begin++) {
            if (text.compare(begin, wanted.size(), wanted) != 0) continue;
            const auto first = at.begin() + static_cast<std::ptrdiff_t>(begin);
            const auto last = first + static_cast<std::ptrdiff_t>(wanted.size());
            if (std::any_of(first, last, [](Token token) { return token != -1; })) continue;
            std::fill(first, last, -2);
            *first = static_cast<Token>(256 + i);
        }
    }
    std::vector<Token> tokens;
    for (std::size_t i = 0; i < text.size(); i++) {
        if (at[i] >= 0) tokens.push_back(at[i]);
        if (at[i] == -1) tokens.push_back(static_cast<unsigned char>(text[i]));
    }
    return tokens;
}

}  // namespace

TEST_CASE("user-defined tokens are always cut out, control and unknown ones when asked for") {
    const auto tokenizer = make(byte_bpe_file("gpt-2", {{"o", "w"}},
                                              {{"<sys>", 0, control},
                                               {"now", 0, user_defined},
                                               {"<unk>", 0, TokenType::unknown},
                                               {"<pad>", 0, TokenType::unused}}));
    const std::string text = "know<sys><unk><pad>";
    CHECK(encode(*tokenizer, "know", plain) == std::vector<Token>{'k', 258});
    CHECK(decode(*tokenizer, encode(*tokenizer, text, plain)) == text);
    const std::vector<Token> tokens = encode(*tokenizer, text, plain);
    CHECK(std::count(tokens.begin(), tokens.end(), 257) == 0);
    CHECK(std::count(tokens.begin(), tokens.end(), 259) == 0);
    CHECK(encode(*tokenizer, text, parsing) ==
          std::vector<Token>{'k', 258, 257, 259, '<', 'p', 'a', 'd', '>'});
    CHECK(decode(*tokenizer, encode(*tokenizer, text, parsing)) == text);
    CHECK(decode(*tokenizer, {'k', 258, 257, 259, 260}, false) == "know");
    CHECK(decode(*tokenizer, {'k', 258, 257, 259, 260}) == "know<sys><unk><pad>");
}

TEST_CASE("of special tokens that overlap the longest is cut first") {
    const std::vector<Entry> entries = {
        {"ab", 0, control}, {"bcd", 0, control}, {"aaa", 0, control}, {"a", 0, control}, {"da", 0, control}};
    const auto tokenizer = make(byte_bpe_file("gpt-2", {}, entries));
    CHECK(encode(*tokenizer, "abcd", parsing) == std::vector<Token>{259, 257});
    CHECK(encode(*tokenizer, "aaaaa", parsing) == std::vector<Token>{258, 259, 259});
    CHECK(encode(*tokenizer, "dab", parsing) == std::vector<Token>{'d', 256});
    CHECK(encode(*tokenizer, "abcd", plain) == std::vector<Token>{'a', 'b', 'c', 'd'});
}

TEST_CASE("cutting agrees with the definition that looks for one token after the other") {
    std::mt19937 random(4);
    for (int round = 0; round < 500; round++) {
        std::vector<Entry> entries;
        for (int i = 0; i < 9; i++) {
            std::string text;
            for (std::size_t n = 1 + random() % 5; n > 0; n--) {
                text += "abc"[random() % 3];
            }
            // A lone letter would be found in all that is left of the others.
            if (text.size() > 1 || random() % 4 == 0)
                entries.push_back({text, 0, random() % 2 == 0 ? control : user_defined});
        }
        const auto tokenizer = make(byte_bpe_file("gpt-2", {}, entries));
        std::string text;
        for (int i = 0; i < 40; i++) {
            text += "abcd"[random() % 4 == 0 ? 3 : random() % 3];
        }
        CAPTURE(text);
        REQUIRE(encode(*tokenizer, text, parsing) == cut_plainly(entries, text));
        std::vector<Entry> always = entries;
        for (Entry& entry : always) {
            if (entry.type == control) entry.text = "-";  // is in no text
        }
        REQUIRE(encode(*tokenizer, text, plain) == cut_plainly(always, text));
    }
}

TEST_CASE("thousands of special tokens cost no more than a few") {
    std::vector<Entry> entries;
    for (int i = 0; i < 6000; i++) {
        entries.push_back({"<unused" + std::to_string(i) + ">", 0, control});
    }
    std::string text;
    for (int i = 0; i < 40000; i++) {
        text += "<unused" + std::to_string(i % 7000) + ">";
    }
    const auto tokenizer = make(byte_bpe_file("gpt-2", {}, entries));
    const std::clock_t start = std::clock();
    const std::vector<Token> tokens = encode(*tokenizer, text, parsing);
    CHECK(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC < 5.0);
    CHECK(std::count_if(tokens.begin(), tokens.end(), [](Token t) { return t >= 256; }) == 35000);
}

TEST_CASE("the ends of a turn are control tokens whatever the file calls them, and end generation") {
    GgufWriter file = byte_bpe_file("gpt-2", {},
                                    {{"<|im_end|>", 0, TokenType::normal},
                                     {"</s>", 0, user_defined},
                                     {"<|file_sep|>", 0, control},
                                     {"<|end|>", 0, control},
                                     {"stop", 0, control},
                                     {"other", 0, control},
                                     {"[EOS]x", 0, control}});
    file.set("tokenizer.ggml.eos_token_id", std::uint32_t{260});
    file.set("tokenizer.ggml.eot_token_id", std::uint32_t{261});
    const auto tokenizer = make(file);
    CHECK(tokenizer->type(256) == control);
    CHECK(tokenizer->type(257) == control);
    CHECK(tokenizer->end_of_generation() == std::vector<Token>{256, 257, 258, 259, 260, 261});
    for (Token token = -1; token < 264; token++) {
        CHECK(tokenizer->is_end_of_generation(token) == (token >= 256 && token <= 261));
    }
    CHECK(encode(*tokenizer, "</s>", plain) == std::vector<Token>{'<', '/', 's', '>'});
    CHECK(encode(*tokenizer, "</s>", parsing) == std::vector<Token>{257});
}

TEST_CASE("where a model ends with return or call, the end of a part ends nothing") {
    const auto tokenizer = make(byte_bpe_file(
        "gpt-4o", {}, {{"<|return|>", 0, control}, {"<|call|>", 0, control}, {"<|end|>", 0, control}}));
    CHECK(tokenizer->end_of_generation() == std::vector<Token>{256, 257});
}

TEST_CASE("tokens are found by their exact text, and looked at by number") {
    const auto tokenizer =
        make(byte_bpe_file("gpt-2", {{"a", "b"}}, {{"ab", 0, control}, {"<x>", 0, control}, {"", 0}}));
    CHECK(tokenizer->n_vocab() == 260);
    CHECK(tokenizer->find("ab") == 256);  // the lowest
    CHECK(tokenizer->find("<x>") == 258);
    CHECK(tokenizer->find("<x") == -1);
    CHECK(tokenizer->find("") == 259);
    CHECK(tokenizer->text(258) == "<x>");
    CHECK(tokenizer->type(258) == control);
    for (const Token outside : {-1, 260, INT32_MIN, INT32_MAX}) {
        CHECK(tokenizer->text(outside).empty());
        CHECK(tokenizer->type(outside) == TokenType::unused);
    }
    CHECK(std::string(tokenizer->kind()) == "gpt2");
}

TEST_CASE("a space is put before each text between special tokens, and taken off again") {
    const std::string mark = "\xe2\x96\x81";
    GgufWriter file = sentencepiece_file({{"<unk>", 0, TokenType::unknown},
                                          {"<s>", 0, control},
                                          {"</s>", 0, control},
                                          {mark},
                                          {"a"},
                                          {mark + "a", 1},
                                          {"<t>", 0, user_defined}});
    file.erase("tokenizer.ggml.add_space_prefix");
    file.erase("tokenizer.ggml.add_bos_token");
    const auto tokenizer = make(file);
    CHECK(encode(*tokenizer, "a<t>a</s>a", {.parse_special = true}) == std::vector<Token>{1, 5, 6, 5, 2, 5});
    for (const std::string text : {"a<t>a</s>a", "<s> a", "</s>  a a<t>", "<s></s>", "a", " ", ""}) {
        CAPTURE(text);
        CHECK(decode(*tokenizer, encode(*tokenizer, text, parsing)) == text);
    }
    CHECK(decode(*tokenizer, encode(*tokenizer, "a a", {}), false) == "a a");
    std::string piece;
    REQUIRE(tokenizer->decode(5, &piece).ok());
    CHECK(piece == " a");
    // What the vocabulary lacks is one unknown token a character.
    CHECK(encode(*tokenizer, "a\xe4\xb8\xad", plain) == std::vector<Token>{5, 0});
}

TEST_CASE("Phi-3 drops white space behind special tokens, but for a few") {
    GgufWriter file = sentencepiece_file({{"<s>", 0, control},
                                          {"<|user|>", 0, control},
                                          {"\xe2\x96\x81"},
                                          {"a"},
                                          {"<0x0A>", 0, TokenType::byte}});
    const std::string text = "<|user|> \n\t a<s> a";
    file.set("general.name", "My Phi3 mini");
    CHECK(encode(*make(file), text, parsing) == std::vector<Token>{1, 3, 0, 2, 3});
    file.set("general.name", "Phi-2");
    CHECK(encode(*make(file), "<|user|>\n a", parsing) == std::vector<Token>{1, 4, 2, 3});
}

TEST_CASE("a stream gives whole characters and holds back half ones") {
    const auto tokenizer = make(byte_bpe_file("gpt-2", {}, {{"<x>", 0, control}}));
    TextStream stream(tokenizer);
    std::string out;
    const auto push = [&](std::initializer_list<unsigned> bytes) {
        out.clear();
        for (const unsigned byte : bytes) {
            REQUIRE(stream.push(static_cast<Token>(byte), &out).ok());
        }
        return out;
    };
    CHECK(push({'a'}) == "a");
    CHECK(push({0xf0, 0x9f, 0x98}).empty());
    CHECK(stream.n_held() == 3);
    CHECK(push({0x80}) == "\xf0\x9f\x98\x80");
    CHECK(push({0xe2, 'b'}) ==
          "\xe2"
          "b");                               // was none after all
    CHECK(push({0xff}) == "\xff");            // can begin none
    CHECK(push({0xed, 0xa0}) == "\xed\xa0");  // would be a surrogate
    CHECK(push({0x80}) == "\x80");
    CHECK(push({0xc3}).empty());
    CHECK(stream.push(-1, &out).code() == Code::bad_token);
    CHECK(stream.push(257, &out).code() == Code::bad_token);
    CHECK(stream.push('a', nullptr).code() == Code::invalid_argument);
    CHECK(stream.n_held() == 1);  // as before the errors
    CHECK(push({0xa9}) == "\xc3\xa9");
    CHECK(push({0xc3}).empty());
    CHECK(stream.flush(&out).ok());
    CHECK(out == "\xc3");
    CHECK(stream.n_held() == 0);
    CHECK(stream.flush(nullptr).code() == Code::invalid_argument);
    CHECK(TextStream(nullptr).push(0, &out).code() == Code::invalid_argument);
    CHECK(push({256}).empty());
}

TEST_CASE("a stream that continues a text keeps the space its first token has") {
    GgufWriter file = sentencepiece_file({{"\xe2\x96\x81"
                                           "a"},
                                          {"</x>", 0, control}});
    file.set("tokenizer.ggml.add_space_prefix", true);
    const auto tokenizer = make(file);
    for (const bool at_start : {true, false}) {
        TextStream stream(tokenizer, {.at_start = at_start});
        std::string text;
        for (const Token token : {0, 0, 1, 0}) {
            REQUIRE(stream.push(token, &text).ok());
        }
        CHECK(text == (at_start ? "a aa" : " a aa"));
    }
}
