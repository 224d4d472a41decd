// The pieces a layer is made of, each by itself.
#include <cstring>

#include "cache/closing.hpp"
#include "cache/past.hpp"
#include "cache/reopenable.hpp"
#include "cache/tokens.hpp"
#include "caches.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = source_heads, dim = source_dim;

// What pieces take their memory from, and the kernels of the level under test.
struct Bench {
    CountingMemory counting;
    CacheContext context;
    HeldBytes held;
    Scratch scratch;

    explicit Bench(CacheConfig config) : context((config.allocator = counting.allocator(), config)) {
        context.kernels = find_kernels(make_cache(config)->level());
    }
    Memory memory() { return {&context.ledger, &held}; }
};

Rows rows_from(const std::vector<float>& data, std::size_t first) {
    return {data.data() + first * n_heads * dim, n_heads * dim, dim};
}
const std::vector<float>& floats() {
    static const std::vector<float> data = to_floats(source().keys);
    return data;
}

// The first channel of the tokens in a buffer.
std::vector<float> shown(const Kernels& kernels, const TokenBuffer& buffer) {
    std::vector<float> all;
    for (std::uint64_t t = 0; t < buffer.n_tokens(); ++t) {
        std::vector<float> row(n_heads * dim);
        buffer.read(kernels, t, {row.data(), row.size(), row.size(), dim}, 0);
        all.push_back(row[0]);
    }
    return all;
}
std::vector<float> expected(std::initializer_list<std::pair<std::size_t, std::size_t>> ranges) {
    std::vector<float> all;
    for (const auto& [first, end] : ranges) {
        for (std::size_t t = first; t < end; ++t)
            all.push_back(floats()[t * n_heads * dim]);
    }
    return all;
}

}  // namespace

TEST_CASE("a token buffer keeps what it is told to, aside or not, and returns to its base room", "[pieces]") {
    Bench bench(make_config("k=f32;v=f32", n_heads, dim, dim));
    const Kernels& kernels = *bench.context.kernels;
    const Memory memory = bench.memory();
    {
        TokenBuffer buffer, other;
        REQUIRE(buffer.create(bench.context.config, 0, memory, TensorKind::key, 10));
        const std::uint64_t base = bench.held.total();
        REQUIRE(buffer.reserve(memory, 40));
        buffer.append(kernels, rows_from(floats(), 0), 40);
        CHECK(bench.held.total() == 5 * base);
        CHECK(shown(kernels, buffer) == expected({{0, 40}}));
        buffer.set_aside(10);
        buffer.set_aside(5);
        CHECK(buffer.n_aside() == 15);
        CHECK(shown(kernels, buffer) == expected({{15, 40}}));
        REQUIRE(other.create(bench.context.config, 0, memory, TensorKind::key, 10));
        REQUIRE(other.copy(memory, buffer));
        other.bring_back(15);
        CHECK(shown(kernels, other) == expected({{0, 40}}));
        buffer.drop_aside(memory, 10);
        buffer.bring_back(3);
        CHECK(shown(kernels, buffer) == expected({{12, 40}}));
        buffer.remove(memory, 2, 20);
        CHECK(shown(kernels, buffer) == expected({{12, 14}, {34, 40}}));
        CHECK(buffer.n_aside() == 2);
        REQUIRE(buffer.reserve(memory, 1));
        buffer.append(kernels, rows_from(floats(), 50), 1);
        buffer.drop_back(memory, 1);
        buffer.drop_aside(memory, 2);
        buffer.drop_front(memory, 1);
        CHECK(shown(kernels, buffer) == expected({{13, 14}, {34, 40}}));
        other.destroy(memory);
        CHECK(bench.held.total() == base);
        buffer.destroy(memory);
    }
    CHECK(bench.counting.held == 0);
}

