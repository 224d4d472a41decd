#include "decoder/network/params.hpp"

namespace gearkv {
namespace {

constexpr std::uint64_t max_layers = 4096;  // as the cache allows
constexpr std::uint64_t max_heads = 4096;
constexpr std::uint64_t max_head_dim = 1024;
constexpr std::uint64_t max_width = 1u << 24;  // of embedding and feed-forward vectors
constexpr std::uint64_t max_context = (1u << 31) - 1;

Status check_architecture(const GgufFile& file) {
    std::string_view name;
    Status status = read_string(file, "general.architecture", true, &name);
    if (!status.ok()) return status;
    if (name != "llama") {
        return Status::error(Code::unsupported_model, "architecture '%s', expected 'llama'",
                             escape_text(name.substr(0, 64)).c_str());
    }
    std::uint32_t n_parts = 0;
    status = read_integer(file, "split.count", false, {0, 65535}, &n_parts);
    if (status.ok() && n_parts > 1) {
        status = Status::error(Code::unsupported_model,
                               "one of %u parts of a split model, expected a whole one", n_parts);
    }
    if (!status.ok()) return status;
    std::uint32_t n_experts = 0;
    status = read_integer(file, "llama.expert_count", false, {}, &n_experts);
    if (status.ok() && n_experts > 0) {
        status = Status::error(Code::unsupported_model, "a mixture of %u experts, expected a dense model",
                               n_experts);
    }
    return status;
}

// A float that must be above 0.
Status read_positive(const GgufFile& file, std::string_view key, bool required, float* out) {
    const Status status = read_float(file, key, required, out);
    if (!status.ok() || *out > 0.0f) return status;
    return Status::error(Code::bad_metadata, "'%.*s' is %g, expected a number above 0",
                         static_cast<int>(key.size()), key.data(), static_cast<double>(*out));
}

Status read_heads(const GgufFile& file, ModelParams& params) {
    Status status = read_integer(file, "llama.attention.head_count", true, {1, max_heads}, &params.n_heads);
    if (!status.ok()) return status;
    params.n_kv_heads = params.n_heads;
    status = read_integer(file, "llama.attention.head_count_kv", false, {1, max_heads}, &params.n_kv_heads);
    if (!status.ok()) return status;
    if (params.n_heads % params.n_kv_heads != 0) {
        return Status::error(Code::bad_metadata, "%u attention heads over %u KV heads, expected a multiple",
                             params.n_heads, params.n_kv_heads);
    }
    if (find_value(file, "llama.attention.key_length") == nullptr && params.n_embd % params.n_heads != 0) {
        return Status::error(Code::bad_metadata, "%u channels over %u heads, expected a multiple",
                             params.n_embd, params.n_heads);
    }
    params.head_dim = params.n_embd / params.n_heads;
    status = read_integer(file, "llama.attention.key_length", false, {1, max_width}, &params.head_dim);
    std::uint32_t value_dim = params.head_dim;
    if (status.ok()) {
        status = read_integer(file, "llama.attention.value_length", false, {1, max_width}, &value_dim);
    }
    if (!status.ok()) return status;
    if (params.head_dim % 8 != 0 || params.head_dim > max_head_dim) {
        return Status::error(Code::unsupported_model,
                             "heads of %u channels, expected a multiple of 8 up to %u", params.head_dim,
                             static_cast<unsigned>(max_head_dim));
    }
    if (value_dim != params.head_dim) {
        return Status::error(Code::unsupported_model,
                             "keys of %u channels and values of %u, expected equal ones", params.head_dim,
                             value_dim);
    }
    return {};
}

Status read_rope(const GgufFile& file, ModelParams& params) {
    params.rope_dim = params.head_dim;
    Status status =
        read_integer(file, "llama.rope.dimension_count", false, {2, params.head_dim}, &params.rope_dim);
    if (!status.ok()) return status;
    if (params.rope_dim % 2 != 0) {
        return Status::error(Code::bad_metadata,
                             "'llama.rope.dimension_count' is %u, expected an even number", params.rope_dim);
    }
    params.rope_base = 10000.0f;
    status = read_positive(file, "llama.rope.freq_base", false, &params.rope_base);
    if (!status.ok()) return status;

    // Positions stretched in one of several ways; an old file names a linear factor and no way.
    std::string_view scaling;
    status = read_string(file, "llama.rope.scaling.type", false, &scaling);
    if (!status.ok()) return status;
    if (!scaling.empty() && scaling != "none") {
        return Status::error(Code::unsupported_model, "RoPE scaling '%s', expected 'none'",
                             escape_text(scaling.substr(0, 64)).c_str());
    }
    for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
        float factor = 1.0f;
        status = read_float(file, key, false, &factor);
        if (!status.ok()) return status;
        if (scaling.empty() && factor != 1.0f && factor != 0.0f) {
            return Status::error(Code::unsupported_model, "'%s' is %g, expected no RoPE scaling", key,
                                 static_cast<double>(factor));
        }
    }
    return {};
}

}  // namespace

Status read_params(const GgufFile& file, ModelParams* out) {
    ModelParams params;
    Status status = check_architecture(file);
    if (status.ok())
        status = read_integer(file, "llama.block_count", true, {1, max_layers}, &params.n_layers);
    if (status.ok())
        status = read_integer(file, "llama.embedding_length", true, {1, max_width}, &params.n_embd);
    if (status.ok())
        status = read_integer(file, "llama.feed_forward_length", true, {1, max_width}, &params.n_ff);
    if (status.ok())
        status = read_integer(file, "llama.context_length", true, {1, max_context}, &params.n_ctx);
    if (status.ok()) {
        status = read_positive(file, "llama.attention.layer_norm_rms_epsilon", true, &params.norm_eps);
    }
    if (status.ok()) status = read_heads(file, params);
    if (status.ok()) status = read_rope(file, params);
    if (status.ok()) *out = params;
    return status;
}

Status check_vocab_size(const GgufFile& file, std::uint32_t n_vocab) noexcept {
    std::uint32_t stated = n_vocab;
    const Status status = read_integer(file, "llama.vocab_size", false, {}, &stated);
    if (!status.ok() || stated == n_vocab) return status;
    return Status::error(Code::bad_metadata, "'llama.vocab_size' is %u, but the tokenizer has %u tokens",
                         stated, n_vocab);
}

}  // namespace gearkv
