// auto:BITS: the choice of rates by layer, head and tensor.
#include "caches.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::uint32_t n_layers = 3, n_heads = 3, n_query_heads = 6, dim = 64;
constexpr std::size_t n_chunk = 300, n_all = 700;

// Layers whose heads differ in what they bear: layer 1 has quiet keys, in which nothing stands out, and head
// 2 of layer 2 has values that hardly count.
struct Model {
    std::vector<Tensor> keys, values, queries;

    Model() {
        for (unsigned layer = 0; layer < n_layers; ++layer) {
            keys.push_back(structured(n_all, n_heads, dim, 10 * layer + 1));
            values.push_back(structured(n_all, n_heads, dim, 10 * layer + 4));
            queries.push_back(gaussian(n_all, n_query_heads, dim, 10 * layer + 7));
        }
        for (double& x : keys[1].data)
            x = static_cast<float>(0.01 * x);
        for (std::size_t t = 0; t < n_all; ++t) {
            for (std::size_t c = 0; c < dim; ++c)
                values[2].at(t, 2, c) = static_cast<float>(0.02 * values[2].at(t, 2, c));
        }
    }

    Tensor some_queries(std::uint32_t layer, std::size_t first, std::size_t n) const {
        Tensor q = zeros(n, n_query_heads, dim);
        std::copy_n(queries[layer].data.begin() + static_cast<std::ptrdiff_t>(first * n_query_heads * dim),
                    q.data.size(), q.data.begin());
        return q;
    }
};

const Model& model() {
    static const Model one;
    return one;
}

Tensor attend_layer(Cache* cache, std::uint32_t layer, const Tensor& q,
                    Executor& executor = serial_executor()) {
    const std::vector<float> data = to_floats(q);
    std::vector<float> out(q.data.size());
    const Status status = cache->attend(layer, queries_of(data, q, true), out.data(), out.size(), executor);
    INFO(status.message());
    REQUIRE(status.ok());
    return to_tensor(out.data(), q.n_tokens, q.n_heads, dim);
}

// A chunk through all layers, as a decoder does it; only the queries of the first one matter.
void feed(Cache* cache, std::size_t first, std::size_t n, Executor& executor = serial_executor()) {
    for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
        REQUIRE(append(cache, model().keys[layer], model().values[layer], first, n, layer, executor).ok());
        const std::size_t n_queries = std::min<std::size_t>(n, 40);
        if (first > 0) continue;
        attend_layer(cache, layer, model().some_queries(layer, n - n_queries, n_queries), executor);
    }
}

KvSpec layer_spec(const Cache& cache, std::uint32_t layer) {
    KvSpec spec;
    REQUIRE(cache.layer_spec(layer, &spec).ok());
    return spec;
}

CacheConfig config_of(const char* spec) {
    return make_config(spec, n_heads, dim, dim, 1024, n_layers);
}

// Sum over the layers of the squared share of the output that is wrong, for queries after the prompt.
double output_error(Cache* cache) {
    double sum = 0.0;
    for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
        auto exact = make_cache(make_config("f32", n_heads, dim, dim, 1024, n_layers));
        REQUIRE(append(exact.get(), model().keys[layer], model().values[layer], 0, n_all, layer).ok());
        const Tensor q = model().some_queries(layer, n_all - 40, 40);
        const double error =
            reference::relative_error(attend_layer(exact.get(), layer, q), attend_layer(cache, layer, q));
        sum += error * error;
    }
    return sum;
}

}  // namespace

