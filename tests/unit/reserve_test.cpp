// Tables grow with tokens, and the number of tokens there may be grows too.
#include "unit/caches.hpp"

namespace gearkv::testing {
namespace {

TEST_CASE("an empty cache holds the same whatever it may grow to", "[reserve]") {
    const auto bytes_of = [](std::uint64_t max_tokens, std::uint32_t n_layers) {
        CountingMemory memory;
        CacheConfig config = make_config("gear-4", 8, 128, 128, max_tokens, n_layers);
        config.allocator = memory.allocator();
        const auto cache = make_cache(config);
        const CacheBytes bytes = cache->stats().bytes;
        CHECK(bytes.bytes == memory.held);
        return bytes;
    };
    const CacheBytes few = bytes_of(100, 32), many = bytes_of(1 << 20, 32);
    CHECK(many.tables == few.tables);
    CHECK(many.bytes == few.bytes);
    CHECK(many.tables < 64 * 1024);
}

TEST_CASE("max_tokens grows in place, without memory and without a trace", "[reserve][once]") {
    const std::string spec = GENERATE("gear-4", "kivi-4:nb=64", "f16", "auto:3");
    CountingMemory memory;
    CacheConfig config = make_config(spec, source_heads, source_dim, source_dim, 300);
    config.allocator = memory.allocator();
    const auto grown = make_cache(config);
    config.max_tokens = 3000;
    config.allocator = default_allocator();
    const auto large = make_cache(config);
    const Tensor q = gaussian(1, 4, source_dim, 7);
    const auto both = [&](std::size_t first, std::size_t n) {
        REQUIRE(append(large.get(), source().keys, source().values, first, n).ok());
        REQUIRE(append(grown.get(), source().keys, source().values, first, n).ok());
        CHECK(attend(grown.get(), q, source_dim, true).data == attend(large.get(), q, source_dim, true).data);
    };
    both(0, 290);
    CHECK(append(grown.get(), source().keys, source().values, 290, 11).code() == Code::capacity_exceeded);
    std::unique_ptr<Cache> fork;
    REQUIRE(grown->fork(&fork).ok());

    const std::uint64_t held = memory.held;
    memory.budget = 0;
    CHECK(grown->reserve(0).code() == Code::wrong_size);
    CHECK(grown->reserve(std::uint64_t{1} << 31).code() == Code::wrong_size);
    CHECK(grown->config().max_tokens == 300);
    CHECK(grown->reserve(3000).ok());
    CHECK(grown->reserve(10).ok());
    CHECK(grown->config().max_tokens == 3000);
    CHECK(memory.held == held);
    memory.budget = INT64_MAX;

    CHECK(append(fork.get(), source().keys, source().values, 290, 11).code() == Code::capacity_exceeded);
    for (std::size_t first = 290; first < 400; ++first)
        both(first, 1);
    both(400, 1500);
    for (std::size_t first = 1900; first < 1930; ++first)
        both(first, 1);
    CHECK(read_all(grown.get()).first.data == read_all(large.get()).first.data);
    CHECK(append(grown.get(), source().keys, source().values, 1930, 1071).code() == Code::capacity_exceeded);
}

TEST_CASE("attending needs no memory, however many blocks there are by then", "[reserve]") {
    CountingMemory memory;
    CacheConfig config = make_config("kcvt-4:nb=16", source_heads, source_dim, source_dim, 4000);
    config.allocator = memory.allocator();
    const auto cache = make_cache(config);
    const Tensor q = gaussian(1, 4, source_dim, 7);
    const std::vector<float> data = to_floats(q);
    std::vector<float> out(4 * source_dim);
    for (std::size_t first = 0; first < 700; ++first) {
        REQUIRE(append(cache.get(), source().keys, source().values, first, 1).ok());
        memory.budget = first > 0 ? 0 : INT64_MAX;
        const Status status =
            cache->attend(0, queries_of(data, q, true), out.data(), out.size(), serial_executor());
        INFO("token " << first << ": " << status.message());
        REQUIRE(status.ok());
        memory.budget = INT64_MAX;
    }
    CHECK(cache->stats().n_blocks > 70);
    CHECK(cache->stats().bytes.bytes == memory.held);
}

}  // namespace
}  // namespace gearkv::testing
