// Saved caches whose layers have different shapes: files of version 2.
#include <cstring>

#include "file/xxh64.hpp"
#include "format/state.hpp"
#include "states.hpp"
#include "unit/mixed.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

const LoadOptions all_ways[] = {{{}, StateLoading::copy, StateChecking::all},
                                {{}, StateLoading::map, StateChecking::all},
                                {{}, StateLoading::map, StateChecking::on_first_use}};

std::unique_ptr<Cache> lived(const CacheConfig& config, std::size_t n_prompt = 400) {
    auto cache = make_cache(config);
    feed_mixed(cache.get(), 0, n_prompt);
    std::vector<float> out;
    for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
        if (!has_keys(layer)) continue;
        REQUIRE(attend_mixed(cache.get(), layer, 0, 30, &out).ok());
        if (n_prompt > 300) REQUIRE(cache->compress(layer, serial_executor()).ok());
    }
    if (n_prompt > 300) REQUIRE(cache->remove(140, 30).ok());
    for (std::size_t t = 0; t < 40; ++t)
        feed_mixed(cache.get(), n_prompt + t, 1);
    return cache;
}

FileBytes saved(const Cache& cache) {
    const TemporaryFile file;
    std::uint64_t n_bytes = 0;
    REQUIRE(state_bytes(cache, {}, &n_bytes).ok());
    REQUIRE(save_state(cache, file.path(), {}, serial_executor()).ok());
    CHECK(file.read().size() == n_bytes);
    return file.read();
}

void go_on(Cache* one, Cache* other) {
    for (std::size_t t = 0; t < 140; ++t) {
        for (Cache* cache : {one, other})
            feed_mixed(cache, 700 + t, 1);
        for (std::uint32_t layer = 0; layer < mixed_layers; ++layer) {
            if (!has_keys(layer)) continue;
            std::vector<float> a, b;
            REQUIRE(attend_mixed(one, layer, t, 1, &a).ok());
            REQUIRE(attend_mixed(other, layer, t, 1, &b).ok());
            REQUIRE((a == b));
        }
    }
}

StateHeader& header_of(FileBytes* bytes) {
    return *reinterpret_cast<StateHeader*>(bytes->data());
}
LayerDims* dims_in(FileBytes* bytes) {
    return reinterpret_cast<LayerDims*>(bytes->data() + sizeof(StateHeader));
}
// Makes the checksums of header and shapes right.
void seal(FileBytes* bytes) {
    StateHeader& header = header_of(bytes);
    const std::size_t n = std::min<std::size_t>(std::size_t{header.n_layers} * sizeof(LayerDims),
                                                bytes->size() - sizeof(StateHeader));
    header.dims_checksum = xxh64(dims_in(bytes), n);
    header.checksum = xxh64(&header, offsetof(StateHeader, checksum));
}

Code load_code(const FileBytes& bytes, const CacheConfig& config, std::string* message = nullptr) {
    std::unique_ptr<Cache> cache;
    const Status status = load_state(bytes.data(), bytes.size(), config, {}, serial_executor(), &cache);
    CHECK((cache == nullptr) == !status.ok());
    if (message != nullptr) *message = status.message();
    return status.code();
}

}  // namespace

TEST_CASE("a cache of different layers goes on when it was saved and loaded", "[state][dims]") {
    for (const char* spec : {"gear-3", "auto:3.5", "paper:gear-4:nb=64", "f32:nb=64;edge-1=f32"}) {
        for (const std::size_t n_prompt : {std::size_t{400}, std::size_t{60}}) {
            const CacheConfig config = mixed_config(spec);
            auto cache = lived(config, n_prompt);
            const TemporaryFile file;
            REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
            for (const LoadOptions& way : all_ways) {
                if (std::string(spec) != "gear-3" && &way != &all_ways[n_prompt == 60]) continue;
                CAPTURE(spec, n_prompt, static_cast<int>(way.loading), static_cast<int>(way.checking));
                std::unique_ptr<Cache> loaded, fork;
                const Status status = load(file.path(), config, &loaded, way);
                INFO(status.message());
                REQUIRE(status.ok());
                CHECK((saved(*loaded) == file.read()));
                REQUIRE(cache->fork(&fork).ok());
                go_on(fork.get(), loaded.get());
            }
        }
    }
}

TEST_CASE("a table of equal shapes is saved as one shape, in version 1", "[state][dims][once]") {
    const std::vector<LayerDims> equal(mixed_layers, mixed_dims[3]);
    CacheConfig table = mixed_config("gear-4");
    table.dims = equal.data();
    const CacheConfig once = alike_config(mixed_config("gear-4"), 3);
    const FileBytes told = saved(*lived(table)), plain = saved(*lived(once));
    CHECK((told == plain));
    CHECK(header_of(const_cast<FileBytes*>(&told)).version == 1);
    CHECK(load_code(told, once) == Code::ok);
    CHECK(load_code(plain, table) == Code::ok);
}

