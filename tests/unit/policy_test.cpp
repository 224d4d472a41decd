// What a cache keeps, and at which size: windows, limits, recent tokens, specs by layer, and what that costs.
#include "caches.hpp"
#include "gearkv/state.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = source_heads, dim = source_dim;

}  // namespace

TEST_CASE("a sliding window gives back blocks, and attends what it would have", "[policy]") {
    CacheConfig config = make_config("gear-3", n_heads, dim, dim, 2000);
    auto windowed = make_cache(config), whole = make_cache(config);
    const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    const std::vector<float> data = to_floats(q);
    for (std::size_t t = 0; t + 50 <= 1500; t += 50) {
        REQUIRE(append(windowed.get(), source().keys, source().values, t, 50).ok());
        REQUIRE(append(whole.get(), source().keys, source().values, t, 50).ok());
        const std::uint64_t n = windowed->n_tokens(0);
        REQUIRE(windowed->forget_before(0, n > 300 ? n - 300 : 0).ok());
        Queries queries = queries_of(data, q, true);
        queries.window = 300;
        std::vector<float> found(2 * n_heads * dim), expected(found.size());
        REQUIRE(windowed->attend(0, queries, found.data(), found.size(), serial_executor()).ok());
        REQUIRE(whole->attend(0, queries, expected.data(), expected.size(), serial_executor()).ok());
        CHECK(found == expected);
    }
    CHECK(windowed->stats().bytes.keys.bytes < whole->stats().bytes.keys.bytes / 3);
    CHECK(windowed->n_tokens(0) == 1500);
    std::vector<float> keys(n_heads * dim);
    const Status status = windowed->read(0, 500, 1, keys.data(), keys.size(), nullptr, 0);
    CHECK(status.code() == Code::forgotten);
    CHECK(std::string(status.message()).find("forgotten") != std::string::npos);
    CHECK(windowed->read(0, 1300, 1, keys.data(), keys.size(), nullptr, 0).ok());
    // What was forgotten can be cut off or removed like the rest.
    REQUIRE(windowed->remove(100, 200).ok());
    CHECK(windowed->n_tokens(0) == 1300);
    REQUIRE(windowed->truncate(50).ok());
    CHECK(windowed->n_tokens(0) == 50);
    REQUIRE(append(windowed.get(), source().keys, source().values, 0, 300).ok());
}

TEST_CASE("a budget refuses what would exceed it and keeps the cache", "[policy]") {
    CountingMemory memory;
    CacheConfig config = make_config("gear-2", n_heads, dim, dim, 20000);
    config.allocator = memory.allocator();
    config.max_bytes = 1500000;
    auto cache = make_cache(config);
    const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    std::size_t n = 0;
    Status status;
    while (status.ok() && n < 19000) {
        status = append(cache.get(), source().keys, source().values, n % 2900, 50);
        CHECK(memory.peak <= config.max_bytes + 4096);
        if (status.ok()) n += 50;
        // Attention takes its scratch once, within the budget.
        if (n == 50) CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
    }
    CHECK(status.code() == Code::over_budget);
    CHECK(std::string(status.message()).find("max_bytes is 1500000") != std::string::npos);
    CHECK(n > 1000);
    CHECK(cache->n_tokens(0) == n);
    CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
    // Room that is given back can be used.
    REQUIRE(cache->remove(4, 600).ok());
    CHECK(append(cache.get(), source().keys, source().values, 0, 50).ok());
    config.max_bytes = 1000;
    std::unique_ptr<Cache> none;
    CHECK(Cache::create(config, &none).code() == Code::over_budget);
    CHECK(none == nullptr);
}

