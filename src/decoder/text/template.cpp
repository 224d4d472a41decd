// Conversations through the Jinja of a file, or of a name.
#include "decoder/text/template.hpp"

#include <algorithm>
#include <map>

#include "decoder/gguf/gguf.hpp"
#include "decoder/gguf/guarded.hpp"
#include "decoder/text/jinja_run.hpp"

namespace gearkv {
namespace {

constexpr std::size_t max_template_bytes = std::size_t{1} << 20;
constexpr std::size_t max_messages = std::size_t{1} << 20;

const char* role_name(ChatRole role) {
    return role == ChatRole::system ? "system" : role == ChatRole::user ? "user" : "assistant";
}

// Messages that tell how a template treats conversations.
struct Probed {
    const ChatMessage system = {ChatRole::system, "Rules apply"};
    const ChatMessage questions[3] = {
        {ChatRole::user, "First thing"}, {ChatRole::user, "Next thing"}, {ChatRole::user, "Last thing"}};
    const ChatMessage answer = {ChatRole::assistant, "Some answer"};
    const ChatMessage thought = {ChatRole::assistant, "<think>\nA thought\n</think>\n\nThe answer"};
};

// Where a message stands in what was rendered; no bytes when it does not.
struct Span {
    std::size_t begin = 0;
    std::size_t end = 0;
};

std::vector<Span> find_spans(const MarkedText& text, std::size_t n_messages) {
    std::vector<Span> spans(n_messages);
    for (std::size_t i = 0; i < text.origins.size(); i++) {
        if (text.origins[i] == 0) continue;
        Span& span = spans[text.origins[i] - 1];
        if (span.end == 0) span.begin = i;
        span.end = i + 1;
    }
    return spans;
}

std::string_view trimmed(std::string_view text) {
    while (const std::size_t n = space_bytes(text)) {
        text.remove_prefix(n);
    }
    for (bool found = true; found;) {
        found = false;
        for (std::size_t n = 1; n <= 3 && n <= text.size() && !found; n++) {
            found = space_bytes(text.substr(text.size() - n)) == n;
            if (found) text.remove_suffix(n);
        }
    }
    return text;
}

// Whether a message stands there as it was written, but for white space around it.
bool is_whole(const MarkedText& text, const Span& span, const ChatMessage& message) {
    const std::string_view found = std::string_view(text.bytes).substr(span.begin, span.end - span.begin);
    const bool pure = std::all_of(text.origins.begin() + static_cast<std::ptrdiff_t>(span.begin),
                                  text.origins.begin() + static_cast<std::ptrdiff_t>(span.end),
                                  [&](char32_t origin) { return origin == text.origins[span.begin]; });
    return span.end > 0 && pure && trimmed(found) == trimmed(message.content);
}

bool is_markup(const MarkedText& text, std::size_t begin, std::size_t end) {
    return std::all_of(text.origins.begin() + static_cast<std::ptrdiff_t>(begin),
                       text.origins.begin() + static_cast<std::ptrdiff_t>(end),
                       [](char32_t origin) { return origin == 0; });
}

// Whether a message stands there at least once.
bool is_told(const MarkedText& text, std::size_t index, const std::string& content) {
    const std::u32string origins(content.size(), static_cast<char32_t>(index + 1));
    for (std::size_t at = 0; (at = text.bytes.find(content, at)) != std::string::npos; at++) {
        if (text.origins.compare(at, origins.size(), origins) == 0) return true;
    }
    return false;
}

// What a conversation is made of: text, or the tokens of an answer as they were generated.
struct Piece {
    std::string text;
    bool is_markup;
    const std::vector<Token>* tokens = nullptr;
};

void add_text(const MarkedText& text, std::size_t begin, std::size_t end, std::vector<Piece>* pieces) {
    for (std::size_t at = begin; at < end;) {
        const bool is_markup = text.origins[at] == 0;
        std::size_t next = at;
        while (next < end && (text.origins[next] == 0) == is_markup) {
            next++;
        }
        const std::string_view part = std::string_view(text.bytes).substr(at, next - at);
        const bool joins =
            !pieces->empty() && pieces->back().tokens == nullptr && pieces->back().is_markup == is_markup;
        if (joins) {
            pieces->back().text += part;
        } else {
            pieces->push_back({std::string(part), is_markup});
        }
        at = next;
    }
}

class JinjaTemplate final : public ChatTemplate {
  public:
    // Reads and tries a template; throws JinjaError, also when it does not say what it is told.
    explicit JinjaTemplate(std::string_view text) : tree_(parse_jinja(text)) {
        const Probed probed;
        const ChatMessage &first = probed.questions[0], &second = probed.questions[1],
                          &answer = probed.answer;
        try {
            (void)run_probe({first});
        } catch (const JinjaError&) {
            // Some templates take tools that are none for tools; engines differ in what they give.
            tools_are_none_ = false;
        }
        if (!tells_all({first})) throw JinjaError{"it does not print a question"};
        if (!tells_all({first, answer, second}))
            throw JinjaError{"it does not print an answer between questions"};
        merges_system_ = !tells_all_or_fails({probed.system, first});
        MarkedText whole = run_probe({first, answer, second});
        if (tells_all_or_fails({probed.system, first, answer, second}))
            whole = run_probe({probed.system, first, answer, second});
        std::string markup;
        for (std::size_t i = 0; i < whole.bytes.size(); i++) {
            markup += whole.origins[i] == 0 ? whole.bytes[i] : '\0';
        }
        name_ = kin_of(markup);
        extends_ = goes_on({}) && goes_on({probed.system});
    }

