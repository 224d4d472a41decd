// Attention on keys, values and queries of a model, and what reading less of them saves and costs.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace gearkv::bench {

struct DumpOptions {
    std::string
        prefix;  // of _k.npy, _v.npy and _q.npy, [layers, tokens, heads, channels], as bench/dump writes
    std::vector<std::string> specs, levels;
    std::vector<unsigned> threads;
    std::size_t n_rounds = 15;
    bool warm = false;
    std::string json_path;
};

// Prints the tables. Returns what main returns.
int time_dump(const DumpOptions& options);

}  // namespace gearkv::bench
