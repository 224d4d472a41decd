#include "decoder/network/forward.hpp"

#include <algorithm>
#include <cmath>

namespace gearkv {
namespace {

// y = x / rms(x) * weight; the sum of squares in eight interleaved parts.
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

// Turns adjacent pairs of the first 2 * n_pairs channels.
void rotate_head(float* x, const float* turns, std::size_t n_pairs) {
    for (std::size_t i = 0; i < n_pairs; i++) {
        const float cosine = turns[2 * i];
        const float sine = turns[2 * i + 1];
        const float even = x[2 * i];
        const float odd = x[2 * i + 1];
        x[2 * i] = even * cosine - odd * sine;
        x[2 * i + 1] = even * sine + odd * cosine;
    }
}

}  // namespace

std::vector<double> rope_frequencies(const ModelParams& params, const std::vector<float>& factors) {
    std::vector<double> frequencies(params.rope_dim / 2);
    for (std::size_t i = 0; i < frequencies.size(); i++) {
        const double exponent = -2.0 * static_cast<double>(i) / params.rope_dim;
        frequencies[i] = std::pow(static_cast<double>(params.rope_base), exponent);
        if (!factors.empty()) frequencies[i] /= static_cast<double>(factors[i]);
    }
    return frequencies;
}

Forward::Forward(const LlamaModel& model, const LinearKernels& kernels, std::size_t chunk, Executor& executor)
    : params_(model.params()),
      weights_(model.weights()),
      executor_(executor),
      engine_(kernels, executor),
      frequencies_(rope_frequencies(params_, weights_.rope_factors)),
      turns_(chunk * params_.rope_dim),
      x_(chunk * params_.n_embd),
      normed_(x_.size()),
      query_(chunk * params_.n_heads * params_.head_dim),
      key_(chunk * params_.n_kv_heads * params_.head_dim),
      value_(key_.size()),
      mixed_(query_.size()),
      gate_(chunk * params_.n_ff),
      up_(gate_.size()) {}

Status Forward::feed(const Token* tokens, std::size_t n, std::uint64_t position, Cache& cache,
                     bool* touched) noexcept {
    *touched = false;
    embed(tokens, n, position);
    for (std::uint32_t i = 0; i < params_.n_layers; i++) {
        const LayerWeights& layer = weights_.layers[i];
        const Status status = attend(layer, i, n, cache, touched);
        if (!status.ok()) return status;
        feed_forward(layer, n);
    }
    return {};
}

Status Forward::compute_logits(std::size_t first, std::size_t n, float* logits) noexcept {
    normalise(first, n, weights_.output_norm);
    const Product product = {&weights_.output, normed_.data() + first * params_.n_embd, logits};
    engine_.multiply(&product, 1, n);
    const std::size_t n_logits = n * params_.n_vocab;
    for (std::size_t i = 0; i < n_logits; i++) {
        if (!std::isfinite(logits[i])) {
            return Status::error(Code::non_finite,
                                 "logit %zu is %g: the weights or the cache do not hold numbers",
                                 i % params_.n_vocab, static_cast<double>(logits[i]));
        }
    }
    return {};
}

void Forward::embed(const Token* tokens, std::size_t n, std::uint64_t position) noexcept {
    const Weight& embedding = weights_.embedding;
    const auto expand = engine_.kernels().expand[static_cast<std::size_t>(embedding.type)];
    for_tokens(n, [&](std::size_t t) {
        const std::uint8_t* row = embedding.data + static_cast<std::size_t>(tokens[t]) * embedding.row_bytes;
        expand(x_.data() + t * params_.n_embd, row, 0, params_.n_embd);
        float* turns = turns_.data() + t * params_.rope_dim;
        for (std::size_t i = 0; i < frequencies_.size(); i++) {
            // In double: a float angle of some thousand radians would be off in the fourth digit.
            const double angle = static_cast<double>(position + t) * frequencies_[i];
            turns[2 * i] = static_cast<float>(std::cos(angle));
            turns[2 * i + 1] = static_cast<float>(std::sin(angle));
        }
    });
}

Status Forward::attend(const LayerWeights& layer, std::uint32_t index, std::size_t n, Cache& cache,
                       bool* touched) noexcept {
    normalise(0, n, layer.attention_norm);
    const Product projections[] = {{&layer.query, normed_.data(), query_.data()},
                                   {&layer.key, normed_.data(), key_.data()},
                                   {&layer.value, normed_.data(), value_.data()}};
    engine_.multiply(projections, std::size(projections), n);
    rotate(query_.data(), params_.n_heads, n);
    rotate(key_.data(), params_.n_kv_heads, n);

    const std::size_t kv_stride = std::size_t{params_.n_kv_heads} * params_.head_dim;
    const auto n_tokens = static_cast<std::uint32_t>(n);
    Status status = cache.append(index, {key_.data(), kv_stride, params_.head_dim},
                                 {value_.data(), kv_stride, params_.head_dim}, n_tokens, executor_);
    if (!status.ok()) return status;
    *touched = true;
    Queries queries;
    queries.data = query_.data();
    queries.query_stride = std::size_t{params_.n_heads} * params_.head_dim;
    queries.head_stride = params_.head_dim;
    queries.n_queries = n_tokens;
    queries.n_heads = params_.n_heads;
    queries.scale = 1.0f / std::sqrt(static_cast<float>(params_.head_dim));
    status = cache.attend(index, queries, mixed_.data(), executor_);
    // What a chunk filled up is compressed before the next layer needs the same room, but not what may be a
    // draft to be taken back.
    const CacheConfig& config = cache.config();
    const bool is_draft = n <= config.rollback_tokens && n < config.spec.buffer_tokens;
    if (status.ok() && n > 1 && !is_draft) status = cache.compress(index, executor_);
    if (!status.ok()) return status;

    const Product output = {&layer.attention_output, mixed_.data(), x_.data(), true};
    engine_.multiply(&output, 1, n);
    return {};
}

// x += down(silu(gate(norm(x))) * up(norm(x)))
void Forward::feed_forward(const LayerWeights& layer, std::size_t n) noexcept {
    normalise(0, n, layer.ffn_norm);
    const Product inner[] = {{&layer.gate, normed_.data(), gate_.data()},
                             {&layer.up, normed_.data(), up_.data()}};
    engine_.multiply(inner, std::size(inner), n);
    for_tokens(n, [&](std::size_t t) {
        engine_.kernels().swiglu(gate_.data() + t * params_.n_ff, up_.data() + t * params_.n_ff,
                                 params_.n_ff);
    });
    const Product down = {&layer.down, gate_.data(), x_.data(), true};
    engine_.multiply(&down, 1, n);
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

void Forward::normalise(std::size_t first, std::size_t n, const std::vector<float>& weight) noexcept {
    for_tokens(n, [&](std::size_t t) {
        const std::size_t at = (first + t) * params_.n_embd;
        normalise_row(normed_.data() + at, x_.data() + at, weight.data(), params_.n_embd, params_.norm_eps);
    });
}

void Forward::rotate(float* x, std::size_t n_heads, std::size_t n) noexcept {
    for_tokens(n, [&](std::size_t t) {
        for (std::size_t head = 0; head < n_heads; head++) {
            rotate_head(x + (t * n_heads + head) * params_.head_dim, turns_.data() + t * params_.rope_dim,
                        params_.rope_dim / 2);
        }
    });
}

}  // namespace gearkv
