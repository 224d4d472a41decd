// Widths of key channels by the queries that meet them.
#include "cache/query_squares.hpp"
#include "caches.hpp"
#include "gearkv/state.hpp"

using namespace gearkv;
using namespace gearkv::testing;
using reference::relative_error;

namespace {

constexpr std::size_t n_heads = 2, n_query_heads = 4, dim = 64;

// Loud in one of eight channels, another one in each KV head.
Tensor loud_queries(std::size_t n, unsigned seed) {
    Tensor q = gaussian(n, n_query_heads, dim, seed);
    for (std::size_t i = 0; i < q.data.size(); ++i) {
        const std::size_t head = i / dim % n_query_heads / (n_query_heads / n_heads);
        if (i % 8 == 3 * head) q.data[i] *= 8.0;
    }
    return q;
}

Tensor part(const Tensor& x, std::size_t first, std::size_t n) {
    const auto from = x.data.begin() + static_cast<std::ptrdiff_t>(first * x.n_heads * x.dim);
    return {n, x.n_heads, x.dim,
            std::vector<double>(from, from + static_cast<std::ptrdiff_t>(n * x.n_heads * x.dim))};
}

// Appends tokens [first, first + n) and attends with their queries, if asked to.
void feed(Cache* cache, const Tensor& queries, std::size_t first, std::size_t n, bool attends = true) {
    REQUIRE(append(cache, source().keys, source().values, first, n).ok());
    if (attends) attend(cache, part(queries, first, n), dim, true);
}

std::vector<double> keys_of(Cache* cache) {
    return read_all(cache).first.data;
}

}  // namespace

TEST_CASE("channels that queries are loud in are kept closer, and attention gains", "[weights]") {
    const auto spec = GENERATE(as<std::string>{}, "gear-2", "gear-3", "gear-4");
    INFO(spec);
    const Tensor queries = loud_queries(900, 5), asked = loud_queries(16, 6);
    const auto error_of = [&](const char* name, bool attends, double* loud) {
        std::unique_ptr<Cache> cache = make_cache(make_config(name, n_heads, dim, dim, 1000));
        for (std::size_t first = 0; first < 900; first += 300)
            feed(cache.get(), queries, first, 300, attends);
        REQUIRE(cache->compress(0, serial_executor()).ok());
        const std::vector<double> found = keys_of(cache.get());
        *loud = 0;
        for (std::size_t i = 0; i < found.size(); ++i) {
            const double e = found[i] - source().keys.data[i];
            if (i % 8 == 3 * (i / dim % n_heads)) *loud += e * e;
        }
        return attend(cache.get(), asked, dim, false);
    };
    double loud = 0, loud_without = 0, exact = 0;
    const Tensor with = error_of(spec.c_str(), true, &loud);
    const Tensor without = error_of(spec.c_str(), false, &loud_without);
    const Tensor expected = error_of("f32", false, &exact);
    CHECK(loud < 0.3 * loud_without);
    CHECK(relative_error(expected, with) < 0.8 * relative_error(expected, without));
}

TEST_CASE("chunks do not change which queries tell the widths of keys", "[weights]") {
    const Tensor queries = loud_queries(700, 7);
    CacheConfig config = make_config("gear-3", n_heads, dim, dim, 1000);
    config.block_tokens = 128;
    const auto keys_by = [&](std::size_t chunk, std::uint32_t spread) {
        config.spread_tokens = spread;
        std::unique_ptr<Cache> cache = make_cache(config);
        for (std::size_t first = 0; first < 700; first += chunk)
            feed(cache.get(), queries, first, std::min<std::size_t>(chunk, 700 - first));
        REQUIRE(cache->compress(0, serial_executor()).ok());
        return keys_of(cache.get());
    };
    const std::vector<double> singly = keys_by(1, 16);
    CHECK(keys_by(1, 0) == singly);
    CHECK(keys_by(50, 16) == singly);
    CHECK(keys_by(350, 16) == singly);
}