TEST_CASE("a buffer that grows by steps keeps what it is told to, in room for that and two steps",
          "[pieces]") {
    Bench bench(make_config("k=f32;v=f32", n_heads, dim, dim));
    const Kernels& kernels = *bench.context.kernels;
    const Memory memory = bench.memory();
    {
        TokenBuffer buffer, other;
        REQUIRE(buffer.create(bench.context.config, 0, memory, TensorKind::key, 30, 8));
        REQUIRE(other.create(bench.context.config, 0, memory, TensorKind::key, 30, 8));
        const std::uint64_t row = n_heads * dim * sizeof(float);
        const auto n_rooms = [&] { return bench.held.total() / row; };
        CHECK(n_rooms() == 0);
        const auto append = [&](std::size_t first, std::uint32_t n) {
            REQUIRE(buffer.reserve(memory, n));
            buffer.append(kernels, rows_from(floats(), first), n);
        };
        append(0, 1);
        CHECK(n_rooms() == 8);
        append(1, 8);
        CHECK(n_rooms() == 16);
        append(9, 20);
        CHECK(n_rooms() == 30);  // of 32
        append(29, 70);
        CHECK(n_rooms() == 99);
        buffer.set_aside(5);
        REQUIRE(other.copy(memory, buffer));
        other.destroy(memory);
        buffer.drop_aside(memory, 5);
        CHECK(shown(kernels, buffer) == expected({{5, 99}}));
        buffer.drop_front(memory, 74);
        CHECK(shown(kernels, buffer) == expected({{79, 99}}));
        CHECK(n_rooms() == 24);
        buffer.drop_back(memory, 11);  // a draft
        CHECK(n_rooms() == 24);
        bench.counting.budget = 0;  // it can stay where it is
        buffer.drop_back(memory, 8);
        CHECK(n_rooms() == 24);
        CHECK_FALSE(buffer.reserve(memory, 30));
        CHECK(shown(kernels, buffer) == expected({{79, 80}}));
        buffer.drop_back(memory, 1);
        CHECK(n_rooms() == 0);
        CHECK_FALSE(buffer.reserve(memory, 1));
        bench.counting.budget = INT64_MAX;
        append(3, 2);
        CHECK(shown(kernels, buffer) == expected({{3, 5}}));
        buffer.destroy(memory);
        CHECK(n_rooms() == 0);
    }
    CHECK(bench.counting.held == 0);
}

TEST_CASE("a shape knows what becomes of it, and what a window has left of it", "[pieces]") {
    const LayerShape shape = {4, 100, 60, 30, 80};
    CHECK(shape.n_tokens() == 194);
    CHECK(shape.gap_end() == 104);
    CHECK(shape.left_end() == 84);
    const auto counts = [](const LayerShape& s) {
        return std::vector<std::uint64_t>{s.n_sinks, s.n_forgotten, s.n_closed, s.n_buffered, s.n_left};
    };
    using Counts = std::vector<std::uint64_t>;
    CHECK(counts(shape.truncated(180)) == Counts{4, 100, 60, 16, 80});
    CHECK(counts(shape.truncated(120)) == Counts{4, 100, 16, 0, 80});
    CHECK(counts(shape.truncated(90)) == Counts{4, 86, 0, 0, 80});
    CHECK(counts(shape.truncated(50)) == Counts{4, 46, 0, 0, 46});
    CHECK(counts(shape.truncated(3)) == Counts{3, 0, 0, 0, 0});
    CHECK(counts(shape.without(4, 20)) == Counts{4, 80, 60, 30, 60});
    CHECK(counts(shape.without(80, 100)) == Counts{4, 76, 0, 14, 76});
    CHECK(counts(shape.without(190, 4)) == Counts{4, 100, 60, 26, 80});
    CHECK_FALSE(shape.lacks(84, 194));
    CHECK(shape.lacks(83, 194));
    CHECK_FALSE(shape.lacks(0, 4));  // sinks alone
    CHECK(shape.lacks(0, 5));
    CHECK_FALSE((LayerShape{4, 100, 60, 30, 0}.lacks(0, 194)));  // all of it masked
    CHECK(first_seen(194, 0) == 0);
    CHECK(first_seen(194, 100) == 94);
    CHECK(first_seen(50, 100) == 0);
}

