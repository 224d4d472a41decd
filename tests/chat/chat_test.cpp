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
        {"smollm3",
         "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 26 July 2024\n"
         "Reasoning Mode: /think\n\n## Custom Instructions\n\nS\n\n<|im_start|>user\nU<|im_end|>\n"
         "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n"},
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
    status = ChatTemplate::recognise("{% for m in messages %}{{ m.content | wordwrap }}{% endfor %}", &chat);
    CHECK(status.code() == Code::unknown_template);
    CHECK(std::string(status.message()).find("the filter 'wordwrap'") != std::string::npos);
    CHECK(chat == nullptr);
    CHECK(ChatTemplate::find(std::string(100, '\x1b'), &chat).code() == Code::unknown_template);
    CHECK(ChatTemplate::find("chatml", nullptr).code() == Code::invalid_argument);
    CHECK(ChatTemplate::recognise("", nullptr).code() == Code::invalid_argument);
}

TEST_CASE("a template is named by the marks it prints", "[chat]") {
    const auto turns = [](const std::string& before) {
        return "{% for m in messages %}{{ '" + before + "' + m.content }}{% endfor %}";
    };
    CHECK(recognised(chatml_turns) == "chatml");
    CHECK(recognised("{# '[INST]' #}" + chatml_turns) == "chatml");
    CHECK(recognised("{% if '[INST]' in messages[0].content %}[INST]{% endif %}" + chatml_turns) == "chatml");
    CHECK(recognised("{% if messages | length > 9 %}{{ raise_exception('[INST]') }}{% endif %}" +
                     chatml_turns) == "chatml");
    CHECK(recognised("{% set help = '[INST] and <|start_header_id|>' %}" + chatml_turns) == "chatml");
    CHECK(recognised("{% raw %}<|im_start|>{% if %}{% endraw %}" + turns("x")) == "chatml");
    CHECK(recognised(turns("%} <|im_start|> {{")) == "chatml");
    CHECK(recognised(turns("\\'<start_of_turn>\\'")) == "gemma");
    CHECK(recognised(turns("\n")) == "custom");
    CHECK(recognised(
              "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}") ==
          "chatml");
}

TEST_CASE("a template that cannot be run, or loses what it is told, is refused", "[chat]") {
    for (const char* text : {
             "",
             "no messages at all",
             "{<|im_start|>",
             "<|im_start|>{",
             "<|im_start|>{{",
             "<|im_start|>{%-",
             "{{ '<|im_start|>",
             "{{ '<|im_start|>' + message.content",
             "<|im_start|>{{ '\\",
             "{# <|im_start|>",
             "{% raw %}",
             "{% if %}",
             "{% endif %}",
             "{% for %}",
             "{% set %}",
             "{% macro %}",
             "{{ }}",
             "{{ ( }}",
             "{{ messages }}",
             "{{ messages[0].content }}",
             "{{ messages[-1].content }}",
             "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
             "{% for m in messages %}{{ m.content[1:] }}{% endfor %}",
             "{% include 'x' %}",
             "{% for m in messages %}{{ m.content.x.y }}{% endfor %}",
             "{{ 'a' 'b' c }}",
         }) {
        INFO(text);
        CHECK(recognised(text) == "unknown_template");
    }
    // Nothing but the steps a run may take ends these.
    for (const char* text : {
             "{% for i in range(1000000000) %}{% for j in range(1000000000) %}{% endfor %}{% endfor %}",
             "{% set n = namespace(s='ab') %}{% for i in range(100) %}{% set n.s = n.s + n.s %}{% endfor %}",
             "{% set n = namespace(s='ab') %}{% for i in range(100) %}{% set n.s = [n.s, n.s] | join('x') "
             "%}{% endfor %}",
             "{% set n = namespace(s=[1]) %}{% for i in range(100) %}{% set n.s = n.s + n.s %}{% endfor %}",
             "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
             "{% for i in range(3, 9, 0) %}{% endfor %}",
         }) {
        INFO(text);
        CHECK(recognised(text + chatml_turns) == "unknown_template");
    }
}

TEST_CASE("a template that is too long or deep is refused in linear time", "[chat]") {
    CHECK(recognised(std::string(1u << 20, '{')) == "unknown_template");
    CHECK(recognised(chatml_turns + std::string((1u << 20), ' ')) == "unknown_template");
    CHECK(recognised(chatml_turns + std::string((1u << 20) - chatml_turns.size(), ' ')) == "chatml");
    for (const std::string piece :
         {"{% if x %}", "{{ x }}", "{{ '<|im_start|>", "<|im_start|>{#", "{% set x = (", "{{ -", "{{ not ",
          "{{ x[", "{{ x | ", "{% for x in ", "{% raw %}", "\n\n\n{%- if x -%}\n\n"}) {
        std::string text;
        while (text.size() < (1u << 20) - 4096) {
            text += piece;
        }
        INFO(piece);
        const std::string name = recognised(text + chatml_turns);
        CHECK(name == (piece == "{{ x }}" ? "chatml" : "unknown_template"));
    }
    std::string deep, sum;
    for (int i = 0; i < 100000; i++) {
        deep += "(";
        sum += "x + ";
    }
    CHECK(recognised("{{ " + deep + " }}" + chatml_turns) == "unknown_template");
    CHECK(recognised("{{ " + sum + "x }}" + chatml_turns) == "unknown_template");
}

