#include "decoder/network/forward.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>

namespace gearkv {
namespace {

// y = x / rms(x) * weight; the sum of squares in eight interleaved parts. y may be x.
void normalise_row(float* y, const float* x, const float* weight, std::size_t n, float eps) {
    float parts[8] = {};
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (std::size_t lane = 0; lane < 8; lane++) {
            parts[lane] += x[i + lane] * x[i + lane];
        }
    }
    for (; i < n; i++) {
        parts[0] += x[i] * x[i];
    }
    const float sum =
        ((parts[0] + parts[4]) + (parts[2] + parts[6])) + ((parts[1] + parts[5]) + (parts[3] + parts[7]));
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
    for (i = 0; i < n; i++) {
        y[i] = x[i] * scale * weight[i];
    }
}

// Numbers below infinity have the smaller bits.
bool are_finite(const float* x, std::size_t n) {
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < n; i++) {
        largest = std::max(largest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
    }
    return largest < 0x7f800000u;
}

// A bias of no entries is none.
void add_bias(float* x, const std::vector<float>& bias) {
    for (std::size_t i = 0; i < bias.size(); i++) {
        x[i] += bias[i];
    }
}

// Normalises n floats in place, as many at once as the norm has weights: heads one by one, all heads at once,
// or a whole row. A norm of no entries is none.
void normalise_parts(float* x, std::size_t n, const std::vector<float>& norm, float eps) {
    if (norm.empty()) return;
    for (std::size_t at = 0; at < n; at += norm.size()) {
        normalise_row(x + at, x + at, norm.data(), norm.size(), eps);
    }
}

Floats turns_of(const NetworkParams& params, LayerRope kind, std::size_t chunk) {
    const auto& layers = params.layer_ropes;
    const bool used = std::find(layers.begin(), layers.end(), kind) != layers.end();
    return Floats(used ? chunk * params.sizes.rope_dim : 0);
}

// Entries of the longest vector that a matrix is multiplied with, in whole blocks of codes.
std::size_t widest_vector(const ModelParams& sizes) {
    const std::size_t n = std::max(
        {std::size_t{sizes.n_embd}, std::size_t{sizes.n_heads} * sizes.head_dim, std::size_t{sizes.n_ff}});
    return (n + code_block - 1) / code_block * code_block;
}

}  // namespace

Forward::Forward(const LlamaModel& model, const LinearKernels& kernels, const IntegerKernels* integer,
                 std::uint32_t n_ctx, std::size_t chunk, Executor& executor)
    : params_(model.network()),
      sizes_(model.params()),
      weights_(model.weights()),
      executor_(executor),
      engine_(kernels, integer, chunk * widest_vector(sizes_), executor),
      ropes_{make_rope(model, LayerRope::global, n_ctx), make_rope(model, LayerRope::local, n_ctx)},
      turns_{turns_of(params_, LayerRope::global, chunk), turns_of(params_, LayerRope::local, chunk)},
      x_(chunk * sizes_.n_embd),
      normed_(x_.size()),
      query_(chunk * sizes_.n_heads * sizes_.head_dim),
      key_(chunk * sizes_.n_kv_heads * sizes_.head_dim),
      value_(key_.size()),
      mixed_(query_.size()),
      gate_(chunk * sizes_.n_ff),
      up_(gate_.size()) {}

std::uint64_t Forward::n_bytes() const noexcept {
    std::uint64_t n_floats = 0;
    for (const Floats* floats :
         {&turns_[0], &turns_[1], &x_, &normed_, &query_, &key_, &value_, &mixed_, &gate_, &up_}) {
        n_floats += floats->size();
    }
    return n_floats * sizeof(float) + engine_.n_bytes();
}

Status Forward::feed(const Token* tokens, std::size_t n, std::uint64_t position, Cache& cache,
                     bool* touched) noexcept {
    *touched = false;
    embed(tokens, n, position);
    for (std::uint32_t i = 0; i < sizes_.n_layers; i++) {
        const LayerWeights& layer = weights_.layers[i];
        const Status status = attend(layer, i, n, cache, touched);
        if (!status.ok()) return status;
        feed_forward(layer, n);
    }
    return {};
}

