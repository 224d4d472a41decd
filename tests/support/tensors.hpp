// Tensors for tests: seeded data, and the way between the codec's blocks and the reference's tensors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "codec/reference.hpp"
#include "gearkv/codec.hpp"

namespace gearkv::testing {

using reference::Tensor;

inline Tensor zeros(std::size_t n_tokens, std::size_t n_heads, std::size_t dim) {
    return {n_tokens, n_heads, dim, std::vector<double>(n_tokens * n_heads * dim)};
}

// N(0, 1), rounded to float.
inline Tensor gaussian(std::size_t n_tokens, std::size_t n_heads, std::size_t dim, unsigned seed) {
    Tensor x = zeros(n_tokens, n_heads, dim);
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (double& v : x.data)
        v = normal(random);
    return x;
}

// Rank-4 structure, a few loud channels and rare loud entries: what GEAR's parts are for.
inline Tensor structured(std::size_t n_tokens, std::size_t n_heads, std::size_t dim, unsigned seed) {
    Tensor x = gaussian(n_tokens, n_heads, dim, seed);
    const Tensor a = gaussian(n_tokens, n_heads, 4, seed + 1);
    const Tensor p = gaussian(dim, n_heads, 4, seed + 2);
    std::mt19937 random(seed + 3);
    for (std::size_t t = 0; t < n_tokens; ++t) {
        for (std::size_t h = 0; h < n_heads; ++h) {
            for (std::size_t c = 0; c < dim; ++c) {
                double v = 0.3 * x.at(t, h, c);
                for (std::size_t r = 0; r < 4; ++r)
                    v += a.at(t, h, r) * p.at(c, h, r);
                if (c % 37 == 5) v *= 12;
                if (random() % 200 == 0) v *= 8;
                x.at(t, h, c) = static_cast<float>(v);
            }
        }
    }
    return x;
}

inline std::vector<float> to_floats(const Tensor& x) {
    return {x.data.begin(), x.data.end()};
}

inline Tensor to_tensor(const float* data, std::size_t n_tokens, std::size_t n_heads, std::size_t dim) {
    return {n_tokens, n_heads, dim, std::vector<double>(data, data + n_tokens * n_heads * dim)};
}

inline Rows rows_of(const std::vector<float>& data, std::size_t n_heads, std::size_t dim) {
    return {data.data(), n_heads * dim, dim};
}

// Bytes aligned as blocks want them.
struct AlignedFree {
    void operator()(void* p) const { std::free(p); }
};
struct AlignedBytes {
    explicit AlignedBytes(std::size_t n) : n_bytes(n), data(std::aligned_alloc(64, (n + 63) / 64 * 64)) {}
    std::size_t n_bytes;
    std::unique_ptr<void, AlignedFree> data;
    unsigned char* bytes() const { return static_cast<unsigned char*>(data.get()); }
};

// A compressed block of the tensor; `status` is that of the first call that failed.
struct Block {
    Status status;
    AlignedBytes bytes{0};
    BlockBytes parts;
};

inline Block compress(const Tensor& x, TensorKind kind, const BlockOptions& options,
                      Executor& executor = serial_executor()) {
    Block block;
    const BlockShape shape = {kind, static_cast<std::uint32_t>(x.n_tokens),
                              static_cast<std::uint32_t>(x.n_heads), static_cast<std::uint32_t>(x.dim)};
    block.status = block_bytes(shape, options, &block.parts);
    if (!block.status.ok()) return block;
    block.bytes = AlignedBytes(block.parts.bytes);
    const std::vector<float> floats = to_floats(x);
    block.status = compress_block(block.bytes.bytes(), block.parts.bytes, rows_of(floats, x.n_heads, x.dim),
                                  shape, options, executor);
    return block;
}

inline Tensor decompress(const Block& block, std::size_t n_tokens, std::size_t n_heads, std::size_t dim) {
    std::vector<float> out(n_tokens * n_heads * dim);
    const Status status = decompress_block(out.data(), out.size(), block.bytes.bytes(), block.parts.bytes);
    if (!status.ok()) return zeros(n_tokens, n_heads, dim);
    return to_tensor(out.data(), n_tokens, n_heads, dim);
}

inline TensorSpec make_spec(Backbone backbone, std::uint8_t bits, float sparsity = 0.0f,
                            std::uint16_t group = 64) {
    TensorSpec spec;
    spec.backbone = backbone;
    spec.bits = bits;
    spec.group = group;
    spec.sparsity = sparsity;
    return spec;
}

inline BlockOptions make_options(const TensorSpec& spec, std::uint32_t rank = 0, std::uint64_t seed = 0) {
    BlockOptions options;
    options.spec = spec;
    options.rank = rank;
    options.seed = seed;
    return options;
}

}  // namespace gearkv::testing
