/* gearkv-decoder in C99: GGUF models, their texts, and sessions with a compressed KV cache.
 *
 *   gearkv_model* model = NULL;
 *   gearkv_session* session = NULL;
 *   gearkv_session_config config;
 *   gearkv_session_config_init(&config, sizeof(config));
 *   config.spec = "gear-4";
 *   if (gearkv_model_load("model.gguf", NULL, &model, &error) != GEARKV_OK) puts(error.message);
 *   gearkv_tokenizer_encode(gearkv_model_tokenizer(model), text, n_bytes, NULL, tokens, n_room, &n, &error);
 *   gearkv_session_create(model, &config, executor, &session, &error);
 *   gearkv_session_prefill(session, tokens, n, NULL, 0, &error);
 *   for (;;) {
 *       gearkv_sampler_sample(sampler, gearkv_session_logits(session), n_vocab, &token, &error);
 *       if (gearkv_tokenizer_ends_generation(gearkv_model_tokenizer(model), token)) break;
 *       gearkv_text_stream_push(stream, token, &text, &n_bytes, &error);
 *       gearkv_session_decode(session, token, &error);
 *   }
 *
 * Errors, objects, threads and growth are as in gearkv.h. Texts are UTF-8 with their number of bytes, and may
 * hold zeros; where a number is not asked for, a zero ends them.
 *
 * Room. Where a function writes as many tokens or bytes as it finds, n_room tells what there is room for, and
 * *n what was written. With too little room it fails with GEARKV_WRONG_SIZE, and *n is what is needed;
 * nothing else is written then. So a first call with a null output and n_room 0 asks for the number.
 *
 * All is as in the C++ headers beside this one, where the why is told at length; session.hpp is the place to
 * begin.
 */
#ifndef GEARKV_DECODER_H
#define GEARKV_DECODER_H

#include "gearkv/gearkv.h"