    const char* name() const noexcept override { return name_; }
    bool extends() const noexcept override { return extends_; }

    Status default_system(const ChatOptions& options, std::string* out) const noexcept override {
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        if (Status status = check(options); !status.ok()) return status;
        return reporting([&] {
            *out = default_system(options);
            return Status();
        });
    }

    Status render(const ChatMessage* messages, std::size_t n_messages, const ChatOptions& options,
                  std::string_view bos, std::string_view eos,
                  std::vector<ChatSegment>* out) const noexcept override {
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        Status status = check(options);
        if (status.ok()) status = check(messages, n_messages);
        if (!status.ok()) return status;
        return reporting([&] {
            const MarkedText text = run(messages, n_messages, options, bos, eos);
            std::vector<Piece> pieces;
            add_text(text, 0, text.bytes.size(), &pieces);
            std::vector<ChatSegment> segments;
            for (Piece& piece : pieces) {
                segments.push_back({std::move(piece.text), piece.is_markup});
            }
            *out = std::move(segments);
            return Status();
        });
    }

    Status encode(const ChatMessage* messages, std::size_t n_messages, const ChatOptions& options,
                  const Tokenizer& tokenizer, std::vector<Token>* out) const noexcept override {
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        Status status = check(options);
        if (status.ok()) status = check(messages, n_messages);
        if (!status.ok()) return status;
        return reporting([&] {
            std::vector<Piece> pieces = with_answers(messages, n_messages, options, tokenizer);
            // BOS is put first here, once, whoever asks for it.
            const std::string_view bos = tokenizer.text(tokenizer.bos());
            const bool writes_bos = !bos.empty() && !pieces.empty() && pieces[0].is_markup &&
                                    pieces[0].text.compare(0, bos.size(), bos) == 0;
            if (writes_bos) pieces[0].text.erase(0, bos.size());
            std::vector<Token> tokens;
            if ((writes_bos || tokenizer.adds_bos()) && tokenizer.bos() >= 0)
                tokens.push_back(tokenizer.bos());
            const Status encoded = append_tokens(pieces, tokenizer, &tokens);
            if (encoded.ok()) *out = std::move(tokens);
            return encoded;
        });
    }

  private:
    template <class Function>
    static Status reporting(Function&& fn) noexcept {
        return guarded([&] {
            try {
                return fn();
            } catch (const JinjaError& error) {
                return Status::error(Code::bad_conversation, "the chat template %s: %s",
                                     error.raised ? "refuses the conversation" : "fails",
                                     escape_text(std::string_view(error.message).substr(0, 200)).c_str());
            }
        });
    }

    MarkedText run(const ChatMessage* messages, std::size_t n, const ChatOptions& options,
                   std::string_view bos, std::string_view eos) const {
        std::size_t n_bytes = 0;
        for (std::size_t i = 0; i < n; i++) {
            n_bytes += messages[i].content.size();
        }
        JinjaRun run(options.date, (std::size_t{1} << 22) + 4096 * n + 256 * n_bytes);
        JinjaList list;
        const bool merges = merges_system_ && messages[0].role == ChatRole::system;
        for (std::size_t i = merges ? 1 : 0; i < n; i++) {
            MarkedText content(messages[i].content, static_cast<std::uint32_t>(i + 1));
            if (merges && i == 1) {
                MarkedText merged(messages[0].content, 1);
                merged.append({"\n\n", 0});
                merged.append(content);
                content = std::move(merged);
            }
            list.push_back(run.dict({{"role", run.text({role_name(messages[i].role), 0})},
                                     {"content", run.text(std::move(content))}}));
        }
        run.set("messages", run.list(std::move(list)));
        run.set("add_generation_prompt", JinjaValue::boolean(options.add_generation_prompt));
        run.set("bos_token", run.text({std::string(bos), 0}));
        run.set("eos_token", run.text({std::string(eos), 0}));
        if (tools_are_none_) {
            run.set("tools", JinjaValue::none());
            run.set("documents", JinjaValue::none());
        }
        if (!options.thinking) {
            // The names by which public templates ask for it.
            run.set("enable_thinking", JinjaValue::boolean(false));
            run.set("thinking", JinjaValue::boolean(false));
        }
        return run.run(*tree_);
    }