TEST_CASE("rates are chosen once, before the first block, and differ where the data does", "[rates]") {
    auto cache = make_cache(config_of("auto:3.5"));
    const KvSpec even = layer_spec(*cache, 0);
    CHECK(even.key.rate > even.value.rate);
    feed(cache.get(), 0, n_chunk);
    CHECK(layer_spec(*cache, 1) == even);
    CHECK(cache->stats().n_blocks == 0);
    feed(cache.get(), n_chunk, n_all - n_chunk);
    const KvSpec chosen[] = {layer_spec(*cache, 0), layer_spec(*cache, 1), layer_spec(*cache, 2)};
    CHECK(chosen[1].key.rate < even.key.rate - 0.5f);  // nothing to tell apart
    CHECK(chosen[1].key.rate < chosen[0].key.rate);
    CHECK(chosen[2].value.rate < chosen[0].value.rate);  // one head of three needs few bits
    for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
        REQUIRE(cache->compress(layer, serial_executor()).ok());
        CHECK(layer_spec(*cache, layer) == chosen[layer]);
    }
    cache->reset();
    CHECK(layer_spec(*cache, 2) == even);
    feed(cache.get(), 0, n_chunk);
    feed(cache.get(), n_chunk, 1);
    CHECK(layer_spec(*cache, 2) == chosen[2]);
}

TEST_CASE("a choice of rates loses less of the output than an even share of the same bytes",
          "[rates][shapes]") {
    for (const char* spec : {"auto:2.5", "auto:3.5", "auto:4.5"}) {
        auto chosen = make_cache(config_of(spec));
        feed(chosen.get(), 0, n_chunk);
        feed(chosen.get(), n_chunk, n_all - n_chunk);
        CacheConfig config = config_of(spec);
        config.spec = layer_spec(*make_cache(config), 0);
        config.spec.auto_bits = 0.0f;
        auto even = make_cache(config);
        feed(even.get(), 0, n_chunk);
        feed(even.get(), n_chunk, n_all - n_chunk);
        for (Cache* cache : {chosen.get(), even.get()}) {
            for (std::uint32_t layer = 0; layer < n_layers; ++layer)
                REQUIRE(cache->compress(layer, serial_executor()).ok());
        }
        INFO(spec);
        CHECK(chosen->stats().bytes.keys.bytes + chosen->stats().bytes.values.bytes <=
              even->stats().bytes.keys.bytes + even->stats().bytes.values.bytes);
        CHECK(output_error(chosen.get()) < output_error(even.get()));
    }
}

TEST_CASE("what is attended among the last tokens needs few bits", "[rates]") {
    // In layer 1 keys turn as places do, and queries find those a little before them, which are in the
    // buffer. Of a short prompt too.
    const std::size_t n = GENERATE(136, 512);
    constexpr double before = 24;
    Tensor keys = zeros(n, n_heads, dim), near_queries = zeros(n, n_query_heads, dim);
    for (std::size_t t = 0; t < n; ++t) {
        for (std::size_t c = 0; c < dim; ++c) {
            const double turn = 0.1 * std::sqrt(static_cast<double>(c / 2 + 1));
            const double angle = turn * static_cast<double>(t) + (c % 2 == 0 ? 0.0 : 1.570796327);
            for (std::size_t head = 0; head < n_heads; ++head)
                keys.at(t, head, c) = static_cast<float>(std::cos(angle));
            for (std::size_t head = 0; head < n_query_heads; ++head)
                near_queries.at(t, head, c) = static_cast<float>(3.0 * std::cos(angle - before * turn));
        }
    }
    const Tensor far = gaussian(n, n_heads, dim, 90), values = gaussian(n, n_heads, dim, 91),
                 far_queries = gaussian(n, n_query_heads, dim, 92);
    auto cache = make_cache(make_config("auto:3", n_heads, dim, dim, 1024, 2));
    const KvSpec even = layer_spec(*cache, 0);
    for (const std::uint32_t layer : {0u, 1u}) {
        REQUIRE(append(cache.get(), layer == 0 ? far : keys, values, 0, n, layer).ok());
        attend_layer(cache.get(), layer, layer == 0 ? far_queries : near_queries);
    }
    for (const std::uint32_t layer : {0u, 1u})
        REQUIRE(cache->compress(layer, serial_executor()).ok());
    const KvSpec chosen[] = {layer_spec(*cache, 0), layer_spec(*cache, 1)};
    CHECK(chosen[0].key.rate + chosen[0].value.rate > even.key.rate + even.value.rate + 0.5f);
    CHECK(chosen[1].value.rate < 1.5f);
}

