// What attention on a layer loses when one tensor is compressed at one rate: what rates are chosen by.
#pragma once

#include "cache/rates.hpp"
#include "format/trellis.hpp"

namespace gearkv {

inline constexpr std::uint32_t most_tokens = 1024;       // that are compressed to measure
inline constexpr std::uint32_t exact_tokens = 64;        // behind them, before every query
inline constexpr std::uint32_t n_rates = max_key_width;  // 1 to 6 bits; values to 4

constexpr std::uint32_t most_rate(TensorKind kind) {
    return kind == TensorKind::key ? max_key_width : max_value_width;
}

// A block of n_tokens of a layer. No shape of a cache is too large for one of most_tokens or of a buffer.
BlockHeader lay_out(TensorKind kind, const LayerDims& dims, std::uint32_t n_tokens, float rate,
                    bool with_profile) noexcept;

// Squared errors of one head over its query rows, as shares of the squared output of the layer.
struct Squares {
    double log_error[2][n_rates];  // by tensor
};

// Working memory of a measure, and the bytes of its parts, all multiples of block_alignment.
struct MeasureMemory {
    void* block;
    void* compress;
    unsigned char* attend;  // [head] of a slot
    float* exact;           // [head][row][value_dim]
    float* found;
};
struct MeasureBytes {
    std::uint64_t block = 0, compress = 0, attend = 0, out = 0;

    // As much as either of them.
    void include(const MeasureBytes& other) noexcept;
    std::uint64_t sum() const noexcept { return block + compress + attend + 2 * out; }
};
// Whether the queries see enough of a layer with tokens and queries: of fewer, errors are those of the few,
// or none at all. And, through a window, only tokens that themselves no longer saw the first ones: what those
// before them lose tells nothing of later ones.
bool tells_enough(std::uint32_t window, const LayerStream& layer, const QuerySample& sample) noexcept;
MeasureBytes bytes_to_measure(const LayerDims& dims, std::uint32_t window, const LayerStream& layer,
                              const QuerySample& sample) noexcept;
// In a run of so many bytes.
MeasureMemory place_memory(const MeasureBytes& bytes, unsigned char* base) noexcept;

// Writes the squares of the heads of a layer without blocks, at each rate of each tensor alone. The cache as
// it is used: the last tokens are exact, and queries tell the widths of keys.
void measure_layer(const CacheContext& context, std::uint32_t index, LayerStream& layer,
                   const QuerySample& sample, const MeasureMemory& memory, Squares* squares,
                   Executor& executor) noexcept;

}  // namespace gearkv
