// Attention on keys, values and queries of a model, and what reading less of them saves and costs.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace gearkv::bench {

struct DumpOptions {
    // Of _k.npy, _v.npy and _q.npy, [layers, tokens, heads, channels], as bench/dump writes.
    std::vector<std::string> prefixes;
    std::vector<std::string> specs, levels;
    std::vector<unsigned> threads;
    std::size_t n_rounds = 15;
    bool warm = false, million = false, processor = false;
    std::string pool;
};

// Prints the tables, and adds them to the rows. False, with a word on standard error, if there are no dumps.
bool time_dumps(const DumpOptions& options, nlohmann::json* rows);

}  // namespace gearkv::bench
