// The JSON file of a speed benchmark.
#pragma once

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace gearkv::bench {

// Nothing for an empty path. False, with a message on stderr, when it cannot be written.
inline bool write_json(const std::string& path, const nlohmann::json& json) {
    if (path.empty() || std::ofstream(path) << json.dump(2) << '\n') return true;
    std::fprintf(stderr, "cannot write %s\n", path.c_str());
    return false;
}

}  // namespace gearkv::bench