Status Forward::compute_logits(std::size_t first, std::size_t n, float* logits) noexcept {
    const float* x = normalise(first, n, weights_.output_norm);
    const Product product = {&weights_.output, x, logits};
    engine_.multiply(&product, 1, n);

    constexpr std::size_t logits_per_task = 16384;
    const std::size_t n_logits = n * sizes_.n_vocab;
    const float scale = params_.logit_scale;
    const float cap = params_.logit_cap;
    std::atomic<bool> all_finite{true};
    parallel_for(executor_, (n_logits + logits_per_task - 1) / logits_per_task, [&](std::size_t task) {
        float* part = logits + task * logits_per_task;
        const std::size_t n_part = std::min(logits_per_task, n_logits - task * logits_per_task);
        for (std::size_t i = 0; scale != 1.0f && i < n_part; i++) {
            part[i] *= scale;
        }
        // Before a cap hides it.
        if (!are_finite(part, n_part)) all_finite.store(false, std::memory_order_relaxed);
        for (std::size_t i = 0; cap > 0.0f && i < n_part; i++) {
            part[i] = cap * std::tanh(part[i] / cap);
        }
    });
    if (all_finite.load()) return {};
    return Status::error(Code::non_finite,
                         "logits that are no numbers: the weights or the cache do not hold any");
}

void Forward::embed(const Token* tokens, std::size_t n, std::uint64_t position) noexcept {
    const Weight& embedding = weights_.embedding;
    const auto expand = engine_.kernels().expand[static_cast<std::size_t>(embedding.type)];
    for_tokens(n, [&](std::size_t t) {
        const std::uint8_t* row = embedding.data + static_cast<std::size_t>(tokens[t]) * embedding.row_bytes;
        float* x = x_.data() + t * sizes_.n_embd;
        expand(x, row, 0, sizes_.n_embd);
        if (params_.embedding_scale != 1.0f) {
            for (std::size_t i = 0; i < sizes_.n_embd; i++) {
                x[i] *= params_.embedding_scale;
            }
        }
        for (std::size_t kind = 0; kind < std::size(turns_); kind++) {
            if (turns_[kind].size() == 0) continue;
            write_turns(turns_[kind].data() + t * sizes_.rope_dim, ropes_[kind], position + t);
        }
    });
}

Status Forward::attend(const LayerWeights& layer, std::uint32_t index, std::size_t n, Cache& cache,
                       bool* touched) noexcept {
    const float* x = normalise(0, n, layer.attention_norm);
    const Product projections[] = {
        {&layer.query, x, query_.data()}, {&layer.key, x, key_.data()}, {&layer.value, x, value_.data()}};
    engine_.multiply(projections, std::size(projections), n);
    prepare_heads(layer, params_.layer_ropes[index], n);

    const std::size_t kv_stride = std::size_t{sizes_.n_kv_heads} * sizes_.head_dim;
    const auto n_tokens = static_cast<std::uint32_t>(n);
    Status status = cache.append(index, {key_.data(), kv_stride, sizes_.head_dim},
                                 {value_.data(), kv_stride, sizes_.head_dim}, n_tokens, executor_);
    if (!status.ok()) return status;
    *touched = true;
    Queries queries;
    queries.data = query_.data();
    queries.query_stride = std::size_t{sizes_.n_heads} * sizes_.head_dim;
    queries.head_stride = sizes_.head_dim;
    queries.n_queries = n_tokens;
    queries.n_heads = sizes_.n_heads;
    queries.scale = params_.attention_scale;
    queries.soft_cap = params_.attention_cap;
    if (!sizes_.windows.empty()) queries.window = sizes_.windows[index];
    status = cache.attend(index, queries, mixed_.data(), mixed_.size(), executor_);
    // What a chunk filled up is compressed before the next layer needs the same room, but not what may be a
    // draft to be taken back.
    const CacheConfig& config = cache.config();
    const bool is_draft = n <= config.rollback_tokens && n < config.spec.buffer_tokens;
    if (status.ok() && n > 1 && !is_draft) status = cache.compress(index, executor_);
    if (!status.ok()) return status;

    end_branch({layer.attention_output, layer.attention_output_bias, layer.attention_post_norm},
               mixed_.data(), n);
    return {};
}

