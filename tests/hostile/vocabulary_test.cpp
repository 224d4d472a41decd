// Vocabularies, and texts made to hurt the tokenizer.
#include <cmath>

#include "gearkv/decoder.hpp"
#include "hostile/hostile.hpp"
#include "support/vocabulary_maker.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

// A model whose vocabulary has one changed entry; tokens 259 and up are normal ones.
struct Change {
    std::size_t token;
    std::string text;
    std::int32_t type;
};

std::string code_with(const Change& change) {
    std::vector<std::string> texts = test_vocabulary();
    std::vector<std::int32_t> types(texts.size(), 1);
    texts[change.token] = change.text;
    types[change.token] = change.type;
    GgufWriter file = sound();
    file.set_array("tokenizer.ggml.tokens", texts);
    file.set_array("tokenizer.ggml.token_type", types);
    return code_of(file);
}

// Loads nothing but a vocabulary, which is then refused for want of tensors when it is sound.
GgufWriter only_vocabulary(const std::vector<std::string>& texts) {
    GgufWriter file = sound();
    file.set_array("tokenizer.ggml.tokens", texts);
    file.set_array("tokenizer.ggml.scores", std::vector<float>(texts.size()));
    file.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>(texts.size(), 1));
    return file;
}

// The bundled embedding is made for test_vocabulary(): another size is a mismatch, and a sound vocabulary.
const char* const sound_vocabulary = "shape_mismatch";

// A model with this vocabulary and tensors to match.
std::shared_ptr<const Model> load_with(const std::vector<std::string>& texts, Bytes& bytes) {
    GgufWriter file = only_vocabulary(texts);
    GgufWriter::Tensor& embedding = file.tensor("token_embd.weight");
    embedding.dims = {32, texts.size()};
    embedding.data.resize(texts.size() * 32 * 4);
    file.erase("tokenizer.ggml.bos_token_id");
    file.erase("tokenizer.ggml.eos_token_id");
    bytes = file.write();
    std::shared_ptr<const FileModel> model;
    const Status status = FileModel::load_bytes(bytes.data(), bytes.size(), &model);
    INFO(status.message());
    REQUIRE(status.ok());
    return model;
}

double encode_seconds(const Tokenizer& tokenizer, const std::string& text) {
    std::vector<Token> tokens;
    const double start = cpu_seconds();
    const Status status = tokenizer.encode(text, {}, &tokens);
    INFO(status.message());
    REQUIRE(status.ok());
    return cpu_seconds() - start;
}

}  // namespace

TEST_CASE("a vocabulary that is absent, empty or of another kind is refused") {
    for (const char* key : {"tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.scores",
                            "tokenizer.ggml.token_type"}) {
        GgufWriter file = sound();
        file.erase(key);
        CHECK(code_of(file) == "missing_key");
        file.set(key, 5u);
        CHECK((code_of(file) == "bad_tokenizer" || code_of(file) == "bad_metadata"));
        file.set_array(key, std::vector<std::uint8_t>(292));
        CHECK((code_of(file) == "bad_tokenizer" || code_of(file) == "bad_metadata"));
    }
    GgufWriter file = sound();
    file.set("tokenizer.ggml.model", "bert");
    CHECK(code_of(file) == "unsupported_model");
    file.set("tokenizer.ggml.model", "gpt2");
    CHECK(code_of(file) == "missing_key");  // no merges
    CHECK(code_of(only_vocabulary({})) == "bad_tokenizer");
    GgufWriter one = only_vocabulary({"a"});
    CHECK(code_of(one) == "bad_tokenizer");  // BOS is token 1
    one.erase("tokenizer.ggml.bos_token_id");
    one.erase("tokenizer.ggml.eos_token_id");
    CHECK(code_of(one) == sound_vocabulary);
}

