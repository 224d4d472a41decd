// What the formats are measured on: real keys, values and queries of the bundled model, and seeded families.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "dense_attention.hpp"

namespace gearkv::quality {

// One layer. Keys and values [n_tokens, n_kv_heads, dim], queries [n_queries, n_heads, dim], contiguous.
struct Layer {
    AttentionShape shape;
    std::vector<float> keys, values, queries;
    std::vector<float> all_queries;  // of every token, for caches that look at them; or none
    std::size_t window = 0;          // above 0: of what a query may see, only the last so many
    std::size_t n_sinks = 0;         // first tokens that every format keeps as they are
};

struct Dataset {
    std::string name;         // "text", "sinks-64", ...
    bool structured = false;  // has what low rank, outliers or per-channel scales are for
    bool real = false;
    std::vector<Layer> layers;
};

// The dumps text_{k,v,q}.npy and recall_{k,v,q}.npy of a folder: four layers each, the last 256 queries,
// causal.
Dataset load_dump(const std::string& folder, const std::string& name);
// A dump of bench/dump with the queries of all tokens: its layers with their scales and windows, which are in
// PREFIX.json (1/sqrt(d) and none without that file), the last 128 queries, causal.
Dataset load_model_dump(const std::string& prefix);
// The conformance tensors of a folder: "gauss" or "outch".
Dataset load_conformance(const std::string& folder, const std::string& name);
// Gaussian, key channel outliers, key bias as in Qwen2, attention sinks, heavy-tailed values; dim 64 and 128.
std::vector<Dataset> make_families();

}  // namespace gearkv::quality
