// Conversations laid out in a shape.
#include "decoder/text/template.hpp"

#include <array>
#include <cstdio>

#include "decoder/gguf/gguf.hpp"
#include "decoder/gguf/guarded.hpp"

namespace gearkv {
namespace {

constexpr std::size_t max_template_bytes = std::size_t{1} << 20;
constexpr std::size_t max_messages = std::size_t{1} << 20;

// White space of Unicode, as an encoded character at the front of a text; 0 bytes when there is none.
std::size_t space_bytes(std::string_view text) {
    const auto byte = [&](std::size_t i) {
        return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
    };
    const unsigned a = byte(0), b = byte(1), c = byte(2);
    if ((a >= 9 && a <= 13) || (a >= 28 && a <= 32)) return 1;
    if (a == 0xc2 && (b == 0x85 || b == 0xa0)) return 2;
    if (a == 0xe1 && b == 0x9a && c == 0x80) return 3;
    if (a == 0xe2 && b == 0x80 && ((c >= 0x80 && c <= 0x8a) || c == 0xa8 || c == 0xa9 || c == 0xaf)) return 3;
    if ((a == 0xe2 && b == 0x81 && c == 0x9f) || (a == 0xe3 && b == 0x80 && c == 0x80)) return 3;
    return 0;
}

std::string_view trimmed_front(std::string_view text) {
    while (const std::size_t n = space_bytes(text)) {
        text.remove_prefix(n);
    }
    return text;
}

std::string_view trimmed_back(std::string_view text) {
    for (bool found = true; found;) {
        found = false;
        for (std::size_t n = 1; n <= 3 && n <= text.size() && !found; n++) {
            found = space_bytes(text.substr(text.size() - n)) == n;
            if (found) text.remove_suffix(n);
        }
    }
    return text;
}

std::string format_date(const std::string& format, const ChatDate& date) {
    static constexpr std::array<const char*, 12> months = {"January",   "February", "March",    "April",
                                                           "May",       "June",     "July",     "August",
                                                           "September", "October",  "November", "December"};
    const std::string month = months[static_cast<std::size_t>(date.month - 1)];
    std::string text;
    for (std::size_t i = 0; i < format.size(); i++) {
        const char kind = format[i] == '%' && i + 1 < format.size() ? format[i + 1] : '\0';
        char number[16] = {};
        if (kind == 'Y') std::snprintf(number, sizeof(number), "%04d", date.year);
        if (kind == 'm') std::snprintf(number, sizeof(number), "%02d", date.month);
        if (kind == 'd') std::snprintf(number, sizeof(number), "%02d", date.day);
        const std::string value = kind == 'B' ? month : kind == 'b' ? month.substr(0, 3) : number;
        if (value.empty()) {
            text += format[i];
        } else {
            text += value;
            i++;
        }
    }
    return text;
}

const char* role_name(ChatRole role) {
    return role == ChatRole::system ? "system" : role == ChatRole::user ? "user" : "assistant";
}

// What a conversation is made of: text, or the tokens of an answer as they were generated.
struct Piece {
    std::string text;
    bool is_markup;
    const std::vector<Token>* tokens = nullptr;
};

class Renderer {
  public:
    Renderer(const ChatShape& shape, const ChatOptions& options, std::string_view bos, std::string_view eos)
        : shape_(shape), options_(options), bos_(bos), eos_(eos) {}

