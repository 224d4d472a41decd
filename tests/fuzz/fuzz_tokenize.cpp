// Any bytes as a text, or as changes to a vocabulary. The first byte chooses the vocabulary, the second what
// is done: encoding and decoding gives the text back, in tokens of the vocabulary, whole and as a stream; and
// a changed file is refused or encodes without harm.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gearkv/decoder.hpp"
#include "support/vocabulary_maker.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

struct Subject {
    Bytes file;  // empty for that of the bundled model
    std::shared_ptr<const Tokenizer> tokenizer;
};

const std::string mark = "\xe2\x96\x81";  // for a space in SentencePiece vocabularies

GgufWriter sentencepiece_subject(bool space_prefix) {
    std::vector<Entry> entries = {{"<unk>", 0, TokenType::unknown},    {"<s>", 0, TokenType::control},
                                  {"</s>", 0, TokenType::control},     {"  ", 0, TokenType::user_defined},
                                  {"<t>", 0, TokenType::user_defined}, {"<t><s>", 0, TokenType::control}};
    for (unsigned byte = 0; byte < 256; byte++) {
        entries.push_back({byte_token(byte), 0, TokenType::byte});
    }
    for (const char* text :
         {"a", "b", "t", "<", ">", "s", "ab", "aa", "aaaa", "ba", "\xc3\xa9", "a\xc3\xa9"}) {
        entries.push_back({text, -static_cast<float>(entries.size() % 7)});
    }
    for (const std::string& text : {mark, mark + mark, mark + "a", mark + "ab"}) {
        entries.push_back({text, -static_cast<float>(entries.size() % 5)});
    }
    GgufWriter file = sentencepiece_file(entries);
    file.set("tokenizer.ggml.add_space_prefix", space_prefix);
    return file;
}

GgufWriter byte_bpe_subject(const std::string& pre) {
    return byte_bpe_file(pre,
                         {{"a", "b"},
                          {" ", " "},
                          {" ", "a"},
                          {"ab", "ab"},
                          {"\n", "\n"},
                          {"\xc3", "\xa9"},
                          {"'", "s"},
                          {"1", "2"},
                          {"12", "3"},
                          {"  ", "  "},
                          {"\xff", "\xff"},
                          {"a", "a"}},
                         {{"<s>", 0, TokenType::control},
                          {"<|im_end|>", 0, TokenType::normal},
                          {"\n\n\n", 0, TokenType::user_defined},
                          {"\n\n", 0, TokenType::user_defined},
                          {"<s><", 0, TokenType::unknown},
                          {"bc", 0, TokenType::user_defined}});
}

Subject subject_of(const GgufWriter& writer) {
    Subject subject;
    subject.file = writer.write();
    if (!try_tokenizer(writer, &subject.tokenizer).ok()) std::abort();
    return subject;
}

std::vector<Subject> make_subjects() {
    std::vector<Subject> subjects(1);
    if (!Tokenizer::load(GEARKV_MODEL_DIR "/tiny-q8_0.gguf", {}, &subjects[0].tokenizer).ok()) std::abort();
    subjects.push_back(subject_of(sentencepiece_subject(false)));
    subjects.push_back(subject_of(sentencepiece_subject(true)));
    for (const char* pre : {"gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "qwen35", "deepseek-llm",
                            "deepseek-coder", "deepseek-v3", "tekken", "gpt-4o", "falcon", "default"}) {
        subjects.push_back(subject_of(byte_bpe_subject(pre)));
    }
    return subjects;
}

// Spaces for the marks that stand for them.
std::string without_marks(const std::string& text) {
    std::string out;
    for (std::size_t at = 0; at < text.size();) {
        const bool found = text.compare(at, mark.size(), mark) == 0;
        out.push_back(found ? ' ' : text[at]);
        at += found ? mark.size() : 1;
    }
    return out;
}

void check_round_trip(const std::shared_ptr<const Tokenizer>& tokenizer, const std::string& text,
                      bool parse_special) {
    std::vector<Token> tokens;
    if (!tokenizer->encode(text, {.add_special = false, .parse_special = parse_special}, &tokens).ok())
        std::abort();
    for (const Token token : tokens) {
        if (token < 0 || static_cast<std::size_t>(token) >= tokenizer->n_vocab()) std::abort();
        const TokenType type = tokenizer->type(token);
        if (!parse_special && (type == TokenType::control || type == TokenType::unknown)) std::abort();
    }
    std::string decoded, streamed;
    if (!tokenizer->decode(tokens.data(), tokens.size(), {.special = true}, &decoded).ok()) std::abort();
    TextStream stream(tokenizer, {.special = true});
    for (const Token token : tokens) {
        if (!stream.push(token, &streamed).ok() || stream.n_held() > 3) std::abort();
    }
    if (!stream.flush(&streamed).ok() || streamed != decoded) std::abort();
    const bool marks = std::strcmp(tokenizer->kind(), "llama") == 0;
    if ((marks ? without_marks(decoded) : decoded) != (marks ? without_marks(text) : text)) std::abort();
}

// Every five bytes are a place and what is written there.
void check_changed(Bytes file, const std::uint8_t* data, std::size_t n_bytes) {
    for (; n_bytes >= 5; data += 5, n_bytes -= 5) {
        std::uint32_t place;
        std::memcpy(&place, data, sizeof(place));
        file[place % file.size()] = data[4];
    }
    GgufFile parsed;
    std::shared_ptr<const Tokenizer> tokenizer;
    Status status = parse_gguf_values(&parsed, file.data(), file.size());
    if (status.ok()) status = create_tokenizer(parsed, {}, &tokenizer);
    if (status.ok() != (tokenizer != nullptr)) std::abort();
    if (!status.ok()) {
        if (status.message()[0] == '\0') std::abort();
        return;
    }
    for (const char* text : {"ab ab<s>\n\n\n\xc3\xa9 'sabc123  \xff", "   ", "<t><s>aaaa"}) {
        std::vector<Token> tokens;
        std::string decoded;
        if (!tokenizer->encode(text, {.parse_special = true}, &tokens).ok()) continue;
        if (!tokenizer->decode(tokens.data(), tokens.size(), {}, &decoded).ok()) std::abort();
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes) {
    static const std::vector<Subject> subjects = make_subjects();
    if (n_bytes < 2) return 0;
    const std::string text(reinterpret_cast<const char*>(data + 2), n_bytes - 2);
    const std::size_t chosen = data[0] % (2 * subjects.size());  // one, or all of them
    for (std::size_t i = 0; i < subjects.size(); i++) {
        if (chosen < subjects.size() && chosen != i) continue;
        if (data[1] % 4 != 3) {
            check_round_trip(subjects[i].tokenizer, text, data[1] % 2 == 1);
        } else if (!subjects[i].file.empty()) {
            check_changed(subjects[i].file, data + 2, n_bytes - 2);
        }
    }
    return 0;
}
