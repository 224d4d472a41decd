// Samplers, stop texts and chat templates for C.
#include <utility>

#include "decoder/c/convert.hpp"
#include "gearkv/chat.hpp"
#include "gearkv/stop.hpp"

using namespace gearkv;
using namespace gearkv::c;

// A matcher, and what the last call released.
struct gearkv_stop_matcher {
    std::unique_ptr<StopMatcher> matcher;
    std::string text;
};

namespace {

template <class T>
Status take_list(const T* values, std::size_t n, const char* name, std::vector<T>* out) {
    if (values == nullptr && n > 0) return null_argument(name);
    if (n > 0) out->assign(values, values + n);
    return {};
}

const ChatTemplate* cpp(const gearkv_chat_template* chat_template) noexcept {
    return reinterpret_cast<const ChatTemplate*>(chat_template);
}

Status check_template(const gearkv_chat_template* chat_template) noexcept {
    return chat_template == nullptr ? null_argument("chat_template") : Status();
}

Status take_chat_options(const gearkv_chat_options* in, ChatOptions* out) noexcept {
    gearkv_chat_options taken;
    gearkv_chat_options_init(&taken, sizeof(taken));
    if (Status status = take_options(in, &taken); !status.ok()) return status;
    out->add_generation_prompt = taken.add_generation_prompt != 0;
    out->thinking = taken.thinking != 0;
    out->date = {taken.year, taken.month, taken.day};
    return {};
}

// Messages lie as far apart as the caller's header has them.
Status take_messages(const gearkv_chat_message* in, std::size_t n, std::vector<ChatMessage>* out) {
    if (in == nullptr && n > 0) return null_argument("messages");
    const auto* bytes = reinterpret_cast<const unsigned char*>(in);
    const std::size_t stride = n > 0 ? in->struct_size : 0;
    for (std::size_t i = 0; i < n; ++i) {
        const auto* message = reinterpret_cast<const gearkv_chat_message*>(bytes + i * stride);
        gearkv_chat_message taken = {};
        if (Status status = take(message, "messages", &taken); !status.ok()) return status;
        if (message->struct_size != stride) {
            return Status::error(Code::invalid_argument,
                                 "struct_size of message %zu is %zu, that of the first %zu", i,
                                 message->struct_size, stride);
        }
        if (taken.role != GEARKV_SYSTEM && taken.role != GEARKV_USER && taken.role != GEARKV_ASSISTANT) {
            return Status::error(Code::invalid_argument,
                                 "role %d of message %zu, expected one of gearkv_chat_role",
                                 static_cast<int>(taken.role), i);
        }
        std::string_view content;
        if (Status status = take_text(taken.content, taken.n_bytes, "content", &content); !status.ok())
            return status;
        ChatMessage& given = out->emplace_back();
        given.role = static_cast<ChatRole>(taken.role);
        given.content = content;
        if (Status status = take_list(taken.tokens, taken.n_tokens, "tokens", &given.tokens); !status.ok())
            return status;
    }
    return {};
}

gearkv_code give_template(std::unique_ptr<ChatTemplate> made, const Status& status,
                          gearkv_chat_template** out, gearkv_error* error) noexcept {
    if (status.ok()) *out = reinterpret_cast<gearkv_chat_template*>(made.release());
    return report(status, error);
}

}  // namespace

void gearkv_sampler_config_init(gearkv_sampler_config* config, size_t struct_size) {
    if (config == nullptr || struct_size < sizeof(size_t)) return;
    const SamplerConfig defaults;
    gearkv_sampler_config mine = {};
    mine.repeat_penalty = defaults.repeat_penalty;
    mine.frequency_penalty = defaults.frequency_penalty;
    mine.presence_penalty = defaults.presence_penalty;
    mine.penalty_last_n = defaults.penalty_last_n;
    mine.dry_multiplier = defaults.dry_multiplier;
    mine.dry_base = defaults.dry_base;
    mine.dry_allowed_length = defaults.dry_allowed_length;
    mine.dry_last_n = defaults.dry_last_n;
    mine.top_n_sigma = defaults.top_n_sigma;
    mine.top_k = defaults.top_k;
    mine.typical_p = defaults.typical_p;
    mine.top_p = defaults.top_p;
    mine.min_p = defaults.min_p;
    mine.xtc_probability = defaults.xtc_probability;
    mine.xtc_threshold = defaults.xtc_threshold;
    mine.temperature = defaults.temperature;
    mine.seed = defaults.seed;
    config->struct_size = struct_size;
    give(mine, config);
}

