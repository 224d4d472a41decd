// What an engine's calls on its sequences mean for gearkv caches (examples/llama.cpp), without the engine:
// beside it stands a plain list of the tokens each sequence should have, and where.
#include "llama-gearkv-seqs.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include "support/catch.hpp"

using namespace gearkv;
using namespace llama_gearkv_detail;

namespace {

constexpr std::uint32_t n_layers = 2, n_heads = 2, dim = 16, n_pairs = dim / 2;
constexpr std::uint32_t max_tokens = 4096;

// Row `number` of all keys, values or queries there are (0, 1, 2), of one layer: [n_heads, dim].
std::vector<float> numbers(std::uint32_t kind, std::uint32_t layer, std::uint64_t number) {
    std::minstd_rand random(static_cast<std::uint32_t>(number * 16 + kind * 4 + layer + 1) * 2654435761u);
    std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
    std::vector<float> out(n_heads * dim);
    for (float& value : out)
        value = uniform(random);
    return out;
}

double frequency(std::uint32_t pair) {
    return std::pow(10000.0, -2.0 * pair / dim);
}

std::vector<float> turned(std::vector<float> row, double pos) {
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

Setup setup_of(const char* spec, std::uint32_t window = 0) {
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
            for (const Run& run : sequences.runs()) {
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
                    status = cache->append(layer, {keys.data(), n_heads * dim, dim},
                                           {values.data(), n_heads * dim, dim}, run.n, serial_executor());
                    REQUIRE(status.ok());
                }
                std::vector<float> out(queries.size());
                Queries asked{queries.data(), n_heads * dim, dim, run.n, n_heads, 0.25f, true};
                asked.window = sequences.config().windows != nullptr ? sequences.config().windows[0] : 0;
                status = run.caches[0]->attend(layer, asked, out.data(), out.size(), serial_executor());
                INFO(status.message());
                REQUIRE(status.ok());
                for (std::uint32_t i = 0; i < run.n; ++i)
                    compare(ids[run.first + i][0], layer, pos[run.first + i], names[run.first + i],
                            asked.window, out.data() + i * n_heads * dim);
            }
        }
        return {};
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

// The same call on the engine's sequences and on the list.
struct Random {
    Engine& engine;
    std::mt19937& random;
    std::vector<char> saved;
    Model saved_model;

    std::int32_t below(std::size_t n) { return static_cast<std::int32_t>(random() % n); }

    void call() {
        const std::int32_t id = below(5), other = below(5);
        auto& cells = engine.model[id];
        const std::int32_t n = static_cast<std::int32_t>(cells.size());
        switch (random() % 10) {
            case 0:
            case 1: {  // new tokens for several, some of them still one
                std::vector<std::vector<std::int32_t>> groups = {{id}};
                for (std::int32_t each = 0; each < 5; ++each) {
                    if (each == id) continue;
                    if (same(engine.model[each], cells) && random() % 2 == 0)
                        groups[0].push_back(each);
                    else if (random() % 3 == 0)
                        groups.push_back({each});
                }
                REQUIRE(engine.step(groups, 1 + random() % 9).ok());
                break;
            }
            case 2:
                REQUIRE(engine.step({{id}}, 1 + random() % 90).ok());
                break;
            case 3:
                if (n > 0) remove(id, cells[static_cast<std::size_t>(below(cells.size()))].pos, -1);
                break;
            case 4:
            case 5: {  // a context shift, or a hole
                if (n < 2) break;
                const std::int32_t p0 = cells[static_cast<std::size_t>(below(cells.size()))].pos,
                                   p1 = p0 + 1 + below(20);
                remove(id, p0, p1);
                if (random() % 4 != 0) move(id, p1, p0 - p1);
                break;
            }
            case 6:
                if (n > 0) move(id, cells[static_cast<std::size_t>(below(cells.size()))].pos, 1 + below(9));
                break;
            case 7: {
                const std::int32_t p0 = random() % 3 == 0 ? below(40) : 0,
                                   p1 = random() % 2 == 0 ? -1 : p0 + below(80);
                if (id == other) break;
                remove(other, -1, -1);
                engine.sequences.copy(id, other, p0, p1);
                for (const Cell& cell : engine.model[id]) {
                    if (cell.pos >= p0 && (p1 < 0 || cell.pos < p1)) engine.model[other].push_back(cell);
                }
                break;
            }
            case 8:
                if (random() % 8 == 0) {
                    engine.sequences.keep(id);
                    for (auto& [each, list] : engine.model)
                        if (each != id) list.clear();
                }
                break;
            default:
                if (random() % 2 == 0) {
                    saved = engine.save(-1);
                    saved_model = engine.model;
                } else if (!saved.empty()) {
                    engine.sequences.clear();
                    REQUIRE(engine.restore(-1, saved).ok());
                    engine.model = saved_model;
                } else if (n > 0 && id != other) {  // one sequence, under another's name
                    REQUIRE(engine.restore(other, engine.save(id)).ok());
                    engine.model[other] = cells;
                }
        }
    }

