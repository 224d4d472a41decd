// What the C ABI makes of null, of wrong sizes and of wrong order: a code and a text, and nothing changed.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>
#include "support/catch.hpp"

#include "gearkv/cache.hpp"
#include "gearkv/gearkv.h"
#include "gearkv/status.hpp"
#include "support/temporary_file.hpp"

namespace {

struct Text {
    gearkv_error error = {GEARKV_OK, ""};
    operator gearkv_error*() { return &error; }
    bool says(const char* words) const { return std::strstr(error.message, words) != nullptr; }
};

gearkv_config usual() {
    gearkv_config config;
    gearkv_config_init(&config, sizeof(config));
    config.spec = "gear-4";
    config.n_layers = config.n_kv_heads = 1;
    config.key_dim = config.value_dim = 16;
    config.max_tokens = 100;
    return config;
}

struct Life {
    gearkv_cache* cache = nullptr;
    std::vector<float> rows = std::vector<float>(1600, 0.5f);
    gearkv_rows view = {rows.data(), 16, 16};
    gearkv_queries queries;
    Life() {
        const gearkv_config config = usual();
        REQUIRE(gearkv_cache_create(&config, &cache, nullptr) == GEARKV_OK);
        REQUIRE(gearkv_cache_append(cache, 0, &view, &view, 50, nullptr, nullptr) == GEARKV_OK);
        gearkv_queries_init(&queries, sizeof(queries));
        queries.data = rows.data();
        queries.query_stride = queries.head_stride = 16;
        queries.n_queries = queries.n_heads = 1;
        queries.scale = 0.25f;
    }
    ~Life() { gearkv_cache_destroy(cache); }
};

constexpr auto invalid = GEARKV_INVALID_ARGUMENT;

}  // namespace

TEST_CASE("latents in C are those of C++, and told of a file", "[c]") {
    constexpr std::size_t n = 150, width = 48;
    std::vector<float> rows(n * width);
    for (std::size_t i = 0; i < rows.size(); ++i)
        rows[i] = std::sin(0.37f * static_cast<float>(i * i % 8191));
    gearkv_config config = usual();
    config.key_dim = 16, config.value_dim = 32, config.max_tokens = 200, config.latent = 1;
    gearkv_cache* cache = nullptr;
    Text text;
    REQUIRE(gearkv_cache_create(&config, &cache, text) == GEARKV_OK);
    const gearkv_rows keys = {rows.data() + 32, width, width}, latents = {rows.data(), width, width};
    REQUIRE(gearkv_cache_append(cache, 0, &keys, &latents, n, nullptr, text) == GEARKV_OK);
    gearkv_queries queries;
    gearkv_queries_init(&queries, sizeof(queries));
    queries.latents = rows.data(), queries.data = rows.data() + 32;
    queries.query_stride = queries.head_stride = width;
    queries.n_queries = 1, queries.n_heads = 2, queries.scale = 0.5f;
    std::vector<float> out(64), expected(64);
    REQUIRE(gearkv_cache_attend(cache, 0, &queries, out.data(), out.size(), nullptr, text) == GEARKV_OK);

    gearkv::CacheConfig same;
    REQUIRE(gearkv::parse_spec("gear-4", &same.spec).ok());
    same.n_layers = same.n_kv_heads = 1, same.key_dim = 16, same.value_dim = 32, same.max_tokens = 200;
    same.latent = true;
    std::unique_ptr<gearkv::Cache> other;
    REQUIRE(gearkv::Cache::create(same, &other).ok());
    REQUIRE(other->append(0, {keys.data, width, width}, {latents.data, width, width}, n,
                          gearkv::serial_executor()).ok());
    gearkv::Queries asked = {queries.data, width, width, 1, 2, 0.5f, true};
    asked.latents = queries.latents;
    REQUIRE(other->attend(0, asked, expected.data(), expected.size(), gearkv::serial_executor()).ok());
    CHECK(out == expected);
    const gearkv::testing::TemporaryFile file;
    REQUIRE(gearkv_cache_save(cache, file.path(), nullptr, nullptr, nullptr, text) == GEARKV_OK);
    gearkv_state_info info = {};
    info.struct_size = sizeof(info);
    REQUIRE(gearkv_inspect_state(file.path(), &info, text) == GEARKV_OK);
    CHECK(info.latent == 1);

    queries.latents = nullptr;
    CHECK(gearkv_cache_attend(cache, 0, &queries, out.data(), out.size(), nullptr, text) == invalid);
    CHECK(text.says("no latents"));
    gearkv_cache_destroy(cache);
    config.spec = "kivi-4";
    CHECK(gearkv_cache_create(&config, &cache, text) == GEARKV_BAD_SPEC);
}

TEST_CASE("codes of the C ABI have the names of the library's", "[c]") {
    const auto name_of = [](int code) {
        return std::string(gearkv_code_name(static_cast<gearkv_code>(code)));
    };
    for (int code = 0; code < static_cast<int>(gearkv::Code::not_a_model); ++code) {
        const std::string name = gearkv::code_name(static_cast<gearkv::Code>(code));
        int found = 0;
        while (found <= 100 && name_of(found) != name)
            ++found;
        INFO(name);
        CHECK(found <= 100);
    }
    CHECK((name_of(0) == "ok" && name_of(9) == "forgotten" && name_of(24) == "truncated" &&
           name_of(26) == "read_failed"));
    CHECK(gearkv_code_name(GEARKV_DECODER_ERROR) == std::string("decoder_error"));
    CHECK(gearkv_code_name(static_cast<gearkv_code>(-5)) == std::string("?"));
    CHECK(gearkv_level_name(GEARKV_LEVEL_AVXVNNI) == std::string("avxvnni"));
    for (const int level : {-1, 7, 255, 100000}) {
        CHECK(gearkv_level_name(static_cast<gearkv_level>(level)) == std::string("?"));
        CHECK(gearkv_level_available(static_cast<gearkv_level>(level)) == 0);
    }
}

