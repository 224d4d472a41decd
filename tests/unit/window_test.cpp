// Windows: what one has left behind is given back, and what would show it again is refused.
#include "caches.hpp"
#include "gearkv/state.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = source_heads, dim = source_dim, n_held = 400;

std::unique_ptr<Cache> make_windowed(CacheConfig config, std::uint32_t window, std::uint32_t rollback) {
    config.windows = &window;
    config.rollback_tokens = rollback;
    auto cache = make_cache(config);
    for (std::size_t t = 0; t < n_held; ++t)
        REQUIRE(append(cache.get(), source().keys, source().values, t, 1).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    return cache;
}

std::uint64_t n_forgotten(const Cache& cache) {
    LayerStats stats;
    REQUIRE(cache.layer_stats(0, &stats).ok());
    return stats.n_forgotten;
}

// Attention through the window, against that on the tokens that were appended.
double window_error(Cache* cache, std::uint32_t window) {
    static const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    const std::size_t n = cache->n_tokens(0), first = n - std::min<std::size_t>(n, window);
    const auto slice = [&](const Tensor& x) {
        const auto at = [&](std::size_t t) {
            return x.data.begin() + static_cast<std::ptrdiff_t>(t * n_heads * dim);
        };
        return Tensor{n - first, n_heads, dim, {at(first), at(n)}};
    };
    const Tensor expected = reference::attend(q, slice(source().keys), slice(source().values),
                                              1.0 / std::sqrt(static_cast<double>(dim)), true);
    return reference::relative_error(expected, attend(cache, q, dim, true));
}

}  // namespace

TEST_CASE("a truncation is refused where the window would show what was given back", "[window]") {
    for (const char* spec : {"f16", "gear-4", "f32"}) {
        for (const std::uint32_t rollback : {0u, 16u}) {
            for (const std::uint32_t window : {64u, 200u}) {
                const CacheConfig config = make_config(spec, n_heads, dim, dim, 1000);
                auto cache = make_windowed(config, window, rollback);
                const std::uint64_t n_sinks = config.spec.sink_tokens;
                const std::uint64_t gap_end = n_sinks + n_forgotten(*cache);
                REQUIRE(gap_end > n_sinks);
                for (std::size_t n_left : {399u, 395u, 384u, 360u, 300u, 201u, 60u, 4u, 1u, 0u}) {
                    CAPTURE(spec, rollback, window, n_left, gap_end);
                    std::unique_ptr<Cache> fork;
                    REQUIRE(cache->fork(&fork).ok());
                    bool lossless = true;
                    const Status status = fork->truncate(n_left, &lossless);
                    const bool is_whole = n_left <= n_sinks || n_left >= gap_end + window;
                    if (n_left + rollback >= n_held) CHECK(is_whole);
                    CHECK(status.code() == (is_whole ? Code::ok : Code::forgotten));
                    if (!is_whole) {
                        CHECK(lossless);
                        CHECK(fork->n_tokens(0) == n_held);
                        CHECK(fork->stats().bytes.shared > 0);
                        CHECK(std::string(status.message()).find("were given back") != std::string::npos);
                    }
                    if (fork->n_tokens(0) > n_sinks) CHECK(window_error(fork.get(), window) < 0.15);
                }
            }
        }
    }
}