TEST_CASE("scores and types are as many as tokens, of their own type, and finite") {
    const std::size_t n = test_vocabulary().size();
    for (const std::size_t other : {std::size_t{0}, std::size_t{1}, n - 1, n + 1}) {
        GgufWriter file = sound();
        file.set_array("tokenizer.ggml.scores", std::vector<float>(other));
        CHECK(code_of(file) == "bad_tokenizer");
        file = sound();
        file.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>(other, 1));
        CHECK(code_of(file) == "bad_tokenizer");
    }
    GgufWriter file = sound();
    file.set_array("tokenizer.ggml.scores", std::vector<std::uint8_t>(n));
    CHECK(code_of(file) == "bad_tokenizer");
    file = sound();
    file.set_array("tokenizer.ggml.token_type", std::vector<std::uint8_t>(n, 1));
    CHECK(code_of(file) == "bad_tokenizer");
    for (const float score : {NAN, INFINITY, -INFINITY}) {
        file = sound();
        std::vector<float> scores(n);
        scores[n / 2] = score;
        file.set_array("tokenizer.ggml.scores", scores);
        CHECK(code_of(file) == "bad_tokenizer");
    }
}

TEST_CASE("special tokens are within the vocabulary") {
    const auto n = static_cast<std::uint32_t>(test_vocabulary().size());
    for (const char* key : {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
                            "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id"}) {
        for (const std::uint32_t id : {n, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
            GgufWriter file = sound();
            file.set(key, id);
            CHECK(code_of(file) == "bad_tokenizer");
        }
        GgufWriter file = sound();
        file.set(key, std::int32_t{-1});
        CHECK(code_of(file) == "bad_tokenizer");
        file.set(key, "0");
        CHECK(code_of(file) == "bad_tokenizer");
        file.set(key, n - 1);
        CHECK(code_of(file) == "ok");
    }
}

TEST_CASE("byte tokens have their form and types are known") {
    for (const char* text : {"<0x-1>", "<0xZZ>", "<0x", "<0x100>", "<0x1>", "", "<0x0G>", "<0X00>", "0x00",
                             "<0x00", "<0x 1>", "<0x+1>"}) {
        CAPTURE(text);
        CHECK(code_with({20, text, 6}) == "bad_tokenizer");
        CHECK(code_with({20, text, 1}) == "ok");
    }
    CHECK(code_with({20, "<0xaB>", 6}) == "ok");
    for (const std::int32_t type : {0, 7, -1, INT32_MAX, INT32_MIN}) {
        CHECK(code_with({20, "a", type}) == "bad_tokenizer");
    }
}

TEST_CASE("token texts may be empty, equal or no UTF-8, but not endless") {
    CHECK(code_with({270, "", 1}) == "ok");
    CHECK(code_with({270, "a", 1}) == "ok");
    CHECK(code_with({270, "\xff\xfe\x80", 1}) == "ok");
    CHECK(code_with({270, std::string("a\0b", 3), 1}) == "ok");
    CHECK(code_with({270, std::string(4096, 'a'), 1}) == "ok");
    CHECK(code_with({270, std::string(4097, 'a'), 1}) == "bad_tokenizer");
    CHECK(code_with({270, std::string(1 << 20, 'a'), 1}) == "bad_tokenizer");
}

TEST_CASE("more tokens than rows of the embedding are refused") {
    std::vector<std::string> texts = test_vocabulary();
    texts.push_back("zz");
    CHECK(code_of(only_vocabulary(texts)) == sound_vocabulary);
    texts.resize(texts.size() - 2);
    CHECK(code_of(only_vocabulary(texts)) == sound_vocabulary);
    CHECK(code_of(only_vocabulary(std::vector<std::string>((1u << 20) + 1)), {20.0, 64L << 20}) ==
          "bad_tokenizer");
}

TEST_CASE("vocabularies made to be slow load in bounded time") {
    // All prefixes of one text: every token has as many cuts as characters.
    std::vector<std::string> prefixes;
    for (std::size_t n = 1; n <= 2000; n++) {
        prefixes.emplace_back(n, 'a');
    }
    Bytes bytes;
    {
        const double start = cpu_seconds();
        const auto model = load_with(prefixes, bytes);
        CHECK(cpu_seconds() - start < 60.0);
        // Each merge makes the longest token it can; the text is far longer than any.
        CHECK(encode_seconds(model->tokenizer(), std::string(300000, 'a')) < 60.0);
    }
    // Many texts of one long common beginning.
    std::vector<std::string> similar(22000, std::string(800, 'b'));
    for (std::size_t i = 0; i < similar.size(); i++) {
        similar[i] += std::to_string(i);
    }
    CHECK(code_of(only_vocabulary(similar), {60.0, 256L << 20}) == "bad_tokenizer");  // 16 MiB are enough
    similar.resize(4000);
    const double start = cpu_seconds();
    load_with(similar, bytes);
    CHECK(cpu_seconds() - start < 60.0);
}

TEST_CASE("texts made for a quadratic merge are encoded in n log n") {
    Bytes bytes;
    const auto model =
        load_with({"a", "b", "aa", "aaaa", "aaaaaaaa", "ab", "ba", "\xe2\x96\x81", "<"}, bytes);
    for (const std::string pattern : {"a", "ab", "aab", " "}) {
        std::string text;
        while (text.size() < 1000000) {
            text += pattern;
        }
        CAPTURE(pattern);
        CHECK(encode_seconds(model->tokenizer(), text) < 60.0);
    }
}

namespace {

std::string code_of_vocabulary(const GgufWriter& file) {
    const Bytes bytes = file.write();
    const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[bytes.size()]);
    std::copy(bytes.begin(), bytes.end(), exact.get());
    GgufFile parsed;
    REQUIRE(parse_gguf_values(&parsed, exact.get(), bytes.size()).ok());
    std::shared_ptr<const Tokenizer> tokenizer;
    const double start = cpu_seconds();
    const Status status = create_tokenizer(parsed, {}, &tokenizer);
    UNSCOPED_INFO(status.message());
    REQUIRE(cpu_seconds() - start < 20.0);
    REQUIRE(status.ok() == (tokenizer != nullptr));
    return code_name(status.code());
}

std::string code_with_merges(const std::vector<std::string>& merges) {
    GgufWriter file = byte_bpe_file("gpt-2", {});
    file.set_array("tokenizer.ggml.merges", merges);
    return code_of_vocabulary(file);
}

}  // namespace

