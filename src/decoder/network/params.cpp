#include "decoder/network/params.hpp"

#include <algorithm>
#include <cmath>

#include "decoder/network/keys.hpp"

namespace gearkv {
namespace {

constexpr std::uint64_t max_layers = 4096;  // as the cache allows
constexpr std::uint64_t max_heads = 4096;
constexpr std::uint64_t max_head_dim = 1024;
constexpr std::uint64_t max_width = 1u << 24;  // of embedding and feed-forward vectors
constexpr std::uint64_t max_context = (1u << 31) - 1;

// What the file is, before anything about its architecture.
Status check_kind(const GgufFile& file) {
    std::string_view type = "model";
    Status status = read_string(file, "general.type", false, &type);
    if (status.ok() && type != "model") {
        status = Status::error(Code::unsupported_model, "'general.type' is '%s', expected 'model'",
                               escape_text(type.substr(0, 64)).c_str());
    }
    std::uint32_t version = 2;
    if (status.ok()) status = read_integer(file, "general.quantization_version", false, {}, &version);
    if (status.ok() && version > 2) {
        status = Status::error(Code::unsupported_model,
                               "'general.quantization_version' is %u, expected at most 2", version);
    }
    for (const GgufValue& value : file.values) {
        if (!status.ok()) return status;
        if (value.key.starts_with("adapter.")) {
            status = Status::error(Code::unsupported_model, "'%.*s' belongs to an adapter, expected a model",
                                   static_cast<int>(std::min<std::size_t>(value.key.size(), 96)),
                                   value.key.data());
        }
    }
    return status;
}

Status read_family(const GgufFile& file, const Family** out) {
    std::string_view name;
    const Status status = read_string(file, "general.architecture", true, &name);
    if (!status.ok()) return status;
    *out = find_family(name);
    if (*out != nullptr) return {};
    return Status::error(Code::unsupported_model, "architecture '%s', expected one of %s",
                         escape_text(name.substr(0, 64)).c_str(), family_names().c_str());
}

Status read_sizes(Keys& keys, ModelParams& sizes) {
    Status status = keys.integer("block_count", true, {1, max_layers}, &sizes.n_layers);
    if (status.ok()) status = keys.integer("embedding_length", true, {1, max_width}, &sizes.n_embd);
    if (status.ok()) {
        status =
            keys.integer_of_layers("feed_forward_length", true, {1, max_width}, sizes.n_layers, &sizes.n_ff);
    }
    if (status.ok()) status = keys.integer("context_length", true, {1, max_context}, &sizes.n_ctx);
    if (status.ok()) status = keys.positive("attention.layer_norm_rms_epsilon", true, &sizes.norm_eps);
    return status;
}

Status read_heads(Keys& keys, ModelParams& sizes) {
    Status status =
        keys.integer_of_layers("attention.head_count", true, {1, max_heads}, sizes.n_layers, &sizes.n_heads);
    if (!status.ok()) return status;
    sizes.n_kv_heads = sizes.n_heads;
    status = keys.integer_of_layers("attention.head_count_kv", false, {1, max_heads}, sizes.n_layers,
                                    &sizes.n_kv_heads);
    if (!status.ok()) return status;
    if (sizes.n_heads % sizes.n_kv_heads != 0) {
        return Status::error(Code::bad_metadata, "%u attention heads over %u KV heads, expected a multiple",
                             sizes.n_heads, sizes.n_kv_heads);
    }
    if (keys.find("attention.key_length") == nullptr && sizes.n_embd % sizes.n_heads != 0) {
        return Status::error(Code::bad_metadata, "%u channels over %u heads, expected a multiple",
                             sizes.n_embd, sizes.n_heads);
    }
    sizes.head_dim = sizes.n_embd / sizes.n_heads;
    std::uint32_t value_dim = sizes.head_dim;
    status = keys.integer("attention.key_length", false, {1, max_width}, &sizes.head_dim);
    if (status.ok()) status = keys.integer("attention.value_length", false, {1, max_width}, &value_dim);
    if (!status.ok()) return status;
    if (sizes.head_dim % 8 != 0 || sizes.head_dim > max_head_dim) {
        return Status::error(Code::unsupported_model,
                             "heads of %u channels, expected a multiple of 8 up to %u", sizes.head_dim,
                             static_cast<unsigned>(max_head_dim));
    }
    if (value_dim != sizes.head_dim) {
        return Status::error(Code::unsupported_model,
                             "keys of %u channels and values of %u, expected equal ones", sizes.head_dim,
                             value_dim);
    }
    return {};
}

// The scale of scores, soft caps and multipliers.
Status read_scales(Keys& keys, NetworkParams& params) {
    const Family& family = *params.family;
    const ModelParams& sizes = params.sizes;
    const bool by_width = family.scale_by_width == sizes.n_layers;
    const float scored = by_width ? static_cast<float>(sizes.n_embd) / static_cast<float>(sizes.n_heads)
                                  : static_cast<float>(sizes.head_dim);
    params.attention_scale = 1.0f / std::sqrt(scored);
    params.attention_cap = family.attention_cap;
    params.logit_cap = family.logit_cap;
    if (family.scaled_embedding) params.embedding_scale = std::sqrt(static_cast<float>(sizes.n_embd));
    Status status = keys.positive("attention.scale", false, &params.attention_scale);
    if (status.ok()) status = keys.magnitude("attn_logit_softcapping", &params.attention_cap);
    if (status.ok()) status = keys.magnitude("final_logit_softcapping", &params.logit_cap);
    if (!status.ok() || !family.multipliers) return status;
    float logit_divisor = 1.0f;
    status = keys.positive("logit_scale", true, &logit_divisor);
    if (status.ok()) status = keys.positive("embedding_scale", false, &params.embedding_scale);
    if (status.ok()) status = keys.positive("residual_scale", false, &params.branch_scale);
    params.logit_scale = 1.0f / logit_divisor;
    return status;
}

// Which layers see a window only, by the pattern of the file or the family.
Status read_window_pattern(Keys& keys, const NetworkParams& params, std::vector<bool>& local) {
    constexpr const char* key = "attention.sliding_window_pattern";
    std::uint32_t period = params.family->window_period;
    const GgufValue* pattern = keys.find(key);
    if (pattern != nullptr && pattern->is_array) {
        if (pattern->element != ValueType::boolean || pattern->n != local.size()) {
            return Status::error(Code::bad_metadata, "'%s' is %s, expected bool[%zu] or an integer",
                                 keys.name(key).c_str(), value_text(*pattern).c_str(), local.size());
        }
        for (std::size_t layer = 0; layer < local.size(); layer++) {
            local[layer] = pattern->data[layer] != 0;
        }
        return {};
    }
    const Status status = keys.integer(key, period == pattern_needed, {0, max_layers}, &period);
    if (!status.ok()) return status;
    for (std::uint32_t layer = 0; layer < local.size(); layer++) {
        local[layer] = period == every_layer || layer % period < period - 1;
    }
    return {};
}

Status read_windows(Keys& keys, NetworkParams& params) {
    const Family& family = *params.family;
    ModelParams& sizes = params.sizes;
    std::uint32_t window = family.window;
    const Status status = keys.integer("attention.sliding_window", family.needs_window,
                                       {family.needs_window ? 1u : 0u, 0xffffffff}, &window);
    params.layer_ropes.assign(sizes.n_layers, LayerRope::global);
    if (!status.ok() || window == 0) return status;
    std::vector<bool> local(sizes.n_layers);
    if (Status patterned = read_window_pattern(keys, params, local); !patterned.ok()) return patterned;
    sizes.windows.resize(sizes.n_layers);
    for (std::size_t layer = 0; layer < local.size(); layer++) {
        sizes.windows[layer] = local[layer] ? window : 0;
        if (local[layer] && family.own_local_rope) params.layer_ropes[layer] = LayerRope::local;
    }
    return {};
}

Status read_scaling_type(Keys& keys, const GgufFile& file, RopeParams& rope) {
    std::string_view type = "linear";
    const Status status = keys.text("rope.scaling.type", &type);
    if (!status.ok()) return status;
    if (type == "none") return {};
    const bool by_tensors = type == "longrope" || type == "llama3";
    if (type == "linear" || by_tensors) rope.scaling = RopeScaling::linear;
    if (type == "yarn") rope.scaling = RopeScaling::yarn;
    if (rope.scaling == RopeScaling::none) {
        return Status::error(Code::unsupported_model,
                             "RoPE scaling '%s', expected none, linear, yarn, longrope or llama3",
                             escape_text(type.substr(0, 64)).c_str());
    }
    // These two are nothing but a factor for each frequency.
    const char* tensor = type == "longrope" ? "rope_factors_long.weight" : "rope_freqs.weight";
    if (by_tensors && find_tensor(file, tensor) == nullptr) {
        return Status::error(Code::missing_tensor, "RoPE scaling '%s' without '%s'",
                             std::string(type).c_str(), tensor);
    }
    if (by_tensors) rope.scaling = RopeScaling::none;
    return {};
}

// An old file names a linear factor and no type.
Status read_scaling_factor(Keys& keys, RopeParams& rope) {
    float factor = 0.0f;
    float old_factor = 0.0f;
    Status status = keys.magnitude("rope.scaling.factor", &factor);
    if (status.ok()) status = keys.magnitude("rope.scale_linear", &old_factor);
    if (!status.ok()) return status;
    if (factor != 0.0f && old_factor != 0.0f && factor != old_factor) {
        return Status::error(Code::bad_metadata, "'%s' is %g and '%s' is %g, expected one factor",
                             keys.name("rope.scaling.factor").c_str(), static_cast<double>(factor),
                             keys.name("rope.scale_linear").c_str(), static_cast<double>(old_factor));
    }
    if (factor == 0.0f) factor = old_factor;
    rope.factor = factor == 0.0f ? 1.0f : factor;
    return {};
}

Status read_yarn(Keys& keys, const ModelParams& sizes, RopeParams& rope) {
    Status status = keys.positive("rope.scaling.yarn_beta_fast", false, &rope.yarn_fast);
    if (status.ok()) status = keys.positive("rope.scaling.yarn_beta_slow", false, &rope.yarn_slow);
    if (status.ok()) status = keys.magnitude("rope.scaling.yarn_log_multiplier", &rope.yarn_log_multiplier);
    if (!status.ok()) return status;
    if (keys.find("rope.scaling.factor") == nullptr) {
        return Status::error(Code::missing_key, "RoPE scaling 'yarn' without '%s'",
                             keys.name("rope.scaling.factor").c_str());
    }
    if (rope.factor < 1.0f || rope.base <= 1.0f) {
        return Status::error(Code::bad_metadata,
                             "YaRN by %g with base %g, expected 1 or more and a base above 1",
                             static_cast<double>(rope.factor), static_cast<double>(rope.base));
    }
    if (rope.original_context == 0) rope.original_context = sizes.n_ctx;
    return {};
}

Status read_rope(Keys& keys, const GgufFile& file, NetworkParams& params) {
    ModelParams& sizes = params.sizes;
    RopeParams& rope = params.rope;
    sizes.rope_dim = sizes.head_dim;
    Status status = keys.integer("rope.dimension_count", false, {2, sizes.head_dim}, &sizes.rope_dim);
    if (!status.ok()) return status;
    if (sizes.rope_dim % 2 != 0) {
        return Status::error(Code::bad_metadata, "'%s' is %u, expected an even number",
                             keys.name("rope.dimension_count").c_str(), sizes.rope_dim);
    }
    status = keys.positive("rope.freq_base", false, &rope.base);
    if (status.ok()) status = read_scaling_type(keys, file, rope);
    if (status.ok()) status = read_scaling_factor(keys, rope);
    if (status.ok()) status = keys.positive("rope.scaling.attn_factor", false, &rope.magnitude);
    if (status.ok()) {
        status = keys.integer("rope.scaling.original_context_length", false, {0, max_context},
                              &rope.original_context);
    }
    if (status.ok() && rope.scaling == RopeScaling::yarn) status = read_yarn(keys, sizes, rope);
    sizes.rope_base = rope.base;
    return status;
}

// The base of layers with a window, and the layers that have no RoPE at all.
Status read_layer_ropes(Keys& keys, NetworkParams& params) {
    const Family& family = *params.family;
    params.local_base = family.local_base > 0.0f ? family.local_base : params.rope.base;
    if (family.own_local_rope && !params.sizes.windows.empty()) {
        const Status status = keys.positive("rope.freq_base_swa", false, &params.local_base);
        if (!status.ok()) return status;
    }
    bool rotates = true;
    if (family.multipliers) {
        const Status status = keys.boolean("rope.scaling.finetuned", &rotates);
        if (!status.ok()) return status;
    }
    for (std::uint32_t layer = 0; layer < params.sizes.n_layers; layer++) {
        const bool skipped = family.rope_gap > 0 && (layer + 1) % family.rope_gap == 0;
        if (skipped || !rotates) params.layer_ropes[layer] = LayerRope::none;
    }
    return {};
}

}  // namespace

Status read_params(const GgufFile& file, NetworkParams* out) {
    NetworkParams params;
    Status status = read_family(file, &params.family);
    if (status.ok()) status = check_kind(file);
    if (!status.ok()) return status;
    params.sizes.family = params.family->name;
    Keys keys(file, params.family->name);
    status = read_sizes(keys, params.sizes);
    if (status.ok()) status = read_heads(keys, params.sizes);
    if (status.ok()) status = read_scales(keys, params);
    if (status.ok()) status = read_windows(keys, params);
    if (status.ok()) status = read_rope(keys, file, params);
    if (status.ok()) status = read_layer_ropes(keys, params);
    if (status.ok()) status = keys.check_all_obeyed(params.family->pairing);
    if (status.ok()) *out = std::move(params);
    return status;
}

Status check_vocab_size(const GgufFile& file, const Family& family, std::uint32_t n_vocab) {
    std::uint32_t stated = n_vocab;
    const std::string key = std::string(family.name) + ".vocab_size";
    const Status status = read_integer(file, key, false, {}, &stated);
    if (!status.ok() || stated == n_vocab) return status;
    return Status::error(Code::bad_metadata, "'%s' is %u, but the tokenizer has %u tokens", key.c_str(),
                         stated, n_vocab);
}

}  // namespace gearkv
