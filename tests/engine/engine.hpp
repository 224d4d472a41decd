// Beside the sequences of examples/llama.cpp stands a plain list of the tokens each should have, and where;
// and an engine that computes nothing but attention over them.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <vector>

#include "llama-gearkv-seqs.h"
#include "support/catch.hpp"

namespace engine_test {

using namespace gearkv;
using namespace llama_gearkv_detail;

constexpr std::uint32_t n_layers = 2, n_heads = 2, dim = 16, n_pairs = dim / 2;
constexpr std::uint32_t max_tokens = 4096;

// Row `number` of all keys, values or queries there are (0, 1, 2), of one layer: [n_heads, dim].
inline std::vector<float> numbers(std::uint32_t kind, std::uint32_t layer, std::uint64_t number) {
    std::minstd_rand random(static_cast<std::uint32_t>(number * 16 + kind * 4 + layer + 1) * 2654435761u);
    std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
    std::vector<float> out(n_heads * dim);
    for (float& value : out)
        value = uniform(random);
    return out;
}

inline double frequency(std::uint32_t pair) {
    return std::pow(10000.0, -2.0 * pair / dim);
}

inline std::vector<float> turned(std::vector<float> row, double pos) {
    for (std::uint32_t head = 0; head < n_heads; ++head) {
        for (std::uint32_t pair = 0; pair < n_pairs; ++pair) {
            float& x = row[head * dim + pair];
            float& y = row[head * dim + pair + n_pairs];
            const double cos = std::cos(pos * frequency(pair)), sin = std::sin(pos * frequency(pair));
            const double a = x * cos - y * sin, b = x * sin + y * cos;
            x = static_cast<float>(a), y = static_cast<float>(b);
        }
    }
    return row;
}

struct Cell {
    std::int32_t pos;
    std::uint64_t number;
};
using Model = std::map<std::int32_t, std::vector<Cell>>;

inline Setup setup_of(const char* spec, std::uint32_t window = 0) {
    Setup setup;
    setup.cache.n_layers = n_layers;
    setup.cache.n_kv_heads = n_heads;
    setup.cache.key_dim = setup.cache.value_dim = dim;
    setup.cache.max_tokens = max_tokens;
    REQUIRE(parse_spec(spec, &setup.cache.spec).ok());
    std::vector<double> frequencies;
    for (std::uint32_t pair = 0; pair < n_pairs; ++pair)
        frequencies.push_back(frequency(pair));
    setup.frequencies.assign(n_layers, frequencies);
    setup.window = window;
    setup.give_back = window > 0;
    return setup;
}

// An engine that computes nothing but attention.
struct Engine {
    Sequences sequences;
    Model model;
    std::uint64_t n_numbers = 0;
    double worst = 0.0;
    std::vector<float> outputs;  // of all steps
    // How an operator is run: on the calling thread, or with the workers of an engine.
    using Operator = std::function<void(Executor&)>;
    std::function<void(const Operator&)> run_operator = [](const Operator& run) { run(serial_executor()); };

    explicit Engine(const Setup& setup) { REQUIRE(sequences.create(setup).ok()); }

    // Appends a token to each of these groups of equal sequences, n times, in one batch.
    Status step(const std::vector<std::vector<std::int32_t>>& groups, std::uint32_t n) {
        std::vector<std::int32_t> pos, n_ids;
        std::vector<const std::int32_t*> ids;
        std::vector<std::uint64_t> names;
        for (std::uint32_t i = 0; i < n; ++i) {
            for (const auto& group : groups) {
                const auto& cells = model[group[0]];
                const std::int32_t at = cells.empty() ? 0 : cells.back().pos + 1;
                pos.push_back(at);
                n_ids.push_back(static_cast<std::int32_t>(group.size()));
                ids.push_back(group.data());
                names.push_back(n_numbers);
                for (const std::int32_t id : group)
                    model[id].push_back({at, n_numbers});
                ++n_numbers;
            }
        }
        Status status =
            sequences.begin({static_cast<std::uint32_t>(pos.size()), pos.data(), n_ids.data(), ids.data()});
        if (!status.ok()) return status;
        for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
            run_operator([&](Executor& executor) {
                for (const Run& run : sequences.runs())
                    compute(run, layer, pos, ids, names, executor);
            });
        }
        return {};
    }

