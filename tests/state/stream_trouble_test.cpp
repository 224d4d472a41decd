// Functions that fail, bytes that end early, and bytes of somebody who wants to do harm.
#include "file/xxh64.hpp"
#include "format/state.hpp"
#include "streams.hpp"

using namespace gearkv;
using namespace gearkv::testing;

TEST_CASE("a sink that fails at any call is told of, and the cache is as it was", "[damage][stream][once]") {
    const auto cache = lived_cache(state_config("paper:gear-4:sinks=4"));
    const FileBytes whole = saved_bytes(*cache);
    long n = 0;
    for (Status status = Status::error(Code::write_failed, "."); !status.ok(); ++n) {
        REQUIRE(n < 1000);
        Collector all;
        all.most_calls = n;
        status = save_state(*cache, all.sink(), {}, serial_executor());
        CAPTURE(n, status.message());
        CHECK((status.ok() || status.code() == Code::write_failed));
        CHECK(all.calls == (status.ok() ? n : n + 1));  // asked no more
        CHECK((status.ok() || status.message()[0] != 0));
        REQUIRE(all.bytes.size() <= whole.size());
        CHECK(std::equal(all.bytes.begin(), all.bytes.end(), whole.begin()));
    }
    CHECK(n > 12);
    CHECK((saved_bytes(*cache) == whole));
}

TEST_CASE("a source that fails at any call makes no cache", "[damage][stream][once]") {
    const CacheConfig config = state_config("paper:gear-4:sinks=4");
    const FileBytes whole = saved_bytes(*lived_cache(config));
    CountingMemory memory;
    CacheConfig counted = config;
    counted.allocator = memory.allocator();
    for (const bool is_short : {false, true}) {
        long n = 0;
        for (Status status = Status::error(Code::read_failed, "."); !status.ok(); ++n) {
            REQUIRE(n < 2000);
            Giver giver(whole);
            giver.is_short = is_short;
            giver.most_calls = n;
            std::unique_ptr<Cache> out;
            status = load_from(&giver, counted, &out);
            CAPTURE(is_short, n, status.message());
            CHECK((status.ok() || status.code() == Code::read_failed));
            CHECK((out != nullptr) == status.ok());
            CHECK((out != nullptr || memory.held == 0));
            CHECK(giver.calls == (status.ok() ? n : n + 1));
        }
        CHECK(n > (is_short ? 60 : 8));
    }
    // One that says it gave more than there was room for.
    std::unique_ptr<Cache> out;
    const ByteSource liar = {[](void*, void*, std::size_t n, std::size_t* n_read) {
                                 *n_read = n + 1;
                                 return true;
                             },
                             nullptr};
    CHECK(load_state(liar, config, {}, serial_executor(), &out).code() == Code::read_failed);
}

TEST_CASE("an allocator that refuses any call leaves all as it was", "[damage][stream][once]") {
    CountingMemory memory;
    CacheConfig config = state_config("paper:gear-4:sinks=4");
    config.allocator = memory.allocator();
    const auto cache = lived_cache(config);
    const FileBytes whole = saved_bytes(*cache);
    const std::uint64_t held = memory.held;
    FileBytes room(whole.size());
    const auto each = [&](const char* what, auto work) {
        long n = 0;
        for (Status status = Status::error(Code::out_of_memory, "."); !status.ok(); ++n) {
            REQUIRE(n < 1000);
            memory.budget = n;
            status = work();
            memory.budget = INT64_MAX;
            CAPTURE(what, n, status.message());
            CHECK((status.ok() || status.code() == Code::out_of_memory));
            CHECK(memory.held == held);
        }
        return n;
    };
    for (const std::uint64_t n_tokens : {UINT64_MAX, std::uint64_t{301}}) {
        SaveOptions options;
        options.n_tokens = n_tokens;
        const long least = n_tokens == UINT64_MAX ? 2 : 4;  // of a fork, too
        CHECK(each("sink", [&] {
                  Collector all;
                  const Status status = save_state(*cache, all.sink(), options, serial_executor());
                  CHECK((status.ok() || all.calls == 0));
                  return status;
              }) >= least);
        CHECK(each("memory", [&] {
                  return save_state(*cache, room.data(), room.size(), options, serial_executor());
              }) >= least);
        std::uint64_t n_bytes = 0;
        CHECK(each("size", [&] { return state_bytes(*cache, options, &n_bytes); }) >= least - 1);
    }
    CHECK((saved_bytes(*cache) == whole));
    CHECK(each("source", [&] {
              Giver giver(whole);
              std::unique_ptr<Cache> out;
              const Status status = load_from(&giver, config, &out);
              CHECK((out != nullptr) == status.ok());
              return status;
          }) > 8);
    CHECK(each("bytes", [&] {
              std::unique_ptr<Cache> out;
              return load_state(whole.data(), whole.size(), config, {}, serial_executor(), &out);
          }) > 8);
}