#ifdef __cplusplus
#define GEARKV_ENUM(name) enum name : int
extern "C" {
#else
#define GEARKV_ENUM(name) enum name
#endif
#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif

/* ---- Models (model.hpp) ---- */

typedef int32_t gearkv_token;

/* A model file. Immutable: used by any number of threads at once. */
typedef struct gearkv_model gearkv_model;
/* A vocabulary. Immutable: used by any number of threads at once. */
typedef struct gearkv_tokenizer gearkv_tokenizer;

/* All zero but for struct_size. Null stands for that. */
typedef struct gearkv_model_options {
    size_t struct_size;
    const char* pre; /* the rule by which texts are split, in place of the file's; null: the file's */
} gearkv_model_options;

/* Maps a GGUF file, of a split model all its parts. The file may come from anybody, but must stay as it is
 * while the model or a session of it lives. Errors: invalid_argument, io_error, not_a_model, bad_version,
 * truncated, corrupt_model, missing_key, bad_metadata, unsupported_model, missing_tensor, shape_mismatch,
 * bad_tokenizer, out_of_memory. */
gearkv_code gearkv_model_load(const char* path, const gearkv_model_options* options, gearkv_model** out,
                              gearkv_error* error);
/* Its sessions go on: they keep what they need of it. */
void gearkv_model_destroy(gearkv_model* model);

typedef struct gearkv_model_params {
    size_t struct_size;
    const char* family;    /* general.architecture, "llama" and so on; never ends */
    uint64_t n_parameters; /* elements of all tensors */
    uint32_t n_vocab;
    uint32_t n_embd;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_ff;
    uint32_t n_ctx;    /* trained context */
    uint32_t rope_dim; /* channels of a head that are rotated */
    float rope_base;
    float norm_eps;
    /* [n_layers] tokens that a layer sees, its own last ones; 0 for all. Null when all layers see all. As
     * long as the model. */
    const uint32_t* windows;
} gearkv_model_params;
/* Errors: invalid_argument. */
gearkv_code gearkv_model_get_params(const gearkv_model* model, gearkv_model_params* out, gearkv_error* error);

/* One tensor of the file; its texts and shape live as long as the model. */
typedef struct gearkv_tensor_info {
    size_t struct_size;
    const char* name;
    const char* type;      /* "F16", "Q8_0", ... */
    const uint64_t* shape; /* [n_dims], innermost first */
    size_t n_dims;
    uint64_t n_bytes;
} gearkv_tensor_info;
/* 0 for null. */
size_t gearkv_model_n_tensors(const gearkv_model* model);
/* Errors: invalid_argument (no such tensor too). */
gearkv_code gearkv_model_get_tensor(const gearkv_model* model, size_t index, gearkv_tensor_info* out,
                                    gearkv_error* error);

/* 0 for null. */
size_t gearkv_model_n_metadata(const gearkv_model* model);
/* In file order: scalars as text, arrays as their type and length, what could steer a terminal escaped. As
 * long as the model. Errors: invalid_argument (no such entry too). */
gearkv_code gearkv_model_get_metadata(const gearkv_model* model, size_t index, const char** key,
                                      const char** value, gearkv_error* error);
/* Names the file for saved states: writes GEARKV_FINGERPRINT_SIZE bytes. Errors: invalid_argument. */
gearkv_code gearkv_model_fingerprint(const gearkv_model* model, uint8_t* out, gearkv_error* error);
/* Belongs to the model; null for null. */
const gearkv_tokenizer* gearkv_model_tokenizer(const gearkv_model* model);

/* ---- Tokenizers (tokenizer.hpp) ---- */

/* The vocabulary of a GGUF file alone. Errors: invalid_argument, io_error, not_a_model, bad_version,
 * truncated, corrupt_model, missing_key, bad_metadata, unsupported_model, bad_tokenizer, out_of_memory. */
gearkv_code gearkv_tokenizer_load(const char* path, const gearkv_model_options* options,
                                  gearkv_tokenizer** out, gearkv_error* error);
/* Of those that gearkv_tokenizer_load gave alone. */
void gearkv_tokenizer_destroy(gearkv_tokenizer* tokenizer);
/* The names that `pre` may have, with commas between them. */
const char* gearkv_split_rule_names(void);

/* Its texts and lists live as long as the tokenizer. */
typedef struct gearkv_tokenizer_info {
    size_t struct_size;
    size_t n_vocab;       /* tokens are 0 to n_vocab - 1 */
    gearkv_token bos;     /* -1 where there is none */
    gearkv_token eos;     /* likewise */
    gearkv_token unknown; /* likewise */
    int32_t adds_bos;     /* not 0: encoding adds it */
    int32_t adds_eos;
    const char* kind;                      /* "llama", "gpt2" or "gemma4" */
    const char* pre;                       /* the split rule in use, or empty */
    const char* note;                      /* what a person should know of it; empty as a rule */
    const char* chat_template;             /* the text of tokenizer.chat_template */
    size_t n_chat_template;                /* its bytes; 0 where there is none */
    const gearkv_token* end_of_generation; /* [n_end_of_generation], ascending */
    size_t n_end_of_generation;
    const gearkv_token* suppressed; /* [n_suppressed] never to be generated: for biases of -Inf */
    size_t n_suppressed;
} gearkv_tokenizer_info;
/* Errors: invalid_argument. */
gearkv_code gearkv_tokenizer_get_info(const gearkv_tokenizer* tokenizer, gearkv_tokenizer_info* out,
                                      gearkv_error* error);

typedef struct gearkv_encode_options {
    size_t struct_size;
    int32_t no_special;    /* not 0: neither BOS before nor EOS behind the tokens, whatever the file says */
    int32_t parse_special; /* not 0: texts of control tokens become these; not for texts of users */
} gearkv_encode_options;
/* The tokens of a text, which may be any bytes. options may be null for all zero. Errors: invalid_argument,
 * bad_tokenizer (something the vocabulary cannot express), prompt_too_long (above 1 GiB), out_of_memory;
 * wrong_size (see "Room"). */
gearkv_code gearkv_tokenizer_encode(const gearkv_tokenizer* tokenizer, const char* text, size_t n_bytes,
                                    const gearkv_encode_options* options, gearkv_token* out, size_t n_room,
                                    size_t* n_tokens, gearkv_error* error);

/* A part of a text, with or without its control tokens. */
typedef struct gearkv_text_piece {
    const char* text;
    size_t n_bytes;
    int32_t parse_special;
} gearkv_text_piece;
/* Pieces that are one text: tokens reach across their borders, and control tokens are recognised in those
 * pieces alone that say so. Of the options parse_special does nothing here. Errors: as above. */
gearkv_code gearkv_tokenizer_encode_pieces(const gearkv_tokenizer* tokenizer, const gearkv_text_piece* pieces,
                                           size_t n_pieces, const gearkv_encode_options* options,
                                           gearkv_token* out, size_t n_room, size_t* n_tokens,
                                           gearkv_error* error);

typedef struct gearkv_decode_options {
    size_t struct_size;
    int32_t special;   /* not 0: control tokens appear as their texts */
    int32_t continues; /* not 0: the tokens begin no text, so that no space is taken off */
} gearkv_decode_options;
/* The text of tokens, with a zero behind it for which there must be room and which *n_bytes does not count.
 * options may be null for all zero. Errors: invalid_argument, bad_token, out_of_memory; wrong_size (see
 * "Room"; *n_bytes + 1 is enough). */
gearkv_code gearkv_tokenizer_decode(const gearkv_tokenizer* tokenizer, const gearkv_token* tokens,
                                    size_t n_tokens, const gearkv_decode_options* options, char* out,
                                    size_t n_room, size_t* n_bytes, gearkv_error* error);

typedef GEARKV_ENUM(gearkv_token_type){
    GEARKV_TOKEN_NORMAL = 1,
    GEARKV_TOKEN_UNKNOWN = 2,      /* stands for what the vocabulary cannot express */
    GEARKV_TOKEN_CONTROL = 3,      /* marks of the model's own, such as the start of a turn */
    GEARKV_TOKEN_USER_DEFINED = 4, /* cut out of every text as it stands */
    GEARKV_TOKEN_UNUSED = 5,
    GEARKV_TOKEN_BYTE = 6 /* one byte, written <0x41> */
} gearkv_token_type;
/* As the file has it; null with *n_bytes 0 outside the vocabulary. No zero ends it. */
const char* gearkv_tokenizer_token_text(const gearkv_tokenizer* tokenizer, gearkv_token token,
                                        size_t* n_bytes);
/* GEARKV_TOKEN_UNUSED outside the vocabulary. */
gearkv_token_type gearkv_tokenizer_token_type(const gearkv_tokenizer* tokenizer, gearkv_token token);
/* The lowest token with exactly this text, as the file has it; -1 when there is none. */
gearkv_token gearkv_tokenizer_find(const gearkv_tokenizer* tokenizer, const char* text, size_t n_bytes);
/* 1 for a token after which a model has said what it had to say. */
int gearkv_tokenizer_ends_generation(const gearkv_tokenizer* tokenizer, gearkv_token token);

/* Tokens to text, one by one as they are generated, in whole characters. */
typedef struct gearkv_text_stream gearkv_text_stream;
/* Keeps what it needs of the tokenizer. options may be null. Errors: invalid_argument, out_of_memory. */
gearkv_code gearkv_text_stream_create(const gearkv_tokenizer* tokenizer, const gearkv_decode_options* options,
                                      gearkv_text_stream** out, gearkv_error* error);
void gearkv_text_stream_destroy(gearkv_text_stream* stream);
/* *text is what can be shown after this token, with a zero behind it, until the next call on the stream.
 * Errors: invalid_argument, bad_token, out_of_memory; nothing has changed then. */
gearkv_code gearkv_text_stream_push(gearkv_text_stream* stream, gearkv_token token, const char** text,
                                    size_t* n_bytes, gearkv_error* error);
/* What is held back as it is, half a character; the stream begins anew in the same text. */
gearkv_code gearkv_text_stream_flush(gearkv_text_stream* stream, const char** text, size_t* n_bytes,
                                     gearkv_error* error);

/* ---- Texts that end a generation (stop.hpp) ---- */

typedef struct gearkv_stop_matcher gearkv_stop_matcher;
/* stops: [n_stops] texts, none of them empty, copied; none for a stream that nothing stops. Errors:
 * invalid_argument, out_of_memory. */
gearkv_code gearkv_stop_matcher_create(const char* const* stops, size_t n_stops, gearkv_stop_matcher** out,
                                       gearkv_error* error);
void gearkv_stop_matcher_destroy(gearkv_stop_matcher* matcher);
/* Takes the next bytes of a stream; *text is what is surely no part of a stop text, until the next call on
 * the matcher. Behind a stop text nothing comes any more. Errors: invalid_argument, out_of_memory; nothing
 * was taken then. */
gearkv_code gearkv_stop_matcher_feed(gearkv_stop_matcher* matcher, const char* bytes, size_t n_bytes,
                                     const char** text, size_t* n_text, gearkv_error* error);
/* The stream has ended: *text is what was held back, if nothing stopped it. Errors: as above. */
gearkv_code gearkv_stop_matcher_finish(gearkv_stop_matcher* matcher, const char** text, size_t* n_text,
                                       gearkv_error* error);
/* The index of the stop text that came; -1 as long as none did, and for null. */
int gearkv_stop_matcher_stopped_by(const gearkv_stop_matcher* matcher);
/* For another stream. */
void gearkv_stop_matcher_reset(gearkv_stop_matcher* matcher);

/* ---- Samplers (sampler.hpp) ---- */

/* From logits to the next token. Equal configurations, logits and accepted tokens give equal tokens on every
 * machine. */
typedef struct gearkv_sampler gearkv_sampler;

/* Added to the logit of a token; -Inf bans it. */
typedef struct gearkv_logit_bias {
    gearkv_token token;
    float bias;
} gearkv_logit_bias;

/* As penalty_last_n or dry_last_n: all tokens accepted so far. */
#define GEARKV_ALL_TOKENS 0xffffffff

/* What is done to the logits, in the order of the fields; ranges and meanings are told by SamplerConfig of
 * sampler.hpp. gearkv_sampler_config_init leaves greedy: the likeliest token. */
typedef struct gearkv_sampler_config {
    size_t struct_size;
    const gearkv_logit_bias* logit_bias; /* [n_logit_bias], copied */
    size_t n_logit_bias;
    float repeat_penalty;             /* 1: off */
    float frequency_penalty;          /* 0: off */
    float presence_penalty;           /* 0: off */
    uint32_t penalty_last_n;          /* 64 */
    float dry_multiplier;             /* 0: off */
    float dry_base;                   /* 1.75 */
    uint32_t dry_allowed_length;      /* 2 */
    uint32_t dry_last_n;              /* GEARKV_ALL_TOKENS */
    const gearkv_token* dry_breakers; /* [n_dry_breakers], copied */
    size_t n_dry_breakers;
    float top_n_sigma;     /* 0: off */
    uint32_t top_k;        /* 0: off */
    float typical_p;       /* 1: off */
    float top_p;           /* 1: off */
    float min_p;           /* 0: off */
    float xtc_probability; /* 0: off */
    float xtc_threshold;   /* 0.1 */
    float temperature;     /* 0: the likeliest token */
    uint64_t seed;
} gearkv_sampler_config;
/* Defaults. Call it as gearkv_sampler_config_init(&config, sizeof(config)). */
void gearkv_sampler_config_init(gearkv_sampler_config* config, size_t struct_size);

/* config may be null for greedy. Errors: invalid_argument (naming the field and its range), out_of_memory. */
gearkv_code gearkv_sampler_create(const gearkv_sampler_config* config, gearkv_sampler** out,
                                  gearkv_error* error);
void gearkv_sampler_destroy(gearkv_sampler* sampler);
/* Draws a token; it counts for penalties once it is accepted. Errors: invalid_argument, non_finite,
 * out_of_memory; nothing was drawn then. */
gearkv_code gearkv_sampler_sample(gearkv_sampler* sampler, const float* logits, size_t n_vocab,
                                  gearkv_token* out, gearkv_error* error);
/* Tells what the sequence holds: the prompt, and each token drawn that goes on. Errors: invalid_argument,
 * bad_token (below 0), out_of_memory; none is accepted then. */
gearkv_code gearkv_sampler_accept(gearkv_sampler* sampler, const gearkv_token* tokens, size_t n_tokens,
                                  gearkv_error* error);
/* As if no token had been accepted. The random state stays. */
void gearkv_sampler_forget(gearkv_sampler* sampler);
/* Random state and accepted tokens as bytes, the same on every machine. Errors: invalid_argument,
 * out_of_memory; wrong_size (see "Room"). */
gearkv_code gearkv_sampler_save(const gearkv_sampler* sampler, void* to, size_t n_room, size_t* n_written,
                                gearkv_error* error);
/* Goes on as the one that was saved, when the configurations are equal but for the seed. Errors:
 * invalid_argument, not_a_state, bad_version, truncated, corrupt_state, out_of_memory. */
gearkv_code gearkv_sampler_restore(gearkv_sampler* sampler, const void* bytes, size_t n_bytes,
                                   gearkv_error* error);

/* ---- Chat templates (chat.hpp) ---- */

/* From messages to the text, and the tokens, a model was trained on. Immutable: used by any number of threads
 * at once. */
typedef struct gearkv_chat_template gearkv_chat_template;

typedef GEARKV_ENUM(gearkv_chat_role){GEARKV_SYSTEM = 0, GEARKV_USER = 1,
                                      GEARKV_ASSISTANT = 2} gearkv_chat_role;
/* In an array all have the same struct_size. */
typedef struct gearkv_chat_message {
    size_t struct_size;
    gearkv_chat_role role;
    const char* content;
    size_t n_bytes; /* of content */
    /* Of an answer, or null: the tokens it was generated as, without the one that ended it. They are taken as
     * they are, so that what a session holds stays a prefix. */
    const gearkv_token* tokens;
    size_t n_tokens;
} gearkv_chat_message;

typedef struct gearkv_chat_options {
    size_t struct_size;
    int32_t add_generation_prompt; /* 1: ends with what asks for the next answer */
    int32_t thinking;              /* 1; 0: asks the template for an answer without a thought before it */
    int32_t year;                  /* today, for the templates that tell it to the model */
    int32_t month;                 /* [1, 12] */
    int32_t day;                   /* [1, 31] */
} gearkv_chat_options;
/* Defaults. Call it as gearkv_chat_options_init(&options, sizeof(options)). */
void gearkv_chat_options_init(gearkv_chat_options* options, size_t struct_size);

/* Takes the text of tokenizer.chat_template, which is run for each conversation, within bounds. Errors:
 * invalid_argument, unknown_template (the message says what in it is not known), out_of_memory. */
gearkv_code gearkv_chat_template_recognise(const char* text, size_t n_bytes, gearkv_chat_template** out,
                                           gearkv_error* error);
/* The same by a name, without the details of any file. Errors: as above; the message lists the names. */
gearkv_code gearkv_chat_template_find(const char* name, gearkv_chat_template** out, gearkv_error* error);
void gearkv_chat_template_destroy(gearkv_chat_template* chat_template);
/* "chatml", "llama3" and so on, separated by commas. */
const char* gearkv_chat_template_names(void);
/* As long as the template; empty for null. */
const char* gearkv_chat_template_name(const gearkv_chat_template* chat_template);
/* 1 when all that is rendered for a conversation that ends with a question is a prefix of what is rendered
 * for each of its continuations. */
int gearkv_chat_template_extends(const gearkv_chat_template* chat_template);
/* The system text that stands in for an absent one, with a zero behind it as in gearkv_tokenizer_decode.
 * options may be null. Errors: invalid_argument, bad_conversation, out_of_memory; wrong_size (see "Room"). */
gearkv_code gearkv_chat_template_default_system(const gearkv_chat_template* chat_template,
                                                const gearkv_chat_options* options, char* out, size_t n_room,
                                                size_t* n_bytes, gearkv_error* error);
/* The text of a conversation, to be looked at, with `bos` and `eos` as the texts of these tokens and a zero
 * behind it. Encode it with gearkv_chat_template_encode and not from this text, in which what people wrote
 * may look like control tokens. options may be null. Errors: invalid_argument, bad_conversation,
 * out_of_memory; wrong_size (see "Room"). */
gearkv_code gearkv_chat_template_render(const gearkv_chat_template* chat_template,
                                        const gearkv_chat_message* messages, size_t n_messages,
                                        const gearkv_chat_options* options, const char* bos, const char* eos,
                                        char* out, size_t n_room, size_t* n_bytes, gearkv_error* error);
/* The tokens of a conversation; nothing in a content becomes a control token. options may be null. Errors: as
 * render, and those of gearkv_tokenizer_encode. */
gearkv_code gearkv_chat_template_encode(const gearkv_chat_template* chat_template,
                                        const gearkv_chat_message* messages, size_t n_messages,
                                        const gearkv_chat_options* options, const gearkv_tokenizer* tokenizer,
                                        gearkv_token* out, size_t n_room, size_t* n_tokens,
                                        gearkv_error* error);

/* ---- Sessions (session.hpp) ---- */

/* Tokens fed to a model, with their keys and values in a compressed cache. */
typedef struct gearkv_session gearkv_session;

typedef struct gearkv_session_config {
    size_t struct_size;
    const char* spec;            /* what is stored; there is none to begin with */
    uint32_t n_ctx;              /* 0: the model's trained context */
    uint32_t chunk;              /* 512: tokens of a prompt processed at once */
    uint64_t seed;               /* of the cache */
    uint32_t rollback_tokens;    /* 0: the longest draft a truncation takes back losslessly */
    uint32_t error_every;        /* 0: above, every so many blocks the error of attention is sampled */
    gearkv_workspace* workspace; /* borrowed as long as the session lives; null for one of its own */
    uint64_t max_cache_bytes;    /* above 0: the most bytes the cache may hold */
    gearkv_level level;
    int32_t float_products; /* not 0: quantised weights in float products: slower, without their rounding */
    /* Asked before every chunk of a prompt, on the thread of the call: not 0 stops it. Null: never. */
    int (*interrupt)(void* context);
    void* interrupt_context; /* borrowed as long as the session and its forks live */
    /* What attention reads, as gearkv_queries; 0 stands for all. */
    float mass;
    float most_share;
    float negligible;
    uint64_t soft_cache_bytes; /* above 0: beyond them older blocks of the cache shrink */
} gearkv_session_config;
/* Defaults. Call it as gearkv_session_config_init(&config, sizeof(config)). */
void gearkv_session_config_init(gearkv_session_config* config, size_t struct_size);

/* The executor is borrowed and outlives the session; null stands for the serial one. Errors:
 * invalid_argument, bad_spec, wrong_size, out_of_memory, unknown_level, unavailable_level. */
gearkv_code gearkv_session_create(const gearkv_model* model, const gearkv_session_config* config,
                                  gearkv_executor* executor, gearkv_session** out, gearkv_error* error);
void gearkv_session_destroy(gearkv_session* session);

/* Feeds a prompt in chunks, and writes the logits after each token, [n_tokens, n_vocab], where all_logits is
 * not null; n_floats is their room. After an error, and an interrupt, the session is as it was before the
 * chunk that failed. Errors: invalid_argument, empty_prompt, prompt_too_long, bad_token, wrong_size
 * (n_floats; nothing was fed then), interrupted, out_of_memory, non_finite, not_representable, over_budget.
 */
gearkv_code gearkv_session_prefill(gearkv_session* session, const gearkv_token* tokens, size_t n_tokens,
                                   float* all_logits, size_t n_floats, gearkv_error* error);
/* Makes these the tokens of the session, without computing those at the beginning again that it has.
 * *n_reused, where it is not null, tells how many. Errors: as gearkv_session_prefill and truncate. */
gearkv_code gearkv_session_sync(gearkv_session* session, const gearkv_token* tokens, size_t n_tokens,
                                uint64_t* n_reused, gearkv_error* error);
/* Feeds one token. Errors: invalid_argument, context_full, bad_token, out_of_memory, non_finite,
 * not_representable, over_budget. */
gearkv_code gearkv_session_decode(gearkv_session* session, gearkv_token token, gearkv_error* error);
/* Feeds tokens, to verify a draft, with the bits of so many single ones (session.hpp tells two exceptions),
 * and writes the logits after each, [n_tokens, n_vocab], to all_logits. Errors: as above; wrong_size (n_floats, no tokens or more than a chunk;
 * nothing was fed then). */
gearkv_code gearkv_session_decode_draft(gearkv_session* session, const gearkv_token* tokens, size_t n_tokens,
                                        float* all_logits, size_t n_floats, gearkv_error* error);
/* What one session of a batch is fed, and what became of it. */
typedef struct gearkv_decode_request {
    gearkv_session* session;
    gearkv_token token;
    gearkv_error error; /* an output */
} gearkv_decode_request;
/* gearkv_session_decode of many sessions of one model at once, with the same bits, on the executor of the
 * first. An error strikes one session alone: its request has it, and the first of them is returned. Nothing
 * is fed, and no request written, with: invalid_argument, other_model, wrong_size (more than a chunk of the
 * first session), context_full, bad_token, out_of_memory, the error that a session has failed with. */
gearkv_code gearkv_session_decode_batch(gearkv_decode_request* requests, size_t n_requests,
                                        gearkv_error* error);
/* After the last token fed, [n_vocab], until the next call on the session; null when there are none. */
const float* gearkv_session_logits(const gearkv_session* session);
/* Writes a draft of n_draft tokens by prompt lookup; returns n_draft, or 0 when there is none. */
size_t gearkv_look_up_draft(const gearkv_token* tokens, size_t n_tokens, size_t n_match, size_t n_draft,
                            gearkv_token* draft);

/* Forgets the tokens from n_tokens on; there are no logits until more are fed. *lossless as in
 * gearkv_cache_truncate. Errors: invalid_argument, wrong_size, out_of_memory; where tokens must be computed
 * anew (windows), those of gearkv_session_prefill. */
gearkv_code gearkv_session_truncate(gearkv_session* session, uint64_t n_tokens, int* lossless,
                                    gearkv_error* error);
/* A context shift: forgets n_tokens tokens from `first` on, and those behind them move up, every layer by its
 * own RoPE. *anew, where it is not null, gets 1 when they had to be computed anew. Errors: as truncate. */
gearkv_code gearkv_session_remove(gearkv_session* session, uint64_t first, uint64_t n_tokens, int* anew,
                                  gearkv_error* error);
/* A second session with the same tokens, on an executor of its own or the same. Errors: invalid_argument,
 * out_of_memory. */
gearkv_code gearkv_session_fork(const gearkv_session* session, gearkv_executor* executor,
                                gearkv_session** out, gearkv_error* error);
/* Forgets all tokens and any failure. */
void gearkv_session_reset(gearkv_session* session);

/* [*n_tokens] in the cache, in their order, until the next call that changes the session. */
const gearkv_token* gearkv_session_tokens(const gearkv_session* session, size_t* n_tokens);
/* 0 for null. */
uint32_t gearkv_session_n_ctx(const gearkv_session* session);
/* For gearkv_cache_get_stats and what else asks a cache; belongs to the session. Null for null. */
const gearkv_cache* gearkv_session_cache(const gearkv_session* session);

/* All zero but for struct_size: all tokens, and nothing beside them. Null stands for that. */
typedef struct gearkv_session_save_options {
    size_t struct_size;
    const gearkv_sampler* sampler; /* saved too */
    const void* note;              /* bytes of the caller's: the turns of a conversation, say */
    size_t n_note;
    uint64_t n_tokens; /* above 0: only the first so many tokens */
} gearkv_session_save_options;
/* Saves cache, tokens, logits and what is attached in one piece or not at all, as gearkv_cache_save. Errors:
 * as that, and of gearkv_sampler_save. */
gearkv_code gearkv_session_save(const gearkv_session* session, const char* path,
                                const gearkv_session_save_options* options, gearkv_error* warning,
                                gearkv_error* error);
/* Whether a save could begin now, for those who have hours of work before it. Errors: as gearkv_cache_save.
 */
gearkv_code gearkv_session_check_save(const gearkv_session* session, const char* path, gearkv_error* error);
/* How many bytes a save writes now. */
gearkv_code gearkv_session_saved_bytes(const gearkv_session* session,
                                       const gearkv_session_save_options* options, uint64_t* out,
                                       gearkv_error* error);
/* The same bytes to memory, and through a function, as gearkv_cache_save_to_memory and _through. */
gearkv_code gearkv_session_save_to_memory(const gearkv_session* session, void* to, size_t n_room,
                                          const gearkv_session_save_options* options, size_t* n_written,
                                          gearkv_error* error);
gearkv_code gearkv_session_save_through(const gearkv_session* session, gearkv_write write, void* context,
                                        const gearkv_session_save_options* options, gearkv_error* error);

/* All zero but for struct_size: by copy, and no sampler. Null stands for that. */
typedef struct gearkv_session_load_options {
    size_t struct_size;
    gearkv_sampler* sampler; /* gets the state that was saved */
    gearkv_loading loading;  /* of a file, GEARKV_LOAD_COPY or _MAP; all else is by copy */
} gearkv_session_load_options;
/* A session that goes on where the saved one was. n_ctx, chunk and level of the configuration may be others;
 * SPEC and model may not. The bytes may come from anybody. Errors: those of gearkv_session_create,
 * gearkv_cache_load and gearkv_sampler_restore; nothing is changed then. */
gearkv_code gearkv_session_load(const char* path, const gearkv_model* model,
                                const gearkv_session_config* config,
                                const gearkv_session_load_options* options, gearkv_executor* executor,
                                gearkv_session** out, gearkv_error* error);
gearkv_code gearkv_session_load_from_memory(const void* bytes, size_t n_bytes, const gearkv_model* model,
                                            const gearkv_session_config* config,
                                            const gearkv_session_load_options* options,
                                            gearkv_executor* executor, gearkv_session** out,
                                            gearkv_error* error);
gearkv_code gearkv_session_load_through(gearkv_read read, void* context, const gearkv_model* model,
                                        const gearkv_session_config* config,
                                        const gearkv_session_load_options* options, gearkv_executor* executor,
                                        gearkv_session** out, gearkv_error* error);
/* The note that was saved with what the session was loaded from, as long as the session; null with *n_bytes
 * 0 where there is none. */
const void* gearkv_session_note(const gearkv_session* session, size_t* n_bytes);

/* ---- Speculative decoding (speculation.hpp) ---- */

/* Stands in for a session's decode and logits: feeds guesses behind a token, so that weights are read once
 * for all of them. Used by one thread at a time, the one that uses the session. */
typedef struct gearkv_speculation gearkv_speculation;

typedef struct gearkv_speculation_config {
    size_t struct_size;
    /* 8: the longest draft, below the session's chunk and at most its rollback_tokens; 0: none */
    uint32_t n_draft;
    uint32_t n_match; /* 3: of a prompt lookup, at least 2, as in gearkv_look_up_draft */
    /* Borrowed as long as the speculation lives: a session of a smaller model with the same vocabulary, whose
     * likeliest tokens are the drafts. Null: prompt lookup. */
    gearkv_session* drafter;
} gearkv_speculation_config;
/* Defaults. Call it as gearkv_speculation_config_init(&config, sizeof(config)). */
void gearkv_speculation_config_init(gearkv_speculation_config* config, size_t struct_size);

/* The session is borrowed, may have tokens, and outlives the speculation. config may be null for the
 * defaults. Errors: invalid_argument, wrong_size (n_draft, n_match), other_model (a drafter with another
 * vocabulary), out_of_memory. */
gearkv_code gearkv_speculation_create(gearkv_session* session, const gearkv_speculation_config* config,
                                      gearkv_speculation** out, gearkv_error* error);
/* Takes nothing back: settle comes first where the session goes on. */
void gearkv_speculation_destroy(gearkv_speculation* speculation);
/* Feeds a token, and with it a draft when it is none that was guessed. Errors: those of
 * gearkv_session_decode; and, of a drafter, those of gearkv_session_sync: then nothing was fed. */
gearkv_code gearkv_speculation_decode(gearkv_speculation* speculation, gearkv_token token,
                                      gearkv_error* error);
/* After the last token given to decode, [n_vocab], with the bits they have without drafts (speculation.hpp
 * tells two exceptions), until the next call here or on the session; null when there are none. */
const float* gearkv_speculation_logits(const gearkv_speculation* speculation);
/* Tokens of the session without guesses that are yet to come true; 0 for null. */
uint64_t gearkv_speculation_n_tokens(const gearkv_speculation* speculation);
/* Takes back what was but guessed, without a trace: to be called before anything else is done with the
 * session, which may be used by itself then. Errors: those of gearkv_session_truncate. */
gearkv_code gearkv_speculation_settle(gearkv_speculation* speculation, gearkv_error* error);

typedef struct gearkv_speculation_stats {
    size_t struct_size;
    uint64_t n_tokens;  /* given to decode */
    uint64_t n_drafted; /* guesses fed */
    uint64_t n_right;   /* of them, those that decode was then given */
    uint64_t n_passes;  /* through the model */
} gearkv_speculation_stats;
/* Errors: invalid_argument. */
gearkv_code gearkv_speculation_get_stats(const gearkv_speculation* speculation, gearkv_speculation_stats* out,
                                         gearkv_error* error);

/* ---- What a session takes (fit.hpp) ---- */

/* The most bytes a session takes while n_ctx tokens are fed. */
typedef struct gearkv_session_bytes {
    size_t struct_size;
    uint64_t weights; /* tensors of the mapped file, shared by all sessions of a model */
    uint64_t cache;   /* blocks and buffers */
    uint64_t scratch; /* activations, working memory, tables, a chunk before it is compressed */
} gearkv_session_bytes;
/* Errors: those of gearkv_session_create. */
gearkv_code gearkv_get_session_bytes(const gearkv_model* model, const gearkv_session_config* config,
                                     gearkv_executor* executor, gearkv_session_bytes* out,
                                     gearkv_error* error);

/* A SPEC and a context for a number of bytes. */
typedef struct gearkv_fit {
    size_t struct_size;
    int32_t fits; /* 0: nothing does that is what was wanted, and the rest is what needs least */
    uint32_t n_ctx;
    uint32_t chunk;
    uint64_t weights;
    uint64_t cache;
    uint64_t scratch;
    char spec[GEARKV_SPEC_SIZE];
    char reason[GEARKV_MESSAGE_SIZE]; /* one sentence for people, cut where it is longer */
} gearkv_fit;
/* Chooses what fits max_bytes, of which other_bytes are taken already. The configuration's spec may be null:
 * then the first of f16, gear-4, gear-3, gear-2 and gear-1 that fits; its n_ctx may be 0: then the trained
 * context or as much of it as fits. Errors: as gearkv_get_session_bytes. */
gearkv_code gearkv_fit_session(const gearkv_model* model, const gearkv_session_config* config,
                               uint64_t max_bytes, uint64_t other_bytes, gearkv_executor* executor,
                               gearkv_fit* out, gearkv_error* error);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#undef GEARKV_ENUM
#ifdef __cplusplus
}
#endif

#endif
