// GEAR as the paper writes it: plain loops over [tokens, heads, dim], for tests and experiments.
// The block codec is held against it; it shares no code with the block codec.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gearkv/codec.hpp"

namespace gearkv::reference {

// [tokens, heads, dim], contiguous.
struct Tensor {
    std::size_t n_tokens = 0, n_heads = 0, dim = 0;
    std::vector<double> data;

    double& at(std::size_t t, std::size_t h, std::size_t c) { return data[(t * n_heads + h) * dim + c]; }
    double at(std::size_t t, std::size_t h, std::size_t c) const { return data[(t * n_heads + h) * dim + c]; }
};

struct Options {
    TensorSpec spec;
    std::size_t rank = 0;
    int n_passes = 3;
    std::uint64_t seed = 0;
    bool half_metadata = false;  // round scales, minima and outliers to fp16, as the stored form does
};

struct Result {
    Tensor reconstruction;            // Q + L + S
    std::vector<std::uint8_t> codes;  // [tokens, heads, dim]
    std::vector<bool> outlier;        // [tokens, heads, dim]
    Tensor residual;                  // X - Q - S, what the low rank part approximates
};

Result compress(const Tensor& x, TensorKind kind, const Options& options);

// |x - y|_F / |x|_F
double relative_error(const Tensor& x, const Tensor& y);

// softmax(scale q K^T) V in double; q is [queries, q heads, dim], head h reads KV head h / (q heads / KV
// heads). With causal, the last query sees all tokens, the one before all but the last.
Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, double scale, bool causal);

}  // namespace gearkv::reference
