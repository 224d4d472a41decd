// Products of a matrix of quantised weights with a few vectors: integer kernels and float kernels, in the
// same rounds as a plain read of the same bytes.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "decoder/network/integer.hpp"
#include "decoder/network/linear.hpp"
#include "inputs.hpp"
#include "output.hpp"
#include "rounds.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

struct Matrix {
    TensorType type;
    std::size_t n_rows = 0, n_cols = 0, row_bytes = 0;
    std::vector<std::uint8_t> bytes;
};

// Random bytes, whose scales are finite.
Matrix make_matrix(const TensorType& type, std::size_t n_cols, std::size_t n_bytes) {
    Matrix m;
    m.type = type;
    m.n_cols = n_cols;
    m.row_bytes = n_cols / type.block * type.block_bytes;
    m.n_rows = n_bytes / m.row_bytes / 8 * 8;
    m.bytes.resize(m.n_rows * m.row_bytes);
    std::mt19937_64 random(1);
    for (std::size_t i = 0; i + 8 <= m.bytes.size(); i += 8) {
        const std::uint64_t eight = random() & 0x3fff3fff3fff3fffu;
        std::memcpy(m.bytes.data() + i, &eight, sizeof(eight));
    }
    return m;
}

struct Run {
    const Matrix* matrix;
    std::string level;
    unsigned threads = 1;
    std::size_t n_tokens = 1;
    std::size_t integer = 0, floats = 0, read = 0;  // cases
};

// Rows of one task: as the decoder cuts a product.
constexpr std::size_t task_rows = 64;

