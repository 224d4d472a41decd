// Files that somebody broke, by accident or on purpose.
#include <cstring>

#include "file/xxh64.hpp"
#include "format/block.hpp"
#include "format/state.hpp"
#include "state/state_reader.hpp"
#include "states.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

// As small as a file with a block can be.
CacheConfig small_config(const char* spec) {
    return make_config(spec, 1, 8, 8, 400);
}
FileBytes small_file(const CacheConfig& config, std::size_t n_tokens) {
    static const Tensor keys = gaussian(400, 1, 8, 1), values = gaussian(400, 1, 8, 2);
    auto cache = make_cache(config);
    REQUIRE(append(cache.get(), keys, values, 0, n_tokens).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    TemporaryFile file;
    const char extra[] = "extra";
    REQUIRE(save_state(*cache, file.path(), {{}, extra, 5}, serial_executor()).ok());
    return file.read();
}

Code load_bytes(const TemporaryFile& file, const FileBytes& bytes, const CacheConfig& config,
                const LoadOptions& options = {}) {
    file.write(bytes);
    std::unique_ptr<Cache> out;
    const Status status = load(file.path(), config, &out, options);
    CHECK((out == nullptr) == !status.ok());
    CHECK((status.ok() || status.message()[0] != 0));
    if (out != nullptr) {  // what was let in can be used
        const std::vector<float> query(config.key_dim, 0.5f);
        std::vector<float> result(config.value_dim);
        Queries queries = {query.data(), config.key_dim, config.key_dim, 1, 1, 0.3f, true};
        if (out->n_tokens(0) > 0) {
            const Status attended = out->attend(0, queries, result.data(), result.size(), serial_executor());
            if (attended.ok()) {
                for (const float x : result)
                    CHECK(std::isfinite(x));
            }
        }
    }
    return status.code();
}

// Makes the checksums of a changed file right.
void seal(FileBytes* bytes) {
    auto* header = reinterpret_cast<StateHeader*>(bytes->data());
    auto* sections = reinterpret_cast<StateSection*>(header + 1);
    const bool has_table = header->n_sections <= (bytes->size() - sizeof(StateHeader)) / sizeof(StateSection);
    for (std::uint32_t i = 0; has_table && i < header->n_sections; ++i) {
        if (sections[i].offset <= bytes->size() && sections[i].n_bytes <= bytes->size() - sections[i].offset)
            sections[i].checksum = xxh64(bytes->data() + sections[i].offset, sections[i].n_bytes);
    }
    if (has_table) header->table_checksum = xxh64(sections, header->n_sections * sizeof(StateSection));
    header->checksum = xxh64(header, offsetof(StateHeader, checksum));
}

StateSection* find(FileBytes* bytes, StateKind kind) {
    auto* header = reinterpret_cast<StateHeader*>(bytes->data());
    auto* sections = reinterpret_cast<StateSection*>(header + 1);
    for (std::uint32_t i = 0; i < header->n_sections; ++i) {
        if (sections[i].kind == static_cast<std::uint32_t>(kind)) return sections + i;
    }
    FAIL("no such section");
    return nullptr;
}
template <class T>
T* contents(FileBytes* bytes, StateKind kind) {
    return reinterpret_cast<T*>(bytes->data() + find(bytes, kind)->offset);
}

}  // namespace

