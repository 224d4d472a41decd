// Latency of decode steps across block boundaries: append one token and attend, in every layer. The median is
// what a user waits for a token, the 99th percentile what compression adds to some; with one thread both in
// time of the processor too, in which nothing else on the machine counts. Then the longest piece of
// compression and what calls of attention waited for theirs.
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
#include "pools.hpp"
#include "rounds.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

struct Shape {
    std::uint32_t n_layers = 4, n_kv_heads = 8, n_heads = 32, dim = 128, prompt = 4096, steps = 2000;
};

// Seconds of every step, and microseconds of the processor of the calling thread; prompts are not timed.
struct StepTimes {
    std::vector<double> seconds, processor_us;
};
StepTimes run_steps(const Shape& shape, const CacheConfig& config, Executor& executor, PieceTimer* timer) {
    std::unique_ptr<Cache> cache;
    require(Cache::create(config, &cache));
    const std::vector<float> k = make_rows(shape.prompt, shape.n_kv_heads, shape.dim, 1),
                             v = make_rows(shape.prompt, shape.n_kv_heads, shape.dim, 2),
                             q = make_rows(1, shape.n_heads, shape.dim, 3);
    for (std::uint32_t layer = 0; layer < shape.n_layers; ++layer) {
        require(cache->append(layer, rows_of(k, shape.n_kv_heads, shape.dim),
                              rows_of(v, shape.n_kv_heads, shape.dim), shape.prompt, executor));
        require(cache->compress(layer, executor));
    }
    const Queries queries = queries_of(q, 1, shape.n_heads, shape.dim);
    std::vector<float> out(q.size());
    StepTimes times;
    for (std::uint32_t step = 0; step < shape.steps; ++step) {
        const auto start = std::chrono::steady_clock::now();
        const double processor = processor_us();
        for (std::uint32_t layer = 0; layer < shape.n_layers; ++layer) {
            const std::size_t token = step % shape.prompt;
            require(cache->append(layer, rows_of(k, shape.n_kv_heads, shape.dim, token),
                                  rows_of(v, shape.n_kv_heads, shape.dim, token), 1, *timer));
            require(cache->attend(layer, queries, out.data(), out.size(), *timer));
        }
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
        times.seconds.push_back(taken.count());
        times.processor_us.push_back(processor_us() - processor);
    }
    return times;
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Latency of decode steps: append and attend in every layer"};
    Shape shape;
    std::vector<std::string> specs = {"f16", "gear-4", "gear-2", "paper:gear-2", "kivi-2"};
    std::vector<unsigned> threads = {1, 2};
    std::vector<std::uint32_t> spreads = {0, CacheConfig{}.spread_tokens};
    std::string json_path, pool = pool_names[0];
    app.add_option("--pool", pool, "threads: those this build prefers, of the standard library, oneTBB")
        ->check(CLI::IsMember(pool_names))
        ->capture_default_str();
    app.add_option("--kv", specs, "SPECs of the cache")->capture_default_str();
    app.add_option("--threads", threads, "thread counts")->capture_default_str();
    app.add_option("--spread", spreads, "tokens a compression is spread over; 0 compresses at once")
        ->capture_default_str();
    app.add_option("--layers", shape.n_layers)->capture_default_str();
    app.add_option("--kv-heads", shape.n_kv_heads)->capture_default_str();
    app.add_option("--heads", shape.n_heads)->capture_default_str();
    app.add_option("--head-dim", shape.dim)->capture_default_str();
    app.add_option("--prompt", shape.prompt, "tokens before the first step")->capture_default_str();
    app.add_option("--steps", shape.steps)->capture_default_str();
    app.add_option("--json", json_path, "also write the table as JSON to this file");
    CLI11_PARSE(app, argc, argv);

    Level level;
    require(resolve_level(Level::automatic, &level));
    std::printf(
        "%u layers, %u/%u heads of %u channels, %u tokens and %u steps, level %s; microseconds a step\n",
        shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.dim, shape.prompt, shape.steps,
        level_name(level));
    std::printf("%-14s %7s %7s %9s %9s %9s %10s %9s %10s %7s %21s\n", "spec", "threads", "spread", "median",
                "p99", "largest", "p99/median", "processor", "p99/median", "piece", "waited, p99, most");
    nlohmann::json json = {
        {"schema_version", 1}, {"level", level_name(level)}, {"rows", nlohmann::json::array()}};
    for (const std::string& text : specs) {
        for (const unsigned n : threads) {
            const std::unique_ptr<Executor> executor = make_pool(pool, n);
            for (const std::uint32_t spread_tokens : spreads) {
                CacheConfig config;
                config.n_layers = shape.n_layers;
                config.n_kv_heads = shape.n_kv_heads;
                config.key_dim = config.value_dim = shape.dim;
                config.max_tokens = shape.prompt + shape.steps;
                config.spread_tokens = spread_tokens;
                require(parse_spec(text.c_str(), &config.spec));
                PieceTimer timer(*executor);
                const auto [seconds, own] = run_steps(shape, config, *executor, &timer);
                const double middle = 1e6 * median(seconds), late = 1e6 * quantile(seconds, 0.99),
                             most = 1e6 * quantile(seconds, 1.0), own_middle = median(own),
                             own_late = quantile(own, 0.99);
                std::printf("%-14s %7u %7u %9.0f %9.0f %9.0f %10.2f", text.c_str(), n, spread_tokens, middle,
                            late, most, late / middle);
                // Of several threads it is not told which work was whose.
                if (n == 1) {
                    std::printf(" %9.0f %10.2f", own_middle, own_late / own_middle);
                } else {
                    std::printf(" %9s %10s", "-", "-");
                }
                // What is compressed at once is not beside attention.
                std::vector<double> waits = timer.waits_us();
                if (waits.empty()) waits.push_back(0.0);
                if (spread_tokens > 0) {
                    std::printf(" %7.0f %6.0f %6.0f %7.0f\n", timer.longest_us(), median(waits),
                                quantile(waits, 0.99), quantile(waits, 1.0));
                } else {
                    std::printf(" %7s %6s %6s %7s\n", "-", "-", "-", "-");
                }
                json["rows"].push_back({{"spec", text},
                                        {"threads", n},
                                        {"spread_tokens", spread_tokens},
                                        {"median_us", middle},
                                        {"p99_us", late},
                                        {"largest_us", most},
                                        {"processor_median_us", own_middle},
                                        {"processor_p99_us", own_late},
                                        {"longest_piece_us", timer.longest_us()},
                                        {"wait_us", median(waits)},
                                        {"wait_p99_us", quantile(waits, 0.99)},
                                        {"longest_wait_us", quantile(waits, 1.0)}});
            }
        }
    }
    return write_json(json_path, json) ? 0 : 1;
}
