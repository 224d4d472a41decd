// Time that auto:BITS takes to choose its rates, once a sequence: the append that compresses first, without
// the time of the same append with fixed rates. Beside it, what the prompt costs a model of 7 billion weights
// by its multiplications alone.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gearkv/cache.hpp"
#include "inputs.hpp"
#include "output.hpp"
#include "rounds.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

struct Shape {
    std::uint32_t n_layers = 32, n_kv_heads = 8, n_heads = 32, dim = 128, prompt = 4096, n_queries = 128;
};

// Seconds to compress the prompt in all layers.
double time_compression(const Shape& shape, const KvSpec& spec, Executor& executor) {
    CacheConfig config;
    config.n_layers = shape.n_layers;
    config.n_kv_heads = shape.n_kv_heads;
    config.key_dim = config.value_dim = shape.dim;
    config.max_tokens = shape.prompt + 1;
    config.spec = spec;
    std::unique_ptr<Cache> cache;
    require(Cache::create(config, &cache));
    const std::vector<float> k = make_rows(shape.prompt, shape.n_kv_heads, shape.dim, 1),
                             v = make_rows(shape.prompt, shape.n_kv_heads, shape.dim, 2),
                             q = make_rows(shape.n_queries, shape.n_heads, shape.dim, 3);
    const Queries queries = queries_of(q, shape.n_queries, shape.n_heads, shape.dim);
    std::vector<float> out(q.size());
    for (std::uint32_t layer = 0; layer < shape.n_layers; ++layer) {
        require(cache->append(layer, rows_of(k, shape.n_kv_heads, shape.dim),
                              rows_of(v, shape.n_kv_heads, shape.dim), shape.prompt, executor));
        require(cache->attend(layer, queries, out.data(), out.size(), executor));
    }
    const auto start = std::chrono::steady_clock::now();
    for (std::uint32_t layer = 0; layer < shape.n_layers; ++layer)
        require(cache->compress(layer, executor));
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    return taken.count();
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Time that auto:BITS takes to choose its rates"};
    Shape shape;
    float bits = 3.5f;
    std::uint32_t n_threads = 1, n_rounds = 3;
    double gflops = 100.0;
    std::string json_path;
    app.add_option("--bits", bits, "BITS of auto:BITS")->capture_default_str();
    app.add_option("--layers", shape.n_layers)->capture_default_str();
    app.add_option("--kv-heads", shape.n_kv_heads)->capture_default_str();
    app.add_option("--heads", shape.n_heads)->capture_default_str();
    app.add_option("--head-dim", shape.dim)->capture_default_str();
    app.add_option("--prompt", shape.prompt, "tokens of the prompt, in one append")->capture_default_str();
    app.add_option("--threads", n_threads)->capture_default_str();
    app.add_option("--rounds", n_rounds, "rounds; the median counts")->capture_default_str();
    app.add_option("--gflops", gflops, "what the model's products are taken to reach on one core")
        ->capture_default_str();
    app.add_option("--json", json_path, "also write the figures as JSON to this file");
    CLI11_PARSE(app, argc, argv);

    KvSpec fixed, chosen;
    require(parse_spec("gear-3", &fixed));
    require(parse_spec(("auto:" + std::to_string(bits)).c_str(), &chosen));
    std::unique_ptr<Executor> executor;
    require(create_executor(n_threads, &executor));
    std::vector<double> without, with, choice;
    for (std::uint32_t round = 0; round < n_rounds; ++round) {
        without.push_back(time_compression(shape, fixed, *executor));
        with.push_back(time_compression(shape, chosen, *executor));
        choice.push_back(with.back() - without.back());
    }
    const double prefill = 2.0 * 7e9 * shape.prompt / (gflops * 1e9) / n_threads;
    std::printf("%u layers, %u/%u heads of %u channels, prompt of %u tokens, %u threads, %u rounds\n",
                shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.dim, shape.prompt, n_threads,
                n_rounds);
    std::printf("compress the prompt, gear-3      %7.2f s\n", median(without));
    std::printf("choose rates and compress        %7.2f s\n", median(with));
    std::printf("choice alone                     %7.2f s, spread %.0f %%\n", median(choice),
                100 * spread(choice));
    std::printf(
        "prefill of 7 billion weights     %7.1f s at %.0f GFLOP/s a thread; the choice is %.2f %% of it\n",
        prefill, gflops, 100 * median(choice) / prefill);
    const nlohmann::json json = {{"schema_version", 1},
                                 {"prompt", shape.prompt},
                                 {"threads", n_threads},
                                 {"seconds_fixed", median(without)},
                                 {"seconds_chosen", median(with)},
                                 {"seconds_choice", median(choice)},
                                 {"spread", spread(choice)},
                                 {"seconds_prefill", prefill}};
    return write_json(json_path, json) ? 0 : 1;
}