TEST_CASE("a system text without a place of its own goes before the first question", "[chat]") {
    const std::string no_system =
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}"
        "<{{ m.role }}>{{ m.content | trim }}{% endfor %}";
    const std::string drops_system =
        "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content | trim }}{% endif %}{% "
        "endfor %}";
    for (const std::string& text : {no_system, drops_system}) {
        std::unique_ptr<ChatTemplate> chat;
        REQUIRE(ChatTemplate::recognise(text, &chat).ok());
        CHECK(rendered(*chat, conversation) == "<user>S\n\nU<assistant>A<user>V");
        std::vector<ChatSegment> segments;
        const std::vector<ChatMessage> late = {{ChatRole::user, "U"}, {ChatRole::system, "S"}};
        CHECK(chat->render(late.data(), 2, {}, "", "", &segments).code() == Code::bad_conversation);
        CHECK(chat->render(conversation.data(), 1, {}, "", "", &segments).code() == Code::bad_conversation);
    }
    std::unique_ptr<ChatTemplate> chat;
    REQUIRE(ChatTemplate::recognise(no_system, &chat).ok());
    std::vector<ChatSegment> segments;
    const std::vector<ChatMessage> twice = {{ChatRole::user, "U"}, {ChatRole::user, "V"}};
    const Status status = chat->render(twice.data(), 2, {}, "", "", &segments);
    CHECK(status.code() == Code::bad_conversation);
    CHECK(std::string(status.message()) == "the chat template refuses the conversation: take turns");
}

TEST_CASE("smollm3 says date and mode, and leaves the thought out when told to", "[chat]") {
    const auto chat = find("smollm3");
    ChatOptions options;
    options.date = {2026, 1, 5};
    const std::string head =
        "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 05 January 2026\n"
        "Reasoning Mode: ";
    const auto text = [&](const std::vector<ChatMessage>& messages) {
        return rendered(*chat, messages, options);
    };
    const ChatMessage question = {ChatRole::user, "U"};
    const std::string thinks = "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n",
                      answers = thinks + "<think>\n\n</think>\n";
    const std::string own = "You are a helpful AI assistant named SmolLM, trained by Hugging Face.";
    CHECK(text({question}) == head + "/think\n\n## Custom Instructions\n\n" + own + "\n\n" + thinks);
    CHECK(text({{ChatRole::system, "S /no_think"}, question}) ==
          head + "/no_think\n\n## Custom Instructions\n\nS\n\n" + answers);
    CHECK(text({{ChatRole::system, "S/system_override "}, question}) ==
          "<|im_start|>system\nS<|im_end|>\n" + thinks);
    options.thinking = false;
    CHECK(text({question}) == head + "/no_think\n\n## Custom Instructions\n\n" + own + "\n\n" + answers);
    CHECK(text({{ChatRole::system, "/think"}, question}) ==
          head + "/think\n\n## Custom Instructions\n\n" + own + "\n\n" + thinks);
    std::string system;
    REQUIRE(chat->default_system(options, &system).ok());
    CHECK(system == own);
    CHECK(recognised("{{ '## Metadata\n\nKnowledge Cutoff Date: May\n' }}" + chatml_turns) == "smollm3");
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
    REQUIRE(ChatTemplate::recognise(
                "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nOn ' + "
                "strftime_now('%d %b %Y (%B, %m, %A, %a, %y, %H:%M:%S, %Q%') + '<|im_end|>\n' }}{% endif %}" +
                    chatml_turns,
                &chat)
                .ok());
    std::string text;
    REQUIRE(chat->default_system({}, &text).ok());
    CHECK(text == "On 26 Jul 2024 (July, 07, Friday, Fri, 24, 00:00:00, %Q%");
    ChatOptions options;
    options.date = {2026, 1, 5};
    REQUIRE(chat->default_system(options, &text).ok());
    CHECK(text == "On 05 Jan 2026 (January, 01, Monday, Mon, 26, 00:00:00, %Q%");
    for (const ChatDate& date : {ChatDate{2026, 0, 1}, ChatDate{2026, 13, 1}, ChatDate{2026, 1, 0},
                                 ChatDate{2026, 1, 32}, ChatDate{0, 1, 1}, ChatDate{10000, 1, 1}}) {
        options.date = date;
        CHECK(chat->default_system(options, &text).code() == Code::invalid_argument);
        std::vector<ChatSegment> segments;
        CHECK(chat->render(conversation.data(), 1, options, "", "", &segments).code() ==
              Code::invalid_argument);
    }
}
