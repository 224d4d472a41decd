// Removals, however often they come, leave no more uncompressed than there would be without them.
#include "caches.hpp"
#include "gearkv/state.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = source_heads, dim = source_dim;

std::uint64_t held_bytes(const CacheBytes& bytes) {
    return bytes.keys.bytes + bytes.values.bytes + bytes.buffer;
}

}  // namespace

TEST_CASE("a cache that shifts its context every few tokens compresses as one that never does",
          "[removal][once]") {
    constexpr std::uint64_t n_most = 600;
    for (const char* spec : {"gear-4", "kivi-4:sinks=4", "gear-3:recent=30"}) {
        for (const bool is_rotated : {true, false}) {
            for (const std::uint32_t spread : {16u, 1u, 0u}) {
                for (const std::size_t n_removed : {1u, 2u, 8u, 15u, 16u, 40u}) {
                    CAPTURE(spec, is_rotated, spread, n_removed);
                    CacheConfig config = is_rotated ? rope_config(spec, false, n_most)
                                                    : make_config(spec, n_heads, dim, dim, n_most);
                    config.spread_tokens = spread;
                    const std::uint32_t n_unit = config.spec.buffer_tokens, n_sinks = config.spec.sink_tokens;
                    const std::uint64_t most_buffered = n_unit + config.spec.recent_tokens + spread;
                    CacheBytes planned, more;
                    REQUIRE(bytes_required(config, n_most, 0, &planned).ok());
                    // The oldest block stays until its last token is removed.
                    CacheConfig larger = config;
                    larger.max_tokens += n_unit;
                    REQUIRE(bytes_required(larger, n_most + n_unit, 0, &more).ok());
                    auto cache = make_cache(config);
                    for (std::size_t i = 0; i < n_most + 700; ++i) {
                        if (cache->n_tokens(0) == n_most) REQUIRE(cache->remove(n_sinks, n_removed).ok());
                        REQUIRE(append(cache.get(), source().keys, source().values, i, 1).ok());
                        const CacheStats stats = cache->stats();
                        REQUIRE(stats.n_tokens - stats.compressed_tokens -
                                    std::min<std::uint64_t>(stats.n_tokens, n_sinks) <=
                                most_buffered);
                        REQUIRE(held_bytes(stats.bytes) <= held_bytes(more));
                        REQUIRE(stats.bytes.buffer == planned.buffer);
                    }
                }
            }
        }
    }
}

TEST_CASE("a unit that is being compressed loses tokens, or turns, and is still the tokens that stay",
          "[removal]") {
    for (const char* spec : {"gear-4", "q8:nb=64"}) {
        for (const std::size_t first : {10u, 100u, 140u, 270u}) {
            CAPTURE(spec, first);
            CacheConfig config = make_config(spec, n_heads, dim, dim, 900);
            auto cache = make_cache(config);
            for (std::size_t i = 0; i < 268; ++i)
                REQUIRE(append(cache.get(), source().keys, source().values, i, 1).ok());
            Tensor keys = source().keys;
            REQUIRE(append(cache.get(), source().keys, source().values, 268, 10).ok());
            REQUIRE(cache->remove(first, 5).ok());
            REQUIRE(cache->n_tokens(0) == 273);
            const auto [found, values] = read_all(cache.get());
            keys.data.resize(278 * n_heads * dim);
            keys.data.erase(keys.data.begin() + static_cast<std::ptrdiff_t>(first * n_heads * dim),
                            keys.data.begin() + static_cast<std::ptrdiff_t>((first + 5) * n_heads * dim));
            keys.n_tokens = 273;
            CHECK(reference::relative_error(keys, found) < 0.1);
            CHECK(attention_error(cache.get(), gaussian(1, 2 * n_heads, dim, 3), true) <
                  attention_tolerance(*cache));
        }
    }
}

TEST_CASE("what a removal without memory leaves is saved and loaded as it was", "[removal][once]") {
    CountingMemory memory;
    CacheConfig config = make_config("gear-4", n_heads, dim, dim, 900, 2);
    config.allocator = memory.allocator();
    auto cache = make_cache(config);
    for (std::uint32_t layer = 0; layer < 2; ++layer) {
        for (std::size_t t = 0; t < 800; t += 200)
            REQUIRE(append(cache.get(), source().keys, source().values, t, 200, layer).ok());
    }
    const auto exact = read_all(cache.get());
    Status status;
    int n_failed = 0;
    for (std::int64_t budget = 0;; ++budget, ++n_failed) {
        memory.budget = budget;
        status = cache->remove(10, 700);
        memory.budget = INT64_MAX;
        if (status.ok()) break;
        REQUIRE(status.code() == Code::out_of_memory);
        std::uint64_t n = 0;
        REQUIRE(state_bytes(*cache, {}, &n).ok());
        std::vector<unsigned char> bytes(n);
        REQUIRE(save_state(*cache, bytes.data(), n, {}, serial_executor()).ok());
        std::unique_ptr<Cache> loaded;
        status = load_state(bytes.data(), n, config, {}, serial_executor(), &loaded);
        INFO(budget << ": " << status.message());
        REQUIRE(status.ok());
        CHECK(read_all(loaded.get()).first.data == exact.first.data);
    }
    CHECK(n_failed >= 3);
}
