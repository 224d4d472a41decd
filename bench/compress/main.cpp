// Speed of compression: GB of float input a second, beside a plain read of the same bytes in the same rounds.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gearkv/codec.hpp"
#include "inputs.hpp"
#include "output.hpp"
#include "rounds.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

// One run of memory that is kept between calls, as a cache keeps its scratch.
Allocator kept_scratch() {
    struct Kept {
        std::vector<unsigned char> bytes;
        static void* allocate(void* context, std::size_t n_bytes, std::size_t alignment) noexcept {
            auto& kept = *static_cast<Kept*>(context);
            if (kept.bytes.size() < n_bytes + alignment) kept.bytes.resize(n_bytes + alignment);
            void* place = kept.bytes.data();
            std::size_t room = kept.bytes.size();
            return std::align(alignment, n_bytes, place, room);
        }
        static void release(void*, void*, std::size_t) noexcept {}
    };
    static Kept kept;
    return {Kept::allocate, Kept::release, &kept};
}

constexpr std::uint32_t n_heads = 8, dim = 128;

// One block, on one or more threads, into memory that is there already.
struct Compression {
    BlockShape shape;
    BlockOptions options;
    Rows rows;
    std::vector<unsigned char> memory;
    void* block = nullptr;
    std::size_t n_bytes = 0;
    Executor* executor = nullptr;

    void prepare() {
        BlockBytes bytes;
        require(block_bytes(shape, options, &bytes));
        n_bytes = bytes.bytes;
        memory.resize(n_bytes + 64);
        std::size_t room = memory.size();
        block = memory.data();
        std::align(64, n_bytes, block, room);
    }
    void run() const {
        require(compress_block(block, n_bytes, rows, shape, options, *executor, kept_scratch()));
    }
};

struct Row {
    std::string spec, kind, level;
    unsigned threads;
    std::size_t index;  // of its case
    double bits;
};

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Speed of compression: GB/s of float input, 8 heads of 128 channels"};
    std::vector<std::string> specs = {"gear-4",        "gear-3",       "gear-2",
                                      "paper:gear-4",  "paper:gear-2", "paper:gearl-4",
                                      "paper:gearl-2", "kivi-4",       "kivi-2"};
    std::vector<unsigned> threads = {1, 2};
    std::vector<std::string> levels = {"avx512", "avx2", "neon", "dotprod"};
    std::uint32_t n_tokens = 1024;
    std::size_t n_rounds = 15;
    std::string json_path;
    app.add_option("--kv", specs, "SPECs to compress with")->capture_default_str();
    app.add_option("--threads", threads, "thread counts")->capture_default_str();
    app.add_option("--levels", levels, "instruction-set levels; those the machine lacks are left out");
    app.add_option("--tokens", n_tokens, "tokens of a block")
        ->capture_default_str()
        ->check(CLI::Range(1, 65536));
    app.add_option("--rounds", n_rounds, "rounds; the median counts")->capture_default_str();
    app.add_option("--json", json_path, "also write the table as JSON to this file");
    CLI11_PARSE(app, argc, argv);

    const std::vector<float> x = make_rows(n_tokens, n_heads, dim, 1);
    const double n_bytes = static_cast<double>(x.size() * sizeof(float));
    std::vector<std::unique_ptr<Executor>> executors;
    for (const unsigned n : threads) {
        executors.emplace_back();
        require(create_executor(n, &executors.back()));
    }
    std::vector<Compression> blocks;
    std::vector<Row> rows;
    for (const std::string& text : specs) {
        KvSpec spec;
        require(parse_spec(text.c_str(), &spec));
        for (const std::string& level_text : levels) {
            Level level;
            require(parse_level(level_text.c_str(), &level));
            if (!level_available(level)) continue;
            for (std::size_t i = 0; i < threads.size(); ++i) {
                for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
                    const bool keys = kind == TensorKind::key;
                    Compression c;
                    c.shape = {kind, n_tokens, n_heads, dim};
                    c.options.spec = keys ? spec.key : spec.value;
                    c.options.rank = c.options.spec.rank_prompt;
                    c.options.level = level;
                    c.rows = rows_of(x, n_heads, dim);
                    c.executor = executors[i].get();
                    blocks.push_back(std::move(c));
                    blocks.back().prepare();
                    const double bits =
                        8.0 * static_cast<double>(blocks.back().n_bytes) / static_cast<double>(x.size());
                    rows.push_back(
                        {text, keys ? "keys" : "values", level_text, threads[i], rows.size() + 1, bits});
                }
            }
        }
    }
    std::vector<Timed> cases = {{[&] { keep(read_lines(x.data(), x.size() * sizeof(float))); }}};
    for (const Compression& c : blocks)
        cases.push_back({[&c] { c.run(); }});
    run_rounds(&cases, n_rounds);

    const auto speed = [&](const Timed& t) { return n_bytes / median(t.seconds) * 1e-9; };
    std::printf("%u tokens, %u heads of %u channels, %.1f MB of float, %zu rounds; plain read %.1f GB/s\n",
                n_tokens, n_heads, dim, n_bytes * 1e-6, n_rounds, speed(cases[0]));
    std::printf("%-16s %-7s %-8s %7s %6s %8s %8s %10s\n", "spec", "tensor", "level", "threads", "bits",
                "GB/s", "spread", "of read");
    nlohmann::json json = {{"schema_version", 1},
                           {"tokens", n_tokens},
                           {"heads", n_heads},
                           {"dim", dim},
                           {"read_gb_per_s", speed(cases[0])},
                           {"rows", nlohmann::json::array()}};
    for (const Row& row : rows) {
        const Timed& t = cases[row.index];
        const double share = 1.0 / ratio(t, cases[0]);
        std::printf("%-16s %-7s %-8s %7u %6.2f %8.2f %7.1f%% %9.3f\n", row.spec.c_str(), row.kind.c_str(),
                    row.level.c_str(), row.threads, row.bits, speed(t), 100 * spread(t.seconds), share);
        json["rows"].push_back({{"spec", row.spec},
                                {"tensor", row.kind},
                                {"level", row.level},
                                {"threads", row.threads},
                                {"bits", row.bits},
                                {"gb_per_s", speed(t)},
                                {"spread", spread(t.seconds)},
                                {"share_of_read", share}});
    }
    return write_json(json_path, json) ? 0 : 1;
}