gearkv_code gearkv_sampler_create(const gearkv_sampler_config* config, gearkv_sampler** out,
                                  gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (out == nullptr) return null_argument("out");
        gearkv_sampler_config taken;
        gearkv_sampler_config_init(&taken, sizeof(taken));
        if (config != nullptr) {
            if (Status status = take(config, "config", &taken); !status.ok()) return status;
        }
        static_assert(GEARKV_ALL_TOKENS == all_tokens);
        SamplerConfig wanted;
        if (taken.logit_bias == nullptr && taken.n_logit_bias > 0) return null_argument("logit_bias");
        for (std::size_t i = 0; i < taken.n_logit_bias; ++i)
            wanted.logit_bias.push_back({taken.logit_bias[i].token, taken.logit_bias[i].bias});
        wanted.repeat_penalty = taken.repeat_penalty;
        wanted.frequency_penalty = taken.frequency_penalty;
        wanted.presence_penalty = taken.presence_penalty;
        wanted.penalty_last_n = taken.penalty_last_n;
        wanted.dry_multiplier = taken.dry_multiplier;
        wanted.dry_base = taken.dry_base;
        wanted.dry_allowed_length = taken.dry_allowed_length;
        wanted.dry_last_n = taken.dry_last_n;
        if (Status status =
                take_list(taken.dry_breakers, taken.n_dry_breakers, "dry_breakers", &wanted.dry_breakers);
            !status.ok())
            return status;
        wanted.top_n_sigma = taken.top_n_sigma;
        wanted.top_k = taken.top_k;
        wanted.typical_p = taken.typical_p;
        wanted.top_p = taken.top_p;
        wanted.min_p = taken.min_p;
        wanted.xtc_probability = taken.xtc_probability;
        wanted.xtc_threshold = taken.xtc_threshold;
        wanted.temperature = taken.temperature;
        wanted.seed = taken.seed;
        std::unique_ptr<Sampler> sampler;
        Status status = Sampler::create(wanted, &sampler);
        if (status.ok()) *out = reinterpret_cast<gearkv_sampler*>(sampler.release());
        return status;
    });
}

void gearkv_sampler_destroy(gearkv_sampler* sampler) {
    delete c::cpp(sampler);
}

gearkv_code gearkv_sampler_sample(gearkv_sampler* sampler, const float* logits, size_t n_vocab,
                                  gearkv_token* out, gearkv_error* error) {
    if (sampler == nullptr) return report(null_argument("sampler"), error);
    return report(c::cpp(sampler)->sample(logits, n_vocab, out), error);
}

gearkv_code gearkv_sampler_accept(gearkv_sampler* sampler, const gearkv_token* tokens, size_t n_tokens,
                                  gearkv_error* error) {
    if (sampler == nullptr) return report(null_argument("sampler"), error);
    return report(c::cpp(sampler)->accept(tokens, n_tokens), error);
}

void gearkv_sampler_forget(gearkv_sampler* sampler) {
    if (sampler != nullptr) c::cpp(sampler)->forget();
}

gearkv_code gearkv_sampler_save(const gearkv_sampler* sampler, void* to, size_t n_room, size_t* n_written,
                                gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (sampler == nullptr) return null_argument("sampler");
        std::vector<unsigned char> bytes;
        if (Status status = c::cpp(sampler)->save(&bytes); !status.ok()) return status;
        return give_all(bytes.data(), bytes.size(), static_cast<unsigned char*>(to), n_room, n_written,
                        "bytes");
    });
}

gearkv_code gearkv_sampler_restore(gearkv_sampler* sampler, const void* bytes, size_t n_bytes,
                                   gearkv_error* error) {
    if (sampler == nullptr) return report(null_argument("sampler"), error);
    return report(c::cpp(sampler)->restore(static_cast<const unsigned char*>(bytes), n_bytes), error);
}

gearkv_code gearkv_stop_matcher_create(const char* const* stops, size_t n_stops, gearkv_stop_matcher** out,
                                       gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (out == nullptr) return null_argument("out");
        if (stops == nullptr && n_stops > 0) return null_argument("stops");
        std::vector<std::string> texts;
        for (std::size_t i = 0; i < n_stops; ++i) {
            if (stops[i] == nullptr) return Status::error(Code::invalid_argument, "stop text %zu is null", i);
            texts.emplace_back(stops[i]);
        }
        auto handle = std::make_unique<gearkv_stop_matcher>();
        if (Status status = StopMatcher::create(texts, &handle->matcher); !status.ok()) return status;
        *out = handle.release();
        return {};
    });
}

void gearkv_stop_matcher_destroy(gearkv_stop_matcher* matcher) {
    delete matcher;
}

gearkv_code gearkv_stop_matcher_feed(gearkv_stop_matcher* matcher, const char* bytes, size_t n_bytes,
                                     const char** text, size_t* n_text, gearkv_error* error) {
    return take_step(matcher, "matcher", text, n_text, "n_text", error, [&](std::string* released) {
        std::string_view taken;
        Status status = take_text(bytes, n_bytes, "bytes", &taken);
        return status.ok() ? matcher->matcher->feed(taken, released) : status;
    });
}

gearkv_code gearkv_stop_matcher_finish(gearkv_stop_matcher* matcher, const char** text, size_t* n_text,
                                       gearkv_error* error) {
    return take_step(matcher, "matcher", text, n_text, "n_text", error,
                     [&](std::string* released) { return matcher->matcher->finish(released); });
}

