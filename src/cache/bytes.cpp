// What a cache will need, before it exists.
#include <algorithm>

#include "../arch/float_mode.hpp"
#include "cache/check.hpp"
#include "cache/query_squares.hpp"
#include "cache/rates.hpp"
#include "cache/rope_in_use.hpp"
#include "cache/rules.hpp"

namespace gearkv {
namespace {

Status check_range(const char* name, std::uint64_t found, std::uint64_t least, std::uint64_t most) {
    if (found >= least && found <= most) return {};
    return Status::error(Code::wrong_size, "%s is %llu, expected %llu to %llu", name,
                         static_cast<unsigned long long>(found), static_cast<unsigned long long>(least),
                         static_cast<unsigned long long>(most));
}

Status check_dim(const char* name, std::uint32_t dim) {
    if (dim >= 8 && dim <= max_dim && dim % 8 == 0) return {};
    return Status::error(Code::wrong_size, "%s is %u, expected a multiple of 8 in 8 to %u", name, dim,
                         max_dim);
}

// One layer of an ordinary shape, that the rope of all fits.
Status check_dims(const CacheConfig& config, const LayerDims& dims) {
    Status status = check_range("n_kv_heads", dims.n_kv_heads, 1, max_heads);
    if (status.ok()) status = check_dim("key_dim", dims.key_dim);
    if (status.ok()) status = check_dim("value_dim", dims.value_dim);
    return status.ok() ? check_rope(config.rope, dims.key_dim) : status;
}

Status check_all_dims(const CacheConfig& config) {
    if (config.dims == nullptr) return check_dims(config, config.dims_of(0));
    if (config.n_kv_heads != 0 || config.key_dim != 0 || config.value_dim != 0) {
        return Status::error(Code::invalid_argument,
                             "%u heads of %u and %u channels beside dims, expected 0 of each",
                             config.n_kv_heads, config.key_dim, config.value_dim);
    }
    bool any = false;
    for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
        const LayerDims dims = config.dims[layer];
        if (dims == LayerDims()) continue;
        any = true;
        if (Status status = check_dims(config, dims); !status.ok())
            return Status::error(status.code(), "layer %u: %s", layer, status.message());
    }
    if (any) return {};
    return Status::error(Code::wrong_size, "%u layers without keys, expected one with keys at least",
                         config.n_layers);
}

// Rules for layers that there are.
Status check_rules(const CacheConfig& config) {
    for (std::uint32_t i = 0; i < config.spec.n_layer_rules; ++i) {
        const std::uint32_t first = config.spec.layer_rules[i].first;
        if (first < config.n_layers) continue;
        return Status::error(Code::bad_spec,
                             "layers-%u of the SPEC, expected below %u, the layers of the cache", first,
                             config.n_layers);
    }
    return {};
}

// Latents are scored and mixed: in layouts that can be both.
Status check_latents(const CacheConfig& config) {
    if (!config.latent) return {};
    const auto check = [](const TensorSpec& values) {
        if (values.raw() || values.backbone == Backbone::trellis) return Status();
        return Status::error(Code::bad_spec,
                             "v= of latents, expected f32, f16, gear-1 to gear-4 or trellis-RATE");
    };
    if (config.spec.auto_bits > 0.0f)
        return Status::error(Code::bad_spec, "auto:BITS of latents, expected rates that are told");
    Status status = check(config.spec.value);
    for (std::uint32_t i = 0; status.ok() && i < config.spec.n_layer_rules; ++i)
        status = check(config.spec.layer_rules[i].value);
    return status;
}

// Adds as many of something to *sum. Errors: wrong_size, when 64 bits do not hold it.
Status add_times(std::uint64_t n_bytes, std::uint64_t times, std::uint64_t* sum) {
    std::uint64_t all;
    if (!__builtin_mul_overflow(n_bytes, times, &all) && !__builtin_add_overflow(*sum, all, sum)) return {};
    return Status::error(Code::wrong_size,
                         "more bytes than 64 bits hold, expected fewer layers, heads, "
                         "channels or tokens");
}

// Of queries since the last block was begun, while those before are copied.
std::uint64_t query_bytes(const CacheConfig& config, const LayerDims& dims, std::uint64_t n_tokens) noexcept {
    return QuerySquares::bytes_of(
        dims, QuerySquares::n_rows_of(std::min(n_tokens, config.max_tokens)) + QuerySquares::least_rows);
}

// Blocks and buffers of n_layers layers like this one, and what is kept of queries.
Status add_layers(const CacheConfig& config, std::uint32_t layer, std::uint32_t n_layers,
                  std::uint64_t n_tokens, std::uint64_t prompt_tokens, CacheBytes* out) noexcept {
    CacheBytes& bytes = *out;
    const LayerDims dims = config.dims_of(layer);
    if (!dims.has_keys()) return {};
    const KvSpec spec = first_spec(config, layer);
    const std::uint64_t n_sinks = std::min<std::uint64_t>(n_tokens, config.spec.sink_tokens);
    const std::uint64_t first_seen = first_visible(config, layer, n_tokens);
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        BlockBytes* total = kind == TensorKind::key ? &bytes.keys : &bytes.values;
        std::uint64_t at = n_sinks;
        const auto add_units = [&](const Unit& unit, std::uint64_t times) {
            BlockHeader header;
            Status status = lay_out_unit(config, dims, kind == TensorKind::key ? spec.key : spec.value, kind,
                                         unit, &header);
            const std::uint64_t n_gone =
                first_seen > at ? std::min((first_seen - at) / unit.n_tokens, times) : 0;
            std::uint64_t sum = total->bytes;
            if (status.ok()) status = add_times(header.n_bytes, (times - n_gone) * n_layers, &sum);
            if (status.ok()) *total += bytes_by_part(header) * ((times - n_gone) * n_layers);
            at += times * unit.n_tokens;
            return status;
        };
        std::uint64_t left = prompt_tokens - std::min(prompt_tokens, n_sinks);
        const std::uint64_t n_decode = n_tokens - n_sinks - left;
        // What is behind the window when the prompt is compressed.
        if (const std::uint64_t seen = first_visible(config, layer, prompt_tokens); seen > at) {
            const std::uint64_t n_skipped =
                (seen - at) / config.spec.buffer_tokens * config.spec.buffer_tokens;
            at += n_skipped;
            left -= n_skipped;
        }
        bool first = true;
        while (const std::uint32_t unit = unit_tokens(config, layer, left)) {
            if (Status status = add_units({unit, true, first}, 1); !status.ok()) return status;
            left -= unit;
            first = false;
        }
        const std::uint64_t n_recent = std::min<std::uint64_t>(n_decode + left, config.spec.recent_tokens);
        std::uint64_t n_blocks = (n_decode + left - n_recent) / config.spec.buffer_tokens;
        if (first && n_blocks > 0) {
            if (Status status = add_units({config.spec.buffer_tokens, false, true}, 1); !status.ok())
                return status;
            --n_blocks;
        }
        if (Status status = add_units({config.spec.buffer_tokens, false, false}, n_blocks); !status.ok())
            return status;
        const std::uint64_t n_bytes =
            buffer_bytes(config, layer, kind, base_tokens(config) + config.spec.sink_tokens);
        if (Status status = add_times(n_bytes, n_layers, &bytes.buffer); !status.ok()) return status;
    }
    if (spec.key.backbone != Backbone::trellis) return {};
    const std::uint64_t n_open = base_tokens(config) + config.spec.sink_tokens + prompt_tokens;
    return add_times(query_bytes(config, dims, n_open), n_layers, &bytes.tables);
}

}  // namespace

