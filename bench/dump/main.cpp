// Keys, values and queries of a model over a text, as the other benchmarks read them: PREFIX_k.npy and
// PREFIX_v.npy [layers, tokens, KV heads, channels], and PREFIX_q.npy of the last queries, all in fp16, keys
// and queries behind RoPE; number, scale and window of each layer (0: none) in PREFIX.json. Linked so that
// what the decoder says to its cache comes through here (meson.build).
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "gearkv/decoder.hpp"
#include "inputs.hpp"
#include "npy.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

// What one layer was given: rows of all heads, as they came.
struct Layer {
    std::vector<float> keys, values, queries;
    float scale = 0.0f;
    std::uint64_t window = 0;
};

struct Taker {
    std::map<std::uint32_t, Layer> layers;  // those wanted
    LayerDims dims;
    std::uint32_t n_heads = 0;
};
Taker* taker = nullptr;

void take(std::vector<float>* to, const Rows& rows, std::size_t n, std::size_t n_heads, std::size_t dim) {
    const auto* from = static_cast<const float*>(rows.data);
    for (std::size_t t = 0; t < n; ++t) {
        for (std::size_t head = 0; head < n_heads; ++head) {
            const float* at = from + t * rows.token_stride + head * rows.head_stride;
            to->insert(to->end(), at, at + dim);
        }
    }
}

void write(const std::string& path, std::vector<std::size_t> shape, const std::vector<float> Layer::*part,
           std::size_t n_last) {
    npy::Array out;
    out.type = npy::Type::float16;
    shape.insert(shape.begin(), taker->layers.size());
    out.shape = shape;
    for (const auto& [index, layer] : taker->layers) {
        const std::vector<float>& rows = layer.*part;
        out.floats.insert(out.floats.end(), rows.end() - static_cast<std::ptrdiff_t>(n_last), rows.end());
    }
    npy::save(path, out);
}

void write_about(const std::string& path) {
    std::FILE* file = std::fopen(path.c_str(), "w");
    const char* before = "{\"layers\": [";
    for (const auto& [index, layer] : taker->layers) {
        if (file == nullptr) break;
        std::fprintf(file, "%s{\"layer\": %u, \"scale\": %.9g, \"window\": %llu}", before, index,
                     static_cast<double>(layer.scale), static_cast<unsigned long long>(layer.window));
        before = ", ";
    }
    if (file != nullptr) std::fprintf(file, "]}\n");
    if (file == nullptr || std::fclose(file) != 0) throw npy::Error(path + ": cannot be written");
}

}  // namespace

extern "C" {
Status real_append(Cache* cache, std::uint32_t layer, const Rows& keys, const Rows& values, std::uint32_t n,
                   Executor& executor) noexcept asm("__real_" GEARKV_APPEND);
Status wrapped_append(Cache* cache, std::uint32_t layer, const Rows& keys, const Rows& values,
                      std::uint32_t n, Executor& executor) noexcept asm("__wrap_" GEARKV_APPEND);
Status real_attend(Cache* cache, std::uint32_t layer, const Queries& queries, void* out, std::size_t n,
                   Executor& executor) noexcept asm("__real_" GEARKV_ATTEND);
Status wrapped_attend(Cache* cache, std::uint32_t layer, const Queries& queries, void* out, std::size_t n,
                      Executor& executor) noexcept asm("__wrap_" GEARKV_ATTEND);
}

Status wrapped_append(Cache* cache, std::uint32_t layer, const Rows& keys, const Rows& values,
                      std::uint32_t n, Executor& executor) noexcept {
    if (taker != nullptr) {
        if (const auto at = taker->layers.find(layer); at != taker->layers.end()) {
            taker->dims = cache->config().dims_of(layer);
            take(&at->second.keys, keys, n, taker->dims.n_kv_heads, taker->dims.key_dim);
            take(&at->second.values, values, n, taker->dims.n_kv_heads, taker->dims.value_dim);
        }
    }
    return real_append(cache, layer, keys, values, n, executor);
}

Status wrapped_attend(Cache* cache, std::uint32_t layer, const Queries& queries, void* out, std::size_t n,
                      Executor& executor) noexcept {
    if (taker != nullptr) {
        if (const auto at = taker->layers.find(layer); at != taker->layers.end()) {
            taker->n_heads = queries.n_heads;
            at->second.scale = queries.scale;
            at->second.window = queries.window;
            const Rows rows = {queries.data, queries.query_stride, queries.head_stride};
            take(&at->second.queries, rows, queries.n_queries, queries.n_heads, taker->dims.key_dim);
        }
    }
    return real_attend(cache, layer, queries, out, n, executor);
}

int main(int argc, char** argv) {
    CLI::App app{"Keys, values and queries of a model, for the benchmarks"};
    std::string path, text_path, prefix;
    std::vector<std::uint32_t> layers = {0, 1, 5, 10, 15, 20, 25, 29};
    std::uint32_t n_tokens = 8192, n_queries = 256;
    app.add_option("MODEL", path, "a GGUF file")->required();
    app.add_option("--file", text_path, "text, of which the first tokens are fed")->required();
    app.add_option("--to", prefix, "PREFIX of the files to write")->required();
    app.add_option("--layers", layers, "layers; those the model lacks are left out")->capture_default_str();
    app.add_option("--tokens", n_tokens)->capture_default_str();
    app.add_option("--queries", n_queries, "last tokens whose queries are kept")->capture_default_str();
    CLI11_PARSE(app, argc, argv);

    std::shared_ptr<const Model> model;
    require(Model::load(path.c_str(), &model));
    std::ifstream file(text_path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::vector<Token> tokens;
    require(model->tokenizer().encode(text, {.add_special = true}, &tokens));
    if (tokens.size() < n_tokens || n_queries > n_tokens || n_queries == 0) {
        std::fprintf(stderr, "%zu tokens in %s, expected %u or more, and as many as queries\n", tokens.size(),
                     text_path.c_str(), n_tokens);
        return 1;
    }
    SessionConfig config;
    require(parse_spec("f32", &config.spec));
    config.n_ctx = n_tokens;
    std::unique_ptr<Executor> executor;
    require(create_executor(0, &executor));
    std::unique_ptr<Session> session;
    require(Session::create(model, config, *executor, &session));
    Taker all;
    for (const std::uint32_t layer : layers) {
        if (layer < model->params().n_layers) all.layers[layer] = {};
    }
    taker = &all;
    require(session->prefill(tokens.data(), n_tokens));
    const auto [n_kv_heads, key_dim, value_dim] = all.dims;
    try {
        write(prefix + "_k.npy", {n_tokens, n_kv_heads, key_dim}, &Layer::keys,
              std::size_t{n_tokens} * n_kv_heads * key_dim);
        write(prefix + "_v.npy", {n_tokens, n_kv_heads, value_dim}, &Layer::values,
              std::size_t{n_tokens} * n_kv_heads * value_dim);
        write(prefix + "_q.npy", {n_queries, all.n_heads, key_dim}, &Layer::queries,
              std::size_t{n_queries} * all.n_heads * key_dim);
        write_about(prefix + ".json");
    } catch (const npy::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    std::printf("%zu layers, %u tokens, %u/%u heads of %u channels\n", all.layers.size(), n_tokens,
                all.n_heads, n_kv_heads, key_dim);
    return 0;
}