TEST_CASE("recent tokens stay uncompressed", "[policy]") {
    CacheConfig config = make_config("gear-2:recent=100", n_heads, dim, dim, 4000);
    for (const std::uint32_t spread : {0u, 16u}) {
        config.spread_tokens = spread;
        auto cache = make_cache(config);
        for (std::size_t t = 0; t < 900; ++t) {
            const std::size_t n = t < 400 && t % 100 == 0 ? 100 : t < 400 ? 0 : 1;
            if (n > 0) REQUIRE(append(cache.get(), source().keys, source().values, t, n).ok());
            const CacheStats stats = cache->stats();
            const std::uint64_t n_buffered = stats.n_tokens - stats.compressed_tokens;
            CHECK(n_buffered >= std::min<std::uint64_t>(stats.n_tokens, 100));
            if (t > 420) CHECK(n_buffered <= 4 + 100 + 128 + 16);
        }
        REQUIRE(cache->compress(0, serial_executor()).ok());
        CHECK(cache->stats().compressed_tokens == 768);
        check_planned(*cache, 900, 100);
    }
}

TEST_CASE("the first and last layers have a spec of their own", "[policy]") {
    CacheConfig config = make_config("gear-2;edge-1=k=gear-4;v=kivi-4", n_heads, dim, dim, 2000, 4);
    auto cache = make_cache(config);
    const KvSpec edge = spec_of("k=gear-4;v=kivi-4:nb=128"), middle = spec_of("gear-2");
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
        for (std::size_t t = 0; t < 600; t += 200)
            REQUIRE(append(cache.get(), source().keys, source().values, t, 200, layer).ok());
        REQUIRE(cache->compress(layer, serial_executor()).ok());
        KvSpec found;
        REQUIRE(cache->layer_spec(layer, &found).ok());
        const bool is_edge = layer == 0 || layer == 3;
        CHECK(found.key == (is_edge ? edge : middle).key);
        CHECK(found.value == (is_edge ? edge : middle).value);
    }
    // As much as caches of either kind alone.
    const auto bytes_of = [&](const char* spec, std::uint32_t n_layers) {
        CacheBytes bytes;
        REQUIRE(bytes_required(make_config(spec, n_heads, dim, dim, 2000, n_layers), 600, 0, &bytes).ok());
        return bytes;
    };
    CacheBytes planned;
    REQUIRE(bytes_required(config, 600, 0, &planned).ok());
    const CacheBytes a = bytes_of("k=gear-4;v=kivi-4:nb=128,sinks=4", 2), b = bytes_of("gear-2", 2);
    CHECK(planned.keys.bytes == a.keys.bytes + b.keys.bytes);
    CHECK(planned.values.bytes == a.values.bytes + b.values.bytes);
    CHECK(planned.buffer == cache->stats().bytes.buffer);
    CHECK(attention_error(cache.get(), gaussian(1, 2 * n_heads, dim, 3), true) < attention_tolerance(*cache));
    // All layers are edges.
    config = make_config("gear-2;edge-9=q8", n_heads, dim, dim, 2000, 3);
    cache = make_cache(config);
    KvSpec found;
    REQUIRE(cache->layer_spec(1, &found).ok());
    CHECK(found.key.bits == 8);
    REQUIRE(bytes_required(config, 600, 0, &planned).ok());
    CHECK(planned.keys.bytes == bytes_of("q8:nb=128,sinks=4", 3).keys.bytes);
}

