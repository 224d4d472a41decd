// Caches for tests: made from a SPEC, fed from tensors, and compared with attention in double precision.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "gearkv/cache.hpp"
#include "support/catch.hpp"
#include "support/tensors.hpp"

namespace gearkv::testing {

inline KvSpec spec_of(const char* text) {
    KvSpec spec;
    const Status status = parse_spec(text, &spec);
    INFO(text << ": " << status.message());
    REQUIRE(status.ok());
    return spec;
}

inline CacheConfig make_config(const std::string& spec, std::uint32_t n_kv_heads, std::uint32_t key_dim,
                               std::uint32_t value_dim, std::uint64_t max_tokens = 1024,
                               std::uint32_t n_layers = 1) {
    CacheConfig config;
    config.n_layers = n_layers;
    config.n_kv_heads = n_kv_heads;
    config.key_dim = key_dim;
    config.value_dim = value_dim;
    config.max_tokens = max_tokens;
    config.spec = spec_of(spec.c_str());
    return config;
}

inline std::unique_ptr<Cache> make_cache(const CacheConfig& config) {
    std::unique_ptr<Cache> cache;
    const Status status = Cache::create(config, &cache);
    INFO(status.message());
    REQUIRE(status.ok());
    return cache;
}

// Appends tokens [first, first + n) of whole tensors.
inline Status append(Cache* cache, const Tensor& keys, const Tensor& values, std::size_t first, std::size_t n,
                     std::uint32_t layer = 0, Executor& executor = serial_executor()) {
    const auto slice = [&](const Tensor& x) {
        const auto from = x.data.begin() + static_cast<std::ptrdiff_t>(first * x.n_heads * x.dim);
        return std::vector<float>(
            from, from + static_cast<std::ptrdiff_t>(std::max<std::size_t>(n, 1) * x.n_heads * x.dim));
    };
    const std::vector<float> k = slice(keys), v = slice(values);
    const Rows key_rows = rows_of(k, keys.n_heads, keys.dim),
               value_rows = rows_of(v, values.n_heads, values.dim);
    return cache->append(layer, key_rows, value_rows, static_cast<std::uint32_t>(n), executor);
}

inline Queries queries_of(const std::vector<float>& data, const Tensor& q, bool causal) {
    Queries queries;
    queries.data = data.data();
    queries.query_stride = q.n_heads * q.dim;
    queries.head_stride = q.dim;
    queries.n_queries = static_cast<std::uint32_t>(q.n_tokens);
    queries.n_heads = static_cast<std::uint32_t>(q.n_heads);
    queries.scale = 1.0f / std::sqrt(static_cast<float>(q.dim));
    queries.causal = causal;
    return queries;
}

inline Tensor attend(Cache* cache, const Tensor& q, std::size_t value_dim, bool causal,
                     Executor& executor = serial_executor()) {
    const std::vector<float> data = to_floats(q);
    std::vector<float> out(q.n_tokens * q.n_heads * value_dim, -1.0f);
    const Status status = cache->attend(0, queries_of(data, q, causal), out.data(), out.size(), executor);
    INFO(status.message());
    REQUIRE(status.ok());
    return to_tensor(out.data(), q.n_tokens, q.n_heads, value_dim);
}

// Tokens for tests that need many and compare them with what comes out.
inline constexpr std::size_t source_heads = 2, source_dim = 64, source_tokens = 4000;
struct Source {
    Tensor keys = gaussian(source_tokens, source_heads, source_dim, 1);
    Tensor values = gaussian(source_tokens, source_heads, source_dim, 2);
};
inline const Source& source() {
    static const Source tokens;
    return tokens;
}

// Of a rotary embedding.
inline const std::vector<double>& frequencies() {
    static const std::vector<double> all = [] {
        std::vector<double> x(source_dim / 2);
        for (std::size_t i = 0; i < x.size(); ++i)
            x[i] = std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(source_dim));
        return x;
    }();
    return all;
}

inline CacheConfig rope_config(const std::string& spec, bool interleaved, std::uint64_t max_tokens = 900) {
    CacheConfig config = make_config(spec, source_heads, source_dim, source_dim, max_tokens);
    config.rope = {frequencies().data(), source_dim / 2, interleaved};
    return config;
}

// What the cache holds, as tensors.
inline std::pair<Tensor, Tensor> read_all(Cache* cache) {
    const CacheConfig& config = cache->config();
    const std::size_t n = cache->n_tokens(0);
    std::vector<float> k(n * config.n_kv_heads * config.key_dim), v(n * config.n_kv_heads * config.value_dim);
    REQUIRE(cache->read(0, 0, n, k.data(), k.size(), v.data(), v.size()).ok());
    return {to_tensor(k.data(), n, config.n_kv_heads, config.key_dim),
            to_tensor(v.data(), n, config.n_kv_heads, config.value_dim)};
}

// The cache holds the bytes that were to be expected of so many tokens, the prompt among them.
inline void check_planned(const Cache& cache, std::uint64_t n_tokens, std::uint64_t n_prompt) {
    CacheBytes planned;
    REQUIRE(bytes_required(cache.config(), n_tokens, n_prompt, &planned).ok());
    const CacheBytes found = cache.stats().bytes;
    CHECK(planned.keys.bytes == found.keys.bytes);
    CHECK(planned.values.bytes == found.values.bytes);
    // Those of windows come and go.
    CHECK((cache.config().windows == nullptr ? planned.buffer == found.buffer
                                             : planned.buffer >= found.buffer));
}

// Attention of the cache against double-precision attention on what it holds.
inline double attention_error(Cache* cache, const Tensor& q, bool causal) {
    const auto [k, v] = read_all(cache);
    const Tensor expected = reference::attend(q, k, v, 1.0 / std::sqrt(static_cast<double>(q.dim)), causal);
    return reference::relative_error(expected, attend(cache, q, v.dim, causal));
}

// What attention_error may be: factors of integer dot products are rounded to 15 bits (noise_test.cpp has
// more).
inline double attention_tolerance(const Cache& cache) {
    return cache.level() == Level::scalar ? 2e-5 : 1e-3;
}

// Counts what an allocator has given out; refuses after `budget` calls.
struct CountingMemory {
    std::uint64_t held = 0, peak = 0;
    std::int64_t budget = INT64_MAX;
    static void* allocate(void* context, std::size_t n, std::size_t alignment) {
        auto* self = static_cast<CountingMemory*>(context);
        if (self->budget-- <= 0) return nullptr;
        self->held += n;
        self->peak = std::max(self->peak, self->held);
        return std::aligned_alloc(alignment < 64 ? 64 : alignment, (n + 63) / 64 * 64);
    }
    static void release(void* context, void* p, std::size_t n) {
        static_cast<CountingMemory*>(context)->held -= n;
        std::free(p);
    }
    Allocator allocator() { return {allocate, release, this}; }
};

}  // namespace gearkv::testing
