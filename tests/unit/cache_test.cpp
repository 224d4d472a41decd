#include <atomic>
#include <cstring>
#include <memory>
#include <string>

#include "caches.hpp"

using namespace gearkv;
using namespace gearkv::testing;

TEST_CASE("attention on the compressed form equals attention on what it decompresses to",
          "[cache][attention][shapes]") {
    const char* specs[] = {"f32",
                           "f16",
                           "q8",
                           "kivi-2",
                           "kivi-3",
                           "kivi-4",
                           "kcvt-4",
                           "kcvt-2",
                           "token-2",
                           "token-3",
                           "gearl-2",
                           "gear-2",
                           "gear-3",
                           "gear-4",
                           "gear-8",
                           "gear-kcvt-4",
                           "gear-token-3:g=32",
                           "paper:gear-2",
                           "paper:gear-3",
                           "gearl-3",
                           "paper:gear-2:g=32,s=0.2",
                           "k=paper:gear-2:g=32;v=kivi-4",
                           "k=f16;v=gear-2",
                           "k=gear-4;v=f16:sinks=0",
                           "k=trellis-5.5;v=trellis-0.75:sinks=3",
                           "k=trellis-1;v=kivi-2:nb=256",
                           "k=token-4;v=f32"};
    const struct {
        std::uint32_t n_kv_heads, n_heads, key_dim, value_dim;
    } shapes[] = {{2, 4, 64, 64},   {1, 1, 80, 80},   {3, 3, 96, 96},   {1, 7, 112, 112},
                  {2, 8, 128, 128}, {1, 4, 192, 128}, {1, 2, 256, 256}, {2, 6, 72, 40}};
    unsigned seed = 100;
    for (const char* spec : specs) {
        for (const auto& shape : shapes) {
            auto cache = make_cache(make_config(spec, shape.n_kv_heads, shape.key_dim, shape.value_dim));
            const Tensor k = structured(300, shape.n_kv_heads, shape.key_dim, ++seed);
            const Tensor v = structured(300, shape.n_kv_heads, shape.value_dim, ++seed);
            const Tensor q = gaussian(11, shape.n_heads, shape.key_dim, ++seed);
            INFO(spec << " heads " << shape.n_heads << "/" << shape.n_kv_heads << " dims " << shape.key_dim
                      << "/" << shape.value_dim);
            std::size_t fed = 0;
            for (const std::size_t n : {150u, 1u, 60u, 64u, 1u, 24u}) {
                REQUIRE(append(cache.get(), k, v, fed, n).ok());
                fed += n;
            }
            REQUIRE(cache->n_tokens(0) == 300);
            const double tolerance = attention_tolerance(*cache);
            CHECK(attention_error(cache.get(), q, true) < tolerance);
            CHECK(attention_error(cache.get(), q, false) < tolerance);
            REQUIRE(cache->compress(0, serial_executor()).ok());
            CHECK(attention_error(cache.get(), q, true) < tolerance);
        }
    }
}

