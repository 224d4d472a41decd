// A state through functions and memory is the state of a file.
#include "streams.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr const char* specs[] = {"gear-2",       "paper:gear-4:sinks=4", "auto:3",
                                 "q8:recent=20", "k=gear-4;v=f32",       "f16"};

// Outputs of all layers, now and after it went on.
std::vector<float> go_on(Cache* cache) {
    std::vector<float> all;
    for (const std::size_t first : {705, 706, 900}) {
        for (std::uint32_t layer = 0; layer < cache->config().n_layers; ++layer) {
            const std::vector<float> out = attend_layer(cache, layer);
            all.insert(all.end(), out.begin(), out.end());
        }
        feed(cache, first, first == 706 ? 150 : 1);
    }
    return all;
}

}  // namespace

TEST_CASE("a state is the same bytes in a file, in memory and through a function", "[state][stream]") {
    for (const char* spec : specs) {
        CAPTURE(spec);
        const CacheConfig config = state_config(spec);
        for (const bool lived : {false, true}) {
            const auto cache = lived ? lived_cache(config) : make_cache(config);
            SaveOptions options;
            options.extra = "37 bytes that are not a multiple of 64";
            options.n_extra = lived ? 37 : 0;
            const TemporaryFile file;
            REQUIRE(save_state(*cache, file.path(), options, serial_executor()).ok());
            const FileBytes in_file = file.read();
            CHECK((saved_bytes(*cache, options) == in_file));
            std::uint64_t n_bytes = 0;
            bool lossless = false;
            REQUIRE(state_bytes(*cache, options, &n_bytes, &lossless).ok());
            CHECK(n_bytes == in_file.size());
            CHECK(lossless);
            FileBytes memory(in_file.size() + 3, 0xee);
            std::size_t n_written = 0;
            REQUIRE(save_state(*cache, memory.data(), in_file.size(), options, serial_executor(), &n_written)
                        .ok());
            CHECK(n_written == in_file.size());
            CHECK(std::equal(in_file.begin(), in_file.end(), memory.begin()));
            CHECK(std::count(memory.end() - 3, memory.end(), 0xee) == 3);
            std::unique_ptr<Executor> threads;
            REQUIRE(create_executor(3, &threads).ok());
            Collector all;
            REQUIRE(save_state(*cache, all.sink(), options, *threads).ok());
            CHECK((all.bytes == in_file));
        }
    }
}

TEST_CASE("a cache out of memory or a function goes on as the one out of a file", "[state][stream]") {
    for (const char* spec : specs) {
        CAPTURE(spec);
        const CacheConfig config = state_config(spec);
        const auto cache = lived_cache(config);
        const FileBytes bytes = saved_bytes(*cache);
        const TemporaryFile file;
        file.write(bytes);
        std::unique_ptr<Cache> from_file, from_memory, whole, pieces;
        REQUIRE(load(file.path(), config, &from_file).ok());
        REQUIRE(load_state(bytes.data(), bytes.size(), config, {}, serial_executor(), &from_memory).ok());
        FileBytes longer = bytes;  // somebody else's bytes are behind it
        longer.resize(bytes.size() + 100, 0x77);
        Giver giver(longer), bits(longer);
        bits.is_short = true;
        REQUIRE(load_from(&giver, config, &whole).ok());
        REQUIRE(load_from(&bits, config, &pieces).ok());
        CHECK(giver.place == bytes.size());  // which stay there
        CHECK(bits.place == bytes.size());
        CHECK((saved_bytes(*pieces) == bytes));
        const std::vector<float> expected = go_on(from_file.get());
        CHECK(go_on(from_memory.get()) == expected);
        CHECK(go_on(whole.get()) == expected);
        CHECK(go_on(pieces.get()) == expected);
        CHECK(go_on(cache.get()) == expected);
    }
}

TEST_CASE("memory that is too small is told how much is needed, and not touched", "[state][stream][once]") {
    const auto cache = lived_cache(state_config("gear-2"));
    std::uint64_t n_bytes = 0;
    REQUIRE(state_bytes(*cache, {}, &n_bytes).ok());
    for (const std::size_t room : {std::size_t{0}, std::size_t{512}, static_cast<std::size_t>(n_bytes - 1)}) {
        FileBytes memory(n_bytes, 0xee);
        std::size_t n_written = 77;
        const Status status = save_state(*cache, memory.data(), room, {}, serial_executor(), &n_written);
        CHECK(status.code() == Code::wrong_size);
        CHECK(std::string(status.message()).find(std::to_string(n_bytes)) != std::string::npos);
        CHECK(n_written == 77);
        CHECK(std::count(memory.begin(), memory.end(), 0xee) == static_cast<long>(n_bytes));
    }
}