TEST_CASE("bits move between layers of one window only, which hold as many tokens", "[rates]") {
    CacheConfig config = config_of("auto:3.5");
    const std::uint32_t windows[n_layers] = {100, 0, 100};
    config.windows = windows;
    auto cache = make_cache(config);
    const KvSpec even = layer_spec(*cache, 0);
    feed(cache.get(), 0, n_chunk);
    feed(cache.get(), n_chunk, 1);
    float bits[n_layers];
    for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
        const KvSpec spec = layer_spec(*cache, layer);
        CHECK((spec == even) == (layer == 1));  // which is alone, and its heads are alike
        bits[layer] = spec.key.rate + spec.value.rate;
    }
    const float share = even.key.rate + even.value.rate, step = 0.1f;
    CHECK(bits[1] == Approx(share).margin(step));
    CHECK(bits[1] <= share + 1e-4f);
    CHECK(bits[0] + bits[2] == Approx(2 * share).margin(step));
    CHECK(bits[0] + bits[2] <= 2 * share + 1e-4f);
    CHECK(bits[2] < share - step);
}

TEST_CASE("layers with windows choose by what their windows show, behind the first one", "[rates]") {
    // Head 0 of layer 2 has loud values where no window reaches any more, and head 1 at the last tokens.
    std::vector<float> changed[2] = {to_floats(model().values[2]), to_floats(model().values[2])};
    for (const std::size_t i : {0u, 1u}) {
        for (std::size_t t = i == 0 ? 0 : 190; t < (i == 0 ? 150 : n_chunk); ++t) {
            for (std::size_t c = 0; c < dim; ++c)
                changed[i][(t * n_heads + i) * dim + c] *= 40.0f;
        }
    }
    const auto bits_of = [](const Tensor& values, std::uint32_t window) {
        CacheConfig config = config_of("auto:3.5");
        const std::uint32_t windows[n_layers] = {window, window, window};
        config.windows = windows;
        auto cache = make_cache(config);
        for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
            const Tensor& own = layer == 2 ? values : model().values[layer];
            REQUIRE(append(cache.get(), model().keys[layer], own, 0, n_chunk, layer).ok());
            attend_layer(cache.get(), layer, model().some_queries(layer, n_chunk - 40, 40));
            REQUIRE(cache->compress(layer, serial_executor()).ok());
        }
        const KvSpec even = layer_spec(*make_cache(config), 0);
        std::vector<float> moved;
        for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
            const KvSpec spec = layer_spec(*cache, layer);
            moved.push_back(spec.key.rate - even.key.rate);
            moved.push_back(spec.value.rate - even.value.rate);
        }
        return moved;
    };
    const std::vector<float> moved = bits_of(model().values[2], 100);
    CHECK(bits_of(to_tensor(changed[0].data(), n_all, n_heads, dim), 100) == moved);
    CHECK_FALSE(bits_of(to_tensor(changed[1].data(), n_all, n_heads, dim), 100) == moved);
    CHECK(bits_of(model().values[2], n_chunk / 2 + 1) == std::vector<float>(2 * n_layers, 0.0f));
    CHECK_FALSE(bits_of(model().values[2], n_chunk / 2) == std::vector<float>(2 * n_layers, 0.0f));
}

TEST_CASE("rates are chosen when all layers have come as far, in chunks as at once", "[rates]") {
    KvSpec chosen[2][n_layers];
    for (const std::size_t n_chunk : {64u, 192u}) {
        auto cache = make_cache(config_of("auto:3.5"));
        for (std::size_t first = 0; first < 192; first += n_chunk) {
            for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
                REQUIRE(append(cache.get(), model().keys[layer], model().values[layer], first, n_chunk, layer)
                            .ok());
                attend_layer(cache.get(), layer, model().some_queries(layer, first, n_chunk));
                REQUIRE(cache->compress(layer, serial_executor()).ok());
                CHECK(cache->stats().n_blocks == (first + n_chunk < 192 || layer + 1 < n_layers ? 0 : 2));
            }
        }
        for (std::uint32_t layer = 0; layer < n_layers; ++layer)
            chosen[n_chunk == 64][layer] = layer_spec(*cache, layer);
    }
    for (std::uint32_t layer = 0; layer < n_layers; ++layer)
        CHECK(chosen[0][layer] == chosen[1][layer]);
}