TEST_CASE("merges are two texts, of any bytes and any number up to a limit") {
    for (const char* merge : {"", "a", " ", "ab", "a ", " a", "  "}) {
        CAPTURE(merge);
        CHECK(code_with_merges({merge}) == "bad_tokenizer");
    }
    for (const char* merge :
         {"a b", "a b c", "  a", "a  b", "\xff\xfe \x80", "nothing known", "a b", "\xe2\x96\x81 a"}) {
        CAPTURE(merge);
        CHECK(code_with_merges({merge, merge}) == "ok");
    }
    CHECK(code_with_merges({std::string(4095, 'a') + " a"}) == "ok");
    CHECK(code_with_merges({std::string(4096, 'a') + " a"}) == "bad_tokenizer");
    CHECK(code_with_merges({}) == "ok");
    std::vector<std::string> many;
    for (int i = 0; i < 1000000; i++) {
        many.push_back(std::to_string(i) + " x");
    }
    CHECK(code_with_merges(many) == "ok");
    CHECK(code_with_merges(std::vector<std::string>((1u << 21) + 1, "a b")) == "bad_tokenizer");
    // 32 MiB of texts are enough.
    std::vector<std::string> large(10000, std::string(2000, 'a'));
    for (std::size_t i = 0; i < large.size(); i++) {
        large[i] += std::to_string(i) + " x";
    }
    CHECK(code_with_merges(large) == "bad_tokenizer");
    GgufWriter file = byte_bpe_file("gpt-2", {});
    file.set_array("tokenizer.ggml.merges", std::vector<std::int32_t>(9));
    CHECK(code_of_vocabulary(file) == "bad_tokenizer");
    file.set("tokenizer.ggml.merges", "a b");
    CHECK(code_of_vocabulary(file) == "bad_tokenizer");
}

