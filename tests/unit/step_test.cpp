// Steps of a model through a cache: those that fail in the middle, layers that no step fills, and prompts
// that close themselves.
#include <limits>

#include "caches.hpp"
#include "gearkv/state.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = source_heads, dim = source_dim;
using Outputs = std::vector<float>;

Status append_to(Cache* cache, std::uint32_t layer, std::size_t first, std::size_t n) {
    return append(cache, source().keys, source().values, first, n, layer);
}

AttendRequest request_of(Cache* cache, const std::vector<float>& rows, std::size_t n, Outputs* out) {
    out->assign(n * 2 * n_heads * dim, 0.0f);
    Queries queries;
    queries.data = rows.data();
    queries.query_stride = 2 * n_heads * dim;
    queries.head_stride = dim;
    queries.n_queries = static_cast<std::uint32_t>(n);
    queries.n_heads = 2 * n_heads;
    queries.scale = 0.125f;
    return {cache, queries, out->data(), out->size()};
}

const std::vector<float>& query_rows() {
    static const std::vector<float> rows = to_floats(gaussian(600, 2 * n_heads, dim, 3));
    return rows;
}

Outputs attend_layer(Cache* cache, std::uint32_t layer, std::size_t n = 1) {
    Outputs out;
    const AttendRequest request = request_of(cache, query_rows(), n, &out);
    const Status status = cache->attend(layer, request.queries, out.data(), out.size(), serial_executor());
    INFO(status.message());
    REQUIRE(status.ok());
    return out;
}

std::uint64_t n_closed(const Cache& cache, std::uint32_t layer) {
    LayerStats stats;
    REQUIRE(cache.layer_stats(layer, &stats).ok());
    return stats.n_closed;
}

}  // namespace

TEST_CASE("after a step that failed in the middle, one call leaves all layers as if it had not begun",
          "[step]") {
    CacheConfig config = make_config("gear-3", n_heads, dim, dim, 1024, 3);
    config.rollback_tokens = 8;
    for (const std::size_t n_first : {140u, 260u, 276u}) {  // no unit is full, one begins, one is closed
        auto cache = make_cache(config), never = make_cache(config);
        for (std::uint32_t layer = 0; layer < 3; ++layer) {
            for (Cache* each : {cache.get(), never.get()}) {
                REQUIRE(append_to(each, layer, 0, 100).ok());
                for (std::size_t t = 100; t < n_first; ++t)
                    REQUIRE(append_to(each, layer, t, 1).ok());
            }
        }
        // The third layer refuses what is not finite.
        REQUIRE(append_to(cache.get(), 0, 500, 4).ok());
        REQUIRE(append_to(cache.get(), 1, 500, 4).ok());
        Tensor bad = source().keys;
        bad.data[500 * n_heads * dim] = std::numeric_limits<double>::infinity();
        REQUIRE(append(cache.get(), bad, source().values, 500, 4, 2).code() == Code::non_finite);
        std::uint64_t n = 0;
        bool lossless = false;
        REQUIRE(cache->truncate_to_shortest(&n, &lossless).ok());
        CHECK(n == n_first);
        CHECK(lossless);
        for (std::uint32_t layer = 0; layer < 3; ++layer) {
            CHECK(cache->n_tokens(layer) == n_first);
            CHECK(attend_layer(cache.get(), layer) == attend_layer(never.get(), layer));
        }
        // Nothing to do is lossless, too.
        lossless = false;
        REQUIRE(cache->truncate_to_shortest(&n, &lossless).ok());
        CHECK((lossless && n == n_first));
    }
}

TEST_CASE("a layer that closed tokens and then had no memory for new ones is told apart from one untouched",
          "[step]") {
    for (const std::uint32_t rollback : {0u, 4u}) {
        CountingMemory memory;
        CacheConfig config = make_config("gear-2", n_heads, dim, dim, 4000, 2);
        config.allocator = memory.allocator();
        config.rollback_tokens = rollback;
        config.spread_tokens = 0;
        auto cache = make_cache(config);
        // Sinks and a full unit, which the next append closes in place.
        for (std::uint32_t layer = 0; layer < 2; ++layer) {
            for (std::size_t t = 0; t < 132; ++t)
                REQUIRE(append_to(cache.get(), layer, t, 1).ok());
        }
        REQUIRE(append_to(cache.get(), 0, 132, 1).ok());
        CHECK(n_closed(*cache, 0) == 128);
        // Calls that are allowed, until the unit closes and the rest does not fit.
        Status status;
        for (memory.budget = 0; n_closed(*cache, 1) == 0; ++memory.budget) {
            const std::int64_t budget = memory.budget;
            status = append_to(cache.get(), 1, 132, rollback > 0 ? 127 : 200);
            if (status.ok()) break;
            memory.budget = budget;
        }
        memory.budget = INT64_MAX;
        REQUIRE(status.code() == Code::out_of_memory);
        REQUIRE(cache->n_tokens(1) == 132);
        std::uint64_t n = 0;
        bool lossless = true;
        REQUIRE(cache->truncate_to_shortest(&n, &lossless).ok());
        CHECK(n == 132);
        CHECK(lossless == (rollback > 0));
        CHECK(n_closed(*cache, 1) == (rollback > 0 ? 0 : 128));
    }
}

