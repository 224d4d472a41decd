// A conversation with a model: its messages, and a session whose cache holds what was said.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "drafting.hpp"
#include "sampling.hpp"

namespace gearkv::tool {

// What one answer took.
struct Answer {
    std::string text;
    std::size_t n_prompt = 0;     // tokens before it
    std::size_t n_reused = 0;     // of them, in the cache already
    std::size_t n_generated = 0;  // tokens of the answer
    std::size_t n_decoded = 0;    // of them, fed back
    std::size_t n_forgotten = 0;  // messages that left the context to make room
    double prefill_seconds = 0;
    double decode_seconds = 0;  // sampling included
    bool kept = true;           // false: interrupted before there was any of it, the question is gone too
    const char* stop = "end of text";  // length, stop string, context full, interrupted
};

struct ConversationConfig {
    std::shared_ptr<const Model> model;
    std::shared_ptr<const ChatTemplate> chat;
    ChatOptions options;
    SamplingOptions sampling;
    std::uint64_t seed = 0;
    SessionConfig session;
    DraftOptions drafts;
    Executor* executor = nullptr;
    std::size_t max_answer = 0;  // tokens; 0: as many as the context has room for
};

// Everything throws Failure or UsageError; the conversation is as it was then, but for turns that had to
// leave the context. Ctrl-C ends an answer, and what there is of it stays.
class Conversation {
  public:
    using Show = std::function<void(std::string_view whole_characters)>;
    using Note = std::function<void(const std::string&)>;

    Conversation(ConversationConfig config, Note note);

    Answer ask(const std::string& question, const Show& show);
    // Takes the last answer back and draws another one. The question stays in the cache.
    Answer regenerate(const Show& show);
    // Forgets all but the system text.
    void reset();
    // A system text for a conversation that begins anew; null for the template's own.
    void set_system(const std::string* text);

    void save(const std::string& path) const;
    // Throws away what there was.
    void load(const std::string& path);

    const Session& session() const { return *session_; }
    SpeculationStats drafts() const { return decoder_->stats(); }
    const std::vector<ChatMessage>& messages() const { return messages_; }
    const ChatTemplate& chat() const { return *config_.chat; }
    std::string system() const;

  private:
    Answer answer(const Show& show);
    void generate(const Show& show, Answer& answer, ChatMessage& reply);
    std::vector<Token> encode() const;
    std::vector<Token> fit_prompt(std::size_t* n_forgotten);
    bool forget_oldest();
    bool shift(const std::vector<Token>& before, const std::vector<Token>& after);
    bool remove_between(const std::vector<Token>& before, const std::vector<Token>& after, bool* anew);
    bool make_room(const std::vector<Token>& answered, std::size_t* n_forgotten);

    ConversationConfig config_;
    Note note_;
    Drafting drafting_;
    std::unique_ptr<Session> session_;
    std::unique_ptr<Speculation> decoder_;
    std::unique_ptr<Sampler> sampler_;
    std::vector<ChatMessage> messages_;
};

}  // namespace gearkv::tool