TEST_CASE("null handles and outputs are refused by name", "[c]") {
    Text text;
    Life life;
    gearkv_config config = usual();
    gearkv_cache* cache = nullptr;
    float out[16];
    std::uint64_t n = 7;
    gearkv_stats stats = {};
    stats.struct_size = sizeof(stats);
    CHECK(gearkv_cache_create(nullptr, &cache, text) == invalid);
    CHECK(text.says("config is null"));
    CHECK(gearkv_cache_create(&config, nullptr, text) == invalid);
    CHECK(gearkv_bytes_required(nullptr, 1, 1, &stats, text) == invalid);
    CHECK(gearkv_bytes_required(&config, 1, 1, nullptr, text) == invalid);
    gearkv_life lived = {sizeof(gearkv_life), 50, 20, 4, 1};
    CHECK(gearkv_bytes_of_life(nullptr, &lived, &stats, text) == invalid);
    CHECK(gearkv_bytes_of_life(&config, nullptr, &stats, text) == invalid);
    CHECK(gearkv_bytes_of_life(&config, &lived, nullptr, text) == invalid);
    lived.struct_size = 1;
    CHECK(gearkv_bytes_of_life(&config, &lived, &stats, text) == invalid);
    CHECK(text.says("struct_size of life is 1"));
    lived.struct_size = sizeof(lived);
    lived.prompt_tokens = 51;
    CHECK(gearkv_bytes_of_life(&config, &lived, &stats, text) == GEARKV_WRONG_SIZE);
    CHECK(gearkv_cache_append(nullptr, 0, &life.view, &life.view, 1, nullptr, text) == invalid);
    CHECK(text.says("cache is null"));
    CHECK(gearkv_cache_append(life.cache, 0, nullptr, &life.view, 1, nullptr, text) == invalid);
    CHECK(text.says("keys is null"));
    CHECK(gearkv_cache_append(life.cache, 0, &life.view, nullptr, 1, nullptr, text) == invalid);
    gearkv_rows nowhere = {nullptr, 16, 16};
    CHECK(gearkv_cache_append(life.cache, 0, &nowhere, &life.view, 1, nullptr, text) == invalid);
    CHECK(gearkv_cache_attend(nullptr, 0, &life.queries, out, 16, nullptr, text) == invalid);
    CHECK(gearkv_cache_attend(life.cache, 0, nullptr, out, 16, nullptr, text) == invalid);
    CHECK(gearkv_cache_attend(life.cache, 0, &life.queries, nullptr, 16, nullptr, text) == invalid);
    CHECK(gearkv_attend_batch(0, nullptr, 1, nullptr, text) == invalid);
    gearkv_attend_request requests[2] = {{life.cache, &life.queries, out, 16},
                                         {life.cache, nullptr, out, 16}};
    CHECK(gearkv_attend_batch(0, requests, 2, nullptr, text) == invalid);
    CHECK(text.says("request 1 of 2"));
    requests[0].cache = nullptr;
    CHECK(gearkv_attend_batch(0, requests, 1, nullptr, text) == invalid);
    CHECK(gearkv_attend_batch(0, nullptr, 0, nullptr, text) == GEARKV_OK);
    CHECK(gearkv_cache_compress(nullptr, 0, nullptr, text) == invalid);
    CHECK(gearkv_cache_read(nullptr, 0, 0, 1, out, 16, nullptr, 0, text) == invalid);
    CHECK(gearkv_cache_truncate(nullptr, 0, nullptr, text) == invalid);
    CHECK(gearkv_cache_remove(nullptr, 5, 1, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_cache_forget_before(nullptr, 0, 1, text) == invalid);
    CHECK(gearkv_cache_shrink(nullptr, 0, &n, text) == invalid);
    CHECK(gearkv_cache_fork(nullptr, &cache, text) == invalid);
    CHECK(gearkv_cache_fork(life.cache, nullptr, text) == invalid);
    CHECK(gearkv_cache_get_stats(nullptr, &stats, text) == invalid);
    CHECK(gearkv_cache_get_stats(life.cache, nullptr, text) == invalid);
    CHECK(gearkv_cache_get_layer_stats(life.cache, 0, nullptr, text) == invalid);
    char spec[GEARKV_SPEC_SIZE];
    CHECK(gearkv_cache_layer_spec(nullptr, 0, spec, sizeof(spec), text) == invalid);
    CHECK(gearkv_cache_layer_spec(life.cache, 0, nullptr, 0, text) == invalid);
    CHECK(gearkv_cache_save(nullptr, "x", nullptr, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_cache_save(life.cache, nullptr, nullptr, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_state_bytes(nullptr, nullptr, &n, text) == invalid);
    CHECK(gearkv_state_bytes(life.cache, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_cache_save_to_memory(life.cache, nullptr, 100, nullptr, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_cache_save_through(life.cache, nullptr, nullptr, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_cache_load(nullptr, &config, nullptr, nullptr, &cache, nullptr, text) == invalid);
    CHECK(gearkv_cache_load("x", nullptr, nullptr, nullptr, &cache, nullptr, text) == invalid);
    CHECK(gearkv_cache_load("x", &config, nullptr, nullptr, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_cache_load_from_memory(nullptr, 0, &config, nullptr, nullptr, &cache, nullptr, text) ==
          invalid);
    CHECK(gearkv_cache_load_through(nullptr, nullptr, &config, nullptr, nullptr, &cache, nullptr, text) ==
          invalid);
    CHECK(gearkv_cache_truncate_to_shortest(nullptr, &n, nullptr, text) == invalid);
    CHECK(gearkv_inspect_state("x", nullptr, text) == invalid);
    gearkv_state_info info = {};
    info.struct_size = sizeof(info);
    CHECK(gearkv_inspect_state(nullptr, &info, text) == invalid);
    CHECK(gearkv_inspect_state("/nowhere/at/all", &info, text) == GEARKV_IO_ERROR);
    CHECK(gearkv_verify_state("/nowhere/at/all", nullptr, &info, text) == GEARKV_IO_ERROR);
    CHECK(gearkv_pool_create(1 << 20, 0, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_pool_get_stats(nullptr, nullptr, text) == invalid);
    CHECK(gearkv_workspace_create(nullptr, nullptr, text) == invalid);
    CHECK(gearkv_executor_create(1, nullptr, text) == invalid);
    gearkv_executor* executor = nullptr;
    CHECK(gearkv_executor_create(100000, &executor, text) == invalid);
    CHECK(gearkv_executor_create_custom(nullptr, &executor, text) == invalid);
    gearkv_executor_callbacks callbacks = {sizeof(callbacks), nullptr, nullptr, nullptr};
    CHECK(gearkv_executor_create_custom(&callbacks, &executor, text) == invalid);
    CHECK(text.says("parallel_for is null"));
    CHECK(gearkv_crew_create(0, nullptr, text) == invalid);
    gearkv_crew* crew = nullptr;
    CHECK(gearkv_crew_create(0, &crew, text) == invalid);
    CHECK(gearkv_format_spec(nullptr, nullptr, 0, text) == invalid);
    CHECK(gearkv_block_bytes(nullptr, &n, text) == invalid);
    CHECK(gearkv_compress_block(nullptr, 0, nullptr, nullptr, nullptr, text) == invalid);
    CHECK(gearkv_decompress_block(nullptr, 0, nullptr, 0, text) == invalid);
    CHECK((cache == nullptr && executor == nullptr && crew == nullptr && n == 7));

    // Where null stands for nothing.
    gearkv_cache_destroy(nullptr);
    gearkv_cache_reset(nullptr);
    gearkv_executor_destroy(nullptr);
    gearkv_crew_destroy(nullptr);
    gearkv_crew_release(nullptr, 1);
    gearkv_pool_destroy(nullptr);
    gearkv_workspace_destroy(nullptr);
    gearkv_config_init(nullptr, sizeof(config));
    gearkv_queries_init(nullptr, 8);
    CHECK(gearkv_crew_executor(nullptr) == nullptr);
    CHECK(gearkv_crew_help(nullptr, 1) == 0);
    CHECK(gearkv_pool_allocator(nullptr).allocate == nullptr);
    CHECK(gearkv_workspace_bytes(nullptr) == 0);
    CHECK(gearkv_cache_n_tokens(nullptr, 0) == 0);
    CHECK(gearkv_cache_first_token(nullptr, 0) == 0);
    CHECK(gearkv_cache_level(nullptr) == GEARKV_LEVEL_AUTOMATIC);
    CHECK(gearkv_cache_n_tokens(life.cache, 99) == 0);
    CHECK(gearkv_page_allocator(0, 0).allocate != nullptr);
    CHECK(gearkv_version_number() == GEARKV_VERSION_NUMBER);
    CHECK(std::string(gearkv_version()) == std::to_string(GEARKV_VERSION_MAJOR) + "." +
                                               std::to_string(GEARKV_VERSION_MINOR) + "." +
                                               std::to_string(GEARKV_VERSION_PATCH));
}

TEST_CASE("selections that make no sense are refused by C, and the output is untouched", "[c]") {
    Text text;
    Life life;  // 50 tokens, one KV head
    constexpr float nan = std::numeric_limits<float>::quiet_NaN();
    float out[16] = {3.0f};
    const auto attend = [&](const gearkv_queries& queries) {
        const gearkv_attend_request request = {life.cache, &queries, out, 16};
        const gearkv_code code = gearkv_cache_attend(life.cache, 0, &queries, out, 16, nullptr, text);
        CHECK(gearkv_attend_batch(0, &request, 1, nullptr, text) == code);
        return code;
    };
    for (const float share : {-0.1f, 1.5f, nan}) {
        CAPTURE(share);
        gearkv_queries queries = life.queries;
        queries.mass = share;
        CHECK(attend(queries) == invalid);
        CHECK(text.says("mass"));
        queries.mass = 0.0f;
        queries.most_share = share;
        CHECK(attend(queries) == invalid);
        CHECK(text.says("most_share"));
        queries.most_share = 0.0f;
        queries.negligible = share;
        CHECK(attend(queries) == invalid);
    }
    const gearkv_token_range whole[] = {{0, 50}};
    const std::size_t one = 1;
    gearkv_queries queries = life.queries;
    queries.ranges = whole;
    CHECK(attend(queries) == invalid);  // and nobody's
    queries.range_ends = &one;
    queries.mass = 0.5f;
    CHECK(attend(queries) == invalid);
    queries.mass = 0.0f;
    queries.ranges = nullptr;
    CHECK(attend(queries) == invalid);
    const gearkv_token_range bad[] = {{0, 51}, {7, 7}, {8, 7}, {UINT64_MAX, 0}, {0, UINT64_MAX}};
    for (const gearkv_token_range& range : bad) {
        CAPTURE(range.first, range.end);
        queries.ranges = &range;
        CHECK(attend(queries) == invalid);
        CHECK(text.says("of KV head 0"));
    }
    CHECK(out[0] == 3.0f);
    queries.ranges = whole;
    CHECK(attend(queries) == GEARKV_OK);
    // Of caches without a workspace of their own there is one to a call, and each only once.
    const gearkv_attend_request twice[] = {{life.cache, &queries, out, 16}, {life.cache, &queries, out, 16}};
    out[0] = 3.0f;
    CHECK(gearkv_attend_batch(0, twice, 2, nullptr, text) == invalid);
    CHECK(gearkv_attend_batch(1, twice, 1, nullptr, text) == invalid);
    CHECK(gearkv_attend_batch(0, twice, SIZE_MAX / 64, nullptr, text) != GEARKV_OK);
    CHECK(out[0] == 3.0f);
}

TEST_CASE("wrong values have codes of their own", "[c]") {
    Text text;
    Life life;
    gearkv_cache* cache = nullptr;
    gearkv_config config = usual();
    config.spec = nullptr;
    CHECK(gearkv_cache_create(&config, &cache, text) == GEARKV_BAD_SPEC);
    config.spec = "gear-five";
    CHECK(gearkv_cache_create(&config, &cache, text) == GEARKV_BAD_SPEC);
    CHECK(text.says("five"));
    config = usual();
    config.key_dim = 9;
    CHECK(gearkv_cache_create(&config, &cache, text) == GEARKV_WRONG_SIZE);
    config = usual();
    config.level = static_cast<gearkv_level>(77);
    CHECK(gearkv_cache_create(&config, &cache, text) == GEARKV_UNKNOWN_LEVEL);
    config = usual();
    config.allocator.release = nullptr;  // nothing to give back to
    CHECK(gearkv_cache_create(&config, &cache, text) == invalid);
    config = usual();
    config.allocator = gearkv_pool_allocator(nullptr);  // of a pool that could not be made
    CHECK(gearkv_cache_create(&config, &cache, text) == invalid);
    CHECK(cache == nullptr);

    float out[16] = {3.0f};
    CHECK(gearkv_cache_attend(life.cache, 0, &life.queries, out, 15, nullptr, text) == GEARKV_WRONG_SIZE);
    CHECK(gearkv_cache_attend(life.cache, 1, &life.queries, out, 16, nullptr, text) == invalid);
    CHECK(out[0] == 3.0f);
    CHECK(gearkv_cache_append(life.cache, 0, &life.view, &life.view, 51, nullptr, text) ==
          GEARKV_CAPACITY_EXCEEDED);
    life.rows[0] = 1e30f;
    CHECK(gearkv_cache_append(life.cache, 0, &life.view, &life.view, 1, nullptr, text) ==
          GEARKV_NOT_REPRESENTABLE);
    CHECK(gearkv_cache_n_tokens(life.cache, 0) == 50);
    CHECK(gearkv_cache_truncate(life.cache, 51, nullptr, text) == GEARKV_WRONG_SIZE);
    const gearkv_config usual_config = usual();
    gearkv_load_options load = {};
    CHECK(gearkv_cache_load("x", &config, &load, nullptr, &cache, nullptr, text) == invalid);
    CHECK(text.says("struct_size of options is 0"));
    load.struct_size = sizeof(load);
    load.loading = static_cast<gearkv_loading>(9);
    CHECK(gearkv_cache_load("x", &config, &load, nullptr, &cache, nullptr, text) == invalid);
    CHECK(text.says("loading 9"));
    load.loading = GEARKV_LOAD_COPY;
    load.n_room = 10;
    CHECK(gearkv_cache_load("x", &usual_config, &load, nullptr, &cache, nullptr, text) == invalid);
    CHECK(text.says("extra is null"));
    char small[4];
    CHECK(gearkv_format_spec("gear-4", small, sizeof(small), text) == GEARKV_WRONG_SIZE);

    std::uint64_t n = 7;
    gearkv_block_options block = {sizeof(block),         "kivi-4", GEARKV_KEYS, 64, 1, 64, 0, 0,
                                  GEARKV_LEVEL_AUTOMATIC};
    REQUIRE(gearkv_block_bytes(&block, &n, text) == GEARKV_OK);
    CHECK(n > 7);
    block.kind = static_cast<gearkv_kind>(3);
    CHECK(gearkv_block_bytes(&block, &n, text) == invalid);
    block.kind = GEARKV_VALUES;
    block.spec = "auto:3";
    CHECK(gearkv_block_bytes(&block, &n, text) == GEARKV_BAD_SPEC);
    // An error nobody wants to hear is one still.
    CHECK(gearkv_block_bytes(&block, &n, nullptr) == GEARKV_BAD_SPEC);
}

TEST_CASE("rows of other types come through C, and types that are none do not", "[c]") {
    Text text;
    Life life;
    // 0.5 in bf16, transposed: one head of 16 channels of 20 tokens.
    const std::vector<std::uint16_t> data(16 * 20, 0x3f00);
    gearkv_typed_rows rows = {sizeof(rows), data.data(), 1, 0, 20, GEARKV_BF16};
    const std::uint64_t before = gearkv_cache_n_tokens(life.cache, 0);
    REQUIRE(gearkv_cache_append_typed(life.cache, 0, &rows, &rows, 20, nullptr, text) == GEARKV_OK);
    CHECK(gearkv_cache_n_tokens(life.cache, 0) == before + 20);
    std::vector<std::uint16_t> read(2 * 16);
    REQUIRE(gearkv_cache_read_typed(life.cache, 0, before, 2, GEARKV_BF16, read.data(), read.size(), nullptr,
                                    0, text) == GEARKV_OK);
    CHECK(read == std::vector<std::uint16_t>(32, 0x3f00));

    rows.type = static_cast<gearkv_type>(256);
    CHECK(gearkv_cache_append_typed(life.cache, 0, &rows, &rows, 20, nullptr, text) == invalid);
    CHECK(text.says("type 256 of keys"));
    rows.type = GEARKV_BF16;
    CHECK(gearkv_cache_append_typed(life.cache, 0, nullptr, &rows, 20, nullptr, text) == invalid);
    CHECK(gearkv_cache_append_typed(nullptr, 0, &rows, &rows, 20, nullptr, text) == invalid);
    gearkv_typed_rows empty = {};
    CHECK(gearkv_cache_append_typed(life.cache, 0, &rows, &empty, 20, nullptr, text) == invalid);
    CHECK(text.says("struct_size of values is 0"));
    empty.struct_size = sizeof(empty);
    CHECK(gearkv_cache_append_typed(life.cache, 0, &rows, &empty, 20, nullptr, text) == invalid);
    CHECK(text.says("values are null"));
    CHECK(gearkv_cache_read_typed(life.cache, 0, 0, 1, static_cast<gearkv_type>(-1), read.data(), 16, nullptr,
                                  0, text) == invalid);
    CHECK(gearkv_cache_read_typed(nullptr, 0, 0, 1, GEARKV_F16, read.data(), 16, nullptr, 0, text) ==
          invalid);
    // Two tokens, transposed, and the attention of one query on every second place.
    gearkv_out_rows places = {sizeof(places), read.data(), read.size(), 1, 0, 2, GEARKV_BF16};
    std::fill(read.begin(), read.end(), std::uint16_t{0});
    REQUIRE(gearkv_cache_read_rows(life.cache, 0, before, 2, &places, nullptr, text) == GEARKV_OK);
    CHECK(read == std::vector<std::uint16_t>(32, 0x3f00));
    CHECK(gearkv_cache_read_rows(nullptr, 0, before, 2, &places, nullptr, text) == invalid);
    CHECK(gearkv_cache_read_rows(life.cache, 0, before, 3, nullptr, &places, text) == GEARKV_WRONG_SIZE);
    CHECK(text.says("values of layer 0"));
    places.channel_stride = 0;
    CHECK(gearkv_cache_read_rows(life.cache, 0, before, 2, &places, nullptr, text) == GEARKV_WRONG_SIZE);
    CHECK(text.says("do not overlap"));
    places.type = static_cast<gearkv_type>(3);
    CHECK(gearkv_cache_read_rows(life.cache, 0, before, 2, &places, nullptr, text) == invalid);
    places.struct_size = 4;
    CHECK(gearkv_cache_read_rows(life.cache, 0, before, 2, nullptr, &places, text) == invalid);
    CHECK(text.says("struct_size of values is 4"));
    CHECK(gearkv_cache_read_rows(life.cache, 0, before, 2, nullptr, nullptr, text) == GEARKV_OK);
    float apart[32] = {};
    gearkv_queries spread = life.queries;
    spread.out_channel_stride = 2;
    CHECK(gearkv_cache_attend(life.cache, 0, &spread, apart, 30, nullptr, text) == GEARKV_WRONG_SIZE);
    REQUIRE(gearkv_cache_attend(life.cache, 0, &spread, apart, 31, nullptr, text) == GEARKV_OK);
    CHECK((apart[0] == 0.5f && apart[1] == 0.0f && apart[30] == 0.5f));
    CHECK(gearkv_cache_n_tokens(life.cache, 0) == before + 20);

    // A program of the header before knew no types: what lies behind its queries is not theirs.
    float expected[16], found[16];
    REQUIRE(gearkv_cache_attend(life.cache, 0, &life.queries, expected, 16, nullptr, text) == GEARKV_OK);
    gearkv_queries old = life.queries;
    old.struct_size = offsetof(gearkv_queries, type);
    old.type = old.out_type = static_cast<gearkv_type>(77);
    REQUIRE(gearkv_cache_attend(life.cache, 0, &old, found, 16, nullptr, text) == GEARKV_OK);
    CHECK(std::memcmp(expected, found, sizeof(found)) == 0);
    old.struct_size = sizeof(old);
    CHECK(gearkv_cache_attend(life.cache, 0, &old, found, 16, nullptr, text) == invalid);
    CHECK(text.says("type 77 of queries"));
    old.type = GEARKV_F32;
    CHECK(gearkv_cache_attend(life.cache, 0, &old, found, 16, nullptr, text) == invalid);
    CHECK(text.says("type 77 of the output"));
    std::uint16_t short_found[16];
    old.out_type = GEARKV_BF16;
    REQUIRE(gearkv_cache_attend(life.cache, 0, &old, short_found, 16, nullptr, text) == GEARKV_OK);
    for (int i = 0; i < 16; ++i) {
        const std::uint32_t bits = std::uint32_t{short_found[i]} << 16;
        float x;
        std::memcpy(&x, &bits, sizeof(x));
        CHECK(std::fabs(x - expected[i]) <= std::fabs(expected[i]) / 256);
    }

    gearkv_block_options block = {sizeof(block), "f16", GEARKV_KEYS, 20, 1, 16, 0, 0, GEARKV_LEVEL_AUTOMATIC};
    std::uint64_t n = 0;
    REQUIRE(gearkv_block_bytes(&block, &n, text) == GEARKV_OK);
    void* bytes = std::aligned_alloc(64, (n + 63) / 64 * 64);
    REQUIRE(gearkv_compress_block_typed(bytes, n, &rows, &block, nullptr, text) == GEARKV_OK);
    std::vector<float> all(320);
    REQUIRE(gearkv_decompress_block(all.data(), all.size(), bytes, n, text) == GEARKV_OK);
    CHECK(all == std::vector<float>(320, 0.5f));
    CHECK(gearkv_compress_block_typed(bytes, n, nullptr, &block, nullptr, text) == invalid);
    std::free(bytes);
}

TEST_CASE("C raises the number of tokens there may be", "[c]") {
    Text text;
    const Life life;  // 50 of 100
    CHECK(gearkv_cache_append(life.cache, 0, &life.view, &life.view, 51, nullptr, text) ==
          GEARKV_CAPACITY_EXCEEDED);
    CHECK(gearkv_cache_reserve(nullptr, 200, text) == invalid);
    CHECK(gearkv_cache_reserve(life.cache, 0, text) == GEARKV_WRONG_SIZE);
    CHECK(gearkv_cache_reserve(life.cache, 200, text) == GEARKV_OK);
    CHECK(gearkv_cache_append(life.cache, 0, &life.view, &life.view, 51, nullptr, text) == GEARKV_OK);
}

TEST_CASE("a program of an older header leaves new fields as they are by default", "[c]") {
    Text text;
    gearkv_cache* cache = nullptr;
    // That header ended before spread_tokens; what lies behind is not the structure's.
    gearkv_config config;
    std::memset(static_cast<void*>(&config), 0xa5, sizeof(config));
    const std::size_t old_size = offsetof(gearkv_config, spread_tokens);
    gearkv_config_init(&config, old_size);
    CHECK(config.spread_tokens == 0xa5a5a5a5u);
    config.spec = "gear-4";
    config.n_layers = config.n_kv_heads = 1;
    config.key_dim = config.value_dim = 16;
    config.max_tokens = 100;
    REQUIRE(gearkv_cache_create(&config, &cache, text) == GEARKV_OK);

    gearkv_stats stats;
    std::memset(static_cast<void*>(&stats), 0x5a, sizeof(stats));
    stats.struct_size = offsetof(gearkv_stats, n_tokens);
    REQUIRE(gearkv_cache_get_stats(cache, &stats, text) == GEARKV_OK);
    CHECK(stats.struct_size == offsetof(gearkv_stats, n_tokens));
    CHECK((stats.bytes > 0 && stats.n_tokens == 0x5a5a5a5a5a5a5a5aull));
    gearkv_cache_destroy(cache);
}

TEST_CASE("a program of a newer header may not ask for what this library does not know", "[c]") {
    struct Newer {
        gearkv_config config;
        std::uint64_t flag = 0;
    } newer;
    Text text;
    gearkv_config_init(&newer.config, sizeof(newer));
    CHECK((newer.flag == 0 && newer.config.struct_size == sizeof(newer) && newer.config.spread_tokens == 16));
    newer.config.spec = "gear-4";
    newer.config.n_layers = newer.config.n_kv_heads = 1;
    newer.config.key_dim = newer.config.value_dim = 16;
    newer.config.max_tokens = 100;
    gearkv_cache* cache = nullptr;
    REQUIRE(gearkv_cache_create(&newer.config, &cache, text) == GEARKV_OK);
    gearkv_cache_destroy(cache);
    cache = nullptr;
    newer.flag = 1;
    CHECK(gearkv_cache_create(&newer.config, &cache, text) == invalid);
    CHECK(text.says("this library knows"));
    newer.config.struct_size = 0;
    CHECK(gearkv_cache_create(&newer.config, &cache, text) == invalid);
    CHECK(text.says("struct_size of config is 0"));
    CHECK(cache == nullptr);

    struct NewerStats {
        gearkv_stats stats = {};
        std::uint64_t more = 9;
    } stats;
    stats.stats.struct_size = sizeof(stats);
    const gearkv_config config = usual();
    REQUIRE(gearkv_bytes_required(&config, 50, 50, &stats.stats, text) == GEARKV_OK);
    CHECK((stats.stats.bytes > 0 && stats.more == 0));
}

TEST_CASE("workspaces, pools and crews serve caches of C", "[c]") {
    Text text;
    gearkv_pool* pool = nullptr;
    gearkv_workspace* workspace = nullptr;
    gearkv_crew* crew = nullptr;
    REQUIRE(gearkv_pool_create(1 << 22, 1 << 16, nullptr, &pool, text) == GEARKV_OK);
    const gearkv_allocator from_pool = gearkv_pool_allocator(pool);
    REQUIRE(gearkv_workspace_create(&from_pool, &workspace, text) == GEARKV_OK);
    REQUIRE(gearkv_crew_create(2, &crew, text) == GEARKV_OK);
    CHECK(gearkv_executor_n_threads(gearkv_crew_executor(crew)) == 2);

    const Life life;
    gearkv_config config = usual();
    config.workspace = workspace;
    config.allocator = from_pool;
    constexpr std::size_t n = 20;
    gearkv_cache* caches[n] = {};
    std::vector<float> outs(n * 16), alone(16);
    gearkv_attend_request requests[n];
    for (std::size_t i = 0; i < n; ++i) {
        REQUIRE(gearkv_cache_create(&config, &caches[i], text) == GEARKV_OK);
        REQUIRE(gearkv_cache_append(caches[i], 0, &life.view, &life.view, 20, gearkv_crew_executor(crew),
                                    text) == GEARKV_OK);
        requests[i] = {caches[i], &life.queries, &outs[i * 16], 16};
    }
    REQUIRE(gearkv_attend_batch(0, requests, n, gearkv_crew_executor(crew), text) == GEARKV_OK);
    gearkv_crew_release(crew, 1);
    CHECK(gearkv_crew_help(crew, 1) == 1);  // the door is closed
    REQUIRE(gearkv_cache_attend(caches[3], 0, &life.queries, alone.data(), 16, nullptr, text) == GEARKV_OK);
    CHECK(std::memcmp(alone.data(), &outs[3 * 16], 64) == 0);

    gearkv_pool_stats stats = {};
    stats.struct_size = sizeof(stats);
    REQUIRE(gearkv_pool_get_stats(pool, &stats, text) == GEARKV_OK);
    CHECK((stats.n_bytes == 1 << 22 && stats.n_blocks > 0 && stats.n_refused == 0));
    for (gearkv_cache* cache : caches)
        gearkv_cache_destroy(cache);
    CHECK(gearkv_workspace_bytes(workspace) > 0);
    gearkv_workspace_destroy(workspace);
    gearkv_crew_destroy(crew);
    REQUIRE(gearkv_pool_get_stats(pool, &stats, text) == GEARKV_OK);
    CHECK(stats.held_bytes == 0);
    gearkv_pool_destroy(pool);
}

TEST_CASE("a state goes through memory and functions of C", "[c]") {
    Text text;
    const Life life;
    const gearkv_config config = usual();
    gearkv_save_options save = {};
    save.struct_size = sizeof(save);
    save.extra = "note";
    save.n_extra = 4;
    std::uint64_t n_bytes = 0;
    REQUIRE(gearkv_state_bytes(life.cache, &save, &n_bytes, text) == GEARKV_OK);
    std::vector<unsigned char> bytes(n_bytes), streamed;
    std::size_t n_written = 0;
    CHECK(gearkv_cache_save_to_memory(life.cache, bytes.data(), n_bytes - 1, &save, nullptr, &n_written,
                                      text) == GEARKV_WRONG_SIZE);
    REQUIRE(gearkv_cache_save_to_memory(life.cache, bytes.data(), n_bytes, &save, nullptr, &n_written,
                                        text) == GEARKV_OK);
    CHECK(n_written == n_bytes);
    const auto write = [](void* context, const void* piece, std::size_t n) {
        auto* to = static_cast<std::vector<unsigned char>*>(context);
        const auto* from = static_cast<const unsigned char*>(piece);
        to->insert(to->end(), from, from + n);
        return 1;
    };
    REQUIRE(gearkv_cache_save_through(life.cache, write, &streamed, &save, nullptr, text) == GEARKV_OK);
    CHECK(streamed == bytes);
    const auto refuse = [](void*, const void*, std::size_t) { return 0; };
    CHECK(gearkv_cache_save_through(life.cache, refuse, nullptr, &save, nullptr, text) ==
          GEARKV_WRITE_FAILED);

    char note[8];
    gearkv_load_options load = {};
    load.struct_size = sizeof(load);
    load.extra = note;
    load.n_room = sizeof(note);
    struct Place {
        const std::vector<unsigned char>* bytes;
        std::size_t at;
    } place = {&bytes, 0};
    const auto read = [](void* context, void* to, std::size_t n, std::size_t* n_read) {
        auto* from = static_cast<Place*>(context);
        *n_read = std::min<std::size_t>(std::min<std::size_t>(n, 7), from->bytes->size() - from->at);
        std::memcpy(to, from->bytes->data() + from->at, *n_read);
        from->at += *n_read;
        return 1;
    };
    std::vector<float> expected(16), found(16);
    REQUIRE(gearkv_cache_attend(life.cache, 0, &life.queries, expected.data(), 16, nullptr, text) ==
            GEARKV_OK);
    for (const bool through : {false, true}) {
        gearkv_cache* cache = nullptr;
        std::size_t n_extra = 0;
        const gearkv_code code =
            through ? gearkv_cache_load_through(read, &place, &config, &load, nullptr, &cache, &n_extra, text)
                    : gearkv_cache_load_from_memory(bytes.data(), bytes.size(), &config, &load, nullptr,
                                                    &cache, &n_extra, text);
        INFO(text.error.message);
        REQUIRE(code == GEARKV_OK);
        CHECK((n_extra == 4 && std::memcmp(note, "note", 4) == 0));
        REQUIRE(gearkv_cache_attend(cache, 0, &life.queries, found.data(), 16, nullptr, text) == GEARKV_OK);
        CHECK(found == expected);
        gearkv_cache_destroy(cache);
    }
    gearkv_cache* cache = nullptr;
    const std::vector<unsigned char> half(bytes.begin(),
                                          bytes.begin() + static_cast<std::ptrdiff_t>(n_bytes / 2));
    place = {&half, 0};
    CHECK(gearkv_cache_load_through(read, &place, &config, &load, nullptr, &cache, nullptr, text) ==
          GEARKV_TRUNCATED);
    const auto fail = [](void*, void*, std::size_t, std::size_t*) { return 0; };
    CHECK(gearkv_cache_load_through(fail, nullptr, &config, &load, nullptr, &cache, nullptr, text) ==
          GEARKV_READ_FAILED);
    save.n_tokens = 20;
    REQUIRE(gearkv_cache_save_to_memory(life.cache, bytes.data(), n_bytes, &save, nullptr, &n_written,
                                        text) == GEARKV_OK);
    REQUIRE(gearkv_cache_load_from_memory(bytes.data(), n_written, &config, &load, nullptr, &cache, nullptr,
                                          text) == GEARKV_OK);
    CHECK(gearkv_cache_n_tokens(cache, 0) == 20);
    gearkv_cache_destroy(cache);
}

TEST_CASE("a block is the same bytes from C and comes back", "[c]") {
    Text text;
    const Life life;
    gearkv_block_options block = {sizeof(block),         "paper:gear-4", GEARKV_VALUES, 64, 1, 16, 0, 0,
                                  GEARKV_LEVEL_AUTOMATIC};
    std::uint64_t n = 0;
    REQUIRE(gearkv_block_bytes(&block, &n, text) == GEARKV_OK);
    const gearkv_allocator memory = gearkv_default_allocator();
    void* bytes = memory.allocate(memory.context, n, 64);
    std::vector<float> out(64 * 16);
    CHECK(gearkv_compress_block(bytes, n - 1, &life.view, &block, nullptr, text) == GEARKV_WRONG_SIZE);
    REQUIRE(gearkv_compress_block(bytes, n, &life.view, &block, nullptr, text) == GEARKV_OK);
    REQUIRE(gearkv_decompress_block(out.data(), out.size(), bytes, n, text) == GEARKV_OK);
    CHECK(out[100] == Approx(0.5f).margin(1e-3));
    CHECK(gearkv_decompress_block(out.data(), out.size() - 1, bytes, n, text) == GEARKV_WRONG_SIZE);
    static_cast<unsigned char*>(bytes)[0] ^= 1;
    CHECK(gearkv_decompress_block(out.data(), out.size(), bytes, n, text) == GEARKV_BAD_BLOCK);
    memory.release(memory.context, bytes, n);
}

TEST_CASE("layers of different shapes, and an older header that knows none", "[c]") {
    Text text;
    const gearkv_layer_dims dims[] = {{1, 16, 16}, {0, 0, 0}, {2, 32, 8}};
    gearkv_config config = usual();
    config.n_layers = 3;
    config.dims = dims;
    gearkv_cache* cache = nullptr;
    CHECK(gearkv_cache_create(&config, &cache, text) == invalid);
    CHECK(text.says("1 heads of 16 and 16 channels beside dims"));
    gearkv_config older = config;
    older.struct_size = offsetof(gearkv_config, dims);  // what lies behind is none of it
    REQUIRE(gearkv_cache_create(&older, &cache, text) == GEARKV_OK);
    gearkv_cache_destroy(cache);
    config.n_kv_heads = config.key_dim = config.value_dim = 0;
    REQUIRE(gearkv_cache_create(&config, &cache, text) == GEARKV_OK);
    const std::vector<float> rows(64, 0.5f);
    const gearkv_rows keys = {rows.data(), 64, 32}, values = {rows.data(), 16, 8};
    CHECK(gearkv_cache_append(cache, 1, &keys, &values, 1, nullptr, text) == GEARKV_NO_KEYS);
    CHECK(text.says("layer 1 has 0 KV heads"));
    REQUIRE(gearkv_cache_append(cache, 2, &keys, &values, 1, nullptr, text) == GEARKV_OK);
    gearkv_queries queries;
    gearkv_queries_init(&queries, sizeof(queries));
    queries.data = rows.data();
    queries.n_queries = 1;
    queries.n_heads = 2;
    queries.head_stride = 32;
    queries.scale = 0.1f;
    float out[16];
    CHECK(gearkv_cache_attend(cache, 2, &queries, out, 15, nullptr, text) == GEARKV_WRONG_SIZE);
    CHECK(text.says("outputs of layer 2"));
    REQUIRE(gearkv_cache_attend(cache, 2, &queries, out, 16, nullptr, text) == GEARKV_OK);
    CHECK(out[15] == 0.5f);

    const gearkv::testing::TemporaryFile file;
    REQUIRE(gearkv_cache_save(cache, file.path(), nullptr, nullptr, nullptr, text) == GEARKV_OK);
    gearkv_cache_destroy(cache);
    gearkv_state_info info = {};
    info.struct_size = sizeof(info);
    REQUIRE(gearkv_inspect_state(file.path(), &info, text) == GEARKV_OK);
    CHECK((info.version == 2 && info.n_layers == 3 && info.n_kv_heads == 0 && info.n_tokens == 1));
    gearkv_layer_dims found[3] = {};
    CHECK(gearkv_state_dims(file.path(), nullptr, 3, text) == invalid);
    CHECK(gearkv_state_dims(nullptr, found, 3, text) == invalid);
    CHECK(gearkv_state_dims(file.path(), found, 2, text) == GEARKV_WRONG_SIZE);
    CHECK(found[0].n_kv_heads == 0);
    REQUIRE(gearkv_state_dims(file.path(), found, 3, text) == GEARKV_OK);
    CHECK(std::memcmp(found, dims, sizeof(dims)) == 0);
    cache = nullptr;
    REQUIRE(gearkv_cache_load(file.path(), &config, nullptr, nullptr, &cache, nullptr, text) == GEARKV_OK);
    CHECK(gearkv_cache_n_tokens(cache, 2) == 1);
    gearkv_cache_destroy(cache);
}
