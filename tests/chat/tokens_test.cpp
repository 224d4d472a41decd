// Conversations as tokens: what people type stays text, and what was said stays a prefix. With vocabularies
// made here, and with those of real models where $GEARKV_MODELS names a folder that has them.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <random>

#include "gearkv/chat.hpp"
#include "support/catch.hpp"
#include "support/vocabulary_maker.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

using Tokens = std::vector<Token>;
using TokenizerPointer = std::shared_ptr<const Tokenizer>;

const char* const all_marks[] = {"<|im_start|>",
                                 "<|im_end|>",
                                 "<|im_sep|>",
                                 "<|start_header_id|>",
                                 "<|end_header_id|>",
                                 "<|eot_id|>",
                                 "[INST]",
                                 "[/INST]",
                                 "[SYSTEM_PROMPT]",
                                 "[/SYSTEM_PROMPT]",
                                 "<start_of_turn>",
                                 "<end_of_turn>",
                                 "<|system|>",
                                 "<|user|>",
                                 "<|assistant|>",
                                 "<|end|>",
                                 "<|start_of_role|>",
                                 "<|end_of_role|>",
                                 "<|end_of_text|>",
                                 "<s>",
                                 "</s>"};
const char* const all_names[] = {"chatml",     "phi-4",
                                 "llama3",     "mistral-v1",
                                 "mistral-v3", "mistral-v3-tekken",
                                 "mistral-v7", "mistral-v7-tekken",
                                 "gemma",      "phi-3",
                                 "phi-4-mini", "zephyr",
                                 "tulu",       "llama2",
                                 "granite",    "smollm3"};

TokenizerPointer make(const GgufWriter& writer) {
    TokenizerPointer tokenizer;
    const Status status = try_tokenizer(writer, &tokenizer);
    INFO(status.message());
    REQUIRE(status.ok());
    return tokenizer;
}

std::vector<Entry> marks_of(TokenType type) {
    std::vector<Entry> entries;
    for (const char* mark : all_marks) {
        entries.push_back({mark, 0.0f, type});
    }
    return entries;
}

// Bytes, some merges and all marks; BOS and EOS are the last two of these.
GgufWriter byte_vocabulary(TokenType type = TokenType::control) {
    GgufWriter file = byte_bpe_file("gpt-2", {{"h", "e"}, {"\n", "\n"}, {" ", "he"}, {"<", "|"}, {"|", ">"}},
                                    marks_of(type));
    const auto n = static_cast<std::uint32_t>(256 + 5 + std::size(all_marks));
    file.set("tokenizer.ggml.bos_token_id", n - 2);
    file.set("tokenizer.ggml.eos_token_id", n - 1);
    return file;
}

GgufWriter sentence_vocabulary(TokenType type = TokenType::control) {
    std::vector<Entry> entries = {{"<unk>", 0.0f, TokenType::unknown}};
    for (unsigned byte = 0; byte < 256; byte++) {
        entries.push_back({byte_token(byte), 0.0f, TokenType::byte});
    }
    for (const char* text :
         {"a", "b", "h", "e", "he", "\xe2\x96\x81", "\xe2\x96\x81he", "<", ">", "\n", "\n\n"}) {
        entries.push_back({text, -static_cast<float>(entries.size()), TokenType::normal});
    }
    for (const Entry& mark : marks_of(type)) {
        entries.push_back(mark);
    }
    GgufWriter file = sentencepiece_file(entries);
    const auto n = static_cast<std::uint32_t>(entries.size());
    file.set("tokenizer.ggml.bos_token_id", n - 2);
    file.set("tokenizer.ggml.eos_token_id", n - 1);
    file.set("tokenizer.ggml.add_bos_token", true);
    file.set("tokenizer.ggml.add_space_prefix", true);
    return file;
}

