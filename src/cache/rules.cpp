#include "cache/rules.hpp"

#include <algorithm>

#include "format/spec.hpp"

namespace gearkv {

bool is_uniform(const CacheConfig& config) noexcept {
    const LayerDims* dims = config.dims;
    return dims == nullptr || std::all_of(dims, dims + config.n_layers,
                                          [&](const LayerDims& other) { return other == dims[0]; });
}

namespace {

// The configured number. A block is given back whole, and so takes its bytes for half its tokens longer than
// they are seen: next to nothing of a window of eight.
std::uint32_t block_tokens(const CacheConfig& config, std::uint32_t layer) noexcept {
    if (config.block_tokens > 0) return config.block_tokens;
    const std::uint32_t window = window_of(config, layer);
    return window == 0 ? max_unit_tokens : window / 8;
}

}  // namespace

Status lay_out_unit(const CacheConfig& config, const LayerDims& dims, const TensorSpec& spec,
                    TensorKind tensor, const Unit& unit, BlockHeader* out) noexcept {
    const BlockShape shape = {coded_as(config, tensor), unit.n_tokens, dims.n_kv_heads, dim_of(dims, tensor)};
    return lay_out_block(shape, spec, unit.prompt ? spec.rank_prompt : spec.rank_decode, out, unit.first);
}

std::uint32_t unit_tokens(const CacheConfig& config, std::uint32_t layer, std::uint64_t n_buffered) noexcept {
    const std::uint32_t step = config.spec.buffer_tokens;
    const std::uint32_t wanted = block_tokens(config, layer);
    const std::uint64_t most = std::max(std::min(wanted, max_unit_tokens) / step, 1u) * std::uint64_t{step};
    const std::uint64_t n = n_buffered - std::min<std::uint64_t>(n_buffered, config.spec.recent_tokens);
    return static_cast<std::uint32_t>(std::min(n / step * step, most));
}

std::uint32_t spread_tokens(const CacheConfig& config) noexcept {
    return std::min(config.spread_tokens, config.spec.buffer_tokens);
}

std::uint32_t base_tokens(const CacheConfig& config) noexcept {
    return config.spec.buffer_tokens + config.spec.recent_tokens + spread_tokens(config) +
           reopen_tokens(config);
}

std::uint32_t buffer_step(const CacheConfig& config, std::uint32_t layer) noexcept {
    return window_of(config, layer) == 0 ? 0 : std::max(config.spec.buffer_tokens / 16, 1u);
}

std::uint64_t buffer_bytes(const CacheConfig& config, std::uint32_t layer, TensorKind kind,
                           std::uint64_t n_tokens) noexcept {
    const LayerDims dims = config.dims_of(layer);
    const TensorSpec& spec = kind == TensorKind::key ? config.spec.key : config.spec.value;
    const std::uint64_t element_bytes = spec.backbone == Backbone::raw32 ? 4 : 2;
    return n_tokens * dims.n_kv_heads * round_up(dim_of(dims, kind), 16) * element_bytes;
}

bool can_shrink(const CacheConfig& config) noexcept {
    const auto can = [](const TensorSpec& tensor) {
        return tensor.sparsity > 0.0f || tensor.rank_prompt > 0 || tensor.rank_decode > 0;
    };
    const auto can_either = [&](const TensorSpec& key, const TensorSpec& value) {
        return can(key) || can(value) || lower_rate(TensorKind::key, key.rate) > 0.0f ||
               lower_rate(coded_as(config, TensorKind::value), value.rate) > 0.0f;
    };
    const KvSpec& spec = config.spec;
    bool any = spec.auto_bits > 0.0f || can_either(spec.key, spec.value);
    for (std::uint32_t i = 0; i < spec.n_layer_rules; ++i)
        any |= can_either(spec.layer_rules[i].key, spec.layer_rules[i].value);
    return any;
}

std::uint64_t first_visible(const CacheConfig& config, std::uint32_t layer, std::uint64_t n_tokens) noexcept {
    const std::uint32_t window = window_of(config, layer);
    if (window == 0) return 0;
    const std::uint64_t n_visible = std::uint64_t{window} + config.rollback_tokens;
    return n_tokens > n_visible ? n_tokens - n_visible : 0;
}

}  // namespace gearkv
