// What an embedder writes: a small cache, a prompt compressed, one attention, and what it took.
#include <cstdio>
#include <memory>
#include <vector>

#include "gearkv/cache.hpp"

int main() {
    gearkv::CacheConfig config;
    config.n_layers = 1;
    config.n_kv_heads = 2;
    config.key_dim = config.value_dim = 64;
    config.max_tokens = 256;
    std::unique_ptr<gearkv::Executor> executor;
    std::unique_ptr<gearkv::Cache> cache;
    gearkv::Status status = gearkv::parse_spec("paper:gear-2", &config.spec);
    if (status.ok()) status = gearkv::create_executor(0, &executor);
    if (status.ok()) status = gearkv::Cache::create(config, &cache);
    std::vector<float> rows(128 * 2 * 64);
    for (std::size_t i = 0; i < rows.size(); ++i)
        rows[i] = static_cast<float>(i * 7919 % 101) / 50 - 1;
    const gearkv::Rows view = {rows.data(), 128, 64};
    if (status.ok()) status = cache->append(0, view, view, 128, *executor);
    if (status.ok()) status = cache->compress(0, *executor);
    std::vector<float> out(2 * 64);
    gearkv::Queries queries;
    queries.data = rows.data();
    queries.query_stride = 128;
    queries.head_stride = 64;
    queries.n_queries = 1;
    queries.n_heads = 2;
    queries.scale = 0.125f;
    if (status.ok()) status = cache->attend(0, queries, out.data(), out.size(), *executor);
    if (!status.ok()) {
        std::fprintf(stderr, "%s\n", status.message());
        return 1;
    }
    if (cache->stats().n_blocks != 2) {
        std::fprintf(stderr, "%llu blocks, expected one of keys and one of values\n",
                     static_cast<unsigned long long>(cache->stats().n_blocks));
        return 1;
    }
    std::printf("%.2f bits per element at level %s\n", cache->stats().bits_per_element,
                gearkv::level_name(cache->level()));
    return 0;
}
