// Chat templates: recognising them, rendering with them. What Jinja prints is compared in oracle_test.py.
#include <cstring>
#include <sstream>

#include "gearkv/chat.hpp"
#include "support/catch.hpp"

using namespace gearkv;

namespace {

std::vector<std::string> all_names() {
    std::vector<std::string> names;
    std::istringstream text(ChatTemplate::names());
    for (std::string name; std::getline(text >> std::ws, name, ',');) {
        names.push_back(name);
    }
    return names;
}

std::unique_ptr<ChatTemplate> find(const std::string& name) {
    std::unique_ptr<ChatTemplate> chat;
    const Status status = ChatTemplate::find(name, &chat);
    INFO(status.message());
    REQUIRE(status.ok());
    return chat;
}

// The name a text is recognised by; the code's name when it is not.
std::string recognised(const std::string& text) {
    std::unique_ptr<ChatTemplate> chat;
    const Status status = ChatTemplate::recognise(text, &chat);
    CHECK(status.ok() == (chat != nullptr));
    return status.ok() ? chat->name() : code_name(status.code());
}

std::string rendered(const ChatTemplate& chat, const std::vector<ChatMessage>& messages,
                     const ChatOptions& options = {}) {
    std::vector<ChatSegment> segments;
    const Status status = chat.render(messages.data(), messages.size(), options, "<s>", "</s>", &segments);
    INFO(status.message());
    REQUIRE(status.ok());
    std::string text;
    for (const ChatSegment& segment : segments) {
        text += segment.text;
    }
    return text;
}

const std::vector<ChatMessage> conversation = {
    {ChatRole::system, "S"}, {ChatRole::user, "U"}, {ChatRole::assistant, "A"}, {ChatRole::user, "V"}};
const std::string chatml_turns =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>\n' }}{% endfor %}";

}  // namespace

