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
#include "pools.hpp"
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

// What is timed of one shape: each SPEC with each number of tokens, level and number of threads.
struct Timing {
    Shape shape;
    std::vector<std::string> specs, levels = {"automatic"};
    std::vector<unsigned> threads = {1};
    std::vector<std::uint32_t> tokens;
    std::size_t n_rounds = 15;
    bool warm = false, processor = false;
    std::string pool = pool_names[0];
};

// Each has two cases, its own and that of the plain read.
const std::vector<std::string> baselines = {"f16", "q8", "token-4"};

// Additions and multiplications of one call: scores and values of the tokens that are seen.
double operations(const Shape& shape, std::uint32_t n_tokens) {
    const double seen = static_cast<double>(shape.n_queries) *
                        (n_tokens - 0.5 * (static_cast<double>(shape.n_queries) - 1.0));
    return 4.0 * seen * shape.n_heads * shape.dim;
}

void time_shape(const Timing& timing, nlohmann::json* rows) {
    const Shape& shape = timing.shape;
    const std::vector<float> q = make_rows(shape.n_queries, shape.n_heads, shape.dim, 3);
    std::vector<std::unique_ptr<Executor>> executors;
    for (const unsigned n : timing.threads)
        executors.push_back(make_pool(timing.pool, n));
    std::vector<Attention> all;
    std::size_t most_bytes = 0, n_cases = 0;
    for (const std::uint32_t n_tokens : timing.tokens) {
        for (const std::string& level_text : timing.levels) {
            Level level = Level::automatic;
            if (level_text != "automatic") require(parse_level(level_text.c_str(), &level));
            if (level != Level::automatic && !level_available(level)) continue;
            require(resolve_level(level, &level));
            for (std::size_t i = 0; i < timing.threads.size(); ++i) {
                const std::size_t first = n_cases;
                std::vector<std::string> wanted = baselines;
                wanted.insert(wanted.end(), timing.specs.begin(), timing.specs.end());
                for (const std::string& spec : wanted) {
                    Attention a;
                    a.spec = spec;
                    a.level = level_name(level);
                    a.threads = timing.threads[i];
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
    run_rounds(
        &cases, timing.n_rounds,
        [&] {
            if (!timing.warm) keep(read_lines(evicting.data(), evicting.size()));
        },
        timing.processor);

    std::printf(
        "%u/%u heads of %u channels, %u queries, %s, %zu rounds%s; roofline is a plain read of the same "
        "bytes, one thread\n",
        shape.n_heads, shape.n_kv_heads, shape.dim, shape.n_queries, timing.warm ? "warm" : "cold",
        timing.n_rounds, timing.processor ? ", time of the processor" : "");
    std::printf("%-14s %7s %-8s %7s %6s %9s %8s %7s %8s %9s %8s %7s %11s\n", "spec", "tokens", "level",
                "threads", "bits", "us", "spread", "GB/s", "GFLOP/s", "roofline", "of f16", "of q8",
                "of token-4");
    for (const Attention& a : all) {
        const Timed& t = cases[a.run];
        const double us = 1e6 * median(t.seconds), bits = a.cache->stats().bits_per_element,
                     gb = static_cast<double>(a.n_bytes) / us * 1e-3, share = 1.0 / ratio(t, cases[a.read]),
                     gflops = operations(shape, a.n_tokens) / us * 1e-3;
        std::printf("%-14s %7u %-8s %7u %6.2f %9.0f %7.1f%% %7.2f %8.1f %8.0f%%", a.spec.c_str(), a.n_tokens,
                    a.level.c_str(), a.threads, bits, us, 100 * spread(t.seconds), gb, gflops, 100 * share);
        nlohmann::json row = {{"heads", shape.n_heads},
                              {"kv_heads", shape.n_kv_heads},
                              {"dim", shape.dim},
                              {"queries", shape.n_queries},
                              {"spec", a.spec},
                              {"tokens", a.n_tokens},
                              {"level", a.level},
                              {"threads", a.threads},
                              {"bits", bits},
                              {"us", us},
                              {"spread", spread(t.seconds)},
                              {"gb_per_s", gb},
                              {"gflops", gflops},
                              {"share_of_roofline", share}};
        for (std::size_t i = 0; i < baselines.size(); ++i) {
            const double of = ratio(t, cases[a.first + 2 * i]);
            std::printf(i == 0 ? " %8.2f" : i == 1 ? " %7.2f" : " %11.2f\n", of);
            row["of_" + baselines[i]] = of;
        }
        rows->push_back(row);
    }
}

// The shapes that models have, and a layer of a million tokens for one KV head of eight.
std::vector<Timing> all_shapes(const Timing& like, bool with_million) {
    struct Case {
        Shape shape;
        std::uint32_t n_tokens;
        std::vector<unsigned> threads;
    };
    std::vector<Case> cases = {{{32, 8, 128, 1}, 4096, {1, 2}}, {{32, 8, 128, 1}, 32768, {1, 2}},
                               {{32, 32, 128, 1}, 4096, {1}},   {{9, 3, 64, 1}, 8192, {1}},
                               {{4, 1, 256, 1}, 8192, {1}},     {{32, 8, 128, 512}, 4096, {1}}};
    if (with_million) cases.push_back({{4, 1, 128, 1}, 1u << 20, {1, 2}});
    std::vector<Timing> all;
    for (const Case& one : cases) {
        Timing timing = like;
        timing.shape = one.shape;
        timing.tokens = {one.n_tokens};
        if (!like.processor) timing.threads = one.threads;
        all.push_back(std::move(timing));
    }
    return all;
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Attention of one decode step in one layer"};
    Timing timing;
    timing.specs = {"gear-4",       "gear-3",       "gear-2", "paper:gearl-4",
                    "paper:gear-4", "paper:gear-2", "kivi-4", "kivi-2"};
    timing.tokens = {1024, 4096};
    Shape& shape = timing.shape;
    bool every_shape = false, million = false;
    std::string json_path;
    std::vector<std::string> dumps;
    app.add_option("--kv", timing.specs, "SPECs of the cache; the baselines always run")
        ->capture_default_str();
    app.add_option("--levels", timing.levels, "instruction-set levels; those the machine lacks are left out")
        ->capture_default_str();
    app.add_option("--threads", timing.threads, "thread counts")->capture_default_str();
    app.add_option("--pool", timing.pool,
                   "threads: those this build prefers, of the standard library, oneTBB")
        ->check(CLI::IsMember(pool_names))
        ->capture_default_str();
    app.add_option("--tokens", timing.tokens, "tokens in the cache")->capture_default_str();
    app.add_option("--heads", shape.n_heads)->capture_default_str();
    app.add_option("--kv-heads", shape.n_kv_heads)->capture_default_str();
    app.add_option("--head-dim", shape.dim)->capture_default_str();
    app.add_option("--queries", shape.n_queries, "queries a call, causal")->capture_default_str();
    app.add_option("--rounds", timing.n_rounds, "rounds; the median counts")->capture_default_str();
    app.add_flag(
        "--shapes", every_shape,
        "The shapes of several models in place of one, with gear-4 and gear-2; then the dumps, if any");
    app.add_flag(
        "--million", million,
        "with --shapes: one KV head of a layer of 1,048,576 tokens, too; with --dump: one of the dump's, "
        "over and over");
    app.add_option(
        "--dump", dumps,
        "PREFIX of keys, values and queries of a model (bench/dump): times what reads less, beside "
        "its error, on them and on random rows; --tokens, --heads and their like are those of the dump. Of "
        "several, texts that one model read, also all behind each other, as 32/8 heads of twice the width");
    app.add_flag("--warm", timing.warm,
                 "leave the cache where the last round left it; else it is evicted first");
    app.add_flag("--processor", timing.processor,
                 "Times of the processor, with one thread only: where other programs run");
    app.add_option("--json", json_path, "also write the tables as JSON to this file");
    CLI11_PARSE(app, argc, argv);
    if (timing.processor) timing.threads = {1};
    if ((every_shape || !dumps.empty()) && app.count("--kv") == 0) timing.specs = {"gear-4", "gear-2"};
    nlohmann::json json = {{"schema_version", 1}, {"warm", timing.warm}, {"rows", nlohmann::json::array()}};
    if (every_shape) {
        for (const Timing& one : all_shapes(timing, million))
            time_shape(one, &json["rows"]);
    } else if (dumps.empty()) {
        time_shape(timing, &json["rows"]);
    }
    if (!dumps.empty()) {
        const DumpOptions options = {dumps,          timing.specs,     timing.levels,
                                     timing.threads, timing.n_rounds,  timing.warm,
                                     million,        timing.processor, timing.pool};
        if (!time_dumps(options, &json["rows"])) return 1;
    }
    return write_json(json_path, json) ? 0 : 1;
}
