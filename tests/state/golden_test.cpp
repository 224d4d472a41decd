// Files of version 1 that are part of the project: what this library once wrote it must always read, and what
// it refused it must always refuse.
#include <cstring>

#include "file/xxh64.hpp"
#include "format/state.hpp"
#include "states.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

std::string golden(const std::string& name) {
    return std::string(GEARKV_DATA_DIR) + "/state/" + name;
}

struct Golden {
    const char *name, *spec;
};
constexpr Golden accepted[] = {{"gear-2", "gear-2"},       {"paper-gear-4", "paper:gear-4:nb=64"},
                               {"auto", "auto:3"},         {"kcvt", "gear-kcvt-3:nb=64"},
                               {"q8", "q8:recent=20"},     {"f16", "f16"},
                               {"mixed", "k=gear-4;v=f32"}};

CacheConfig golden_config(const char* spec) {
    CacheConfig config = make_config(spec, 1, 8, 16, 400);
    static const double frequencies[] = {1.0, 0.1, 0.01, 0.001};
    config.rope = {frequencies, 4, false};
    return config;
}

std::vector<float> golden_outputs(Cache* cache) {
    const float query[8] = {1.0f, -0.5f, 0.25f, 2.0f, 0.0f, -1.0f, 0.75f, 0.1f};
    std::vector<float> out(16);
    const Queries queries = {query, 8, 8, 1, 1, 0.5f, true};
    REQUIRE(cache->attend(0, queries, out.data(), serial_executor()).ok());
    return out;
}

// A few lines of numbers behind each other.
std::vector<float> read_numbers(const std::string& path) {
    std::ifstream file(path);
    return std::vector<float>(std::istream_iterator<float>(file), {});
}

constexpr Code rejected[] = {Code::not_a_state, Code::other_byte_order, Code::bad_version, Code::truncated,
                             Code::damaged,     Code::corrupt_state,    Code::other_codec, Code::other_model};

}  // namespace

TEST_CASE("files of version 1 are accepted", "[state]") {
    for (const Golden& file : accepted) {
        CAPTURE(file.name);
        const std::vector<float> expected = read_numbers(golden(std::string(file.name) + ".txt"));
        REQUIRE(expected.size() == 16);
        for (const StateLoading loading : {StateLoading::copy, StateLoading::map}) {
            std::unique_ptr<Cache> cache;
            LoadOptions options;
            options.loading = loading;
            const Status status = load(golden(std::string(file.name) + ".gkvs").c_str(),
                                       golden_config(file.spec), &cache, options);
            INFO(status.message());
            REQUIRE(status.ok());
            const std::vector<float> found = golden_outputs(cache.get());
            for (std::size_t i = 0; i < 16; ++i)
                CHECK(found[i] == Approx(expected[i]).margin(attention_tolerance(*cache)));
        }
    }
}

TEST_CASE("broken and foreign files of version 1 are refused by their codes", "[state][once]") {
    for (const Code code : rejected) {
        const std::string name = std::string("reject/") + code_name(code) + ".gkvs";
        CAPTURE(name);
        std::unique_ptr<Cache> cache;
        const Status status = load(golden(name).c_str(), golden_config("f16"), &cache);
        INFO(status.message());
        CHECK(status.code() == code);
        CHECK(cache == nullptr);
    }
}

// Writes the files above anew, at the level of the run: only for a new version of the format.
TEST_CASE("golden files", "[.make-golden]") {
    std::filesystem::create_directories(golden("reject"));
    const Tensor keys = gaussian(400, 1, 8, 1), values = gaussian(400, 1, 16, 2);
    for (const Golden& file : accepted) {
        auto cache = make_cache(golden_config(file.spec));
        REQUIRE(append(cache.get(), keys, values, 0, 220).ok());
        (void)golden_outputs(cache.get());
        REQUIRE(cache->compress(0, serial_executor()).ok());
        REQUIRE(cache->remove(40, 30).ok());
        REQUIRE(append(cache.get(), keys, values, 220, 140).ok());
        for (std::size_t t = 360; t < 365; ++t)
            REQUIRE(append(cache.get(), keys, values, t, 1).ok());
        REQUIRE(
            save_state(*cache, golden(std::string(file.name) + ".gkvs").c_str(), {}, serial_executor()).ok());
        std::ofstream numbers(golden(std::string(file.name) + ".txt"));
        numbers.precision(9);
        for (const float x : golden_outputs(cache.get()))
            numbers << x << "\n";
    }
    const auto bytes_of = [&](const char* spec, std::uint8_t model) {
        auto cache = make_cache(golden_config(spec));
        REQUIRE(append(cache.get(), keys, values, 0, 3).ok());
        SaveOptions options;
        options.model.bytes[0] = model;
        const TemporaryFile file;
        REQUIRE(save_state(*cache, file.path(), options, serial_executor()).ok());
        return file.read();
    };
    // Seeds of the fuzz target, which has no frequencies.
    for (const Golden& seed :
         {Golden{"gear", "gear-2"}, {"paper", "paper:gear-4:nb=64"}, {"auto", "auto:3"}}) {
        CacheConfig config = golden_config(seed.spec);
        config.rope = {};
        auto cache = make_cache(config);
        REQUIRE(append(cache.get(), keys, values, 0, 220).ok());
        (void)golden_outputs(cache.get());
        REQUIRE(cache->compress(0, serial_executor()).ok());
        REQUIRE(cache->remove(40, 30).ok());
        const std::string path = std::string(GEARKV_DATA_DIR) + "/../fuzz/seeds/" + seed.name + ".gkvs";
        REQUIRE(save_state(*cache, path.c_str(), {}, serial_executor()).ok());
    }
    for (const Code code : rejected) {
        FileBytes bytes = bytes_of(code == Code::other_codec ? "q8" : "f16", code == Code::other_model);
        auto* header = reinterpret_cast<StateHeader*>(bytes.data());
        auto* sections = reinterpret_cast<StateSection*>(header + 1);
        auto* layer = reinterpret_cast<StateLayer*>(bytes.data() + sections[0].offset);
        if (code == Code::not_a_state) bytes[7] = 'X';
        if (code == Code::other_byte_order) header->byte_order = 0x04030201;
        if (code == Code::bad_version) header->version = 2;
        if (code == Code::truncated) bytes.resize(bytes.size() - 64);
        if (code == Code::damaged) bytes.back() ^= 1;
        if (code == Code::corrupt_state) {
            layer->n_closed = 5;
            sections[0].checksum = xxh64(layer, sizeof(*layer));
            header->table_checksum = xxh64(sections, header->n_sections * sizeof(StateSection));
        }
        header->checksum = xxh64(header, offsetof(StateHeader, checksum));
        std::ofstream file(golden(std::string("reject/") + code_name(code) + ".gkvs"), std::ios::binary);
        file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }
}