TEST_CASE("layers have the spec of the last rule that names them", "[policy]") {
    CacheConfig config =
        make_config("gear-2;layers-1-3=kivi-4;layers-2=k=gear-4;v=token-4;edge-1=q8;layers-5-9=f16", n_heads,
                    dim, dim, 2000, 7);
    CountingMemory memory;
    config.allocator = memory.allocator();
    const char* specs[] = {"q8:nb=128,sinks=4",
                           "kivi-4:nb=128,sinks=4",
                           "k=gear-4;v=token-4",
                           "kivi-4:nb=128,sinks=4",
                           "gear-2",
                           "f16:nb=128,sinks=4",
                           "f16:nb=128,sinks=4"};
    {
        auto cache = make_cache(config);
        const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
        const std::vector<float> data = to_floats(q);
        CacheBytes planned, sum;
        for (std::uint32_t layer = 0; layer < 7; ++layer) {
            CAPTURE(layer);
            REQUIRE(append(cache.get(), source().keys, source().values, 0, 600, layer).ok());
            REQUIRE(cache->compress(layer, serial_executor()).ok());
            KvSpec found;
            REQUIRE(cache->layer_spec(layer, &found).ok());
            CHECK(found == spec_of(specs[layer]));
            // As a cache of this layer alone.
            const CacheConfig alone_config = make_config(specs[layer], n_heads, dim, dim, 2000);
            auto alone = make_cache(alone_config);
            REQUIRE(append(alone.get(), source().keys, source().values, 0, 600).ok());
            REQUIRE(alone->compress(0, serial_executor()).ok());
            CHECK(attention_error(alone.get(), q, true) < attention_tolerance(*alone));
            std::vector<float> out(2 * n_heads * dim);
            REQUIRE(cache->attend(layer, queries_of(data, q, true), out.data(), out.size(), serial_executor())
                        .ok());
            CHECK(to_tensor(out.data(), 1, 2 * n_heads, dim).data == attend(alone.get(), q, dim, true).data);
            REQUIRE(bytes_required(alone_config, 600, 600, &planned).ok());
            sum.keys += planned.keys;
            sum.values += planned.values;
            sum.buffer += planned.buffer;
        }
        REQUIRE(bytes_required(config, 600, 600, &planned).ok());
        const CacheBytes found = cache->stats().bytes;
        CHECK(planned.keys.bytes == sum.keys.bytes);
        CHECK(planned.values.bytes == sum.values.bytes);
        CHECK(planned.buffer == sum.buffer);
        CHECK(planned.keys.bytes == found.keys.bytes);
        CHECK(planned.values.bytes == found.values.bytes);
        CHECK(planned.buffer == found.buffer);
        std::unique_ptr<Cache> fork;
        REQUIRE(cache->fork(&fork).ok());
        CHECK(fork->config().spec == config.spec);
    }
    CHECK(memory.held == 0);
    // Scratch for the layer that needs most of it is there from the beginning, wherever it is.
    config = make_config("kivi-2:nb=128;layers-1=gear-4", n_heads, dim, dim, 2000, 5);
    const std::uint64_t mixed = make_cache(config)->stats().bytes.scratch;
    config.spec = spec_of("kivi-2:nb=128,sinks=4;edge-5=gear-4");
    CHECK(mixed == make_cache(config)->stats().bytes.scratch);
    config.spec = spec_of("kivi-2:nb=128,sinks=4");
    CHECK(mixed > make_cache(config)->stats().bytes.scratch);
    // A rule for layers that are not there is a mistake.
    for (const char* spec : {"f16;layers-5=q8", "f16;layers-1=q8;layers-7-8=q8"}) {
        config.spec = spec_of(spec);
        std::unique_ptr<Cache> none;
        const Status status = Cache::create(config, &none);
        CHECK(status.code() == Code::bad_spec);
        CHECK(std::string(status.message()).find("of the SPEC, expected below 5") != std::string::npos);
        CacheBytes bytes;
        CHECK(bytes_required(config, 600, 0, &bytes).code() == Code::bad_spec);
    }
}

