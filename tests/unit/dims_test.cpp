// Layers of different shapes in one cache, and layers without keys of their own.
#include "mixed.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

// A cache of different layers, and beside it, for each layer, one of layers that are all like it.
struct Pair {
    std::unique_ptr<Cache> mixed;
    std::unique_ptr<Cache> alike[mixed_layers];

    explicit Pair(const CacheConfig& config) : mixed(make_cache(config)) {
        for (std::uint32_t i = 0; i < mixed_layers; ++i) {
            if (has_keys(i)) alike[i] = make_cache(alike_config(config, i));
        }
    }
    // Both with the layer that they have in common.
    template <class Call>
    void each(const Call& call) {
        for (std::uint32_t i = 0; i < mixed_layers; ++i) {
            if (!has_keys(i)) continue;
            call(mixed.get(), i);
            call(alike[i].get(), i);
        }
    }
    void feed(std::size_t first, std::size_t n) {
        each([&](Cache* cache, std::uint32_t layer) { REQUIRE(append_mixed(cache, layer, first, n).ok()); });
    }
    void compare(std::size_t first, std::size_t n_queries) {
        for (std::uint32_t i = 0; i < mixed_layers; ++i) {
            if (!has_keys(i)) continue;
            CAPTURE(i);
            REQUIRE(mixed->n_tokens(i) == alike[i]->n_tokens(i));
            std::vector<float> found, expected;
            REQUIRE(attend_mixed(mixed.get(), i, first, n_queries, &found).ok());
            REQUIRE(attend_mixed(alike[i].get(), i, first, n_queries, &expected).ok());
            REQUIRE((found == expected));
            LayerStats a, b;
            REQUIRE(mixed->layer_stats(i, &a).ok());
            REQUIRE(alike[i]->layer_stats(i, &b).ok());
            CHECK(a.n_closed == b.n_closed);
            CHECK(a.n_blocks == b.n_blocks);
            CHECK(a.output_error == b.output_error);
            CHECK(a.n_sampled == b.n_sampled);
        }
    }
    void compare_contents() {
        for (std::uint32_t i = 0; i < mixed_layers; ++i) {
            if (!has_keys(i)) continue;
            const std::size_t n = mixed->n_tokens(i), first = mixed->first_token(i);
            const std::size_t row = mixed_dims[i].n_kv_heads;
            std::vector<float> keys[2], values[2];
            for (int of = 0; of < 2; ++of) {
                keys[of].resize((n - first) * row * mixed_dims[i].key_dim);
                values[of].resize((n - first) * row * mixed_dims[i].value_dim);
                Cache* cache = of == 0 ? mixed.get() : alike[i].get();
                REQUIRE(cache
                            ->read(i, first, n - first, keys[of].data(), keys[of].size(), values[of].data(),
                                   values[of].size())
                            .ok());
            }
            CHECK((keys[0] == keys[1]));
            CHECK((values[0] == values[1]));
        }
    }
};

Code create_code(const CacheConfig& config, std::string* message = nullptr) {
    std::unique_ptr<Cache> cache;
    const Status status = Cache::create(config, &cache);
    if (message != nullptr) *message = status.message();
    CHECK((cache == nullptr) == !status.ok());
    CacheBytes bytes;
    CHECK(bytes_required(config, 0, 0, &bytes).code() == status.code());
    return status.code();
}

bool says(const std::string& text, const char* part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
    return text.find(part) != std::string::npos;
}