TEST_CASE("the past tells to which tokens a stream can be taken back", "[pieces]") {
    constexpr std::uint64_t n_long = 64;
    Past past;
    past.append(0, 100, true);
    past.append(100, 5, false);
    CHECK(past.is_exact_at(0));
    past.note(101);
    CHECK(past.is_exact_at(101));
    CHECK_FALSE(past.is_exact_at(100));
    past.note(50);
    CHECK(past.exact_from() == 101);
    past.undo(0);
    CHECK(past.is_exact_at(10));
    // What is left of a long append may be short.
    CHECK_FALSE(past.prompt());
    CHECK(past.prompt_at(100, n_long));
    CHECK(past.prompt_at(64, n_long));
    CHECK_FALSE(past.prompt_at(63, n_long));
    CHECK_FALSE(past.prompt_at(101, n_long));
    past.truncate(100, 105, n_long);
    CHECK(past.prompt());
    past.truncate(40, 100, n_long);
    CHECK_FALSE(past.prompt());
    // A file does not tell enough, and the places of tokens have changed.
    past.restore(10, true, 90);
    CHECK(past.prompt());
    CHECK(past.exact_from() == 10);
    CHECK_FALSE(past.is_exact_at(89));
    CHECK(past.is_exact_at(90));
}

TEST_CASE("units that may be opened again expire in the order they were closed", "[pieces]") {
    Bench bench(make_config("f16", n_heads, dim, dim));
    ReopenableUnits units, copy;
    for (std::uint32_t i = 0; i < 6; ++i) {
        REQUIRE(units.reserve(bench.memory()));
        units.push({{{}, 10 + i, false, 0}, 100 + 5 * (i / 2), i});
    }
    CHECK(units.size() == 6);
    CHECK(units.closed_from(111) == nullptr);
    REQUIRE(units.closed_from(110) != nullptr);
    CHECK(units.closed_from(110)->exact_from == 5);
    CHECK(units.expire(108, 8) == 0);
    CHECK(units.expire(109, 8) == 10 + 11);
    CHECK(units.size() == 4);
    REQUIRE(copy.copy(bench.memory(), units));
    units.pop();
    units.pop();
    CHECK(units.closed_from(105)->exact_from == 3);
    CHECK(copy.expire(1000, 64) == 12 + 13 + 14 + 15);
    CHECK(copy.closed_from(0) == nullptr);
    units.clear();
    CHECK(units.size() == 0);
    units.destroy(bench.memory());
    copy.destroy(bench.memory());
    CHECK(bench.counting.held == 0);
}

