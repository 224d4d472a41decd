/* Two versions of the library in one process: versions FIRST SECOND, two shared libraries. Each has a name of its own, says
 * its own version, and makes caches that the other one's attend like. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gearkv/gearkv.h"

enum { n_tokens = 300, dim = 64 };

static void* find(void* library, const char* name) {
    void* symbol = dlsym(library, name);
    if (symbol == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return symbol;
}
/* C has no cast from void* to functions. */
#define FUNCTION(library, name)                        \
    __typeof__(&name) my_##name;                       \
    do {                                               \
        void* symbol = find(library, #name);           \
        memcpy(&my_##name, &symbol, sizeof(symbol));   \
    } while (0)

static void attend(void* library, float* out) {
    static float rows[n_tokens * dim];
    const gearkv_rows view = {rows, dim, dim};
    gearkv_executor* executor = NULL;
    gearkv_cache* cache = NULL;
    gearkv_error error = {GEARKV_OK, ""};
    gearkv_config config;
    gearkv_queries queries;
    int i;
    FUNCTION(library, gearkv_config_init);
    FUNCTION(library, gearkv_queries_init);
    FUNCTION(library, gearkv_executor_create);
    FUNCTION(library, gearkv_executor_destroy);
    FUNCTION(library, gearkv_cache_create);
    FUNCTION(library, gearkv_cache_append);
    FUNCTION(library, gearkv_cache_compress);
    FUNCTION(library, gearkv_cache_attend);
    FUNCTION(library, gearkv_cache_destroy);
    for (i = 0; i < n_tokens * dim; ++i)
        rows[i] = (float)(i * 7919 % 101) / 50 - 1;
    my_gearkv_config_init(&config, sizeof(config));
    config.spec = "gear-2";
    config.n_layers = config.n_kv_heads = 1;
    config.key_dim = config.value_dim = dim;
    config.max_tokens = 1000;
    my_gearkv_queries_init(&queries, sizeof(queries));
    queries.data = rows;
    queries.n_queries = queries.n_heads = 1;
    queries.scale = 0.125f;
    if (my_gearkv_executor_create(2, &executor, &error) != GEARKV_OK ||
        my_gearkv_cache_create(&config, &cache, &error) != GEARKV_OK ||
        my_gearkv_cache_append(cache, 0, &view, &view, n_tokens, executor, &error) != GEARKV_OK ||
        my_gearkv_cache_compress(cache, 0, executor, &error) != GEARKV_OK ||
        my_gearkv_cache_attend(cache, 0, &queries, out, dim, executor, &error) != GEARKV_OK) {
        fprintf(stderr, "%s\n", error.message);
        exit(1);
    }
    my_gearkv_cache_destroy(cache);
    my_gearkv_executor_destroy(executor);
}

int main(int argc, char** argv) {
    float out[2][dim];
    const char* version[2];
    int i;
    if (argc != 3) return 2;
    for (i = 0; i < 2; ++i) {
        /* The second with all of the first's symbols in sight. */
        void* library = dlopen(argv[1 + i], RTLD_NOW | (i == 0 ? RTLD_GLOBAL : RTLD_LOCAL));
        if (library == NULL) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        FUNCTION(library, gearkv_version);
        version[i] = my_gearkv_version();
        attend(library, out[i]);
    }
    printf("%s and %s\n", version[0], version[1]);
    if (strcmp(version[0], version[1]) == 0 || memcmp(out[0], out[1], sizeof(out[0])) != 0) return 1;
    return 0;
}
