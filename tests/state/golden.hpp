// The golden files: their names, configurations and outputs.
#pragma once

#include "states.hpp"

namespace gearkv::testing {

inline std::string golden(const std::string& name) {
    return std::string(GEARKV_DATA_DIR) + "/state/" + name;
}

struct Golden {
    const char *name, *spec;
};
inline constexpr Golden accepted[] = {
    {"gear-2", "gear-2"},        {"paper-gear-4", "paper:gear-4:nb=64"},
    {"auto", "auto:3"},          {"kcvt", "gear-kcvt-3:nb=64"},
    {"q8", "q8:recent=20"},      {"f16", "f16"},
    {"mixed", "k=gear-4;v=f32"}, {"gear-1", "gear-1"}};  // this one's blocks are of version 2

inline CacheConfig golden_config(const char* spec) {
    CacheConfig config = make_config(spec, 1, 8, 16, 400);
    static const double frequencies[] = {1.0, 0.1, 0.01, 0.001};
    config.rope = {frequencies, 4, false};
    return config;
}

// Of version 2: layers of different shapes, one without keys.
inline CacheConfig shapes_config() {
    static const LayerDims dims[] = {{1, 8, 16}, {0, 0, 0}, {2, 16, 8}};
    CacheConfig config = golden_config("gear-3;layers-2=q8");
    config.n_layers = 3;
    config.n_kv_heads = config.key_dim = config.value_dim = 0;
    config.dims = dims;
    return config;
}

// One query for each KV head.
inline std::vector<float> golden_outputs(Cache* cache, std::uint32_t layer = 0) {
    const float query[16] = {1.0f, -0.5f, 0.25f, 2.0f, 0.0f, -1.0f, 0.75f, 0.1f,
                             0.5f, -2.0f, 0.0f,  1.0f, 0.1f, -0.3f, 1.25f, 0.6f};
    const LayerDims dims = cache->config().dims_of(layer);
    std::vector<float> out(16);
    const Queries queries = {query, 0, 0, 1, dims.n_kv_heads, 0.5f, true};
    REQUIRE(cache->attend(layer, queries, out.data(), out.size(), serial_executor()).ok());
    return out;
}

inline constexpr Code rejected[] = {Code::not_a_state, Code::other_byte_order, Code::bad_version,
                                    Code::truncated,   Code::damaged,          Code::corrupt_state,
                                    Code::other_codec, Code::other_model};

}  // namespace gearkv::testing
