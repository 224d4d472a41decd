// Byte-level BPE, on small vocabularies.
#include <algorithm>
#include <random>

#include "gearkv/decoder.hpp"
#include "support/catch.hpp"
#include "support/vocabulary_maker.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

using Merges = std::vector<std::pair<std::string, std::string>>;

std::shared_ptr<const Tokenizer> make(const GgufWriter& file, const TokenizerOptions& options = {}) {
    std::shared_ptr<const Tokenizer> tokenizer;
    const Status status = try_tokenizer(file, &tokenizer, options);
    INFO(status.message());
    REQUIRE(status.ok());
    return tokenizer;
}

std::string code_of(const GgufWriter& file, const TokenizerOptions& options = {}) {
    std::shared_ptr<const Tokenizer> tokenizer;
    return code_name(try_tokenizer(file, &tokenizer, options).code());
}

std::vector<Token> encode(const Tokenizer& tokenizer, const std::string& text,
                          const EncodeOptions& options = {}) {
    std::vector<Token> tokens;
    const Status status = tokenizer.encode(text, options, &tokens);
    INFO(status.message());
    REQUIRE(status.ok());
    return tokens;
}

std::string decode(const Tokenizer& tokenizer, const std::vector<Token>& tokens) {
    std::string text;
    REQUIRE(tokenizer.decode(tokens.data(), tokens.size(), {.special = true}, &text).ok());
    return text;
}

// The definition, quadratic: the pair that comes first in the list, leftmost, until none is in it.
std::vector<std::string> merge_plainly(const Merges& merges, const std::string& text) {
    std::vector<std::string> pieces;
    for (const char c : text) {
        pieces.emplace_back(1, c);
    }
    for (;;) {
        std::size_t best = merges.size(), at = 0;
        for (std::size_t i = 0; i + 1 < pieces.size(); i++) {
            const auto found = std::find(merges.begin(), merges.end(), std::pair(pieces[i], pieces[i + 1]));
            const auto rank = static_cast<std::size_t>(found - merges.begin());
            if (rank >= best) continue;
            best = rank;
            at = i;
        }
        if (best == merges.size()) return pieces;
        pieces[at] += pieces[at + 1];
        pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
}

}  // namespace

TEST_CASE("merging by rank agrees with the quadratic definition") {
    std::mt19937 random(5);
    for (int round = 0; round < 200; round++) {
        Merges merges;
        std::vector<std::string> known = {"a", "b", "c", "d"};
        for (int i = 0; i < 14; i++) {
            const std::pair<std::string, std::string> merge(known[random() % known.size()],
                                                            known[random() % known.size()]);
            if (std::find(merges.begin(), merges.end(), merge) != merges.end()) continue;
            merges.push_back(merge);
            known.push_back(merge.first + merge.second);
        }
        const auto tokenizer = make(byte_bpe_file("gpt-2", merges));
        std::string text;
        for (int i = 0; i < 50; i++) {
            text += "abcd"[random() % 4];
        }
        std::vector<std::string> found;
        for (const Token token : encode(*tokenizer, text)) {
            found.emplace_back(tokenizer->text(token));
        }
        REQUIRE(found == merge_plainly(merges, text));
    }
}

TEST_CASE("any bytes survive byte-level encoding and decoding") {
    const Merges merges = {{" ", "a"},       {" ", " "},       {"\n", "\n"},
                           {"\xc3", "\xa9"}, {"\xff", "\xfe"}, {"a", "b"}};
    std::mt19937 random(2);
    for (const char* pre : {"gpt-2", "smollm", "llama-bpe", "qwen35", "deepseek-llm", "deepseek-coder",
                            "deepseek-v3", "tekken", "gpt-4o", "falcon", "default"}) {
        const auto tokenizer = make(byte_bpe_file(pre, merges));
        for (int round = 0; round < 100; round++) {
            std::string text;
            for (std::size_t n = random() % 60; n > 0; n--) {
                text += static_cast<char>(round % 2 == 0 ? random() : " ab\n\xc3\xa9\xff\xfe"[random() % 8]);
            }
            CHECK(decode(*tokenizer, encode(*tokenizer, text)) == text);
        }
    }
}

TEST_CASE("nothing merges across the pieces of a split") {
    const auto tokenizer = make(byte_bpe_file("gpt-2", {{"a", " "}, {"a", "1"}, {" ", "a"}}));
    CHECK(encode(*tokenizer, "a a1") == std::vector<Token>{'a', 258, '1'});
    CHECK(encode(*tokenizer, "").empty());
}

TEST_CASE("a piece that is a token is taken whole only where merges are ignored") {
    // "abc" is a token that no merge leads to.
    const std::vector<Entry> entries = {{"abc"}};
    const std::vector<Token> merged = {256, 'c'}, whole = {257};
    CHECK(encode(*make(byte_bpe_file("dbrx", {{"a", "b"}}, entries)), "abc") == merged);
    CHECK(encode(*make(byte_bpe_file("llama-bpe", {{"a", "b"}}, entries)), "abc") == whole);
    CHECK(encode(*make(byte_bpe_file("tekken", {{"a", "b"}}, entries)), "abc") == whole);
    CHECK(encode(*make(byte_bpe_file("gpt-4o", {{"a", "b"}}, entries)), "abc") == merged);
}