TEST_CASE("every flipped bit of a file is noticed", "[damage][once]") {
    for (const char* spec : {"gear-2", "paper:gear-2:nb=64", "auto:3"}) {
        const CacheConfig config = small_config(spec);
        const FileBytes bytes = small_file(config, 200);
        auto* copy = static_cast<unsigned char*>(std::aligned_alloc(64, (bytes.size() + 63) / 64 * 64));
        std::copy(bytes.begin(), bytes.end(), copy);
        const auto is_sound = [&] {
            StateInput input(copy, bytes.size(), default_allocator());
            StateFile file;
            Status status = file.read_header(&input);
            if (status.ok()) status = match_config(file, config, {});
            if (status.ok()) status = file.read_table(&input, config.max_tokens);
            if (status.ok()) status = check_state(file, &input, config, serial_executor());
            return status.ok();
        };
        CHECK(is_sound());
        std::size_t n_missed = 0;
        for (std::size_t at = 0; at < bytes.size(); ++at) {
            for (int bit = 0; bit < 8; ++bit) {
                copy[at] ^= static_cast<unsigned char>(1 << bit);
                n_missed += is_sound();
                copy[at] ^= static_cast<unsigned char>(1 << bit);
            }
        }
        CHECK(n_missed == 0);
        CHECK(is_sound());
        std::free(copy);
        // A few in a file, with a cache in the place of the result.
        const TemporaryFile file;
        file.write(bytes);
        std::unique_ptr<Cache> target;
        REQUIRE(load(file.path(), config, &target).ok());
        const Cache* before = target.get();
        for (std::size_t at = 0; at < bytes.size(); at += 97) {
            FileBytes changed = bytes;
            changed[at] ^= 16;
            file.write(changed);
            CHECK_FALSE(load(file.path(), config, &target).ok());
        }
        CHECK(target.get() == before);
        CHECK(target->n_tokens(0) == 200);
    }
}

TEST_CASE("a file cut at any byte, or longer than it says, is refused", "[damage][once]") {
    const CacheConfig config = small_config("gear-2");
    const FileBytes bytes = small_file(config, 150);
    const TemporaryFile file;
    for (std::size_t n = 0; n < bytes.size(); n += n < 600 || n + 70 > bytes.size() ? 1 : 61) {
        CAPTURE(n);
        const Code code =
            load_bytes(file, FileBytes(bytes.begin(), bytes.begin() + static_cast<long>(n)), config);
        CHECK(code == (n < 8 ? Code::not_a_state : Code::truncated));
    }
    FileBytes longer = bytes;
    longer.push_back(0);
    CHECK(load_bytes(file, longer, config) == Code::damaged);
}

