// Beside the sequences of examples/llama.cpp stands a plain list of the tokens each should have, and where;
// and an engine that computes nothing but attention over them.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "llama-gearkv-seqs.h"
#include "support/catch.hpp"

namespace engine_test {

using namespace gearkv;
using namespace llama_gearkv_detail;

constexpr std::uint32_t n_layers = 2;  // unless a test has others
constexpr std::uint32_t max_tokens = 4096;

// Row `number` of all keys, values or queries there are (0, 1, 2), of one layer: n numbers.
inline std::vector<float> numbers(std::uint32_t kind, std::uint32_t layer, std::uint64_t number,
                                  std::size_t n) {
    std::minstd_rand random(static_cast<std::uint32_t>(number * 64 + kind * 8 + layer + 1) * 2654435761u);
    std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
    std::vector<float> out(n);
    for (float& value : out)
        value = uniform(random);
    return out;
}

inline double frequency(std::uint32_t pair, std::uint32_t dim) {
    return std::pow(10000.0, -2.0 * pair / dim);
}

inline std::vector<float> turned(std::vector<float> row, std::uint32_t dim, double pos) {
    for (std::size_t head = 0; head < row.size() / dim; ++head) {
        for (std::uint32_t pair = 0; pair < dim / 2; ++pair) {
            float& x = row[head * dim + pair];
            float& y = row[head * dim + pair + dim / 2];
            const double angle = pos * frequency(pair, dim), cos = std::cos(angle), sin = std::sin(angle);
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

inline Setup setup_of(const char* spec, std::uint32_t window = 0,
                      std::vector<LayerDims> dims = std::vector<LayerDims>(n_layers, {2, 16, 16})) {
    Setup setup;
    setup.dims = std::move(dims);
    setup.cache.max_tokens = max_tokens;
    REQUIRE(parse_spec(spec, &setup.cache.spec).ok());
    for (const LayerDims& each : setup.dims) {
        setup.frequencies.emplace_back();
        for (std::uint32_t pair = 0; pair < each.key_dim / 2; ++pair)
            setup.frequencies.back().push_back(frequency(pair, each.key_dim));
    }
    setup.window = window;
    setup.give_back = window > 0;
    return setup;
}

// An engine that computes nothing but attention, two query heads for each of keys.
struct Engine {
    Sequences sequences;
    Model model;
    std::uint64_t n_numbers = 0;
    double worst = 0.0;
    std::vector<float> outputs;    // of all steps
    std::set<std::uint32_t> idle;  // layers that have keys, and are never computed
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
        for (std::uint32_t layer = 0; layer < sequences.config().n_layers; ++layer) {
            if (!dims_of(layer).has_keys() || idle.count(layer) > 0) continue;
            run_operator([&](Executor& executor) {
                for (const Run& run : sequences.runs())
                    compute(run, layer, pos, ids, names, executor);
            });
        }
        return {};
    }

    LayerDims dims_of(std::uint32_t layer) const { return sequences.config().dims_of(layer); }
    std::vector<float> key(std::uint32_t layer, const Cell& cell) const {
        const auto [n_heads, dim, other] = dims_of(layer);
        return turned(numbers(0, layer, cell.number, std::size_t{n_heads} * dim), dim, cell.pos);
    }
    std::vector<float> value(std::uint32_t layer, const Cell& cell) const {
        const auto [n_heads, other, dim] = dims_of(layer);
        return numbers(1, layer, cell.number, std::size_t{n_heads} * dim);
    }
    std::vector<float> query(std::uint32_t layer, const Cell& cell) const {
        const auto [n_heads, dim, other] = dims_of(layer);
        return turned(numbers(2, layer, cell.number, std::size_t{2} * n_heads * dim), dim, cell.pos);
    }

    void compute(const Run& run, std::uint32_t layer, const std::vector<std::int32_t>& pos,
                 const std::vector<const std::int32_t*>& ids, const std::vector<std::uint64_t>& names,
                 Executor& executor) {
        const auto [n_kv_heads, key_dim, value_dim] = dims_of(layer);
        const std::uint32_t n_heads = 2 * n_kv_heads;
        std::vector<float> keys, values, queries;
        for (std::uint32_t i = run.first; i < run.first + run.n; ++i) {
            const auto add = [](std::vector<float>& to, const std::vector<float>& row) {
                to.insert(to.end(), row.begin(), row.end());
            };
            add(keys, key(layer, {pos[i], names[i]}));
            add(values, value(layer, {pos[i], names[i]}));
            add(queries, query(layer, {pos[i], names[i]}));
        }
        REQUIRE(run.caches[0]->n_tokens(layer) == run.n_before);
        for (Cache* cache : run.caches) {
            REQUIRE(cache
                        ->append(layer, {keys.data(), n_kv_heads * key_dim, key_dim},
                                 {values.data(), n_kv_heads * value_dim, value_dim}, run.n, executor)
                        .ok());
        }
        std::vector<float> out(std::size_t{run.n} * n_heads * value_dim);
        Queries asked{queries.data(), n_heads * key_dim, key_dim, run.n, n_heads, 0.25f, true};
        asked.window = sequences.config().windows != nullptr ? sequences.config().windows[0] : 0;
        const Status status = run.caches[0]->attend(layer, asked, out.data(), out.size(), executor);
        INFO(status.message());
        REQUIRE(status.ok());
        for (std::uint32_t i = 0; i < run.n; ++i)
            compare(ids[run.first + i][0], layer, {pos[run.first + i], names[run.first + i]}, asked.window,
                    out.data() + std::size_t{i} * n_heads * value_dim);
        outputs.insert(outputs.end(), out.begin(), out.end());
    }

    // One output beside attention over the cells of that sequence, in double precision.
    void compare(std::int32_t id, std::uint32_t layer, const Cell& asking, std::uint64_t window,
                 const float* out) {
        const LayerDims dims = dims_of(layer);
        const std::uint32_t n_heads = 2 * dims.n_kv_heads;
        const auto queries = query(layer, asking);
        std::vector<double> sums(std::size_t{n_heads} * dims.value_dim, 0.0), weights(n_heads, 0.0);
        for (const Cell& cell : model[id]) {
            if (cell.pos > asking.pos ||
                (window > 0 && cell.pos + static_cast<std::int64_t>(window) <= asking.pos))
                continue;
            const auto keys = key(layer, cell), values = value(layer, cell);
            for (std::uint32_t head = 0; head < n_heads; ++head) {
                const float* const q = queries.data() + std::size_t{head} * dims.key_dim;
                const float* const k = keys.data() + std::size_t{head / 2} * dims.key_dim;
                const float* const v = values.data() + std::size_t{head / 2} * dims.value_dim;
                double score = 0.0;
                for (std::uint32_t c = 0; c < dims.key_dim; ++c)
                    score += double{q[c]} * double{k[c]};
                const double weight = std::exp(0.25 * score);
                weights[head] += weight;
                for (std::uint32_t c = 0; c < dims.value_dim; ++c)
                    sums[head * dims.value_dim + c] += weight * double{v[c]};
            }
        }
        for (std::size_t i = 0; i < sums.size(); ++i)
            worst = std::max(worst, std::abs(sums[i] / weights[i / dims.value_dim] - double{out[i]}));
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