TEST_CASE("a file tells its shapes, and is no other cache's", "[state][dims][once]") {
    const CacheConfig config = mixed_config("gear-4");
    auto cache = lived(config);
    StateInfo info;
    {
        const TemporaryFile file;
        REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
        REQUIRE(inspect_state(file.path(), &info).ok());
        StateInfo verified;
        REQUIRE(verify_state(file.path(), serial_executor(), &verified).ok());
        CHECK(verified.config.dims_of(3) == mixed_dims[3]);
    }
    CHECK(info.version == 2);
    CHECK(info.config.n_kv_heads == 0);
    REQUIRE(info.config.dims == info.dims.get());
    CHECK(std::equal(mixed_dims, mixed_dims + mixed_layers, info.dims.get()));
    CHECK(make_cache(info.config)->config().dims_of(1) == mixed_dims[1]);

    const FileBytes bytes = saved(*cache);
    std::string message;
    for (std::uint32_t layer = 0; layer < mixed_layers; ++layer) {
        std::vector<LayerDims> other(mixed_dims, mixed_dims + mixed_layers);
        other[layer] = has_keys(layer) ? LayerDims{} : mixed_dims[0];
        CacheConfig expected = config;
        expected.dims = other.data();
        CHECK(load_code(bytes, expected, &message) == Code::other_model);
        CHECK(message.find("layer " + std::to_string(layer) + " of the state has") == 0);
    }
    CHECK(load_code(bytes, alike_config(config, 0), &message) == Code::other_model);
    CHECK(message.find("layer 1 of the state has 1 KV heads of 128 key and 96 value channels") == 0);
}

TEST_CASE("shapes that somebody broke are refused by their causes", "[state][dims][damage][once]") {
    const CacheConfig config = mixed_config("gear-4");
    const FileBytes sound = saved(*lived(config, 60));
    REQUIRE(load_code(sound, config) == Code::ok);
    const auto with = [&](auto change, bool sealed = true) {
        FileBytes bytes = sound;
        change(&bytes);
        if (sealed) seal(&bytes);
        return load_code(bytes, config);
    };
    const std::size_t first = sizeof(StateHeader), end = first + state_dims_bytes(mixed_layers);
    for (std::size_t at = first; at < end; ++at) {
        for (int bit = 0; bit < 8; ++bit) {
            const auto flip = [&](FileBytes* bytes) { (*bytes)[at] ^= static_cast<unsigned char>(1 << bit); };
            REQUIRE(with(flip, false) == Code::damaged);
            const Code code = with(flip);
            const bool is_padding = at >= first + sizeof(mixed_dims);
            REQUIRE((is_padding ? code == Code::damaged
                                : code == Code::corrupt_state || code == Code::other_model));
        }
    }
    for (std::size_t n = first; n < end; ++n)
        REQUIRE(with([&](FileBytes* bytes) { bytes->resize(n); }, false) == Code::truncated);
    const auto dims_with = [&](const LayerDims& dims) {
        return with([&](FileBytes* bytes) { dims_in(bytes)[3] = dims; });
    };
    CHECK(dims_with({0, 32, 40}) == Code::corrupt_state);
    CHECK(dims_with({3, 0, 40}) == Code::corrupt_state);
    CHECK(dims_with({3, 33, 40}) == Code::corrupt_state);
    CHECK(dims_with({UINT32_MAX, 32, 40}) == Code::corrupt_state);
    CHECK(dims_with({3, 32, 2048}) == Code::corrupt_state);
    CHECK(dims_with({3, 32, 48}) == Code::other_model);
    CHECK(with([](FileBytes* bytes) { std::fill_n(dims_in(bytes), mixed_layers, LayerDims{}); }) ==
          Code::corrupt_state);
    CHECK(with([](FileBytes* bytes) { std::fill_n(dims_in(bytes), mixed_layers, mixed_dims[0]); }) ==
          Code::corrupt_state);
    for (const std::uint32_t n : {0u, 1u, 4097u, UINT32_MAX}) {
        CAPTURE(n);
        CHECK(with([&](FileBytes* bytes) { header_of(bytes).n_layers = n; }) == Code::corrupt_state);
    }
    CHECK(with([](FileBytes* bytes) { header_of(bytes).n_kv_heads = 2; }) == Code::corrupt_state);
    CHECK(with([](FileBytes* bytes) { header_of(bytes).version = 1; }) == Code::corrupt_state);
    CHECK(with([](FileBytes* bytes) { header_of(bytes).rope_pairs = 17; }) == Code::corrupt_state);
    // A layer without keys whose sections are there: those of layer 1 moved to it.
    const auto renamed = [](FileBytes* bytes) {
        auto* sections =
            reinterpret_cast<StateSection*>(dims_in(bytes)) + state_dims_bytes(mixed_layers) / 64;
        const std::uint32_t n = header_of(bytes).n_sections;
        for (std::uint32_t i = 0; i < n; ++i)
            sections[i].layer += sections[i].layer == 1;
        header_of(bytes).table_checksum = xxh64(sections, n * sizeof(StateSection));
    };
    CHECK(with(renamed) == Code::corrupt_state);
}

TEST_CASE("wherever memory ends while different layers are loaded, all of it is given back",
          "[state][dims][once]") {
    const FileBytes bytes = saved(*lived(mixed_config("auto:4")));
    bool done = false;
    for (std::int64_t budget = 0; !done; ++budget) {
        REQUIRE(budget < 300);
        CountingMemory memory;
        memory.budget = budget;
        CacheConfig config = mixed_config("auto:4");
        config.allocator = memory.allocator();
        std::unique_ptr<Cache> cache;
        const Status status = load_state(bytes.data(), bytes.size(), config, {}, serial_executor(), &cache);
        INFO(status.message());
        REQUIRE((status.ok() || status.code() == Code::out_of_memory));
        done = status.ok();
        cache.reset();
        REQUIRE(memory.held == 0);
    }
}
