/* The life of a session in C99, as an embedder writes it: decoder_life MODEL STATE. Exits with 0 when all of
 * it is as the header says. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gearkv/gearkv_decoder.h"

enum { n_generated = 24, max_tokens = 512 };

static void fail(int line, const char* what, const gearkv_error* error) {
    fprintf(stderr, "line %d: %s: %s: %s\n", line, what, gearkv_code_name(error->code), error->message);
    exit(1);
}
#define CHECK(call)                                             \
    do {                                                        \
        if ((call) != GEARKV_OK) fail(__LINE__, #call, &error); \
    } while (0)
#define REQUIRE(condition)                                    \
    do {                                                      \
        if (!(condition)) fail(__LINE__, #condition, &error); \
    } while (0)

static int never(void* context) {
    ++*(int*)context;
    return 0;
}
static int always(void* context) {
    (void)context;
    return 1;
}

/* Bytes that grow, and are read again. */
struct bytes {
    unsigned char* data;
    size_t n, at;
};
static int put(void* context, const void* piece, size_t n) {
    struct bytes* to = (struct bytes*)context;
    unsigned char* grown = (unsigned char*)realloc(to->data, to->n + n);
    if (grown == NULL) return 0;
    memcpy(grown + to->n, piece, n);
    to->data = grown;
    to->n += n;
    return 1;
}
static int get(void* context, void* to, size_t n, size_t* n_read) {
    struct bytes* from = (struct bytes*)context;
    *n_read = n < from->n - from->at ? n : from->n - from->at;
    memcpy(to, from->data + from->at, *n_read);
    from->at += *n_read;
    return 1;
}

static gearkv_token likeliest(const float* logits, size_t n) {
    size_t i, best = 0;
    for (i = 1; i < n; ++i)
        if (logits[i] > logits[best]) best = i;
    return (gearkv_token)best;
}

/* Greedy tokens with a drafter that is always right, and with prompt lookup: the logits of a session alone.
 */
static void speculate(const gearkv_model* model, const gearkv_session_config* config,
                      const gearkv_token* prompt, size_t n_prompt, size_t n_vocab) {
    gearkv_error error = {GEARKV_OK, ""};
    gearkv_session *plain = NULL, *session = NULL, *drafter = NULL;
    gearkv_speculation* speculation = NULL;
    gearkv_speculation_config drafting;
    gearkv_speculation_stats stats;
    size_t i, n = 0;
    int round;
    for (round = 0; round < 2; ++round) {
        CHECK(gearkv_session_create(model, config, NULL, &plain, &error));
        CHECK(gearkv_session_create(model, config, NULL, &session, &error));
        CHECK(gearkv_session_create(model, config, NULL, &drafter, &error));
        CHECK(gearkv_session_prefill(plain, prompt, n_prompt, NULL, 0, &error));
        CHECK(gearkv_session_prefill(session, prompt, n_prompt, NULL, 0, &error));
        gearkv_speculation_config_init(&drafting, sizeof(drafting));
        REQUIRE(drafting.n_draft == 8 && drafting.n_match == 3 && drafting.drafter == NULL);
        if (round == 0) drafting.drafter = drafter;
        CHECK(gearkv_speculation_create(session, round == 0 ? &drafting : NULL, &speculation, &error));
        for (i = 0; i < n_generated; ++i) {
            const float* logits = gearkv_speculation_logits(speculation);
            REQUIRE(memcmp(logits, gearkv_session_logits(plain), sizeof(float) * n_vocab) == 0);
            CHECK(gearkv_speculation_decode(speculation, likeliest(logits, n_vocab), &error));
            CHECK(gearkv_session_decode(plain, likeliest(gearkv_session_logits(plain), n_vocab), &error));
        }
        REQUIRE(gearkv_speculation_n_tokens(speculation) == n_prompt + n_generated);
        CHECK(gearkv_speculation_settle(speculation, &error));
        (void)gearkv_session_tokens(session, &n);
        REQUIRE(n == n_prompt + n_generated);
        REQUIRE(memcmp(gearkv_speculation_logits(speculation), gearkv_session_logits(plain),
                       sizeof(float) * n_vocab) == 0);
        stats.struct_size = sizeof(stats);
        CHECK(gearkv_speculation_get_stats(speculation, &stats, &error));
        REQUIRE(stats.n_tokens == n_generated && stats.n_passes + stats.n_right == n_generated);
        if (round == 0) REQUIRE(stats.n_passes <= n_generated / 4 && stats.n_right <= stats.n_drafted);
        gearkv_speculation_destroy(speculation);
        gearkv_session_destroy(plain);
        gearkv_session_destroy(session);
        gearkv_session_destroy(drafter);
    }
}

