// The shapes that public models use.
#include "decoder/text/template.hpp"

namespace gearkv {
namespace {

ChatShape chatml(const char* name, const std::string& after_role, const std::string& after_content) {
    ChatShape shape;
    shape.name = name;
    shape.system = {"<|im_start|>system" + after_role, after_content};
    shape.user = {"<|im_start|>user" + after_role, after_content};
    shape.assistant = {"<|im_start|>assistant" + after_role, after_content};
    shape.generation = shape.assistant.before;
    return shape;
}

ChatShape llama3() {
    const auto header = [](const std::string& role) {
        return "<|start_header_id|>" + role + "<|end_header_id|>\n\n";
    };
    ChatShape shape;
    shape.name = "llama3";
    shape.system = {header("system"), "<|eot_id|>", true};
    shape.user = {header("user"), "<|eot_id|>", true};
    shape.assistant = {header("assistant"), "<|eot_id|>", true};
    shape.generation = shape.assistant.before;
    shape.writes_bos = true;
    return shape;
}

// Between the brackets of a question and before an answer: what the file writes.
ChatShape mistral(const char* name, const TurnShape& user, const TurnShape& assistant) {
    ChatShape shape;
    shape.name = name;
    shape.system = {"", "\n\n"};
    shape.user = user;
    shape.assistant = assistant;
    shape.system_place = SystemPlace::first_question;
    shape.alternates = true;
    shape.writes_bos = true;
    return shape;
}

ChatShape mistral_v7(const char* name, const std::string& space) {
    ChatShape shape = mistral(name, {"[INST]" + space, "[/INST]"}, {space, {eos_mark}});
    shape.system = {"[SYSTEM_PROMPT]" + space, "[/SYSTEM_PROMPT]"};
    shape.system_place = SystemPlace::own_turn;
    shape.alternates = false;
    return shape;
}

ChatShape llama2() {
    ChatShape shape = mistral("llama2", {"[INST] ", " [/INST]", true}, {" ", {' ', eos_mark}, true});
    shape.system = {"<<SYS>>\n", "\n<</SYS>>\n\n"};
    shape.trims_merged = true;
    shape.bos_each_turn = true;
    return shape;
}

ChatShape gemma() {
    ChatShape shape;
    shape.name = "gemma";
    shape.system = {"", "\n\n"};
    shape.user = {"<start_of_turn>user\n", "<end_of_turn>\n", true};
    shape.assistant = {"<start_of_turn>model\n", "<end_of_turn>\n", true};
    shape.generation = shape.assistant.before;
    shape.system_place = SystemPlace::first_question;
    shape.alternates = true;
    shape.writes_bos = true;
    return shape;
}

// <|role|>, then the content.
ChatShape bars(const char* name, const std::string& after_role, const std::string& after_question,
               const std::string& after_answer) {
    ChatShape shape;
    shape.name = name;
    shape.system = {"<|system|>" + after_role, after_question};
    shape.user = {"<|user|>" + after_role, after_question};
    shape.assistant = {"<|assistant|>" + after_role, after_answer};
    shape.generation = shape.assistant.before;
    return shape;
}

ChatShape granite() {
    const auto header = [](const std::string& role) {
        return "<|start_of_role|>" + role + "<|end_of_role|>";
    };
    ChatShape shape;
    shape.name = "granite";
    shape.system = {header("system"), "<|end_of_text|>\n"};
    shape.user = {header("user"), "<|end_of_text|>\n"};
    shape.assistant = {header("assistant"), "<|end_of_text|>\n"};
    shape.generation = shape.assistant.before;
    return shape;
}

const std::vector<ChatShape>& shapes() {
    const std::string eos = {eos_mark};
    // Never destroyed: a library leaves nothing behind for the end of its host.
    static const auto* const all = new std::vector<ChatShape>{
        chatml("chatml", "\n", "<|im_end|>\n"),
        chatml("phi-4", "<|im_sep|>", "<|im_end|>"),
        llama3(),
        mistral("mistral-v1", {" [INST] ", " [/INST]"}, {" ", eos}),
        mistral("mistral-v3", {"[INST] ", "[/INST]"}, {" ", eos, true}),
        mistral("mistral-v3-tekken", {"[INST]", "[/INST]"}, {"", eos}),
        mistral_v7("mistral-v7", " "),
        mistral_v7("mistral-v7-tekken", ""),
        gemma(),
        bars("phi-3", "\n", "<|end|>\n", "<|end|>\n"),
        bars("phi-4-mini", "", "<|end|>", "<|end|>"),
        bars("zephyr", "\n", eos + "\n", eos + "\n"),
        bars("tulu", "\n", "\n", eos + "\n"),
        llama2(),
        granite(),
    };
    return *all;
}

}  // namespace

const ChatShape* find_shape(std::string_view name) {
    for (const ChatShape& shape : shapes()) {
        if (shape.name == name) return &shape;
    }
    return nullptr;
}

const char* ChatTemplate::names() noexcept {
    return "chatml, phi-4, llama3, mistral-v1, mistral-v3, mistral-v3-tekken, mistral-v7, mistral-v7-tekken, "
           "gemma, phi-3, phi-4-mini, zephyr, tulu, llama2, granite";
}

}  // namespace gearkv