TEST_CASE("a first step that failed leaves nothing, and windows that lost tokens are refused", "[step]") {
    const std::uint32_t windows[] = {150, 150};
    CacheConfig config = make_config("gear-2", n_heads, dim, dim, 4000, 2);
    config.windows = windows;
    auto cache = make_cache(config);
    REQUIRE(append_to(cache.get(), 0, 0, 300).ok());
    std::uint64_t n = 7;
    bool lossless = false;
    REQUIRE(cache->truncate_to_shortest(&n, &lossless).ok());
    CHECK((n == 0 && cache->n_tokens(0) == 0 && lossless));
    for (std::size_t t = 0; t < 900; t += 300) {
        for (std::uint32_t layer = 0; layer < 2; ++layer)
            REQUIRE(append_to(cache.get(), layer, t, 300).ok());
    }
    REQUIRE(append_to(cache.get(), 0, 900, 300).ok());
    std::unique_ptr<Cache> fork;
    REQUIRE(cache->fork(&fork).ok());
    REQUIRE(fork->truncate_to_shortest(&n).ok());  // the step has given nothing back yet
    CHECK((n == 900 && fork->n_tokens(0) == 900));
    (void)attend_layer(fork.get(), 0);
    REQUIRE(cache->compress(0, serial_executor()).ok());
    n = 7;
    CHECK(cache->truncate_to_shortest(&n).code() == Code::forgotten);
    CHECK((n == 7 && cache->n_tokens(0) == 1200 && cache->n_tokens(1) == 900));
}

TEST_CASE("layers without tokens stand in nobody's way", "[step]") {
    const TemporaryFile file;
    for (const char* spec : {"gear-3", "auto:4", "f16"}) {
        CAPTURE(spec);
        // The first and the last of four layers read the keys of others.
        CacheConfig config = make_config(spec, n_heads, dim, dim, 1024, 4);
        auto cache = make_cache(config), alone = make_cache(make_config(spec, n_heads, dim, dim, 1024, 2));
        const auto step = [&](std::size_t first, std::size_t n) {
            for (std::uint32_t layer = 0; layer < 2; ++layer) {
                REQUIRE(append_to(cache.get(), layer + 1, first, n).ok());
                REQUIRE(append_to(alone.get(), layer, first, n).ok());
                // Seeds of blocks know the number of the layer, trellis codes do not use them.
                CHECK(attend_layer(cache.get(), layer + 1, n) == attend_layer(alone.get(), layer, n));
            }
        };
        step(0, 100);
        step(100, 200);
        for (Cache* each : {cache.get(), alone.get()}) {
            for (std::uint32_t layer = 0; layer < each->config().n_layers; ++layer)
                REQUIRE(each->compress(layer, serial_executor()).ok());
        }
        CHECK(n_closed(*cache, 1) == n_closed(*alone, 0));
        CHECK(cache->stats().n_tokens == 300);
        CHECK(cache->stats().compressed_tokens == alone->stats().compressed_tokens);
        CHECK(cache->stats().bits_per_element == Approx(alone->stats().bits_per_element));
        bool lossless = false, expected = true;
        REQUIRE(cache->truncate(290, &lossless).ok());
        REQUIRE(alone->truncate(290, &expected).ok());
        CHECK(lossless == expected);
        REQUIRE(cache->remove(50, 30).ok());
        REQUIRE(alone->remove(50, 30).ok());
        std::uint64_t n = 0;
        REQUIRE(cache->truncate_to_shortest(&n).ok());
        CHECK(n == 260);
        REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
        REQUIRE(load_state(file.path(), config, {}, serial_executor(), &cache).ok());
        step(300, 20);
        REQUIRE(append_to(cache.get(), 1, 320, 1).ok());
        REQUIRE(cache->truncate_to_shortest(&n).ok());
        CHECK((n == 280 && cache->n_tokens(1) == 280 && cache->n_tokens(0) == 0 && cache->n_tokens(3) == 0));
        CHECK(cache->truncate(281).code() == Code::wrong_size);
        CHECK(cache->remove(270, 20).code() == Code::wrong_size);
        cache->reset();
        CHECK(cache->truncate(1).code() == Code::wrong_size);
        CHECK(cache->truncate(0).ok());
    }
}

