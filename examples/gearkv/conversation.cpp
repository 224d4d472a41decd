#include "conversation.hpp"

#include <algorithm>
#include <chrono>

#include "failure.hpp"
#include "report.hpp"

namespace gearkv::tool {
namespace {

using Clock = std::chrono::steady_clock;

// Room for an answer that a prompt leaves before turns are forgotten for it.
std::size_t room_for_answer(std::size_t n_ctx) {
    return std::min<std::size_t>(512, n_ctx / 4);
}

const char* role_name(ChatRole role) {
    return role == ChatRole::system ? "system" : role == ChatRole::user ? "user" : "assistant";
}

ChatRole role_of(const std::string& name) {
    for (const ChatRole role : {ChatRole::system, ChatRole::user, ChatRole::assistant}) {
        if (name == role_name(role)) return role;
    }
    throw Failure("a message of a role that is not known");
}

std::string write_messages(const std::vector<ChatMessage>& messages, const char* chat) {
    Json json = {{"conversation", 1}, {"template", chat}, {"messages", Json::array()}};
    for (const ChatMessage& message : messages) {
        json["messages"].push_back(
            {{"role", role_name(message.role)}, {"content", message.content}, {"tokens", message.tokens}});
    }
    return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::vector<ChatMessage> read_messages(const std::string& note, const std::string& path) {
    if (note.empty()) throw Failure(path + ": a session without a conversation");
    try {
        const Json json = Json::parse(note);
        if (json.at("conversation") != 1) throw Failure("a version that is not known");
        std::vector<ChatMessage> messages;
        for (const Json& message : json.at("messages")) {
            messages.push_back({role_of(message.at("role")), message.at("content"),
                                message.at("tokens").get<std::vector<Token>>()});
        }
        return messages;
    } catch (const std::exception& error) {
        throw Failure(path + ": no conversation in it: " + error.what());
    }
}

}  // namespace

Conversation::Conversation(ConversationConfig config, Note note)
    : config_(std::move(config)),
      note_(std::move(note)),
      drafting_(config_.drafts, *config_.model, *config_.executor, config_.session) {
    check(Session::create(config_.model, config_.session, *config_.executor, &session_));
    decoder_ = drafting_.speculate(*session_);
    sampler_ = make_sampler(config_.sampling, *config_.model, config_.seed);
}

std::string Conversation::system() const {
    if (!messages_.empty() && messages_[0].role == ChatRole::system) return messages_[0].content;
    std::string text;
    check(config_.chat->default_system(config_.options, &text));
    return text;
}

void Conversation::set_system(const std::string* text) {
    messages_.clear();
    if (text != nullptr) messages_.push_back({ChatRole::system, *text});
}

void Conversation::reset() {
    const bool has_system = !messages_.empty() && messages_[0].role == ChatRole::system;
    messages_.resize(has_system ? 1 : 0);
}

Answer Conversation::ask(const std::string& question, const Show& show) {
    messages_.push_back({ChatRole::user, question});
    return answer(show);
}

Answer Conversation::regenerate(const Show& show) {
    if (messages_.empty() || messages_.back().role != ChatRole::assistant)
        throw Failure("there is no answer yet");
    const ChatMessage last = std::move(messages_.back());
    messages_.pop_back();
    const ChatMessage question = messages_.back();
    try {
        Answer again = answer(show);
        if (!again.kept) {
            messages_.push_back(question);
            messages_.push_back(last);
        }
        return again;
    } catch (...) {
        messages_.push_back(question);
        messages_.push_back(last);
        throw;
    }
}

// Answers the question that is the last message; takes it back when there is no answer.
Answer Conversation::answer(const Show& show) {
    Answer answer;
    ChatMessage reply = {ChatRole::assistant, {}};
    try {
        check(decoder_->settle());
        std::vector<Token> prompt = fit_prompt(&answer.n_forgotten);
        answer.n_prompt = prompt.size();
        const Clock::time_point start = Clock::now();
        std::uint64_t n_reused = 0;
        const Status status = session_->sync(prompt.data(), prompt.size(), &n_reused);
        answer.prefill_seconds = seconds_since(start);
        answer.n_reused = static_cast<std::size_t>(n_reused);
        if (status.code() == Code::interrupted) {
            answer.stop = "interrupted";
        } else {
            check(status);
            sampler_->forget();
            check(sampler_->accept(prompt.data(), prompt.size()));
            generate(show, answer, reply);
        }
    } catch (...) {
        messages_.pop_back();
        throw;
    }
    if (answer.stop == std::string_view("interrupted") && reply.tokens.empty()) {
        messages_.pop_back();
        answer.kept = false;
        return answer;
    }
    reply.content = answer.text;
    messages_.push_back(std::move(reply));
    return answer;
}

void Conversation::generate(const Show& show, Answer& answer, ChatMessage& reply) {
    const Tokenizer& tokenizer = config_.model->tokenizer();
    TextStream stream(config_.model->shared_tokenizer());
    const std::unique_ptr<StopMatcher> stops = make_stop_matcher(config_.sampling);
    const auto release = [&](const std::string& bytes, bool last) {
        std::string text;
        check(stops->feed(bytes, &text));
        if (last) check(stops->finish(&text));
        answer.text += text;
        if (!text.empty()) show(text);
    };
    const Clock::time_point start = Clock::now();
    for (;;) {
        if (config_.max_answer > 0 && answer.n_generated == config_.max_answer) {
            answer.stop = "length";
            break;
        }
        if (interrupted()) {
            answer.stop = "interrupted";
            break;
        }
        Token token;
        check(sampler_->sample(decoder_->logits(), config_.model->params().n_vocab, &token));
        if (tokenizer.is_end_of_generation(token) && !config_.sampling.ignore_eos) break;
        answer.n_generated += 1;
        std::string piece;
        check(stream.push(token, &piece));
        release(piece, false);
        if (stops->stopped_by() >= 0) {
            answer.stop = "stop string";
            break;
        }
        if (decoder_->n_tokens() == session_->n_ctx() && !make_room(reply.tokens, &answer.n_forgotten)) {
            answer.stop = "context full";
            break;
        }
        check(decoder_->decode(token));
        check(sampler_->accept(token));
        reply.tokens.push_back(token);
        answer.n_decoded += 1;
    }
    check(decoder_->settle());
    answer.decode_seconds = seconds_since(start);
    std::string rest;
    check(stream.flush(&rest));
    release(rest, true);
}

std::vector<Token> Conversation::encode() const {
    std::vector<Token> tokens;
    check(config_.chat->encode(messages_.data(), messages_.size(), config_.options,
                               config_.model->tokenizer(), &tokens));
    return tokens;
}

// The tokens of the conversation, after as many of its oldest turns have gone as an answer needs room for.
std::vector<Token> Conversation::fit_prompt(std::size_t* n_forgotten) {
    const std::size_t n_ctx = session_->n_ctx();
    const std::vector<ChatMessage> all = messages_;
    const std::vector<Token> before = encode();
    std::vector<Token> tokens = before;
    while (tokens.size() + room_for_answer(n_ctx) > n_ctx && forget_oldest()) {
        *n_forgotten += 2;
        tokens = encode();
    }
    if (tokens.size() >= n_ctx) {
        messages_ = all;
        *n_forgotten = 0;
        throw Failure("the question takes " + std::to_string(tokens.size()) +
                      " tokens with what is around it, and the context has " + std::to_string(n_ctx));
    }
    if (*n_forgotten > 0) shift(before, tokens);
    return tokens;
}

// Takes the oldest question and its answer from the messages, unless it is the last question.
bool Conversation::forget_oldest() {
    const std::size_t first = messages_[0].role == ChatRole::system ? 1 : 0;
    if (messages_.size() < first + 3) return false;
    messages_.erase(messages_.begin() + static_cast<std::ptrdiff_t>(first),
                    messages_.begin() + static_cast<std::ptrdiff_t>(first + 2));
    return true;
}

// Moves what is in the cache from `before` to `after`, which lacks one run of its tokens; false, with a note,
// when that cannot be and what stays is to be computed anew.
bool Conversation::shift(const std::vector<Token>& before, const std::vector<Token>& after) {
    bool anew = true;
    const bool moved = remove_between(before, after, &anew);
    if (anew) note_("the turns that stay are computed anew: they cannot be moved in this cache");
    return moved;
}

bool Conversation::remove_between(const std::vector<Token>& before, const std::vector<Token>& after,
                                  bool* anew) {
    const std::vector<Token>& held = session_->tokens();
    if (before.size() < after.size() || held.size() > before.size()) return false;
    if (!std::equal(held.begin(), held.end(), before.begin())) return false;
    const std::size_t n = before.size() - after.size();
    const auto first = std::mismatch(after.begin(), after.end(), before.begin()).first - after.begin();
    const auto behind = before.begin() + first + static_cast<std::ptrdiff_t>(n);
    if (!std::equal(after.begin() + first, after.end(), behind)) return false;
    const auto begin = static_cast<std::size_t>(first);
    if (begin + n >= held.size()) {  // nothing behind it is held
        *anew = false;
        return true;
    }
    const bool removed = session_->remove(begin, n, anew).ok();
    *anew |= !removed;
    return removed;
}

// Within an answer: forgets the oldest turn.
bool Conversation::make_room(const std::vector<Token>& answered, std::size_t* n_forgotten) {
    const std::vector<ChatMessage> all = messages_;
    std::vector<Token> before = encode();
    if (!forget_oldest()) return false;
    std::vector<Token> after = encode();
    before.insert(before.end(), answered.begin(), answered.end());
    after.insert(after.end(), answered.begin(), answered.end());
    check(decoder_->settle());
    if (shift(before, after) && session_->tokens() == after) {
        *n_forgotten += 2;
        return true;
    }
    messages_ = all;
    return false;
}

void Conversation::save(const std::string& path) const {
    const std::string note = write_messages(messages_, config_.chat->name());
    SessionAttachments attached;
    attached.sampler = sampler_.get();
    attached.note = note;
    check(session_->save(path.c_str(), attached));
}

void Conversation::load(const std::string& path) {
    std::unique_ptr<Session> session;
    std::unique_ptr<Sampler> sampler = make_sampler(config_.sampling, *config_.model, config_.seed);
    std::string note;
    LoadedAttachments attached;
    attached.sampler = sampler.get();
    attached.note = &note;
    check(Session::load(path.c_str(), config_.model, config_.session, StateLoading::copy, *config_.executor,
                        &session, attached));
    std::vector<ChatMessage> messages = read_messages(note, path);
    std::vector<Token> tokens;
    if (!messages.empty()) {
        check(config_.chat->encode(messages.data(), messages.size(), config_.options,
                                   config_.model->tokenizer(), &tokens));
    }
    std::unique_ptr<Speculation> decoder = drafting_.speculate(*session);
    messages_ = std::move(messages);
    decoder_ = std::move(decoder);
    session_ = std::move(session);
    sampler_ = std::move(sampler);
}

}  // namespace gearkv::tool
