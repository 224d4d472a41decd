// A second reader of state files, slow and short, written from the drawings in src/format/state.hpp,
// block.hpp and trellis.hpp alone. It shares nothing with the library: where the two differ, one of them or a
// drawing is wrong.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tiny {

struct Layer {
    std::uint32_t n_heads = 0;  // 0: a layer without keys
    std::uint32_t key_dim = 0;
    std::uint32_t value_dim = 0;
    std::uint64_t n_tokens = 0;  // those forgotten included
    std::uint64_t n_sinks = 0;
    std::uint64_t n_forgotten = 0;
    std::uint64_t n_buffered = 0;
    std::uint64_t n_queries = 0;
    std::vector<float> keys;    // [token][head][dim], as in the file: not turned by the shifts
    std::vector<float> values;  // likewise; NaN for forgotten tokens, in both
    std::vector<std::int64_t> shifts;
    std::uint64_t n_pairs = 0;  // by which they turn
    bool interleaved = false;
    std::vector<double> frequencies;  // empty: those that are summed up in the header
};

struct State {
    bool rates_chosen = false;
    std::string spec;
    std::vector<unsigned char> extra;
    std::vector<Layer> layers;
    std::vector<std::string> seen;  // what had to be known to read this file, such as "value trellis"
};

std::uint64_t xxh64(const unsigned char* data, std::size_t n);

// Throws std::runtime_error for a file that is not as drawn.
State decode(const std::vector<unsigned char>& file);

}  // namespace tiny
