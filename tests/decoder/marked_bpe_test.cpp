// BPE on characters ("gemma4"), beside the same told in the plainest way.
#include <algorithm>
#include <map>
#include <random>

#include "support/catch.hpp"
#include "support/vocabulary_maker.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

using Merges = std::vector<std::pair<std::string, std::string>>;

const std::string mark = "\xe2\x96\x81";
const Merges merges = {{"a", "b"},
                       {"b", "c"},
                       {mark, "a"},
                       {"ab", "c"},
                       {mark, "ab"},
                       {mark, mark},
                       {"d", "é"},
                       {"dé", "日"},
                       {"c", "d"},
                       {"bc", "d"},
                       {"a", "a"},
                       {"aa", "aa"},
                       {"f", "e"},
                       {"fe", "f"},
                       {"\n", "\n"},
                       {"\n\n", "\n\n"},
                       {mark + mark, mark + mark}};

// Without "fe", which is only a step to "fef"; bytes when asked for.
GgufWriter file_of(bool with_bytes) {
    std::vector<Entry> entries = {{"<pad>", 0, TokenType::control},   {"<eos>", 0, TokenType::control},
                                  {"<bos>", 0, TokenType::control},   {"<unk>", 0, TokenType::unknown},
                                  {"<turn|>", 0, TokenType::control}, {"</s>"},
                                  {"[x]", 0, TokenType::user_defined}};
    for (unsigned byte = 0; with_bytes && byte < 256; byte++)
        entries.push_back({byte_token(byte), 0, TokenType::byte});
    for (const char* c : {"a", "b", "c", "d", "e", "f", "é", "日", "\n", "\n\n\n"})
        entries.push_back({c});
    entries.push_back({mark});
    std::vector<std::string> lines;
    for (const auto& [left, right] : merges) {
        if (left + right != "fe") entries.push_back({left + right});
        lines.push_back(left + " " + right);
    }
    GgufWriter file;
    file.set("tokenizer.ggml.model", "gemma4");
    set_entries(file, entries);
    file.set_array("tokenizer.ggml.merges", lines);
    file.set("tokenizer.ggml.bos_token_id", std::uint32_t{2});
    file.set("tokenizer.ggml.eos_token_id", std::uint32_t{1});
    file.set("tokenizer.ggml.unknown_token_id", std::uint32_t{3});
    file.set("tokenizer.ggml.add_bos_token", false);
    return file;
}

std::shared_ptr<const Tokenizer> make(bool with_bytes = true) {
    std::shared_ptr<const Tokenizer> tokenizer;
    const Status status = try_tokenizer(file_of(with_bytes), &tokenizer);
    INFO(status.message());
    REQUIRE(status.ok());
    return tokenizer;
}

std::vector<Token> encode(const Tokenizer& tokenizer, const std::string& text) {
    std::vector<Token> tokens;
    REQUIRE(tokenizer.encode(text, {.add_special = false}, &tokens).ok());
    return tokens;
}

// Characters, and bytes that belong to none.
std::vector<std::string> characters_of(const std::string& text) {
    std::vector<std::string> out;
    for (std::size_t at = 0; at < text.size();) {
        const auto lead = static_cast<unsigned char>(text[at]);
        const std::size_t n = lead == 0xff   ? 1
                              : lead >= 0xe0 ? 3
                              : lead >= 0xc2 ? 2
                                             : 1;  // all that the test has
        out.push_back(text.substr(at, n));
        at += n;
    }
    return out;
}

