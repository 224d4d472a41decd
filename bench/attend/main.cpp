// Time of one decode step's attention in one layer, in the same rounds as a plain read of the bytes it reads
// and three baselines over the same tokens: an fp16 cache, and 8-bit and 4-bit codes with scales for 64
// channels of a token, which queries meet in integer dot products where the level has them.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dump.hpp"
#include "gearkv/cache.hpp"
#include "inputs.hpp"
#include "output.hpp"
#include "rounds.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

struct Shape {
    std::uint32_t n_heads = 32, n_kv_heads = 8, dim = 128, n_queries = 1;
};

// A filled cache and what attends it.
struct Attention {
    std::string spec, level;
    unsigned threads = 1;
    std::uint32_t n_tokens = 0;
    Executor* executor = nullptr;
    std::unique_ptr<Cache> cache;
    Queries queries;
    std::vector<float> out;
    std::size_t n_bytes = 0;        // blocks and tokens in the buffer
    std::size_t run = 0, read = 0;  // cases
    std::size_t first = 0;          // case of the first baseline with the same tokens, level and threads

    void attend() { require(cache->attend(0, queries, out.data(), out.size(), *executor)); }
};

std::unique_ptr<Cache> fill(const Shape& shape, const std::string& spec, Level level,
                            std::uint32_t n_tokens) {
    CacheConfig config;
    config.n_layers = 1;
    config.n_kv_heads = shape.n_kv_heads;
    config.key_dim = config.value_dim = shape.dim;
    config.max_tokens = n_tokens;
    config.level = level;
    require(parse_spec(spec.c_str(), &config.spec));
    std::unique_ptr<Cache> cache;
    require(Cache::create(config, &cache));
    constexpr std::uint32_t chunk = 4096;
    for (std::uint32_t first = 0; first < n_tokens; first += chunk) {
        const std::uint32_t n = std::min(chunk, n_tokens - first);
        const std::vector<float> k = make_rows(n, shape.n_kv_heads, shape.dim, first + 1),
                                 v = make_rows(n, shape.n_kv_heads, shape.dim, first + 2);
        require(cache->append(0, rows_of(k, shape.n_kv_heads, shape.dim),
                              rows_of(v, shape.n_kv_heads, shape.dim), n, serial_executor()));
        require(cache->compress(0, serial_executor()));
    }
    return cache;
}

