// From the text of a template to its shape: which marks it prints, and what it does to contents.
#include <algorithm>
#include <iterator>
#include <map>
#include <optional>

#include "decoder/text/template.hpp"
#include "decoder/text/template_scan.hpp"

namespace gearkv {
namespace {

using Parts = std::vector<TemplatePart>;
using Tokens = std::vector<TemplateToken>;
using PartKind = TemplatePart::Kind;

// Prints something of a conversation: raw text, an output, or a variable made of a message. Conditions and
// other variables may quote any mark without printing it.
bool prints(const TemplatePart& part) {
    if (part.has_word("raise_exception")) return false;
    if (part.kind != PartKind::statement) return true;
    return part.starts_with("set") && (part.has_name("content") || part.has_name("role"));
}

bool has_mark(const TemplatePart& part, std::string_view mark) {
    return std::any_of(part.tokens.begin(), part.tokens.end(), [&](const TemplateToken& t) {
        return t.is_literal() && t.text.find(mark) != t.text.npos;
    });
}

bool has_mark(const Parts& parts, std::string_view mark) {
    return std::any_of(parts.begin(), parts.end(),
                       [&](const TemplatePart& part) { return prints(part) && has_mark(part, mark); });
}

bool has_literal(const Parts& parts, std::string_view literal) {
    return std::any_of(parts.begin(), parts.end(), [&](const TemplatePart& part) {
        return prints(part) &&
               std::any_of(part.tokens.begin(), part.tokens.end(),
                           [&](const TemplateToken& t) { return t.is_literal() && t.text == literal; });
    });
}

bool has_word(const Parts& parts, std::string_view word) {
    return std::any_of(parts.begin(), parts.end(),
                       [&](const TemplatePart& part) { return part.has_word(word); });
}

bool is_at(const Tokens& tokens, std::size_t at, std::string_view text) {
    return at < tokens.size() && tokens[at].is(text);
}

// Whether `name`, as a word or a key, is trimmed: name | trim, ['name'] | trim, name.strip().
bool trims(const TemplatePart& part, std::string_view name) {
    const Tokens& tokens = part.tokens;
    for (std::size_t i = 0; i < tokens.size(); i++) {
        if (tokens[i].kind == TemplateToken::Kind::sign || tokens[i].text != name) continue;
        std::size_t next = i + 1;
        while (is_at(tokens, next, "]") || is_at(tokens, next, ")")) {
            next++;
        }
        if (is_at(tokens, next, "|") && is_at(tokens, next + 1, "trim")) return true;
        if (is_at(tokens, next, ".") && is_at(tokens, next + 1, "strip")) return true;
    }
    return false;
}

// Literals and dates joined by +, from *at on; nothing when there is anything else.
class TextReader {
  public:
    // Remembers {% set today = strftime_now('%Y-%m-%d') %}.
    void note_date(const Tokens& tokens) {
        if (tokens.size() < 6 || !tokens[0].is("set") || !tokens[2].is("=") || !tokens[3].is("strftime_now"))
            return;
        if (tokens[5].is_literal()) dates_[tokens[1].text] = tokens[5].text;
    }

    std::optional<DatedText> read(const Tokens& tokens, std::size_t at) const {
        DatedText text;
        while (at < tokens.size()) {
            const TemplateToken& token = tokens[at];
            if (token.is_literal()) {
                text.pieces.push_back({token.text, false});
                at += 1;
            } else if (token.is("strftime_now") && is_at(tokens, at + 1, "(") && at + 3 < tokens.size() &&
                       tokens[at + 2].is_literal() && is_at(tokens, at + 3, ")")) {
                text.pieces.push_back({tokens[at + 2].text, true});
                at += 4;
            } else if (dates_.count(token.text) != 0) {
                text.pieces.push_back({dates_.at(token.text), true});
                at += 1;
            } else {
                return std::nullopt;
            }
            if (at < tokens.size() && !tokens[at].is("+")) return std::nullopt;
            at += 1;
        }
        const bool blank = std::all_of(text.pieces.begin(), text.pieces.end(),
                                       [](const DatedText::Piece& piece) { return piece.text.empty(); });
        if (blank) return std::nullopt;
        return text;
    }