// Of a text without user-defined tokens.
std::vector<Token> expected(const Tokenizer& tokenizer, const std::string& text) {
    std::vector<std::string> pieces;
    for (const std::string& c : characters_of(text)) {
        const bool ends_line = c == "\n";
        if (pieces.empty() || (pieces.back()[0] == '\n') != ends_line) pieces.emplace_back();
        pieces.back() += c == " " ? mark : c;
    }
    std::vector<Token> tokens;
    for (const std::string& piece : pieces) {
        if (piece[0] == '\n' && tokenizer.find(piece) >= 0) {
            tokens.push_back(tokenizer.find(piece));
            continue;
        }
        std::vector<std::string> parts = characters_of(piece);
        for (bool merged = true; merged;) {
            merged = false;
            for (std::size_t rank = 0; rank < merges.size() && !merged; rank++) {
                for (std::size_t i = 0; i + 1 < parts.size() && !merged; i++) {
                    if (parts[i] != merges[rank].first || parts[i + 1] != merges[rank].second) continue;
                    parts[i] += parts[i + 1];
                    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(i) + 1);
                    merged = true;
                }
            }
        }
        for (const std::string& part : parts) {
            if (tokenizer.find(part) >= 0) {
                tokens.push_back(tokenizer.find(part));
                continue;
            }
            for (const char byte : part)
                tokens.push_back(tokenizer.find(byte_token(static_cast<unsigned char>(byte))));
        }
    }
    return tokens;
}

}  // namespace

TEST_CASE("random texts become the tokens that merging in the order of the list makes, and come back") {
    const auto tokenizer = make();
    CHECK(std::string(tokenizer->kind()) == "gemma4");
    std::mt19937 random(1);
    const std::vector<std::string> letters = {"a", "b", "c",  "d",  "e", "f", "é", "日",
                                              " ", " ", "\n", "\n", "ü", "z", "a", "\xff"};
    for (int i = 0; i < 3000; i++) {
        std::string text;
        for (std::size_t n = random() % 24; n > 0; n--)
            text += letters[random() % letters.size()];
        CAPTURE(text);
        const std::vector<Token> tokens = encode(*tokenizer, text);
        REQUIRE(tokens == expected(*tokenizer, text));
        std::string back;
        REQUIRE(tokenizer->decode(tokens.data(), tokens.size(), {}, &back).ok());
        REQUIRE(back == text);
    }
}

TEST_CASE("line ends are parted from words, and a run that is a token is taken whole") {
    const auto tokenizer = make();
    const auto find = [&](const std::string& text) { return tokenizer->find(text); };
    CHECK(encode(*tokenizer, "a\n\n\nb") == std::vector<Token>{find("a"), find("\n\n\n"), find("b")});
    CHECK(encode(*tokenizer, "\n\n\n\n") == std::vector<Token>{find("\n\n\n\n")});
    CHECK(encode(*tokenizer, "  a") == std::vector<Token>{find(mark), find(mark + "a")});
    CHECK(encode(*tokenizer, "fef") == std::vector<Token>{find("fef")});
    // A merge that leads to no token is undone to bytes.
    CHECK(encode(*tokenizer, "fe") == std::vector<Token>{find("<0x66>"), find("<0x65>")});
    CHECK(encode(*tokenizer, "a[x] a") == std::vector<Token>{find("a"), find("[x]"), find(mark + "a")});
}

TEST_CASE("a text begins with BOS whatever the file says, and a tag of HTML ends nothing") {
    const auto tokenizer = make();
    std::vector<Token> tokens;
    REQUIRE(tokenizer->encode("a", {}, &tokens).ok());
    CHECK(tokens == std::vector<Token>{2, tokenizer->find("a")});
    CHECK(tokenizer->end_of_generation() == std::vector<Token>{1, 4});
    CHECK_FALSE(tokenizer->is_end_of_generation(tokenizer->find("</s>")));
}

TEST_CASE("without byte tokens what is no token is unknown") {
    const auto tokenizer = make(false);
    CHECK(encode(*tokenizer, "aza") == std::vector<Token>{tokenizer->find("a"), 3, tokenizer->find("a")});
    GgufWriter file = file_of(true);
    file.erase("tokenizer.ggml.merges");
    std::shared_ptr<const Tokenizer> none;
    CHECK(try_tokenizer(file, &none).code() == Code::missing_key);
}
