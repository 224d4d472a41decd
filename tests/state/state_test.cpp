// Saving and loading: what comes back goes on exactly as what was saved, and what is not the caller's cache
// is refused.
#include <atomic>
#include <thread>

#include "states.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

const LoadOptions all_ways[] = {{{}, StateLoading::copy, StateChecking::all},
                                {{}, StateLoading::map, StateChecking::all},
                                {{}, StateLoading::map, StateChecking::on_first_use}};

// Both take the same tokens and give the same outputs, through several blocks.
void go_on(Cache* saved, Cache* loaded, std::size_t n_steps) {
    const std::uint32_t n_layers = saved->config().n_layers;
    for (std::size_t t = 0; t < n_steps; ++t) {
        for (Cache* cache : {saved, loaded})
            feed(cache, 800 + t, 1);
        for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
            CAPTURE(t, layer);
            REQUIRE((attend_layer(saved, layer) == attend_layer(loaded, layer)));
        }
    }
    bool saved_lossless = false, loaded_lossless = false;
    REQUIRE(saved->truncate(saved->n_tokens(0) - 3, &saved_lossless).ok());
    REQUIRE(loaded->truncate(loaded->n_tokens(0) - 3, &loaded_lossless).ok());
    CHECK(saved_lossless == loaded_lossless);
}

Code load_code(const TemporaryFile& file, const CacheConfig& config, const LoadOptions& options = {}) {
    std::unique_ptr<Cache> none;
    const Status status = load(file.path(), config, &none, options);
    UNSCOPED_INFO(status.message());
    CHECK((none == nullptr) == !status.ok());
    return status.code();
}

}  // namespace

TEST_CASE("a loaded cache goes on as the saved one", "[state]") {
    for (const char* spec :
         {"gear-3", "auto:3", "paper:gear-4", "gear-kcvt-2", "q8:recent=40", "f16", "f32",
          "k=gear-4;v=kivi-2:nb=128", "kivi-2:nb=128;edge-1=gear-4", "gear-2;layers-1=k=kivi-4;v=gear-4"}) {
        const CacheConfig config = state_config(spec);
        const bool is_preset = spec[0] == 'g' && spec[5] == '3';
        for (const LoadOptions& way : all_ways) {
            if (!is_preset && &way != &all_ways[1]) continue;  // ways differ, but not by the codec
            CAPTURE(spec, static_cast<int>(way.loading), static_cast<int>(way.checking));
            TemporaryFile file;
            auto saved = lived_cache(config);
            REQUIRE(save_state(*saved, file.path(), {}, serial_executor()).ok());
            std::unique_ptr<Cache> loaded;
            const Status status = load(file.path(), config, &loaded, way);
            INFO(status.message());
            REQUIRE(status.ok());
            const CacheStats a = saved->stats(), b = loaded->stats();
            CHECK(a.n_tokens == b.n_tokens);
            CHECK(a.n_blocks == b.n_blocks);
            CHECK(a.compressed_tokens == b.compressed_tokens);
            CHECK(a.bytes.keys.bytes == b.bytes.keys.bytes);
            CHECK((b.bytes.mapped > 0) == (way.loading == StateLoading::map));
            CHECK((read_all(saved.get()).first.data == read_all(loaded.get()).first.data));
            go_on(saved.get(), loaded.get(), 130);
        }
    }
}

TEST_CASE("so does a cache that had not chosen its rates, and an empty one", "[state][once]") {
    for (const std::size_t n : {0, 1, 3, 60, 125}) {
        for (const char* spec : {"auto:3.5", "gear-2"}) {
            CAPTURE(n, spec);
            const CacheConfig config = state_config(spec);
            auto saved = make_cache(config);
            for (std::size_t t = 0; t < n; ++t) {
                feed(saved.get(), t, 1);
                (void)attend_layer(saved.get(), 0);
                (void)attend_layer(saved.get(), 1);
            }
            TemporaryFile file;
            REQUIRE(save_state(*saved, file.path(), {}, serial_executor()).ok());
            std::unique_ptr<Cache> loaded;
            REQUIRE(load(file.path(), config, &loaded).ok());
            REQUIRE(loaded->n_tokens(1) == n);
            go_on(saved.get(), loaded.get(), 150);
        }
    }
}

TEST_CASE("a file is the same whatever the number of threads, and is saved again as it was",
          "[state][thread]") {
    std::unique_ptr<Executor> threads;
    REQUIRE(create_executor(3, &threads).ok());
    const CacheConfig config = state_config("gear-3");
    auto cache = lived_cache(config);
    TemporaryFile one, three, again;
    REQUIRE(save_state(*cache, one.path(), {}, serial_executor()).ok());
    REQUIRE(save_state(*cache, three.path(), {}, *threads).ok());
    CHECK((one.read() == three.read()));
    std::unique_ptr<Cache> mapped;
    REQUIRE(load(one.path(), config, &mapped, all_ways[2]).ok());
    REQUIRE(save_state(*mapped, again.path(), {}, *threads).ok());
    CHECK((one.read() == again.read()));
    // Over the file it is mapped from: the old one lives on without a name.
    REQUIRE(save_state(*mapped, one.path(), {}, *threads).ok());
    CHECK((one.read() == again.read()));
    (void)attend_layer(mapped.get(), 0);
}