// Each has two cases, its own and that of the plain read.
const std::vector<std::string> baselines = {"f16", "q8", "token-4"};

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Attention of one decode step in one layer"};
    Shape shape;
    std::vector<std::string> specs = {"gear-4",       "gear-3",       "gear-2", "paper:gearl-4",
                                      "paper:gear-4", "paper:gear-2", "kivi-4", "kivi-2"};
    std::vector<std::string> levels = {"automatic"};
    std::vector<unsigned> threads = {1};
    std::vector<std::uint32_t> tokens = {1024, 4096};
    std::size_t n_rounds = 15;
    bool warm = false;
    std::string json_path, dump;
    app.add_option("--kv", specs, "SPECs of the cache; the baselines always run")->capture_default_str();
    app.add_option("--levels", levels, "instruction-set levels; those the machine lacks are left out")
        ->capture_default_str();
    app.add_option("--threads", threads, "thread counts")->capture_default_str();
    app.add_option("--tokens", tokens, "tokens in the cache")->capture_default_str();
    app.add_option("--heads", shape.n_heads)->capture_default_str();
    app.add_option("--kv-heads", shape.n_kv_heads)->capture_default_str();
    app.add_option("--head-dim", shape.dim)->capture_default_str();
    app.add_option("--queries", shape.n_queries, "queries a call, causal")->capture_default_str();
    app.add_option("--rounds", n_rounds, "rounds; the median counts")->capture_default_str();
    app.add_option(
        "--dump", dump,
        "PREFIX of keys, values and queries of a model (bench/dump): times what reads less, beside "
        "its error, on them and on random rows; --tokens, --heads and their like are those of the dump");
    app.add_flag("--warm", warm, "leave the cache where the last round left it; else it is evicted first");
    app.add_option("--json", json_path, "also write the table as JSON to this file");
    CLI11_PARSE(app, argc, argv);
    if (!dump.empty()) {
        if (app.count("--kv") == 0) specs = {"gear-4", "gear-2"};
        return time_dump({dump, specs, levels, threads, n_rounds, warm, json_path});
    }

    const std::vector<float> q = make_rows(shape.n_queries, shape.n_heads, shape.dim, 3);
    std::vector<std::unique_ptr<Executor>> executors;
    for (const unsigned n : threads) {
        executors.emplace_back();
        require(create_executor(n, &executors.back()));
    }
    std::vector<Attention> all;
    std::size_t most_bytes = 0, n_cases = 0;
    for (const std::uint32_t n_tokens : tokens) {
        for (const std::string& level_text : levels) {
            Level level = Level::automatic;
            if (level_text != "automatic") require(parse_level(level_text.c_str(), &level));
            if (level != Level::automatic && !level_available(level)) continue;
            require(resolve_level(level, &level));
            for (std::size_t i = 0; i < threads.size(); ++i) {
                const std::size_t first = n_cases;
                std::vector<std::string> wanted = baselines;
                wanted.insert(wanted.end(), specs.begin(), specs.end());
                for (const std::string& spec : wanted) {
                    Attention a;
                    a.spec = spec;
                    a.level = level_name(level);
                    a.threads = threads[i];
                    a.n_tokens = n_tokens;
                    a.executor = executors[i].get();
                    a.cache = fill(shape, spec, level, n_tokens);
                    a.queries = queries_of(q, shape.n_queries, shape.n_heads, shape.dim);
                    a.out.resize(q.size());
                    a.n_bytes = static_cast<std::size_t>(a.cache->stats().bits_per_element / 8 * n_tokens *
                                                         shape.n_kv_heads * shape.dim * 2);
                    most_bytes = std::max(most_bytes, a.n_bytes);
                    a.run = n_cases++;
                    a.read = n_cases++;
                    a.first = first;
                    all.push_back(std::move(a));
                }
            }
        }
    }
    const std::vector<unsigned char> bytes(most_bytes + 4096, 1), evicting(std::size_t{96} << 20, 1);
    std::vector<Timed> cases;
    for (Attention& a : all) {
        cases.push_back({[&a] { a.attend(); }});
        cases.push_back({[&a, &bytes] { keep(read_lines(bytes.data(), a.n_bytes)); }});
    }
    run_rounds(&cases, n_rounds, [&] {
        if (!warm) keep(read_lines(evicting.data(), evicting.size()));
    });

    std::printf(
        "%u/%u heads of %u channels, %u queries, %s, %zu rounds; roofline is a plain read of the same "
        "bytes\n",
        shape.n_heads, shape.n_kv_heads, shape.dim, shape.n_queries, warm ? "warm" : "cold", n_rounds);
    std::printf("%-14s %7s %-8s %7s %6s %9s %8s %7s %9s %8s %7s %11s\n", "spec", "tokens", "level", "threads",
                "bits", "us", "spread", "GB/s", "roofline", "of f16", "of q8", "of token-4");
    nlohmann::json json = {{"schema_version", 1},
                           {"heads", shape.n_heads},
                           {"kv_heads", shape.n_kv_heads},
                           {"dim", shape.dim},
                           {"queries", shape.n_queries},
                           {"warm", warm},
                           {"rows", nlohmann::json::array()}};
    for (const Attention& a : all) {
        const Timed& t = cases[a.run];
        const double us = 1e6 * median(t.seconds), bits = a.cache->stats().bits_per_element,
                     gb = static_cast<double>(a.n_bytes) / us * 1e-3, share = 1.0 / ratio(t, cases[a.read]);
        std::printf("%-14s %7u %-8s %7u %6.2f %9.0f %7.1f%% %7.2f %8.0f%%", a.spec.c_str(), a.n_tokens,
                    a.level.c_str(), a.threads, bits, us, 100 * spread(t.seconds), gb, 100 * share);
        nlohmann::json row = {{"spec", a.spec},
                              {"tokens", a.n_tokens},
                              {"level", a.level},
                              {"threads", a.threads},
                              {"bits", bits},
                              {"us", us},
                              {"spread", spread(t.seconds)},
                              {"gb_per_s", gb},
                              {"share_of_roofline", share}};
        for (std::size_t i = 0; i < baselines.size(); ++i) {
            const double of = ratio(t, cases[a.first + 2 * i]);
            std::printf(i == 0 ? " %8.2f" : i == 1 ? " %7.2f" : " %11.2f\n", of);
            row["of_" + baselines[i]] = of;
        }
        json["rows"].push_back(row);
    }
    return write_json(json_path, json) ? 0 : 1;
}