TEST_CASE("every cause has its code", "[damage][once]") {
    const CacheConfig config = small_config("gear-2");
    const FileBytes sound = small_file(config, 200);
    const TemporaryFile file;
    const auto with = [&](auto change, bool sealed = true) {
        FileBytes bytes = sound;
        change(&bytes, reinterpret_cast<StateHeader*>(bytes.data()));
        if (sealed) seal(&bytes);
        return load_bytes(file, bytes, config);
    };
    const auto layer_with = [&](auto change) {
        return with(
            [&](FileBytes* bytes, StateHeader*) { change(contents<StateLayer>(bytes, StateKind::layer)); });
    };
    const auto section_with = [&](StateKind kind, auto change) {
        return with([&](FileBytes* bytes, StateHeader*) { change(find(bytes, kind)); });
    };
    const auto block_with = [&](StateKind kind, auto change) {
        return with([&](FileBytes* bytes, StateHeader*) { change(contents<BlockHeader>(bytes, kind)); });
    };
    CHECK(with([](FileBytes*, StateHeader*) {}) == Code::ok);
    // The header.
    CHECK(with([](FileBytes*, StateHeader* h) { h->magic[0] = 'X'; }) == Code::not_a_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->version = 3; }) == Code::bad_version);
    CHECK(with([](FileBytes*, StateHeader* h) { h->version = 2; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->dims_checksum = 2; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->version = 0; }) == Code::bad_version);
    CHECK(with([](FileBytes*, StateHeader* h) { h->byte_order = 0x04030201; }) == Code::other_byte_order);
    CHECK(with([](FileBytes*, StateHeader* h) { h->block_version = 9; }) == Code::bad_version);
    CHECK(with([](FileBytes*, StateHeader* h) { h->seed = 9; }, false) == Code::damaged);
    CHECK(with([](FileBytes*, StateHeader* h) { h->reserved[3] = 1; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->flags = 4; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->flags = 2; }) == Code::other_model);
    CHECK(with([](FileBytes*, StateHeader* h) { h->spec[0] = '?'; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { std::memset(h->spec, 'g', sizeof(h->spec)); }) ==
          Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->n_layers = UINT32_MAX; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->n_kv_heads = 0; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->key_dim = 12; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->max_tokens = UINT64_MAX; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->n_sections = UINT32_MAX; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { --h->n_sections; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->n_sections = 0; }) == Code::corrupt_state);
    CHECK(with([](FileBytes*, StateHeader* h) { h->n_bytes += 64; }) == Code::truncated);
    CHECK(with([](FileBytes*, StateHeader* h) { h->n_bytes -= 64; }) == Code::damaged);
    CHECK(with([](FileBytes*, StateHeader* h) { h->model[4] = 1; }) == Code::other_model);
    // The table.
    for (const StateKind kind : {StateKind::layer, StateKind::key_block, StateKind::value_block,
                                 StateKind::key_buffer, StateKind::extra}) {
        CAPTURE(static_cast<int>(kind));
        CHECK(section_with(kind, [](StateSection* s) { s->offset += 64; }) == Code::corrupt_state);
        CHECK(section_with(kind, [](StateSection* s) { s->offset = UINT64_MAX - 63; }) ==
              Code::corrupt_state);
        CHECK(section_with(kind, [](StateSection* s) { s->n_bytes = 0; }) == Code::corrupt_state);
        CHECK(section_with(kind, [](StateSection* s) { s->n_bytes = UINT64_MAX; }) == Code::corrupt_state);
        CHECK(section_with(kind, [](StateSection* s) { s->layer = 7; }) == Code::corrupt_state);
        CHECK(section_with(kind, [](StateSection* s) { s->kind = 77; }) == Code::corrupt_state);
        CHECK(section_with(kind, [](StateSection* s) { s->reserved[1] = 1; }) == Code::corrupt_state);
        if (kind == StateKind::extra) continue;
        CHECK(section_with(kind, [](StateSection* s) { s->n_bytes += 64; }) == Code::corrupt_state);
        CHECK(section_with(kind, [](StateSection* s) { s->n_tokens += 1; }) == Code::corrupt_state);
        CHECK(section_with(kind, [](StateSection* s) { s->first = UINT32_MAX; }) == Code::corrupt_state);
        CHECK(section_with(kind, [](StateSection* s) { s->shift = 5; }) == Code::corrupt_state);
    }
    // Layers.
    CHECK(layer_with([](StateLayer* l) { l->n_sinks = 3; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->n_sinks = UINT64_MAX; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->n_closed += 1; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->n_buffered -= 1; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->n_buffered = UINT64_MAX; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->n_forgotten = 300; }) == Code::capacity_exceeded);
    CHECK(layer_with([](StateLayer* l) { l->n_forgotten = UINT64_MAX; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->pending_tokens = 128; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->pending_tokens = 1; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->pending_appended = UINT32_MAX; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->exact_from = UINT64_MAX; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->flags = 16; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->key_rate = NAN; }) == Code::corrupt_state);
    CHECK(layer_with([](StateLayer* l) { l->value_rate = 1.0f; }) == Code::corrupt_state);
    // Rows.
    CHECK(with([](FileBytes* b, StateHeader*) {
              *contents<std::uint16_t>(b, StateKind::key_buffer) = 0x7c00;
          }) == Code::corrupt_state);
    CHECK(with([](FileBytes* b, StateHeader*) {
              *contents<std::uint16_t>(b, StateKind::value_sinks) = 0xfe01;
          }) == Code::corrupt_state);
    // Blocks.
    for (const StateKind kind : {StateKind::key_block, StateKind::value_block}) {
        CHECK(block_with(kind, [](BlockHeader* h) { h->n_tokens = 256; }) == Code::corrupt_state);
        CHECK(block_with(kind, [](BlockHeader* h) { h->n_tokens = 0; }) == Code::corrupt_state);
        CHECK(block_with(kind, [](BlockHeader* h) { h->n_bytes = UINT64_MAX; }) == Code::corrupt_state);
        CHECK(block_with(kind, [](BlockHeader* h) { h->rate = 3.0f; }) == Code::corrupt_state);
        CHECK(block_with(kind, [](BlockHeader* h) { h->profile = 0; }) == Code::corrupt_state);
        CHECK(block_with(kind, [](BlockHeader* h) { h->sections += 64; }) == Code::corrupt_state);
        CHECK(block_with(kind, [](BlockHeader* h) { h->kind ^= 1; }) == Code::corrupt_state);
        // The first mean of the profile.
        CHECK(block_with(kind, [](BlockHeader* h) {
                  const std::uint16_t nan = 0x7e00;
                  std::memcpy(reinterpret_cast<unsigned char*>(h) + h->profile, &nan, 2);
              }) == Code::bad_block);
    }
}

