/* gearkv in C99: compressed KV caches for every language that can call C.
 *
 *   gearkv_config config;
 *   gearkv_config_init(&config, sizeof(config));
 *   config.n_layers = 32, config.n_kv_heads = 8, config.key_dim = config.value_dim = 128;
 *   config.max_tokens = 32768, config.spec = "gear-4";
 *   gearkv_cache* cache = NULL;
 *   gearkv_error error;
 *   if (gearkv_cache_create(&config, &cache, &error) != GEARKV_OK) puts(error.message);
 *   ...
 *   gearkv_cache_append(cache, layer, &keys, &values, n_tokens, executor, &error);
 *   gearkv_cache_attend(cache, layer, &queries, out, n_floats, executor, &error);
 *   ...
 *   gearkv_cache_destroy(cache);
 *
 * Errors. A function that can fail returns a code and, where its last argument is not null, writes code and
 * text there. After an error outputs are untouched and objects as they were, unless the function says
 * otherwise. Nothing prints, ends the process or throws.
 *
 * Objects. What a *_create, *_fork or *_load function gives belongs to the caller, who ends it with the
 * *_destroy of its kind; null may be destroyed. Arguments are borrowed for the call, unless a comment says
 * for how long; strings end with a zero.
 *
 * Threads. An object is used by one thread at a time, and different objects are independent. A function works
 * on its own thread and on those of the executor it is given; null stands for the serial executor. Results do
 * not depend on the executor nor on its number of threads.
 *
 * Growth. Structures that may grow begin with struct_size, which their *_init function sets, or the caller
 * where there is none. Programs built against an older header go on with newer libraries; fields that a
 * library does not know yet must be 0, else they are refused with GEARKV_INVALID_ARGUMENT. Numbers of
 * enumerations never change.
 *
 * All is as in the C++ headers beside this one, where the why is told at length; cache.hpp is the place to
 * begin.
 */