TEST_CASE("a stream that ends at any byte is refused", "[damage][stream][once]") {
    const CacheConfig config = make_config("gear-2", 1, 8, 8, 400);
    const Tensor keys = gaussian(150, 1, 8, 1), values = gaussian(150, 1, 8, 2);
    auto cache = make_cache(config);
    REQUIRE(append(cache.get(), keys, values, 0, 150).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const FileBytes whole = saved_bytes(*cache);
    for (std::size_t n = 0; n < whole.size(); n += n < 600 || n + 70 > whole.size() ? 1 : 23) {
        CAPTURE(n);
        const FileBytes cut(whole.begin(), whole.begin() + static_cast<long>(n));
        const Code expected = n < 8 ? Code::not_a_state : Code::truncated;
        Giver giver(cut);
        giver.is_short = n % 2 == 1;
        std::unique_ptr<Cache> out;
        CHECK(load_from(&giver, config, &out).code() == expected);
        CHECK(load_state(cut.data(), n, config, {}, serial_executor(), &out).code() ==
              (cut.data() == nullptr ? Code::invalid_argument : expected));
        CHECK(out == nullptr);
    }
    FileBytes longer = whole;
    longer.push_back(0);
    std::unique_ptr<Cache> out;
    CHECK(load_state(longer.data(), longer.size(), config, {}, serial_executor(), &out).code() ==
          Code::damaged);
}

TEST_CASE("a changed byte has the same code in a stream as in a file", "[damage][stream][once]") {
    for (const char* spec : {"gear-2", "paper:gear-2:nb=64", "auto:3"}) {
        const CacheConfig config = make_config(spec, 1, 8, 8, 400);
        const Tensor keys = gaussian(300, 1, 8, 1), values = gaussian(300, 1, 8, 2);
        auto cache = make_cache(config);
        REQUIRE(append(cache.get(), keys, values, 0, 200).ok());
        REQUIRE(cache->compress(0, serial_executor()).ok());
        REQUIRE(cache->remove(40, 20).ok());
        const FileBytes whole = saved_bytes(*cache);
        const TemporaryFile file;
        for (std::size_t at = 0; at < whole.size(); at += at < 700 ? 1 : 61) {
            CAPTURE(spec, at);
            FileBytes changed = whole;
            changed[at] ^= 1 << at % 8;
            file.write(changed);
            std::unique_ptr<Cache> out;
            LoadOptions mapped;
            mapped.loading = StateLoading::map;
            const Code in_file = load(file.path(), config, &out, mapped).code();
            Giver giver(changed);
            const Code in_stream = load_from(&giver, config, &out).code();
            CHECK(in_file != Code::ok);
            // Bytes 16 to 23 are the length, which a stream does not know.
            if (at < 16 || at >= 24) CHECK(code_name(in_stream) == std::string(code_name(in_file)));
            CHECK(out == nullptr);
        }
    }
}

TEST_CASE("no number in a stream takes memory that its bytes do not fill", "[damage][stream][once]") {
    CountingMemory memory;
    CacheConfig config = make_config("gear-2", 1, 8, 8, 1u << 20);
    config.allocator = memory.allocator();
    const Tensor keys = gaussian(200, 1, 8, 1), values = gaussian(200, 1, 8, 2);
    auto cache = make_cache(config);
    const std::uint64_t of_cache = memory.held;
    REQUIRE(append(cache.get(), keys, values, 0, 200).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    SaveOptions options;
    options.extra = "extra";
    options.n_extra = 5;
    const FileBytes whole = saved_bytes(*cache, options);
    cache.reset();
    REQUIRE(memory.held == 0);
    const auto load_changed = [&](auto change) {
        FileBytes bytes = whole;
        auto* header = reinterpret_cast<StateHeader*>(bytes.data());
        auto* sections = reinterpret_cast<StateSection*>(header + 1);
        const std::uint32_t n_sections = header->n_sections;
        change(header, sections);
        for (std::uint32_t i = 0; i < n_sections; ++i) {
            if (sections[i].kind == static_cast<std::uint32_t>(StateKind::layer))
                sections[i].checksum = xxh64(bytes.data() + sections[i].offset, sections[i].n_bytes);
        }
        header->table_checksum = xxh64(sections, n_sections * sizeof(StateSection));
        header->checksum = xxh64(header, offsetof(StateHeader, checksum));
        memory.peak = memory.held;
        Giver giver(bytes);
        std::unique_ptr<Cache> out;
        const Status status = load_from(&giver, config, &out);
        CAPTURE(status.message());
        CHECK(out == nullptr);
        CHECK(memory.held == 0);
        CHECK(memory.peak < of_cache + 3 * whole.size() + (4u << 20));
        return status.code();
    };
    const auto section_of = [](StateHeader* header, StateSection* sections, StateKind kind) {
        return std::find_if(sections, sections + header->n_sections, [&](const StateSection& section) {
            return section.kind == static_cast<std::uint32_t>(kind);
        });
    };
    constexpr std::uint64_t huge = std::uint64_t{1} << 60;
    CHECK(load_changed([](StateHeader* h, StateSection*) { h->n_bytes = huge, h->n_sections = 2'000'000; }) ==
          Code::truncated);
    CHECK(load_changed([](StateHeader* h, StateSection*) {
              h->n_bytes = huge, h->n_sections = UINT32_MAX;
          }) == Code::capacity_exceeded);
    CHECK(load_changed([](StateHeader* h, StateSection*) { h->n_bytes = UINT64_MAX; }) ==
          Code::corrupt_state);
    CHECK(load_changed([&](StateHeader* h, StateSection* s) {
              h->n_bytes = huge;
              section_of(h, s, StateKind::extra)->n_bytes = huge / 2;
          }) == Code::truncated);
    // A layer of a million tokens in the buffer.
    CHECK(load_changed([&](StateHeader* h, StateSection* s) {
              h->n_bytes = huge;
              auto* layer = reinterpret_cast<StateLayer*>(reinterpret_cast<unsigned char*>(h) + s[0].offset);
              layer->n_buffered = 1'000'000;
              for (const StateKind kind : {StateKind::key_buffer, StateKind::value_buffer})
                  section_of(h, s, kind)->n_bytes = std::uint64_t{1'000'000} * 16 * 2;
          }) == Code::truncated);
    // Keys and values of another size than their header has.
    for (const StateKind kind : {StateKind::key_block, StateKind::value_block}) {
        for (const std::uint64_t n_bytes : {std::uint64_t{64}, huge / 2})
            CHECK(load_changed([&](StateHeader* h, StateSection* s) {
                      h->n_bytes = huge;
                      section_of(h, s, kind)->n_bytes = n_bytes;
                  }) == Code::corrupt_state);
    }
    // An endless one ends where it says it does, and where it is wrong.
    Giver endless(whole);
    endless.is_endless = true;
    std::unique_ptr<Cache> out;
    CHECK(load_from(&endless, config, &out).ok());
    CHECK(endless.place == whole.size());
    const FileBytes nothing;
    Giver zeros(nothing);
    zeros.is_endless = true;
    CHECK(load_from(&zeros, config, &out).code() == Code::not_a_state);
    CHECK(zeros.place == sizeof(StateHeader));
}
