/* The same from C, with all memory out of one array. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#include "gearkv/gearkv.h"

enum { n_tokens = 1000, n_heads = 8, n_kv_heads = 2, dim = 64 };
static float k[n_tokens * n_kv_heads * dim], v[n_tokens * n_kv_heads * dim], q[n_heads * dim],
    out[n_heads * dim];

static unsigned char arena[4 << 20];
static size_t n_taken;
static void* take(void* context, size_t n_bytes, size_t alignment) {
    const size_t first = n_taken + (alignment - (uintptr_t)(arena + n_taken) % alignment) % alignment;
    (void)context;
    if (first > sizeof(arena) || n_bytes > sizeof(arena) - first) return NULL;
    n_taken = first + n_bytes;
    return arena + first;
}
static void give_back(void* context, void* memory, size_t n_bytes) {
    (void)context, (void)memory, (void)n_bytes; /* the array goes as a whole */
}

int main(void) {
    const gearkv_rows keys = {k, n_kv_heads * dim, dim}, values = {v, n_kv_heads * dim, dim};
    const gearkv_allocator from = {take, give_back, NULL};
    gearkv_pool* pool = NULL;
    gearkv_cache* cache = NULL;
    gearkv_config config;
    gearkv_queries queries;
    gearkv_stats stats;
    gearkv_error error = {GEARKV_OK, ""};
    int i;
    stats.struct_size = sizeof(stats);
    for (i = 0; i < n_tokens * n_kv_heads * dim; ++i)
        k[i] = (float)sin(0.1 * i), v[i] = (float)cos(0.3 * i);
    for (i = 0; i < n_heads * dim; ++i)
        q[i] = 0.1f;

    gearkv_config_init(&config, sizeof(config));
    config.spec = "gear-4";
    config.n_layers = 1, config.n_kv_heads = n_kv_heads, config.key_dim = config.value_dim = dim;
    config.max_tokens = 4096;
    gearkv_queries_init(&queries, sizeof(queries));
    queries.data = q, queries.query_stride = n_heads * dim, queries.head_stride = dim;
    queries.n_queries = 1, queries.n_heads = n_heads, queries.scale = 0.125f;

    if (gearkv_pool_create(3 << 20, 0, &from, &pool, &error) == GEARKV_OK) {
        config.allocator = gearkv_pool_allocator(pool);
        if (gearkv_cache_create(&config, &cache, &error) == GEARKV_OK &&
            gearkv_cache_append(cache, 0, &keys, &values, n_tokens, NULL, &error) == GEARKV_OK &&
            gearkv_cache_compress(cache, 0, NULL, &error) == GEARKV_OK &&
            gearkv_cache_attend(cache, 0, &queries, out, n_heads * dim, NULL, &error) == GEARKV_OK)
            gearkv_cache_get_stats(cache, &stats, &error);
    }
    if (error.code != GEARKV_OK)
        fprintf(stderr, "%s: %s\n", gearkv_code_name(error.code), error.message);
    else
        printf("%.2f bits per element\n", stats.bits_per_element);
    gearkv_cache_destroy(cache);
    gearkv_pool_destroy(pool);
    return error.code != GEARKV_OK;
}
