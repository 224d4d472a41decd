// What the C ABI of the decoder makes of null, of wrong sizes and of wrong order: a code and a text, and
// nothing changed; and that what it gives is what the C++ one gives.
#include <cstring>
#include <limits>
#include <string>
#include <vector>
#include "support/catch.hpp"

#include "gearkv/decoder.hpp"
#include "gearkv/gearkv_decoder.h"

namespace {

const char* const model_path = GEARKV_MODEL_DIR "/tiny-q8_0.gguf";
const char* const no_model = GEARKV_DATA_DIR "/recall_sample.jsonl";
constexpr auto invalid = GEARKV_INVALID_ARGUMENT;

struct Text {
    gearkv_error error = {GEARKV_OK, ""};
    operator gearkv_error*() { return &error; }
    bool says(const char* words) const { return std::strstr(error.message, words) != nullptr; }
};

gearkv_session_config usual() {
    gearkv_session_config config;
    gearkv_session_config_init(&config, sizeof(config));
    config.spec = "gear-4";
    config.n_ctx = 128;
    config.chunk = 16;
    return config;
}

struct Talk {
    gearkv_model* model = nullptr;
    gearkv_session* session = nullptr;
    gearkv_sampler* sampler = nullptr;
    const gearkv_tokenizer* tokenizer = nullptr;
    std::vector<gearkv_token> prompt = {1, 20, 30, 40, 50};
    std::size_t n_vocab = 0;
    Talk() {
        Text text;
        REQUIRE(gearkv_model_load(model_path, nullptr, &model, text) == GEARKV_OK);
        tokenizer = gearkv_model_tokenizer(model);
        const gearkv_session_config config = usual();
        REQUIRE(gearkv_session_create(model, &config, nullptr, &session, text) == GEARKV_OK);
        REQUIRE(gearkv_session_prefill(session, prompt.data(), prompt.size(), nullptr, 0, text) == GEARKV_OK);
        REQUIRE(gearkv_sampler_create(nullptr, &sampler, text) == GEARKV_OK);
        gearkv_model_params params = {};
        params.struct_size = sizeof(params);
        REQUIRE(gearkv_model_get_params(model, &params, text) == GEARKV_OK);
        n_vocab = params.n_vocab;
    }
    Talk(const Talk&) = delete;
    ~Talk() {
        gearkv_session_destroy(session);
        gearkv_sampler_destroy(sampler);
        gearkv_model_destroy(model);
    }
    std::size_t n_tokens() const {
        std::size_t n = 0;
        gearkv_session_tokens(session, &n);
        return n;
    }
};

}  // namespace

TEST_CASE("every code of the library has a number and its name in C", "[c]") {
    for (int code = 0; code <= static_cast<int>(gearkv::Code::bad_conversation); ++code) {
        const std::string name = gearkv::code_name(static_cast<gearkv::Code>(code));
        int found = 0;
        const auto name_of = [](int number) {
            return std::string(gearkv_code_name(static_cast<gearkv_code>(number)));
        };
        while (found <= 1100 && name_of(found) != name)
            ++found;
        INFO(name);
        CHECK(found <= 1100);
        CHECK(found != GEARKV_DECODER_ERROR);
    }
    CHECK(gearkv_code_name(GEARKV_NOT_A_MODEL) == std::string("not_a_model"));
    CHECK(gearkv_code_name(GEARKV_BAD_CONVERSATION) == std::string("bad_conversation"));
}

