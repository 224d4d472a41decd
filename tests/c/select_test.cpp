// Attention that reads less, asked for through the C ABI.
#include <cmath>
#include <vector>

#include "gearkv/gearkv.h"
#include "support/catch.hpp"

TEST_CASE("selections through the C ABI have the bits of full attention when they take everything", "[c]") {
    gearkv_config config;
    gearkv_config_init(&config, sizeof(config));
    config.spec = "gear-4";
    config.n_layers = config.n_kv_heads = 1;
    config.key_dim = config.value_dim = 16;
    config.max_tokens = 1000;
    gearkv_cache* cache = nullptr;
    REQUIRE(gearkv_cache_create(&config, &cache, nullptr) == GEARKV_OK);
    std::vector<float> rows(900 * 16);
    for (std::size_t i = 0; i < rows.size(); ++i)
        rows[i] = std::sin(0.37f * static_cast<float>(i % 977)) +
                  (i / 16 / 128 % 2 == 0 ? 0.0f : std::cos(static_cast<float>(i % 16)));
    const gearkv_rows view = {rows.data(), 16, 16};
    REQUIRE(gearkv_cache_append(cache, 0, &view, &view, 900, nullptr, nullptr) == GEARKV_OK);
    REQUIRE(gearkv_cache_compress(cache, 0, nullptr, nullptr) == GEARKV_OK);
    gearkv_queries queries;
    gearkv_queries_init(&queries, sizeof(queries));
    queries.data = rows.data() + 160;
    queries.query_stride = queries.head_stride = 16;
    queries.n_queries = queries.n_heads = 1;
    const auto attend = [&](const gearkv_queries& asked) {
        std::vector<float> out(16, -1.0f);
        REQUIRE(gearkv_cache_attend(cache, 0, &asked, out.data(), 16, nullptr, nullptr) == GEARKV_OK);
        return out;
    };
    queries.scale = 1e-3f;
    const std::vector<float> all = attend(queries);
    gearkv_queries asked = queries;
    asked.mass = asked.most_share = 1.0f;
    CHECK(attend(asked) == all);
    asked.mass = asked.most_share = 0.0f;  // stand for 1
    CHECK(attend(asked) == all);
    asked.mass = 0.9999999f;
    CHECK(attend(asked) == all);
    asked.mass = 0.0f;
    asked.most_share = 0.9999999f;
    CHECK(attend(asked) == all);
    const gearkv_token_range ranges[] = {{0, 130}, {130, 131}, {131, 900}};
    const std::size_t ends[] = {3};
    asked = queries;
    asked.ranges = ranges;
    asked.range_ends = ends;
    CHECK(attend(asked) == all);
    asked = queries;
    asked.mass = 0.3f;
    CHECK(attend(asked) != all);
    gearkv_layer_stats stats = {};
    stats.struct_size = sizeof(stats);
    REQUIRE(gearkv_cache_get_layer_stats(cache, 0, &stats, nullptr) == GEARKV_OK);
    CHECK(stats.n_selections == 4);
    CHECK((stats.share_read > 0.3 && stats.share_read < 1.0));
    gearkv_cache_destroy(cache);
}