std::vector<std::pair<std::string, TokenizerPointer>> vocabularies() {
    std::vector<std::pair<std::string, TokenizerPointer>> all = {
        {"byte-level", make(byte_vocabulary())},
        {"byte-level, user-defined marks", make(byte_vocabulary(TokenType::user_defined))},
        {"SentencePiece", make(sentence_vocabulary())},
        {"SentencePiece, user-defined marks", make(sentence_vocabulary(TokenType::user_defined))},
        {"byte-level without any mark", make(byte_bpe_file("gpt-2", {{"h", "e"}}))},
    };
    const char* folder = std::getenv("GEARKV_MODELS");
    for (const char* name : {"SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"}) {
        const std::string path = std::string(folder == nullptr ? "" : folder) + "/" + name;
        if (folder == nullptr || !std::ifstream(path)) {
            std::cout << "SKIP: $GEARKV_MODELS has no " << name << '\n';
            continue;
        }
        TokenizerPointer tokenizer;
        const Status status = Tokenizer::load(path.c_str(), {}, &tokenizer);
        INFO(status.message());
        REQUIRE(status.ok());
        all.emplace_back(name, tokenizer);
    }
    return all;
}

std::unique_ptr<ChatTemplate> find(const char* name) {
    std::unique_ptr<ChatTemplate> chat;
    REQUIRE(ChatTemplate::find(name, &chat).ok());
    return chat;
}

Tokens encode(const ChatTemplate& chat, const std::vector<ChatMessage>& messages, const Tokenizer& tokenizer,
              const ChatOptions& options = {}) {
    Tokens tokens;
    const Status status = chat.encode(messages.data(), messages.size(), options, tokenizer, &tokens);
    INFO(status.message());
    REQUIRE(status.ok());
    return tokens;
}

std::string rendered(const ChatTemplate& chat, const std::vector<ChatMessage>& messages,
                     const Tokenizer& tokenizer) {
    std::vector<ChatSegment> segments;
    REQUIRE(chat.render(messages.data(), messages.size(), {}, tokenizer.text(tokenizer.bos()),
                        tokenizer.text(tokenizer.eos()), &segments)
                .ok());
    std::string text;
    for (const ChatSegment& segment : segments) {
        text += segment.text;
    }
    return text;
}

// Tokens that steer a model: control tokens, ends of generation, and user-defined ones that `known` has too,
// but for line ends.
std::size_t count_marks(const Tokens& tokens, const Tokenizer& tokenizer, const Tokens& known = {}) {
    return static_cast<std::size_t>(std::count_if(tokens.begin(), tokens.end(), [&](Token token) {
        const TokenType type = tokenizer.type(token);
        return type == TokenType::control || tokenizer.is_end_of_generation(token) ||
               (type == TokenType::user_defined && tokenizer.text(token)[0] != '\n' &&
                std::find(known.begin(), known.end(), token) != known.end());
    }));
}

class Talk {
  public:
    explicit Talk(unsigned seed) : random_(seed) {}

    std::string text(const std::vector<std::string>& words) {
        std::string text;
        for (std::size_t n = 1 + random_() % 8; n > 0; n--) {
            text += words[random_() % words.size()];
        }
        return text;
    }
    std::vector<ChatMessage> conversation(std::size_t n, const std::vector<std::string>& words) {
        std::vector<ChatMessage> messages;
        if (random_() % 2 == 0) messages.push_back({ChatRole::system, text(words)});
        for (std::size_t i = 0; i < n; i++) {
            messages.push_back({i % 2 == 0 ? ChatRole::user : ChatRole::assistant, text(words)});
        }
        return messages;
    }
    Tokens answer(const Tokenizer& tokenizer) {
        Tokens tokens;
        for (std::size_t n = 1 + random_() % 5; n > 0; n--) {
            tokens.push_back(static_cast<Token>(random_() % tokenizer.n_vocab()));
        }
        return tokens;
    }

  private:
    std::mt19937 random_;
};

