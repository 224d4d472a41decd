// Decode steps of many sequences: attended in one call for all, and in one call each; and what they hold.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gearkv/pool.hpp"
#include "inputs.hpp"
#include "output.hpp"
#include "rounds.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

struct Shape {
    std::uint32_t n_sequences = 256, n_layers = 4, n_kv_heads = 8, n_heads = 32, dim = 128, n_tokens = 512;
};

// Sequences of about n_tokens tokens, the longest three times the shortest, with one working memory.
class Server {
  public:
    // pool_bytes of 0: from the default allocator.
    Server(const Shape& shape, const std::string& spec, std::uint64_t pool_bytes, Executor& executor)
        : shape_(shape), executor_(executor) {
        require(Workspace::create(default_allocator(), &workspace_));
        CacheConfig config;
        if (pool_bytes > 0) {
            PoolOptions options;
            options.n_bytes = pool_bytes;
            require(BlockPool::create(options, &pool_));
            config.allocator = pool_->allocator();
            config.block_tokens = 1;  // a buffer's worth each
        }
        config.n_layers = shape.n_layers;
        config.n_kv_heads = shape.n_kv_heads;
        config.key_dim = config.value_dim = shape.dim;
        config.max_tokens = 2 * shape.n_tokens + 1024;
        config.workspace = workspace_.get();
        require(parse_spec(spec.c_str(), &config.spec));
        k_ = make_rows(2 * shape.n_tokens, shape.n_kv_heads, shape.dim, 1);
        v_ = make_rows(2 * shape.n_tokens, shape.n_kv_heads, shape.dim, 2);
        q_ = make_rows(shape.n_sequences, shape.n_heads, shape.dim, 3);
        out_.resize(q_.size());
        caches_.resize(shape.n_sequences);
        const std::size_t row = std::size_t{shape.n_heads} * shape.dim;
        for (std::uint32_t i = 0; i < shape.n_sequences; ++i) {
            require(Cache::create(config, &caches_[i]));
            const std::uint32_t n = shape.n_tokens / 2 + shape.n_tokens * i / shape.n_sequences;
            append(i, n);
            for (std::uint32_t layer = 0; layer < shape.n_layers; ++layer)
                require(caches_[i]->compress(layer, executor));
            Queries queries = queries_of(q_, 1, shape.n_heads, shape.dim);
            queries.data = q_.data() + i * row;
            requests_.push_back({caches_[i].get(), queries, out_.data() + i * row, row});
        }
    }

    void append_one() {
        for (std::uint32_t i = 0; i < shape_.n_sequences; ++i)
            append(i, 1);
    }
    void attend_batch() {
        for (std::uint32_t layer = 0; layer < shape_.n_layers; ++layer)
            require(Cache::attend_batch(layer, requests_.data(), requests_.size(), executor_));
    }
    void attend_each() {
        for (std::uint32_t layer = 0; layer < shape_.n_layers; ++layer) {
            for (const AttendRequest& request : requests_)
                require(
                    request.cache->attend(layer, request.queries, request.out, request.n_floats, executor_));
        }
    }
    std::uint64_t n_bytes() const {
        std::uint64_t sum = workspace_->n_bytes();
        for (const auto& cache : caches_)
            sum += cache->stats().bytes.bytes;
        return sum;
    }
    std::uint64_t workspace_bytes() const { return workspace_->n_bytes(); }
    PoolStats pool_stats() const { return pool_ == nullptr ? PoolStats() : pool_->stats(); }
    // Ends every second sequence and fills new ones in their place.
    void replace_half() {
        for (std::uint32_t i = 0; i < shape_.n_sequences; i += 2) {
            const CacheConfig config = caches_[i]->config();
            const auto n = static_cast<std::uint32_t>(caches_[shape_.n_sequences - 1 - i]->n_tokens(0));
            caches_[i].reset();
            require(Cache::create(config, &caches_[i]));
            requests_[i].cache = caches_[i].get();
            append(i, std::min(n, 3 * shape_.n_tokens / 2));
            for (std::uint32_t layer = 0; layer < shape_.n_layers; ++layer)
                require(caches_[i]->compress(layer, executor_));
        }
    }

  private:
    void append(std::uint32_t i, std::uint32_t n) {
        for (std::uint32_t layer = 0; layer < shape_.n_layers; ++layer) {
            require(caches_[i]->append(layer, rows_of(k_, shape_.n_kv_heads, shape_.dim),
                                       rows_of(v_, shape_.n_kv_heads, shape_.dim), n, executor_));
        }
    }

