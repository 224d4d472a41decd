// Chat templates: from the messages of a conversation to the text, and the tokens, a model was trained on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gearkv/status.hpp"
#include "gearkv/tokenizer.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

enum class ChatRole : std::uint8_t { system, user, assistant };

struct ChatMessage {
    ChatRole role = ChatRole::user;
    std::string content;
    // Of an answer: the tokens it was generated as, without the one that ended it. When there are any, encode
    // takes them as they are, behind what asks for an answer, so that what a cache holds stays a prefix.
    std::vector<Token> tokens = {};
};

// A piece of a rendered conversation. Markup is the template's and may hold control tokens; the rest is what
// people and models wrote, and never becomes one.
struct ChatSegment {
    std::string text;
    bool is_markup = false;
};

struct ChatDate {
    int year = 2024;
    int month = 7;  // [1, 12]
    int day = 26;   // [1, 31]
};

struct ChatOptions {
    bool add_generation_prompt = true;  // ends with what asks for the next answer
    bool thinking = true;  // false: an empty thought is put before the answer, where the file knows how
    ChatDate date;         // today, for the templates that tell it to the model
};

// The shape of one family of templates with the details of one file: default system text, trimmed contents,
// the turn that carries the system text. It is read off the text of the file's Jinja, which is never run:
// tools, documents and images are left out. Immutable, shared freely between threads.
//
// The system text is the first message, if any. Gemma, Mistral and Llama 2 have no turn for it and put it
// before the first question, or the last one where the file says so; these three want questions and answers
// in turn.
class ChatTemplate {
  public:
    virtual ~ChatTemplate() = default;
    // Recognises the text of tokenizer.chat_template by the marks it prints. Errors: invalid_argument,
    // unknown_template (the message lists the names), out_of_memory; *out is untouched then.
    static Status recognise(std::string_view text, std::unique_ptr<ChatTemplate>* out) noexcept;
    // The same by a name of names(), without the details of any file. Errors: as above.
    static Status find(std::string_view name, std::unique_ptr<ChatTemplate>* out) noexcept;
    // "chatml", "llama3" and so on, separated by commas.
    static const char* names() noexcept;

    virtual const char* name() const noexcept = 0;
    // The system text that stands in for an absent one; empty when there is none.
    virtual Status default_system(const ChatOptions& options, std::string* out) const noexcept = 0;
    // Whether everything rendered for a conversation that ends with a question is a prefix of what is
    // rendered for each of its continuations, by the template alone.
    virtual bool extends() const noexcept = 0;
    // Replaces *out by the conversation, with `bos` and `eos` as the texts of these tokens; what the file
    // writes for BOS comes first. Errors: invalid_argument, bad_conversation (roles the template cannot
    // express), out_of_memory; *out is untouched then.
    virtual Status render(const ChatMessage* messages, std::size_t n_messages, const ChatOptions& options,
                          std::string_view bos, std::string_view eos,
                          std::vector<ChatSegment>* out) const noexcept = 0;
    // Replaces *out by the tokens of the conversation. BOS comes once if the tokenizer or the template asks
    // for it. The ids are those of the whole text with control tokens recognised, but that none is recognised
    // in a content. Errors: as render, and those of Tokenizer::encode.
    virtual Status encode(const ChatMessage* messages, std::size_t n_messages, const ChatOptions& options,
                          const Tokenizer& tokenizer, std::vector<Token>* out) const noexcept = 0;
};

}  // namespace gearkv
#pragma GCC visibility pop
