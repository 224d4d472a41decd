// What a SPEC would do to a model: runs a text through llama.cpp as it is, looks at the keys, values and
// queries of every attention with the engine's evaluation callback, and prints the errors that the SPEC makes
// on them, layer by layer: relative L2 norms of keys, values, and of the attention output of the last
// queries. Every model with flash attention and a cache of fp16 can be asked. Built by build.sh DIR probe.
//   probe MODEL TEXT [N_TOKENS] SPEC...
#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gearkv/cache.hpp"
#include "program.h"

namespace {

constexpr std::uint32_t n_last = 64;  // queries that are looked at

struct Errors {
    double key = 0.0, value = 0.0, output = 0.0, bits = 0.0;
};

struct Probe {
    std::vector<std::string> specs;
    std::uint32_t n_tokens = 0;                 // in the cache when the last batch runs
    bool is_last = false;                       // that one is looked at
    std::map<int, std::vector<Errors>> layers;  // one for each spec
    std::string trouble;
};

// Rows [n_tokens, n_heads, dim] of a tensor [dim, token, head] in f32 or f16, in any layout.
std::vector<float> rows_of(const ggml_tensor* tensor, std::int64_t first, std::int64_t n) {
    const std::int64_t dim = tensor->ne[0], n_heads = tensor->ne[2];
    std::vector<float> out(static_cast<std::size_t>(n * n_heads * dim));
    for (std::int64_t token = 0; token < n; ++token) {
        for (std::int64_t head = 0; head < n_heads; ++head) {
            const char* const row = static_cast<const char*>(tensor->data) +
                                    (first + token) * static_cast<std::int64_t>(tensor->nb[1]) +
                                    head * static_cast<std::int64_t>(tensor->nb[2]);
            float* const to = out.data() + (token * n_heads + head) * dim;
            if (tensor->type == GGML_TYPE_F16) {
                ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(row), to, dim);
            } else {
                std::memcpy(to, row, static_cast<std::size_t>(dim) * sizeof(float));
            }
        }
    }
    return out;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
    double difference = 0.0, norm = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        difference += (double{a[i]} - double{b[i]}) * (double{a[i]} - double{b[i]});
        norm += double{a[i]} * double{a[i]};
    }
    return norm > 0.0 ? std::sqrt(difference / norm) : 0.0;
}

// Attends and reads a cache of this SPEC that was given the keys and values as one prompt.
gearkv::Status attend(const char* spec, const std::vector<float>& keys, const std::vector<float>& values,
                      const gearkv::Queries& queries, gearkv::CacheConfig config, std::vector<float>* out,
                      std::vector<float>* held_keys, std::vector<float>* held_values, double* bits) {
    auto& executor = gearkv::serial_executor();
    config.n_layers = 1;
    gearkv::Status status = gearkv::parse_spec(spec, &config.spec);
    std::unique_ptr<gearkv::Cache> cache;
    if (status.ok()) status = gearkv::Cache::create(config, &cache);
    const gearkv::Rows key_rows = {keys.data(), std::size_t{config.n_kv_heads} * config.key_dim,
                                   config.key_dim};
    const gearkv::Rows value_rows = {values.data(), std::size_t{config.n_kv_heads} * config.value_dim,
                                     config.value_dim};
    if (status.ok())
        status =
            cache->append(0, key_rows, value_rows, static_cast<std::uint32_t>(config.max_tokens), executor);
    if (status.ok())
        status = cache->attend(0, queries, out->data(), out->size(), executor);  // auto:BITS chooses by it
    if (status.ok()) status = cache->compress(0, executor);
    if (status.ok()) status = cache->attend(0, queries, out->data(), out->size(), executor);
    held_keys->resize(keys.size());
    held_values->resize(values.size());
    if (status.ok())
        status = cache->read(0, 0, config.max_tokens, held_keys->data(), held_keys->size(),
                             held_values->data(), held_values->size());
    if (status.ok()) *bits = cache->stats().bits_per_element;
    return status;
}

