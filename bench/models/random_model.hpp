// Models of random weights, as GGUF files of public shapes: what a step of them takes depends on the shape
// and the type alone.
#pragma once

#include <cstdint>
#include <ostream>
#include <span>

#include "decoder/gguf/tensor_type.hpp"

namespace gearkv::bench {

// Of the family llama, with the embedding as the output. All widths are multiples of 256, the longest block.
struct RandomShape {
    const char* name;
    std::uint32_t n_embd, n_layers, n_heads, n_kv_heads, head_dim, n_ff, n_vocab;
};

// From "tiny", for tests, to "3B".
std::span<const RandomShape> random_shapes();

// All matrices of this type, norms of ones. Blocks are random bits whose scales are of a model's size, so
// that all numbers are finite; a seed names a file, on every machine. False when `out` fails.
bool write_random_model(std::ostream& out, const RandomShape& shape, WeightType type, std::uint64_t seed);

}  // namespace gearkv::bench
