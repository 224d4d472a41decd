// What an engine's calls on its sequences mean for gearkv caches (examples/llama.cpp), without the engine.
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "engine.hpp"

using namespace engine_test;

namespace {

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

TEST_CASE("random calls leave layers of different shapes what they expect", "[engine]") {
    // One has no keys, and one has, but the engine never computes it.
    const std::vector<LayerDims> dims = {{2, 16, 16}, {0, 0, 0}, {1, 32, 8}, {2, 16, 16}, {3, 8, 24}};
    std::mt19937 random(5);
    Engine engine(setup_of("f32", 0, dims));
    engine.idle = {3};
    Random calls{engine, random, {}, {}};
    for (int i = 0; i < 200; ++i) {
        calls.call();
        if (engine.model[0].size() + engine.model[1].size() > 500) {
            engine.sequences.clear();
            engine.model.clear();
        }
    }
    CHECK(engine.worst < 2e-5);
    REQUIRE(engine.step({{0}}, 1).ok());
    const Cache& cache = *engine.sequences.runs()[0].caches[0];
    CHECK(cache.n_tokens(1) == 0);
    CHECK(cache.n_tokens(3) == 0);
    CHECK(cache.n_tokens(4) == engine.model[0].size());
}

TEST_CASE("layers of different shapes are counted channel by channel", "[engine]") {
    Engine engine(setup_of("f16", 0, {{2, 16, 16}, {0, 0, 0}, {1, 32, 8}}));
    REQUIRE(engine.step({{0}}, 400).ok());
    double of_fp16 = 0.0;
    engine.sequences.describe([&](const std::string& line) {
        REQUIRE(std::sscanf(line.c_str(),
                            "sequence 0: 400 tokens, %*f MiB in blocks and buffers (%lf of fp16)",
                            &of_fp16) == 1);
    });
    CHECK(of_fp16 > 1.0);  // the buffer's last room
    CHECK(of_fp16 < 1.5);
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