TEST_CASE("windows stay whole for rollbacks longer than a buffer, which are lossless as far as a buffer",
          "[window]") {
    const std::uint32_t window = 200, rollback = 450;
    for (const char* spec : {"kivi-4:nb=64", "gear-4", "f16:nb=64"}) {
        for (const std::size_t n_chunk : {1u, 20u, 300u}) {
            CacheConfig config = make_config(spec, n_heads, dim, dim, 4000);
            config.windows = &window;
            config.rollback_tokens = rollback;
            const std::size_t n_unit = config.block_tokens = config.spec.buffer_tokens;
            auto cache = make_cache(config);
            std::size_t n = 0;
            for (; n < 1200; n += n_chunk)
                REQUIRE(append(cache.get(), source().keys, source().values, n, n_chunk).ok());
            const std::uint64_t first = cache->first_token(0);
            REQUIRE(first == config.spec.sink_tokens + n_forgotten(*cache));
            // Not one block more than it takes.
            CHECK(first + window + rollback + n_unit + n_chunk > n);
            REQUIRE(first + window + rollback <= n);
            for (const std::size_t n_back :
                 {std::size_t{1}, n_unit - 1, n_unit, n_unit + 1, std::size_t{449}, std::size_t{450},
                  std::size_t{451}, std::size_t{520}, std::size_t{900}}) {
                CAPTURE(spec, n_chunk, n_back, first);
                std::unique_ptr<Cache> fork;
                REQUIRE(cache->fork(&fork).ok());
                bool lossless = false;
                const std::size_t n_left = n - n_back;
                const Status status = fork->truncate(n_left, &lossless);
                CHECK(status.code() == (n_left >= first + window ? Code::ok : Code::forgotten));
                if (n_back <= rollback) REQUIRE(status.ok());
                if (n_back == 900) CHECK(!status.ok());
                CHECK(fork->first_token(0) == first);
                if (!status.ok()) continue;
                CHECK(window_error(fork.get(), window) < 0.15);
                if (n_chunk >= n_unit) continue;
                if (n_back <= n_unit) CHECK(lossless);
                if (!lossless) continue;
                auto never = make_cache(config);
                for (std::size_t t = 0; t < n_left; t += n_chunk)
                    REQUIRE(
                        append(never.get(), source().keys, source().values, t, std::min(n_chunk, n_left - t))
                            .ok());
                const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
                CHECK(attend(never.get(), q, dim, true).data == attend(fork.get(), q, dim, true).data);
            }
        }
    }
    CHECK(make_cache(make_config("f16", n_heads, dim, dim))->first_token(1) == 0);
}

TEST_CASE("blocks of a prompt are as long as an eighth of a window, which leaves little behind",
          "[window][once]") {
    for (const std::uint32_t block_tokens : {0u, 512u}) {
        constexpr std::size_t n_layers = 4, n_chunk = 512, n = 6 * n_chunk;
        const std::uint32_t windows[n_layers] = {0, 100, 512, 2048}, rollback = 16;
        CacheConfig config = make_config("gear-2", n_heads, dim, dim, 4000);
        config.n_layers = n_layers;
        config.windows = windows;
        config.rollback_tokens = rollback;
        config.close_prompts = true;
        config.block_tokens = block_tokens;
        auto cache = make_cache(config);
        static const std::vector<float> tokens = to_floats(gaussian(n + 1, n_heads, dim, 1));
        const std::vector<float> queries(n_chunk * n_heads * dim, 0.1f);
        std::vector<float> out(queries.size());
        const auto step = [&](std::uint32_t layer, std::size_t first, std::uint32_t n_tokens) {
            const Rows rows = {tokens.data() + first * n_heads * dim, n_heads * dim, dim};
            REQUIRE(cache->append(layer, rows, rows, n_tokens, serial_executor()).ok());
            Queries q;
            q.data = queries.data();
            q.query_stride = n_heads * dim;
            q.head_stride = dim;
            q.n_queries = n_tokens;
            q.n_heads = n_heads;
            q.window = windows[layer];
            q.scale = 0.1f;
            REQUIRE(cache->attend(layer, q, out.data(), out.size(), serial_executor()).ok());
        };
        for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
            for (std::size_t at = 0; at < n; at += n_chunk)
                step(layer, at, n_chunk);
            // A step lets go of what was still asked for.
            step(layer, n, 1);
            LayerStats stats;
            REQUIRE(cache->layer_stats(layer, &stats).ok());
            const std::uint64_t unit = block_tokens > 0 ? block_tokens : std::max(windows[layer] / 8, 128u);
            CAPTURE(layer, block_tokens, unit, stats.n_forgotten, stats.n_closed, stats.n_blocks);
            if (windows[layer] == 0) {
                CHECK(stats.n_blocks == 2 * 6);
                continue;
            }
            CHECK(stats.n_blocks / 2 == (stats.n_closed + unit - 1) / unit);
            const std::uint64_t first_seen = n + 1 - windows[layer] - rollback;
            CHECK(4 + stats.n_forgotten <= first_seen);
            CHECK(4 + stats.n_forgotten + unit > first_seen);
        }
    }
}