TEST_CASE("a fork and a loaded cache know the queries of tokens that are in no block", "[weights]") {
    const Tensor queries = loud_queries(400, 8);
    const CacheConfig config = make_config("gear-2", n_heads, dim, dim, 1000);
    const auto n_first = GENERATE(std::size_t{100}, std::size_t{135}, std::size_t{290});
    std::unique_ptr<Cache> cache = make_cache(config), fork, loaded;
    for (std::size_t i = 0; i < n_first; i += 5)
        feed(cache.get(), queries, i, 5);
    REQUIRE(cache->fork(&fork).ok());
    std::uint64_t n_bytes = 0;
    REQUIRE(state_bytes(*cache, {}, &n_bytes).ok());
    std::vector<unsigned char> bytes(n_bytes);
    REQUIRE(save_state(*cache, bytes.data(), bytes.size(), {}, serial_executor()).ok());
    REQUIRE(load_state(bytes.data(), bytes.size(), config, {}, serial_executor(), &loaded).ok());
    for (Cache* one : {cache.get(), fork.get(), loaded.get()}) {
        for (std::size_t i = n_first; i < 400; i += 5)
            feed(one, queries, i, 5);
    }
    CHECK(keys_of(fork.get()) == keys_of(cache.get()));
    CHECK(keys_of(loaded.get()) == keys_of(cache.get()));
}

TEST_CASE("what dropped tokens asked is forgotten with them", "[weights]") {
    Tensor other = loud_queries(400, 9);
    for (std::size_t i = 0; i < other.data.size(); ++i)
        if (i % 8 == 1) other.data[i] *= 30.0;
    const Tensor queries = loud_queries(400, 8);
    const CacheConfig config = make_config("gear-2", n_heads, dim, dim, 1000);
    std::unique_ptr<Cache> cache = make_cache(config), never = make_cache(config);
    for (std::size_t i = 0; i < 60; ++i) {
        feed(cache.get(), queries, i, 1);
        feed(never.get(), queries, i, 1);
    }
    for (std::size_t i = 60; i < 120; ++i)
        feed(cache.get(), other, i, 1);
    bool lossless = false;
    REQUIRE(cache->truncate(60, &lossless).ok());
    REQUIRE(lossless);
    for (std::size_t i = 60; i < 300; ++i) {
        feed(cache.get(), queries, i, 1);
        feed(never.get(), queries, i, 1);
    }
    CHECK(keys_of(cache.get()) == keys_of(never.get()));
}

TEST_CASE("queries that no float can square have widths too", "[weights]") {
    const CacheConfig config = make_config("gear-2", n_heads, dim, dim, 1000);
    Tensor huge = gaussian(200, n_query_heads, dim, 3);
    for (double& x : huge.data)
        x = static_cast<float>(x * 1e37);
    std::unique_ptr<Cache> cache = make_cache(config), plain = make_cache(config);
    feed(cache.get(), huge, 0, 200);
    feed(plain.get(), huge, 0, 200, false);
    for (Cache* one : {cache.get(), plain.get()})
        REQUIRE(one->compress(0, serial_executor()).ok());
    const Tensor keys = part(source().keys, 0, 200);
    CHECK(relative_error(keys, read_all(cache.get()).first) <
          1.3 * relative_error(keys, read_all(plain.get()).first));
}

TEST_CASE("one query of every stride is kept, whatever is asked at once", "[weights]") {
    for (std::uint64_t first = 0; first < 20000; first += QuerySquares::stride_at(first)) {
        const std::uint64_t stride = QuerySquares::stride_at(first), kept = QuerySquares::next_kept(first);
        INFO(first);
        REQUIRE(kept >= first);
        REQUIRE(kept < first + stride);
        REQUIRE(QuerySquares::next_kept(kept) == kept);
        REQUIRE(QuerySquares::next_kept(kept + 1) >= first + stride);
    }
}

TEST_CASE("weights that are no weights are refused", "[weights]") {
    const Tensor x = gaussian(64, 1, dim, 3);
    std::vector<float> weights(dim, 1.0f);
    weights[5] = GENERATE(-1.0f, HUGE_VALF, std::nanf(""));
    const std::vector<float> floats = to_floats(x);
    const BlockShape shape = {TensorKind::key, 64, 1, dim};
    BlockOptions options;
    options.spec = spec_of("gear-2").key;
    options.key_weights = weights.data();
    BlockBytes bytes;
    REQUIRE(block_bytes(shape, options, &bytes).ok());
    AlignedBytes block(bytes.bytes);
    CHECK(
        compress_block(block.bytes(), bytes.bytes, rows_of(floats, 1, dim), shape, options, serial_executor())
            .code() == Code::non_finite);
    weights[5] = 0.0f;
    CHECK(
        compress_block(block.bytes(), bytes.bytes, rows_of(floats, 1, dim), shape, options, serial_executor())
            .ok());
}