    static bool same(const std::vector<Cell>& a, const std::vector<Cell>& b) {
        return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Cell& x, const Cell& y) {
            return x.pos == y.pos && x.number == y.number;
        });
    }
    void remove(std::int32_t id, std::int32_t p0, std::int32_t p1) {
        REQUIRE(engine.sequences.remove(id, p0, p1));
        auto& cells = engine.model[id];
        const auto goes = [&](const Cell& cell) { return cell.pos >= p0 && (p1 < 0 || cell.pos < p1); };
        cells.erase(std::remove_if(cells.begin(), cells.end(), goes), cells.end());
    }
    void move(std::int32_t id, std::int32_t p0, std::int32_t by) {
        engine.sequences.move(id, p0, -1, [by](std::int32_t pos) { return pos + by; });
        for (Cell& cell : engine.model[id])
            if (cell.pos >= p0) cell.pos += by;
    }
};

}  // namespace

TEST_CASE("random calls of an engine leave the sequences it expects", "[engine]") {
    std::mt19937 random(20);
    Engine engine(setup_of("f32"));
    Random calls{engine, random, {}, {}};
    for (int i = 0; i < 400; ++i) {
        calls.call();
        if (engine.model[0].size() + engine.model[1].size() > 800) {
            engine.sequences.clear();
            engine.model.clear();
        }
    }
    CHECK(engine.worst < 2e-5);
}

TEST_CASE("a prompt for several sequences is held once until they part", "[engine]") {
    Engine engine(setup_of("f16"));
    REQUIRE(engine.step({{0, 1, 2}}, 100).ok());
    CHECK(engine.sequences.runs().size() == 1);
    CHECK(engine.sequences.runs()[0].caches.size() == 1);
    // In one batch: more for all three, then each its own.
    REQUIRE(engine.step({{0, 1, 2}, {3}}, 1).ok());
    REQUIRE(engine.step({{0}, {1}, {2}}, 3).ok());
    REQUIRE(engine.sequences.remove(1, 50, -1));
    engine.model[1].resize(50);
    REQUIRE(engine.step({{0}, {1}, {2}}, 2).ok());
    CHECK(engine.worst < 2e-3);
}

TEST_CASE("a context shift does not compress anything twice", "[engine]") {
    Engine engine(setup_of("gear-4"));
    REQUIRE(engine.step({{0}}, 600).ok());
    std::mt19937 one(1);
    Random calls{engine, one, {}, {}};
    const double before = engine.worst;
    REQUIRE(engine.sequences.remove(0, 100, 300));
    engine.sequences.move(0, 300, -1, [](std::int32_t pos) { return pos - 200; });
    auto& cells = engine.model[0];
    cells.erase(cells.begin() + 100, cells.begin() + 300);
    for (std::size_t i = 100; i < cells.size(); ++i)
        cells[i].pos -= 200;
    Cache* const cache = engine.sequences.runs()[0].caches[0];
    REQUIRE(engine.step({{0}}, 1).ok());
    CHECK(engine.sequences.runs()[0].caches[0] == cache);
    CHECK(cache->n_tokens(0) == 401);
    CHECK(engine.worst < 2 * before);
}

TEST_CASE("tokens behind a window may be dropped by the engine", "[engine]") {
    Engine engine(setup_of("f32", 100));
    for (int i = 0; i < 20; ++i) {
        REQUIRE(engine.step({{0}}, 50).ok());
        const std::int32_t end = std::max(50 * (i + 1), 120);
        REQUIRE(engine.sequences.remove(0, 0, end - 120));
        auto& cells = engine.model[0];
        cells.erase(std::remove_if(cells.begin(), cells.end(),
                                   [&](const Cell& cell) { return cell.pos < end - 120; }),
                    cells.end());
    }
    CHECK(engine.worst < 1e-5);
    CHECK(engine.sequences.pos_min(0, 0) > 700);
    CHECK(engine.sequences.pos_min(0, 0) <= 900);
}

TEST_CASE("what cannot go on says so until the sequence is dropped", "[engine]") {
    Engine engine(setup_of("f16"));
    REQUIRE(engine.step({{0}}, 10).ok());
    REQUIRE(engine.step({{1}}, 10).ok());
    engine.sequences.copy(0, 1, 0, -1);
    CHECK(engine.step({{1}}, 1).code() == Code::invalid_argument);
    CHECK(engine.sequences.remove(1, -1, -1));
    engine.model[1].clear();
    CHECK(engine.step({{1}}, 3).ok());

    // A gap in positions.
    engine.model[0].back().pos += 5;
    CHECK(engine.step({{0}}, 1).code() == Code::invalid_argument);

    Engine windowed(setup_of("f16", 64));
    for (int i = 0; i < 10; ++i)
        REQUIRE(windowed.step({{0}}, 100).ok());
    CHECK_FALSE(windowed.sequences.remove(0, 100, -1));
    windowed.model[0].resize(100);
    CHECK(windowed.step({{0}}, 1).code() == Code::forgotten);
}

TEST_CASE("a saved sequence that is damaged is refused", "[engine]") {
    Engine engine(setup_of("gear-4"));
    REQUIRE(engine.step({{0, 2}}, 200).ok());
    const std::vector<char> bytes = engine.save(-1);
    for (std::size_t i = 0; i < bytes.size(); i += 97) {
        std::vector<char> damaged = bytes;
        damaged[i] = static_cast<char>(damaged[i] ^ 0x40);
        Engine other(setup_of("gear-4"));
        try {
            static_cast<void>(other.restore(-1, damaged));
        } catch (const std::exception&) {
        }
    }
    std::vector<char> cut(bytes.begin(), bytes.end() - 9);
    Engine other(setup_of("gear-4"));
    CHECK_THROWS(other.restore(-1, cut));
}
