// Splits a GGUF file into parts and writes them side by side.
#pragma once

#include <cstdio>
#include <fstream>

#include "support/gguf_writer.hpp"

namespace gearkv::test {

// Metadata in the first part, tensors dealt out in runs; without any in the first if `only_metadata_first`.
inline std::vector<GgufWriter> split_parts(const GgufWriter& whole, std::size_t n,
                                           bool only_metadata_first = false) {
    std::vector<GgufWriter> parts(n);
    parts[0].values = whole.values;
    for (std::size_t i = 0; i < n; i++) {
        parts[i].alignment = whole.alignment;
        parts[i].set("split.no", static_cast<std::uint16_t>(i));
        parts[i].set("split.count", static_cast<std::uint16_t>(n));
        parts[i].set("split.tensors.count", static_cast<std::int32_t>(whole.tensors.size()));
    }
    const std::size_t n_before = only_metadata_first ? 1 : 0;
    for (std::size_t i = 0; i < whole.tensors.size(); i++) {
        parts[n_before + i * (n - n_before) / whole.tensors.size()].tensors.push_back(whole.tensors[i]);
    }
    return parts;
}

// "FOLDER/NAME-00002-of-00003.gguf"
inline std::string part_path(const std::string& prefix, std::size_t i, std::size_t n) {
    char suffix[64];
    std::snprintf(suffix, sizeof(suffix), "-%05zu-of-%05zu.gguf", i + 1, n);
    return prefix + suffix;
}

inline void write_file(const std::string& path, const Bytes& bytes) {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

inline void write_parts(const std::string& prefix, const std::vector<GgufWriter>& parts) {
    for (std::size_t i = 0; i < parts.size(); i++) {
        write_file(part_path(prefix, i, parts.size()), parts[i].write());
    }
}

}  // namespace gearkv::test