TEST_CASE("a unit closes in the pieces that are due, whatever way it takes", "[pieces]") {
    // Spread so that a call has a section and more, some of its panels, or one.
    const std::pair<const char*, std::uint32_t> cases[] = {
        {"gear-3", 16}, {"gear-2", 31}, {"gear-4", 128}, {"paper:gear-4:nb=128", 16}};
    const std::uint32_t n_panels = dim / 16;
    for (const auto& [spec, n_spread] : cases) {
        CAPTURE(spec, n_spread);
        Bench bench(make_config(spec, n_heads, dim, dim));
        const CacheConfig& config = bench.context.config;
        const Memory memory = bench.memory();
        KvBuffer buffer;
        REQUIRE(buffer.create(config, 0, memory, 200));
        buffer.append(*bench.context.kernels, rows_from(floats(), 0), rows_from(floats(), 300), 200);
        const TensorSpec specs[2] = {config.spec.key, config.spec.value};
        const bool first[2] = {true, true};
        ClosingPlan plan;
        REQUIRE(plan.lay_out(config, 0, specs, 128, false, first).ok());
        const bool trellis = config.spec.key.backbone == Backbone::trellis;
        if (trellis) REQUIRE(bench.scratch.ensure(memory, plan.scratch_bytes));  // the other has its own
        PieceSource source;
        source.kernels = bench.context.kernels;
        source.shared_scratch = &bench.scratch;
        std::atomic<std::uint64_t> nanoseconds{0};
        source.nanoseconds = &nanoseconds;
        for (const TensorKind kind : {TensorKind::key, TensorKind::value})
            source.rows[static_cast<int>(kind)] = buffer.of(kind).source(0);
        Closing closing;
        CHECK_FALSE(closing.is_open());
        CHECK(closing.header(TensorKind::key) == nullptr);
        CHECK(closing.n_due(n_spread) == 0);
        const std::uint64_t before = bench.counting.held;
        std::vector<unsigned char> bytes[2];
        ClosedUnit unit;
        for (const bool at_once : {true, false}) {
            REQUIRE(closing.begin(memory, plan, bench.scratch));
            CHECK(closing.n_tokens() == 128);
            CHECK(closing.n_pieces() == (trellis ? 2 * n_heads * (1 + n_panels) : 2));
            if (at_once) {
                closing.run(source, closing.n_pieces(), serial_executor());
            } else {
                for (std::uint32_t t = 0; t < n_spread; ++t) {
                    CHECK(closing.n_due(n_spread) <= closing.n_pieces());
                    closing.run(source, closing.n_due(n_spread), serial_executor());
                    // Other layers compress in the same scratch.
                    if (trellis) std::memset(bench.scratch.data(), 0x5a, bench.scratch.n_bytes());
                    closing.advance(1);
                }
                closing.rewind(5);
                CHECK(closing.n_appended() == n_spread - 5);
                closing.advance(7);
                CHECK(closing.n_due(n_spread) == closing.n_pieces());
                closing.run(source, closing.n_due(n_spread), serial_executor());
            }
            bytes[at_once].clear();
            for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
                const auto* block = reinterpret_cast<const unsigned char*>(closing.header(kind));
                bytes[at_once].insert(bytes[at_once].end(), block,
                                      block + plan.headers[static_cast<int>(kind)].n_bytes);
            }
            unit = closing.finish(memory);
            CHECK_FALSE(closing.is_open());
            CHECK(unit.n_tokens == 128);
            if (!at_once) break;
            drop_block(memory, unit.block);
            CHECK(bench.counting.held == before);
        }
        CHECK(bytes[0] == bytes[1]);
        closing.reopen(unit);
        CHECK(closing.is_open());
        CHECK(closing.n_appended() == n_spread + 2);
        CHECK(closing.next(source, closing.n_pieces()).n == 0);  // its block is done
        closing.drop(memory);
        CHECK(bench.counting.held == before);
        // Memory that runs out leaves none open.
        bench.counting.budget = 0;
        CHECK_FALSE(closing.begin(memory, plan, bench.scratch));
        CHECK_FALSE(closing.is_open());
        bench.counting.budget = INT64_MAX;
        buffer.destroy(memory);
        bench.scratch.free(memory);
        CHECK(bench.counting.held == 0);
    }
}

