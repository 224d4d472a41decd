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

constexpr std::size_t logits_per_task = 16384;

Status no_finite_logits() noexcept {
    return Status::error(Code::non_finite,
                         "logits that are no numbers: the weights or the cache do not hold any");
}

}  // namespace

Forward::Forward(const FileModel& model, const LinearKernels& kernels, const IntegerKernels* integer,
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
      room_(2 * chunk *
            std::max((std::size_t{sizes_.n_heads} + sizes_.n_kv_heads) * sizes_.head_dim,
                     std::size_t{sizes_.n_ff})) {
    const std::size_t n_query = chunk * sizes_.n_heads * sizes_.head_dim,
                      n_key = chunk * sizes_.n_kv_heads * sizes_.head_dim, n_gate = chunk * sizes_.n_ff;
    const std::span<float> room(room_.data(), room_.size());
    query_ = room.first(n_query);
    mixed_ = room.subspan(n_query, n_query);
    key_ = room.subspan(2 * n_query, n_key);
    value_ = room.subspan(2 * n_query + n_key, n_key);
    gate_ = room.first(n_gate);
    up_ = room.subspan(n_gate, n_gate);
}

std::uint64_t Forward::n_bytes() const noexcept {
    std::uint64_t n_floats = 0;
    for (const Floats* floats : {&turns_[0], &turns_[1], &x_, &normed_, &room_}) {
        n_floats += floats->size();
    }
    return n_floats * sizeof(float) + engine_.n_bytes();
}

Status Forward::feed(const Token* tokens, std::size_t n, std::uint64_t position, Cache& cache,
                     bool* touched) noexcept {
    *touched = false;
    for_tokens(n, [&](std::size_t t) { embed(t, tokens[t], ropes_, position + t); });
    return run_layers(n, [&](std::uint32_t layer) { return attend(layer, n, cache, touched); });
}

Status Forward::feed_singly(const Token* tokens, std::size_t n, std::uint64_t position, Cache& cache,
                            bool* touched) noexcept {
    *touched = false;
    engine_.avoid_blas(true);
    for_tokens(n, [&](std::size_t t) { embed(t, tokens[t], ropes_, position + t); });
    const Status status =
        run_layers(n, [&](std::uint32_t layer) { return attend_singly(layer, n, cache, touched); });
    engine_.avoid_blas(false);
    return status;
}

Status Forward::compute_single_logits(std::size_t n, float* logits) noexcept {
    engine_.avoid_blas(true);
    const Status status = compute_logits(0, n, logits);
    engine_.avoid_blas(false);
    return status;
}

void Forward::step(StepRow* rows, std::size_t n) noexcept {
    // A BLAS sums a row in another order when there are more of them.
    engine_.avoid_blas(true);
    for_tokens(n, [&](std::size_t t) { embed(t, rows[t].token, rows[t].ropes, rows[t].position); });
    (void)run_layers(n, [&](std::uint32_t layer) {
        attend_step(layer, rows, n);
        return Status();
    });
    compute_step_logits(rows, n);
    engine_.avoid_blas(false);
}

Status Forward::compute_logits(std::size_t first, std::size_t n, float* logits) noexcept {
    const float* x = normalise(first, n, weights_.output_norm);
    const Product product = {&weights_.output, x, logits};
    engine_.multiply(&product, 1, n);

    const std::size_t n_logits = n * sizes_.n_vocab;
    std::atomic<bool> all_finite{true};
    parallel_for(executor_, (n_logits + logits_per_task - 1) / logits_per_task, [&](std::size_t task) {
        const std::size_t first = task * logits_per_task;
        if (!finish_logits(logits + first, std::min(logits_per_task, n_logits - first)))
            all_finite.store(false, std::memory_order_relaxed);
    });
    return all_finite.load() ? Status() : no_finite_logits();
}

// Scale and cap; false when some are no numbers.
bool Forward::finish_logits(float* logits, std::size_t n) const noexcept {
    const float scale = params_.logit_scale;
    const float cap = params_.logit_cap;
    for (std::size_t i = 0; scale != 1.0f && i < n; i++) {
        logits[i] *= scale;
    }
    // Before a cap hides it.
    const bool finite = are_finite(logits, n);
    for (std::size_t i = 0; cap > 0.0f && i < n; i++) {
        logits[i] = cap * std::tanh(logits[i] / cap);
    }
    return finite;
}

// Some rows of the output matrix at a time, as many as have room in what the feed-forward works in.
void Forward::compute_step_logits(StepRow* rows, std::size_t n) noexcept {
    const float* x = normalise(0, n, weights_.output_norm);
    const Weight& output = weights_.output;
    const std::size_t room = std::max<std::size_t>(gate_.size() / n / 128 * 128, 1);
    for (std::size_t first = 0; first < output.n_rows; first += room) {
        Weight part = output;
        part.data += first * output.row_bytes;
        part.n_rows = std::min(room, output.n_rows - first);
        const Product product = {&part, x, gate_.data()};
        engine_.multiply(&product, 1, n);
        for (std::size_t t = 0; t < n; t++) {
            if (rows[t].status.ok())
                std::copy_n(gate_.data() + t * part.n_rows, part.n_rows, rows[t].logits + first);
        }
    }
    for (std::size_t t = 0; t < n; t++) {
        if (rows[t].status.ok() && !finish_logits(rows[t].logits, sizes_.n_vocab))
            rows[t].status = no_finite_logits();
    }
}

void Forward::embed(std::size_t t, Token token, const Rope* ropes, std::uint64_t position) noexcept {
    const Weight& embedding = weights_.embedding;
    const auto expand = engine_.kernels().expand[static_cast<std::size_t>(embedding.type)];
    const std::uint8_t* row = embedding.data + static_cast<std::size_t>(token) * embedding.row_bytes;
    float* x = x_.data() + t * sizes_.n_embd;
    expand(x, row, 0, sizes_.n_embd);
    if (params_.embedding_scale != 1.0f) {
        for (std::size_t i = 0; i < sizes_.n_embd; i++) {
            x[i] *= params_.embedding_scale;
        }
    }
    for (std::size_t kind = 0; kind < std::size(turns_); kind++) {
        if (turns_[kind].size() == 0) continue;
        write_turns(turns_[kind].data() + t * sizes_.rope_dim, ropes[kind], position);
    }
}

// The residual stream of n tokens through all layers. attend(layer) makes mixed_ out of queries, keys and
// values.
template <class Attend>
Status Forward::run_layers(std::size_t n, const Attend& attend) noexcept {
    for (std::uint32_t i = 0; i < sizes_.n_layers; i++) {
        const LayerWeights& layer = weights_.layers[i];
        project(layer, i, n);
        if (Status status = attend(i); !status.ok()) return status;
        end_branch({layer.attention_output, layer.attention_output_bias, layer.attention_post_norm},
                   mixed_.data(), n);
        feed_forward(layer, n);
    }
    return {};
}

// Queries, keys and values of n tokens.
void Forward::project(const LayerWeights& layer, std::uint32_t index, std::size_t n) noexcept {
    const float* x = normalise(0, n, layer.attention_norm);
    const Product projections[] = {
        {&layer.query, x, query_.data()}, {&layer.key, x, key_.data()}, {&layer.value, x, value_.data()}};
    engine_.multiply(projections, std::size(projections), n);
    prepare_heads(layer, params_.layer_ropes[index], n);
}

Rows Forward::keys_of(std::size_t t) const noexcept {
    const std::size_t stride = std::size_t{sizes_.n_kv_heads} * sizes_.head_dim;
    return {key_.data() + t * stride, stride, sizes_.head_dim};
}

Rows Forward::values_of(std::size_t t) const noexcept {
    const std::size_t stride = std::size_t{sizes_.n_kv_heads} * sizes_.head_dim;
    return {value_.data() + t * stride, stride, sizes_.head_dim};
}

// Of the tokens [t, t + n).
Queries Forward::queries_of(std::uint32_t index, std::size_t t, std::size_t n) const noexcept {
    Queries queries;
    queries.query_stride = std::size_t{sizes_.n_heads} * sizes_.head_dim;
    queries.data = query_.data() + t * queries.query_stride;
    queries.head_stride = sizes_.head_dim;
    queries.n_queries = static_cast<std::uint32_t>(n);
    queries.n_heads = sizes_.n_heads;
    queries.scale = params_.attention_scale;
    queries.soft_cap = params_.attention_cap;
    queries.mass = mass_;
    queries.most_share = most_share_;
    queries.negligible = negligible_;
    if (!sizes_.windows.empty()) queries.window = sizes_.windows[index];
    return queries;
}

Status Forward::attend(std::uint32_t index, std::size_t n, Cache& cache, bool* touched) noexcept {
    Status status = cache.append(index, keys_of(0), values_of(0), static_cast<std::uint32_t>(n), executor_);
    if (!status.ok()) return status;
    *touched = true;
    status = cache.attend(index, queries_of(index, 0, n), mixed_.data(), mixed_.size(), executor_);
    // What a chunk filled up is compressed before the next layer needs the same room, but not what may be a
    // draft to be taken back.
    const CacheConfig& config = cache.config();
    const bool is_draft = n <= config.rollback_tokens && n < config.spec.buffer_tokens;
    if (status.ok() && n > 1 && !is_draft) status = cache.compress(index, executor_);
    return status;
}

// A token and its query after the other: what a query sees, and what the cache does meanwhile, are as if its
// token had come alone.
Status Forward::attend_singly(std::uint32_t index, std::size_t n, Cache& cache, bool* touched) noexcept {
    const std::size_t row_floats = std::size_t{sizes_.n_heads} * sizes_.head_dim;
    for (std::size_t t = 0; t < n; t++) {
        Status status = cache.append(index, keys_of(t), values_of(t), 1, executor_);
        if (!status.ok()) return status;
        *touched = true;
        status = cache.attend(index, queries_of(index, t, 1), mixed_.data() + t * row_floats, row_floats,
                              executor_);
        if (!status.ok()) return status;
    }
    return {};
}

// Together where the caches have one workspace, else each by itself; the bits are the same.
void Forward::attend_step(std::uint32_t index, StepRow* rows, std::size_t n) noexcept {
    const std::size_t row_floats = std::size_t{sizes_.n_heads} * sizes_.head_dim;
    requests_.clear();
    bool together = true;
    for (std::size_t t = 0; t < n; t++) {
        StepRow& row = rows[t];
        if (!row.status.ok()) continue;
        row.status = row.cache->append(index, keys_of(t), values_of(t), 1, executor_);
        if (!row.status.ok()) continue;
        row.touched = true;
        requests_.push_back({row.cache, queries_of(index, t, 1), mixed_.data() + t * row_floats, row_floats});
        const Workspace* workspace = row.cache->config().workspace;
        together &= workspace != nullptr && workspace == requests_[0].cache->config().workspace;
    }
    if (together && Cache::attend_batch(index, requests_.data(), requests_.size(), executor_).ok()) return;
    // An error is that of one of them, and has changed nothing.
    std::size_t i = 0;
    for (std::size_t t = 0; t < n; t++) {
        if (!rows[t].status.ok()) continue;
        const AttendRequest& request = requests_[i++];
        rows[t].status =
            request.cache->attend(index, request.queries, request.out, request.n_floats, executor_);
    }
}

RopeConfig Forward::layer_rope(std::uint32_t layer) const noexcept {
    const LayerRope kind = params_.layer_ropes[layer];
    if (kind == LayerRope::none) return {};
    const std::vector<double>& frequencies = ropes_[static_cast<std::size_t>(kind)].frequencies;
    return {frequencies.data(), static_cast<std::uint32_t>(frequencies.size()),
            params_.family->pairing == Pairing::adjacent};
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
