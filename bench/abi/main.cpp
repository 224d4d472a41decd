// What the C ABI costs: decode steps of one cache through C and of another through C++, in the same rounds.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gearkv/gearkv.h"
#include "inputs.hpp"
#include "output.hpp"
#include "rounds.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

constexpr std::uint32_t n_layers = 4, n_heads = 32, n_kv_heads = 8, dim = 128, n_steps = 8;
constexpr float scale = 0.0883883476f;

void require(gearkv_code code, const gearkv_error& error) {
    if (code == GEARKV_OK) return;
    std::fprintf(stderr, "%s\n", error.message);
    std::exit(1);
}

// The same rows and queries at every step, and one cache each way.
struct Caches {
    std::vector<float> rows, queries, out;
    std::unique_ptr<Cache> plain;
    gearkv_cache* c = nullptr;
    gearkv_error error = {};

    Caches(const std::string& spec, std::uint32_t n_tokens)
        : rows(make_rows(n_tokens, n_kv_heads, dim, 1)),
          queries(make_rows(1, n_heads, dim, 2)),
          out(n_heads * dim) {
        CacheConfig config;
        config.n_layers = n_layers;
        config.n_kv_heads = n_kv_heads;
        config.key_dim = config.value_dim = dim;
        config.max_tokens = n_tokens + n_steps;
        config.rollback_tokens = n_steps;
        bench::require(parse_spec(spec.c_str(), &config.spec));
        bench::require(Cache::create(config, &plain));
        gearkv_config c_config;
        gearkv_config_init(&c_config, sizeof(c_config));
        c_config.spec = spec.c_str();
        c_config.n_layers = n_layers;
        c_config.n_kv_heads = n_kv_heads;
        c_config.key_dim = c_config.value_dim = dim;
        c_config.max_tokens = config.max_tokens;
        c_config.rollback_tokens = n_steps;
        require(gearkv_cache_create(&c_config, &c, &error), error);
        const Rows all = {rows.data(), n_kv_heads * dim, dim};
        const gearkv_rows c_all = {rows.data(), n_kv_heads * dim, dim};
        for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
            bench::require(plain->append(layer, all, all, n_tokens, serial_executor()));
            bench::require(plain->compress(layer, serial_executor()));
            require(gearkv_cache_append(c, layer, &c_all, &c_all, n_tokens, nullptr, &error), error);
            require(gearkv_cache_compress(c, layer, nullptr, &error), error);
        }
    }
    ~Caches() { gearkv_cache_destroy(c); }
    Caches(const Caches&) = delete;
    Caches& operator=(const Caches&) = delete;

    void back_to(std::uint64_t n_tokens) {
        bench::require(plain->truncate(n_tokens));
        require(gearkv_cache_truncate(c, n_tokens, nullptr, &error), error);
    }
    void steps_plain() {
        for (std::uint32_t step = 0; step < n_steps; ++step) {
            const Rows row = {rows.data() + step * n_kv_heads * dim, n_kv_heads * dim, dim};
            for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
                const Queries asked = {queries.data(), n_heads * dim, dim, 1, n_heads, scale, true};
                bench::require(plain->append(layer, row, row, 1, serial_executor()));
                bench::require(plain->attend(layer, asked, out.data(), out.size(), serial_executor()));
            }
        }
    }
    void steps_c() {
        for (std::uint32_t step = 0; step < n_steps; ++step) {
            const gearkv_rows row = {rows.data() + step * n_kv_heads * dim, n_kv_heads * dim, dim};
            for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
                gearkv_queries asked;
                gearkv_queries_init(&asked, sizeof(asked));
                asked.data = queries.data();
                asked.query_stride = n_heads * dim;
                asked.head_stride = dim;
                asked.n_queries = 1;
                asked.n_heads = n_heads;
                asked.scale = scale;
                require(gearkv_cache_append(c, layer, &row, &row, 1, nullptr, &error), error);
                require(gearkv_cache_attend(c, layer, &asked, out.data(), out.size(), nullptr, &error),
                        error);
            }
        }
    }
};

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Decode steps through C beside C++: 4 layers, 32/8 heads of 128 channels, one thread"};
    std::string spec = "gear-4", json_path;
    std::size_t n_rounds = 101;
    app.add_option("--kv", spec, "what the cache stores")->capture_default_str();
    app.add_option("--rounds", n_rounds, "rounds; the median counts")->capture_default_str();
    app.add_option("--json", json_path, "also write the table as JSON to this file");
    CLI11_PARSE(app, argc, argv);

    nlohmann::json json = {{"schema_version", 1}, {"kv", spec}, {"rows", nlohmann::json::array()}};
    std::printf("%s, %zu rounds of %u steps\n%8s %14s %8s %10s\n", spec.c_str(), n_rounds, n_steps, "tokens",
                "us a step, C", "spread", "C of C++");
    for (const std::uint32_t n_tokens : {64u, 1024u, 4096u}) {
        Caches caches(spec, n_tokens);
        std::vector<Timed> cases = {{[&caches] { caches.steps_c(); }}, {[&caches] { caches.steps_plain(); }}};
        run_rounds(&cases, n_rounds, [&] { caches.back_to(n_tokens); });
        const double us = 1e6 * median(cases[0].seconds) / n_steps, share = ratio(cases[0], cases[1]);
        std::printf("%8u %14.1f %7.1f%% %10.4f\n", n_tokens, us, 100 * spread(cases[0].seconds), share);
        json["rows"].push_back({{"tokens", n_tokens}, {"us_per_step", us}, {"c_of_cpp", share}});
    }
    return write_json(json_path, json) ? 0 : 1;
}