TEST_CASE("forks of a mapped cache keep the file, appended to and cut in any order", "[state]") {
    CountingMemory memory;
    CacheConfig config = state_config("gear-2");
    config.allocator = memory.allocator();
    {
        std::unique_ptr<Cache> mapped, fork;
        {
            TemporaryFile file;
            REQUIRE(save_state(*lived_cache(config), file.path(), {}, serial_executor()).ok());
            REQUIRE(load(file.path(), config, &mapped, all_ways[2]).ok());
        }
        const std::uint64_t n = mapped->n_tokens(0);
        REQUIRE(mapped->fork(&fork).ok());
        feed(fork.get(), 800, 140);
        REQUIRE(fork->remove(5, 250).ok());
        const std::vector<float> out = attend_layer(mapped.get(), 0);
        mapped.reset();
        (void)attend_layer(fork.get(), 0);
        CHECK(fork->n_tokens(0) == n + 140 - 250);
        REQUIRE(fork->truncate(0).ok());
        feed(fork.get(), 0, 200);
        (void)attend_layer(fork.get(), 1);
    }
    CHECK(memory.held == 0);
}

TEST_CASE("forks on several threads look at a mapped file at once", "[state][thread]") {
    const CacheConfig config = state_config("gear-2");
    const TemporaryFile file;
    REQUIRE(save_state(*lived_cache(config), file.path(), {}, serial_executor()).ok());
    std::unique_ptr<Cache> mapped;
    REQUIRE(load(file.path(), config, &mapped, all_ways[2]).ok());
    std::vector<std::unique_ptr<Cache>> forks(3);
    for (auto& fork : forks)
        REQUIRE(mapped->fork(&fork).ok());
    mapped.reset();
    const std::vector<float> query(2 * state_heads * state_dim, 0.25f);
    const Queries queries = {query.data(), query.size(), state_dim, 1, 2 * state_heads, 0.2f, true};
    std::vector<std::vector<float>> outs(forks.size(), std::vector<float>(query.size()));
    std::atomic<int> failures{0};
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < forks.size(); ++i) {
        threads.emplace_back([&, i] {
            for (const std::uint32_t layer : {1u, 0u})
                failures +=
                    !forks[i]->attend(layer, queries, outs[i].data(), outs[i].size(), serial_executor()).ok();
            failures += !forks[i]->truncate(100 + 20 * i).ok();
            forks[i].reset();
        });
    }
    for (std::thread& thread : threads)
        thread.join();
    CHECK(failures == 0);
    CHECK((outs[0] == outs[1] && outs[1] == outs[2]));
}

TEST_CASE("the caller's bytes come back", "[state][once]") {
    const CacheConfig config = state_config("gear-4");
    auto cache = lived_cache(config);
    TemporaryFile file;
    const std::string extra = "seventeen tokens.";
    SaveOptions options;
    options.extra = extra.data();
    options.n_extra = extra.size();
    options.model.bytes[31] = 5;
    REQUIRE(save_state(*cache, file.path(), options, serial_executor()).ok());
    StateInfo info;
    REQUIRE(inspect_state(file.path(), &info).ok());
    CHECK(info.n_extra == extra.size());
    CHECK(info.n_tokens == cache->n_tokens(0));
    CHECK(info.config.spec == config.spec);
    CHECK(info.config.n_layers == 2);
    CHECK(info.model == options.model);
    REQUIRE(verify_state(file.path(), serial_executor(), &info).ok());
    char found[64] = {};
    LoadOptions load_options;
    load_options.model = options.model;
    load_options.extra = found;
    load_options.extra_capacity = sizeof(found);
    std::size_t n = 0;
    std::unique_ptr<Cache> loaded;
    REQUIRE(load_state(file.path(), config, load_options, serial_executor(), &loaded, &n).ok());
    CHECK(std::string(found, n) == extra);
    load_options.extra_capacity = 16;
    n = 99;
    Cache* before = loaded.get();
    CHECK(load_state(file.path(), config, load_options, serial_executor(), &loaded, &n).code() ==
          Code::wrong_size);
    CHECK(n == 99);
    CHECK(loaded.get() == before);
}