TEST_CASE("keys of a byte-level vocabulary have their types, and ids their range") {
    const auto changed = [](auto&& change) {
        GgufWriter file = byte_bpe_file("gpt-2", {{"a", "b"}}, {{"<s>", 0, TokenType::control}});
        change(file);
        return code_of_vocabulary(file);
    };
    CHECK(changed([](GgufWriter& file) { file.set("tokenizer.ggml.pre", 5u); }) == "bad_metadata");
    CHECK(changed([](GgufWriter& file) { file.set("tokenizer.ggml.pre", "gpt"); }) == "unsupported_model");
    CHECK(changed([](GgufWriter& file) { file.erase("tokenizer.ggml.pre"); }) == "ok");
    CHECK(changed([](GgufWriter& file) { file.erase("tokenizer.ggml.token_type"); }) == "ok");
    CHECK(changed([](GgufWriter& file) {
              file.set_array("tokenizer.ggml.token_type", std::vector<std::int32_t>(257, 1));
          }) == "bad_tokenizer");
    CHECK(changed([](GgufWriter& file) { file.set("general.name", 5u); }) == "ok");
    for (const char* key : {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
                            "tokenizer.ggml.add_space_prefix"}) {
        CHECK(changed([&](GgufWriter& file) { file.set(key, 1u); }) == "bad_metadata");
        CHECK(changed([&](GgufWriter& file) { file.set(key, true); }) == "ok");
    }
    for (const char* name :
         {"bos", "eos", "unknown", "padding", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"}) {
        const std::string key = std::string("tokenizer.ggml.") + name + "_token_id";
        CAPTURE(key);
        CHECK(changed([&](GgufWriter& file) { file.set(key, 257u); }) == "ok");
        CHECK(changed([&](GgufWriter& file) { file.set(key, 258u); }) == "bad_tokenizer");
        CHECK(changed([&](GgufWriter& file) { file.set(key, std::int32_t{-1}); }) == "bad_tokenizer");
    }
}

TEST_CASE("special texts made to be slow are cut in bounded time, and have a limit") {
    // Every beginning of a run is a token: at most places of a long run that many end.
    std::vector<Entry> entries;
    for (std::size_t n = 1; n <= 1500; n++) {
        entries.push_back({std::string(n, 'a'), 0, TokenType::user_defined});
    }
    for (std::size_t n = 1; n <= 800; n++) {
        entries.push_back({"b" + std::string(n, 'a') + "c", 0, TokenType::control});
    }
    std::shared_ptr<const Tokenizer> tokenizer;
    REQUIRE(try_tokenizer(byte_bpe_file("gpt-2", {}, entries), &tokenizer).ok());
    for (const std::string& unit : {std::string("a"), "b" + std::string(700, 'a'), std::string("bac")}) {
        std::string text;
        while (text.size() < 300000) {
            text += unit;
        }
        for (const bool special : {false, true}) {
            std::vector<Token> tokens;
            const double start = cpu_seconds();
            REQUIRE(tokenizer->encode(text, {.parse_special = special}, &tokens).ok());
            CHECK(cpu_seconds() - start < 20.0);
        }
    }
    entries.assign(1000, {std::string(4000, 'x'), 0, TokenType::control});
    CHECK(code_of_vocabulary(byte_bpe_file("gpt-2", {}, entries)) == "bad_tokenizer");
}

TEST_CASE("integer scores order merges as floats do") {
    GgufWriter file = sentencepiece_file({{"a"}, {"b"}, {"c"}, {"ab"}, {"bc"}});
    file.set_array("tokenizer.ggml.scores", std::vector<std::int32_t>{0, 0, 0, -16777217, -16777216});
    std::shared_ptr<const Tokenizer> tokenizer;
    REQUIRE(try_tokenizer(file, &tokenizer).ok());
    std::vector<Token> tokens;
    REQUIRE(tokenizer->encode("abc", {}, &tokens).ok());
    CHECK(tokens == std::vector<Token>{0, 4});
}