Status check_max_tokens(std::uint64_t max_tokens) noexcept {
    return check_range("max_tokens", max_tokens, 1, (std::uint64_t{1} << 31) - 1);
}

Status check_config(const CacheConfig& config) noexcept {
    if (config.allocator.allocate == nullptr || config.allocator.release == nullptr) {
        return Status::error(Code::invalid_argument, "allocator has a null function");
    }
    Status status = check_range("n_layers", config.n_layers, 1, max_layers);
    if (status.ok()) status = check_all_dims(config);
    if (status.ok()) status = check_max_tokens(config.max_tokens);
    if (status.ok()) status = validate_spec(config.spec);
    if (status.ok()) status = check_rules(config);
    if (status.ok()) status = check_latents(config);
    for (std::uint32_t layer = 0; status.ok() && layer < config.n_layers; ++layer) {
        KvSpec rates;
        const bool is_alike = layer > 0 && config.dims_of(layer) == config.dims_of(layer - 1);
        if (config.dims_of(layer).has_keys() && !is_alike) status = initial_spec(config, layer, &rates);
    }
    return status;
}

Status bytes_required(const CacheConfig& config, std::uint64_t n_tokens, std::uint64_t prompt_tokens,
                      CacheBytes* out) noexcept {
    const FloatMode mode;
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (Status status = check_config(config); !status.ok()) return status;
    if (n_tokens > config.max_tokens || prompt_tokens > n_tokens) {
        return Status::error(
            Code::wrong_size, "%llu tokens with a prompt of %llu, expected prompt <= tokens <= %llu",
            static_cast<unsigned long long>(n_tokens), static_cast<unsigned long long>(prompt_tokens),
            static_cast<unsigned long long>(config.max_tokens));
    }
    CacheBytes bytes;
    std::uint64_t copied = 0;  // in one layer at a time
    const auto rule_of = [&](std::uint32_t layer) { return config.spec.rule_of(layer, config.n_layers); };
    // Runs of layers of the same shape, spec and window.
    for (std::uint32_t layer = 0, end; layer < config.n_layers; layer = end) {
        end = layer + 1;
        while (end < config.n_layers && rule_of(end) == rule_of(layer) &&
               window_of(config, end) == window_of(config, layer) &&
               config.dims_of(end) == config.dims_of(layer))
            ++end;
        const std::uint64_t n_before = bytes.tables;
        Status status = add_layers(config, layer, end - layer, n_tokens, prompt_tokens, &bytes);
        if (!status.ok()) return status;
        copied = std::max(copied, (bytes.tables - n_before) / (end - layer));
    }
    for (const std::uint64_t part : {bytes.keys.bytes, bytes.values.bytes, bytes.buffer}) {
        if (Status status = add_times(part, 1, &bytes.bytes); !status.ok()) return status;
    }
    if (Status status = add_times(copied, 1, &bytes.tables); !status.ok()) return status;
    *out = bytes;
    return {};
}

}  // namespace gearkv