TEST_CASE("null is refused by name for models and tokenizers", "[c]") {
    Text text;
    Talk talk;
    gearkv_model* model = nullptr;
    gearkv_tokenizer* tokenizer = nullptr;
    CHECK(gearkv_model_load(nullptr, nullptr, &model, text) == invalid);
    CHECK(gearkv_model_load(model_path, nullptr, nullptr, text) == invalid);
    CHECK(text.says("out is null"));
    CHECK(gearkv_model_load("/nowhere/at/all", nullptr, &model, text) == GEARKV_IO_ERROR);
    CHECK(gearkv_model_load(no_model, nullptr, &model, text) == GEARKV_NOT_A_MODEL);
    gearkv_model_options options = {};
    CHECK(gearkv_model_load(model_path, &options, &model, text) == invalid);
    CHECK(text.says("struct_size of options is 0"));
    CHECK(gearkv_tokenizer_load(nullptr, nullptr, &tokenizer, text) == invalid);
    CHECK(gearkv_tokenizer_load(model_path, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_tokenizer_load(no_model, nullptr, &tokenizer, text) == GEARKV_NOT_A_MODEL);
    CHECK((model == nullptr && tokenizer == nullptr));
    gearkv_model_params params = {};
    CHECK(gearkv_model_get_params(nullptr, &params, text) == invalid);
    CHECK(gearkv_model_get_params(talk.model, nullptr, text) == invalid);
    CHECK(gearkv_model_get_params(talk.model, &params, text) == invalid);
    CHECK(text.says("struct_size of out is 0"));
    gearkv_tensor_info tensor = {};
    tensor.struct_size = sizeof(tensor);
    CHECK(gearkv_model_get_tensor(nullptr, 0, &tensor, text) == invalid);
    CHECK(gearkv_model_get_tensor(talk.model, 0, nullptr, text) == invalid);
    CHECK(gearkv_model_get_tensor(talk.model, gearkv_model_n_tensors(talk.model), &tensor, text) == invalid);
    const char *key = nullptr, *value = nullptr;
    CHECK(gearkv_model_get_metadata(nullptr, 0, &key, &value, text) == invalid);
    CHECK(gearkv_model_get_metadata(talk.model, 0, nullptr, &value, text) == invalid);
    CHECK(gearkv_model_get_metadata(talk.model, 0, &key, nullptr, text) == invalid);
    CHECK(gearkv_model_get_metadata(talk.model, gearkv_model_n_metadata(talk.model), &key, &value, text) ==
          invalid);
    std::uint8_t fingerprint[GEARKV_FINGERPRINT_SIZE];
    CHECK(gearkv_model_fingerprint(nullptr, fingerprint, text) == invalid);
    CHECK(gearkv_model_fingerprint(talk.model, nullptr, text) == invalid);
    CHECK((key == nullptr && value == nullptr));

    gearkv_tokenizer_info info = {};
    CHECK(gearkv_tokenizer_get_info(nullptr, &info, text) == invalid);
    CHECK(gearkv_tokenizer_get_info(talk.tokenizer, &info, text) == invalid);
    gearkv_token tokens[8] = {-7};
    std::size_t n = 99;
    CHECK(gearkv_tokenizer_encode(nullptr, "a", 1, nullptr, tokens, 8, &n, text) == invalid);
    CHECK(gearkv_tokenizer_encode(talk.tokenizer, nullptr, 1, nullptr, tokens, 8, &n, text) == invalid);
    CHECK(gearkv_tokenizer_encode(talk.tokenizer, "a", 1, nullptr, tokens, 8, nullptr, text) == invalid);
    CHECK(gearkv_tokenizer_encode_pieces(talk.tokenizer, nullptr, 1, nullptr, tokens, 8, &n, text) ==
          invalid);
    const gearkv_text_piece nowhere = {nullptr, 3, 0};
    CHECK(gearkv_tokenizer_encode_pieces(talk.tokenizer, &nowhere, 1, nullptr, tokens, 8, &n, text) ==
          invalid);
    CHECK(gearkv_tokenizer_encode_pieces(nullptr, nullptr, 0, nullptr, tokens, 8, &n, text) == invalid);
    char bytes[8] = "as was";
    CHECK(gearkv_tokenizer_decode(nullptr, tokens, 1, nullptr, bytes, 8, &n, text) == invalid);
    CHECK(gearkv_tokenizer_decode(talk.tokenizer, nullptr, 1, nullptr, bytes, 8, &n, text) == invalid);
    CHECK(gearkv_tokenizer_decode(talk.tokenizer, tokens, 1, nullptr, bytes, 8, &n, text) ==
          GEARKV_BAD_TOKEN);
    CHECK(gearkv_tokenizer_decode(talk.tokenizer, talk.prompt.data(), 1, nullptr, bytes, 8, nullptr, text) ==
          invalid);
    CHECK((n == 99 && tokens[0] == -7 && std::string(bytes) == "as was"));
    gearkv_text_stream* stream = nullptr;
    CHECK(gearkv_text_stream_create(nullptr, nullptr, &stream, text) == invalid);
    CHECK(gearkv_text_stream_create(talk.tokenizer, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_text_stream_push(nullptr, 1, &key, &n, text) == invalid);
    CHECK(gearkv_text_stream_flush(nullptr, &key, &n, text) == invalid);
    REQUIRE(gearkv_text_stream_create(talk.tokenizer, nullptr, &stream, text) == GEARKV_OK);
    CHECK(gearkv_text_stream_push(stream, 1, nullptr, &n, text) == invalid);
    CHECK(gearkv_text_stream_push(stream, 1, &key, nullptr, text) == invalid);
    CHECK(gearkv_text_stream_push(stream, -1, &key, &n, text) == GEARKV_BAD_TOKEN);
    CHECK(gearkv_text_stream_flush(stream, nullptr, &n, text) == invalid);
    gearkv_text_stream_destroy(stream);

    // Where null stands for nothing.
    gearkv_model_destroy(nullptr);
    gearkv_tokenizer_destroy(nullptr);
    gearkv_text_stream_destroy(nullptr);
    CHECK((gearkv_model_n_tensors(nullptr) == 0 && gearkv_model_n_metadata(nullptr) == 0));
    CHECK(gearkv_model_tokenizer(nullptr) == nullptr);
    CHECK((gearkv_tokenizer_token_text(nullptr, 1, &n) == nullptr && n == 0));
    CHECK(gearkv_tokenizer_token_type(nullptr, 1) == GEARKV_TOKEN_UNUSED);
    CHECK(gearkv_tokenizer_find(nullptr, "a", 1) == -1);
    CHECK(gearkv_tokenizer_find(talk.tokenizer, nullptr, 1) == -1);
    CHECK(gearkv_tokenizer_ends_generation(nullptr, 1) == 0);
    CHECK(gearkv_tokenizer_token_type(talk.tokenizer, -5) == GEARKV_TOKEN_UNUSED);
    CHECK(gearkv_tokenizer_ends_generation(talk.tokenizer, std::numeric_limits<gearkv_token>::max()) == 0);
}

TEST_CASE("null is refused by name for sessions, samplers and templates", "[c]") {
    Text text;
    Talk talk;
    const gearkv_session_config config = usual();
    gearkv_session* session = nullptr;
    const auto* tokens = talk.prompt.data();
    std::uint64_t n = 7;
    std::size_t n_written = 7;
    float logit = 3.0f;
    CHECK(gearkv_session_create(nullptr, &config, nullptr, &session, text) == invalid);
    CHECK(text.says("model is null"));
    CHECK(gearkv_session_create(talk.model, nullptr, nullptr, &session, text) == invalid);
    CHECK(gearkv_session_create(talk.model, &config, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_session_prefill(nullptr, tokens, 1, nullptr, 0, text) == invalid);
    CHECK(gearkv_session_prefill(talk.session, nullptr, 1, nullptr, 0, text) == invalid);
    CHECK(gearkv_session_sync(nullptr, tokens, 1, &n, text) == invalid);
    CHECK(gearkv_session_sync(talk.session, nullptr, 1, &n, text) == invalid);
    CHECK(gearkv_session_decode(nullptr, 1, text) == invalid);
    CHECK(gearkv_session_decode_draft(nullptr, tokens, 1, &logit, 1, text) == invalid);
    CHECK(gearkv_session_decode_draft(talk.session, tokens, 1, nullptr, 0, text) == invalid);
    CHECK(text.says("all_logits is null"));
    CHECK(gearkv_session_decode_batch(nullptr, 1, text) == invalid);
    CHECK(gearkv_session_truncate(nullptr, 0, nullptr, text) == invalid);
    CHECK(gearkv_session_remove(nullptr, 0, 1, nullptr, text) == invalid);
    CHECK(gearkv_session_fork(nullptr, nullptr, &session, text) == invalid);
    CHECK(gearkv_session_fork(talk.session, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_session_save(nullptr, "x", nullptr, nullptr, text) == invalid);
    CHECK(gearkv_session_save(talk.session, nullptr, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_session_save(talk.session, model_path, nullptr, nullptr, text) == GEARKV_PROTECTED_FILE);
    CHECK(gearkv_session_check_save(nullptr, "x", text) == invalid);
    CHECK(gearkv_session_check_save(talk.session, nullptr, text) == invalid);
    CHECK(gearkv_session_check_save(talk.session, model_path, text) == GEARKV_PROTECTED_FILE);
    CHECK(gearkv_session_saved_bytes(nullptr, nullptr, &n, text) == invalid);
    CHECK(gearkv_session_saved_bytes(talk.session, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_session_save_to_memory(nullptr, &logit, 4, nullptr, &n_written, text) == invalid);
    CHECK(gearkv_session_save_to_memory(talk.session, nullptr, 4, nullptr, &n_written, text) == invalid);
    CHECK(gearkv_session_save_to_memory(talk.session, &logit, 4, nullptr, &n_written, text) ==
          GEARKV_WRONG_SIZE);
    CHECK(gearkv_session_save_through(nullptr, nullptr, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_session_save_through(talk.session, nullptr, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_session_load(nullptr, talk.model, &config, nullptr, nullptr, &session, text) == invalid);
    CHECK(gearkv_session_load(model_path, nullptr, &config, nullptr, nullptr, &session, text) == invalid);
    CHECK(gearkv_session_load(model_path, talk.model, nullptr, nullptr, nullptr, &session, text) == invalid);
    CHECK(gearkv_session_load(model_path, talk.model, &config, nullptr, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_session_load(model_path, talk.model, &config, nullptr, nullptr, &session, text) ==
          GEARKV_NOT_A_STATE);
    CHECK(gearkv_session_load_from_memory(nullptr, 0, talk.model, &config, nullptr, nullptr, &session,
                                          text) == invalid);
    CHECK(gearkv_session_load_through(nullptr, nullptr, talk.model, &config, nullptr, nullptr, &session,
                                      text) == invalid);
    gearkv_session_bytes bytes = {};
    bytes.struct_size = sizeof(bytes);
    CHECK(gearkv_get_session_bytes(nullptr, &config, nullptr, &bytes, text) == invalid);
    CHECK(gearkv_get_session_bytes(talk.model, nullptr, nullptr, &bytes, text) == invalid);
    CHECK(gearkv_get_session_bytes(talk.model, &config, nullptr, nullptr, text) == invalid);
    gearkv_fit fit = {};
    CHECK(gearkv_fit_session(nullptr, &config, 1, 0, nullptr, &fit, text) == invalid);
    CHECK(gearkv_fit_session(talk.model, &config, 1, 0, nullptr, &fit, text) == invalid);

    gearkv_sampler* sampler = nullptr;
    gearkv_token token = -3;
    CHECK(gearkv_sampler_create(nullptr, nullptr, text) == invalid);
    CHECK(gearkv_sampler_sample(nullptr, &logit, 1, &token, text) == invalid);
    CHECK(gearkv_sampler_sample(talk.sampler, nullptr, 1, &token, text) == invalid);
    CHECK(gearkv_sampler_sample(talk.sampler, &logit, 1, nullptr, text) == invalid);
    CHECK(gearkv_sampler_accept(nullptr, tokens, 1, text) == invalid);
    CHECK(gearkv_sampler_accept(talk.sampler, nullptr, 1, text) == invalid);
    CHECK(gearkv_sampler_save(nullptr, &logit, 4, &n_written, text) == invalid);
    CHECK(gearkv_sampler_save(talk.sampler, &logit, 4, nullptr, text) == invalid);
    CHECK(gearkv_sampler_restore(nullptr, tokens, 4, text) == invalid);
    CHECK(gearkv_sampler_restore(talk.sampler, nullptr, 4, text) == invalid);
    CHECK(gearkv_sampler_restore(talk.sampler, "no state", 8, text) != GEARKV_OK);

    gearkv_stop_matcher* matcher = nullptr;
    const char* const stops[] = {"end", nullptr};
    const char* piece = nullptr;
    CHECK(gearkv_stop_matcher_create(nullptr, 1, &matcher, text) == invalid);
    CHECK(gearkv_stop_matcher_create(stops, 1, nullptr, text) == invalid);
    CHECK(gearkv_stop_matcher_create(stops, 2, &matcher, text) == invalid);
    CHECK(text.says("stop text 1 is null"));
    CHECK(gearkv_stop_matcher_feed(nullptr, "a", 1, &piece, &n_written, text) == invalid);
    CHECK(gearkv_stop_matcher_finish(nullptr, &piece, &n_written, text) == invalid);
    REQUIRE(gearkv_stop_matcher_create(stops, 1, &matcher, text) == GEARKV_OK);
    CHECK(gearkv_stop_matcher_feed(matcher, nullptr, 1, &piece, &n_written, text) == invalid);
    CHECK(gearkv_stop_matcher_feed(matcher, "a", 1, nullptr, &n_written, text) == invalid);
    CHECK(gearkv_stop_matcher_feed(matcher, "a", 1, &piece, nullptr, text) == invalid);
    CHECK(gearkv_stop_matcher_finish(matcher, nullptr, &n_written, text) == invalid);
    gearkv_stop_matcher_destroy(matcher);

    gearkv_chat_template* chat = nullptr;
    char out[8];
    CHECK(gearkv_chat_template_recognise(nullptr, 1, &chat, text) == invalid);
    CHECK(gearkv_chat_template_recognise("a", 1, nullptr, text) == invalid);
    CHECK(gearkv_chat_template_recognise("a", 1, &chat, text) == GEARKV_UNKNOWN_TEMPLATE);
    CHECK(gearkv_chat_template_find(nullptr, &chat, text) == invalid);
    CHECK(gearkv_chat_template_find("chatml", nullptr, text) == invalid);
    CHECK(gearkv_chat_template_find("no such", &chat, text) == GEARKV_UNKNOWN_TEMPLATE);
    CHECK(gearkv_chat_template_default_system(nullptr, nullptr, out, 8, &n_written, text) == invalid);
    CHECK(gearkv_chat_template_render(nullptr, nullptr, 0, nullptr, "", "", out, 8, &n_written, text) ==
          invalid);
    CHECK(gearkv_chat_template_encode(nullptr, nullptr, 0, nullptr, talk.tokenizer, nullptr, 0, &n_written,
                                      text) == invalid);
    REQUIRE(gearkv_chat_template_find("chatml", &chat, text) == GEARKV_OK);
    CHECK(gearkv_chat_template_render(chat, nullptr, 1, nullptr, "", "", out, 8, &n_written, text) ==
          invalid);
    CHECK(gearkv_chat_template_render(chat, nullptr, 0, nullptr, nullptr, "", out, 8, &n_written, text) ==
          invalid);
    CHECK(gearkv_chat_template_encode(chat, nullptr, 0, nullptr, nullptr, nullptr, 0, &n_written, text) ==
          invalid);
    gearkv_chat_message message = {sizeof(message), static_cast<gearkv_chat_role>(9), "a", 1, nullptr, 0};
    CHECK(gearkv_chat_template_render(chat, &message, 1, nullptr, "", "", out, 8, &n_written, text) ==
          invalid);
    CHECK(text.says("role 9"));
    message.role = GEARKV_USER;
    message.content = nullptr;
    CHECK(gearkv_chat_template_render(chat, &message, 1, nullptr, "", "", out, 8, &n_written, text) ==
          invalid);
    message = {sizeof(message), GEARKV_ASSISTANT, "a", 1, nullptr, 2};
    CHECK(gearkv_chat_template_render(chat, &message, 1, nullptr, "", "", out, 8, &n_written, text) ==
          invalid);
    message.struct_size = 0;
    CHECK(gearkv_chat_template_render(chat, &message, 1, nullptr, "", "", out, 8, &n_written, text) ==
          invalid);
    gearkv_chat_template_destroy(chat);
    CHECK((session == nullptr && sampler == nullptr && n == 7 && n_written == 7 && token == -3));
    CHECK((logit == 3.0f && talk.n_tokens() == 5));

    // Where null stands for nothing.
    gearkv_session_destroy(nullptr);
    gearkv_session_reset(nullptr);
    gearkv_sampler_destroy(nullptr);
    gearkv_sampler_forget(nullptr);
    gearkv_stop_matcher_destroy(nullptr);
    gearkv_stop_matcher_reset(nullptr);
    gearkv_chat_template_destroy(nullptr);
    gearkv_session_config_init(nullptr, 8);
    gearkv_sampler_config_init(nullptr, 8);
    gearkv_chat_options_init(nullptr, 8);
    CHECK(gearkv_session_decode_batch(nullptr, 0, text) == GEARKV_OK);
    CHECK((gearkv_session_logits(nullptr) == nullptr && gearkv_session_cache(nullptr) == nullptr));
    CHECK((gearkv_session_tokens(nullptr, &n_written) == nullptr && n_written == 0));
    CHECK((gearkv_session_note(nullptr, &n_written) == nullptr && gearkv_session_n_ctx(nullptr) == 0));
    CHECK((gearkv_session_note(talk.session, nullptr) == nullptr));
    CHECK(gearkv_stop_matcher_stopped_by(nullptr) == -1);
    CHECK((std::string(gearkv_chat_template_name(nullptr)).empty() &&
           gearkv_chat_template_extends(nullptr) == 0));
    CHECK(gearkv_look_up_draft(nullptr, 3, 2, 2, &token) == 0);
}

TEST_CASE("wrong values of sessions have codes of their own, and feed nothing", "[c]") {
    Text text;
    Talk talk;
    gearkv_session* session = nullptr;
    gearkv_session_config config = usual();
    config.spec = nullptr;
    CHECK(gearkv_session_create(talk.model, &config, nullptr, &session, text) == GEARKV_BAD_SPEC);
    config.spec = "gear-five";
    CHECK(gearkv_session_create(talk.model, &config, nullptr, &session, text) == GEARKV_BAD_SPEC);
    config = usual();
    config.level = static_cast<gearkv_level>(77);
    CHECK(gearkv_session_create(talk.model, &config, nullptr, &session, text) == GEARKV_UNKNOWN_LEVEL);
    config = usual();
    config.chunk = 0;
    CHECK(gearkv_session_create(talk.model, &config, nullptr, &session, text) == invalid);
    gearkv_session_load_options load = {};
    load.struct_size = sizeof(load);
    load.loading = GEARKV_LOAD_MAP_LAZY;
    config = usual();
    CHECK(gearkv_session_load("x", talk.model, &config, &load, nullptr, &session, text) == invalid);
    CHECK(text.says("loading 2"));
    CHECK(session == nullptr);

    std::vector<float> logits(2 * talk.n_vocab, 3.0f);
    const auto* tokens = talk.prompt.data();
    CHECK(gearkv_session_prefill(talk.session, tokens, 0, nullptr, 0, text) == GEARKV_EMPTY_PROMPT);
    CHECK(gearkv_session_prefill(talk.session, tokens, 2, logits.data(), 2 * talk.n_vocab - 1, text) ==
          GEARKV_WRONG_SIZE);
    CHECK(gearkv_session_prefill(talk.session, tokens, std::numeric_limits<std::size_t>::max(), logits.data(),
                                 2 * talk.n_vocab, text) == GEARKV_WRONG_SIZE);
    CHECK(gearkv_session_decode_draft(talk.session, tokens, 3, logits.data(), 2 * talk.n_vocab, text) ==
          GEARKV_WRONG_SIZE);
    CHECK(gearkv_session_decode_draft(talk.session, tokens, 0, logits.data(), 2 * talk.n_vocab, text) ==
          GEARKV_WRONG_SIZE);
    CHECK(gearkv_session_decode(talk.session, -1, text) == GEARKV_BAD_TOKEN);
    const std::vector<gearkv_token> many(200, 20);
    CHECK(gearkv_session_prefill(talk.session, many.data(), many.size(), nullptr, 0, text) ==
          GEARKV_PROMPT_TOO_LONG);
    CHECK(gearkv_session_truncate(talk.session, 6, nullptr, text) == GEARKV_WRONG_SIZE);
    CHECK(gearkv_session_remove(talk.session, 4, 2, nullptr, text) == GEARKV_WRONG_SIZE);
    CHECK((talk.n_tokens() == 5 && logits[0] == 3.0f));

    // A batch that is refused writes nothing; an error of one session is its own.
    gearkv_decode_request requests[2] = {{talk.session, 20, {GEARKV_DAMAGED, "as was"}},
                                         {talk.session, 20, {GEARKV_DAMAGED, "as was"}}};
    CHECK(gearkv_session_decode_batch(requests, 2, text) == invalid);
    CHECK((requests[0].error.code == GEARKV_DAMAGED && requests[1].error.code == GEARKV_DAMAGED));
    CHECK(gearkv_session_decode_batch(requests, 1, text) == GEARKV_OK);
    CHECK((requests[0].error.code == GEARKV_OK && requests[0].error.message[0] == '\0'));
    CHECK(talk.n_tokens() == 6);

    gearkv_sampler_config sampling;
    gearkv_sampler* sampler = nullptr;
    gearkv_sampler_config_init(&sampling, sizeof(sampling));
    sampling.top_p = 2.0f;
    CHECK(gearkv_sampler_create(&sampling, &sampler, text) == invalid);
    CHECK(text.says("top_p"));
    gearkv_sampler_config_init(&sampling, sizeof(sampling));
    sampling.n_logit_bias = 1;
    CHECK(gearkv_sampler_create(&sampling, &sampler, text) == invalid);
    gearkv_sampler_config_init(&sampling, sizeof(sampling));
    sampling.n_dry_breakers = 1;
    CHECK(gearkv_sampler_create(&sampling, &sampler, text) == invalid);
    CHECK(sampler == nullptr);
}

TEST_CASE("too little room is told with what is needed, and nothing is written", "[c]") {
    Text text;
    Talk talk;
    gearkv_token tokens[64];
    std::memset(tokens, 0x7f, sizeof(tokens));
    std::size_t n = 0, again = 0;
    CHECK(gearkv_tokenizer_encode(talk.tokenizer, "Hello, world", 12, nullptr, tokens, 1, &n, text) ==
          GEARKV_WRONG_SIZE);
    CHECK((n > 1 && tokens[0] == 0x7f7f7f7f));
    CHECK(text.says(("room for 1 tokens, " + std::to_string(n)).c_str()));
    REQUIRE(gearkv_tokenizer_encode(talk.tokenizer, "Hello, world", 12, nullptr, tokens, n, &again, text) ==
            GEARKV_OK);
    CHECK((again == n && tokens[n] == 0x7f7f7f7f));
    gearkv_encode_options bare = {};
    bare.struct_size = sizeof(bare);
    bare.no_special = 1;
    CHECK(gearkv_tokenizer_encode(talk.tokenizer, nullptr, 0, &bare, nullptr, 0, &again, text) == GEARKV_OK);
    CHECK(again == 0);

    char bytes[64];
    std::memset(bytes, 0x7f, sizeof(bytes));
    // No room for the zero.
    CHECK(gearkv_tokenizer_decode(talk.tokenizer, tokens, n, nullptr, bytes, 12, &again, text) ==
          GEARKV_WRONG_SIZE);
    CHECK((again == 12 && bytes[0] == 0x7f));
    REQUIRE(gearkv_tokenizer_decode(talk.tokenizer, tokens, n, nullptr, bytes, 13, &again, text) ==
            GEARKV_OK);
    CHECK((again == 12 && std::string(bytes) == "Hello, world" && bytes[13] == 0x7f));
}

TEST_CASE("a speculation refuses what it cannot do, and feeds nothing", "[c]") {
    Text text;
    Talk talk;
    gearkv_speculation* speculation = nullptr;
    gearkv_speculation_config config;
    gearkv_speculation_config_init(nullptr, 8);
    gearkv_speculation_config_init(&config, sizeof(config));
    CHECK((config.struct_size == sizeof(config) && config.n_draft == 8 && config.n_match == 3 &&
           config.drafter == nullptr));
    CHECK(gearkv_speculation_create(nullptr, &config, &speculation, text) == invalid);
    CHECK(text.says("session is null"));
    CHECK(gearkv_speculation_create(talk.session, &config, nullptr, text) == invalid);
    CHECK(text.says("out is null"));
    // The session of talk can take nothing back.
    CHECK(gearkv_speculation_create(talk.session, nullptr, &speculation, text) == GEARKV_WRONG_SIZE);
    CHECK(text.says("drafts of 8 tokens, expected at most 0"));
    config.n_draft = 0;
    config.n_match = 1;
    CHECK(gearkv_speculation_create(talk.session, &config, &speculation, text) == GEARKV_WRONG_SIZE);
    config.n_match = 3;
    config.drafter = talk.session;
    CHECK(gearkv_speculation_create(talk.session, &config, &speculation, text) == invalid);
    config.drafter = nullptr;
    config.struct_size = 0;
    CHECK(gearkv_speculation_create(talk.session, &config, &speculation, text) == invalid);
    CHECK(text.says("struct_size of config is 0"));
    CHECK(speculation == nullptr);

    gearkv_speculation_stats stats;
    std::memset(static_cast<void*>(&stats), 0x5a, sizeof(stats));
    stats.struct_size = sizeof(stats);
    CHECK(gearkv_speculation_decode(nullptr, 1, text) == invalid);
    CHECK(text.says("speculation is null"));
    CHECK(gearkv_speculation_settle(nullptr, text) == invalid);
    CHECK(gearkv_speculation_get_stats(nullptr, &stats, text) == invalid);
    CHECK((gearkv_speculation_logits(nullptr) == nullptr && gearkv_speculation_n_tokens(nullptr) == 0));
    gearkv_speculation_destroy(nullptr);

    config.struct_size = offsetof(gearkv_speculation_config, n_match);  // of an older header
    REQUIRE(gearkv_speculation_create(talk.session, &config, &speculation, text) == GEARKV_OK);
    CHECK(gearkv_speculation_get_stats(speculation, nullptr, text) == invalid);
    CHECK(gearkv_speculation_decode(speculation, -1, text) == GEARKV_BAD_TOKEN);
    CHECK((talk.n_tokens() == 5 && gearkv_speculation_n_tokens(speculation) == 5));
    CHECK(gearkv_speculation_logits(speculation) == gearkv_session_logits(talk.session));
    CHECK(gearkv_speculation_decode(speculation, 20, text) == GEARKV_OK);
    CHECK(talk.n_tokens() == 6);
    stats.struct_size = offsetof(gearkv_speculation_stats, n_drafted);
    CHECK(gearkv_speculation_get_stats(speculation, &stats, text) == GEARKV_OK);
    CHECK((stats.n_tokens == 1 && stats.n_drafted == 0x5a5a5a5a5a5a5a5a));
    CHECK(gearkv_speculation_settle(speculation, text) == GEARKV_OK);
    gearkv_speculation_destroy(speculation);
}

TEST_CASE("structures of older and newer headers are taken as those of the core are", "[c]") {
    Text text;
    Talk talk;
    struct Newer {
        gearkv_session_config config;
        std::uint64_t flag = 1;
    } newer;
    newer.config = usual();
    newer.config.struct_size = sizeof(newer);
    gearkv_session* session = nullptr;
    CHECK(gearkv_session_create(talk.model, &newer.config, nullptr, &session, text) == invalid);
    CHECK(text.says("this library knows"));
    CHECK(session == nullptr);
    gearkv_tokenizer_info info;
    std::memset(static_cast<void*>(&info), 0x5a, sizeof(info));
    info.struct_size = offsetof(gearkv_tokenizer_info, kind);
    REQUIRE(gearkv_tokenizer_get_info(talk.tokenizer, &info, text) == GEARKV_OK);
    CHECK((info.n_vocab == talk.n_vocab && info.kind != nullptr &&
           *reinterpret_cast<const unsigned char*>(&info.kind) == 0x5a));

    // Messages of a program whose structure is longer, or shorter, lie so far apart as it has them.
    struct Message {
        gearkv_chat_message message;
        std::uint64_t more = 0;
    } messages[2];
    messages[0].message = {sizeof(Message), GEARKV_SYSTEM, "S", 1, nullptr, 0};
    messages[1].message = {sizeof(Message), GEARKV_USER, "U", 1, nullptr, 0};
    gearkv_chat_template* chat = nullptr;
    REQUIRE(gearkv_chat_template_find("chatml", &chat, text) == GEARKV_OK);
    char out[256];
    std::size_t n = 0;
    REQUIRE(gearkv_chat_template_render(chat, &messages[0].message, 2, nullptr, "", "", out, sizeof(out), &n,
                                        text) == GEARKV_OK);
    CHECK(std::string(out).find("<|im_start|>user\nU<|im_end|>") != std::string::npos);
    messages[1].message.struct_size = sizeof(gearkv_chat_message);
    CHECK(gearkv_chat_template_render(chat, &messages[0].message, 2, nullptr, "", "", out, sizeof(out), &n,
                                      text) == invalid);
    gearkv_chat_template_destroy(chat);
}

TEST_CASE("C gives what C++ gives", "[c]") {
    using namespace gearkv;
    Text text;
    Talk talk;
    std::shared_ptr<const Model> model;
    REQUIRE(Model::load(model_path, &model).ok());
    SessionConfig config;
    REQUIRE(parse_spec("gear-4", &config.spec).ok());
    config.n_ctx = 128;
    config.chunk = 16;
    std::unique_ptr<Session> session;
    REQUIRE(Session::create(model, config, serial_executor(), &session).ok());
    REQUIRE(session->prefill(talk.prompt.data(), talk.prompt.size()).ok());
    REQUIRE(gearkv_session_logits(talk.session) != nullptr);
    CHECK(std::memcmp(gearkv_session_logits(talk.session), session->logits(), talk.n_vocab * 4) == 0);

    SamplerConfig drawing;
    drawing.temperature = 0.9f;
    drawing.repeat_penalty = 1.1f;
    drawing.seed = 3;
    drawing.logit_bias = {{5, -1.0f}};
    std::unique_ptr<Sampler> sampler;
    REQUIRE(Sampler::create(drawing, &sampler).ok());
    gearkv_sampler_config plain;
    gearkv_sampler_config_init(&plain, sizeof(plain));
    const gearkv_logit_bias bias = {5, -1.0f};
    plain.temperature = 0.9f;
    plain.repeat_penalty = 1.1f;
    plain.seed = 3;
    plain.logit_bias = &bias;
    plain.n_logit_bias = 1;
    gearkv_sampler* mine = nullptr;
    REQUIRE(gearkv_sampler_create(&plain, &mine, text) == GEARKV_OK);
    for (int i = 0; i < 20; ++i) {
        Token expected = -1;
        gearkv_token found = -2;
        REQUIRE(sampler->sample(session->logits(), talk.n_vocab, &expected).ok());
        REQUIRE(sampler->accept(expected).ok());
        REQUIRE(gearkv_sampler_sample(mine, gearkv_session_logits(talk.session), talk.n_vocab, &found,
                                      text) == GEARKV_OK);
        REQUIRE(gearkv_sampler_accept(mine, &found, 1, text) == GEARKV_OK);
        CHECK(found == expected);
        CHECK(gearkv_tokenizer_ends_generation(talk.tokenizer, found) ==
              int(model->tokenizer().is_end_of_generation(found)));
        std::size_t n = 0;
        const char* word = gearkv_tokenizer_token_text(talk.tokenizer, found, &n);
        CHECK(std::string_view(word, n) == model->tokenizer().text(found));
        CHECK(gearkv_tokenizer_find(talk.tokenizer, word, n) == model->tokenizer().find({word, n}));
        REQUIRE(session->decode(expected).ok());
        REQUIRE(gearkv_session_decode(talk.session, found, text) == GEARKV_OK);
    }
    gearkv_sampler_destroy(mine);

    const TextPiece parts[] = {{"<s>", true}, {"Hello <s>", false}};
    const gearkv_text_piece pieces[] = {{"<s>", 3, 1}, {"Hello <s>", 9, 0}};
    std::vector<Token> expected;
    REQUIRE(model->tokenizer().encode(parts, 2, true, &expected).ok());
    std::vector<gearkv_token> found(64);
    std::size_t n = 0;
    REQUIRE(gearkv_tokenizer_encode_pieces(talk.tokenizer, pieces, 2, nullptr, found.data(), found.size(), &n,
                                           text) == GEARKV_OK);
    found.resize(n);
    CHECK(found == expected);
    gearkv_model_options options = {};
    options.struct_size = sizeof(options);
    gearkv_tokenizer* alone = nullptr;
    REQUIRE(gearkv_tokenizer_load(model_path, &options, &alone, text) == GEARKV_OK);
    REQUIRE(gearkv_tokenizer_encode_pieces(alone, pieces, 2, nullptr, found.data(), found.size(), &n, text) ==
            GEARKV_OK);
    CHECK(found == expected);
    gearkv_tokenizer_destroy(alone);
    CHECK(std::string(gearkv_split_rule_names()) == split_rule_names());
    CHECK(std::string(gearkv_chat_template_names()) == ChatTemplate::names());
}