void live_beside_alike(std::initializer_list<const char*> specs) {
    for (const char* spec : specs) {
        CAPTURE(spec);
        CacheConfig config = mixed_config(spec);
        const std::uint32_t windows[mixed_layers] = {0, 100, 9, 0, 300};
        config.windows = windows;
        config.error_every = 1;
        config.rollback_tokens = 40;
        config.seed = 3;
        Pair pair(config);
        pair.feed(0, 300);
        pair.compare(0, 300);
        pair.each([](Cache* cache, std::uint32_t layer) {
            REQUIRE(cache->compress(layer, serial_executor()).ok());
        });
        for (std::size_t t = 0; t < 150; ++t) {
            pair.feed(300 + t, 1);
            if (t % 7 == 0) pair.compare(t, 2);
        }
        bool lossless = false;
        REQUIRE(pair.mixed->truncate(435, &lossless).ok());
        for (const auto& cache : pair.alike) {
            bool other = false;
            if (cache == nullptr) continue;
            REQUIRE(cache->truncate(435, &other).ok());
            CHECK(other == lossless);
        }
        // Ropes by layer, as many pairs as its heads have.
        std::vector<double> frequencies(64, 0.0);
        for (std::size_t i = 0; i < frequencies.size(); ++i)
            frequencies[i] = std::pow(100.0, -static_cast<double>(i) / 60.0);
        RopeConfig ropes[mixed_layers];
        for (std::uint32_t i = 0; i < mixed_layers; ++i)
            ropes[i] = {frequencies.data(), has_keys(i) ? mixed_dims[i].key_dim / 2 : 4096, i % 2 == 0};
        REQUIRE(pair.mixed->remove(390, 18, ropes).ok());
        for (std::uint32_t i = 0; i < mixed_layers; ++i) {
            if (!has_keys(i)) continue;
            const std::vector<RopeConfig> own(mixed_layers, ropes[i]);
            REQUIRE(pair.alike[i]->remove(390, 18, own.data()).ok());
        }
        pair.compare(3, 1);
        REQUIRE(pair.mixed->shrink(0).ok());
        for (const auto& cache : pair.alike)
            if (cache != nullptr) REQUIRE(cache->shrink(0).ok());
        pair.compare(5, 1);
        pair.compare_contents();
        // A fork goes on alone.
        for (std::unique_ptr<Cache>* cache :
             {&pair.mixed, &pair.alike[0], &pair.alike[1], &pair.alike[3], &pair.alike[4]}) {
            std::unique_ptr<Cache> fork;
            REQUIRE((*cache)->fork(&fork).ok());
            REQUIRE((*cache)->truncate(400).ok());
            feed_mixed(cache->get(), 1000, 200);
            *cache = std::move(fork);
        }
        pair.feed(500, 150);
        pair.compare(9, 3);
    }
}

}  // namespace

TEST_CASE("every layer of a cache of different layers lives as in a cache of layers like it", "[dims]") {
    live_beside_alike({"gear-3", "kivi-2:nb=64;edge-1=q8"});
}

// What they share knows no level.
TEST_CASE("so do layers of the other codecs", "[dims][once]") {
    live_beside_alike({"paper:gear-4:nb=64", "f32:nb=64", "k=gear-2;v=kcvt-4:nb=128,recent=9"});
}

TEST_CASE(
    "bytes of different layers are the sum of those of their shapes, and one table of equal ones is none",
    "[dims]") {
    for (const char* spec : {"gear-4", "paper:gear-2:nb=64,g=32", "q8;edge-1=gear-2"}) {
        CAPTURE(spec);
        CacheConfig config = mixed_config(spec);
        const std::uint32_t windows[mixed_layers] = {0, 0, 0, 200, 64};
        config.windows = windows;
        CacheBytes all;
        REQUIRE(bytes_required(config, 900, 600, &all).ok());
        std::uint64_t sum = 0;
        for (std::uint32_t i = 0; i < mixed_layers; ++i) {
            LayerDims only[mixed_layers] = {};
            only[i] = mixed_dims[i];
            CacheConfig one = config;
            one.dims = only;
            CacheBytes bytes;
            if (has_keys(i)) REQUIRE(bytes_required(one, 900, 600, &bytes).ok());
            sum += bytes.bytes;
        }
        CHECK(sum == all.bytes);
        auto cache = make_cache(config);
        feed_mixed(cache.get(), 0, 600);
        for (std::uint32_t i = 0; i < mixed_layers; ++i)
            REQUIRE(cache->compress(i, serial_executor()).ok());
        for (std::size_t t = 600; t < 900; ++t)
            feed_mixed(cache.get(), t, 1);
        for (std::uint32_t i = 0; i < mixed_layers; ++i)
            REQUIRE(cache->compress(i, serial_executor()).ok());
        check_planned(*cache, 900, 600);

        const std::vector<LayerDims> equal(mixed_layers, mixed_dims[1]);
        CacheConfig table = config;
        table.dims = equal.data();
        CacheBytes told, once;
        REQUIRE(bytes_required(table, 900, 600, &told).ok());
        REQUIRE(bytes_required(alike_config(config, 1), 900, 600, &once).ok());
        CHECK(told.bytes == once.bytes);
    }
}