    Shape shape_;
    Executor& executor_;
    std::unique_ptr<Workspace> workspace_;  // these outlive the caches
    std::unique_ptr<BlockPool> pool_;
    std::vector<float> k_, v_, q_, out_;
    std::vector<std::unique_ptr<Cache>> caches_;
    std::vector<AttendRequest> requests_;
};

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Decode steps of many sequences: one call of attend for all of them against one each"};
    Shape shape;
    std::vector<std::string> specs = {"f16", "gear-4", "gear-2"};
    unsigned n_threads = 0;
    std::size_t n_rounds = 20;
    double pool_gib = 0.0;
    std::string json_path;
    app.add_option("--kv", specs, "SPECs of the caches")->capture_default_str();
    app.add_option("--threads", n_threads, "0: one per processor")->capture_default_str();
    app.add_option("--sequences", shape.n_sequences)->capture_default_str();
    app.add_option("--tokens", shape.n_tokens, "of a sequence, on average")->capture_default_str();
    app.add_option("--layers", shape.n_layers)->capture_default_str();
    app.add_option("--kv-heads", shape.n_kv_heads)->capture_default_str();
    app.add_option("--heads", shape.n_heads)->capture_default_str();
    app.add_option("--head-dim", shape.dim)->capture_default_str();
    app.add_option("--pool", pool_gib, "GiB of a BlockPool that all caches are in; 0: the default allocator")
        ->capture_default_str();
    app.add_option("--rounds", n_rounds, "of a step either way")->capture_default_str();
    app.add_option("--json", json_path, "also write the figures as JSON to this file");
    CLI11_PARSE(app, argc, argv);

    std::unique_ptr<Executor> executor;
    require(create_executor(n_threads, &executor));
    Level level;
    require(resolve_level(Level::automatic, &level));
    std::printf(
        "%u sequences of %u tokens, %u layers, %u/%u heads of %u channels, level %s, %u threads\n"
        "%-10s %12s %12s %10s %8s %16s\n",
        shape.n_sequences, shape.n_tokens, shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.dim,
        level_name(level), executor->n_threads(), "kv", "batch ms", "each ms", "batch/each", "spread",
        "KiB a sequence");
    nlohmann::json json = {
        {"schema_version", 1}, {"level", level_name(level)}, {"rows", nlohmann::json::array()}};
    for (const std::string& spec : specs) {
        const auto slabs = static_cast<std::uint64_t>(pool_gib * (1 << 30)) / PoolOptions().slab_bytes;
        Server server(shape, spec, slabs * PoolOptions().slab_bytes, *executor);
        std::vector<Timed> cases = {{[&] { server.attend_batch(); }}, {[&] { server.attend_each(); }}};
        run_rounds(&cases, n_rounds, [&] { server.append_one(); });
        const double kib = static_cast<double>(server.n_bytes()) / shape.n_sequences / 1024;
        std::printf("%-10s %12.2f %12.2f %10.3f %7.1f%% %16.0f\n", spec.c_str(),
                    1e3 * median(cases[0].seconds), 1e3 * median(cases[1].seconds), ratio(cases[0], cases[1]),
                    100.0 * spread(cases[0].seconds), kib);
        if (pool_gib > 0.0) {
            for (int i = 0; i < 3; ++i)
                server.replace_half();
            const PoolStats stats = server.pool_stats();
            std::printf(
                "           of the pool %.3f GiB are held in %llu blocks, %.3f in use, at most %.3f\n",
                static_cast<double>(stats.held_bytes) / (1 << 30),
                static_cast<unsigned long long>(stats.n_blocks),
                static_cast<double>(stats.taken_bytes) / (1 << 30),
                static_cast<double>(stats.most_held_bytes) / (1 << 30));
        }
        json["rows"].push_back({{"spec", spec},
                                {"batch_ms", 1e3 * median(cases[0].seconds)},
                                {"each_ms", 1e3 * median(cases[1].seconds)},
                                {"batch_over_each", ratio(cases[0], cases[1])},
                                {"spread", spread(cases[0].seconds)},
                                {"bytes", server.n_bytes()},
                                {"workspace_bytes", server.workspace_bytes()}});
    }
    return write_json(json_path, json) ? 0 : 1;
}