int gearkv_stop_matcher_stopped_by(const gearkv_stop_matcher* matcher) {
    return matcher == nullptr ? -1 : matcher->matcher->stopped_by();
}

void gearkv_stop_matcher_reset(gearkv_stop_matcher* matcher) {
    if (matcher != nullptr) matcher->matcher->reset();
}

void gearkv_chat_options_init(gearkv_chat_options* options, size_t struct_size) {
    if (options == nullptr || struct_size < sizeof(size_t)) return;
    const ChatOptions defaults;
    gearkv_chat_options mine = {};
    mine.add_generation_prompt = defaults.add_generation_prompt;
    mine.thinking = defaults.thinking;
    mine.year = defaults.date.year;
    mine.month = defaults.date.month;
    mine.day = defaults.date.day;
    options->struct_size = struct_size;
    give(mine, options);
}

gearkv_code gearkv_chat_template_recognise(const char* text, size_t n_bytes, gearkv_chat_template** out,
                                           gearkv_error* error) {
    if (out == nullptr) return report(null_argument("out"), error);
    std::string_view taken;
    if (Status status = take_text(text, n_bytes, "text", &taken); !status.ok()) return report(status, error);
    std::unique_ptr<ChatTemplate> made;
    const Status status = ChatTemplate::recognise(taken, &made);
    return give_template(std::move(made), status, out, error);
}

gearkv_code gearkv_chat_template_find(const char* name, gearkv_chat_template** out, gearkv_error* error) {
    if (out == nullptr) return report(null_argument("out"), error);
    if (name == nullptr) return report(null_argument("name"), error);
    std::unique_ptr<ChatTemplate> made;
    const Status status = ChatTemplate::find(name, &made);
    return give_template(std::move(made), status, out, error);
}

void gearkv_chat_template_destroy(gearkv_chat_template* chat_template) {
    delete reinterpret_cast<ChatTemplate*>(chat_template);
}

const char* gearkv_chat_template_names(void) {
    return ChatTemplate::names();
}

const char* gearkv_chat_template_name(const gearkv_chat_template* chat_template) {
    return chat_template == nullptr ? "" : cpp(chat_template)->name();
}

int gearkv_chat_template_extends(const gearkv_chat_template* chat_template) {
    return chat_template != nullptr && cpp(chat_template)->extends();
}

gearkv_code gearkv_chat_template_default_system(const gearkv_chat_template* chat_template,
                                                const gearkv_chat_options* options, char* out, size_t n_room,
                                                size_t* n_bytes, gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (Status status = check_template(chat_template); !status.ok()) return status;
        ChatOptions taken;
        if (Status status = take_chat_options(options, &taken); !status.ok()) return status;
        std::string text;
        if (Status status = cpp(chat_template)->default_system(taken, &text); !status.ok()) return status;
        return give_text(text, out, n_room, n_bytes);
    });
}

gearkv_code gearkv_chat_template_render(const gearkv_chat_template* chat_template,
                                        const gearkv_chat_message* messages, size_t n_messages,
                                        const gearkv_chat_options* options, const char* bos, const char* eos,
                                        char* out, size_t n_room, size_t* n_bytes, gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (Status status = check_template(chat_template); !status.ok()) return status;
        if (bos == nullptr) return null_argument("bos");
        if (eos == nullptr) return null_argument("eos");
        ChatOptions taken;
        if (Status status = take_chat_options(options, &taken); !status.ok()) return status;
        std::vector<ChatMessage> conversation;
        if (Status status = take_messages(messages, n_messages, &conversation); !status.ok()) return status;
        std::vector<ChatSegment> segments;
        if (Status status =
                cpp(chat_template)
                    ->render(conversation.data(), conversation.size(), taken, bos, eos, &segments);
            !status.ok())
            return status;
        std::string text;
        for (const ChatSegment& segment : segments)
            text += segment.text;
        return give_text(text, out, n_room, n_bytes);
    });
}

gearkv_code gearkv_chat_template_encode(const gearkv_chat_template* chat_template,
                                        const gearkv_chat_message* messages, size_t n_messages,
                                        const gearkv_chat_options* options, const gearkv_tokenizer* tokenizer,
                                        gearkv_token* out, size_t n_room, size_t* n_tokens,
                                        gearkv_error* error) {
    return answer(error, [&]() -> Status {
        if (Status status = check_template(chat_template); !status.ok()) return status;
        if (tokenizer == nullptr) return null_argument("tokenizer");
        ChatOptions taken;
        if (Status status = take_chat_options(options, &taken); !status.ok()) return status;
        std::vector<ChatMessage> conversation;
        if (Status status = take_messages(messages, n_messages, &conversation); !status.ok()) return status;
        std::vector<Token> tokens;
        if (Status status =
                cpp(chat_template)
                    ->encode(conversation.data(), conversation.size(), taken, *tokenizer->tokenizer, &tokens);
            !status.ok())
            return status;
        return give_all(tokens.data(), tokens.size(), out, n_room, n_tokens, "tokens");
    });
}