TEST_CASE("a layer without keys refuses tokens and queries, takes no bytes and holds nothing up", "[dims]") {
    for (const char* spec : {"gear-4", "auto:3.5"}) {
        CAPTURE(spec);
        const LayerDims dims[] = {{0, 0, 0}, {2, 64, 64}, {0, 0, 0}, {1, 128, 64}};
        CacheConfig config = make_config(spec, 0, 0, 0, 1000, 4);
        config.dims = dims;
        auto cache = make_cache(config);
        std::vector<float> out;
        for (const std::uint32_t layer : {0u, 2u}) {
            Status status = append_mixed(cache.get(), layer, 0, 1);
            CHECK(status.code() == Code::no_keys);
            says(status.message(), layer == 0 ? "layer 0 has 0 KV heads" : "layer 2 has 0 KV heads");
            CHECK(attend_mixed(cache.get(), layer, 0, 1, &out).code() == Code::no_keys);
            const AttendRequest request = {cache.get(), mixed_queries(dims[1], 0, 1), out.data(), out.size()};
            CHECK(Cache::attend_batch(layer, &request, 1, serial_executor()).code() == Code::no_keys);
            CHECK(cache->n_tokens(layer) == 0);
            CHECK(cache->read(layer, 0, 0, nullptr, 0, nullptr, 0).ok());
            CHECK(cache->read(layer, 0, 1, nullptr, 0, nullptr, 0).code() == Code::wrong_size);
            CHECK(cache->forget_before(layer, 10).ok());
            LayerStats stats;
            REQUIRE(cache->layer_stats(layer, &stats).ok());
            CHECK(stats.n_tokens + stats.n_blocks == 0);
        }
        CHECK(cache->remove(0, 1).code() == Code::wrong_size);  // no layer holds any
        CHECK(cache->truncate(1).code() == Code::wrong_size);
        // One step failed in its middle, before any other: that layer 0 gets nothing is known.
        REQUIRE(append_mixed(cache.get(), 1, 0, 20).ok());
        std::uint64_t n = 77;
        REQUIRE(cache->truncate_to_shortest(&n).ok());
        CHECK(n == 0);
        feed_mixed(cache.get(), 0, 300);
        REQUIRE(append_mixed(cache.get(), 1, 300, 1).ok());
        REQUIRE(cache->truncate_to_shortest(&n).ok());
        CHECK(n == 300);
        for (const std::uint32_t layer : {1u, 3u})
            REQUIRE(attend_mixed(cache.get(), layer, 0, 40, &out).ok());
        for (std::uint32_t layer = 0; layer < 4; ++layer)
            REQUIRE(cache->compress(layer, serial_executor()).ok());
        CHECK(cache->stats().compressed_tokens == 256);  // auto has not waited for them
        REQUIRE(cache->remove(100, 50).ok());
        REQUIRE(cache->truncate(200).ok());
        CHECK(cache->n_tokens(3) == 200);
        std::unique_ptr<Cache> fork;
        REQUIRE(cache->fork(&fork).ok());
        fork->reset();
        feed_mixed(fork.get(), 0, 40);
        CHECK(cache->n_tokens(1) == 200);
        // What the others hold is what there is.
        CacheConfig alone = make_config(spec, 0, 0, 0, 1000, 2);
        const LayerDims others[] = {dims[1], dims[3]};
        alone.dims = others;
        const CacheBytes with = make_cache(config)->stats().bytes, without = make_cache(alone)->stats().bytes;
        CHECK(with.buffer == without.buffer);
        CHECK(with.scratch == without.scratch);
        CHECK(with.tables - without.tables < 2 * 1200);  // their places in tables of layers
    }
}