TEST_CASE("tokens lie in sinks, gap, blocks and buffer, and keep their order as they move", "[pieces]") {
    Bench bench(make_config("k=f32;v=f32:sinks=4,nb=64", n_heads, dim, dim));
    const CacheContext& context = bench.context;
    const Memory memory = bench.memory();
    LayerTokens tokens;
    REQUIRE(tokens.create(context.config, 0, memory));
    REQUIRE(tokens.reserve(memory, 200));
    tokens.append(context, rows_from(floats(), 0), rows_from(floats(), 0), 3);
    CHECK(tokens.shape().n_sinks == 3);
    tokens.append(context, rows_from(floats(), 3), rows_from(floats(), 3), 197);
    CHECK(tokens.n_buffered() == 196);
    const auto close = [&](bool set_aside) {
        const TensorSpec specs[2] = {context.config.spec.key, context.config.spec.value};
        const bool first[2] = {false, false};
        ClosingPlan plan;
        REQUIRE(plan.lay_out(context.config, 0, specs, 64, false, first).ok());
        PieceSource source;
        source.kernels = context.kernels;
        source.shared_scratch = &bench.scratch;
        std::atomic<std::uint64_t> nanoseconds{0};
        source.nanoseconds = &nanoseconds;
        for (const TensorKind kind : {TensorKind::key, TensorKind::value})
            source.rows[static_cast<int>(kind)] = tokens.buffer(kind).source(0);
        Closing closing;
        REQUIRE(closing.begin(memory, plan, bench.scratch));
        closing.run(source, closing.n_pieces(), serial_executor());
        const ClosedUnit unit = closing.finish(memory);
        ClosedBlock block;
        block.owner = unit.block.owner;
        block.key = unit.block.key;
        block.value = unit.block.value;
        block.n_tokens = unit.n_tokens;
        REQUIRE(tokens.mutable_blocks()->reserve(memory, 1));
        tokens.close(memory, block, set_aside);
        return unit;
    };
    std::vector<std::size_t> there(200);
    for (std::size_t i = 0; i < there.size(); ++i)
        there[i] = i;
    const auto check = [&](std::size_t n_missing) {
        REQUIRE(tokens.n_tokens() == there.size());
        const std::size_t first = tokens.shape().gap_end();
        CHECK(tokens.shape().n_forgotten == n_missing);
        std::vector<float> keys((there.size() - first) * n_heads * dim);
        const OutRows rows = {keys.data(), keys.size(), n_heads * dim, dim};
        tokens.read_range(context, context.config.rope, first, there.size() - first, &rows, nullptr);
        for (std::size_t i = first; i < there.size(); ++i)
            REQUIRE(keys[(i - first) * n_heads * dim] == floats()[there[i] * n_heads * dim]);
    };
    check(0);
    (void)close(false);
    check(0);
    const ClosedUnit unit = close(true);
    CHECK(tokens.shape().n_closed == 128);
    CHECK(tokens.n_aside() == 64);
    check(0);
    tokens.reopen(memory);
    CHECK(tokens.shape().n_closed == 64);
    check(0);
    drop_block(memory, unit.block);
    (void)close(true);
    tokens.drop_aside(memory, 64);
    CHECK(tokens.n_aside() == 0);
    CHECK(tokens.n_forgettable(131, 0) == 64);
    CHECK(tokens.n_forgettable(132, 0) == 128);
    CHECK(tokens.n_forgettable(132, 1) == 64);
    // The middle of a block, its end with the first of the buffer, and the gap.
    REQUIRE(tokens.reserve_cut(memory));
    tokens.remove(memory, *context.kernels, 80, 10, {});
    there.erase(there.begin() + 80, there.begin() + 90);
    check(0);
    REQUIRE(tokens.reserve_cut(memory));
    tokens.remove(memory, *context.kernels, 110, 30, {});
    there.erase(there.begin() + 110, there.begin() + 140);
    check(0);
    REQUIRE(tokens.reserve_cut(memory));
    tokens.forget(memory, 64, true);
    CHECK(tokens.shape().n_left == 64);
    check(64);
    REQUIRE(tokens.reserve_cut(memory));
    tokens.remove(memory, *context.kernels, 10, 60, {});
    there.erase(there.begin() + 10, there.begin() + 70);
    check(6);
    tokens.truncate(memory, 60);
    there.resize(60);
    check(6);
    LayerTokens copy;
    REQUIRE(copy.create(context.config, 0, memory));
    REQUIRE(copy.copy(memory, tokens));
    tokens.truncate(memory, 0);
    CHECK(tokens.n_tokens() == 0);
    CHECK(copy.n_tokens() == 60);
    tokens.destroy(memory);
    copy.destroy(memory);
    bench.scratch.free(memory);
    CHECK(bench.counting.held == 0);
}