TEST_CASE("shrinking takes outliers, then low rank, of the oldest blocks first", "[policy]") {
    CacheConfig config = rope_config("paper:gear-4:nb=64", false, 2000);
    config.n_layers = 2;
    CountingMemory memory;
    config.allocator = memory.allocator();
    {
        auto cache = make_cache(config);
        for (std::uint32_t layer = 0; layer < 2; ++layer) {
            for (std::size_t t = 0; t < 1000; t += 50)
                REQUIRE(append(cache.get(), source().keys, source().values, t, 50, layer).ok());
            REQUIRE(cache->compress(layer, serial_executor()).ok());
        }
        REQUIRE(cache->remove(100, 20).ok());
        std::unique_ptr<Cache> whole;
        REQUIRE(cache->fork(&whole).ok());
        const auto exact = read_all(whole.get());
        const Tensor &exact_keys = exact.first, &exact_values = exact.second;
        const auto error = [&](Cache* of, std::size_t first, std::size_t n) {
            std::vector<float> keys(n * n_heads * dim);
            REQUIRE(of->read(0, first, n, keys.data(), keys.size(), nullptr, 0).ok());
            double sum = 0.0;
            for (std::size_t i = 0; i < keys.size(); ++i) {
                const double e = static_cast<double>(keys[i]) - exact_keys.data[first * n_heads * dim + i];
                sum += e * e;
            }
            return sum;
        };
        std::uint64_t freed = 1;
        REQUIRE(cache->shrink(UINT64_MAX, &freed).ok());
        CHECK(freed == 0);
        const CacheBytes before = cache->stats().bytes;
        REQUIRE(
            cache->shrink(before.bytes - (before.keys.outliers + before.values.outliers) / 3, &freed).ok());
        CHECK(freed > 0);
        const CacheBytes some = cache->stats().bytes;
        CHECK(some.keys.outliers < before.keys.outliers);
        CHECK(some.keys.outliers > 0);
        CHECK(some.keys.low_rank == before.keys.low_rank);
        CHECK(some.keys.codes == before.keys.codes);
        CHECK(error(cache.get(), 0, 200) > 0.0);
        CHECK(error(cache.get(), 700, 200) == 0.0);
        const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
        CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
        REQUIRE(cache->shrink(0, &freed).ok());
        const CacheBytes least = cache->stats().bytes;
        CHECK(least.keys.outliers + least.values.outliers + least.keys.low_rank + least.values.low_rank == 0);
        CHECK(least.keys.codes == before.keys.codes);
        CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
        const TemporaryFile file;
        REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
        std::unique_ptr<Cache> loaded;
        REQUIRE(load_state(file.path(), config, {}, serial_executor(), &loaded).ok());
        CHECK(read_all(loaded.get()).first.data == read_all(cache.get()).first.data);
        // The fork has what it had.
        CHECK(read_all(whole.get()).first.data == exact_keys.data);
        CHECK(read_all(whole.get()).second.data == exact_values.data);
        REQUIRE(append(cache.get(), source().keys, source().values, 1000, 200).ok());
    }
    CHECK(memory.held == 0);
}

TEST_CASE("windows by layer give back what no query sees, as planned, and skip what a prompt leaves behind",
          "[policy][once]") {
    const std::uint32_t windows[] = {0, 300, 1000, 40};
    for (const std::string spec : {"gear-3", "paper:gear-2:nb=64", "gear-2:recent=50"}) {
        for (const auto& [rollback, block_tokens] :
             {std::pair(0u, 0u), std::pair(10u, 128u), std::pair(500u, 256u)}) {
            CacheConfig config = make_config(spec, n_heads, dim, dim, 4000, 4);
            config.rollback_tokens = rollback;
            config.windows = windows;
            config.block_tokens = block_tokens;
            auto windowed = make_cache(config);
            const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
            const std::vector<float> data = to_floats(q);
            std::size_t n = 0;
            for (const std::size_t n_prompt : {1800u, 1u}) {
                for (std::size_t end = n_prompt > 1 ? n_prompt : 2400; n < end; n += n_prompt) {
                    const bool is_last = n + n_prompt == end;
                    for (std::uint32_t layer = 0; layer < 4; ++layer) {
                        CAPTURE(spec, rollback, n, layer);
                        REQUIRE(
                            append(windowed.get(), source().keys, source().values, n, n_prompt, layer).ok());
                        if (n_prompt > 1 || is_last)
                            REQUIRE(windowed->compress(layer, serial_executor()).ok());
                    }
                }
            }
            check_planned(*windowed, 2400, 1800);
            for (std::uint32_t layer = 1; layer < 4; ++layer) {
                LayerStats stats;
                REQUIRE(windowed->layer_stats(layer, &stats).ok());
                CHECK(stats.n_tokens == 2400);
                // One block, of up to the window's length where a prompt left it, may stick out.
                const std::uint64_t n_more = block_tokens > 0 ? block_tokens : windows[layer] + 128;
                CHECK(stats.n_forgotten + windows[layer] + rollback + n_more + 4 + 128 >= 2400);
                CHECK(stats.n_forgotten <= 2400 - windows[layer] - rollback);
            }
            // What is in the window is attended as it is held, no more and no less.
            for (std::uint32_t layer = 1; layer < 3; ++layer) {
                const std::uint64_t first = 2400 - windows[layer];
                Tensor keys{windows[layer], n_heads, dim, {}}, values = keys;
                std::vector<float> k(windows[layer] * n_heads * dim), v(k.size()), out(2 * n_heads * dim);
                REQUIRE(windowed->read(layer, first, windows[layer], k.data(), k.size(), v.data(), v.size())
                            .ok());
                keys.data.assign(k.begin(), k.end());
                values.data.assign(v.begin(), v.end());
                const Tensor expected =
                    reference::attend(q, keys, values, 1.0 / std::sqrt(static_cast<double>(dim)), true);
                REQUIRE(
                    windowed
                        ->attend(layer, queries_of(data, q, true), out.data(), out.size(), serial_executor())
                        .ok());
                const double error =
                    reference::relative_error(expected, to_tensor(out.data(), 1, 2 * n_heads, dim));
                CHECK(error < attention_tolerance(*windowed));
            }
        }
    }
}