    void compute(const Run& run, std::uint32_t layer, const std::vector<std::int32_t>& pos,
                 const std::vector<const std::int32_t*>& ids, const std::vector<std::uint64_t>& names,
                 Executor& executor) {
        std::vector<float> keys, values, queries;
        for (std::uint32_t i = run.first; i < run.first + run.n; ++i) {
            const auto add = [](std::vector<float>& to, const std::vector<float>& row) {
                to.insert(to.end(), row.begin(), row.end());
            };
            add(keys, turned(numbers(0, layer, names[i]), pos[i]));
            add(values, numbers(1, layer, names[i]));
            add(queries, turned(numbers(2, layer, names[i]), pos[i]));
        }
        REQUIRE(run.caches[0]->n_tokens(layer) == run.n_before);
        for (Cache* cache : run.caches) {
            REQUIRE(cache
                        ->append(layer, {keys.data(), n_heads * dim, dim},
                                 {values.data(), n_heads * dim, dim}, run.n, executor)
                        .ok());
        }
        std::vector<float> out(queries.size());
        Queries asked{queries.data(), n_heads * dim, dim, run.n, n_heads, 0.25f, true};
        asked.window = sequences.config().windows != nullptr ? sequences.config().windows[0] : 0;
        const Status status = run.caches[0]->attend(layer, asked, out.data(), out.size(), executor);
        INFO(status.message());
        REQUIRE(status.ok());
        for (std::uint32_t i = 0; i < run.n; ++i)
            compare(ids[run.first + i][0], layer, pos[run.first + i], names[run.first + i], asked.window,
                    out.data() + i * n_heads * dim);
        outputs.insert(outputs.end(), out.begin(), out.end());
    }

    // One output beside attention over the cells of that sequence, in double precision.
    void compare(std::int32_t id, std::uint32_t layer, std::int32_t pos, std::uint64_t name,
                 std::uint64_t window, const float* out) {
        const auto query = turned(numbers(2, layer, name), pos);
        for (std::uint32_t head = 0; head < n_heads; ++head) {
            std::vector<double> sum(dim, 0.0);
            double weights = 0.0;
            for (const Cell& cell : model[id]) {
                if (cell.pos > pos || (window > 0 && cell.pos + static_cast<std::int64_t>(window) <= pos))
                    continue;
                const auto key = turned(numbers(0, layer, cell.number), cell.pos);
                const auto value = numbers(1, layer, cell.number);
                double score = 0.0;
                for (std::uint32_t c = 0; c < dim; ++c)
                    score += double{query[head * dim + c]} * double{key[head * dim + c]};
                const double weight = std::exp(0.25 * score);
                weights += weight;
                for (std::uint32_t c = 0; c < dim; ++c)
                    sum[c] += weight * double{value[head * dim + c]};
            }
            for (std::uint32_t c = 0; c < dim; ++c)
                worst = std::max(worst, std::abs(sum[c] / weights - double{out[head * dim + c]}));
        }
    }

    std::vector<char> save(std::int32_t id) {
        std::vector<char> bytes;
        const Status status = sequences.write(id, [&](const void* from, std::size_t n) {
            bytes.insert(bytes.end(), static_cast<const char*>(from), static_cast<const char*>(from) + n);
        });
        INFO(status.message());
        REQUIRE(status.ok());
        return bytes;
    }
    Status restore(std::int32_t id, const std::vector<char>& bytes) {
        std::size_t done = 0;
        return sequences.read(id, 8, [&](void* to, std::size_t n) {
            if (n > bytes.size() - done) throw std::runtime_error("no more bytes");
            if (n > 0) std::memcpy(to, bytes.data() + done, n);
            done += n;
        });
    }
};

}  // namespace engine_test
