#include <cmath>
#include <cstdio>
#include <memory>
#include <vector>

#include "gearkv/cache.hpp"

int main() {
    constexpr std::uint32_t n_tokens = 1000, n_heads = 8, n_kv_heads = 2, dim = 64;
    gearkv::CacheConfig config;
    config.n_layers = 1;
    config.n_kv_heads = n_kv_heads;
    config.key_dim = config.value_dim = dim;
    config.max_tokens = 4096;
    gearkv::Status status = gearkv::parse_spec("gear-4", &config.spec);
    std::unique_ptr<gearkv::Cache> cache;
    if (status.ok()) status = gearkv::Cache::create(config, &cache);

    std::vector<float> k(n_tokens * n_kv_heads * dim), v(k.size()), q(n_heads * dim, 0.1f),
        out(n_heads * dim);
    for (std::size_t i = 0; i < k.size(); ++i)
        k[i] = std::sin(0.1f * float(i)), v[i] = std::cos(0.3f * float(i));
    const gearkv::Rows keys = {k.data(), n_kv_heads * dim, dim};  // data, token stride, head stride
    const gearkv::Rows values = {v.data(), n_kv_heads * dim, dim};
    const gearkv::Queries queries = {q.data(), n_heads * dim, dim, 1, n_heads, 0.125f, true};

    gearkv::Executor& executor = gearkv::serial_executor();
    if (status.ok()) status = cache->append(0, keys, values, n_tokens, executor);
    if (status.ok()) status = cache->compress(0, executor);  // or leave it to the next append
    if (status.ok()) status = cache->attend(0, queries, out.data(), out.size(), executor);
    if (!status.ok()) return std::printf("%s\n", status.message()), 1;
    std::printf("%.2f bits per element\n", cache->stats().bits_per_element);
}