template <class Task>
void for_rows(Executor& executor, const Matrix& m, const Task& task) {
    const std::size_t n_tasks = (m.n_rows + task_rows - 1) / task_rows;
    parallel_for(executor, n_tasks,
                 [&](std::size_t i) { task(i * task_rows, std::min(task_rows, m.n_rows - i * task_rows)); });
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"Products of a quantised matrix with a few vectors"};
    std::vector<std::string> types = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"};
    std::vector<std::string> levels = {"automatic"};
    std::vector<unsigned> threads = {1};
    std::vector<std::size_t> vectors = {1};
    std::size_t n_cols = 2048, mib = 96, n_rounds = 9;
    std::string json_path;
    app.add_option("--types", types, "tensor types, or all")->capture_default_str();
    app.add_option("--levels", levels, "instruction-set levels; those the machine lacks are left out")
        ->capture_default_str();
    app.add_option("--threads", threads, "thread counts")->capture_default_str();
    app.add_option("--vectors", vectors, "vectors multiplied at once")->capture_default_str();
    app.add_option("--cols", n_cols, "columns, a multiple of 256")->capture_default_str();
    app.add_option("--mib", mib, "size of a matrix; larger than the last cache, or its speed is measured")
        ->capture_default_str();
    app.add_option("--rounds", n_rounds, "rounds; the median counts")->capture_default_str();
    app.add_option("--json", json_path, "also write the table as JSON to this file");
    CLI11_PARSE(app, argc, argv);
    if (n_cols == 0 || n_cols % 256 != 0) {
        std::fprintf(stderr, "%zu columns, expected a multiple of 256\n", n_cols);
        return 1;
    }

    std::vector<std::unique_ptr<Matrix>> matrices;
    for (const TensorType& type : tensor_types) {
        const bool wanted = std::find(types.begin(), types.end(), type.name) != types.end() ||
                            std::find(types.begin(), types.end(), "all") != types.end();
        if (!wanted || type.block == 1) continue;
        matrices.push_back(std::make_unique<Matrix>(make_matrix(type, n_cols, mib << 20)));
    }
    std::vector<std::unique_ptr<Executor>> executors;
    for (const unsigned n : threads) {
        executors.emplace_back();
        require(create_executor(n, &executors.back()));
    }
    const std::size_t most_vectors = *std::max_element(vectors.begin(), vectors.end());
    const std::vector<float> x = make_rows(most_vectors, 1, n_cols, 3);
    std::size_t most_rows = 0;
    for (const auto& m : matrices)
        most_rows = std::max(most_rows, m->n_rows);
    std::vector<float> y(most_rows * most_vectors);
    std::vector<CodeBlock> codes(x.size() / code_block);

    std::vector<Run> runs;
    std::vector<Timed> cases;
    for (const auto& matrix : matrices) {
        const Matrix& m = *matrix;
        for (const std::string& level_text : levels) {
            Level level = Level::automatic;
            if (level_text != "automatic") require(parse_level(level_text.c_str(), &level));
            if (level != Level::automatic && !level_available(level)) continue;
            require(resolve_level(level, &level));
            const IntegerKernels& integer = *find_integer_kernels(level);
            const LinearKernels& linear = *find_linear_kernels(level);
            const auto type = static_cast<std::size_t>(m.type.type);
            for (std::size_t e = 0; e < executors.size(); ++e) {
                Executor& executor = *executors[e];
                for (const std::size_t n_tokens : vectors) {
                    Run run = {&m, level_name(level), threads[e], n_tokens};
                    run.integer = cases.size();
                    cases.push_back({[&, type, n_tokens] {
                        integer.round(codes.data(), x.data(), n_tokens * n_cols / code_block);
                        if (integer.arrange[type] != nullptr) {
                            integer.arrange[type](codes.data(), n_tokens * n_cols / code_block);
                        }
                        for_rows(executor, m, [&](std::size_t first, std::size_t n) {
                            IntegerArgs args;
                            args.y = y.data() + first;
                            args.y_stride = m.n_rows;
                            args.w = m.bytes.data() + first * m.row_bytes;
                            args.row_bytes = m.row_bytes;
                            args.x = codes.data();
                            args.x_stride = n_cols / code_block;
                            args.n_rows = n;
                            args.n_cols = n_cols;
                            args.n_tokens = n_tokens;
                            integer.multiply[type](args);
                        });
                    }});
                    run.floats = cases.size();
                    cases.push_back({[&, type, n_tokens] {
                        for_rows(executor, m, [&](std::size_t first, std::size_t n) {
                            LinearArgs args;
                            args.y = y.data() + first;
                            args.y_stride = m.n_rows;
                            args.w = m.bytes.data() + first * m.row_bytes;
                            args.row_bytes = m.row_bytes;
                            args.x = x.data();
                            args.x_stride = n_cols;
                            args.n_rows = n;
                            args.n_cols = n_cols;
                            args.n_tokens = n_tokens;
                            linear.multiply[type](args);
                        });
                    }});
                    run.read = cases.size();
                    cases.push_back({[&] {
                        for_rows(executor, m, [&](std::size_t first, std::size_t n) {
                            keep(read_lines(m.bytes.data() + first * m.row_bytes, n * m.row_bytes));
                        });
                    }});
                    runs.push_back(run);
                }
            }
        }
    }
    run_rounds(&cases, n_rounds);

    std::printf("%zu columns, %zu MiB, %zu rounds; GB/s of weights; roofline is a plain read of them\n",
                n_cols, mib, n_rounds);
    std::printf("%-7s %-8s %7s %7s %8s %7s %7s %7s %9s %10s\n", "type", "level", "threads", "vectors", "ms",
                "spread", "GB/s", "read", "roofline", "of floats");
    nlohmann::json json = {
        {"schema_version", 1}, {"cols", n_cols}, {"mib", mib}, {"rows", nlohmann::json::array()}};
    for (const Run& run : runs) {
        const Timed &t = cases[run.integer], &floats = cases[run.floats], &read = cases[run.read];
        const double seconds = median(t.seconds), bytes = static_cast<double>(run.matrix->bytes.size()),
                     gb = bytes / seconds * 1e-9, read_gb = bytes / median(read.seconds) * 1e-9,
                     share = 1.0 / ratio(t, read), of = ratio(t, floats);
        std::printf("%-7s %-8s %7u %7zu %8.2f %6.1f%% %7.2f %7.2f %8.0f%% %10.2f\n", run.matrix->type.name,
                    run.level.c_str(), run.threads, run.n_tokens, 1e3 * seconds, 100 * spread(t.seconds), gb,
                    read_gb, 100 * share, of);
        json["rows"].push_back({{"type", run.matrix->type.name},
                                {"level", run.level},
                                {"threads", run.threads},
                                {"vectors", run.n_tokens},
                                {"ms", 1e3 * seconds},
                                {"spread", spread(t.seconds)},
                                {"gb_per_s", gb},
                                {"read_gb_per_s", read_gb},
                                {"share_of_roofline", share},
                                {"of_floats", of}});
    }
    return write_json(json_path, json) ? 0 : 1;
}