    MarkedText run_probe(const std::vector<ChatMessage>& messages, const ChatOptions& options = {}) const {
        return run(messages.data(), messages.size(), options, "<s>", "</s>");
    }

    bool tells_all(const std::vector<ChatMessage>& messages) const {
        const MarkedText text = run_probe(messages);
        for (std::size_t i = 0; i < messages.size(); i++) {
            if (!is_told(text, i, messages[i].content)) return false;
        }
        return true;
    }

    bool tells_all_or_fails(const std::vector<ChatMessage>& messages) const {
        try {
            return tells_all(messages);
        } catch (const JinjaError&) {
            return false;
        }
    }

    // Whether what is rendered for a question is a prefix of what is rendered when the conversation goes on.
    bool goes_on(std::vector<ChatMessage> messages) const try {
        const Probed probed;
        std::string before;
        for (const ChatMessage& question : probed.questions) {
            messages.push_back(question);
            const std::string now = run_probe(messages).bytes;
            if (now.compare(0, before.size(), before) != 0) return false;
            before = now;
            messages.push_back(probed.thought);
        }
        return true;
    } catch (const JinjaError&) {
        return false;
    }

    // What stands where a system text would.
    std::string default_system(const ChatOptions& options) const {
        const Probed probed;
        const std::vector<ChatMessage> with = {probed.system, probed.questions[0]},
                                       without = {probed.questions[0]};
        if (merges_system_) return {};
        const MarkedText told = run_probe(with, options), untold = run_probe(without, options);
        const std::vector<Span> spans = find_spans(told, 2);
        const std::string_view before = std::string_view(told.bytes).substr(0, spans[0].begin);
        if (spans[1].begin < spans[0].end) return {};
        const std::string_view behind =
            std::string_view(told.bytes).substr(spans[0].end, spans[1].begin - spans[0].end);
        const std::string_view all = std::string_view(untold.bytes).substr(0, find_spans(untold, 1)[0].begin);
        if (all.size() < before.size() + behind.size()) return {};
        const std::size_t end = all.size() - behind.size();
        if (all.substr(0, before.size()) != before || all.substr(end) != behind) return {};
        return std::string(all.substr(before.size(), end - before.size()));
    }

    // The conversation, with answers as the tokens they were generated as, behind what had asked for them.
    std::vector<Piece> with_answers(const ChatMessage* messages, std::size_t n, const ChatOptions& options,
                                    const Tokenizer& tokenizer) const {
        const std::string_view bos = tokenizer.text(tokenizer.bos()), eos = tokenizer.text(tokenizer.eos());
        const MarkedText whole = run(messages, n, options, bos, eos);
        const std::vector<Span> spans = find_spans(whole, n);
        ChatOptions asking = options;
        asking.add_generation_prompt = true;
        std::vector<Piece> pieces;
        std::size_t last = n, at = 0;
        const auto add_from = [&](const MarkedText& text, std::size_t begin, std::size_t end) {
            // A model ends an answer without the space its template has there.
            while (last < n && begin < end && text.bytes[begin] == ' ' && text.origins[begin] == 0) {
                begin++;
            }
            add_text(text, begin, end, &pieces);
        };
        // What stands between a question and its answer, and what had asked for it there.
        std::map<std::string, std::string> headers;
        for (std::size_t i = 1; i < n; i++) {
            if (messages[i].tokens.empty() || messages[i].role != ChatRole::assistant) continue;
            if (!is_whole(whole, spans[i], messages[i]) || spans[i].begin < at) continue;
            const Span& question = spans[i - 1];
            const bool follows = is_whole(whole, question, messages[i - 1]) && question.end > at &&
                                 is_markup(whole, question.end, spans[i].begin);
            const std::string header =
                follows ? whole.bytes.substr(question.end, spans[i].begin - question.end) : std::string();
            auto known = follows ? headers.find(header) : headers.end();
            if (known == headers.end()) {
                const MarkedText asked = asked_text(messages, i, asking, bos, eos);
                const std::vector<Span> earlier = find_spans(asked, n);
                const std::size_t n_asked = asked.bytes.size();
                if (follows && is_whole(asked, earlier[i - 1], messages[i - 1]) &&
                    is_markup(asked, earlier[i - 1].end, n_asked)) {
                    known = headers.emplace(header, asked.bytes.substr(earlier[i - 1].end)).first;
                } else if (asked.bytes.empty() ||
                           (last < n && !is_whole(asked, earlier[last], messages[last]))) {
                    add_from(whole, at, spans[i].begin);
                } else {
                    add_from(asked, last < n ? earlier[last].end : 0, n_asked);
                }
            }
            if (known != headers.end()) {
                add_from(whole, at, question.end);
                add_text({known->second, 0}, 0, known->second.size(), &pieces);
            }
            pieces.push_back({{}, false, &messages[i].tokens});
            last = i;
            at = spans[i].end;
        }
        add_from(whole, at, whole.bytes.size());
        return pieces;
    }