#ifndef GEARKV_H
#define GEARKV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define GEARKV_ENUM(name) enum name : int
extern "C" {
#else
#define GEARKV_ENUM(name) enum name
#endif
#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif

/* ---- Version ---- */

#define GEARKV_VERSION_MAJOR 0
#define GEARKV_VERSION_MINOR 1
#define GEARKV_VERSION_PATCH 0
/* Major * 10000 + minor * 100 + patch. */
#define GEARKV_VERSION_NUMBER \
    (GEARKV_VERSION_MAJOR * 10000 + GEARKV_VERSION_MINOR * 100 + GEARKV_VERSION_PATCH)

/* Of the library in use; compare with GEARKV_VERSION_NUMBER of the header. */
uint32_t gearkv_version_number(void);
/* "0.1.0" */
const char* gearkv_version(void);

/* ---- Errors ---- */

/* One code per cause. */
typedef GEARKV_ENUM(gearkv_code){
    GEARKV_OK = 0, GEARKV_INVALID_ARGUMENT = 1, /* an argument is null or contradicts another one */
    GEARKV_BAD_SPEC = 2,                        /* a SPEC that is not in the grammar */
    GEARKV_WRONG_SIZE = 3,                      /* a buffer, dimension or count that does not fit its use */
    GEARKV_NON_FINITE = 4,                      /* NaN or Inf in keys, values or queries */
    GEARKV_NOT_REPRESENTABLE =
        5, /* finite, but beyond what fp16 can hold (65504), or an f32 cache takes (2^64) */
    GEARKV_CAPACITY_EXCEEDED = 6,  /* more tokens than were reserved */
    GEARKV_OUT_OF_MEMORY = 7,      /* the allocator said no */
    GEARKV_OVER_BUDGET = 8,        /* more bytes than the caller allowed */
    GEARKV_FORGOTTEN = 9,          /* tokens that are asked for, or that a window shows, were given back */
    GEARKV_UNKNOWN_LEVEL = 10,     /* a level that does not exist */
    GEARKV_UNAVAILABLE_LEVEL = 11, /* a level this machine or build cannot run */
    GEARKV_BAD_BLOCK = 12,         /* bytes that are not a block of this format */
    GEARKV_NOT_A_STATE = 13,       /* the file does not start with the magic of a saved cache */
    GEARKV_OTHER_BYTE_ORDER = 14,  /* a file of a machine with another byte order */
    GEARKV_OTHER_CODEC = 15,       /* a cache saved with another SPEC */
    GEARKV_OTHER_MODEL = 16,       /* a cache saved with another model, shape or rotary embedding */
    GEARKV_DAMAGED = 17,           /* bytes that do not match their checksum, or are where none should be */
    GEARKV_CORRUPT_STATE = 18,     /* checksums match, but a count, place or order cannot be right */
    GEARKV_THREAD_FAILURE = 19,    /* the system refused a thread */
    GEARKV_INTERRUPTED = 20,       /* the caller asked to stop */
    GEARKV_IO_ERROR = 21,          /* the system refused to open, map, read or write a file */
    GEARKV_PROTECTED_FILE = 22,    /* a path to save to whose file must be kept */
    GEARKV_BAD_VERSION = 23,       /* a file version that is not known */
    GEARKV_TRUNCATED = 24,         /* the file ends before what its header promises */
    GEARKV_WRITE_FAILED = 25,      /* the caller's function did not take the bytes of a state */
    GEARKV_READ_FAILED = 26,       /* the caller's function did not give them */
    GEARKV_OTHER_ROPE = 27,        /* keys of a layer have moved by another rotary embedding */
    GEARKV_NO_KEYS = 28,           /* a layer that has no keys of its own */
    GEARKV_UNAVAILABLE_SPEC = 29,  /* a SPEC, or a block or state of it, that this build leaves out */
    /* Of gearkv-decoder. */
    GEARKV_DECODER_ERROR = 1000,     /* without a number here */
    GEARKV_NOT_A_MODEL = 1001,       /* the file does not start with the GGUF magic */
    GEARKV_CORRUPT_MODEL = 1002,     /* a length, count, offset or type in the file that cannot be right */
    GEARKV_MISSING_KEY = 1003,       /* metadata the architecture needs is absent */
    GEARKV_BAD_METADATA = 1004,      /* metadata with a wrong type or an impossible value */
    GEARKV_UNSUPPORTED_MODEL = 1005, /* a sound file, but not an architecture or tensor type that runs */
    GEARKV_MISSING_TENSOR = 1006,    /* a weight the architecture needs is absent */
    GEARKV_SHAPE_MISMATCH = 1007,    /* a weight whose shape disagrees with the metadata */
    GEARKV_BAD_TOKENIZER = 1008,     /* vocabulary, scores or token types that cannot be used */
    GEARKV_EMPTY_PROMPT = 1009,      /* a prompt of no tokens */
    GEARKV_PROMPT_TOO_LONG = 1010,   /* a prompt that does not fit the context */
    GEARKV_CONTEXT_FULL = 1011,      /* the context has no room for another token */
    GEARKV_BAD_TOKEN = 1012,         /* a token id outside the vocabulary */
    GEARKV_UNKNOWN_TEMPLATE = 1013,  /* a chat template, or a name of one, that is none of those known */
    GEARKV_BAD_CONVERSATION = 1014   /* messages in an order the chat template cannot express */
} gearkv_code;

/* A short fixed name ("non_finite"); never null. */
const char* gearkv_code_name(gearkv_code code);

#define GEARKV_MESSAGE_SIZE 224
typedef struct gearkv_error {
    gearkv_code code;
    char message[GEARKV_MESSAGE_SIZE]; /* what was found and what was expected; empty with GEARKV_OK */
} gearkv_error;

/* ---- Instruction-set levels ---- */

typedef GEARKV_ENUM(gearkv_level){
    GEARKV_LEVEL_AUTOMATIC = 0, /* the environment's GEARKV_LEVEL, else the best one this machine can run */
    GEARKV_LEVEL_SCALAR = 1,    GEARKV_LEVEL_AVX2 = 2,    GEARKV_LEVEL_AVX512 = 3,
    GEARKV_LEVEL_NEON = 4,      GEARKV_LEVEL_DOTPROD = 5, GEARKV_LEVEL_AVXVNNI = 6} gearkv_level;

/* "avx2" and so on; "?" for no level. */
const char* gearkv_level_name(gearkv_level level);
/* 1 when it is compiled in and this machine can run it, else 0. */
int gearkv_level_available(gearkv_level level);

/* ---- Memory ---- */

/* Where a cache takes its memory from. Both functions may be called on any thread the library runs on. */
typedef struct gearkv_allocator {
    /* At least n_bytes aligned to `alignment` (a power of two, at most 64), or null. */
    void* (*allocate)(void* context, size_t n_bytes, size_t alignment);
    /* Takes back what allocate returned, with the same n_bytes. */
    void (*release)(void* context, void* pointer, size_t n_bytes);
    void* context;
} gearkv_allocator;

gearkv_allocator gearkv_default_allocator(void);
/* Runs of 1 MiB and more as pages straight from the system, large ones when `huge` is not 0 and the system
 * has them, taken at once when `prefault` is not 0. */
gearkv_allocator gearkv_page_allocator(int huge, int prefault);

/* A fixed pool for the caches of many sequences: taken once, never grown, used by any thread at any time
 * (pool.hpp). */
typedef struct gearkv_pool gearkv_pool;
typedef struct gearkv_pool_stats {
    size_t struct_size;
    uint64_t n_bytes;         /* of the pool */
    uint64_t held_bytes;      /* in blocks that are out */
    uint64_t most_held_bytes; /* ever */
    uint64_t taken_bytes;     /* in slabs that are in use, wholly or in part */
    uint64_t longest_bytes;   /* the largest block to be had now */
    uint64_t n_blocks;        /* that are out */
    uint64_t n_free_slabs;
    uint64_t n_refused; /* blocks given back that were not out, or had another size */
} gearkv_pool_stats;

/* n_bytes: a multiple of slab_bytes; slab_bytes: a power of two in [4 KiB, 1 GiB], 0 for 64 KiB. `from` may
 * be null for pages of the system. Errors: invalid_argument, wrong_size, out_of_memory. */
gearkv_code gearkv_pool_create(uint64_t n_bytes, uint64_t slab_bytes, const gearkv_allocator* from,
                               gearkv_pool** out, gearkv_error* error);
/* After all caches that use it. */
void gearkv_pool_destroy(gearkv_pool* pool);
/* For configurations, as long as the pool lives. With a null pool all functions are null, which no cache
 * takes. */
gearkv_allocator gearkv_pool_allocator(gearkv_pool* pool);
/* Errors: invalid_argument. */
gearkv_code gearkv_pool_get_stats(const gearkv_pool* pool, gearkv_pool_stats* out, gearkv_error* error);

/* Working memory that caches have in common; needed by gearkv_attend_batch. It outlives its caches. */
typedef struct gearkv_workspace gearkv_workspace;
/* `allocator` may be null for the default one. Errors: invalid_argument, out_of_memory. */
gearkv_code gearkv_workspace_create(const gearkv_allocator* allocator, gearkv_workspace** out,
                                    gearkv_error* error);
void gearkv_workspace_destroy(gearkv_workspace* workspace);
uint64_t gearkv_workspace_bytes(const gearkv_workspace* workspace);

/* ---- Threads ---- */

/* Runs independent tasks; one call at a time. */
typedef struct gearkv_executor gearkv_executor;

/* The library's own pool: n_threads - 1 sleeping threads beside the caller's; 0 for one per processor.
 * Errors: invalid_argument (more than 1024), out_of_memory, thread_failure. */
gearkv_code gearkv_executor_create(unsigned n_threads, gearkv_executor** out, gearkv_error* error);
void gearkv_executor_destroy(gearkv_executor* executor);
/* 1 for null, the serial executor. */
unsigned gearkv_executor_n_threads(const gearkv_executor* executor);

typedef void (*gearkv_task)(void* task_context, size_t index);
/* A pool of the caller's. */
typedef struct gearkv_executor_callbacks {
    size_t struct_size;
    /* Calls task(task_context, i) once for every i in [0, n_tasks), in any order and on any threads, and
     * returns when all calls have returned. */
    void (*parallel_for)(void* context, size_t n_tasks, gearkv_task task, void* task_context);
    /* Threads that may run tasks at once, the caller's included; at least 1. Asked for once a call. */
    unsigned (*n_threads)(void* context);
    void* context;
} gearkv_executor_callbacks;
/* Errors: invalid_argument, out_of_memory. */
gearkv_code gearkv_executor_create_custom(const gearkv_executor_callbacks* callbacks, gearkv_executor** out,
                                          gearkv_error* error);

/* Threads that come to the call themselves: the workers of an engine, all of which enter an operator
 * together. The leader hands gearkv_crew_executor(crew) to the library's functions and then releases the
 * ticket; every other worker calls gearkv_crew_help. Nobody waits for a worker that comes late or never.
 * Tickets are above 0, and those of later operators larger (executor.hpp). */
typedef struct gearkv_crew gearkv_crew;
/* At most n_threads work at once, the leader included. Errors: invalid_argument, out_of_memory. */
gearkv_code gearkv_crew_create(unsigned n_threads, gearkv_crew** out, gearkv_error* error);
void gearkv_crew_destroy(gearkv_crew* crew);
/* Belongs to the crew; null for a null crew. */
gearkv_executor* gearkv_crew_executor(gearkv_crew* crew);
/* Runs tasks of the leader until the ticket has been released. 0 when the crew was full: nothing was done
 * then. May be called on any thread. */
int gearkv_crew_help(gearkv_crew* crew, uint64_t ticket);
void gearkv_crew_release(gearkv_crew* crew, uint64_t ticket);

/* ---- SPEC: what a cache stores ---- */

/* Room for every canonical SPEC with its zero. */
#define GEARKV_SPEC_SIZE 256
/* Checks a SPEC (grammar: config.hpp; "gear-4", "gear-2", "f16", "auto:3" ...) and writes its canonical form
 * to text, which may be null. Errors: unavailable_spec (a format that this build leaves out); bad_spec, with
 * the place and what is known there; wrong_size (n_chars too few). */
gearkv_code gearkv_format_spec(const char* spec, char* text, size_t n_chars, gearkv_error* error);

/* ---- A cache ---- */

typedef struct gearkv_cache gearkv_cache;

/* Keys and values of one layer; all 0 of a layer that has none of its own. */
typedef struct gearkv_layer_dims {
    uint32_t n_kv_heads;
    uint32_t key_dim;
    uint32_t value_dim;
} gearkv_layer_dims;

typedef struct gearkv_config {
    size_t struct_size;
    const char* spec;         /* what is stored; there is none to begin with */
    uint32_t n_layers;        /* [1, 4096] */
    uint32_t n_kv_heads;      /* [1, 4096] */
    uint32_t key_dim;         /* channels of a key head, a multiple of 8 in [8, 1024] */
    uint32_t value_dim;       /* the same of a value head */
    uint64_t max_tokens;      /* per layer, [1, 2^31) */
    uint32_t spread_tokens;   /* 16: tokens over which the compression of a block is spread */
    uint32_t block_tokens;    /* 0: 4,096 tokens of a block at most */
    uint32_t rollback_tokens; /* 0: how far back a truncation is lossless and finds windows whole */
    uint32_t error_every;     /* 0: above, every so many blocks the error of attention is sampled */
    uint64_t seed;
    const uint32_t* windows; /* [n_layers] or null; copied. Above 0: the layer sees so many last tokens */
    uint64_t max_bytes;      /* above 0: the most bytes the cache may hold */
    uint64_t soft_bytes;     /* above 0: beyond them older blocks shrink */
    /* The rotary embedding of the keys, needed by gearkv_cache_remove alone. */
    const double* rope_frequencies; /* [rope_n_pairs] radians a token; copied */
    uint32_t rope_n_pairs;          /* 0: keys are not rotated; at most key_dim / 2 */
    int32_t rope_interleaved;       /* not 0: pair i is channels 2i and 2i + 1; else i and i + rope_n_pairs */
    gearkv_workspace* workspace;    /* borrowed as long as the cache lives; null for one of its own */
    gearkv_level level;
    int32_t close_prompts;      /* not 0: after it was attended nothing whole of a prompt stays in fp16 */
    gearkv_allocator allocator; /* gearkv_config_init: the default one */
    /* Where layers differ [n_layers], in place of n_kv_heads, key_dim and value_dim, which are 0 then; null
     * when all are alike; copied. */
    const gearkv_layer_dims* dims;
    /* Not 0: values are keys too, as in latent attention (MLA): key_dim and value_dim channels are scored, and
     * the latter are the value. spec: v= is f32, f16 or a trellis (gear-1 to gear-4), no auto. */
    int32_t latent;
} gearkv_config;

/* Defaults. Call it as gearkv_config_init(&config, sizeof(config)). */
void gearkv_config_init(gearkv_config* config, size_t struct_size);

/* Keys or values of some tokens: element (token, head, channel) is data[token * token_stride + head *
 * head_stride + channel]. Strides count floats. */
typedef struct gearkv_rows {
    const float* data;
    size_t token_stride;
    size_t head_stride;
} gearkv_rows;

/* What the numbers in the caller's memory are. */
typedef GEARKV_ENUM(gearkv_type){GEARKV_F32 = 0, GEARKV_F16 = 1, GEARKV_BF16 = 2} gearkv_type;

/* The same of any type: element (token, head, channel) is data[token * token_stride + head * head_stride +
 * channel * channel_stride], strides count elements. Keys as [head][channel][token] have a token_stride of 1.
 * Rows in f16 and bf16 come to the same as the floats they stand for. */
typedef struct gearkv_typed_rows {
    size_t struct_size;
    const void* data;
    size_t token_stride;
    size_t head_stride;
    size_t channel_stride; /* 0 stands for 1 */
    gearkv_type type;
} gearkv_typed_rows;

/* Tokens [first, end). */
typedef struct gearkv_token_range {
    uint64_t first;
    uint64_t end;
} gearkv_token_range;

/* Queries of one layer: element (query, head, channel) is data[query * query_stride + head * head_stride +
 * channel * channel_stride]. Query head h reads KV head h / (n_heads / n_kv_heads). */
typedef struct gearkv_queries {
    size_t struct_size;
    const void* data; /* of `type`, below */
    size_t query_stride;
    size_t head_stride;
    uint32_t n_queries;
    uint32_t n_heads;    /* a multiple of n_kv_heads */
    float scale;         /* of the scores, 1/sqrt(key_dim) as a rule; finite and not 0 */
    int32_t causal;      /* 1: the last query sees every token, the one before it all but the last, ... */
    float soft_cap;      /* above 0: scores become soft_cap tanh(score / soft_cap) */
    float negligible;    /* above 0: values of 16 tokens that weigh less than this share each are not read */
    const float* slopes; /* ALiBi [n_heads], or null */
    /* Added to the scores, or null: element (query, token) of head h at mask[query * mask_query_stride + h *
     * mask_head_stride + token]; -Inf hides a token. */
    const float* mask;
    size_t mask_query_stride;
    size_t mask_head_stride;
    uint64_t window;       /* above 0: of the tokens a query may see, the last ones alone */
    const float* sinks;    /* [n_heads] scores without a value, or null */
    gearkv_type type;      /* of data */
    gearkv_type out_type;  /* of the output, which saturates at 65504 in f16 */
    size_t channel_stride; /* of data; 0 stands for 1 */
    /* What is read, as Queries of cache.hpp: sections of trellis blocks with this share of the weights, and
     * no more than this share of them; 0 stands for 1, all. */
    float mass;
    float most_share;
    /* Tokens that are seen, for each KV head: head h has the ranges from range_ends[h - 1] (0 for the first)
     * to range_ends[h]; null for all. */
    const gearkv_token_range* ranges;
    const size_t* range_ends; /* [n_kv_heads] */
    /* Of the output, whose elements have a place of their own each; 0 stands for n_heads and value_dim as they
     * lie side by side, and for 1. */
    size_t out_query_stride;
    size_t out_head_stride;
    size_t out_channel_stride;
    /* With latent: what meets the values, value_dim channels with the type and strides of data. Else null. */
    const void* latents;
} gearkv_queries;

/* Defaults, causal among them. */
void gearkv_queries_init(gearkv_queries* queries, size_t struct_size);

typedef struct gearkv_stats {
    size_t struct_size;
    uint64_t bytes;     /* held in all: the sum of the next five */
    uint64_t key_bytes; /* in blocks */
    uint64_t value_bytes;
    uint64_t buffer_bytes;  /* tokens not yet in a closed block */
    uint64_t scratch_bytes; /* working memory of calls that is kept */
    uint64_t table_bytes;
    uint64_t shared_bytes; /* of all: other caches show it too */
    uint64_t mapped_bytes; /* of all: in a mapped file */
    uint64_t n_tokens;
    uint64_t compressed_tokens;
    uint64_t n_blocks;       /* closed, all layers, keys and values */
    uint64_t n_shrunk;       /* of them, smaller than they were */
    double bits_per_element; /* blocks and buffered tokens, per stored key and value element */
    double compress_seconds; /* all threads together */
    uint64_t shrunk_bytes;   /* that n_shrunk blocks took more once */
} gearkv_stats;

typedef struct gearkv_layer_stats {
    size_t struct_size;
    uint64_t n_tokens;
    uint64_t n_forgotten; /* of them, given back */
    uint64_t n_closed;    /* of them, in blocks */
    uint64_t n_blocks;    /* keys and values */
    uint64_t n_shrunk;
    double compress_seconds;
    double output_error; /* relative error of attention on sampled blocks; 0 without a sample */
    uint64_t n_sampled;
    uint64_t n_selections; /* queries with mass, most_share or ranges, counted by KV head and up to 8 rows */
    double share_read;     /* of tiles of 128 tokens, a mean over these */
    double mass_read;      /* of the weights, estimated, a mean */
    uint64_t shrunk_bytes; /* that n_shrunk blocks took more once */
} gearkv_layer_stats;

/* Errors: invalid_argument, wrong_size, bad_spec, non_finite (a rope), out_of_memory, over_budget,
 * unknown_level, unavailable_level. */
gearkv_code gearkv_cache_create(const gearkv_config* config, gearkv_cache** out, gearkv_error* error);
void gearkv_cache_destroy(gearkv_cache* cache);

/* Exact bytes of blocks and buffers with n_tokens in every layer, the first prompt_tokens in one append, as
 * bytes_required of cache.hpp: bytes, key_bytes, value_bytes and buffer_bytes are written, the rest is 0.
 * Errors: as gearkv_cache_create; wrong_size. */
gearkv_code gearkv_bytes_required(const gearkv_config* config, uint64_t n_tokens, uint64_t prompt_tokens,
                                  gearkv_stats* out, gearkv_error* error);

/* A life of a cache: prompt_tokens in one append, the others one by one; new tokens of a layer are attended,
 * and the prompt is compressed, before the next layer has its turn; in the end all layers are compressed. */
typedef struct gearkv_life {
    size_t struct_size;
    uint64_t n_tokens;
    uint64_t prompt_tokens; /* of them */
    uint32_t n_heads;       /* of queries, a multiple of n_kv_heads; 0: nothing is attended */
    uint32_t n_threads;     /* of the executor, at least 1 */
} gearkv_life;
/* The least max_bytes that this life keeps to, in out->bytes, and the parts of it at that time. With a byte
 * less a call fails with over_budget; an allocator needs room for the object beside it, less than a KiB
 * (cache.hpp). Errors: as gearkv_bytes_required; bad_spec of auto:BITS. */
gearkv_code gearkv_bytes_of_life(const gearkv_config* config, const gearkv_life* life, gearkv_stats* out,
                                 gearkv_error* error);

/* Appends n_tokens >= 1 keys and values to a layer. Errors: invalid_argument, no_keys, wrong_size,
 * capacity_exceeded, non_finite, not_representable, out_of_memory, over_budget. */
gearkv_code gearkv_cache_append(gearkv_cache* cache, uint32_t layer, const gearkv_rows* keys,
                                const gearkv_rows* values, uint32_t n_tokens, gearkv_executor* executor,
                                gearkv_error* error);

/* The same of rows of any type and stride. */
gearkv_code gearkv_cache_append_typed(gearkv_cache* cache, uint32_t layer, const gearkv_typed_rows* keys,
                                      const gearkv_typed_rows* values, uint32_t n_tokens,
                                      gearkv_executor* executor, gearkv_error* error);

/* Softmax attention of the queries over the layer's tokens, to out [n_queries, n_heads, value_dim] of
 * queries->out_type at its strides, with room for n_floats elements. Errors: invalid_argument, no_keys, wrong_size,
 * non_finite, forgotten, out_of_memory, over_budget. */
gearkv_code gearkv_cache_attend(gearkv_cache* cache, uint32_t layer, const gearkv_queries* queries, void* out,
                                size_t n_floats, gearkv_executor* executor, gearkv_error* error);

typedef struct gearkv_attend_request {
    gearkv_cache* cache;
    const gearkv_queries* queries;
    void* out;       /* of no other request; queries->out_type */
    size_t n_floats; /* elements there is room for */
} gearkv_attend_request;
/* gearkv_cache_attend for many sequences at once, whose caches have one workspace; every output has the same
 * bits. Errors: of attend, naming the request; out_of_memory. No output is touched then. */
gearkv_code gearkv_attend_batch(uint32_t layer, const gearkv_attend_request* requests, size_t n_requests,
                                gearkv_executor* executor, gearkv_error* error);

/* Compresses now all that fills blocks; after attend it frees the room of a long prompt. Errors:
 * invalid_argument, out_of_memory, over_budget. */
gearkv_code gearkv_cache_compress(gearkv_cache* cache, uint32_t layer, gearkv_executor* executor,
                                  gearkv_error* error);

/* Writes tokens [first, first + n_tokens) as they are attended, [n_tokens, n_kv_heads, dim] each; either may
 * be null. Errors: invalid_argument, wrong_size, forgotten. */
gearkv_code gearkv_cache_read(gearkv_cache* cache, uint32_t layer, uint64_t first, uint64_t n_tokens,
                              float* keys, size_t n_key_floats, float* values, size_t n_value_floats,
                              gearkv_error* error);

/* The same in elements of any type; in f16 they saturate at 65504. */
gearkv_code gearkv_cache_read_typed(gearkv_cache* cache, uint32_t layer, uint64_t first, uint64_t n_tokens,
                                    gearkv_type type, void* keys, size_t n_key_elements, void* values,
                                    size_t n_value_elements, gearkv_error* error);

/* Where keys or values of some tokens go: to the same places as in gearkv_typed_rows, each its own. */
typedef struct gearkv_out_rows {
    size_t struct_size;
    void* data;
    size_t n_elements; /* there is room for */
    size_t token_stride;
    size_t head_stride;
    size_t channel_stride; /* 0 stands for 1 */
    gearkv_type type;
} gearkv_out_rows;
/* The same at any strides; either may be null. */
gearkv_code gearkv_cache_read_rows(gearkv_cache* cache, uint32_t layer, uint64_t first, uint64_t n_tokens,
                                   const gearkv_out_rows* keys, const gearkv_out_rows* values,
                                   gearkv_error* error);

/* Drops the tokens from n_tokens on in every layer. *lossless, where it is not null, gets 1 when every later
 * output has the bits of a cache that never saw them, else 0. Errors: wrong_size, forgotten, out_of_memory,
 * over_budget. */
gearkv_code gearkv_cache_truncate(gearkv_cache* cache, uint64_t n_tokens, int* lossless, gearkv_error* error);

/* The rotary embedding of the keys of one layer. */
typedef struct gearkv_rope {
    const double* frequencies; /* [n_pairs] radians a token */
    uint32_t n_pairs;          /* 0: the keys are not rotated */
    int32_t interleaved;       /* as gearkv_config.rope_interleaved */
} gearkv_rope;
/* A context shift: drops n_tokens tokens from `first` on in every layer; those behind move up, and their keys
 * turn to their new positions, by `ropes` [n_layers], or by that of the configuration where it is null. The
 * first by which keys of a layer move holds for it until it is empty. After an error earlier tokens may have
 * been compressed. Errors: invalid_argument, wrong_size, non_finite (a rope), forgotten, other_rope,
 * out_of_memory, over_budget. */
gearkv_code gearkv_cache_remove(gearkv_cache* cache, uint64_t first, uint64_t n_tokens,
                                const gearkv_rope* ropes, gearkv_executor* executor, gearkv_error* error);

/* After an error in the middle of a step: drops what the layers have more than the shortest, whose tokens
 * *n_tokens gets. Both outputs may be null. Errors: as gearkv_cache_truncate. */
gearkv_code gearkv_cache_truncate_to_shortest(gearkv_cache* cache, uint64_t* n_tokens, int* lossless,
                                              gearkv_error* error);

/* Gives back the blocks of a layer that have no token from `token` on. Errors: invalid_argument,
 * out_of_memory, over_budget. */
gearkv_code gearkv_cache_forget_before(gearkv_cache* cache, uint32_t layer, uint64_t token,
                                       gearkv_error* error);

/* Makes older blocks smaller until the cache holds at most target_bytes or nothing is left to be made so, on the
 * calling thread: they lose outliers, then low rank; those of gear-1 to gear-4 and auto are encoded again at lower
 * rates. *freed may be null. Errors: out_of_memory, over_budget, damaged; what shrank by then stays so. */
gearkv_code gearkv_cache_shrink(gearkv_cache* cache, uint64_t target_bytes, uint64_t* freed,
                                gearkv_error* error);

/* A second cache with the same tokens; nothing is copied until one of the two changes. Errors:
 * invalid_argument, out_of_memory, over_budget. */
gearkv_code gearkv_cache_fork(const gearkv_cache* cache, gearkv_cache** out, gearkv_error* error);

/* Forgets all tokens and gives back their memory. */
void gearkv_cache_reset(gearkv_cache* cache);
/* Raises max_tokens, if it is less; takes no memory. Errors: invalid_argument, wrong_size. */
gearkv_code gearkv_cache_reserve(gearkv_cache* cache, uint64_t max_tokens, gearkv_error* error);

/* 0 for a layer, or a cache, that does not exist. */
uint64_t gearkv_cache_n_tokens(const gearkv_cache* cache, uint32_t layer);
/* The first token of a layer from which on all are there. */
uint64_t gearkv_cache_first_token(const gearkv_cache* cache, uint32_t layer);
/* The level in use, never automatic; automatic for null. */
gearkv_level gearkv_cache_level(const gearkv_cache* cache);
/* The SPEC of one layer, canonical. Errors: invalid_argument, wrong_size. */
gearkv_code gearkv_cache_layer_spec(const gearkv_cache* cache, uint32_t layer, char* text, size_t n_chars,
                                    gearkv_error* error);
/* Errors: invalid_argument. */
gearkv_code gearkv_cache_get_stats(const gearkv_cache* cache, gearkv_stats* out, gearkv_error* error);
gearkv_code gearkv_cache_get_layer_stats(const gearkv_cache* cache, uint32_t layer, gearkv_layer_stats* out,
                                         gearkv_error* error);

/* ---- A cache as bytes: in a file, in memory, or through functions of the caller's (state.hpp) ---- */

/* 32 bytes that name what the keys and values came from. */
#define GEARKV_FINGERPRINT_SIZE 32

/* All zero but for struct_size: all tokens, and nothing beside them. Null stands for that. */
typedef struct gearkv_save_options {
    size_t struct_size;
    const uint8_t* fingerprint; /* null for zeros */
    const void* extra;          /* bytes of the caller's that go with the cache */
    size_t n_extra;
    uint64_t n_tokens; /* above 0: only the first so many tokens, as a truncation would leave them */
} gearkv_save_options;

/* Saves the cache to a file in one piece or not at all. *warning, where it is not null, is what did not go
 * well beside a save that is in place. Errors: invalid_argument, io_error, protected_file, out_of_memory,
 * damaged, those of fork and truncate. */
gearkv_code gearkv_cache_save(const gearkv_cache* cache, const char* path, const gearkv_save_options* options,
                              gearkv_executor* executor, gearkv_error* warning, gearkv_error* error);
/* How many bytes a save writes now. Errors: invalid_argument, wrong_size, those of fork and truncate. */
gearkv_code gearkv_state_bytes(const gearkv_cache* cache, const gearkv_save_options* options, uint64_t* out,
                               gearkv_error* error);
/* The same bytes to memory. *n_written may be null. Errors: those above; wrong_size. Nothing is written then.
 */
gearkv_code gearkv_cache_save_to_memory(const gearkv_cache* cache, void* to, size_t n_room,
                                        const gearkv_save_options* options, gearkv_executor* executor,
                                        size_t* n_written, gearkv_error* error);
/* Gets all bytes in their order, in pieces of any size; not 0 when it took the piece. */
typedef int (*gearkv_write)(void* context, const void* bytes, size_t n_bytes);
/* Errors: those above; write_failed. */
gearkv_code gearkv_cache_save_through(const gearkv_cache* cache, gearkv_write write, void* context,
                                      const gearkv_save_options* options, gearkv_executor* executor,
                                      gearkv_error* error);

typedef GEARKV_ENUM(gearkv_loading){
    GEARKV_LOAD_COPY = 0, /* blocks are read into memory */
    GEARKV_LOAD_MAP = 1,  /* blocks stay in the file, all of it checked now */
    GEARKV_LOAD_MAP_LAZY =
        2 /* the same, each block checked when a call first needs it, which fails with `damaged` */
} gearkv_loading;
/* All zero but for struct_size: by copy, and no room for bytes of the caller's. Null stands for that. */
typedef struct gearkv_load_options {
    size_t struct_size;
    const uint8_t* fingerprint; /* that is expected; null for zeros */
    void* extra;                /* room for the caller's bytes */
    size_t n_room;              /* 0: they are not wanted */
    gearkv_loading loading;     /* of a file; all else is by copy */
} gearkv_load_options;

/* Makes a cache out of a file, which may come from anybody. config says what is expected. *n_extra, where it
 * is not null, gets the number of the caller's bytes. Errors: those of gearkv_cache_create; io_error,
 * not_a_state, other_byte_order, bad_version, truncated, damaged, corrupt_state, bad_block, other_codec,
 * other_model, capacity_exceeded, forgotten, wrong_size (no room for the caller's bytes). */
gearkv_code gearkv_cache_load(const char* path, const gearkv_config* config,
                              const gearkv_load_options* options, gearkv_executor* executor,
                              gearkv_cache** out, size_t* n_extra, gearkv_error* error);
/* The same out of memory. */
gearkv_code gearkv_cache_load_from_memory(const void* bytes, size_t n_bytes, const gearkv_config* config,
                                          const gearkv_load_options* options, gearkv_executor* executor,
                                          gearkv_cache** out, size_t* n_extra, gearkv_error* error);
/* Puts the next bytes at `to`, at least one and at most n_bytes, and their number in *n_read: 0 when there
 * are no more. 0 when it failed. */
typedef int (*gearkv_read)(void* context, void* to, size_t n_bytes, size_t* n_read);
/* The same through a function. Errors: those above; read_failed. */
gearkv_code gearkv_cache_load_through(gearkv_read read, void* context, const gearkv_config* config,
                                      const gearkv_load_options* options, gearkv_executor* executor,
                                      gearkv_cache** out, size_t* n_extra, gearkv_error* error);

typedef struct gearkv_state_info {
    size_t struct_size;
    uint32_t version;
    uint32_t n_layers;
    uint32_t n_kv_heads; /* these three are 0 where layers differ: gearkv_state_dims */
    uint32_t key_dim;
    uint32_t value_dim;
    uint64_t max_tokens;
    uint64_t n_bytes;
    uint64_t n_tokens; /* of the layer that has most */
    uint64_t n_blocks;
    uint64_t block_bytes;
    uint64_t n_extra;
    uint8_t fingerprint[GEARKV_FINGERPRINT_SIZE];
    char spec[GEARKV_SPEC_SIZE];
    int32_t latent; /* not 0: of a cache with latent */
} gearkv_state_info;
/* What a file says of itself. Errors: invalid_argument, io_error, not_a_state, other_byte_order, bad_version,
 * truncated, damaged, corrupt_state, out_of_memory. */
gearkv_code gearkv_inspect_state(const char* path, gearkv_state_info* out, gearkv_error* error);
/* The shapes of its layers, [n_layers] of the number there is. Errors: as above; wrong_size. */
gearkv_code gearkv_state_dims(const char* path, gearkv_layer_dims* out, uint32_t n_layers,
                              gearkv_error* error);
/* As gearkv_inspect_state, and checks every byte. */
gearkv_code gearkv_verify_state(const char* path, gearkv_executor* executor, gearkv_state_info* out,
                                gearkv_error* error);

/* ---- One block, without a cache (codec.hpp) ---- */

typedef GEARKV_ENUM(gearkv_kind){GEARKV_KEYS = 0, GEARKV_VALUES = 1} gearkv_kind;

typedef struct gearkv_block_options {
    size_t struct_size;
    const char* spec; /* of which the part for this kind is used */
    gearkv_kind kind;
    uint32_t n_tokens; /* at least 1 */
    uint32_t n_heads;  /* [1, 4096] */
    uint32_t dim;      /* a multiple of 8 in [8, 1024] */
    int32_t generated; /* not 0: the rank of blocks of generated tokens, else of the prompt's */
    uint64_t seed;
    gearkv_level level;
} gearkv_block_options;

/* Exact size of the block. Errors: invalid_argument, bad_spec, wrong_size. */
gearkv_code gearkv_block_bytes(const gearkv_block_options* options, uint64_t* out, gearkv_error* error);
/* Compresses rows to exactly that many bytes, 64-byte aligned. Errors: invalid_argument, bad_spec,
 * wrong_size, non_finite, not_representable, out_of_memory, unknown_level, unavailable_level; what is at
 * `block` is unspecified then. */
gearkv_code gearkv_compress_block(void* block, size_t n_bytes, const gearkv_rows* rows,
                                  const gearkv_block_options* options, gearkv_executor* executor,
                                  gearkv_error* error);
/* The same of rows of any type and stride. */
gearkv_code gearkv_compress_block_typed(void* block, size_t n_bytes, const gearkv_typed_rows* rows,
                                        const gearkv_block_options* options, gearkv_executor* executor,
                                        gearkv_error* error);
/* Writes [n_tokens, n_heads, dim] floats. The block may come from anywhere. Errors: invalid_argument,
 * bad_block, wrong_size. */
gearkv_code gearkv_decompress_block(float* out, size_t n_floats, const void* block, size_t n_bytes,
                                    gearkv_error* error);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#undef GEARKV_ENUM
#ifdef __cplusplus
}
#endif

#endif