    std::vector<Piece> render(const ChatMessage* messages, std::size_t n) {
        const bool has_system = messages[0].role == ChatRole::system;
        if (shape_.writes_bos) add(bos_text, true);
        if (shape_.system_place == SystemPlace::own_turn && !has_system) {
            const std::string text =
                shape_.system_prelude.with(options_.date) + shape_.default_system.with(options_.date);
            if (shape_.always_system || !text.empty()) add_default(text);
        }
        std::size_t last_question = n;
        for (std::size_t i = 0; i < n; i++) {
            if (messages[i].role == ChatRole::user) last_question = i;
        }
        const bool merges = has_system && shape_.system_place != SystemPlace::own_turn;
        const std::size_t merged_into = !merges                                              ? n
                                        : shape_.system_place == SystemPlace::first_question ? 1
                                                                                             : last_question;
        for (std::size_t i = merges ? 1 : 0; i < n; i++) {
            const ChatMessage& message = messages[i];
            if (message.role == ChatRole::system) {
                add_system(message.content, i == 0);
            } else if (message.role == ChatRole::user) {
                if (shape_.bos_each_turn && i > (merges ? 1u : 0u)) add(bos_text, true);
                add_question(message.content, i == merged_into ? &messages[0].content : nullptr);
            } else {
                add_answer(message, i > last_question || last_question == n);
            }
        }
        if (options_.add_generation_prompt) {
            add(shape_.generation, true);
            if (!options_.thinking) add(shape_.no_thinking, true);
        }
        return std::move(pieces_);
    }

  private:
    void add(std::string_view text, bool is_markup) {
        std::string whole;
        for (const char c : text) {
            if (is_markup && c == bos_mark) {
                whole += bos_;
            } else if (is_markup && c == eos_mark) {
                whole += eos_;
            } else {
                whole += c;
            }
        }
        if (whole.empty()) return;
        if (!pieces_.empty() && pieces_.back().tokens == nullptr && pieces_.back().is_markup == is_markup) {
            pieces_.back().text += whole;
        } else {
            pieces_.push_back({std::move(whole), is_markup});
        }
    }

    // The file's own text, but no markup either: no control token belongs there.
    void add_default(std::string_view text) {
        add(shape_.system.before, true);
        add(text, false);
        add(shape_.system.after, true);
    }

    void add_system(std::string_view content, bool first) {
        add(shape_.system.before, true);
        if (first) add(shape_.system_prelude.with(options_.date), false);
        add(shape_.system.trim ? trimmed(content) : content, false);
        add(shape_.system.after, true);
    }

    void add_question(std::string_view content, const std::string* system) {
        const bool as_one = system != nullptr && shape_.trims_merged;
        if (shape_.user.trim) content = as_one ? trimmed_back(content) : trimmed(content);
        add(shape_.user.before, true);
        if (system != nullptr) {
            const bool nothing_follows = as_one && content.empty();
            add(shape_.system.before, true);
            add(*system, false);
            add(nothing_follows ? trimmed_back(shape_.system.after) : shape_.system.after, true);
        }
        add(content, false);
        add(shape_.user.after, true);
    }

    void add_answer(const ChatMessage& message, bool is_last) {
        std::string_view content = message.content;
        const std::size_t thought = content.rfind(thought_end);
        const bool forgets = shape_.forgets_thoughts && !is_last && thought != content.npos;
        if (forgets) {
            content.remove_prefix(thought + thought_end.size());
            content.remove_prefix(std::min(content.find_first_not_of('\n'), content.size()));
        }
        if (!forgets && !message.tokens.empty()) {
            add(shape_.generation, true);
            if (!options_.thinking) add(shape_.no_thinking, true);
            pieces_.push_back({{}, false, &message.tokens});
        } else {
            add(shape_.assistant.before, true);
            add(shape_.assistant.trim ? trimmed(content) : content, false);
        }
        std::string_view after = shape_.assistant.after;
        // A model ends an answer without the space its template has there.
        if (!pieces_.empty() && pieces_.back().tokens != nullptr)
            after.remove_prefix(std::min(after.find_first_not_of(' '), after.size()));
        add(after, true);
    }

    static constexpr std::string_view thought_end = "</think>";
    static constexpr std::string_view bos_text{&bos_mark, 1};

    const ChatShape& shape_;
    const ChatOptions& options_;
    std::string_view bos_;
    std::string_view eos_;
    std::vector<Piece> pieces_;
};

class ShapedTemplate final : public ChatTemplate {
  public:
    explicit ShapedTemplate(ChatShape shape) : shape_(std::move(shape)) {}

    const char* name() const noexcept override { return shape_.name; }

