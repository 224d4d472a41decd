// What a life takes at most is told to the byte.
#include <random>
#include <vector>

#include "unit/caches.hpp"

namespace gearkv::testing {
namespace {

// A configuration with the arrays it borrows.
struct Case {
    CacheConfig config;
    CacheLife life;
    std::vector<LayerDims> dims;
    std::vector<std::uint32_t> windows;
    std::string text;
};

// Lives it; stops at the first error, of which the layers have to know nothing.
Status live(const Case& c, std::uint64_t max_bytes, Executor& executor, CountingMemory* memory) {
    CacheConfig config = c.config;
    config.max_bytes = max_bytes;
    config.allocator = memory->allocator();
    std::unique_ptr<Cache> cache;
    if (Status status = Cache::create(config, &cache); !status.ok()) return status;
    static std::vector<float> x, out;
    std::size_t width = c.life.n_heads;
    for (std::uint32_t i = 0; i < config.n_layers; ++i)
        width = std::max<std::size_t>(width, config.dims_of(i).n_kv_heads);
    width *= 64;
    while (x.size() < width * 700)
        x.push_back(std::sin(0.37f * static_cast<float>(x.size() * x.size() % 8191)));
    out.resize(width * 700);
    const auto step = [&](std::uint64_t first, std::uint32_t n) -> Status {
        for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
            const LayerDims dims = config.dims_of(layer);
            if (!dims.has_keys()) continue;
            const float* data = x.data() + first % 90;
            const Rows keys = {data, width, dims.key_dim}, values = {data + 7, width, dims.value_dim};
            const std::uint64_t n_before = cache->n_tokens(layer);
            if (Status status = cache->append(layer, keys, values, n, executor); !status.ok()) {
                CHECK(cache->n_tokens(layer) == n_before);
                return status;
            }
            Queries queries = {data, width, dims.key_dim, n, c.life.n_heads, 0.1f, true};
            if (config.latent) queries.latents = data + 1;
            if (c.life.n_heads > 0) {
                Status status = cache->attend(layer, queries, out.data(), out.size(), executor);
                if (!status.ok()) return status;
            }
            if (first == 0 && n == c.life.prompt_tokens) {
                if (Status status = cache->compress(layer, executor); !status.ok()) return status;
            }
        }
        return {};
    };
    std::uint64_t n = c.life.prompt_tokens;
    Status status = n > 0 ? step(0, static_cast<std::uint32_t>(n)) : Status();
    for (; status.ok() && n < c.life.n_tokens; ++n)
        status = step(n, 1);
    for (std::uint32_t layer = 0; status.ok() && layer < config.n_layers; ++layer)
        status = cache->compress(layer, executor);
    return status;
}

// What a cache takes that no limit counts.
std::uint64_t object_bytes() {
    CountingMemory memory;
    CacheConfig config = make_config("f16", 1, 8, 8);
    config.allocator = memory.allocator();
    config.max_bytes = 1;
    std::unique_ptr<Cache> cache;
    CHECK(Cache::create(config, &cache).code() == Code::over_budget);
    CHECK(memory.peak < 1280);
    return memory.peak;
}

void check(const Case& c, Executor& executor) {
    CacheBytes told;
    const Status status = bytes_required(c.config, c.life, &told);
    INFO(c.text << ": " << status.message());
    REQUIRE(status.ok());
    CHECK(told.bytes == told.keys.bytes + told.values.bytes + told.buffer + told.scratch + told.tables);
    CountingMemory enough, short_of;
    const Status lived = live(c, told.bytes, executor, &enough);
    INFO(told.bytes << " bytes told, " << enough.peak << " at most: " << lived.message());
    CHECK(lived.ok());
    CHECK(enough.peak - told.bytes == object_bytes());
    CHECK(enough.held == 0);
    const Status failed = live(c, told.bytes - 1, executor, &short_of);
    CHECK(failed.code() == Code::over_budget);
    CHECK(short_of.held == 0);
}

TEST_CASE("what is told suffices, and a byte less does not", "[peak][once]") {
    std::mt19937 random(19);
    const auto any = [&](std::initializer_list<std::uint32_t> of) {
        return of.begin()[random() % of.size()];
    };
    std::unique_ptr<Executor> threads;
    REQUIRE(create_executor(3, &threads).ok());
    const char* specs[] = {"f16",
                           "f32",
                           "q8",
                           "gear-4",
                           "gear-2",
                           "gear-3:nb=256,recent=40",
                           "kivi-2",
                           "paper:gear-4",
                           "paper:gearl-2",
                           "paper:gear-kcvt-4:nb=32,sinks=3",
                           "token-8:recent=9",
                           "k=gear-4;v=kivi-4:nb=128",
                           "kivi-4:nb=128;edge-1=gear-4",
                           "gear-2;layers-1=f16"};
    for (int i = 0; i < 150; ++i) {
        Case c;
        const char* text = specs[static_cast<std::size_t>(i) % std::size(specs)];
        const std::uint32_t n_layers = any({2, 2, 3});
        c.config =
            make_config(text, any({1, 2}), 8 * any({1, 2, 4, 5}), 8 * any({1, 2, 3, 8}), 700, n_layers);
        c.config.spread_tokens = any({0, 1, 16, 64});
        c.config.rollback_tokens = any({0, 0, 5, 64, 200});
        c.config.block_tokens = any({0, 0, 64, 256});
        c.config.error_every = any({0, 0, 3});
        c.config.close_prompts = any({0, 1}) == 1;
        c.config.max_tokens = any({700, 3000});
        // Of the specs that go with them.
        c.config.latent = any({0, 1, 1}) == 0;
        CacheBytes stored;
        if (!bytes_required(c.config, 1, 0, &stored).ok()) c.config.latent = false;
        if (any({0, 1, 1}) == 0) {
            for (std::uint32_t layer = 0; layer < n_layers; ++layer)
                c.dims.push_back({any({1, 2, 4}), 8 * any({1, 3, 8}), 8 * any({1, 3, 8})});
            if (n_layers == 3) c.dims[1] = {};
            c.config.dims = c.dims.data();
            c.config.n_kv_heads = c.config.key_dim = c.config.value_dim = 0;
        }
        if (any({0, 1}) == 0) {
            for (std::uint32_t layer = 0; layer < n_layers; ++layer)
                c.windows.push_back(any({0, 1, 40, 128, 300}));
            c.config.windows = c.windows.data();
        }
        c.life.n_tokens = any({1, 64, 130, 300, 520, 680});
        c.life.prompt_tokens = std::min<std::uint64_t>(c.life.n_tokens, any({0, 1, 20, 128, 257, 600}));
        c.life.n_heads = any({0, 4, 8});
        c.life.n_threads = any({1, threads->n_threads()});
        c.text = std::to_string(i) + " " + text + ", " + std::to_string(n_layers) + " layers, " +
                 std::to_string(c.life.prompt_tokens) + " and " + std::to_string(c.life.n_tokens) +
                 " tokens, spread " + std::to_string(c.config.spread_tokens) + ", rollback " +
                 std::to_string(c.config.rollback_tokens) + ", windows " + std::to_string(c.windows.size()) +
                 ", heads " + std::to_string(c.life.n_heads) + (c.config.latent ? ", latent" : "");
        check(c, c.life.n_threads == 1 ? serial_executor() : *threads);
    }
}

TEST_CASE("what cannot be told of a life is refused", "[peak][once]") {
    CacheConfig config = make_config("gear-4", 2, 64, 64, 1000);
    CacheBytes bytes;
    CacheLife life;
    life.n_tokens = 1000;
    life.n_heads = 3;
    CHECK(bytes_required(config, life, &bytes).code() == Code::wrong_size);
    life.n_heads = 4;
    CHECK(bytes_required(config, life, nullptr).code() == Code::invalid_argument);
    life.n_threads = 0;
    CHECK(bytes_required(config, life, &bytes).code() == Code::wrong_size);
    life.n_threads = 2;
    life.prompt_tokens = 1001;
    CHECK(bytes_required(config, life, &bytes).code() == Code::wrong_size);
    life.prompt_tokens = 1000;
    config.spec = spec_of("auto:3");
    CHECK(bytes_required(config, life, &bytes).code() == Code::bad_spec);
    config.spec = spec_of("gear-4");
    config.allocator = {[](void*, std::size_t, std::size_t) -> void* { return nullptr; },
                        [](void*, void*, std::size_t) {}, nullptr};
    CHECK(bytes_required(config, life, &bytes).code() == Code::out_of_memory);
    CHECK(bytes.bytes == 0);
}

TEST_CASE("a long life is told about at once", "[peak][once]") {
    const CacheConfig config = make_config("gear-4", 8, 128, 128, 1 << 20, 32);
    CacheBytes told, stored;
    REQUIRE(bytes_required(config, CacheLife{1 << 20, 1 << 16, 32, 4}, &told).ok());
    REQUIRE(bytes_required(config, 1 << 20, 1 << 16, &stored).ok());
    CHECK(told.keys.bytes == stored.keys.bytes);
    CHECK(told.bytes > stored.bytes);
    CHECK(static_cast<double>(told.bytes) < 1.01 * static_cast<double>(stored.bytes));
}

}  // namespace
}  // namespace gearkv::testing