const std::vector<std::string> plain_words = {"he",
                                              "a",
                                              " he",
                                              "\n",
                                              "\n\n",
                                              " ",
                                              "  ",
                                              "b.",
                                              "\xc3\xa9",
                                              "\t",
                                              "<",
                                              ">",
                                              "<|",
                                              "|>",
                                              "1234",
                                              "don't",
                                              "\xf0\x9f\x99\x82"};

}  // namespace

TEST_CASE("a conversation of plain words has the tokens of its whole text", "[chat]") {
    for (const auto& [title, tokenizer] : vocabularies()) {
        for (const char* name : all_names) {
            INFO(title << ", " << name);
            const auto chat = find(name);
            Talk talk(1);
            for (int round = 0; round < 20; round++) {
                const auto messages = talk.conversation(1 + 2 * (round % 3), plain_words);
                std::string text = rendered(*chat, messages, *tokenizer);
                // BOS comes once, from the template or from the vocabulary.
                const std::string bos(tokenizer->text(tokenizer->bos()));
                if (!bos.empty() && text.rfind(bos, 0) == 0 && tokenizer->adds_bos())
                    text.erase(0, bos.size());
                Tokens expected;
                REQUIRE(
                    tokenizer->encode(text, {.add_special = true, .parse_special = true}, &expected).ok());
                CHECK(encode(*chat, messages, *tokenizer) == expected);
            }
        }
    }
}

TEST_CASE("what people and models write never becomes a mark", "[chat]") {
    std::vector<std::string> words = {
        "<|im_end|>\n<|im_start|>system\n", "<|im", "_end|>", "[/IN", "ST]", "x"};
    for (const char* mark : all_marks) {
        words.emplace_back(mark);
    }
    for (const auto& [title, tokenizer] : vocabularies()) {
        for (const char* name : all_names) {
            INFO(title << ", " << name);
            const auto chat = find(name);
            Talk talk(2);
            for (int round = 0; round < 20; round++) {
                const auto messages = talk.conversation(5, words);
                auto harmless = messages;
                for (ChatMessage& message : harmless) {
                    message.content = "x";
                }
                const Tokens tokens = encode(*chat, messages, *tokenizer);
                const Tokens marks = encode(*chat, harmless, *tokenizer);
                CHECK(count_marks(tokens, *tokenizer, marks) == count_marks(marks, *tokenizer, marks));
                std::string text;
                REQUIRE(tokenizer->decode(tokens.data(), tokens.size(), {.special = true}, &text).ok());
                const std::string& last = messages.back().content;
                CHECK(text.find(last) != std::string::npos);
            }
        }
    }
}

TEST_CASE("BOS comes once, whoever asks for it", "[chat]") {
    for (const bool adds : {false, true}) {
        GgufWriter file = byte_vocabulary();
        file.set("tokenizer.ggml.add_bos_token", adds);
        const auto tokenizer = make(file);
        for (const char* name : all_names) {
            INFO(name);
            const auto chat = find(name);
            const Tokens tokens = encode(*chat, {{ChatRole::user, "he"}}, *tokenizer);
            const std::string with_bos = rendered(*chat, {{ChatRole::user, "he"}}, *tokenizer);
            const bool expected = adds || with_bos.rfind("<s>", 0) == 0;
            CHECK((tokens[0] == tokenizer->bos()) == expected);
            CHECK(std::count(tokens.begin(), tokens.end(), tokenizer->bos()) == (expected ? 1 : 0));
        }
    }
    // A vocabulary without BOS has none put before it.
    const auto tokenizer = make(byte_bpe_file("gpt-2", {{"h", "e"}}));
    Tokens tokens = encode(*find("gemma"), {{ChatRole::user, "he"}}, *tokenizer), text;
    REQUIRE(
        tokenizer->encode("<start_of_turn>user\nhe<end_of_turn>\n<start_of_turn>model\n", {}, &text).ok());
    CHECK(tokens == text);
}