  private:
    std::map<std::string, std::string> dates_;
};

bool names_default(std::string_view variable) {
    constexpr std::string_view end = "default_system_message";
    return variable.size() >= end.size() && variable.substr(variable.size() - end.size()) == end;
}

// What a variable for the system text is set to when the conversation has none: an assignment, and what the
// branch without tools and documents adds to it.
DatedText assigned_default(const Parts& parts) {
    TextReader reader;
    DatedText found;
    std::vector<char> skipped;  // for every open condition: whether its branch is about something else
    std::size_t n_skipped = 0;
    bool after_else = false;
    for (const TemplatePart& part : parts) {
        if (part.kind != PartKind::statement) continue;
        const Tokens& tokens = part.tokens;
        const bool asks = part.starts_with("if") || part.starts_with("elif");
        if (part.starts_with("if")) skipped.push_back(0);
        if (!skipped.empty() && (asks || part.starts_with("else"))) {
            n_skipped -= static_cast<std::size_t>(skipped.back());
            skipped.back() = asks && !part.has_name("role") ? 1 : 0;
            n_skipped += static_cast<std::size_t>(skipped.back());
        }
        if (part.starts_with("endif") && !skipped.empty()) {
            n_skipped -= static_cast<std::size_t>(skipped.back());
            skipped.pop_back();
        }
        reader.note_date(tokens);
        const bool assigns = tokens.size() > 3 && tokens[0].is("set") && tokens[2].is("=") &&
                             (tokens[1].is("system_message") || names_default(tokens[1].text));
        if (assigns && n_skipped == 0) {
            const bool adds = tokens[3].is("system_message") && is_at(tokens, 4, "+");
            const auto text = reader.read(tokens, adds ? 5 : 3);
            if (text && !adds && found.empty()) found = *text;
            if (text && adds && after_else && !found.empty()) {
                found.pieces.insert(found.pieces.end(), text->pieces.begin(), text->pieces.end());
            }
        }
        after_else = part.starts_with("else");
    }
    return found;
}

// The literals a part prints, with a zero for everything else.
std::string printed_literals(const TemplatePart& part) {
    std::string joined;
    for (const TemplateToken& token : part.tokens) {
        if (token.is("+")) continue;
        joined += token.is_literal() ? token.text : std::string(1, '\0');
    }
    return joined;
}

// A system turn printed with its text in one literal, or in literals joined by +.
DatedText printed_default(const Parts& parts, const TurnShape& system) {
    const std::string end = system.after.substr(0, system.after.find_last_not_of('\n') + 1);
    for (const TemplatePart& part : parts) {
        if (!prints(part)) continue;
        const std::string joined = printed_literals(part);
        const std::size_t first = joined.find(system.before);
        if (first == joined.npos) continue;
        const std::size_t begin = first + system.before.size();
        const std::size_t last = joined.find(end, begin);
        if (last == joined.npos || last == begin) continue;
        const std::string text = joined.substr(begin, last - begin);
        if (text.find('\0') == text.npos) return {{{text, false}}};
    }
    return {};
}

// "[INST]" or "[/INST]" with the spaces a literal puts around it, when there is nothing else in that literal
// on `open` side.
void read_brackets(const Parts& parts, ChatShape& shape) {
    bool opened = false;
    bool closed = false;
    for (const TemplatePart& part : parts) {
        if (!prints(part)) continue;
        for (const TemplateToken& token : part.tokens) {
            if (!token.is_literal()) continue;
            const std::string& text = token.text;
            const std::size_t open = text.find("[INST]");
            if (!opened && open != text.npos && text.find_first_not_of(' ', open + 6) == text.npos) {
                const std::size_t first = open > 0 && text[open - 1] == ' ' ? open - 1 : open;
                shape.user.before = text.substr(first);
                opened = true;
            }
            const std::size_t close = text.find("[/INST]");
            if (!closed && close != text.npos && text.find_first_not_of(' ') == close &&
                text.find_first_not_of(' ', close + 7) == text.npos) {
                shape.user.after = text;
                closed = true;
            }
        }
        if (part.has_name("content") && has_mark(part, "[INST]")) shape.user.trim = trims(part, "content");
    }
}

// The output that prints an answer: literal + content + literal + eos_token + literal.
void read_answer(const Parts& parts, ChatShape& shape) {
    for (const TemplatePart& part : parts) {
        const Tokens& tokens = part.tokens;
        if (part.kind != PartKind::output || !part.has_word("eos_token") || !part.has_name("content"))
            continue;
        const bool leads = tokens.size() > 1 && tokens[0].is_literal() && tokens[1].is("+");
        shape.assistant.before = leads ? tokens[0].text : "";
        shape.assistant.after = eos_mark;
        for (std::size_t i = 1; i < tokens.size(); i++) {
            if (!tokens[i].is_literal() || !tokens[i - 1].is("+")) continue;
            if (is_at(tokens, i + 1, "+") && is_at(tokens, i + 2, "eos_token"))
                shape.assistant.after.insert(0, tokens[i].text);
            if (i >= 2 && tokens[i - 2].is("eos_token")) shape.assistant.after += tokens[i].text;
        }
        shape.assistant.trim = trims(part, "content");
        return;
    }
}

// The family that writes questions in brackets.
ChatShape recognise_brackets(const Parts& parts) {
    if (has_mark(parts, "[SYSTEM_PROMPT]")) {
        const bool spaced = has_mark(parts, "[SYSTEM_PROMPT] ") || has_mark(parts, "[INST] ");
        ChatShape shape = *find_shape(spaced ? "mistral-v7" : "mistral-v7-tekken");
        read_answer(parts, shape);
        shape.default_system = assigned_default(parts);
        return shape;
    }
    const bool sys = has_mark(parts, "<<SYS>>");
    const bool v1 = has_literal(parts, " [INST] ");
    const bool tools = has_mark(parts, "[AVAILABLE_TOOLS]");
    const char* name = sys                            ? "llama2"
                       : v1                           ? "mistral-v1"
                       : has_literal(parts, "[INST]") ? "mistral-v3-tekken"
                       : tools                        ? "mistral-v3"
                                                      : "llama2";
    ChatShape shape = *find_shape(name);
    if (!sys) shape.system = find_shape("mistral-v1")->system;
    read_brackets(parts, shape);
    read_answer(parts, shape);
    if (shape.user.after == "[/INST]" && shape.name == std::string_view("llama2") && !sys)
        shape.name = find_shape("mistral-v3")->name;
    shape.trims_merged = sys && shape.user.trim;
    shape.writes_bos = has_word(parts, "bos_token");
    shape.bos_each_turn = false;
    for (const TemplatePart& part : parts) {
        if (prints(part) && part.has_word("bos_token") && has_mark(part, "[INST]"))
            shape.bos_each_turn = true;
        const bool condition = part.starts_with("if") || part.starts_with("elif");
        if (condition && part.has_word("last") && part.has_word("system_message"))
            shape.system_place = SystemPlace::last_question;
    }
    return shape;
}

// Llama 3.1 and later always write a system turn, with two dates as a rule.
void read_prelude(const Parts& parts, ChatShape& shape) {
    TextReader reader;
    std::string fixed_date;
    for (const TemplatePart& part : parts) {
        const Tokens& tokens = part.tokens;
        reader.note_date(tokens);
        if (part.starts_with("set") && tokens.size() == 4 && tokens[1].is("date_string") &&
            tokens[3].is_literal())
            fixed_date = tokens[3].text;
        if (part.kind != PartKind::output || tokens.empty() || !tokens[0].is_literal()) continue;
        if (printed_literals(part) == shape.system.before) shape.always_system = true;
        const bool cutting = tokens[0].text.rfind("Cutting Knowledge Date:", 0) == 0;
        const bool today = tokens[0].text.rfind("Today Date: ", 0) == 0;
        if (!cutting && !today) continue;
        auto text = reader.read(tokens, 0);
        if (!text && tokens.size() == 5 && tokens[2].is("date_string") && tokens[4].is_literal()) {
            text = DatedText{{{tokens[0].text + fixed_date + tokens[4].text, false}}};
        }
        if (!text) continue;
        auto& pieces = shape.system_prelude.pieces;
        pieces.insert(pieces.end(), text->pieces.begin(), text->pieces.end());
    }
}

// Whether a question ends with the end of text: zephyr does it, tulu and olmo2 do not.
bool ends_questions(const Parts& parts) {
    for (const TemplatePart& part : parts) {
        if (!prints(part) || !has_mark(part, "<|user|>") || !part.has_name("content")) continue;
        return part.has_word("eos_token") || has_mark(part, "</s>") || has_mark(part, "<|endoftext|>");
    }
    return true;
}

void read_thoughts(const Parts& parts, ChatShape& shape) {
    const std::string thinks = shape.generation + "<think>\n";
    for (const TemplatePart& part : parts) {
        if (part.kind == PartKind::output && printed_literals(part) == thinks) shape.generation = thinks;
    }
    for (const TemplatePart& part : parts) {
        if (part.kind != PartKind::statement || !part.has_word("split") || !part.has_name("content"))
            continue;
        for (const TemplateToken& token : part.tokens) {
            if (token.is_literal() && token.text == "</think>") shape.forgets_thoughts = true;
        }
    }
    if (has_word(parts, "enable_thinking")) shape.no_thinking = "<think>\n\n</think>\n\n";
}

// Chooses by the marks in `marked`, some of the parts.
bool choose_shape(const Parts& parts, const Parts& marked, ChatShape* out) {
    const auto has = [&](std::string_view mark) { return has_mark(marked, mark); };
    const auto take = [&](const char* name) {
        *out = *find_shape(name);
        return true;
    };
    if (has("<|im_start|>")) {
        if (has_mark(parts, "<end_of_utterance>")) return false;
        return take(has("<|im_sep|>") ? "phi-4" : "chatml");
    }
    if (has("[INST]")) {
        *out = recognise_brackets(parts);
        return true;
    }
    if (has("<|assistant|>") && has("<|end|>"))
        return take(has("<|assistant|>\n") || has("<|user|>") ? "phi-3" : "phi-4-mini");
    if (has("<|assistant|>") && has("<|user|>")) return take(ends_questions(parts) ? "zephyr" : "tulu");
    if (has("<|start_header_id|>") && has("<|end_header_id|>")) return take("llama3");
    if (has("<|start_of_role|>")) return take("granite");
    if (has("<start_of_turn>")) return take("gemma");
    return false;
}

// A mark beside a message's role or content says more than one that is printed elsewhere, with a list of
// tools as it may be.
bool choose_shape(const Parts& parts, ChatShape* out) {
    Parts beside;
    std::copy_if(parts.begin(), parts.end(), std::back_inserter(beside),
                 [](const TemplatePart& part) { return part.has_name("content") || part.has_name("role"); });
    return choose_shape(parts, beside, out) || choose_shape(parts, parts, out);
}

}  // namespace

bool recognise_shape(std::string_view text, ChatShape* out) {
    const Parts parts = scan_template(text);
    ChatShape shape;
    if (!choose_shape(parts, &shape)) return false;
    if (shape.user.before.find("[INST]") == std::string::npos) {
        const auto printed_trimmed = [&](const char* name) {
            return std::any_of(parts.begin(), parts.end(),
                               [&](const TemplatePart& part) { return prints(part) && trims(part, name); });
        };
        const bool trim = printed_trimmed("content");
        shape.user.trim = shape.assistant.trim = trim;
        if (shape.system_place == SystemPlace::own_turn) {
            shape.system.trim = trim || printed_trimmed("system_message");
            shape.default_system = printed_default(parts, shape.system);
            if (shape.default_system.empty()) shape.default_system = assigned_default(parts);
        }
    }
    shape.writes_bos = has_word(parts, "bos_token");
    if (shape.name == std::string_view("llama3")) read_prelude(parts, shape);
    read_thoughts(parts, shape);
    *out = std::move(shape);
    return true;
}

}  // namespace gearkv
