// Writes the golden files and the seeds of the fuzz target that are not there, into the sources, at the level
// of the run: what was once written must be read, so those that are there stay. Only for a new version of the
// format:  ninja make-golden-states && GEARKV_LEVEL=scalar tests/state/make-golden-states
#include <cstring>

#include "file/xxh64.hpp"
#include "format/state.hpp"
#include "golden.hpp"

using namespace gearkv;
using namespace gearkv::testing;

TEST_CASE("golden files") {
    std::filesystem::create_directories(golden("reject"));
    const Tensor keys = gaussian(400, 1, 8, 1), values = gaussian(400, 1, 16, 2);
    for (const Golden& file : accepted) {
        if (std::filesystem::exists(golden(std::string(file.name) + ".gkvs"))) continue;
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
    const Tensor other_keys = gaussian(200, 2, 16, 3), other_values = gaussian(200, 2, 8, 4);
    const auto write_shapes = [&] {
        auto shapes = make_cache(shapes_config());
        REQUIRE(append(shapes.get(), keys, values, 0, 200).ok());
        REQUIRE(append(shapes.get(), other_keys, other_values, 0, 200, 2).ok());
        for (const std::uint32_t layer : {0u, 2u})
            REQUIRE(shapes->compress(layer, serial_executor()).ok());
        REQUIRE(shapes->remove(40, 30).ok());
        REQUIRE(save_state(*shapes, golden("shapes.gkvs").c_str(), {}, serial_executor()).ok());
        std::ofstream numbers(golden("shapes.txt"));
        numbers.precision(9);
        for (const std::uint32_t layer : {0u, 2u}) {
            for (const float x : golden_outputs(shapes.get(), layer))
                numbers << x << "\n";
        }
    };
    if (!std::filesystem::exists(golden("shapes.gkvs"))) write_shapes();
    const auto bytes_of = [&](const char* spec, std::uint8_t model) {
        auto cache = make_cache(golden_config(spec));
        REQUIRE(append(cache.get(), keys, values, 0, 3).ok());
        SaveOptions options;
        options.model.bytes[0] = model;
        const TemporaryFile file;
        REQUIRE(save_state(*cache, file.path(), options, serial_executor()).ok());
        return file.read();
    };
    const auto seed_of = [](const char* name) {
        return std::string(GEARKV_DATA_DIR) + "/../fuzz/seeds/" + name + ".gkvs";
    };
    const auto write_seed_of_shapes = [&] {
        CacheConfig unrotated = shapes_config();
        unrotated.rope = {};
        auto seed_of_shapes = make_cache(unrotated);
        REQUIRE(append(seed_of_shapes.get(), keys, values, 0, 200).ok());
        REQUIRE(append(seed_of_shapes.get(), other_keys, other_values, 0, 200, 2).ok());
        REQUIRE(seed_of_shapes->compress(0, serial_executor()).ok());
        REQUIRE(save_state(*seed_of_shapes, seed_of("shapes").c_str(), {}, serial_executor()).ok());
    };
    if (!std::filesystem::exists(seed_of("shapes"))) write_seed_of_shapes();
    // Seeds of the fuzz target, which has no frequencies.
    for (const Golden& seed : {Golden{"gear", "gear-2"},
                               {"paper", "paper:gear-4:nb=64"},
                               {"auto", "auto:3"},
                               {"gear-1", "gear-1"}}) {
        if (std::filesystem::exists(seed_of(seed.name))) continue;
        CacheConfig config = golden_config(seed.spec);
        config.rope = {};
        auto cache = make_cache(config);
        REQUIRE(append(cache.get(), keys, values, 0, 220).ok());
        (void)golden_outputs(cache.get());
        REQUIRE(cache->compress(0, serial_executor()).ok());
        REQUIRE(cache->remove(40, 30).ok());
        REQUIRE(save_state(*cache, seed_of(seed.name).c_str(), {}, serial_executor()).ok());
    }
    for (const Code code : rejected) {
        if (std::filesystem::exists(golden(std::string("reject/") + code_name(code) + ".gkvs"))) continue;
        FileBytes bytes = bytes_of(code == Code::other_codec ? "q8" : "f16", code == Code::other_model);
        auto* header = reinterpret_cast<StateHeader*>(bytes.data());
        auto* sections = reinterpret_cast<StateSection*>(header + 1);
        auto* layer = reinterpret_cast<StateLayer*>(bytes.data() + sections[0].offset);
        if (code == Code::not_a_state) bytes[7] = 'X';
        if (code == Code::other_byte_order) header->byte_order = 0x04030201;
        if (code == Code::bad_version) header->version = 3;
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