TEST_CASE("merges that lead to no token give bytes, and go on through what is none") {
    GgufWriter file = byte_bpe_file("gpt-2", {}, {{"abc"}});
    file.set_array("tokenizer.ggml.merges", std::vector<std::string>{"a b", "ab c", "x y"});
    const auto tokenizer = make(file);
    CHECK(encode(*tokenizer, "abc") == std::vector<Token>{256});
    CHECK(encode(*tokenizer, "ab") == std::vector<Token>{'a', 'b'});
    CHECK(encode(*tokenizer, "xy") == std::vector<Token>{'x', 'y'});
}

TEST_CASE("bytes without a token become the unknown one, or an error that names them") {
    std::vector<std::string> texts = {"a", "b", "ab", "<unk>"};
    GgufWriter file;
    file.set("tokenizer.ggml.model", "gpt2");
    file.set("tokenizer.ggml.pre", "gpt-2");
    file.set_array("tokenizer.ggml.tokens", texts);
    file.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{1, 1, 1, 2});
    file.set_array("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
    std::vector<Token> tokens = {42};
    const Status status = make(file)->encode("abz", {}, &tokens);
    CHECK(status.code() == Code::bad_tokenizer);
    CHECK(std::string(status.message()).find("'z'") != std::string::npos);
    CHECK(tokens == std::vector<Token>{42});
    file.set("tokenizer.ggml.unknown_token_id", std::uint32_t{3});
    CHECK(encode(*make(file), "abza") == std::vector<Token>{2, 3, 0});
}

TEST_CASE("bytes that are no UTF-8 become U+FFFD where not every byte has a token") {
    GgufWriter file = byte_bpe_file("gpt-2", {});
    std::vector<std::string> texts;
    for (unsigned byte = 0; byte < 256; byte++) {
        texts.push_back(byte == 0xf5 ? "never" : mapped_byte(byte));
    }
    file.set_array("tokenizer.ggml.tokens", texts);
    CHECK(decode(*make(file), encode(*make(file), "a\xf5\xe9")) == "a\xef\xbf\xbd\xef\xbf\xbd");
}

TEST_CASE("a rule that is not known is refused with the list, unless another is chosen") {
    const GgufWriter file = byte_bpe_file("brand-new\x1b[31m", {});
    std::shared_ptr<const Tokenizer> tokenizer;
    const Status status = try_tokenizer(file, &tokenizer);
    CHECK(status.code() == Code::unsupported_model);
    const std::string message = status.message();
    CHECK(message.find("brand-new\\x1b") != std::string::npos);
    for (const char* name : {"gpt-2", "llama-bpe", "smollm", "falcon", "default and"}) {
        CHECK(message.find(name) != std::string::npos);
    }
    CHECK(std::string(make(file, {.pre = "qwen2"})->pre()) == "qwen2");
    CHECK(code_of(byte_bpe_file("gpt-2", {}), {.pre = "nothing"}) == "unsupported_model");
    CHECK(std::string(make(byte_bpe_file("gpt-2", {}))->note()).empty());
}

TEST_CASE("a vocabulary that does not say how it is split is told of") {
    const auto tokenizer = make(byte_bpe_file("", {}));
    CHECK(std::string(tokenizer->pre()) == "default");
    CHECK(std::string(tokenizer->note()).find("guess") != std::string::npos);
    CHECK(std::string(make(byte_bpe_file("", {}), {.pre = "gpt-2"})->note()).empty());
    CHECK_FALSE(std::string(make(byte_bpe_file("default", {}))->note()).empty());
}

TEST_CASE("BOS comes by the rule when the file does not say, and never where there is no BOS") {
    const std::vector<Entry> entries = {{"<s>", 0, TokenType::control}, {"</s>", 0, TokenType::control}};
    GgufWriter file = byte_bpe_file("llama-bpe", {}, entries);
    CHECK(encode(*make(file), "a") == std::vector<Token>{'a'});  // no id in the file
    file.set("tokenizer.ggml.bos_token_id", std::uint32_t{256});
    file.set("tokenizer.ggml.eos_token_id", std::uint32_t{257});
    CHECK(encode(*make(file), "a") == std::vector<Token>{256, 'a'});
    CHECK(encode(*make(file), "a", {.add_special = false}) == std::vector<Token>{'a'});
    CHECK(encode(*make(file, {.pre = "gpt-2"}), "a") == std::vector<Token>{'a'});
    file.set("tokenizer.ggml.add_bos_token", false);
    file.set("tokenizer.ggml.add_eos_token", true);
    CHECK(encode(*make(file), "a") == std::vector<Token>{'a', 257});
    CHECK(encode(*make(file), "") == std::vector<Token>{257});
}