TEST_CASE("what is asked for is never exceeded, and bytes are known beforehand", "[rates][shapes]") {
    for (const char* text : {"auto:1.5", "auto:2.5", "auto:3", "auto:4.25,nb=256", "auto:5,sinks=0"}) {
        const CacheConfig config = config_of(text);
        auto cache = make_cache(config);
        feed(cache.get(), 0, n_chunk);
        for (std::size_t t = n_chunk; t < n_all; t += 50)
            feed(cache.get(), t, 50);
        for (std::uint32_t layer = 0; layer < n_layers; ++layer)
            REQUIRE(cache->compress(layer, serial_executor()).ok());
        const CacheStats stats = cache->stats();
        CacheBytes required;
        REQUIRE(bytes_required(config, n_all, n_chunk, &required).ok());
        INFO(text);
        CHECK(stats.bytes.keys.bytes + stats.bytes.values.bytes <=
              required.keys.bytes + required.values.bytes);
        // The profile of a stream and the padding around it come on top.
        const double profiles =
            static_cast<double>(n_layers) * (n_heads * dim * 6 + 2 * (4 * n_heads + 4 + 3 * 64));
        const double blocks =
            static_cast<double>(stats.bytes.keys.bytes + stats.bytes.values.bytes) - profiles;
        const double elements = static_cast<double>(stats.compressed_tokens) * n_layers * n_heads * 2 * dim;
        CHECK(8.0 * blocks / elements <= static_cast<double>(config.spec.auto_bits));
        CHECK(8.0 * blocks / elements > 0.97 * static_cast<double>(config.spec.auto_bits));
    }
}

TEST_CASE("the choice of rates and what comes of it do not depend on the executor", "[rates][thread]") {
    std::vector<std::vector<float>> expected;
    for (const unsigned n_threads : {1u, 2u, 3u}) {
        std::unique_ptr<Executor> executor;
        REQUIRE(create_executor(n_threads, &executor).ok());
        auto cache = make_cache(config_of("auto:3"));
        feed(cache.get(), 0, n_chunk, *executor);
        feed(cache.get(), n_chunk, 200, *executor);
        for (std::uint32_t layer = 0; layer < n_layers; ++layer)
            REQUIRE(cache->compress(layer, *executor).ok());
        for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
            const std::size_t n = cache->n_tokens(layer) * n_heads * dim;
            std::vector<float> rows(2 * n);
            REQUIRE(cache->read(layer, 0, cache->n_tokens(layer), rows.data(), n, rows.data() + n, n).ok());
            if (n_threads == 1) {
                expected.push_back(rows);
            } else {
                CHECK(rows == expected[layer]);
            }
        }
    }
}

TEST_CASE("blocks whose heads have rates of their own are attended as they decompress", "[rates]") {
    const Model& m = model();
    CacheConfig config = make_config("auto:2.5", n_heads, dim, dim);
    auto cache = make_cache(config);
    const Tensor q = m.some_queries(2, n_all - 20, 20);
    REQUIRE(append(cache.get(), m.keys[2], m.values[2], 0, 300).ok());
    attend(cache.get(), q, dim, true);
    for (std::size_t t = 300; t < n_all; t += 50) {
        REQUIRE(append(cache.get(), m.keys[2], m.values[2], t, 50).ok());
        CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
    }
    CHECK(cache->stats().compressed_tokens >= 512);
}