    // What the answer of this index was generated behind; empty when its template does not say.
    MarkedText asked_text(const ChatMessage* messages, std::size_t n, const ChatOptions& options,
                          std::string_view bos, std::string_view eos) const {
        try {
            return run(messages, n, options, bos, eos);
        } catch (const JinjaError&) {
            return {};
        }
    }

    // Texts between answers that have their tokens are encoded as one.
    static Status append_tokens(const std::vector<Piece>& pieces, const Tokenizer& tokenizer,
                                std::vector<Token>* tokens) {
        std::vector<TextPiece> texts;
        std::vector<Token> encoded;
        for (std::size_t i = 0; i <= pieces.size(); i++) {
            const bool is_text = i < pieces.size() && pieces[i].tokens == nullptr;
            if (is_text) {
                texts.push_back({pieces[i].text, pieces[i].is_markup});
                continue;
            }
            const Status status = tokenizer.encode(texts.data(), texts.size(), false, &encoded);
            if (!status.ok()) return status;
            tokens->insert(tokens->end(), encoded.begin(), encoded.end());
            texts.clear();
            if (i < pieces.size())
                tokens->insert(tokens->end(), pieces[i].tokens->begin(), pieces[i].tokens->end());
        }
        return {};
    }

    static Status check(const ChatOptions& options) noexcept {
        const ChatDate& date = options.date;
        if (date.year < 1 || date.year > 9999 || date.month < 1 || date.month > 12 || date.day < 1 ||
            date.day > 31) {
            return Status::error(Code::invalid_argument, "the date %d-%d-%d, expected 1-1-1 to 9999-12-31",
                                 date.year, date.month, date.day);
        }
        return {};
    }

    Status check(const ChatMessage* messages, std::size_t n) const noexcept {
        if (messages == nullptr && n > 0) return Status::error(Code::invalid_argument, "null messages");
        if (n == 0 || n > max_messages) {
            return Status::error(Code::bad_conversation, "%zu messages, expected 1 to %zu", n, max_messages);
        }
        for (std::size_t i = 0; i < n; i++) {
            const ChatRole role = messages[i].role;
            if (role > ChatRole::assistant) {
                return Status::error(Code::invalid_argument, "message %zu has role %d, expected 0 to 2", i,
                                     static_cast<int>(role));
            }
            if (!merges_system_ || role != ChatRole::system) continue;
            if (i > 0) {
                return Status::error(
                    Code::bad_conversation,
                    "message %zu is a system message, expected by this template as the first only", i);
            }
            if (n == 1 || messages[1].role != ChatRole::user) {
                return Status::error(
                    Code::bad_conversation,
                    "a system message without a question behind it, which this template puts it into");
            }
        }
        return {};
    }

    JinjaPointer tree_;
    const char* name_ = "custom";
    bool tools_are_none_ = true;  // rather than undefined
    bool merges_system_ = false;  // it has no place for a system text
    bool extends_ = false;
};

}  // namespace

Status ChatTemplate::recognise(std::string_view text, std::unique_ptr<ChatTemplate>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    if (text.empty()) {
        return Status::error(Code::unknown_template,
                             "the file has no chat template, as models that were not trained to talk");
    }
    return guarded([&] {
        std::string why = "longer than 1 MiB";
        if (text.size() <= max_template_bytes) {
            try {
                *out = std::make_unique<JinjaTemplate>(text);
                return Status();
            } catch (const JinjaError& error) {
                why = error.message;
            }
        }
        return Status::error(Code::unknown_template, "a chat template of %zu bytes that cannot be run: %s",
                             text.size(), escape_text(std::string_view(why).substr(0, 160)).c_str());
    });
}

Status ChatTemplate::find(std::string_view name, std::unique_ptr<ChatTemplate>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] {
        const std::string text = named_template(name);
        if (text.empty()) {
            return Status::error(Code::unknown_template, "chat template '%s', expected one of: %s",
                                 escape_text(name.substr(0, 24)).c_str(), names());
        }
        try {
            *out = std::make_unique<JinjaTemplate>(text);
        } catch (const JinjaError& error) {
            return Status::error(Code::unknown_template, "chat template '%s': %s", std::string(name).c_str(),
                                 error.message.c_str());
        }
        return Status();
    });
}

}  // namespace gearkv