    Status default_system(const ChatOptions& options, std::string* out) const noexcept override {
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        if (Status status = check(options); !status.ok()) return status;
        return guarded([&] {
            *out = shape_.default_system.with(options.date);
            return Status();
        });
    }

    bool extends() const noexcept override {
        return shape_.system_place != SystemPlace::last_question && !shape_.forgets_thoughts;
    }

    Status render(const ChatMessage* messages, std::size_t n_messages, const ChatOptions& options,
                  std::string_view bos, std::string_view eos,
                  std::vector<ChatSegment>* out) const noexcept override {
        if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
        Status status = check(options);
        if (status.ok()) status = check(messages, n_messages);
        if (!status.ok()) return status;
        return guarded([&] {
            std::vector<ChatSegment> segments;
            for (Piece& piece : Renderer(shape_, options, bos, eos).render(messages, n_messages)) {
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
        return guarded([&] {
            // BOS is put first here, once, whoever asks for it.
            ChatShape shape = shape_;
            shape.writes_bos = false;
            Renderer renderer(shape, options, tokenizer.text(tokenizer.bos()),
                              tokenizer.text(tokenizer.eos()));
            const std::vector<Piece> pieces = renderer.render(messages, n_messages);
            std::vector<Token> tokens;
            const bool has_bos = shape_.writes_bos || tokenizer.adds_bos();
            if (has_bos && tokenizer.bos() >= 0) tokens.push_back(tokenizer.bos());
            const Status encoded = append_tokens(pieces, tokenizer, &tokens);
            if (encoded.ok()) *out = std::move(tokens);
            return encoded;
        });
    }

  private:
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
        const bool merges = shape_.system_place != SystemPlace::own_turn;
        std::size_t n_turns = 0;
        for (std::size_t i = 0; i < n; i++) {
            const ChatRole role = messages[i].role;
            if (role > ChatRole::assistant) {
                return Status::error(Code::invalid_argument, "message %zu has role %d, expected 0 to 2", i,
                                     static_cast<int>(role));
            }
            if (role == ChatRole::system && merges && i > 0) {
                return Status::error(Code::bad_conversation,
                                     "message %zu is a system message, expected by %s as the first only", i,
                                     shape_.name);
            }
            if (role == ChatRole::system) continue;
            const ChatRole expected = n_turns++ % 2 == 0 ? ChatRole::user : ChatRole::assistant;
            if (shape_.alternates && role != expected) {
                return Status::error(Code::bad_conversation,
                                     "message %zu is the %s's, expected by %s: the %s's", i, role_name(role),
                                     shape_.name, role_name(expected));
            }
        }
        if (merges && n_turns == 0) {
            return Status::error(Code::bad_conversation,
                                 "a system message alone, expected by %s: a question behind it", shape_.name);
        }
        return {};
    }

    ChatShape shape_;
};

}  // namespace

std::string DatedText::with(const ChatDate& date) const {
    std::string text;
    for (const Piece& piece : pieces) {
        text += piece.is_date ? format_date(piece.text, date) : piece.text;
    }
    return text;
}

std::string_view trimmed(std::string_view text) noexcept {
    return trimmed_back(trimmed_front(text));
}

Status ChatTemplate::recognise(std::string_view text, std::unique_ptr<ChatTemplate>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] {
        ChatShape shape;
        if (text.size() > max_template_bytes || !recognise_shape(text, &shape)) {
            return Status::error(Code::unknown_template,
                                 "a chat template of %zu bytes, expected the shape of one of: %s",
                                 text.size(), names());
        }
        *out = std::make_unique<ShapedTemplate>(std::move(shape));
        return Status();
    });
}

Status ChatTemplate::find(std::string_view name, std::unique_ptr<ChatTemplate>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] {
        const ChatShape* shape = find_shape(name);
        if (shape == nullptr) {
            return Status::error(Code::unknown_template, "chat template '%s', expected one of: %s",
                                 escape_text(name.substr(0, 24)).c_str(), names());
        }
        *out = std::make_unique<ShapedTemplate>(*shape);
        return Status();
    });
}

}  // namespace gearkv