TEST_CASE("shapes of layers that cannot be are refused, and the layer is named", "[dims][once]") {
    std::string message;
    CacheConfig config = mixed_config("gear-4");
    REQUIRE(create_code(config) == Code::ok);
    for (std::uint32_t CacheConfig::*field :
         {&CacheConfig::n_kv_heads, &CacheConfig::key_dim, &CacheConfig::value_dim}) {
        CacheConfig both = config;
        both.*field = 64;
        CHECK(create_code(both, &message) == Code::invalid_argument);
        CHECK(says(message, "expected 0 of each"));
    }
    const LayerDims bad[] = {{0, 64, 64}, {2, 0, 64},          {2, 64, 0},          {5000, 64, 64},
                             {2, 60, 64}, {2, 64, 1032},       {0, 0, 8},           {2, 8, 0},
                             {2, 4, 64},  {4294967295u, 8, 8}, {2, 64, 4294967288u}};
    for (const LayerDims& one : bad) {
        CAPTURE(one.n_kv_heads, one.key_dim, one.value_dim);
        std::vector<LayerDims> dims(mixed_dims, mixed_dims + mixed_layers);
        dims[3] = one;
        config.dims = dims.data();
        CHECK(create_code(config, &message) == Code::wrong_size);
        CHECK(says(message, "layer 3: "));
    }
    const LayerDims none[mixed_layers] = {};
    config.dims = none;
    CHECK(create_code(config, &message) == Code::wrong_size);
    CHECK(says(message, "without keys"));

    const std::vector<double> frequencies(64, 0.1);
    config.dims = mixed_dims;
    config.rope = {frequencies.data(), 17, false};  // more than the 32 channels of layer 3 have
    CHECK(create_code(config, &message) == Code::wrong_size);
    CHECK(says(message, "layer 3: rope.n_pairs is 17"));
    config.rope.n_pairs = 16;
    REQUIRE(create_code(config) == Code::ok);
    auto cache = make_cache(config);
    feed_mixed(cache.get(), 0, 30);
    RopeConfig ropes[mixed_layers];
    ropes[1] = {frequencies.data(), 64, false};
    ropes[3] = {frequencies.data(), 20, false};
    Status status = cache->remove(3, 4, ropes);
    CHECK(status.code() == Code::wrong_size);
    CHECK(says(status.message(), "layer 3: "));
    // auto names the layer whose share is too small.
    std::vector<LayerDims> small(mixed_dims, mixed_dims + mixed_layers);
    small[3] = {1, 8, 8};
    config = mixed_config("auto:1.5");
    REQUIRE(create_code(config) == Code::ok);
    config.dims = small.data();
    CHECK(create_code(config, &message) == Code::bad_spec);
    CHECK(says(message, "1 heads of 8 and 8 channels of layer 3"));

    // Queries of another layer.
    const LayerDims other = mixed_dims[1];
    std::vector<float> out(4096);
    Queries queries = mixed_queries(other, 0, 1);
    queries.n_heads = 2;
    status = cache->attend(3, queries, out.data(), out.size(), serial_executor());
    CHECK(status.code() == Code::wrong_size);
    CHECK(says(status.message(), "2 query heads, expected a multiple of the 3 KV heads of layer 3"));
    queries.n_heads = 6;
    status = cache->attend(3, queries, out.data(), 6 * 40 - 1, serial_executor());
    CHECK(says(status.message(), "room for 239 numbers of outputs of layer 3, expected 240"));
}

TEST_CASE("auto spends the bits of all layers by what their elements cost, whatever their shapes",
          "[dims][rates]") {
    const auto live = [](Cache* cache) {
        std::vector<float> out;
        for (std::uint32_t layer = 0; layer < mixed_layers; ++layer) {
            if (!cache->config().dims_of(layer).has_keys()) continue;
            REQUIRE(append_mixed(cache, layer, 0, 516).ok());
            REQUIRE(attend_mixed(cache, layer, 0, 60, &out).ok());
        }
        for (std::uint32_t layer = 0; layer < mixed_layers; ++layer)
            REQUIRE(cache->compress(layer, serial_executor()).ok());
    };
    SECTION("a table of equal shapes chooses as one shape does") {
        const std::vector<LayerDims> equal(mixed_layers, mixed_dims[0]);
        CacheConfig table = mixed_config("auto:3");
        table.dims = equal.data();
        auto told = make_cache(table), once = make_cache(alike_config(mixed_config("auto:3"), 0));
        live(told.get());
        live(once.get());
        CHECK(told->stats().bytes.keys.bytes == once->stats().bytes.keys.bytes);
        for (std::uint32_t layer = 0; layer < mixed_layers; ++layer) {
            KvSpec a, b;
            REQUIRE(told->layer_spec(layer, &a).ok());
            REQUIRE(once->layer_spec(layer, &b).ok());
            CHECK(a == b);
            std::vector<float> found, expected;
            REQUIRE(attend_mixed(told.get(), layer, 3, 1, &found).ok());
            REQUIRE(attend_mixed(once.get(), layer, 3, 1, &expected).ok());
            CHECK((found == expected));
        }
    }
    SECTION("different shapes take no more than was asked for, and nearly all of it") {
        for (const char* spec : {"auto:2.5", "auto:4"}) {
            CAPTURE(spec);
            auto cache = make_cache(mixed_config(spec));
            live(cache.get());
            const CacheStats stats = cache->stats();
            REQUIRE(stats.compressed_tokens == 512);
            std::uint64_t n_elements = 0, n_profiles = 0;
            for (const LayerDims& dims : mixed_dims) {
                n_elements += std::uint64_t{512} * dims.n_kv_heads * (dims.key_dim + dims.value_dim);
                n_profiles += std::uint64_t{dims.n_kv_heads} * (dims.key_dim * 8 + dims.value_dim * 2) + 512;
            }
            const double bits = 8.0 * static_cast<double>(stats.bytes.keys.bytes + stats.bytes.values.bytes) /
                                static_cast<double>(n_elements);
            const double asked = static_cast<double>(cache->config().spec.auto_bits);
            const double of_profiles =
                8.0 * static_cast<double>(n_profiles) / static_cast<double>(n_elements);
            CHECK(bits < asked + of_profiles);
            CHECK(bits > 0.93 * asked);
        }
    }
}