TEST_CASE("a rollback in a windowed layer is lossless as far as rollback_tokens", "[policy][once]") {
    const std::uint32_t window = 200;
    CacheConfig config = make_config("kivi-4:nb=64", n_heads, dim, dim, 4000);
    config.windows = &window;
    config.rollback_tokens = 30;
    auto cache = make_cache(config);
    for (std::size_t t = 0; t < 1000; ++t)
        REQUIRE(append(cache.get(), source().keys, source().values, t, 1).ok());
    std::unique_ptr<Cache> fork;
    REQUIRE(cache->fork(&fork).ok());
    CHECK(fork->config().windows != cache->config().windows);
    bool lossless = false;
    REQUIRE(cache->truncate(970, &lossless).ok());
    CHECK(lossless);
    auto never = make_cache(config);
    for (std::size_t t = 0; t < 970; ++t)
        REQUIRE(append(never.get(), source().keys, source().values, t, 1).ok());
    const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    CHECK(attend(never.get(), q, dim, true).data == attend(cache.get(), q, dim, true).data);
    // Further back the window would show what was given back.
    lossless = true;
    CHECK(fork->truncate(300, &lossless).code() == Code::forgotten);
    CHECK(lossless);
    CHECK(fork->n_tokens(0) == 1000);
}

TEST_CASE("above soft_bytes older blocks shrink by themselves, and appends go on", "[policy][once]") {
    CacheConfig config = make_config("paper:gear-4:nb=64", n_heads, dim, dim, 4000, 2);
    CacheBytes full;
    REQUIRE(bytes_required(config, 3000, 0, &full).ok());
    const std::uint64_t codes_only =
        full.bytes - full.keys.outliers - full.values.outliers - full.keys.low_rank - full.values.low_rank;
    auto empty = make_cache(config);
    const std::uint64_t fixed = empty->stats().bytes.bytes - full.buffer;
    config.soft_bytes = fixed + (full.bytes + codes_only) / 2;
    auto cache = make_cache(config);
    std::uint64_t most = 0, n_shrunk = 0;
    for (std::size_t t = 0; t < 3000; t += 20) {
        for (std::uint32_t layer = 0; layer < 2; ++layer)
            REQUIRE(append(cache.get(), source().keys, source().values, t, 20, layer).ok());
        const CacheStats stats = cache->stats();
        CHECK(stats.n_shrunk >= n_shrunk);
        n_shrunk = stats.n_shrunk;
        most = std::max(most, stats.bytes.bytes);
        if (t < 1000) CHECK(n_shrunk == 0);
    }
    CHECK(n_shrunk > 0);
    CHECK(n_shrunk < cache->stats().n_blocks);
    // Two blocks may be closed, or on their way, before the next append looks.
    CHECK(most < config.soft_bytes + 2 * (full.bytes - full.buffer) / 40);
    LayerStats first;
    REQUIRE(cache->layer_stats(0, &first).ok());
    CHECK(first.n_shrunk > 0);
    CHECK(first.n_tokens == 3000);
    CHECK(attention_error(cache.get(), gaussian(1, 2 * n_heads, dim, 3), true) < attention_tolerance(*cache));
    // Where nothing can shrink the limit is passed over.
    config.soft_bytes = 1;
    cache = make_cache(config);
    for (std::size_t t = 0; t < 1000; t += 50)
        REQUIRE(append(cache.get(), source().keys, source().values, t, 50).ok());
    CHECK(cache->stats().n_shrunk > 0);
    CHECK(cache->stats().bytes.keys.low_rank == 0);
    config.spec = spec_of("kivi-2:nb=64");
    cache = make_cache(config);
    for (std::size_t t = 0; t < 1000; t += 50)
        REQUIRE(append(cache.get(), source().keys, source().values, t, 50).ok());
    CHECK(cache->stats().n_shrunk == 0);
}