TEST_CASE("layers without queries keep an even share, and compress waits for all layers", "[rates]") {
    auto cache = make_cache(config_of("auto:3.5"));
    const KvSpec even = layer_spec(*cache, 0);
    REQUIRE(append(cache.get(), model().keys[0], model().values[0], 0, n_chunk, 0).ok());
    attend_layer(cache.get(), 0, model().some_queries(0, n_chunk - 5, 5));
    REQUIRE(cache->compress(0, serial_executor()).ok());
    CHECK(cache->stats().n_blocks == 0);
    REQUIRE(append(cache.get(), model().keys[2], model().values[2], 0, n_chunk, 2).ok());
    // The next append compresses, whatever the others have.
    REQUIRE(append(cache.get(), model().keys[0], model().values[0], n_chunk, 200, 0).ok());
    CHECK(cache->stats().n_blocks == 2);
    CHECK(layer_spec(*cache, 1) == even);
    CHECK(layer_spec(*cache, 2) == even);
    CHECK_FALSE(layer_spec(*cache, 0) == even);
    REQUIRE(cache->compress(2, serial_executor()).ok());
    CHECK(cache->stats().n_blocks == 4);
}

TEST_CASE("queries that came before nearly all tokens choose no rates", "[rates]") {
    auto cache = make_cache(config_of("auto:3.5"));
    const KvSpec even = layer_spec(*cache, 0);
    for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
        REQUIRE(append(cache.get(), model().keys[layer], model().values[layer], 0, 8, layer).ok());
        attend_layer(cache.get(), layer, model().some_queries(layer, 7, 1));
        REQUIRE(append(cache.get(), model().keys[layer], model().values[layer], 8, 400, layer).ok());
        if (layer != 1) attend_layer(cache.get(), layer, model().some_queries(layer, 400, 8));
    }
    REQUIRE(append(cache.get(), model().keys[0], model().values[0], 408, 1, 0).ok());
    CHECK(layer_spec(*cache, 1) == even);
    const KvSpec chosen[] = {layer_spec(*cache, 0), layer_spec(*cache, 2)};
    for (const KvSpec& spec : chosen) {
        CHECK(spec.key.rate > 1.5f);
        CHECK(spec.value.rate > 1.5f);
    }
}

TEST_CASE("memory that runs out while rates are chosen leaves a cache that still works", "[rates]") {
    bool finished = false;
    for (std::int64_t budget = 0; !finished; ++budget) {
        REQUIRE(budget < 100);
        CountingMemory memory;
        CacheConfig config = make_config("auto:3", n_heads, dim, dim);
        config.allocator = memory.allocator();
        auto cache = make_cache(config);
        REQUIRE(append(cache.get(), model().keys[0], model().values[0], 0, 140).ok());
        memory.budget = budget;
        const Tensor q = model().some_queries(0, 0, 8);
        const std::vector<float> data = to_floats(q);
        std::vector<float> out(q.data.size());
        const Status attended =
            cache->attend(0, queries_of(data, q, true), out.data(), out.size(), serial_executor());
        const Status compressed = cache->compress(0, serial_executor());
        for (const Status& status : {attended, compressed})
            CHECK((status.ok() || status.code() == Code::out_of_memory));
        finished = attended.ok() && compressed.ok();
        memory.budget = INT64_MAX;
        CHECK(cache->n_tokens(0) == 140);
        CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
        REQUIRE(cache->compress(0, serial_executor()).ok());
        CHECK(cache->stats().bytes.bytes == memory.held);
        CHECK(cache->stats().n_blocks == 2);
        cache.reset();
        CHECK(memory.held == 0);
    }
}

TEST_CASE("a budget below the lowest rates is refused", "[rates]") {
    std::unique_ptr<Cache> cache;
    const Status status = Cache::create(make_config("auto:1", 1, 8, 8), &cache);
    CHECK(status.code() == Code::bad_spec);
    CHECK_THAT(status.message(),
               Catch::Matchers::Contains("auto:1 cannot be reached with 1 heads of 8 and 8"));
    CHECK(cache == nullptr);
    auto works = make_cache(make_config("auto:3", n_heads, dim, dim));
    KvSpec spec;
    CHECK(works->layer_spec(1, &spec).code() == Code::invalid_argument);
    CHECK(works->layer_spec(0, nullptr).code() == Code::invalid_argument);
}