TEST_CASE("prompts close themselves as compress would, alone and in a batch", "[step]") {
    for (const char* spec : {"gear-4", "auto:3", "kivi-2:nb=64,recent=10"}) {
        for (const std::size_t n_chunk : {64u, 200u, 512u}) {
            if (spec[0] == 'a' && n_chunk != 200) continue;  // to choose rates is long
            CAPTURE(spec, n_chunk);
            CacheConfig config = make_config(spec, n_heads, dim, dim, 4000, 2);
            const std::uint32_t windows[] = {0, 200};
            config.windows = windows;
            std::unique_ptr<Workspace> workspace;
            REQUIRE(Workspace::create(default_allocator(), &workspace).ok());
            config.workspace = workspace.get();
            auto expected = make_cache(config);
            config.close_prompts = true;
            auto found = make_cache(config), batched = make_cache(config), other = make_cache(config);
            const auto step = [&](std::size_t first, std::size_t n) {
                Outputs outs[3], other_out;
                for (std::uint32_t layer = 0; layer < 2; ++layer) {
                    for (Cache* cache : {expected.get(), found.get(), batched.get()})
                        REQUIRE(append_to(cache, layer, first, n).ok());
                    REQUIRE(append_to(other.get(), layer, first, 5).ok());
                    const AttendRequest all[] = {request_of(batched.get(), query_rows(), n, &outs[0]),
                                                 request_of(other.get(), query_rows(), 1, &other_out)};
                    REQUIRE(Cache::attend_batch(layer, all, 2, serial_executor()).ok());
                    outs[1] = attend_layer(found.get(), layer, n);
                    outs[2] = attend_layer(expected.get(), layer, n);
                    CHECK(outs[0] == outs[2]);
                    CHECK(outs[1] == outs[2]);
                }
                for (std::uint32_t layer = 0; n >= config.spec.buffer_tokens && layer < 2; ++layer)
                    REQUIRE(expected->compress(layer, serial_executor()).ok());
            };
            for (std::size_t t = 0; t < 1024; t += n_chunk)
                step(t, std::min(n_chunk, 1024 - t));
            const std::size_t n = found->n_tokens(0);
            for (const Cache* cache : {found.get(), batched.get()}) {
                for (std::uint32_t layer = 0; layer < 2; ++layer) {
                    LayerStats stats;
                    REQUIRE(cache->layer_stats(layer, &stats).ok());
                    const std::uint64_t n_buffered = n - stats.n_forgotten - stats.n_closed -
                                                     config.spec.sink_tokens - config.spec.recent_tokens;
                    if (n_chunk >= config.spec.buffer_tokens) CHECK(n_buffered < config.spec.buffer_tokens);
                    CHECK(stats.n_closed == n_closed(*expected, layer));
                }
                CHECK(cache->stats().bytes.keys.bytes == expected->stats().bytes.keys.bytes);
            }
            for (std::size_t t = 1024; t < 1100; ++t)
                step(t, 1);
        }
    }
}

TEST_CASE("what follows a closed prompt can be taken back without a trace", "[step]") {
    CacheConfig config = make_config("gear-3", n_heads, dim, dim, 4000);
    config.close_prompts = true;
    config.rollback_tokens = 4;
    auto cache = make_cache(config);
    REQUIRE(append_to(cache.get(), 0, 0, 300).ok());
    (void)attend_layer(cache.get(), 0, 300);
    CHECK(n_closed(*cache, 0) == 256);
    std::unique_ptr<Cache> never;
    REQUIRE(cache->fork(&never).ok());
    for (std::size_t t = 0; t < 200; t += 4) {
        REQUIRE(append_to(cache.get(), 0, 1000 + t, 4).ok());
        (void)attend_layer(cache.get(), 0, 4);
        bool lossless = false;
        REQUIRE(cache->truncate(cache->n_tokens(0) - 3, &lossless).ok());
        CHECK(lossless);
        REQUIRE(append_to(never.get(), 0, 1000 + t, 1).ok());
        CHECK(attend_layer(cache.get(), 0) == attend_layer(never.get(), 0));
    }
}

TEST_CASE("a prompt that finds no memory to close is attended, and closed later", "[step]") {
    CountingMemory memory;
    CacheConfig config = make_config("gear-3", n_heads, dim, dim, 4000);
    config.allocator = memory.allocator();
    config.close_prompts = true;
    auto cache = make_cache(config), expected = make_cache(make_config("gear-3", n_heads, dim, dim, 4000));
    for (Cache* each : {cache.get(), expected.get()})
        REQUIRE(append_to(each, 0, 0, 300).ok());
    (void)attend_layer(cache.get(), 0, 127);  // no prompt's worth of queries: takes the scratch
    (void)attend_layer(expected.get(), 0, 127);
    CHECK(n_closed(*cache, 0) == 0);
    memory.budget = 0;
    CHECK(attend_layer(cache.get(), 0, 128) == attend_layer(expected.get(), 0, 128));
    CHECK(n_closed(*cache, 0) == 0);
    memory.budget = INT64_MAX;
    for (Cache* each : {cache.get(), expected.get()})
        REQUIRE(append_to(each, 0, 300, 128).ok());
    CHECK(n_closed(*cache, 0) == n_closed(*expected, 0));
    CHECK(attend_layer(cache.get(), 0) == attend_layer(expected.get(), 0));
}
