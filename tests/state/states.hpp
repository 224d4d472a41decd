// Caches that went through a life before they are saved.
#pragma once

#include <cmath>

#include "gearkv/state.hpp"
#include "support/temporary_file.hpp"
#include "unit/caches.hpp"

namespace gearkv::testing {

inline constexpr std::size_t state_heads = 2, state_dim = 24, state_source = 1500;

struct StateSource {
    Tensor keys = gaussian(state_source, state_heads, state_dim, 1),
           values = gaussian(state_source, state_heads, state_dim, 2);
};
inline const StateSource& state_source_tokens() {
    static const StateSource source;
    return source;
}

inline const std::vector<double>& state_frequencies() {
    static const std::vector<double> all = [] {
        std::vector<double> x(state_dim / 2);
        for (std::size_t i = 0; i < x.size(); ++i)
            x[i] = std::pow(100.0, -static_cast<double>(i) / 12.0);
        return x;
    }();
    return all;
}

inline CacheConfig state_config(const std::string& spec, std::uint32_t n_layers = 2) {
    CacheConfig config = make_config(spec, state_heads, state_dim, state_dim, 1200, n_layers);
    config.rope = {state_frequencies().data(), state_dim / 2, true};
    config.seed = 7;
    return config;
}

inline void feed(Cache* cache, std::size_t first, std::size_t n) {
    const StateSource& source = state_source_tokens();
    for (std::uint32_t layer = 0; layer < cache->config().n_layers; ++layer)
        REQUIRE(append(cache, source.keys, source.values, first, n, layer).ok());
}

inline std::vector<float> attend_layer(Cache* cache, std::uint32_t layer) {
    static const Tensor q = gaussian(1, 2 * state_heads, state_dim, 3);
    const std::vector<float> data = to_floats(q);
    std::vector<float> out(2 * state_heads * state_dim);
    const Status status =
        cache->attend(layer, queries_of(data, q, true), out.data(), out.size(), serial_executor());
    INFO(status.message());
    REQUIRE(status.ok());
    return out;
}

// Blocks whole, cut and split, tokens in the buffer, and a unit on its way to a block.
inline std::unique_ptr<Cache> lived_cache(const CacheConfig& config) {
    auto cache = make_cache(config);
    feed(cache.get(), 0, 400);
    for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
        (void)attend_layer(cache.get(), layer);
        REQUIRE(cache->compress(layer, serial_executor()).ok());
    }
    REQUIRE(cache->truncate(330).ok());
    REQUIRE(cache->remove(140, 30).ok());
    feed(cache.get(), 400, 300);
    REQUIRE(cache->remove(300, 70).ok());
    for (std::size_t t = 700; t < 705; ++t) {
        feed(cache.get(), t, 1);
        (void)attend_layer(cache.get(), 0);
    }
    REQUIRE(cache->forget_before(config.n_layers - 1, 290).ok());
    return cache;
}

inline Status load(const char* path, const CacheConfig& config, std::unique_ptr<Cache>* out,
                   const LoadOptions& options = {}) {
    return load_state(path, config, options, serial_executor(), out);
}

}  // namespace gearkv::testing