TEST_CASE("compress gives back what the last token's window has left, also where nothing fills a block",
          "[window]") {
    const struct { std::uint32_t window, rollback, spread; } cases[] = {{100, 0, 16}, {7, 64, 64}};
    for (const auto& [window, rollback, spread] : cases) {
        CacheConfig config = make_config("gear-2", source_heads, source_dim, source_dim, 1000);
        config.windows = &window;
        config.rollback_tokens = rollback;
        config.spread_tokens = spread;
        auto cache = make_cache(config);
        // The first block ends with the first token that is behind the window and the rollback.
        const std::size_t n = 4 + 128 + window + rollback;
        for (std::size_t t = 0; t < n; ++t)
            REQUIRE(append(cache.get(), source().keys, source().values, t, 1).ok());
        CHECK(cache->stats().n_blocks == 2);
        REQUIRE(cache->compress(0, serial_executor()).ok());
        CHECK(cache->stats().n_blocks == 0);
        CHECK(cache->first_token(0) == 4 + 128);
        check_planned(*cache, n, 0);
        CHECK(cache->truncate(n - rollback).ok());
    }
}

TEST_CASE("the buffer of a windowed layer takes memory as its tokens come, and no more than others do",
          "[window]") {
    for (const char* spec : {"gear-4", "kivi-4:nb=64,recent=10", "f32:nb=64"}) {
        CAPTURE(spec);
        const std::uint32_t window = 100;
        CacheConfig config = make_config(spec, n_heads, dim, dim, 3000);
        config.close_prompts = true;
        auto plain = make_cache(config);
        config.windows = &window;
        auto cache = make_cache(config);
        const std::uint64_t n_sinks = config.spec.sink_tokens, step = config.spec.buffer_tokens / 16;
        const std::uint64_t row =
            2 * n_heads * dim * (config.spec.key.backbone == Backbone::raw32 ? sizeof(float) : 2);
        CHECK(cache->stats().bytes.buffer == n_sinks * row);
        std::uint64_t sum = 0, of_plain = 0;
        for (std::size_t t = 0; t < 600;) {
            const std::size_t n = t == 0 ? 300 : 1;
            for (Cache* one : {plain.get(), cache.get()}) {
                REQUIRE(append(one, source().keys, source().values, t, n).ok());
                (void)attend(one, gaussian(n, n_heads, dim, 3), dim, true);
            }
            t += n;
            LayerStats stats;
            REQUIRE(cache->layer_stats(0, &stats).ok());
            const std::uint64_t n_buffered = t - stats.n_sinks - stats.n_forgotten - stats.n_closed;
            const std::uint64_t held = cache->stats().bytes.buffer, most = plain->stats().bytes.buffer;
            REQUIRE(held <= (n_sinks + n_buffered + 3 * step) * row);
            REQUIRE(held <= most);
            sum += held;
            of_plain += most;
        }
        CHECK(sum < of_plain * 3 / 4);
        CHECK(window_error(cache.get(), window) < 0.2);
        cache->reset();
        CHECK(cache->stats().bytes.buffer == n_sinks * row);
    }
}

TEST_CASE("a removal is refused where the window would show what was given back", "[window]") {
    const std::uint32_t window = 100;
    CacheConfig config = make_config("gear-4", n_heads, dim, dim, 1000);
    auto cache = make_windowed(config, window, 10);
    const std::uint64_t gap_end = 4 + n_forgotten(*cache);
    REQUIRE(gap_end == 260);
    const struct {
        std::uint64_t first, n;
        bool is_whole;
    } cases[] = {{0, 100, true},    // sinks too
                 {2, 258, true},    // and all that was given back
                 {4, 100, true},    // a context shift: all of it was given back
                 {4, 256, true},    // all that was given back
                 {200, 100, true},  // of both sides
                 {390, 10, true},   // within rollback_tokens
                 {320, 40, true},   // as the block that is not given back allows
                 {320, 41, false}, {255, 60, false}, {262, 130, false}};
    for (const auto& c : cases) {
        CAPTURE(c.first, c.n);
        std::unique_ptr<Cache> fork;
        REQUIRE(cache->fork(&fork).ok());
        const Status status = fork->remove(c.first, c.n);
        CHECK(status.code() == (c.is_whole ? Code::ok : Code::forgotten));
        CHECK(fork->n_tokens(0) == (c.is_whole ? n_held - c.n : n_held));
        const std::vector<float> data = to_floats(gaussian(1, 2 * n_heads, dim, 3));
        std::vector<float> out(data.size());
        const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
        CHECK(fork->attend(0, queries_of(data, q, true), out.data(), out.size(), serial_executor()).ok());
    }
}

