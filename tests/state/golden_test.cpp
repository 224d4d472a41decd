// Files that are part of the project: what this library once wrote it must always read, and what
// it refused it must always refuse.
#include <cstring>

#include "file/xxh64.hpp"
#include "format/block.hpp"
#include "format/state.hpp"
#include "golden.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

// A few lines of numbers behind each other.
std::vector<float> read_numbers(const std::string& path) {
    std::ifstream file(path);
    return std::vector<float>(std::istream_iterator<float>(file), {});
}

}  // namespace

TEST_CASE("files of state version 1, with blocks of version 1 and 2, are accepted", "[state]") {
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

TEST_CASE("a file of version 2, whose layers have different shapes, is accepted", "[state][dims]") {
    const std::vector<float> expected = read_numbers(golden("shapes.txt"));
    REQUIRE(expected.size() == 32);
    for (const StateLoading loading : {StateLoading::copy, StateLoading::map}) {
        std::unique_ptr<Cache> cache;
        LoadOptions options;
        options.loading = loading;
        const Status status = load(golden("shapes.gkvs").c_str(), shapes_config(), &cache, options);
        INFO(status.message());
        REQUIRE(status.ok());
        std::vector<float> found = golden_outputs(cache.get(), 0);
        const std::vector<float> last = golden_outputs(cache.get(), 2);
        found.insert(found.end(), last.begin(), last.end());
        for (std::size_t i = 0; i < 32; ++i)
            CHECK(found[i] == Approx(expected[i]).margin(attention_tolerance(*cache)));
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

TEST_CASE("a stream that began with blocks of version 1 goes on with those of version 2", "[state]") {
    const Tensor keys = gaussian(600, 1, 8, 1), values = gaussian(600, 1, 16, 2);
    const CacheConfig config = golden_config("gear-2");
    std::unique_ptr<Cache> cache, again;
    REQUIRE(load(golden("gear-2.gkvs").c_str(), config, &cache).ok());
    const auto block_versions = [](const Cache& of, std::vector<unsigned char>* bytes) {
        std::uint64_t n = 0;
        REQUIRE(state_bytes(of, {}, &n).ok());
        bytes->resize(n);
        REQUIRE(save_state(of, bytes->data(), n, {}, serial_executor()).ok());
        const auto* header = reinterpret_cast<const StateHeader*>(bytes->data());
        const auto* sections = reinterpret_cast<const StateSection*>(header + 1);
        std::vector<unsigned> versions = {header->block_version};
        for (std::uint32_t i = 0; i < header->n_sections; ++i) {
            if (sections[i].kind != static_cast<std::uint32_t>(StateKind::value_block)) continue;
            versions.push_back(
                reinterpret_cast<const BlockHeader*>(bytes->data() + sections[i].offset)->version);
        }
        return versions;
    };
    std::vector<unsigned char> before, bytes;
    const std::vector<unsigned> old = block_versions(*cache, &before);
    CHECK(std::count(old.begin() + 1, old.end(), 1u) == static_cast<std::ptrdiff_t>(old.size() - 1));
    REQUIRE(append(cache.get(), keys, values, 365, 35).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const std::vector<unsigned> versions = block_versions(*cache, &bytes);
    REQUIRE(versions.size() > old.size());
    CHECK((versions.front() == 2 && versions[1] == 1 && versions.back() == 2));
    REQUIRE(load_state(bytes.data(), bytes.size(), config, {}, serial_executor(), &again).ok());
    CHECK(golden_outputs(again.get()) == golden_outputs(cache.get()));
    // A file that has later blocks than it says is refused.
    auto* header = reinterpret_cast<StateHeader*>(bytes.data());
    header->block_version = 1;
    header->checksum = xxh64(header, offsetof(StateHeader, checksum));
    again = nullptr;
    CHECK(load_state(bytes.data(), bytes.size(), config, {}, serial_executor(), &again).code() ==
          Code::corrupt_state);
}

TEST_CASE("files of gear-3 as it once was are read, go on at its rates, and are saved again", "[state]") {
    const Tensor keys = gaussian(600, 1, 8, 1), values = gaussian(600, 1, 16, 2);
    const CacheConfig earlier = golden_config("k=trellis-3.375;v=trellis-3.25:sinks=4");
    std::unique_ptr<Cache> cache = make_cache(earlier), loaded, again;
    const auto bytes_of = [](const Cache& of) {
        std::uint64_t n = 0;
        REQUIRE(state_bytes(of, {}, &n).ok());
        std::vector<unsigned char> bytes(n);
        REQUIRE(save_state(of, bytes.data(), n, {}, serial_executor()).ok());
        return bytes;
    };
    const auto read = [](const std::vector<unsigned char>& bytes, std::unique_ptr<Cache>* out) {
        return load_state(bytes.data(), bytes.size(), golden_config("gear-3"), {}, serial_executor(), out);
    };
    REQUIRE(append(cache.get(), keys, values, 0, 150).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    std::vector<unsigned char> bytes = bytes_of(*cache);
    CHECK(read(bytes, &loaded).code() == Code::other_codec);
    auto* header = reinterpret_cast<StateHeader*>(bytes.data());
    std::memset(header->spec, 0, sizeof(header->spec));
    std::strcpy(header->spec, "gear-3");
    header->checksum = xxh64(header, offsetof(StateHeader, checksum));
    const Status status = read(bytes, &loaded);
    INFO(status.message());
    REQUIRE(status.ok());
    for (Cache* one : {cache.get(), loaded.get()}) {
        REQUIRE(append(one, keys, values, 150, 200).ok());
        REQUIRE(one->compress(0, serial_executor()).ok());
    }
    CHECK(golden_outputs(loaded.get()) == golden_outputs(cache.get()));
    REQUIRE(read(bytes_of(*loaded), &again).ok());
    CHECK(golden_outputs(again.get()) == golden_outputs(cache.get()));
}