TEST_CASE("the estimated error of attention is about the true one", "[policy]") {
    const std::size_t n_queries = 2 * n_heads;
    double last = 1.0;
    for (const char* spec : {"kivi-2", "gear-2", "gear-4", "q8"}) {
        CAPTURE(spec);
        CacheConfig config = make_config(spec, n_heads, dim, dim, 4000, 2);
        config.error_every = 2;
        auto cache = make_cache(config);
        double error = 0.0, output = 0.0;
        std::size_t n_closed = 0;
        for (std::size_t t = 0; t < 1600; t += 10) {
            REQUIRE(append(cache.get(), source().keys, source().values, t, 10).ok());
            const Tensor q = gaussian(1, n_queries, dim, static_cast<unsigned>(100 + t));
            const Tensor found = attend(cache.get(), q, dim, true);
            n_closed = cache->stats().compressed_tokens;
            if (t % 200 != 190) continue;
            // Of all tokens in blocks, against those that were appended.
            Tensor keys{n_closed, n_heads, dim, {}}, values = keys, held_keys = keys, held_values = keys;
            const std::size_t first = config.spec.sink_tokens;
            const auto slice = [&](const Tensor& from, Tensor* to) {
                const auto begin = from.data.begin() + static_cast<std::ptrdiff_t>(first * n_heads * dim);
                to->data.assign(begin, begin + static_cast<std::ptrdiff_t>(n_closed * n_heads * dim));
            };
            slice(source().keys, &keys);
            slice(source().values, &values);
            const auto [all_keys, all_values] = read_all(cache.get());
            slice(all_keys, &held_keys);
            slice(all_values, &held_values);
            const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
            const Tensor exact = reference::attend(q, keys, values, scale, true);
            const Tensor held = reference::attend(q, held_keys, held_values, scale, true);
            for (std::size_t i = 0; i < exact.data.size(); ++i) {
                error += (held.data[i] - exact.data[i]) * (held.data[i] - exact.data[i]);
                output += exact.data[i] * exact.data[i];
            }
        }
        LayerStats stats;
        REQUIRE(cache->layer_stats(0, &stats).ok());
        const double truth = std::sqrt(error / output);
        CAPTURE(truth, stats.output_error);
        CHECK(stats.n_sampled == (n_closed / config.spec.buffer_tokens + 1) / 2);
        CHECK(stats.output_error > 0.7 * truth);
        CHECK(stats.output_error < 1.4 * truth);
        CHECK(stats.output_error < last);
        last = stats.output_error;
        // A layer without tokens has none, and a fork and a reset begin anew.
        REQUIRE(cache->layer_stats(1, &stats).ok());
        CHECK(stats.n_sampled == 0);
        std::unique_ptr<Cache> fork;
        REQUIRE(cache->fork(&fork).ok());
        REQUIRE(fork->layer_stats(0, &stats).ok());
        CHECK(stats.n_sampled == 0);
        cache->reset();
        REQUIRE(cache->layer_stats(0, &stats).ok());
        CHECK(stats.n_sampled == 0);
        CHECK(cache->layer_stats(2, &stats).code() == Code::invalid_argument);
    }
}