int main(int argc, char** argv) {
    static gearkv_token tokens[max_tokens], answer[n_generated], draft[8];
    static char text[4096], shown[4096];
    static const char prompt[] = "It was a fine morning, and the old man said to his daughter,\n";
    static const char* const stops[] = {"no text would have this in it"};
    gearkv_error error = {GEARKV_OK, ""}, warning = {GEARKV_OK, ""};
    gearkv_executor* pool = NULL;
    gearkv_model* model = NULL;
    gearkv_session *session = NULL, *fork = NULL, *loaded = NULL;
    gearkv_sampler *sampler = NULL, *second = NULL;
    gearkv_text_stream* stream = NULL;
    gearkv_stop_matcher* matcher = NULL;
    gearkv_chat_template* chat = NULL;
    gearkv_model_params params;
    gearkv_tensor_info tensor;
    gearkv_tokenizer_info vocabulary;
    gearkv_session_config config;
    gearkv_sampler_config sampling;
    gearkv_session_save_options save;
    gearkv_session_load_options load;
    gearkv_session_bytes needed;
    gearkv_fit fit;
    gearkv_stats stats;
    gearkv_chat_message messages[2];
    gearkv_decode_request requests[2];
    struct bytes state = {NULL, 0, 0};
    const gearkv_tokenizer* tokenizer;
    const char *piece, *key, *value;
    uint8_t fingerprint[GEARKV_FINGERPRINT_SIZE];
    float *expected, *logits;
    size_t i, n, n_prompt = 0, n_answer = 0, n_shown = 0, n_piece = 0, n_written = 0;
    uint64_t n_reused = 0, n_state = 0;
    int n_asked = 0, lossless = 0, anew = 1;

    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL.gguf STATE, of which STATE is written and removed\n", argv[0]);
        return 2;
    }
    CHECK(gearkv_executor_create(2, &pool, &error));
    CHECK(gearkv_model_load(argv[1], NULL, &model, &error));
    params.struct_size = sizeof(params);
    CHECK(gearkv_model_get_params(model, &params, &error));
    REQUIRE(params.n_vocab > 0 && params.n_layers > 0 && strlen(params.family) > 0);
    tensor.struct_size = sizeof(tensor);
    CHECK(gearkv_model_get_tensor(model, gearkv_model_n_tensors(model) - 1, &tensor, &error));
    REQUIRE(tensor.n_dims >= 1 && tensor.shape[0] > 0 && tensor.n_bytes > 0);
    for (i = 0, n = 0; i < gearkv_model_n_metadata(model); ++i) {
        CHECK(gearkv_model_get_metadata(model, i, &key, &value, &error));
        n += strcmp(key, "general.architecture") == 0 && strcmp(value, params.family) == 0;
    }
    REQUIRE(n == 1);
    CHECK(gearkv_model_fingerprint(model, fingerprint, &error));

    /* Text to tokens and back. */
    tokenizer = gearkv_model_tokenizer(model);
    vocabulary.struct_size = sizeof(vocabulary);
    CHECK(gearkv_tokenizer_get_info(tokenizer, &vocabulary, &error));
    REQUIRE(vocabulary.n_vocab == params.n_vocab);
    REQUIRE(gearkv_tokenizer_encode(tokenizer, prompt, strlen(prompt), NULL, NULL, 0, &n_prompt, &error) ==
            GEARKV_WRONG_SIZE);
    REQUIRE(n_prompt > 0 && n_prompt < max_tokens);
    CHECK(gearkv_tokenizer_encode(tokenizer, prompt, strlen(prompt), NULL, tokens, n_prompt, &n, &error));
    REQUIRE(n == n_prompt);
    CHECK(gearkv_tokenizer_decode(tokenizer, tokens, n_prompt, NULL, text, sizeof(text), &n, &error));
    REQUIRE(n == strlen(prompt) && strcmp(text, prompt) == 0);

    /* A prompt and an answer, shown as it comes. */
    gearkv_session_config_init(&config, sizeof(config));
    config.spec = "gear-4";
    config.n_ctx = max_tokens;
    config.chunk = 16;
    config.rollback_tokens = 8;
    config.interrupt = never;
    config.interrupt_context = &n_asked;
    CHECK(gearkv_session_create(model, &config, pool, &session, &error));
    REQUIRE(gearkv_session_logits(session) == NULL && gearkv_session_n_ctx(session) == max_tokens);
    CHECK(gearkv_session_prefill(session, tokens, n_prompt, NULL, 0, &error));
    REQUIRE(n_asked > 0);
    gearkv_sampler_config_init(&sampling, sizeof(sampling));
    sampling.temperature = 0.8f;
    sampling.top_k = 40;
    sampling.seed = 7;
    CHECK(gearkv_sampler_create(&sampling, &sampler, &error));
    CHECK(gearkv_sampler_accept(sampler, tokens, n_prompt, &error));
    CHECK(gearkv_text_stream_create(tokenizer, NULL, &stream, &error));
    CHECK(gearkv_stop_matcher_create(stops, 1, &matcher, &error));
    while (n_answer < n_generated) {
        gearkv_token token = -1;
        CHECK(gearkv_sampler_sample(sampler, gearkv_session_logits(session), params.n_vocab, &token, &error));
        if (gearkv_tokenizer_ends_generation(tokenizer, token)) break;
        answer[n_answer++] = token;
        CHECK(gearkv_sampler_accept(sampler, &token, 1, &error));
        CHECK(gearkv_text_stream_push(stream, token, &piece, &n_piece, &error));
        CHECK(gearkv_stop_matcher_feed(matcher, piece, n_piece, &piece, &n_piece, &error));
        REQUIRE(n_shown + n_piece < sizeof(shown));
        memcpy(shown + n_shown, piece, n_piece);
        n_shown += n_piece;
        CHECK(gearkv_session_decode(session, token, &error));
    }
    CHECK(gearkv_text_stream_flush(stream, &piece, &n_piece, &error));
    CHECK(gearkv_stop_matcher_feed(matcher, piece, n_piece, &piece, &n_piece, &error));
    memcpy(shown + n_shown, piece, n_piece);
    n_shown += n_piece;
    CHECK(gearkv_stop_matcher_finish(matcher, &piece, &n_piece, &error));
    memcpy(shown + n_shown, piece, n_piece);
    n_shown += n_piece;
    REQUIRE(gearkv_stop_matcher_stopped_by(matcher) == -1 && n_answer > 0);
    CHECK(gearkv_tokenizer_decode(tokenizer, answer, n_answer, NULL, text, sizeof(text), &n, &error));
    REQUIRE(n == n_shown && memcmp(text, shown, n) == 0);
    (void)gearkv_session_tokens(session, &n);
    REQUIRE(n == n_prompt + n_answer);
    stats.struct_size = sizeof(stats);
    CHECK(gearkv_cache_get_stats(gearkv_session_cache(session), &stats, &error));
    REQUIRE(stats.n_tokens == n && stats.bits_per_element > 0);

    /* Saved in three ways with sampler and note; all go on as this one does. */
    memset(&save, 0, sizeof(save));
    save.struct_size = sizeof(save);
    save.sampler = sampler;
    save.note = "a note";
    save.n_note = 6;
    CHECK(gearkv_session_check_save(session, argv[2], &error));
    CHECK(gearkv_session_save(session, argv[2], &save, &warning, &error));
    CHECK(gearkv_session_saved_bytes(session, &save, &n_state, &error));
    CHECK(gearkv_session_save_through(session, put, &state, &save, &error));
    REQUIRE(state.n == n_state);
    CHECK(gearkv_session_save_to_memory(session, state.data, state.n, &save, &n_written, &error));
    REQUIRE(n_written == state.n);
    expected = (float*)malloc(sizeof(float) * params.n_vocab * 3);
    logits = (float*)malloc(sizeof(float) * params.n_vocab * 3);
    REQUIRE(expected != NULL && logits != NULL);
    CHECK(gearkv_session_fork(session, pool, &fork, &error));
    for (i = 0; i < 3; ++i) {
        CHECK(gearkv_session_decode(fork, tokens[i], &error));
        memcpy(expected + i * params.n_vocab, gearkv_session_logits(fork), sizeof(float) * params.n_vocab);
    }
    sampling.seed = 99;
    CHECK(gearkv_sampler_create(&sampling, &second, &error));
    memset(&load, 0, sizeof(load));
    load.struct_size = sizeof(load);
    load.sampler = second;
    for (i = 0; i < 4; ++i) {
        gearkv_token here = -1, there = -2;
        state.at = 0;
        load.loading = i == 0 ? GEARKV_LOAD_MAP : GEARKV_LOAD_COPY;
        if (i < 2) CHECK(gearkv_session_load(argv[2], model, &config, &load, pool, &loaded, &error));
        if (i == 2) {
            CHECK(gearkv_session_load_from_memory(state.data, state.n, model, &config, &load, pool, &loaded,
                                                  &error));
        }
        if (i == 3)
            CHECK(gearkv_session_load_through(get, &state, model, &config, &load, pool, &loaded, &error));
        piece = (const char*)gearkv_session_note(loaded, &n);
        REQUIRE(n == 6 && memcmp(piece, "a note", 6) == 0);
        CHECK(gearkv_sampler_sample(second, gearkv_session_logits(loaded), params.n_vocab, &there, &error));
        CHECK(gearkv_sampler_sample(sampler, gearkv_session_logits(session), params.n_vocab, &here, &error));
        REQUIRE(here == there);
        CHECK(gearkv_session_save(session, argv[2], &save, NULL, &error)); /* the sampler has moved on */
        state.n = 0;
        CHECK(gearkv_session_save_through(session, put, &state, &save, &error));
        /* Three tokens at once have the bits of three single ones, and are taken back. */
        CHECK(gearkv_session_decode_draft(loaded, tokens, 3, logits, 3 * params.n_vocab, &error));
        REQUIRE(memcmp(logits, expected, sizeof(float) * params.n_vocab * 3) == 0);
        CHECK(gearkv_session_truncate(loaded, n_prompt + n_answer, &lossless, &error));
        REQUIRE(lossless == 1 && gearkv_session_logits(loaded) == NULL);
        gearkv_session_destroy(loaded);
    }
    remove(argv[2]);
    free(state.data);
    /* The sampler's own bytes. */
    REQUIRE(gearkv_sampler_save(sampler, NULL, 0, &n_written, &error) == GEARKV_WRONG_SIZE);
    REQUIRE(n_written <= sizeof(text));
    CHECK(gearkv_sampler_save(sampler, text, sizeof(text), &n_written, &error));
    CHECK(gearkv_sampler_restore(second, text, n_written, &error));
    gearkv_sampler_forget(second);

    /* Two sessions in one step. */
    CHECK(gearkv_session_truncate(fork, n_prompt, NULL, &error));
    CHECK(gearkv_session_decode(fork, tokens[5], &error));
    memset(requests, 0, sizeof(requests));
    requests[0].session = session;
    requests[0].token = tokens[0];
    requests[1].session = fork;
    requests[1].token = tokens[1];
    CHECK(gearkv_session_decode_batch(requests, 2, &error));
    REQUIRE(memcmp(gearkv_session_logits(session), expected, sizeof(float) * params.n_vocab) == 0);
    CHECK(gearkv_session_remove(session, 4, 8, &anew, &error));
    REQUIRE(anew == 0);
    (void)gearkv_session_tokens(session, &n);
    REQUIRE(n == n_prompt + n_answer + 1 - 8);

    /* What is there already is not computed again. */
    CHECK(gearkv_session_sync(fork, tokens, n_prompt, &n_reused, &error));
    REQUIRE(n_reused == n_prompt - 1);
    for (i = 0; i < 12; ++i)
        tokens[n_prompt + i] = tokens[i];
    REQUIRE(gearkv_look_up_draft(tokens, n_prompt + 12, 4, 8, draft) == 8);
    REQUIRE(memcmp(draft, tokens + 12, sizeof(draft)) == 0);
    gearkv_session_reset(fork);
    CHECK(gearkv_session_prefill(fork, tokens, 3, logits, 3 * params.n_vocab, &error));
    REQUIRE(memcmp(logits + 2 * params.n_vocab, gearkv_session_logits(fork),
                   sizeof(float) * params.n_vocab) == 0);
    gearkv_session_destroy(fork);
    speculate(model, &config, tokens, n_prompt, params.n_vocab);

    /* Stopped on the way. */
    config.interrupt = always;
    fork = NULL;
    CHECK(gearkv_session_create(model, &config, NULL, &fork, &error));
    REQUIRE(gearkv_session_prefill(fork, tokens, n_prompt, NULL, 0, &error) == GEARKV_INTERRUPTED);
    gearkv_session_destroy(fork);

    /* A conversation. */
    CHECK(gearkv_chat_template_find("chatml", &chat, &error));
    REQUIRE(strcmp(gearkv_chat_template_name(chat), "chatml") == 0 &&
            gearkv_chat_template_extends(chat) == 1);
    memset(messages, 0, sizeof(messages));
    messages[0].struct_size = messages[1].struct_size = sizeof(messages[0]);
    messages[0].role = GEARKV_SYSTEM;
    messages[0].content = "Be brief.";
    messages[0].n_bytes = strlen(messages[0].content);
    messages[1].role = GEARKV_USER;
    messages[1].content = "Hello";
    messages[1].n_bytes = strlen(messages[1].content);
    CHECK(gearkv_chat_template_render(chat, messages, 2, NULL, "", "", text, sizeof(text), &n, &error));
    REQUIRE(n == strlen(text));
    REQUIRE(strcmp(text,
                   "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
                   "<|im_start|>assistant\n") == 0);
    CHECK(gearkv_chat_template_encode(chat, messages, 2, NULL, tokenizer, tokens, max_tokens, &n, &error));
    REQUIRE(n > 0);
    CHECK(gearkv_chat_template_default_system(chat, NULL, text, sizeof(text), &n, &error));
    gearkv_chat_template_destroy(chat);

    /* What it takes. */
    needed.struct_size = sizeof(needed);
    CHECK(gearkv_get_session_bytes(model, &config, pool, &needed, &error));
    REQUIRE(needed.weights > 0 && needed.cache > 0 && needed.scratch > 0);
    config.spec = NULL;
    fit.struct_size = sizeof(fit);
    CHECK(gearkv_fit_session(model, &config, (uint64_t)1 << 30, 0, pool, &fit, &error));
    REQUIRE(fit.fits == 1 && strcmp(fit.spec, "f16") == 0 && fit.n_ctx == max_tokens &&
            strlen(fit.reason) > 0);
    CHECK(gearkv_fit_session(model, &config, 1 << 10, 0, pool, &fit, &error));
    REQUIRE(fit.fits == 0);

    /* The session outlives the handle of its model. */
    gearkv_model_destroy(model);
    CHECK(gearkv_session_decode(session, tokens[0], &error));
    gearkv_session_destroy(session);
    gearkv_text_stream_destroy(stream);
    gearkv_stop_matcher_destroy(matcher);
    gearkv_sampler_destroy(sampler);
    gearkv_sampler_destroy(second);
    gearkv_executor_destroy(pool);
    free(expected);
    free(logits);
    return 0;
}