gearkv::Status look(Probe& probe, const ggml_tensor* node, std::vector<Errors>* errors) {
    const ggml_tensor *const q = node->src[0], *const k = node->src[1], *const v = node->src[2],
                             *const mask = node->src[3];
    float params[3];  // scale, ALiBi, soft cap
    std::memcpy(params, node->op_params, sizeof params);
    if (params[1] > 0.0f) return gearkv::Status::error(gearkv::Code::unsupported_model, "ALiBi");
    if (k->type != GGML_TYPE_F16 || v->type != GGML_TYPE_F16 || q->type != GGML_TYPE_F32 ||
        k->ne[1] < probe.n_tokens)
        return gearkv::Status::error(gearkv::Code::unsupported_model, "not a cache in fp16");
    const auto n_queries = static_cast<std::uint32_t>(std::min<std::int64_t>(q->ne[1], n_last));
    const std::int64_t first = q->ne[1] - n_queries;

    gearkv::CacheConfig config;
    config.n_kv_heads = static_cast<std::uint32_t>(k->ne[2]);
    config.key_dim = static_cast<std::uint32_t>(k->ne[0]);
    config.value_dim = static_cast<std::uint32_t>(v->ne[0]);
    config.max_tokens = probe.n_tokens;
    const std::vector<float> keys = rows_of(k, 0, probe.n_tokens), values = rows_of(v, 0, probe.n_tokens);
    const std::vector<float> asked = rows_of(q, first, n_queries);
    gearkv::Queries queries;
    queries.data = asked.data();
    queries.n_queries = n_queries;
    queries.n_heads = static_cast<std::uint32_t>(q->ne[2]);
    queries.head_stride = config.key_dim;
    queries.query_stride = std::size_t{queries.n_heads} * config.key_dim;
    queries.scale = params[0];
    queries.soft_cap = params[2];
    // The engine's mask says who sees what, windows too.
    std::vector<float> seen;
    if (mask != nullptr) {
        seen.resize(std::size_t{n_queries} * probe.n_tokens);
        for (std::uint32_t i = 0; i < n_queries; ++i) {
            const char* const row =
                static_cast<const char*>(mask->data) + (first + i) * static_cast<std::int64_t>(mask->nb[1]);
            ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(row),
                                  seen.data() + std::size_t{i} * probe.n_tokens, probe.n_tokens);
        }
        queries.mask = seen.data();
        queries.mask_query_stride = probe.n_tokens;
        queries.causal = false;
    }
    if (node->src[4] != nullptr) queries.sinks = static_cast<const float*>(node->src[4]->data);

    std::vector<float> exact(std::size_t{n_queries} * queries.n_heads * config.value_dim), out(exact.size()),
        held_keys, held_values;
    double bits = 0.0;
    gearkv::Status status =
        attend("f32", keys, values, queries, config, &exact, &held_keys, &held_values, &bits);
    for (const std::string& spec : probe.specs) {
        if (!status.ok()) return status;
        Errors found;
        status =
            attend(spec.c_str(), keys, values, queries, config, &out, &held_keys, &held_values, &found.bits);
        found.key = distance(keys, held_keys);
        found.value = distance(values, held_values);
        found.output = distance(exact, out);
        errors->push_back(found);
    }
    return status;
}

// The layer is in the name of the cache's tensor, of which the keys are a view.
int layer_of(const ggml_tensor* k) {
    while (k->view_src != nullptr)
        k = k->view_src;
    const char* const at = std::strstr(k->name, "k_l");
    return at != nullptr && std::isdigit(static_cast<unsigned char>(at[3])) ? std::atoi(at + 3) : -1;
}

bool on_node(ggml_tensor* node, bool ask, void* user) {
    Probe& probe = *static_cast<Probe*>(user);
    const bool wanted = probe.is_last && node->op == GGML_OP_FLASH_ATTN_EXT && layer_of(node->src[1]) >= 0;
    if (ask || !wanted) return ask ? wanted : true;
    const int layer = layer_of(node->src[1]);
    std::vector<Errors> errors;
    const gearkv::Status status = look(probe, node, &errors);
    if (!status.ok()) {
        probe.trouble = "layer " + std::to_string(layer) + ": " + status.message();
        return false;
    }
    probe.layers[layer] = errors;
    return true;
}

void print(const Probe& probe) {
    std::printf("relative errors: keys, values, attention output\nlayer");
    for (const std::string& spec : probe.specs)
        std::printf("  %24s", spec.c_str());
    std::printf("\n");
    std::vector<Errors> sums(probe.specs.size());
    const auto line = [&](const std::vector<Errors>& errors) {
        for (const Errors& e : errors)
            std::printf("  %8.4f%8.4f%8.4f", e.key, e.value, e.output);
        std::printf("\n");
    };
    for (const auto& [layer, errors] : probe.layers) {
        std::printf("%5d", layer);
        line(errors);
        for (std::size_t i = 0; i < errors.size(); ++i) {
            const double n = static_cast<double>(probe.layers.size());
            sums[i].key += errors[i].key / n;
            sums[i].value += errors[i].value / n;
            sums[i].output += errors[i].output / n;
            sums[i].bits += errors[i].bits / n;
        }
    }
    std::printf(" mean");
    line(sums);
    std::printf(" bits");
    for (const Errors& e : sums)
        std::printf("  %24.2f", e.bits);
    std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 4) return std::fprintf(stderr, "probe MODEL TEXT [N_TOKENS] SPEC...\n"), 2;
    Probe probe;
    int at = 3, n_wanted = 2048;
    if (std::isdigit(static_cast<unsigned char>(argv[at][0]))) n_wanted = std::atoi(argv[at++]);
    probe.specs.assign(argv + at, argv + argc);
    llama_model* const model = open_model(argv[1]);
    std::vector<llama_token> tokens = read_tokens(model, argv[2]);
    const int n_tokens = std::min(static_cast<int>(tokens.size()), n_wanted);
    if (n_tokens < 256) fail("the text has fewer than 256 tokens");

    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<std::uint32_t>(n_tokens);
    params.n_batch = params.n_ubatch = 256;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.swa_full = true;
    params.cb_eval = on_node;
    params.cb_eval_user_data = &probe;
    llama_context* const context = make_context(model, params, nullptr);
    for (int first = 0; first < n_tokens; first += 256) {
        const int n = std::min(256, n_tokens - first);
        probe.n_tokens = static_cast<std::uint32_t>(first + n);
        probe.is_last = first + n == n_tokens;
        if (llama_decode(context, llama_batch_get_one(tokens.data() + first, n)) != 0 ||
            !probe.trouble.empty())
            fail("this text cannot be looked at: " + probe.trouble);
    }
    if (probe.layers.empty()) fail("this model has no attention with a cache of its own");
    print(probe);
    llama_free(context);
    llama_model_free(model);
    return 0;
}