TEST_CASE("the first tokens of a cache are saved as a truncation would leave them", "[state][stream]") {
    for (const char* spec : specs) {
        const CacheConfig config = state_config(spec);
        const auto cache = lived_cache(config);
        const FileBytes before = saved_bytes(*cache);
        const std::uint64_t n_all = cache->n_tokens(0);
        for (const std::uint64_t n :
             {std::uint64_t{0}, std::uint64_t{3}, std::uint64_t{291}, std::uint64_t{400}, n_all - 1, n_all}) {
            CAPTURE(spec, n, n_all);
            SaveOptions options;
            options.n_tokens = n;
            std::unique_ptr<Cache> cut;
            REQUIRE(cache->fork(&cut).ok());
            bool expected_lossless = false, lossless = false;
            REQUIRE(cut->truncate(n, &expected_lossless).ok());
            const FileBytes expected = saved_bytes(*cut), found = saved_bytes(*cache, options);
            CHECK((found == expected));
            std::uint64_t n_bytes = 0;
            REQUIRE(state_bytes(*cache, options, &n_bytes, &lossless).ok());
            CHECK(n_bytes == found.size());
            CHECK(lossless == expected_lossless);
            const TemporaryFile file;
            REQUIRE(save_state(*cache, file.path(), options, serial_executor()).ok());
            CHECK((file.read() == expected));
            Giver giver(found);
            std::unique_ptr<Cache> loaded;
            REQUIRE(load_from(&giver, config, &loaded).ok());
            CHECK(loaded->n_tokens(0) == n);
            if (n >= 400) CHECK(attend_layer(loaded.get(), 0) == attend_layer(cut.get(), 0));
        }
        SaveOptions options;
        options.n_tokens = n_all + 1;
        Collector none;
        std::uint64_t n_bytes = 5;
        CHECK(save_state(*cache, none.sink(), options, serial_executor()).code() == Code::wrong_size);
        CHECK(state_bytes(*cache, options, &n_bytes).code() == Code::wrong_size);
        CHECK(n_bytes == 5);
        CHECK(none.calls == 0);
        CHECK((saved_bytes(*cache) == before));
    }
}

TEST_CASE("a part that a window has left is not saved", "[state][stream][once]") {
    CacheConfig config = state_config("gear-2", 1);
    const std::uint32_t window = 64;
    config.windows = &window;
    auto cache = make_cache(config);
    feed(cache.get(), 0, 600);
    REQUIRE(cache->compress(0, serial_executor()).ok());
    SaveOptions options;
    options.n_tokens = 300;
    Collector none;
    CHECK(save_state(*cache, none.sink(), options, serial_executor()).code() == Code::forgotten);
    CHECK(none.calls == 0);
}

TEST_CASE("room for the caller's bytes is asked for when all else is right", "[state][stream][once]") {
    const CacheConfig config = state_config("gear-2", 1);
    const auto cache = lived_cache(config);
    const std::string extra(5000, 'x');
    SaveOptions options;
    options.extra = extra.data();
    options.n_extra = extra.size();
    const FileBytes bytes = saved_bytes(*cache, options);
    struct Room {
        std::string text;
        long calls = 0;
        bool refuses = false;
        static void* make(void* context, std::size_t n) {
            auto* self = static_cast<Room*>(context);
            ++self->calls;
            if (self->refuses) return nullptr;
            self->text.assign(n, '.');
            return self->text.data();
        }
    } room;
    LoadOptions load_options;
    load_options.make_room = Room::make;
    load_options.make_room_context = &room;
    std::unique_ptr<Cache> out;
    std::size_t n_extra = 0;
    const auto load_all = [&](const FileBytes& from) {
        Giver giver(from);
        return load_state(giver.source(), config, load_options, serial_executor(), &out, &n_extra);
    };
    REQUIRE(load_all(bytes).ok());
    CHECK(room.text == extra);
    CHECK(room.calls == 1);
    CHECK(n_extra == extra.size());
    REQUIRE(load_all(saved_bytes(*cache)).ok());
    CHECK(room.calls == 1);  // there are none
    CHECK(n_extra == 0);
    const Cache* before = out.get();
    FileBytes damaged = bytes;
    damaged[damaged.size() - 100] ^= 1;  // one of them
    CHECK(load_all(damaged).code() == Code::damaged);
    CHECK(room.calls == 1);
    room.refuses = true;
    CHECK(load_all(bytes).code() == Code::out_of_memory);
    CHECK(out.get() == before);
    CHECK(n_extra == 0);
    char small[10];
    load_options = {};
    load_options.extra = small;
    load_options.extra_capacity = sizeof(small);
    CHECK(load_all(bytes).code() == Code::wrong_size);
    load_options.make_room = Room::make;
    CHECK(load_all(bytes).code() == Code::invalid_argument);
}

TEST_CASE("a stream cannot be mapped, and what is null is refused", "[state][stream][once]") {
    const CacheConfig config = state_config("gear-2", 1);
    const auto cache = lived_cache(config);
    const FileBytes bytes = saved_bytes(*cache);
    std::unique_ptr<Cache> out;
    Giver giver(bytes);
    LoadOptions mapped;
    mapped.loading = StateLoading::map;
    Executor& executor = serial_executor();
    CHECK(load_from(&giver, config, &out, mapped).code() == Code::invalid_argument);
    CHECK(load_state(bytes.data(), bytes.size(), config, mapped, executor, &out).code() ==
          Code::invalid_argument);
    CHECK(load_state(ByteSource(), config, {}, executor, &out).code() == Code::invalid_argument);
    CHECK(load_state(giver.source(), config, {}, executor, nullptr).code() == Code::invalid_argument);
    CHECK(load_state(nullptr, 10, config, {}, executor, &out).code() == Code::invalid_argument);
    CHECK(giver.calls == 0);
    CHECK(save_state(*cache, ByteSink(), {}, executor).code() == Code::invalid_argument);
    CHECK(save_state(*cache, nullptr, 10, {}, executor).code() == Code::invalid_argument);
    CHECK(state_bytes(*cache, {}, nullptr).code() == Code::invalid_argument);
    CHECK(out == nullptr);
}
