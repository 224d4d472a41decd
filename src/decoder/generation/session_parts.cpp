#include "decoder/generation/session_parts.hpp"

#include <algorithm>

namespace gearkv {

namespace {

// A window as long as the context is none.
std::vector<std::uint32_t> windows_within(std::vector<std::uint32_t> windows, std::uint32_t n_ctx) {
    for (std::uint32_t& window : windows) {
        if (window >= n_ctx) window = 0;
    }
    const bool any =
        std::any_of(windows.begin(), windows.end(), [](std::uint32_t window) { return window > 0; });
    if (!any) windows.clear();
    return windows;
}

}  // namespace

Status make_parts(const Model& model, const SessionConfig& config, SessionParts* out) {
    if (config.chunk == 0)
        return Status::error(Code::invalid_argument, "a chunk of 0 tokens, expected at least 1");
    out->model = dynamic_cast<const FileModel*>(&model);
    if (out->model == nullptr)
        return Status::error(Code::invalid_argument, "a model that Model::load did not make");
    const ModelParams& params = model.params();
    const NetworkParams& network = out->model->network();
    out->n_ctx = config.n_ctx != 0 ? config.n_ctx : params.n_ctx;
    out->chunk = std::min(config.chunk, out->n_ctx);
    out->rope = make_rope(*out->model, network.layer_ropes[0], out->n_ctx);
    out->integer = integer_kernels(config);
    out->windows = windows_within(params.windows, out->n_ctx);
    CacheConfig& cache = out->cache;
    cache.n_layers = params.n_layers;
    cache.n_kv_heads = params.n_kv_heads;
    cache.key_dim = params.head_dim;
    cache.value_dim = params.head_dim;
    cache.max_tokens = out->n_ctx;
    cache.spec = config.spec;
    cache.seed = config.seed;
    cache.rollback_tokens = config.rollback_tokens;
    cache.error_every = config.error_every;
    cache.max_bytes = config.max_cache_bytes;
    cache.soft_bytes = config.soft_cache_bytes;
    cache.level = config.level;
    cache.workspace = config.workspace;
    if (!out->windows.empty()) cache.windows = out->windows.data();
    cache.rope = {out->rope.frequencies.data(), static_cast<std::uint32_t>(out->rope.frequencies.size()),
                  network.family->pairing == Pairing::adjacent};
    return {};
}

const IntegerKernels* integer_kernels(const SessionConfig& config) noexcept {
    return config.float_products ? nullptr : find_integer_kernels(config.level);
}

std::size_t reserved_tokens(std::uint32_t n_ctx) noexcept {
    return std::min<std::size_t>(n_ctx, 1u << 17);
}

// Activations grow by the same bytes for every token of a chunk.
std::uint64_t session_scratch_bytes(const SessionParts& parts, const LinearKernels& kernels,
                                    Executor& executor) {
    const auto take = [&](std::size_t n_tokens) {
        return Forward(*parts.model, kernels, parts.integer, parts.n_ctx, n_tokens, executor).n_bytes();
    };
    const std::uint64_t one = take(1), two = take(2);
    return one + (parts.chunk - std::uint64_t{1}) * (two - one) +
           std::uint64_t{parts.model->params().n_vocab} * sizeof(float) +
           reserved_tokens(parts.n_ctx) * sizeof(Token);
}

}  // namespace gearkv