TEST_CASE("a rope that cannot be is refused", "[damage][once]") {
    const CacheConfig config = small_config("gear-2");
    static const Tensor keys = gaussian(400, 1, 8, 1), values = gaussian(400, 1, 8, 2);
    auto cache = make_cache(config);
    REQUIRE(append(cache.get(), keys, values, 0, 200).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const double frequencies[] = {1.0, 0.5, 0.25};
    const RopeConfig rope = {frequencies, 3, true};
    REQUIRE(cache->remove(10, 5, &rope).ok());
    const TemporaryFile file;
    REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
    const FileBytes sound = file.read();
    const auto with = [&](auto change) {
        FileBytes bytes = sound;
        change(contents<StateRope>(&bytes, StateKind::rope), &bytes);
        seal(&bytes);
        return load_bytes(file, bytes, config);
    };
    CHECK(with([](StateRope*, FileBytes*) {}) == Code::ok);
    CHECK(with([](StateRope* r, FileBytes*) { r->interleaved = 0; }) == Code::ok);
    CHECK(with([](StateRope* r, FileBytes*) { r->n_pairs = 2; }) == Code::corrupt_state);
    CHECK(with([](StateRope* r, FileBytes*) { r->n_pairs = UINT32_MAX; }) == Code::corrupt_state);
    CHECK(with([](StateRope* r, FileBytes*) { r->interleaved = 2; }) == Code::corrupt_state);
    CHECK(with([](StateRope* r, FileBytes*) { r->reserved[55] = 1; }) == Code::corrupt_state);
    for (const double frequency : {double{INFINITY}, double{NAN}, 1e303}) {
        CHECK(with([&](StateRope* r, FileBytes*) { std::memcpy(r + 1, &frequency, sizeof(frequency)); }) ==
              Code::corrupt_state);
    }
    CHECK(with([](StateRope*, FileBytes* b) { find(b, StateKind::rope)->n_bytes = 60; }) ==
          Code::corrupt_state);
    CHECK(with([](StateRope*, FileBytes* b) { contents<StateLayer>(b, StateKind::layer)->flags &= ~8u; }) ==
          Code::corrupt_state);
    CHECK(with([](StateRope*, FileBytes* b) { find(b, StateKind::rope)->kind = 12; }) == Code::corrupt_state);
    // By that of the configuration, which only the flag tells, or in earlier files a shift.
    CacheConfig rotated = config;
    rotated.rope = rope;
    for (const bool has_flag : {true, false}) {
        auto moved = make_cache(rotated);
        REQUIRE(append(moved.get(), keys, values, 0, 200).ok());
        if (!has_flag) REQUIRE(moved->compress(0, serial_executor()).ok());
        REQUIRE(moved->remove(10, 5).ok());
        REQUIRE(save_state(*moved, file.path(), {}, serial_executor()).ok());
        FileBytes bytes = file.read();
        if (!has_flag) contents<StateLayer>(&bytes, StateKind::layer)->flags &= ~8u;
        seal(&bytes);
        file.write(bytes);
        std::unique_ptr<Cache> loaded;
        REQUIRE(load(file.path(), rotated, &loaded).ok());
        const RopeConfig other = {frequencies, 2, true};
        CHECK(loaded->remove(10, 5, &other).code() == Code::other_rope);
        CHECK(loaded->remove(10, 5).ok());
    }
}

TEST_CASE("what is not finite among buffered floats is refused", "[damage][once]") {
    const CacheConfig config = small_config("f32");
    const FileBytes sound = small_file(config, 200);
    const TemporaryFile file;
    CHECK(load_bytes(file, sound, config) == Code::ok);
    for (const std::uint32_t word : {0x7f800000u, 0xff800000u, 0x7f800001u, 0xffffffffu}) {
        FileBytes bytes = sound;
        contents<std::uint32_t>(&bytes, StateKind::value_buffer)[3] = word;
        seal(&bytes);
        CHECK(load_bytes(file, bytes, config) == Code::corrupt_state);
    }
}

TEST_CASE("files with any byte changed and sealed anew are refused or usable", "[damage][once]") {
    std::mt19937 random(5);
    for (const char* spec : {"gear-2", "paper:gear-2:nb=64", "auto:3"}) {
        const CacheConfig config = small_config(spec);
        const FileBytes sound = small_file(config, 200);
        const TemporaryFile file;
        for (int i = 0; i < 1500; ++i) {
            FileBytes bytes = sound;
            const int n = 1 + static_cast<int>(random() % 3);
            for (int j = 0; j < n; ++j)
                bytes[random() % bytes.size()] ^= static_cast<unsigned char>(1 + random() % 255);
            seal(&bytes);
            LoadOptions options;
            if (i % 3 == 1) options.loading = StateLoading::map;
            if (i % 3 == 2)
                options.loading = StateLoading::map, options.checking = StateChecking::on_first_use;
            (void)load_bytes(file, bytes, config, options);
        }
    }
}

TEST_CASE("a mapped block is looked at when it is first needed", "[damage][once]") {
    const CacheConfig config = small_config("gear-2");
    FileBytes bytes = small_file(config, 390);
    // In the codes of the last values.
    const StateSection* buffer = find(&bytes, StateKind::key_buffer);
    bytes[buffer->offset - 10] ^= 1;
    const TemporaryFile file;
    file.write(bytes);
    std::unique_ptr<Cache> cache;
    LoadOptions options;
    options.loading = StateLoading::map;
    CHECK(load(file.path(), config, &cache, options).code() == Code::damaged);
    options.checking = StateChecking::on_first_use;
    REQUIRE(load(file.path(), config, &cache, options).ok());
    const std::vector<float> query(8, 0.5f);
    std::vector<float> out(8, -1.0f);
    const Queries queries = {query.data(), 8, 8, 1, 1, 0.3f, true};
    for (int i = 0; i < 2; ++i) {
        const Status status = cache->attend(0, queries, out.data(), out.size(), serial_executor());
        CHECK(status.code() == Code::damaged);
        CHECK(out == std::vector<float>(8, -1.0f));
    }
    std::unique_ptr<Cache> fork;
    REQUIRE(cache->fork(&fork).ok());
    CHECK(fork->attend(0, queries, out.data(), out.size(), serial_executor()).code() == Code::damaged);
    TemporaryFile other;
    CHECK(save_state(*cache, other.path(), {}, serial_executor()).code() == Code::damaged);
    // Cut off, it harms nobody.
    REQUIRE(fork->truncate(4).ok());
    CHECK(fork->attend(0, queries, out.data(), out.size(), serial_executor()).ok());
    REQUIRE(cache->truncate(0).ok());
}
