// How texts are split before they merge: every rule, as tables of pieces.
#include "decoder/text/split.hpp"

#include <ctime>
#include <random>
#include <string>

#include "gearkv/tokenizer.hpp"
#include "support/catch.hpp"

using namespace gearkv;

namespace {

std::unique_ptr<Splitter> splitter(const char* name) {
    const SplitRule* rule = find_split_rule(name);
    REQUIRE(rule != nullptr);
    std::unique_ptr<Splitter> splitter;
    REQUIRE(create_splitter(*rule, &splitter).ok());
    return splitter;
}

std::vector<std::string> split(const Splitter& splitter, const std::string& text) {
    std::vector<std::uint32_t> ends = {77};
    REQUIRE(splitter.split(text, &ends).ok());
    std::vector<std::string> pieces;
    std::size_t begin = 0;
    for (const std::uint32_t end : ends) {
        REQUIRE(end > begin);
        pieces.push_back(text.substr(begin, end - begin));
        begin = end;
    }
    REQUIRE(begin == text.size());
    return pieces;
}

std::vector<std::string> all_names() {
    std::vector<std::string> names;
    const std::string all = split_rule_names();
    for (std::size_t at = 0; at < all.size();) {
        const std::size_t end = std::min(all.find(", ", at), all.size());
        names.push_back(all.substr(at, end - at));
        at = end + 2;
    }
    return names;
}

struct Case {
    const char* rule;
    std::vector<std::string> pieces;  // of the text that they make when joined
};

// Expected pieces come from another implementation of regular expressions, run on the published patterns.
const Case cases[] = {
    {"gpt-2", {"It", "'s", " HE", "'", "LL", " '", "tis"}},
    {"gpt-2", {" ", " a", "  ", " b", "\n", "\n", "c", "  "}},
    {"gpt-2", {"x", "12", " 345", "y"}},
    {"gpt-2", {"caf\xc3\xa9", " na", "\xcc\x81", "ive"}},
    {"gpt-2", {"!?", " \xe4\xbd\xa0\xe5\xa5\xbd", "\xe3\x80\x82"}},
    {"smollm", {"in", " ", "1", "9", "8", "4", ",", " ", "1", "2"}},
    {"smollm", {"a", " ", "7", "b"}},
    {"smollm", {"it", "'s"}},
    {"llama-bpe", {"It", "'s", " HE", "'LL", " I", "\xe2\x80\x99ll", " '", "S"}},
    {"llama-bpe", {"123", "456", "7"}},
    {"llama-bpe", {"$foo", ".bar", "(x", ")\n\n", " ", " y"}},
    {"llama-bpe", {"a", "  \n \n", " b", "  ", " c", " "}},
    {"llama-bpe", {"\xe0\xb8\x81\xe0\xb8\xb3", " ", "\xc2\xbd"}},
    {"qwen2", {"1", "2", "3", "4", " it", "'S"}},
    {"qwen2", {"\xd9\xa1", "\xd9\xa2"}},
    {"qwen35", {"na\xcc\x81ive", " ", "1", "2"}},
    {"qwen35", {"\xcc\x81x"}},
    {"qwen35", {"!\xcc\x81", "?"}},
    {"deepseek-coder", {"\r", "\n", "if", " x", "1", ":", "\n"}},
    {"deepseek-coder", {"\xe4\xbd\xa0\xe5\xa5\xbd", " foo", "_", "bar"}},
    {"deepseek-coder", {"a", " ", " b"}},
    {"deepseek-llm", {"caf", "\xc3\xa9", " ", "\xe0\xb8\x81", " ", "12", "\n"}},
    {"deepseek-llm", {"a", "   "}},
    {"deepseek-llm", {"\xe4\xbd\xa0\xe5\xa5\xbd", "ab", ",", " c", "!"}},
    {"deepseek-v3", {"123", "45", " .", "foo", " !!\n\n"}},
    {"deepseek-v3", {"\xe4\xbd\xa0\xe5\xa5\xbd\xe3\x82\xab\xe3\x82\xbf", "x"}},
    {"deepseek-v3", {"na\xcc\x81ive", " $", "5"}},
    {"tekken", {"Hello", "World", " HTTPServer", " x"}},
    {"tekken", {"\xc7\x85x", " ", "1", "2", " /", "a", "//\n/"}},
    {"tekken",
     {"\xc3\x89"
      "COLE\xc3\xa9t\xc3\xa9"}},
    {"tekken", {"don", "'t"}},
    {"gpt-4o", {"Hello", "World", " don't", " CAN'T", " '", "S"}},
    {"gpt-4o", {"123", "4", " //\n/", "x"}},
    {"gpt-4o", {"a\xcc\x81", "B"}},
    {"falcon", {"it", "'", "s", " ", "123", "45", "!"}},
    {"falcon", {"foo", "_", "bar", "+", "baz", " ", "`", "x", "`"}},
    {"default", {"a", " ", " ", "123", "4", ",", " b"}},
    {"default", {" `", "x", "`", " ", "$", "5"}},
    // U+017F is an s to whoever ignores case; U+180E has been no white space since Unicode 6.3.
    {"llama-bpe", {"it", "'\xc5\xbf"}},
    {"gpt-2", {"a", " \xe1\xa0\x8e", " b"}},
};

}  // namespace

