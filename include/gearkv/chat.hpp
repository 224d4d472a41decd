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
    // True: as the template does by itself. False: it is asked for answers without a thought before them,
    // with enable_thinking and thinking set to false, the names by which public templates know it.
    bool thinking = true;
    ChatDate date;  // today, for the templates that tell it to the model
};

// A template of Jinja, run for each conversation, as the engines do that models are trained with: the text of
// a file, or one of the names below. It reaches nothing but the conversation and the date, ends after some
// million steps, and is told of no tools and documents. Of the language it knows what public templates say to
// text conversations; one that says anything else, or that does not print what it is told, is refused.
// Immutable, shared freely between threads.
//
// The system text is the first message, if any. Where a template refuses it or leaves it out, as Gemma's and
// Mistral's do, it goes before the first question, with an empty line between. Other roles than the template
// takes, such as two questions on end, are an error with the template's own words.
class ChatTemplate {
  public:
    virtual ~ChatTemplate() = default;
    // Takes the text of tokenizer.chat_template, after trying it. Errors: invalid_argument, unknown_template
    // (the message says what in it is not known), out_of_memory; *out is untouched then.
    static Status recognise(std::string_view text, std::unique_ptr<ChatTemplate>* out) noexcept;
    // The same by a name of names(), without the details of any file. Errors: as above; the message lists the
    // names.
    static Status find(std::string_view name, std::unique_ptr<ChatTemplate>* out) noexcept;
    // "chatml", "llama3" and so on, separated by commas.
    static const char* names() noexcept;

    // The name of names() whose marks it prints, or "custom".
    virtual const char* name() const noexcept = 0;
    // The system text that stands in for an absent one; empty when there is none. Errors: invalid_argument,
    // bad_conversation, out_of_memory; *out is untouched then.
    virtual Status default_system(const ChatOptions& options, std::string* out) const noexcept = 0;
    // Whether everything rendered for a conversation that ends with a question is a prefix of what is
    // rendered for each of its continuations, by the template alone.
    virtual bool extends() const noexcept = 0;
    // Replaces *out by the conversation, with `bos` and `eos` as the texts of these tokens. Errors:
    // invalid_argument, bad_conversation (one that the template refuses, or cannot be run for),
    // out_of_memory; *out is untouched then.
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