TEST_CASE("sequences of different layers are attended together with the bits of each alone", "[dims]") {
    std::unique_ptr<Workspace> workspace;
    REQUIRE(Workspace::create(default_allocator(), &workspace).ok());
    CacheConfig config = mixed_config("gear-3");
    config.workspace = workspace.get();
    CacheConfig other = alike_config(config, 3);
    std::unique_ptr<Cache> caches[] = {make_cache(config), make_cache(other), make_cache(config)};
    for (std::size_t i = 0; i < 3; ++i) {
        for (std::size_t t = 0; t < 400 + 30 * i; t += 10) {
            for (std::uint32_t layer = 0; layer < mixed_layers; ++layer) {
                if (caches[i]->config().dims_of(layer).has_keys())
                    REQUIRE(append_mixed(caches[i].get(), layer, t + 13 * i, 10).ok());
            }
        }
    }
    for (std::uint32_t layer = 0; layer < mixed_layers; ++layer) {
        if (!has_keys(layer)) continue;
        AttendRequest requests[3];
        std::vector<float> expected[3], found[3];
        for (std::size_t i = 0; i < 3; ++i) {
            const LayerDims dims = caches[i]->config().dims_of(layer);
            REQUIRE(attend_mixed(caches[i].get(), layer, i, 1, &expected[i]).ok());
            found[i].resize(expected[i].size());
            requests[i] = {caches[i].get(), mixed_queries(dims, i, 1), found[i].data(), found[i].size()};
        }
        REQUIRE(Cache::attend_batch(layer, requests, 3, serial_executor()).ok());
        for (std::size_t i = 0; i < 3; ++i)
            CHECK((found[i] == expected[i]));
    }
}

TEST_CASE("wherever memory ends in the life of different layers, all of it is given back", "[dims]") {
    bool done = false;
    for (std::int64_t budget = 0; !done; ++budget) {
        REQUIRE(budget < 500);
        CountingMemory memory;
        memory.budget = budget;
        CacheConfig config = mixed_config(budget % 2 == 0 ? "gear-4" : "auto:4", 700);
        config.error_every = 1;
        config.allocator = memory.allocator();
        std::unique_ptr<Cache> cache, fork;
        Status status = Cache::create(config, &cache);
        std::vector<float> out;
        for (std::uint32_t layer = 0; status.ok() && layer < mixed_layers; ++layer) {
            if (!has_keys(layer)) continue;
            status = append_mixed(cache.get(), layer, 0, 280);
            if (status.ok()) status = attend_mixed(cache.get(), layer, 0, 9, &out);
        }
        for (std::uint32_t layer = 0; status.ok() && layer < mixed_layers; ++layer)
            status = cache->compress(layer, serial_executor());
        if (status.ok()) status = cache->fork(&fork);
        if (status.ok()) status = fork->remove(10, 100);
        INFO(status.message());
        REQUIRE((status.ok() || status.code() == Code::out_of_memory));
        done = status.ok() && budget % 2 == 1;
        cache.reset();
        fork.reset();
        REQUIRE(memory.held == 0);
    }
}