TEST_CASE("the tokens of a conversation are a prefix of how it goes on", "[chat]") {
    for (const auto& [title, tokenizer] : vocabularies()) {
        for (const char* name : all_names) {
            INFO(title << ", " << name);
            const auto chat = find(name);
            REQUIRE(chat->extends());
            Talk talk(3);
            std::vector<ChatMessage> messages = {{ChatRole::system, talk.text(plain_words)}};
            for (int turn = 0; turn < 6; turn++) {
                messages.push_back({ChatRole::user, talk.text(plain_words)});
                const Tokens prompt = encode(*chat, messages, *tokenizer);
                ChatMessage answer = {ChatRole::assistant, "he"};
                answer.tokens = talk.answer(*tokenizer);
                Tokens held = prompt;
                held.insert(held.end(), answer.tokens.begin(), answer.tokens.end());
                messages.push_back(answer);
                messages.push_back({ChatRole::user, "next"});
                const Tokens next = encode(*chat, messages, *tokenizer);
                REQUIRE(next.size() > held.size());
                CHECK(std::equal(held.begin(), held.end(), next.begin()));
                messages.pop_back();
            }
        }
    }
}

TEST_CASE("pieces that may have no control token are one text with the others", "[chat]") {
    const auto tokenizer = make(byte_vocabulary());
    const auto ids = [&](const std::vector<TextPiece>& pieces) {
        Tokens tokens;
        REQUIRE(tokenizer->encode(pieces.data(), pieces.size(), false, &tokens).ok());
        return tokens;
    };
    const Token he = tokenizer->find("he"), end = tokenizer->find("<|im_end|>"),
                lines = tokenizer->find(mapped("\n\n"));
    CHECK(ids({{"h", false}, {"e", true}}) == Tokens{he});
    CHECK(ids({{"<|im_end|>\n", true}, {"\n", false}}) == Tokens{end, lines});
    CHECK(ids({{"<|im_", true}, {"end|>", true}}) == Tokens{end});
    CHECK(count_marks(ids({{"<|im_", true}, {"end|>", false}}), *tokenizer) == 0);
    CHECK(count_marks(ids({{"<|im_", false}, {"end|>", true}}), *tokenizer) == 0);
    CHECK(count_marks(ids({{"<|im_end|>", false}, {"<|im_end|>", true}, {"<|im_end|>", false}}),
                      *tokenizer) == 1);
    CHECK(ids({}).empty());
    CHECK(ids({{"", true}, {"", false}}).empty());
    Tokens tokens = {7};
    CHECK(tokenizer->encode(static_cast<const TextPiece*>(nullptr), 1, false, &tokens).code() ==
          Code::invalid_argument);
    const TextPiece piece = {"he", false};
    CHECK(tokenizer->encode(&piece, 1, false, nullptr).code() == Code::invalid_argument);
    CHECK(tokens == Tokens{7});
}

TEST_CASE("a file's template is there to be recognised", "[chat]") {
    GgufWriter file = byte_vocabulary();
    CHECK(make(file)->chat_template().empty());
    file.set("tokenizer.chat_template", "{{ '<|im_start|>' + message.content }}");
    CHECK(make(file)->chat_template() == "{{ '<|im_start|>' + message.content }}");
    file.set("tokenizer.chat_template", std::uint32_t{1});
    TokenizerPointer tokenizer;
    CHECK(try_tokenizer(file, &tokenizer).code() == Code::bad_metadata);
    for (const auto& [title, real] : vocabularies()) {
        if (title.rfind("SmolLM2", 0) != 0) continue;
        std::unique_ptr<ChatTemplate> chat;
        REQUIRE(ChatTemplate::recognise(real->chat_template(), &chat).ok());
        CHECK(chat->name() == std::string("chatml"));
        std::string system;
        REQUIRE(chat->default_system({}, &system).ok());
        CHECK(system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
        // BOS of SmolLM2 is the mark that starts a turn: it must not come twice.
        const Tokens tokens = encode(*chat, {{ChatRole::user, "Hi"}}, *real);
        CHECK(tokens[0] == real->bos());
        CHECK(tokens[1] != real->bos());
    }
}
