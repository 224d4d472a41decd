// What a cache says of itself.
#include <algorithm>
#include <cmath>

#include "cache/impl.hpp"

namespace gearkv {

Status Cache::layer_stats(std::uint32_t layer, LayerStats* out) const noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    LayerStats stats;
    if (const LayerStream* stream = impl_->layers[layer]; stream != nullptr) {
        const LayerShape shape = stream->tokens().shape();
        stats.n_tokens = shape.n_tokens();
        stats.n_sinks = shape.n_sinks;
        stats.n_forgotten = shape.n_forgotten;
        stats.n_closed = shape.n_closed;
        stats.n_blocks = 2 * stream->tokens().blocks().size();
        stats.n_shrunk = stream->tokens().blocks().n_reduced();
        stats.shrunk_bytes = stream->tokens().blocks().saved_bytes();
        stats.compress_seconds = stream->compress_seconds();
    }
    const ErrorSample* sample = impl_->context.errors.sample(layer);
    if (sample != nullptr && sample->n_blocks > 0) {
        stats.output_error = sample->output > 0.0 ? std::sqrt(sample->error / sample->output) : 0.0;
        stats.n_sampled = sample->n_blocks;
    }
    if (const SelectionTally* tallies = impl_->context.selections;
        tallies != nullptr && tallies[layer].n > 0) {
        const SelectionTally& tally = tallies[layer];
        stats.n_selections = tally.n;
        stats.share_read = tally.share / static_cast<double>(tally.n);
        stats.mass_read = tally.mass / static_cast<double>(tally.n);
    }
    *out = stats;
    return {};
}

Status Cache::layer_spec(std::uint32_t layer, KvSpec* out) const noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    const LayerStream* stream = impl_->layers[layer];
    const KvSpec first = first_spec(config(), layer);
    *out = config().spec;
    out->n_layer_rules = 0;
    std::fill_n(out->layer_rules, max_layer_rules, LayerRule());
    out->key = stream == nullptr ? first.key : stream->rates().spec(TensorKind::key);
    out->value = stream == nullptr ? first.value : stream->rates().spec(TensorKind::value);
    return {};
}

std::uint64_t Cache::n_tokens(std::uint32_t layer) const noexcept {
    return layer < impl_->context.config.n_layers ? impl_->n_tokens(layer) : 0;
}

std::uint64_t Cache::first_token(std::uint32_t layer) const noexcept {
    if (layer >= impl_->context.config.n_layers || impl_->layers[layer] == nullptr) return 0;
    const LayerShape shape = impl_->layers[layer]->tokens().shape();
    return shape.n_forgotten == 0 ? 0 : shape.gap_end();
}

CacheStats Cache::stats() const noexcept {
    const CacheContext& context = impl_->context;
    CacheStats stats;
    CacheBytes& bytes = stats.bytes;
    bytes.buffer = context.held[Use::buffer];
    bytes.scratch = context.held[Use::scratch] + context.held[Use::block];  // of a block being encoded again
    bytes.tables = context.held[Use::table] + sizeof(Impl);
    std::uint64_t n_elements = 0, n_uncompressed_bytes = 0;
    for (std::uint32_t i = 0; i < context.config.n_layers; ++i) {
        const LayerStream* stream = impl_->layers[i];
        if (stream == nullptr) continue;
        bytes.keys += stream->block_bytes(TensorKind::key);
        bytes.values += stream->block_bytes(TensorKind::value);
        bytes.buffer += stream->held()[Use::buffer];
        bytes.scratch += stream->held()[Use::scratch];
        bytes.tables += stream->held()[Use::table];
        bytes.mapped += stream->tokens().blocks().mapped_bytes();
        bytes.shared +=
            stream->is_shared() ? stream->held().total() : stream->tokens().blocks().shared_bytes(impl_->lowering.source);
        stats.n_blocks += 2 * stream->tokens().blocks().size();
        stats.n_shrunk += stream->tokens().blocks().n_reduced();
        stats.shrunk_bytes += stream->tokens().blocks().saved_bytes();
        stats.compress_seconds += stream->compress_seconds();
        const LayerShape shape = stream->tokens().shape();
        if (shape.n_tokens() > stats.n_tokens) {
            stats.n_tokens = shape.n_tokens();
            stats.compressed_tokens = shape.n_closed;
        }
        const LayerDims dims = context.config.dims_of(i);
        n_elements += (shape.n_tokens() - shape.n_forgotten) * dims.n_kv_heads *
                      (std::uint64_t{dims.key_dim} + dims.value_dim);
        for (const TensorKind kind : {TensorKind::key, TensorKind::value})
            n_uncompressed_bytes += buffer_bytes(context.config, i, kind, shape.n_sinks + shape.n_buffered);
    }
    bytes.bytes = bytes.keys.bytes + bytes.values.bytes + bytes.buffer + bytes.scratch + bytes.tables;
    if (n_elements > 0) {
        const std::uint64_t held = bytes.keys.bytes + bytes.values.bytes + n_uncompressed_bytes;
        stats.bits_per_element = 8.0 * static_cast<double>(held) / static_cast<double>(n_elements);
    }
    return stats;
}

}  // namespace gearkv
