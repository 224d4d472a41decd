// What follows from a configuration alone: when tokens fill a unit, what a window shows, and how much room
// that takes.
#pragma once

#include "attention/attend.hpp"
#include "format/block.hpp"
#include "gearkv/cache.hpp"

namespace gearkv {

// Longest run of tokens that is compressed as one unit; a longer prompt makes several.
inline constexpr std::uint32_t max_unit_tokens = 4096;

inline constexpr std::uint32_t max_layers = 4096;

// Whether all layers have one shape, be it told once or of each.
bool is_uniform(const CacheConfig& config) noexcept;
inline std::uint32_t dim_of(const LayerDims& dims, TensorKind kind) noexcept {
    return kind == TensorKind::key ? dims.key_dim : dims.value_dim;
}

inline HeadDims head_dims(const CacheConfig& config, const LayerDims& dims) noexcept {
    return {dims.key_dim, dims.value_dim, config.latent};
}
// As what the keys or values of a cache are coded: latents are keys.
inline TensorKind coded_as(const CacheConfig& config, TensorKind tensor) noexcept {
    return config.latent ? TensorKind::key : tensor;
}

// A run of tokens that is closed as one block.
struct Unit {
    std::uint32_t n_tokens = 0;
    bool prompt = false;  // it came in an append of a block's worth of tokens or more
    bool first = false;   // of its stream
};
Status lay_out_unit(const CacheConfig& config, const LayerDims& dims, const TensorSpec& spec,
                    TensorKind tensor, const Unit& unit, BlockHeader* out) noexcept;
// The configured number, as far as it is allowed.
std::uint32_t spread_tokens(const CacheConfig& config) noexcept;
// Rollbacks of so many tokens are without a trace, for which units that close keep their rows.
inline std::uint32_t reopen_tokens(const CacheConfig& config) noexcept {
    return config.rollback_tokens < config.spec.buffer_tokens ? config.rollback_tokens
                                                              : config.spec.buffer_tokens;
}
// Tokens that a buffer always has room for: a unit, and those that come while it is compressed.
std::uint32_t base_tokens(const CacheConfig& config) noexcept;
// The buffer of a layer with a window, most of which it would be, takes memory by so many tokens as they
// come; 0 of any other: it takes all at once.
std::uint32_t buffer_step(const CacheConfig& config, std::uint32_t layer) noexcept;
// Tokens of the next unit of a layer out of n_buffered; 0 when they do not fill one.
std::uint32_t unit_tokens(const CacheConfig& config, std::uint32_t layer, std::uint64_t n_buffered) noexcept;
// Bytes of n_tokens keys or values in the buffer of a layer.
std::uint64_t buffer_bytes(const CacheConfig& config, std::uint32_t layer, TensorKind kind,
                           std::uint64_t n_tokens) noexcept;

// Whether blocks of any layer have a part that can go, when memory is short.
bool can_shrink(const CacheConfig& config) noexcept;

// Of a layer; 0 without one.
inline std::uint32_t window_of(const CacheConfig& config, std::uint32_t layer) noexcept {
    return config.windows == nullptr ? 0 : config.windows[layer];
}
// The first token of a layer of n_tokens that its window, if it has one, and rollbacks leave visible.
std::uint64_t first_visible(const CacheConfig& config, std::uint32_t layer, std::uint64_t n_tokens) noexcept;

}  // namespace gearkv
