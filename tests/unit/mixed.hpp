// Caches whose layers differ in shape, and for each layer a cache whose layers all have its shape: what is
// done to a layer of the one and of the other comes to the same bits.
#pragma once

#include "caches.hpp"

namespace gearkv::testing {

// Grouped and not, key and value heads of different sizes, one without keys of its own, one small and one
// large.
inline constexpr LayerDims mixed_dims[] = {{2, 64, 64}, {1, 128, 96}, {0, 0, 0}, {3, 32, 40}, {2, 64, 64}};
inline constexpr std::uint32_t mixed_layers = 5;
inline constexpr std::uint32_t n_shared = 2;  // query heads of a KV head

inline CacheConfig mixed_config(const std::string& spec, std::uint64_t max_tokens = 1200) {
    CacheConfig config = make_config(spec, 0, 0, 0, max_tokens, mixed_layers);
    config.dims = mixed_dims;
    return config;
}

// All layers as one of them.
inline CacheConfig alike_config(const CacheConfig& mixed, std::uint32_t layer) {
    CacheConfig config = mixed;
    config.dims = nullptr;
    config.n_kv_heads = mixed.dims[layer].n_kv_heads;
    config.key_dim = mixed.dims[layer].key_dim;
    config.value_dim = mixed.dims[layer].value_dim;
    return config;
}

// Tokens of any shape: a stretch of one stream of numbers.
inline const std::vector<float>& mixed_source() {
    static const std::vector<float> all = to_floats(gaussian(4096, 8, 64, 5));
    return all;
}

inline Status append_mixed(Cache* cache, std::uint32_t layer, std::size_t first, std::size_t n,
                           Executor& executor = serial_executor()) {
    const LayerDims dims = cache->config().dims_of(layer);
    const auto rows = [&](std::size_t dim, std::size_t offset) {
        const std::size_t row = std::max<std::size_t>(dims.n_kv_heads * dim, 1);
        return Rows{mixed_source().data() + offset + first * row, row, dim};
    };
    return cache->append(layer, rows(dims.key_dim, 7 * layer), rows(dims.value_dim, 70000 + 11 * layer),
                         static_cast<std::uint32_t>(n), executor);
}

inline Queries mixed_queries(const LayerDims& dims, std::size_t first, std::size_t n) {
    Queries queries;
    queries.n_heads = n_shared * std::max(dims.n_kv_heads, 1u);
    queries.head_stride = dims.key_dim;
    queries.query_stride = queries.n_heads * queries.head_stride;
    queries.data = mixed_source().data() + 900000 + first * queries.query_stride;
    queries.n_queries = static_cast<std::uint32_t>(n);
    queries.scale = 0.2f;
    return queries;
}

inline Status attend_mixed(Cache* cache, std::uint32_t layer, std::size_t first, std::size_t n,
                           std::vector<float>* out, Executor& executor = serial_executor()) {
    const LayerDims dims = cache->config().dims_of(layer);
    const Queries queries = mixed_queries(dims, first, n);
    out->assign(n * queries.n_heads * std::max(dims.value_dim, 1u), -1.0f);
    return cache->attend(layer, queries, out->data(), out->size(), executor);
}

inline bool has_keys(std::uint32_t layer) {
    return mixed_dims[layer].has_keys();
}

// A token or more for all layers that take some.
inline void feed_mixed(Cache* cache, std::size_t first, std::size_t n) {
    for (std::uint32_t layer = 0; layer < cache->config().n_layers; ++layer) {
        if (cache->config().dims_of(layer).has_keys()) REQUIRE(append_mixed(cache, layer, first, n).ok());
    }
}

}  // namespace gearkv::testing