// Biases, norms of heads, and RoPE.
void Forward::prepare_heads(const LayerWeights& layer, LayerRope rope, std::size_t n) noexcept {
    const std::size_t dim = sizes_.head_dim;
    const std::size_t n_query = sizes_.n_heads * dim;
    const std::size_t n_kv = sizes_.n_kv_heads * dim;
    const std::size_t kind = static_cast<std::size_t>(rope);
    const auto turn = [&](float* heads, std::size_t n_channels, std::size_t t) {
        if (rope == LayerRope::none) return;
        const float* turns = turns_[kind].data() + t * sizes_.rope_dim;
        for (std::size_t at = 0; at < n_channels; at += dim) {
            turn_head(heads + at, turns, sizes_.rope_dim / 2, params_.family->pairing);
        }
    };
    for_tokens(n, [&](std::size_t t) {
        float* query = query_.data() + t * n_query;
        float* key = key_.data() + t * n_kv;
        add_bias(query, layer.query_bias);
        add_bias(key, layer.key_bias);
        add_bias(value_.data() + t * n_kv, layer.value_bias);
        normalise_parts(query, n_query, layer.query_norm, sizes_.norm_eps);
        normalise_parts(key, n_kv, layer.key_norm, sizes_.norm_eps);
        turn(query, n_query, t);
        turn(key, n_kv, t);
    });
}

// down(gate(x) * up(x)), where the gate is SiLU or GELU of its product.
void Forward::feed_forward(const LayerWeights& layer, std::size_t n) noexcept {
    const float* x = normalise(0, n, layer.ffn_norm);
    const Product inner[] = {{&layer.gate, x, gate_.data()}, {&layer.up, x, up_.data()}};
    engine_.multiply(inner, std::size(inner), n);
    const LinearKernels& kernels = engine_.kernels();
    const auto apply_gate = params_.family->gate == Gate::gelu ? kernels.geglu : kernels.swiglu;
    for_tokens(n, [&](std::size_t t) {
        float* gate = gate_.data() + t * sizes_.n_ff;
        float* up = up_.data() + t * sizes_.n_ff;
        add_bias(gate, layer.gate_bias);
        add_bias(up, layer.up_bias);
        apply_gate(gate, up, sizes_.n_ff);
    });
    end_branch({layer.down, layer.down_bias, layer.ffn_post_norm}, gate_.data(), n);
}

// Adds weight x to the residual stream, on the way with a bias, a norm and a scale where the model has them.
void Forward::end_branch(const BranchEnd& end, const float* x, std::size_t n) noexcept {
    const float scale = params_.branch_scale;
    if (end.bias.empty() && end.norm.empty() && scale == 1.0f) {
        const Product product = {&end.weight, x, x_.data(), true};
        engine_.multiply(&product, 1, n);
        return;
    }
    const Product product = {&end.weight, x, normed_.data()};
    engine_.multiply(&product, 1, n);
    const std::size_t width = sizes_.n_embd;
    for_tokens(n, [&](std::size_t t) {
        float* branch = normed_.data() + t * width;
        float* stream = x_.data() + t * width;
        add_bias(branch, end.bias);
        normalise_parts(branch, width, end.norm, sizes_.norm_eps);
        for (std::size_t i = 0; i < width; i++) {
            stream[i] += branch[i] * scale;
        }
    });
}

template <class Function>
void Forward::for_tokens(std::size_t n, Function&& fn) noexcept {
    constexpr std::size_t tokens_per_task = 16;
    parallel_for(executor_, (n + tokens_per_task - 1) / tokens_per_task, [&](std::size_t task) {
        const std::size_t end = std::min(n, (task + 1) * tokens_per_task);
        for (std::size_t t = task * tokens_per_task; t < end; t++) {
            fn(t);
        }
    });
}

const float* Forward::normalise(std::size_t first, std::size_t n, const std::vector<float>& weight) noexcept {
    const std::size_t width = sizes_.n_embd;
    if (weight.empty()) return x_.data() + first * width;
    for_tokens(n, [&](std::size_t t) {
        const std::size_t at = (first + t) * width;
        normalise_row(normed_.data() + at, x_.data() + at, weight.data(), width, sizes_.norm_eps);
    });
    return normed_.data() + first * width;
}

}  // namespace gearkv
