/* The life of a cache in C99, as an embedder writes it. Exits with 0 when all of it is as the header says. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gearkv/gearkv.h"

enum { n_layers = 2, n_kv_heads = 2, n_heads = 4, dim = 64, n_tokens = 300 };

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

/* A pool of the caller's: its only thread, backwards. */
static void run_backwards(void* context, size_t n_tasks, gearkv_task task, void* task_context) {
    ++*(int*)context;
    while (n_tasks-- > 0)
        task(task_context, n_tasks);
}
static unsigned one_thread(void* context) {
    (void)context;
    return 1;
}

/* Memory of the caller's, counted. */
static size_t n_held;
static void* take(void* context, size_t n_bytes, size_t alignment) {
    void* memory = NULL;
    (void)context;
    if (posix_memalign(&memory, alignment < sizeof(void*) ? sizeof(void*) : alignment, n_bytes) != 0)
        return NULL;
    n_held += n_bytes;
    return memory;
}
static void give_back(void* context, void* memory, size_t n_bytes) {
    (void)context;
    n_held -= n_bytes;
    free(memory);
}

int main(int argc, char** argv) {
    static float rows[n_tokens * n_kv_heads * dim], query[n_heads * dim], out[3][n_heads * dim];
    static double frequencies[dim / 2];
    gearkv_error error = {GEARKV_OK, ""};
    const gearkv_rows view = {rows, n_kv_heads * dim, dim};
    const gearkv_token_range ranges[] = {{0, 100}, {100, n_tokens}, {0, n_tokens}};
    const size_t range_ends[] = {2, 3};
    gearkv_executor *pool = NULL, *own = NULL;
    gearkv_cache *cache = NULL, *fork = NULL, *loaded = NULL;
    gearkv_executor_callbacks callbacks;
    gearkv_config config;
    gearkv_queries queries;
    gearkv_rope ropes[n_layers];
    gearkv_stats stats, required;
    gearkv_layer_stats layer_stats;
    gearkv_state_info info;
    gearkv_save_options save;
    gearkv_load_options load;
    char spec[GEARKV_SPEC_SIZE], note[8];
    size_t i, n_note = 0;
    uint64_t freed = 1;
    int n_rounds = 0, lossless = -1;

    if (argc != 2) {
        fprintf(stderr, "usage: %s STATE, a file that is written and removed\n", argv[0]);
        return 2;
    }
    for (i = 0; i < sizeof(rows) / sizeof(*rows); ++i)
        rows[i] = (float)sin(0.1 * (double)(i * i % 9973));
    for (i = 0; i < sizeof(query) / sizeof(*query); ++i)
        query[i] = (float)cos(0.3 * (double)i);
    for (i = 0; i < dim / 2; ++i)
        frequencies[i] = pow(10000.0, -2.0 * (double)i / dim);

    REQUIRE(gearkv_version_number() == GEARKV_VERSION_NUMBER);
    CHECK(gearkv_format_spec("gear-4", spec, sizeof(spec), &error));
    REQUIRE(strlen(spec) > 0);
    CHECK(gearkv_executor_create(2, &pool, &error));
    REQUIRE(gearkv_executor_n_threads(pool) >= 1 && gearkv_executor_n_threads(NULL) == 1);
    memset(&callbacks, 0, sizeof(callbacks));
    callbacks.struct_size = sizeof(callbacks);
    callbacks.parallel_for = run_backwards;
    callbacks.n_threads = one_thread;
    callbacks.context = &n_rounds;
    CHECK(gearkv_executor_create_custom(&callbacks, &own, &error));

    gearkv_config_init(&config, sizeof(config));
    config.spec = "gear-4";
    config.n_layers = n_layers;
    config.n_kv_heads = n_kv_heads;
    config.key_dim = config.value_dim = dim;
    config.max_tokens = 1000;
    config.rope_frequencies = frequencies;
    config.rope_n_pairs = dim / 2;
    config.allocator.allocate = take;
    config.allocator.release = give_back;
    CHECK(gearkv_cache_create(&config, &cache, &error));
    REQUIRE(n_held > 0);
    for (i = 0; i < n_layers; ++i) {
        CHECK(gearkv_cache_append(cache, (uint32_t)i, &view, &view, n_tokens, pool, &error));
        CHECK(gearkv_cache_compress(cache, (uint32_t)i, pool, &error));
    }
    REQUIRE(gearkv_cache_n_tokens(cache, 1) == n_tokens && gearkv_cache_first_token(cache, 1) == 0);
    REQUIRE(gearkv_cache_level(cache) != GEARKV_LEVEL_AUTOMATIC);
    REQUIRE(gearkv_level_available(gearkv_cache_level(cache)));

    gearkv_queries_init(&queries, sizeof(queries));
    queries.data = query;
    queries.query_stride = n_heads * dim;
    queries.head_stride = dim;
    queries.n_queries = 1;
    queries.n_heads = n_heads;
    queries.scale = 0.125f;
    CHECK(gearkv_cache_attend(cache, 1, &queries, out[0], n_heads * dim, NULL, &error));
    CHECK(gearkv_cache_attend(cache, 1, &queries, out[1], n_heads * dim, own, &error));
    REQUIRE(n_rounds > 0 && memcmp(out[0], out[1], sizeof(out[0])) == 0);
    /* All tokens, listed, are all tokens; of a mass it tells what was read. */
    queries.ranges = ranges;
    queries.range_ends = range_ends;
    CHECK(gearkv_cache_attend(cache, 1, &queries, out[1], n_heads * dim, own, &error));
    REQUIRE(memcmp(out[0], out[1], sizeof(out[0])) == 0);
    queries.ranges = NULL;
    queries.range_ends = NULL;
    queries.mass = 0.25f;
    CHECK(gearkv_cache_attend(cache, 1, &queries, out[1], n_heads * dim, own, &error));
    layer_stats.struct_size = sizeof(layer_stats);
    CHECK(gearkv_cache_get_layer_stats(cache, 1, &layer_stats, &error));
    REQUIRE(layer_stats.n_selections > 0 && layer_stats.mass_read > 0.0 && layer_stats.share_read <= 1.0);
    queries.mass = 0.0f;

    stats.struct_size = required.struct_size = sizeof(stats);
    layer_stats.struct_size = sizeof(layer_stats);
    CHECK(gearkv_cache_get_stats(cache, &stats, &error));
    CHECK(gearkv_bytes_required(&config, n_tokens, n_tokens, &required, &error));
    REQUIRE(stats.key_bytes == required.key_bytes && stats.value_bytes == required.value_bytes);
    REQUIRE(stats.n_tokens == n_tokens && stats.compressed_tokens > 0 && stats.bits_per_element < 16.0);
    CHECK(gearkv_cache_get_layer_stats(cache, 0, &layer_stats, &error));
    REQUIRE(layer_stats.n_tokens == n_tokens && layer_stats.n_blocks == 2);
    CHECK(gearkv_cache_layer_spec(cache, 0, spec, sizeof(spec), &error));

    /* Saved with three bytes of ours, and loaded as it was. */
    memset(&save, 0, sizeof(save));
    save.struct_size = sizeof(save);
    save.extra = "abc";
    save.n_extra = 3;
    CHECK(gearkv_cache_save(cache, argv[1], &save, pool, NULL, &error));
    info.struct_size = sizeof(info);
    CHECK(gearkv_inspect_state(argv[1], &info, &error));
    REQUIRE(info.n_tokens == n_tokens && info.n_extra == 3 && info.n_layers == n_layers);
    REQUIRE(strcmp(info.spec, spec) == 0);
    CHECK(gearkv_verify_state(argv[1], pool, &info, &error));
    memset(&load, 0, sizeof(load));
    load.struct_size = sizeof(load);
    load.loading = GEARKV_LOAD_MAP_LAZY;
    load.extra = note;
    load.n_room = sizeof(note);
    CHECK(gearkv_cache_load(argv[1], &config, &load, pool, &loaded, &n_note, &error));
    REQUIRE(n_note == 3 && memcmp(note, "abc", 3) == 0);
    CHECK(gearkv_cache_attend(loaded, 1, &queries, out[2], n_heads * dim, pool, &error));
    REQUIRE(memcmp(out[0], out[2], sizeof(out[0])) == 0);
    gearkv_cache_destroy(loaded);
    remove(argv[1]);

    CHECK(gearkv_cache_fork(cache, &fork, &error));
    for (i = 0; i < n_layers; ++i) {
        ropes[i].frequencies = frequencies;
        ropes[i].n_pairs = dim / 2;
        ropes[i].interleaved = 0;
    }
    CHECK(gearkv_cache_remove(fork, 10, 40, NULL, pool, &error));
    CHECK(gearkv_cache_remove(fork, 10, 10, ropes, pool, &error)); /* the same */
    ropes[1].n_pairs = 4;
    REQUIRE(gearkv_cache_remove(fork, 10, 1, ropes, pool, &error) == GEARKV_OTHER_ROPE);
    CHECK(gearkv_cache_truncate(fork, 200, &lossless, &error));
    REQUIRE(gearkv_cache_n_tokens(fork, 0) == 200 && gearkv_cache_n_tokens(cache, 0) == n_tokens &&
            lossless == 0);
    CHECK(gearkv_cache_forget_before(fork, 0, 100, &error));
    CHECK(gearkv_cache_shrink(fork, 0, &freed, &error));
    REQUIRE(freed > 0); /* the fork alone: what the other one shows stays */
    CHECK(gearkv_cache_attend(cache, 1, &queries, out[2], n_heads * dim, pool, &error));
    REQUIRE(memcmp(out[0], out[2], sizeof(out[0])) == 0);
    gearkv_cache_reset(fork);
    REQUIRE(gearkv_cache_n_tokens(fork, 0) == 0);

    /* An error says what was found, and changes nothing. */
    queries.n_heads = 3;
    out[1][0] = 7.0f;
    REQUIRE(gearkv_cache_attend(cache, 1, &queries, out[1], n_heads * dim, pool, &error) ==
            GEARKV_WRONG_SIZE);
    REQUIRE(error.code == GEARKV_WRONG_SIZE && strstr(error.message, "3 query heads") != NULL &&
            out[1][0] == 7.0f);

    gearkv_cache_destroy(fork);
    gearkv_cache_destroy(cache);
    gearkv_executor_destroy(pool);
    gearkv_executor_destroy(own);
    REQUIRE(n_held == 0);
    return 0;
}