TEST_CASE("queries that see what their window left since are refused, alone and in a batch", "[window]") {
    const std::uint32_t window = 64;
    auto cache = make_windowed(make_config("f16", n_heads, dim, dim, 1000), window, 0);
    const std::uint64_t gap_end = n_forgotten(*cache);
    const Tensor q = gaussian(100, 2 * n_heads, dim, 3);
    const std::vector<float> data = to_floats(q);
    for (const std::uint32_t n_queries : {1u, 17u, 18u, 100u}) {
        CAPTURE(n_queries, gap_end);
        std::vector<float> out(data.size(), 7.0f);
        Queries queries = queries_of(data, q, true);
        queries.n_queries = n_queries;
        const bool is_whole = n_held - (n_queries - 1) >= gap_end + window;
        const Code expected = is_whole ? Code::ok : Code::forgotten;
        CHECK(cache->attend(0, queries, out.data(), out.size(), serial_executor()).code() == expected);
        CHECK((out[0] == 7.0f) == !is_whole);
        const AttendRequest request = {cache.get(), queries, out.data(), out.size()};
        CHECK(Cache::attend_batch(0, &request, 1, serial_executor()).code() == expected);
        // A smaller window sees less.
        queries.window = 1;
        CHECK(cache->attend(0, queries, out.data(), out.size(), serial_executor()).code() ==
              (n_held - n_queries >= gap_end ? Code::ok : Code::forgotten));
    }
}

TEST_CASE("a file is refused by windows that want more than those of its cache left", "[window]") {
    const TemporaryFile file;
    CacheConfig config = make_config("gear-4", n_heads, dim, dim, 1000);
    auto cache = make_windowed(config, 64, 0);
    REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
    const std::uint64_t gap_end = 4 + n_forgotten(*cache);
    for (const std::uint32_t window : {1u, 64u, 100u, 144u, 145u, 200u, 0u}) {
        CAPTURE(window, gap_end);
        config.windows = &window;
        std::unique_ptr<Cache> loaded;
        const Status status = load_state(file.path(), config, {}, serial_executor(), &loaded);
        const bool is_whole = window > 0 && n_held >= gap_end + window;
        CHECK(status.code() == (is_whole ? Code::ok : Code::forgotten));
        CHECK((loaded != nullptr) == is_whole);
        if (is_whole) CHECK(window_error(loaded.get(), window) < 0.1);
    }
    config.windows = nullptr;
    std::unique_ptr<Cache> loaded;
    CHECK(load_state(file.path(), config, {}, serial_executor(), &loaded).code() == Code::forgotten);
    StateInfo info;
    CHECK(verify_state(file.path(), serial_executor(), &info).ok());
    // What the caller masks is the caller's.
    auto masked = make_cache(config);
    REQUIRE(append(masked.get(), source().keys, source().values, 0, 400).ok());
    REQUIRE(masked->compress(0, serial_executor()).ok());
    REQUIRE(masked->truncate(390).ok());
    REQUIRE(append(masked.get(), source().keys, source().values, 390, 300).ok());
    REQUIRE(masked->compress(0, serial_executor()).ok());
    REQUIRE(masked->forget_before(0, 400).ok());
    REQUIRE(n_forgotten(*masked) > 0);
    REQUIRE(save_state(*masked, file.path(), {}, serial_executor()).ok());
    REQUIRE(load_state(file.path(), config, {}, serial_executor(), &loaded).ok());
    CHECK(loaded->truncate(300).ok());
    CHECK(masked->truncate(300).ok());
}
