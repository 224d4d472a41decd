// What attention on a layer loses when one tensor is compressed at one rate: what rates are chosen by.
#pragma once

#include "cache/rates.hpp"
#include "format/trellis.hpp"

namespace gearkv {

inline constexpr std::uint32_t most_tokens = 1024;       // that are compressed to measure
inline constexpr std::uint32_t n_rates = max_key_width;  // 1 to 6 bits; values to 4

inline std::uint32_t dim_of(TensorKind kind, const CacheConfig& config) {
    return kind == TensorKind::key ? config.key_dim : config.value_dim;
}
constexpr std::uint32_t most_rate(TensorKind kind) {
    return kind == TensorKind::key ? max_key_width : max_value_width;
}

// A block of n_tokens of a layer. No shape of a cache is too large for one of most_tokens or of a buffer.
BlockHeader lay_out(TensorKind kind, const CacheConfig& config, std::uint32_t n_tokens, float rate,
                    bool with_profile) noexcept;

// Squared errors of one head over its query rows, as shares of the squared output of the layer.
struct Squares {
    double log_error[2][n_rates];  // by tensor
};

// Working memory of a measure.
struct MeasureMemory {
    void* block;
    void* compress;
    unsigned char* attend;  // [head] of slot_bytes
    std::uint64_t slot_bytes;
    float* exact;  // [head][row][value_dim]
    float* found;
};
// Places it in a run of memory, and returns the bytes; with a null base it only counts.
std::uint64_t place_memory(const CacheConfig& config, std::uint64_t n_rows, std::uint64_t n_tokens,
                           void* base, MeasureMemory* out) noexcept;

// Writes the squares of the heads of a layer without blocks, at each rate of each tensor alone.
void measure_layer(const CacheContext& context, const LayerStream& layer, const QuerySample& sample,
                   const MeasureMemory& memory, Squares* squares, Executor& executor) noexcept;

}  // namespace gearkv
