// Templates by name, written as Jinja.
#include "decoder/text/template.hpp"

#include "gearkv/chat.hpp"

namespace gearkv {
namespace {

// Every message alike: before the role, between role and content, behind the content.
std::string turns(const std::string& before, const std::string& between, const std::string& after,
                  const std::string& content = "m.content") {
    return "{% for m in messages %}{{ '" + before + "' + m.role + '" + between + "' + " + content + " + '" +
           after + "' }}{% endfor %}{% if add_generation_prompt %}{{ '" + before + "assistant" + between +
           "' }}{% endif %}";
}

// <|role|>, then the content; answers may end otherwise than questions.
std::string bars(const std::string& end_question, const std::string& end_answer) {
    return "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + (" + end_answer +
           " if m.role == 'assistant' else " + end_question +
           ") }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";
}

// Questions and answers in turn, with the system text in `s` and the question in `q` for what prints one.
std::string in_turn(const std::string& question, const std::string& answer, const std::string& ask = "") {
    return "{% set s = messages[0].content if messages[0].role == 'system' %}"
           "{% set all = messages[1:] if messages[0].role == 'system' else messages %}"
           "{% if not all %}{{ raise_exception('a question is expected behind the system text') }}{% endif %}"
           "{% for m in all %}"
           "{% if m.role != ('user' if loop.index0 is even else 'assistant') %}"
           "{{ raise_exception('questions and answers are expected in turn') }}{% endif %}"
           "{% set q = m.content %}{% set has_system = loop.first and s is defined %}"
           "{% if m.role == 'user' %}{{ " +
           question + " }}{% else %}{{ " + answer +
           " }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '" + ask + "' }}{% endif %}";
}

std::string mistral(const std::string& before, const std::string& after, const std::string& answer) {
    return "{{ bos_token }}" +
           in_turn("'" + before + "' + (s + '\\n\\n' if has_system else '') + q + '" + after + "'",
                   answer + " + eos_token");
}

std::string mistral_v7(const std::string& space) {
    return "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ '[SYSTEM_PROMPT]" + space +
           "' + m.content + '[/SYSTEM_PROMPT]' }}{% elif m.role == 'user' %}{{ '[INST]" + space +
           "' + m.content + '[/INST]' }}{% else %}{{ '" + space +
           "' + m.content + eos_token }}{% endif %}{% endfor %}";
}

// Its metadata, and the thought that is left out when the system text, or the caller, says so.
std::string smollm3() {
    return "{% set text = messages[0].content if messages[0].role == 'system' else '' %}"
           "{% set thinks = not ('/no_think' in text) and ('/think' in text or enable_thinking is not "
           "defined or"
           " enable_thinking) %}"
           "{% set custom = text.replace('/no_think', '').replace('/think', '').rstrip() %}"
           "{% set opening = '<|im_start|>assistant\\n' + ('' if thinks else '<think>\\n\\n</think>\\n') %}"
           "{{ '<|im_start|>system\\n' }}{% if '/system_override' in text %}"
           "{{ custom.replace('/system_override', '').rstrip() + '<|im_end|>\\n' }}{% else %}"
           "{{ '## Metadata\\n\\nKnowledge Cutoff Date: June 2025\\nToday Date: ' + strftime_now('%d %B %Y') "
           "+"
           " '\\nReasoning Mode: ' + ('/think' if thinks else '/no_think') + '\\n\\n## Custom "
           "Instructions\\n\\n' +"
           " (custom or 'You are a helpful AI assistant named SmolLM, trained by Hugging Face.') + '\\n\\n' "
           "}}"
           "{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
           "{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}{% elif m.role == 'assistant' %}"
           "{{ opening + m.content.lstrip('\\n') + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
           "{% if add_generation_prompt %}{{ opening }}{% endif %}";
}

bool has(const std::string& markup, const char* mark) {
    return markup.find(mark) != std::string::npos;
}

const char* kin_in_brackets(const std::string& markup) {
    if (has(markup, "[SYSTEM_PROMPT]"))
        return has(markup, "[INST] ") || has(markup, "[SYSTEM_PROMPT] ") ? "mistral-v7" : "mistral-v7-tekken";
    if (has(markup, "<<SYS>>")) return "llama2";
    const std::size_t open = markup.find("[INST]");
    if (open > 0 && markup[open - 1] == ' ') return "mistral-v1";
    if (!has(markup, "[INST] ")) return "mistral-v3-tekken";
    return has(markup, " [/INST]") ? "llama2" : "mistral-v3";
}

}  // namespace

std::string named_template(std::string_view name) {
    if (name == "chatml") return turns("<|im_start|>", "\\n", "<|im_end|>\\n");
    if (name == "phi-4") return turns("<|im_start|>", "<|im_sep|>", "<|im_end|>");
    if (name == "smollm3") return smollm3();
    if (name == "llama3") {
        return "{{ bos_token }}" +
               turns("<|start_header_id|>", "<|end_header_id|>\\n\\n", "<|eot_id|>", "m.content | trim");
    }
    if (name == "mistral-v1") return mistral(" [INST] ", " [/INST]", "' ' + q");
    if (name == "mistral-v3") return mistral("[INST] ", "[/INST]", "' ' + q | trim");
    if (name == "mistral-v3-tekken") return mistral("[INST]", "[/INST]", "q");
    if (name == "mistral-v7") return mistral_v7(" ");
    if (name == "mistral-v7-tekken") return mistral_v7("");
    if (name == "gemma") {
        return "{{ bos_token }}" + in_turn(
                                       "'<start_of_turn>user\\n' + (s + '\\n\\n' if has_system else '') + q "
                                       "| trim + '<end_of_turn>\\n'",
                                       "'<start_of_turn>model\\n' + q | trim + '<end_of_turn>\\n'",
                                       "<start_of_turn>model\\n");
    }
    if (name == "phi-3") return turns("<|", "|>\\n", "<|end|>\\n");
    if (name == "phi-4-mini") return turns("<|", "|>", "<|end|>");
    if (name == "zephyr") return bars("eos_token + '\\n'", "eos_token + '\\n'");
    if (name == "tulu") return bars("'\\n'", "eos_token + '\\n'");
    if (name == "llama2") {
        return in_turn(
            "bos_token + '[INST] ' + (('<<SYS>>\\n' + s + '\\n<</SYS>>\\n\\n' if has_system else '') + q) |"
            " trim + ' [/INST]'",
            "' ' + q | trim + ' ' + eos_token");
    }
    if (name == "granite") return turns("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>\\n");
    return {};
}

const char* kin_of(const std::string& markup) {
    if (has(markup, "<|im_start|>")) {
        if (has(markup, "<|im_sep|>")) return "phi-4";
        return has(markup, "## Metadata\n\nKnowledge Cutoff Date:") ? "smollm3" : "chatml";
    }
    if (has(markup, "[INST]")) return kin_in_brackets(markup);
    if (has(markup, "<|assistant|>")) {
        if (has(markup, "<|end|>")) return has(markup, "<|assistant|>\n") ? "phi-3" : "phi-4-mini";
        if (has(markup, "<|user|>")) return has(markup, "</s>\n<|assistant|>") ? "zephyr" : "tulu";
    }
    if (has(markup, "<|start_header_id|>")) return "llama3";
    if (has(markup, "<start_of_turn>")) return "gemma";
    if (has(markup, "<|start_of_role|>")) return "granite";
    return "custom";
}

const char* ChatTemplate::names() noexcept {
    return "chatml, phi-4, smollm3, llama3, mistral-v1, mistral-v3, mistral-v3-tekken, mistral-v7, "
           "mistral-v7-tekken, "
           "gemma, phi-3, phi-4-mini, zephyr, tulu, llama2, granite";
}

}  // namespace gearkv