TEST_CASE("a block of several sections is attended as it decompresses", "[cache][attention]") {
    // Later keys are louder, so the softmax maximum grows from section to section within one block.
    const auto spec = GENERATE(as<std::string>{}, "gear-2", "gear-4", "k=f16;v=gear-2", "k=gear-2;v=f16");
    Tensor k = structured(900, 2, 64, 21);
    const Tensor v = structured(900, 2, 64, 22), q = gaussian(9, 4, 64, 23);
    for (std::size_t t = 0; t < 900; ++t) {
        for (std::size_t i = 0; i < 128; ++i)
            k.data[t * 128 + i] = static_cast<float>(k.data[t * 128 + i] * static_cast<double>(t + 1) / 900);
    }
    auto cache = make_cache(make_config(spec, 2, 64, 64));
    REQUIRE(append(cache.get(), k, v, 0, 900).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    REQUIRE(cache->stats().n_blocks == 2);
    REQUIRE(cache->stats().compressed_tokens >= 384);
    INFO(spec);
    CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
    CHECK(attention_error(cache.get(), q, false) < attention_tolerance(*cache));
}

TEST_CASE("a raw cache gives back what was appended", "[cache]") {
    const Tensor k = gaussian(200, 2, 64, 1), v = gaussian(200, 2, 64, 2);
    auto cache = make_cache(make_config("f32", 2, 64, 64));
    REQUIRE(append(cache.get(), k, v, 0, 150).ok());
    REQUIRE(append(cache.get(), k, v, 150, 50).ok());
    const auto [keys, values] = read_all(cache.get());
    CHECK(keys.data == k.data);
    CHECK(values.data == v.data);
}

TEST_CASE("closed blocks never change and the buffer holds the rest", "[cache]") {
    const auto spec = GENERATE(as<std::string>{}, "gear-2", "paper:gear-2");
    INFO(spec);
    const Tensor k = structured(400, 2, 64, 1), v = structured(400, 2, 64, 2);
    auto cache = make_cache(make_config(spec, 2, 64, 64));
    const std::size_t n_sinks = cache->config().spec.sink_tokens;
    REQUIRE(append(cache.get(), k, v, 0, 130 + n_sinks).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    CHECK(cache->stats().compressed_tokens == 128);
    const auto before = read_all(cache.get());
    for (std::size_t t = 130 + n_sinks; t < 400; ++t)
        REQUIRE(append(cache.get(), k, v, t, 1).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const auto after = read_all(cache.get());
    for (std::size_t i = 0; i < (128 + n_sinks) * 2 * 64; ++i) {
        REQUIRE(before.first.data[i] == after.first.data[i]);
        REQUIRE(before.second.data[i] == after.second.data[i]);
    }
    const std::size_t n_closed = cache->stats().compressed_tokens;
    CHECK(n_closed ==
          (400 - n_sinks) / cache->config().spec.buffer_tokens * cache->config().spec.buffer_tokens);
    // Sinks and recent tokens are as exact as fp16.
    for (std::size_t t = 0; t < 400; ++t) {
        if (t >= n_sinks && t < n_sinks + n_closed) continue;
        for (std::size_t c = 0; c < 64; ++c) {
            REQUIRE(after.first.at(t, 0, c) == Approx(k.at(t, 0, c)).epsilon(1e-3).margin(1e-6));
        }
    }
}

TEST_CASE("a prompt in any chunks holds the same tokens", "[cache]") {
    const Tensor k = structured(256, 2, 64, 1), v = structured(256, 2, 64, 2);
    const Tensor q = gaussian(4, 4, 64, 3);
    const auto spec = GENERATE(as<std::string>{}, "gear-4", "paper:gear-4");
    for (const std::size_t chunk : {1u, 7u, 63u, 64u, 65u, 100u, 256u}) {
        auto cache = make_cache(make_config(spec, 2, 64, 64));
        for (std::size_t t = 0; t < 256; t += chunk) {
            REQUIRE(append(cache.get(), k, v, t, std::min(chunk, 256 - t)).ok());
            REQUIRE(cache->compress(0, serial_executor()).ok());
        }
        REQUIRE(cache->n_tokens(0) == 256);
        const auto [keys, values] = read_all(cache.get());
        INFO(spec << " chunk " << chunk);
        CHECK(reference::relative_error(k, keys) < 0.06);
        CHECK(reference::relative_error(v, values) < 0.12);
        CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
    }
}

TEST_CASE("results do not depend on the executor", "[cache][thread]") {
    const Tensor k = structured(500, 3, 64, 1), v = structured(500, 3, 64, 2);
    const Tensor q = gaussian(33, 6, 64, 3);
    const auto spec = GENERATE(as<std::string>{}, "gear-3", "paper:gear-3");
    Tensor expected;
    for (const unsigned n_threads : {1u, 2u, 3u, 8u}) {
        std::unique_ptr<Executor> executor;
        REQUIRE(create_executor(n_threads, &executor).ok());
        auto cache = make_cache(make_config(spec, 3, 64, 64));
        REQUIRE(append(cache.get(), k, v, 0, 400, 0, *executor).ok());
        for (std::size_t t = 400; t < 500; ++t)
            REQUIRE(append(cache.get(), k, v, t, 1, 0, *executor).ok());
        const Tensor out = attend(cache.get(), q, 64, true, *executor);
        if (n_threads == 1) expected = out;
        CHECK(out.data == expected.data);
    }
}

TEST_CASE("compression in pieces gives the blocks of compression at once, in any order of calls",
          "[cache][shapes][once][thread]") {
    const auto spec = GENERATE(as<std::string>{}, "gear-2", "k=trellis-3;v=kivi-2:s=0.05,nb=128",
                               "paper:gear-kcvt-4:nb=32", "f32");
    const Tensor k = structured(600, 3, 64, 1), v = structured(600, 3, 64, 2), q = gaussian(1, 6, 64, 3);
    const std::vector<std::vector<std::size_t>> patterns = {{1},   {300, 1}, {129, 1, 1, 40}, {500, 1, 1, 1},
                                                            {100}, {127, 17}};
    std::unique_ptr<Executor> executor;
    REQUIRE(create_executor(3, &executor).ok());
    for (std::size_t pattern = 0; pattern < patterns.size(); ++pattern) {
        std::pair<Tensor, Tensor> expected;
        BlockBytes expected_keys;
        for (const std::uint32_t spread : {0u, 1u, 5u, 16u, 1000u}) {
            CacheConfig config = make_config(spec, 3, 64, 64);
            config.spread_tokens = spread;
            auto cache = make_cache(config);
            INFO(spec << " pattern " << pattern << " spread " << spread);
            std::size_t fed = 0;
            for (std::size_t i = 0; fed < 600; ++i) {
                const std::size_t n = std::min(patterns[pattern][i % patterns[pattern].size()], 600 - fed);
                REQUIRE(append(cache.get(), k, v, fed, n, 0, i % 2 ? *executor : serial_executor()).ok());
                fed += n;
                // Some steps attend, twice or not at all: pieces then wait for the next call.
                for (std::size_t j = 0; j < i % 3; ++j)
                    attend(cache.get(), q, 64, true, *executor);
                if (i % 41 == 7) CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
            }
            REQUIRE(cache->compress(0, *executor).ok());
            const auto found = read_all(cache.get());
            if (spread == 0) {
                expected = found;
                expected_keys = cache->stats().bytes.keys;
            }
            CHECK(found.first.data == expected.first.data);
            CHECK(found.second.data == expected.second.data);
            CHECK(cache->stats().bytes.keys.bytes == expected_keys.bytes);
            CHECK(cache->stats().bytes.keys.codes == expected_keys.codes);
        }
    }
}

TEST_CASE("attention while a block is compressed does not depend on the executor", "[cache][thread]") {
    const Tensor k = structured(400, 3, 64, 1), v = structured(400, 3, 64, 2), q = gaussian(1, 6, 64, 3);
    const auto spec = GENERATE(as<std::string>{}, "gear-3", "paper:gear-3");
    std::vector<Tensor> expected;
    for (const unsigned n_threads : {1u, 2u, 3u}) {
        std::unique_ptr<Executor> executor;
        REQUIRE(create_executor(n_threads, &executor).ok());
        auto cache = make_cache(make_config(spec, 3, 64, 64));
        for (std::size_t t = 0; t < 400; ++t) {
            REQUIRE(append(cache.get(), k, v, t, 1, 0, *executor).ok());
            const Tensor out = attend(cache.get(), q, 64, true, *executor);
            if (n_threads == 1) expected.push_back(out);
            REQUIRE(out.data == expected[t].data);
        }
        CHECK(cache->stats().compressed_tokens > 0);
    }
}

TEST_CASE("a cache that ends while a block is compressed gives all memory back", "[cache]") {
    const auto spec = GENERATE(as<std::string>{}, "gear-2", "paper:gear-2");
    const Tensor k = structured(400, 2, 64, 1), v = structured(400, 2, 64, 2);
    CountingMemory memory;
    CacheConfig config = make_config(spec, 2, 64, 64);
    config.allocator = memory.allocator();
    for (const bool reset : {true, false}) {
        auto cache = make_cache(config);
        const std::uint64_t empty = memory.held;
        REQUIRE(append(cache.get(), k, v, 0, 390).ok());
        REQUIRE(append(cache.get(), k, v, 390, 1).ok());  // begins a large unit and finishes nothing
        CHECK(cache->stats().compressed_tokens == 0);
        CHECK(cache->stats().bytes.keys.bytes > 0);
        CHECK(cache->stats().bytes.bytes == memory.held);
        if (reset) {
            cache->reset();
            CHECK(memory.held == empty);
            CHECK(cache->stats().bytes.keys.bytes == 0);
            REQUIRE(append(cache.get(), k, v, 0, 10).ok());
        }
        cache.reset();
        CHECK(memory.held == 0);
    }
}

TEST_CASE("reported bytes equal allocated bytes", "[cache]") {
    const Tensor k = structured(700, 2, 64, 1), v = structured(700, 2, 64, 2);
    const Tensor q = gaussian(20, 4, 64, 3);
    for (const char* spec : {"f16", "kivi-2", "gear-2", "paper:gear-2", "gear-kcvt-4"}) {
        CountingMemory memory;
        CacheConfig config = make_config(spec, 2, 64, 64, 1024, 3);
        config.allocator = memory.allocator();
        auto cache = make_cache(config);
        for (std::uint32_t layer = 0; layer < 3; ++layer) {
            REQUIRE(append(cache.get(), k, v, 0, 600, layer).ok());
            for (std::size_t t = 600; t < 700; ++t)
                REQUIRE(append(cache.get(), k, v, t, 1, layer).ok());
            REQUIRE(cache->compress(layer, serial_executor()).ok());
        }
        attend(cache.get(), q, 64, true);
        INFO(spec);
        CHECK(cache->stats().bytes.bytes == memory.held);
        check_planned(*cache, 700, 600);
        cache.reset();
        CHECK(memory.held == 0);
    }
}

TEST_CASE("reset gives memory back and the cache works again", "[cache]") {
    const auto spec = GENERATE(as<std::string>{}, "gear-2", "paper:gear-2");
    CountingMemory memory;
    CacheConfig config = make_config(spec, 2, 64, 64);
    config.allocator = memory.allocator();
    auto cache = make_cache(config);
    const std::uint64_t empty = memory.held;
    const Tensor k = structured(300, 2, 64, 1), v = structured(300, 2, 64, 2), q = gaussian(1, 2, 64, 3);
    REQUIRE(append(cache.get(), k, v, 0, 300).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const Tensor first = attend(cache.get(), q, 64, true);
    cache->reset();
    CHECK(cache->n_tokens(0) == 0);
    CHECK(memory.held == empty);
    REQUIRE(append(cache.get(), k, v, 0, 300).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    CHECK(attend(cache.get(), q, 64, true).data == first.data);
}

TEST_CASE("memory that runs out at any point leaves a cache that still works", "[cache]") {
    const Tensor k = structured(200, 2, 64, 1), v = structured(200, 2, 64, 2), q = gaussian(2, 4, 64, 3);
    const auto spec = GENERATE(as<std::string>{}, "gear-2", "paper:gear-2");
    auto whole = make_cache(make_config(spec, 2, 64, 64));
    REQUIRE(append(whole.get(), k, v, 0, 200).ok());
    REQUIRE(whole->compress(0, serial_executor()).ok());
    const Tensor expected = attend(whole.get(), q, 64, true);
    bool finished = false;
    for (std::int64_t budget = 0; !finished; ++budget) {
        REQUIRE(budget < 100);
        CountingMemory memory;
        memory.budget = budget;
        CacheConfig config = make_config(spec, 2, 64, 64);
        config.allocator = memory.allocator();
        std::unique_ptr<Cache> cache;
        const Status created = Cache::create(config, &cache);
        if (!created.ok()) {
            CHECK(created.code() == Code::out_of_memory);
            CHECK(cache == nullptr);
            CHECK(memory.held == 0);
            continue;
        }
        Status appended = append(cache.get(), k, v, 0, 200);
        if (!appended.ok()) {
            CHECK(appended.code() == Code::out_of_memory);
            CHECK(cache->n_tokens(0) == 0);
            memory.budget = INT64_MAX;
            REQUIRE(append(cache.get(), k, v, 0, 200).ok());
        }
        Status compressed = cache->compress(0, serial_executor());
        if (!compressed.ok()) {
            CHECK(compressed.code() == Code::out_of_memory);
            CHECK(cache->n_tokens(0) == 200);
            memory.budget = INT64_MAX;
            REQUIRE(cache->compress(0, serial_executor()).ok());
        }
        finished = appended.ok() && compressed.ok();
        memory.budget = INT64_MAX;
        CHECK(attend(cache.get(), q, 64, true).data == expected.data);
        cache.reset();
        CHECK(memory.held == 0);
    }
}

TEST_CASE("bad calls are refused and change nothing", "[cache]") {
    const Tensor k = gaussian(100, 2, 64, 1), v = gaussian(100, 2, 64, 2), q = gaussian(2, 4, 64, 3);
    auto cache = make_cache(make_config("paper:gear-2", 2, 64, 64, 100));
    REQUIRE(append(cache.get(), k, v, 0, 90).ok());
    const Tensor expected = attend(cache.get(), q, 64, true);
    Tensor bad = k;
    bad.at(5, 1, 2) = NAN;
    CHECK(append(cache.get(), bad, v, 5, 1).code() == Code::non_finite);
    bad = v;
    bad.at(5, 1, 2) = INFINITY;
    CHECK(append(cache.get(), k, bad, 5, 1).code() == Code::non_finite);
    bad.at(5, 1, 2) = 1e6;
    CHECK(append(cache.get(), k, bad, 5, 1).code() == Code::not_representable);
    CHECK(append(cache.get(), k, v, 0, 11).code() == Code::capacity_exceeded);
    CHECK(append(cache.get(), k, v, 0, 0).code() == Code::wrong_size);
    CHECK(append(cache.get(), k, v, 0, 1, 7).code() == Code::invalid_argument);
    CHECK(cache->append(0, Rows{}, Rows{}, 1, serial_executor()).code() == Code::invalid_argument);

    std::vector<float> data = to_floats(q), out(2 * 4 * 64, 7.0f);
    const auto code = [&](Queries queries) {
        return cache->attend(0, queries, out.data(), out.size(), serial_executor()).code();
    };
    Queries queries = queries_of(data, q, true);
    queries.n_heads = 3;
    CHECK(code(queries) == Code::wrong_size);
    queries = queries_of(data, q, true);
    queries.n_queries = 0;
    CHECK(code(queries) == Code::wrong_size);
    queries = queries_of(data, q, true);
    queries.n_queries = 91;
    CHECK(code(queries) == Code::wrong_size);
    queries = queries_of(data, q, true);
    queries.scale = NAN;
    CHECK(code(queries) == Code::invalid_argument);
    queries = queries_of(data, q, true);
    data[3] = NAN;
    CHECK(code(queries) == Code::non_finite);
    for (float x : out)
        REQUIRE(x == 7.0f);
    CHECK(cache->n_tokens(0) == 90);
    CHECK(attend(cache.get(), q, 64, true).data == expected.data);

    auto empty = make_cache(make_config("paper:gear-2", 2, 64, 64));
    data = to_floats(q);
    CHECK(empty->attend(0, queries_of(data, q, true), out.data(), out.size(), serial_executor()).code() ==
          Code::wrong_size);
}

TEST_CASE("what is written into is as long as the caller says, or nothing is written", "[cache]") {
    const Tensor k = gaussian(90, 2, 64, 1), v = gaussian(90, 2, 32, 2), q = gaussian(2, 4, 64, 3);
    auto cache = make_cache(make_config("gear-2", 2, 64, 32, 100));
    REQUIRE(append(cache.get(), k, v, 0, 90).ok());
    const std::vector<float> data = to_floats(q);
    std::vector<float> out(2 * 4 * 32 + 1, 7.0f);
    Queries queries = queries_of(data, q, true);
    for (const std::size_t n : {std::size_t{0}, std::size_t{1}, out.size() - 2}) {
        CHECK(cache->attend(0, queries, out.data(), n, serial_executor()).code() == Code::wrong_size);
        CHECK(out == std::vector<float>(out.size(), 7.0f));
    }
    // A number of queries whose outputs no memory holds, and 64 bits do not count, is not read.
    queries.causal = false;
    queries.n_queries = UINT32_MAX;
    queries.n_heads = UINT32_MAX - 1;
    CHECK(cache->attend(0, queries, out.data(), out.size(), serial_executor()).code() == Code::wrong_size);
    queries = queries_of(data, q, true);
    CHECK(cache->attend(0, queries, out.data(), out.size(), serial_executor()).ok());
    CHECK(out.back() == 7.0f);

    std::vector<float> keys(10 * 2 * 64, 7.0f), values(10 * 2 * 32, 7.0f);
    const auto read = [&](std::size_t n_keys, std::size_t n_values) {
        return cache->read(0, 3, 10, keys.data(), n_keys, values.data(), n_values).code();
    };
    CHECK(read(keys.size() - 1, values.size()) == Code::wrong_size);
    CHECK(read(keys.size(), values.size() - 1) == Code::wrong_size);
    CHECK(keys == std::vector<float>(keys.size(), 7.0f));
    CHECK(values == std::vector<float>(values.size(), 7.0f));
    CHECK(read(keys.size(), values.size()) == Code::ok);
    CHECK(cache->read(0, 3, 10, nullptr, 0, values.data(), values.size()).ok());
}

TEST_CASE("what nobody chose a SPEC for is no cache and no block", "[cache]") {
    CacheConfig config = make_config("f16", 2, 64, 64);
    config.spec = {};
    std::unique_ptr<Cache> cache;
    const Status status = Cache::create(config, &cache);
    CHECK(status.code() == Code::bad_spec);
    CHECK(std::string(status.message()) == "keys have no SPEC, expected one from parse_spec");
    config.spec.key = spec_of("f16").key;
    CHECK(Cache::create(config, &cache).code() == Code::bad_spec);
    CacheBytes bytes;
    CHECK(bytes_required(config, 1, 0, &bytes).code() == Code::bad_spec);
    BlockBytes block;
    CHECK(block_bytes({TensorKind::key, 64, 1, 64}, {}, &block).code() == Code::bad_spec);
    char text[max_spec_chars];
    CHECK(format_spec({}, text, sizeof(text)).code() == Code::bad_spec);
}

TEST_CASE("bytes that 64 bits do not hold are an error, and those just below are right", "[cache]") {
    for (const char* spec : {"f32", "f16", "q8", "gear-4", "paper:gear-4"}) {
        CacheConfig config = make_config(spec, 4096, 1024, 1024, (std::uint64_t{1} << 31) - 1, 4096);
        CacheBytes bytes;
        bytes.bytes = 7;
        CAPTURE(spec);
        const Status status = bytes_required(config, config.max_tokens, 0, &bytes);
        INFO(status.message());
        CHECK(status.code() == Code::wrong_size);  // 2^66 elements
        CHECK(bytes.bytes == 7);
        config.n_kv_heads = 64;  // 2^60
        REQUIRE(bytes_required(config, config.max_tokens, 0, &bytes).ok());
        const double elements = 4096.0 * 64.0 * 2048.0 * static_cast<double>(config.max_tokens);
        const double bits = 8.0 * static_cast<double>(bytes.bytes) / elements;
        CHECK(bits > (spec[0] == 'f' ? std::stod(spec + 1) : 4.0));
        CHECK(bits < (spec[0] == 'f' ? std::stod(spec + 1) + 0.1 : 9.0));
        CHECK(bytes.bytes == bytes.keys.bytes + bytes.values.bytes + bytes.buffer);
    }
}

TEST_CASE("configurations that cannot be are refused with the field's name", "[cache]") {
    const auto refuse = [](Code code, const char* field, auto&& change) {
        CacheConfig config = make_config("paper:gear-2", 2, 64, 64);
        change(config);
        std::unique_ptr<Cache> cache;
        const Status status = Cache::create(config, &cache);
        INFO(field << ": " << status.message());
        CHECK(status.code() == code);
        CHECK(std::strstr(status.message(), field) != nullptr);
        CHECK(cache == nullptr);
    };
    refuse(Code::wrong_size, "n_layers", [](CacheConfig& c) { c.n_layers = 0; });
    refuse(Code::wrong_size, "n_kv_heads", [](CacheConfig& c) { c.n_kv_heads = 5000; });
    refuse(Code::wrong_size, "key_dim", [](CacheConfig& c) { c.key_dim = 60; });
    refuse(Code::wrong_size, "value_dim", [](CacheConfig& c) { c.value_dim = 0; });
    refuse(Code::wrong_size, "max_tokens", [](CacheConfig& c) { c.max_tokens = 0; });
    refuse(Code::bad_spec, "bits", [](CacheConfig& c) { c.spec.key.bits = 7; });
    refuse(Code::invalid_argument, "allocator", [](CacheConfig& c) { c.allocator = {}; });
}