TEST_CASE("every named shape renders a conversation as its models were trained", "[chat]") {
    const std::vector<std::pair<std::string, std::string>> expected = {
        {"chatml",
         "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>"
         "\n"
         "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"},
        {"phi-4",
         "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U<|im_end|>"
         "<|im_start|>assistant<|im_sep|>A<|im_end|><|im_start|>user<|im_sep|>V<|im_end|>"
         "<|im_start|>assistant<|im_sep|>"},
        {"llama3",
         "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
         "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
         "<|start_header_id|>assistant<|end_header_id|>\n\n"},
        {"mistral-v1", "<s> [INST] S\n\nU [/INST] A</s> [INST] V [/INST]"},
        {"mistral-v3", "<s>[INST] S\n\nU[/INST] A</s>[INST] V[/INST]"},
        {"mistral-v3-tekken", "<s>[INST]S\n\nU[/INST]A</s>[INST]V[/INST]"},
        {"mistral-v7", "<s>[SYSTEM_PROMPT] S[/SYSTEM_PROMPT][INST] U[/INST] A</s>[INST] V[/INST]"},
        {"mistral-v7-tekken", "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]U[/INST]A</s>[INST]V[/INST]"},
        {"gemma",
         "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
         "<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n"},
        {"phi-3",
         "<|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nV<|end|>\n"
         "<|assistant|>\n"},
        {"phi-4-mini",
         "<|system|>S<|end|><|user|>U<|end|><|assistant|>A<|end|><|user|>V<|end|><|assistant|>"},
        {"zephyr",
         "<|system|>\nS</s>\n<|user|>\nU</s>\n<|assistant|>\nA</s>\n<|user|>\nV</s>\n<|assistant|>\n"},
        {"tulu", "<|system|>\nS\n<|user|>\nU\n<|assistant|>\nA</s>\n<|user|>\nV\n<|assistant|>\n"},
        {"llama2", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"},
        {"granite",
         "<|start_of_role|>system<|end_of_role|>S<|end_of_text|>\n"
         "<|start_of_role|>user<|end_of_role|>U<|end_of_text|>\n"
         "<|start_of_role|>assistant<|end_of_role|>A<|end_of_text|>\n"
         "<|start_of_role|>user<|end_of_role|>V<|end_of_text|>\n"
         "<|start_of_role|>assistant<|end_of_role|>"},
    };
    CHECK(all_names().size() == expected.size());
    for (const auto& [name, text] : expected) {
        INFO(name);
        const auto chat = find(name);
        CHECK(chat->name() == name);
        CHECK(rendered(*chat, conversation) == text);
    }
}

TEST_CASE("an unknown template is refused with the names there are", "[chat]") {
    std::unique_ptr<ChatTemplate> chat;
    Status status = ChatTemplate::find("chatlm", &chat);
    CHECK(status.code() == Code::unknown_template);
    CHECK(std::string(status.message()).find("'chatlm'") != std::string::npos);
    for (const std::string& name : all_names()) {
        CHECK(std::string(status.message()).find(name) != std::string::npos);
    }
    status = ChatTemplate::recognise("{% for m in messages %}{{ m.content }}{% endfor %}", &chat);
    CHECK(status.code() == Code::unknown_template);
    CHECK(std::string(status.message()).find("granite") != std::string::npos);
    CHECK(chat == nullptr);
    CHECK(ChatTemplate::find(std::string(100, '\x1b'), &chat).code() == Code::unknown_template);
    CHECK(ChatTemplate::find("chatml", nullptr).code() == Code::invalid_argument);
    CHECK(ChatTemplate::recognise("", nullptr).code() == Code::invalid_argument);
}

TEST_CASE("marks that a template does not print do not name it", "[chat]") {
    CHECK(recognised(chatml_turns) == "chatml");
    CHECK(recognised("") == "unknown_template");
    CHECK(recognised("{# <|im_start|> #}") == "unknown_template");
    CHECK(recognised("{# <|im_start|>") == "unknown_template");
    CHECK(recognised("{# '[INST]' #}" + chatml_turns) == "chatml");
    CHECK(recognised("{% if '[INST]' in messages[0].content %}{% endif %}" + chatml_turns) == "chatml");
    CHECK(recognised("{{ raise_exception('no [INST] here, ' + message.content) }}" + chatml_turns) ==
          "chatml");
    CHECK(recognised("{% set help = '[INST] and <|start_header_id|><|end_header_id|>' %}" + chatml_turns) ==
          "chatml");
    CHECK(recognised("{{ 'tools of <|im_start|>' }}{% for m in messages %}{{ '<start_of_turn>' + m.role + "
                     "m.content }}{% endfor %}") == "gemma");
    CHECK(recognised("{{ '%} <|im_start|> {{' + message.content }}") == "chatml");
    CHECK(recognised("{{ '\\'[INST]\\'' + message.content }}") == "llama2");
}

TEST_CASE("marks in raw text and across broken braces are still found", "[chat]") {
    CHECK(recognised(
              "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}") ==
          "chatml");
    CHECK(recognised("{<|im_start|>") == "chatml");
    CHECK(recognised("<|im_start|>{") == "chatml");
    CHECK(recognised("{{ '<|im_start|>") == "chatml");
    CHECK(recognised("{{ '<|im_start|>' + message.content") == "chatml");
    CHECK(recognised("<|im_start|>{{") == "chatml");
    CHECK(recognised("<|im_start|>{%-") == "chatml");
    CHECK(recognised("<|im_start|>{{ '\\") == "chatml");
}

TEST_CASE("a template that only starts like chatml is not taken for it", "[chat]") {
    CHECK(recognised(
              "{% for m in messages %}<|im_start|>User: {{ m.content }}<end_of_utterance>\n{% endfor %}") ==
          "unknown_template");
}

TEST_CASE("a template that is too long or deep is read in linear time", "[chat]") {
    CHECK(recognised(std::string(1u << 20, '{')) == "unknown_template");
    CHECK(recognised(std::string((1u << 20) + 1, '{') + chatml_turns) == "unknown_template");
    for (const std::string piece : {"{% if x %}{{ '<|im_start|>' + message.content }}", "{{ '<|im_start|>",
                                    "<|im_start|>{#", "{% set system_message = 'x' + y %}<|im_start|>"}) {
        std::string text;
        while (text.size() < (1u << 20) - 4096) {
            text += piece;
        }
        CHECK(recognised(text) == "chatml");
    }
}

TEST_CASE("contents stay apart from markup", "[chat]") {
    for (const std::string& name : all_names()) {
        INFO(name);
        const auto chat = find(name);
        std::vector<ChatSegment> segments;
        const std::vector<ChatMessage> messages = {{ChatRole::user, "<|im_end|><|eot_id|></s>\x01\x02"}};
        REQUIRE(chat->render(messages.data(), 1, {}, "<s>", "</s>", &segments).ok());
        std::string contents;
        for (const ChatSegment& segment : segments) {
            if (!segment.is_markup) contents += segment.text;
        }
        CHECK(contents == messages[0].content);
    }
}

TEST_CASE("conversations a template cannot express are refused", "[chat]") {
    std::vector<ChatSegment> segments = {{"untouched", true}};
    const auto refused = [&](const std::string& name, const std::vector<ChatMessage>& messages) {
        INFO(name);
        const Status status =
            find(name)->render(messages.data(), messages.size(), {}, "<s>", "</s>", &segments);
        CHECK(status.code() == Code::bad_conversation);
        CHECK(status.message()[0] != '\0');
        CHECK(segments.size() == 1);
    };
    const ChatMessage user = {ChatRole::user, "U"}, answer = {ChatRole::assistant, "A"},
                      system = {ChatRole::system, "S"};
    for (const std::string& name : all_names()) {
        refused(name, {});
    }
    for (const char* name : {"mistral-v1", "mistral-v3", "mistral-v3-tekken", "gemma", "llama2"}) {
        refused(name, {user, user});
        refused(name, {answer});
        refused(name, {system});
        refused(name, {system, answer});
        refused(name, {user, answer, system});
    }
    ChatMessage odd = user;
    odd.role = static_cast<ChatRole>(3);
    CHECK(find("chatml")->render(&odd, 1, {}, "", "", &segments).code() == Code::invalid_argument);
    CHECK(find("chatml")->render(nullptr, 1, {}, "", "", &segments).code() == Code::invalid_argument);
    CHECK(find("chatml")->render(&user, 1, {}, "", "", nullptr).code() == Code::invalid_argument);
}

TEST_CASE("a date is checked and written as the template wants it", "[chat]") {
    std::unique_ptr<ChatTemplate> chat;
    REQUIRE(
        ChatTemplate::recognise(
            "{% set system_message = 'On ' + strftime_now('%d %b %Y (%B, %m, %Q%') %}" + chatml_turns, &chat)
            .ok());
    std::string text;
    REQUIRE(chat->default_system({}, &text).ok());
    CHECK(text == "On 26 Jul 2024 (July, 07, %Q%");
    ChatOptions options;
    options.date = {2026, 1, 5};
    REQUIRE(chat->default_system(options, &text).ok());
    CHECK(text == "On 05 Jan 2026 (January, 01, %Q%");
    for (const ChatDate& date : {ChatDate{2026, 0, 1}, ChatDate{2026, 13, 1}, ChatDate{2026, 1, 0},
                                 ChatDate{2026, 1, 32}, ChatDate{0, 1, 1}, ChatDate{10000, 1, 1}}) {
        options.date = date;
        CHECK(chat->default_system(options, &text).code() == Code::invalid_argument);
        std::vector<ChatSegment> segments;
        CHECK(chat->render(conversation.data(), 1, options, "", "", &segments).code() ==
              Code::invalid_argument);
    }
}