TEST_CASE("every rule splits as its publishers do") {
    for (const Case& c : cases) {
        std::string text;
        for (const std::string& piece : c.pieces) {
            text += piece;
        }
        CAPTURE(c.rule, text);
        CHECK(split(*splitter(c.rule), text) == c.pieces);
    }
}

TEST_CASE("aliases split as the rule they stand for, and names are known by their whole") {
    const std::vector<std::string> names = all_names();
    CHECK(names.size() >= 30);
    for (const std::string& name : names) {
        CAPTURE(name);
        CHECK(find_split_rule(name) != nullptr);
        CHECK(find_split_rule(name + ",") == nullptr);
        CHECK(find_split_rule(name.substr(1)) == nullptr);
    }
    CHECK(find_split_rule("") == nullptr);
    CHECK(find_split_rule("gpt-2, phi-2") == nullptr);
    CHECK(find_split_rule("phi-2") == find_split_rule("gpt-2"));
    CHECK(find_split_rule("starcoder") == find_split_rule("smollm"));
    CHECK(find_split_rule("pixtral")->ignore_merges);
    CHECK(find_split_rule("llama-bpe")->adds_bos);
    CHECK_FALSE(find_split_rule("dbrx")->ignore_merges);
    CHECK_FALSE(find_split_rule("dbrx")->adds_bos);
    CHECK(find_split_rule("tekken")->ignore_merges);
    CHECK(find_split_rule("gpt-4o") == find_split_rule("llama4"));
}

TEST_CASE("pieces cover every text, whatever its bytes are") {
    std::mt19937 random(1);
    for (const std::string& name : all_names()) {
        const auto with = splitter(name.c_str());
        CHECK(split(*with, "").empty());
        for (int round = 0; round < 100; round++) {
            std::string text;
            for (std::size_t n = random() % 60; n > 0; n--) {
                text += static_cast<char>(
                    round % 2 == 0 ? random() : " \n\r'sS1a\xcc\x81\xe4\xb8\xad!\xff\xe2"[random() % 17]);
            }
            split(*with, text);  // checks them
        }
    }
}

TEST_CASE("a byte that is no UTF-8 is neither letter nor space") {
    CHECK(split(*splitter("gpt-2"), "ab\xff\xfe c\xe2\x82") ==
          std::vector<std::string>{"ab", "\xff\xfe", " c", "\xe2\x82"});
    CHECK(split(*splitter("gpt-2"), "ab\xed\xa0\x80 ") ==
          std::vector<std::string>{"ab", "\xed\xa0\x80", " "});
}

TEST_CASE("splitting takes time in proportion to the text", "[once]") {
    const std::string units[] = {"a",        "A", " ", "\n", "\n ",          "\xf0\x9f\x91\xa9\xe2\x80\x8d",
                                 "\xcc\x81", "7", "!", "'S", "\xe4\xb8\xad", "\xe3\x80\x80"};
    for (const char* name : {"gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "deepseek-llm",
                             "deepseek-coder", "deepseek-v3", "tekken", "gpt-4o", "falcon", "default"}) {
        const auto with = splitter(name);
        for (const std::string& unit : units) {
            for (const char* end : {"", "x", "\xc3\xa9"}) {
                std::string text;
                while (text.size() < 50000) {
                    text += unit;
                }
                text += end;
                CAPTURE(name, unit, end);
                std::vector<std::uint32_t> ends;
                const std::clock_t start = std::clock();
                REQUIRE(with->split(text, &ends).ok());
                // A quadratic search would take minutes.
                CHECK(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC < 5.0);
            }
        }
    }
}
