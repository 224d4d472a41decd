// The split rules of public vocabularies, as their own publishers write them.
#include "decoder/text/split.hpp"
#include "gearkv/tokenizer.hpp"

namespace gearkv {
namespace {

#define CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define ANY_CASE_CONTRACTIONS "(?i:" CONTRACTIONS ")"
#define GPT2 CONTRACTIONS R"(| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"
#define SPACES R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"
#define TAIL R"(| ?[^\s\p{L}\p{N}]+[\r\n]*)" SPACES
#define TAIL_WITH_SLASH R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*)" SPACES
#define LETTERS R"(|[^\r\n\p{L}\p{N}]?\p{L}+)"
// Letters that may begin a word of mixed case, and those that may end it.
#define UPPER R"([\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
#define LOWER R"([\p{Ll}\p{Lm}\p{Lo}\p{M}])"
#define WORD_TO_LOWER R"([^\r\n\p{L}\p{N}]?)" UPPER "*" LOWER "+"
#define WORD_OF_UPPER R"(|[^\r\n\p{L}\p{N}]?)" UPPER "+" LOWER "*"
#define CJK R"([\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+)"

constexpr SplitRule rules[] = {
    {"gpt-2, phi-2, exaone4, mpt, olmo", false, false, {GPT2}},
    {"smollm, starcoder, refact, command-r, exaone", false, false, {R"(\p{N})", GPT2}},
    {"llama-bpe, llama3, llama-v3, falcon3, pixtral, lfm2",
     true,
     true,
     {ANY_CASE_CONTRACTIONS LETTERS R"(|\p{N}{1,3})" TAIL}},
    {"dbrx, smaug-bpe", false, false, {ANY_CASE_CONTRACTIONS LETTERS R"(|\p{N}{1,3})" TAIL}},
    {"qwen2, deepseek-r1-qwen, megrez, stablelm2, hunyuan",
     false,
     false,
     {ANY_CASE_CONTRACTIONS LETTERS R"(|\p{N})" TAIL}},
    {"qwen35",
     false,
     false,
     {ANY_CASE_CONTRACTIONS
      R"(|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*)" SPACES}},
    {"deepseek-llm",
     false,
     false,
     {R"([\r\n])",
      R"(\s?[A-Za-z\xB5\xC0-\xD6\xD8-\xF6\xF8-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373})"
      R"(\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5})"
      R"(\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD})"
      R"(\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A})"
      R"(\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B})"
      R"(\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4})"
      R"(\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4})"
      R"(\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128})"
      R"(\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184})"
      R"(\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B})"
      R"(\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17})"
      R"(\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB})"
      R"(\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+)",
      R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)",
      // \s+$, written so that a run of spaces is looked through once and not from each of them.
      R"((?<!\s)\s++\z)", CJK, R"(\p{N}+)"}},
    {"deepseek-coder", false, false, {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", CJK, R"(\p{N})"}},
    {"deepseek-v3, hunyuan-dense",
     false,
     false,
     {R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
      R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
      R"(| ?[\p{P}\p{S}]+[\r\n]*)" SPACES}},
    {"tekken", true, true, {WORD_TO_LOWER WORD_OF_UPPER R"(|\p{N})" TAIL_WITH_SLASH}},
    {"gpt-4o, llama4",
     false,
     false,
     {WORD_TO_LOWER ANY_CASE_CONTRACTIONS "?" WORD_OF_UPPER ANY_CASE_CONTRACTIONS
                                          R"(?|\p{N}{1,3})" TAIL_WITH_SLASH}},
    {"falcon", false, false, {R"([\p{P}\$\+<=>\^~\|`]+)", GPT2, "[0-9][0-9][0-9]"}},
    {"default", false, false, {R"([\p{P}\$\+<=>\^~\|]+)", GPT2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
};

struct NameList {
    char text[640] = {};
};

// The names of all rules, or the first of each, joined at compile time so that nothing allocates.
template <bool first_only>
constexpr NameList join() {
    NameList list;
    std::size_t n = 0;
    for (const SplitRule& rule : rules) {
        for (const char* c = n == 0 ? "" : ", "; *c != 0; c++) {
            list.text[n++] = *c;
        }
        for (const char* c = rule.names; *c != 0 && !(first_only && *c == ','); c++) {
            list.text[n++] = *c;
        }
    }
    return list;
}

}  // namespace

const SplitRule* find_split_rule(std::string_view name) noexcept {
    for (const SplitRule& rule : rules) {
        std::string_view names = rule.names;
        for (;;) {
            const std::size_t end = names.find(", ");
            if (names.substr(0, end) == name) return &rule;
            if (end == std::string_view::npos) break;
            names.remove_prefix(end + 2);
        }
    }
    return nullptr;
}

const char* split_rule_names() noexcept {
    static constexpr auto all = join<false>();
    return all.text;
}

const char* main_split_rule_names() noexcept {
    static constexpr auto all = join<true>();
    return all.text;
}

}  // namespace gearkv