TEST_CASE("another model, shape or codec is refused by its own code", "[state][once]") {
    const CacheConfig config = state_config("gear-4");
    TemporaryFile file;
    REQUIRE(save_state(*lived_cache(config), file.path(), {}, serial_executor()).ok());
    const auto with = [&](auto change) {
        CacheConfig other = config;
        change(other);
        return load_code(file, other);
    };
    CHECK(load_code(file, config) == Code::ok);
    CHECK(with([](CacheConfig& c) { c.n_layers = 3; }) == Code::other_model);
    CHECK(with([](CacheConfig& c) { c.n_kv_heads = 1; }) == Code::other_model);
    CHECK(with([](CacheConfig& c) { c.key_dim = 32; }) == Code::other_model);
    CHECK(with([](CacheConfig& c) { c.value_dim = 32; }) == Code::other_model);
    CHECK(with([](CacheConfig& c) { c.rope.n_pairs = 4; }) == Code::other_model);
    CHECK(with([](CacheConfig& c) { c.rope.interleaved = false; }) == Code::other_model);
    std::vector<double> other_frequencies = state_frequencies();
    other_frequencies[11] *= 1.0001;
    CHECK(with([&](CacheConfig& c) { c.rope.frequencies = other_frequencies.data(); }) == Code::other_model);
    CHECK(with([](CacheConfig& c) { c.spec = spec_of("gear-3"); }) == Code::other_codec);
    CHECK(with([](CacheConfig& c) { c.spec = spec_of("gear-4:recent=1"); }) == Code::other_codec);
    CHECK(with([](CacheConfig& c) { c.max_tokens = 300; }) == Code::capacity_exceeded);
    CHECK(with([](CacheConfig& c) { c.max_bytes = 70000; }) == Code::over_budget);
    LoadOptions options;
    options.model.bytes[0] = 1;
    CHECK(load_code(file, config, options) == Code::other_model);
    CHECK(with([](CacheConfig& c) { c.max_tokens = 5000, c.seed = 3, c.spread_tokens = 0; }) == Code::ok);
}

TEST_CASE("a state keeps its rules for layers, and is of no cache with others", "[state]") {
    const std::string rules = "gear-2;layers-1=k=paper:gear-4:g=32,r=3;v=token-4:g=32;layers-0=gear-3";
    const CacheConfig config = state_config(rules + ";layers-2-3=q8", 4);
    TemporaryFile file;
    auto saved = lived_cache(config);
    REQUIRE(save_state(*saved, file.path(), {}, serial_executor()).ok());
    StateInfo info;
    REQUIRE(inspect_state(file.path(), &info).ok());
    CHECK(info.config.spec == config.spec);
    std::unique_ptr<Cache> loaded;
    REQUIRE(load(file.path(), config, &loaded, {}).ok());
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
        KvSpec a, b;
        REQUIRE(saved->layer_spec(layer, &a).ok());
        REQUIRE(loaded->layer_spec(layer, &b).ok());
        CHECK(a == b);
    }
    go_on(saved.get(), loaded.get(), 130);
    for (const char* other : {"", ";layers-2-3=kivi-8", ";layers-2=q8", ";layers-2-3=q8;layers-3=q8"}) {
        CacheConfig changed = config;
        changed.spec = spec_of((rules + other).c_str());
        std::unique_ptr<Cache> none;
        const Status status = load(file.path(), changed, &none, {});
        INFO(status.message());
        CHECK(status.code() == Code::other_codec);
        // What differs is shown.
        CHECK(std::string(status.message()).find("layers-2-3=token-8, expected") != std::string::npos);
    }
}

TEST_CASE("what cannot be read or written is an io_error", "[state][once]") {
    const CacheConfig config = state_config("gear-4");
    auto cache = make_cache(config);
    std::unique_ptr<Cache> none;
    CHECK(load("/no/such/file", config, &none).code() == Code::io_error);
    CHECK(load("/", config, &none).code() == Code::io_error);
    CHECK(load("/dev/null", config, &none).code() == Code::io_error);
    CHECK(load(nullptr, config, &none).code() == Code::invalid_argument);
    CHECK(save_state(*cache, "/no/such/directory/file", {}, serial_executor()).code() == Code::io_error);
    CHECK(save_state(*cache, "/", {}, serial_executor()).code() == Code::io_error);
    CHECK(save_state(*cache, nullptr, {}, serial_executor()).code() == Code::invalid_argument);
    const std::string long_path(5000, 'x');
    CHECK(save_state(*cache, long_path.c_str(), {}, serial_executor()).code() == Code::io_error);
    TemporaryFile empty;
    CHECK(load_code(empty, config) == Code::not_a_state);
}

TEST_CASE("memory that runs out while saving or loading leaves nothing behind", "[state][once]") {
    CountingMemory memory;
    CacheConfig config = state_config("gear-2");
    config.allocator = memory.allocator();
    {
        TemporaryFile file;
        auto cache = lived_cache(config);
        REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
        const FileBytes bytes = file.read();
        memory.budget = 0;
        CHECK(save_state(*cache, file.path(), {}, serial_executor()).code() == Code::out_of_memory);
        CHECK((file.read() == bytes));
        bool loaded_once = false;
        for (std::int64_t n = 0; n < 200 && !loaded_once; ++n) {
            memory.budget = n;
            std::unique_ptr<Cache> loaded;
            const std::uint64_t held = memory.held;
            const Status status = load(file.path(), config, &loaded);
            loaded_once = status.ok();
            if (!loaded_once) CHECK(status.code() == Code::out_of_memory);
            if (!loaded_once) CHECK(memory.held == held);
        }
        CHECK(loaded_once);
        memory.budget = INT64_MAX;
    }
    CHECK(memory.held == 0);
}
