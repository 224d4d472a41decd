// What is done to scores beyond the scale: against attention in double precision with the same rules.
#include "rules.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

// Arrays that queries point to.
struct Rules {
    std::vector<float> slopes, sinks, mask;

    Rules(std::size_t n_heads, std::size_t n_queries, std::size_t n_tokens) {
        std::mt19937 random(7);
        for (std::size_t h = 0; h < n_heads; ++h) {
            slopes.push_back(std::exp2(-1.0f - static_cast<float>(h)));
            sinks.push_back(h % 3 == 2 ? minus_infinity : static_cast<float>(h) - 2.0f);
        }
        for (std::size_t i = 0; i < n_heads * n_queries * n_tokens; ++i) {
            const std::uint32_t any = random();
            mask.push_back(any % 5 == 0 ? minus_infinity : static_cast<float>(any % 1000) / 500.0f - 1.0f);
        }
    }
};

}  // namespace

TEST_CASE("soft cap, slopes, masks, windows and sinks change scores as they say", "[rules][shapes]") {
    const auto spec = GENERATE(as<std::string>{}, "f32", "gear-4", "paper:gear-2:s=0.1", "k=gear-2;v=kivi-4");
    constexpr std::size_t n = 520, n_kv_heads = 2, n_heads = 14, dim = 64, n_queries = 3;
    const Tensor k = gaussian(n, n_kv_heads, dim, 1), v = gaussian(n, n_kv_heads, dim, 2),
                 q = gaussian(n_queries, n_heads, dim, 3);
    auto cache = make_cache(make_config(spec, n_kv_heads, dim, dim));
    REQUIRE(append(cache.get(), k, v, 0, 400).ok());
    REQUIRE(append(cache.get(), k, v, 400, 120).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const auto [kept_k, kept_v] = read_all(cache.get());
    const std::vector<float> data = to_floats(q);
    const Rules rules(n_heads, n_queries, n);
    // A bit for each rule: alone, in some pairs, and all.
    for (const unsigned set : {0u, 1u, 2u, 4u, 8u, 16u, 3u, 12u, 20u, 24u, 15u, 31u}) {
        for (const bool causal : {true, false}) {
            Queries queries = queries_of(data, q, causal);
            queries.scale *= 3.0f;
            if ((set & 1) != 0) queries.soft_cap = 4.0f;
            if ((set & 2) != 0) queries.slopes = rules.slopes.data();
            if ((set & 4) != 0) {
                queries.mask = rules.mask.data();
                queries.mask_query_stride = n_heads * n;
                queries.mask_head_stride = set % 8 == 4 ? 0 : n;
            }
            if ((set & 8) != 0) queries.window = set % 16 == 8 ? 5 : 333;
            if ((set & 16) != 0) queries.sinks = rules.sinks.data();
            const Tensor found = attend_with(cache.get(), queries, dim);
            CAPTURE(spec, set, causal);
            CHECK(reference::relative_error(expected_output(queries, q, kept_k, kept_v), found) <
                  attention_tolerance(*cache));
        }
    }
}

TEST_CASE("a query that sees nothing has an output of zeros", "[rules]") {
    const auto spec = GENERATE(as<std::string>{}, "f32", "gear-4");
    const Tensor k = gaussian(300, 1, 64, 1), v = gaussian(300, 1, 64, 2), q = gaussian(1, 2, 64, 3);
    auto cache = make_cache(make_config(spec, 1, 64, 64));
    REQUIRE(append(cache.get(), k, v, 0, 300).ok());
    const std::vector<float> data = to_floats(q), mask(300, minus_infinity), sinks = {1.0f, 2.0f};
    Queries queries = queries_of(data, q, true);
    queries.mask = mask.data();
    for (const bool has_sinks : {false, true}) {
        queries.sinks = has_sinks ? sinks.data() : nullptr;
        const Tensor out = attend_with(cache.get(), queries, 64);
        for (const double x : out.data)
            CHECK(x == 0.0);
    }
}

TEST_CASE("rules that are no numbers are refused and leave the output alone", "[rules]") {
    const Tensor k = gaussian(30, 1, 64, 1), v = gaussian(30, 1, 64, 2), q = gaussian(2, 2, 64, 3);
    auto cache = make_cache(make_config("gear-4", 1, 64, 64));
    REQUIRE(append(cache.get(), k, v, 0, 30).ok());
    const std::vector<float> data = to_floats(q);
    const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = -minus_infinity;
    const auto check = [&](Code code, const char* part, const auto& change) {
        Queries queries = queries_of(data, q, true);
        change(queries);
        std::vector<float> out(2 * 2 * 64, -1.0f);
        const Status status = cache->attend(0, queries, out.data(), out.size(), serial_executor());
        CHECK(status.code() == code);
        INFO(status.message());
        CHECK(std::string(status.message()).find(part) != std::string::npos);
        CHECK(std::all_of(out.begin(), out.end(), [](float x) { return x == -1.0f; }));
    };
    for (const float bad : {nan, infinity, -1.0f})
        check(Code::invalid_argument, "soft_cap", [&](Queries& x) { x.soft_cap = bad; });
    for (const float bad : {nan, 1.0f, -0.5f})
        check(Code::invalid_argument, "negligible", [&](Queries& x) { x.negligible = bad; });
    const std::vector<float> bad_slopes = {1.0f, minus_infinity}, bad_sinks = {nan, 0.0f};
    check(Code::non_finite, "slope of head 1", [&](Queries& x) { x.slopes = bad_slopes.data(); });
    check(Code::non_finite, "sink of head 0", [&](Queries& x) { x.sinks = bad_sinks.data(); });
    for (const float bad : {nan, infinity}) {
        std::vector<float> mask(60, 0.0f);
        mask[30 + 17] = bad;
        check(Code::non_finite, "mask of query 1, head 0, token 17", [&](Queries& x) {
            x.mask = mask.data();
            x.mask_query_stride = 30;
        });
    }
}

TEST_CASE("values without a weight worth reading are left out within the bound", "[rules]") {
    const auto spec = GENERATE(as<std::string>{}, "f32", "gear-4", "paper:gear-3");
    constexpr std::size_t n = 900, dim = 64;
    Tensor k = gaussian(n, 1, dim, 1);
    const Tensor v = gaussian(n, 1, dim, 2), q = gaussian(1, 4, dim, 3);
    // Most tokens after the first 128 point away from all queries.
    for (std::size_t t = 128; t < n; ++t) {
        if (t / 128 == 3) continue;
        for (std::size_t c = 0; c < dim; ++c) {
            double sum = 0.0;
            for (std::size_t h = 0; h < 4; ++h)
                sum += q.at(0, h, c);
            k.at(t, 0, c) = -0.8 * sum;
        }
    }
    auto cache = make_cache(make_config(spec, 1, dim, dim));
    REQUIRE(append(cache.get(), k, v, 0, n).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const std::vector<float> data = to_floats(q);
    Queries queries = queries_of(data, q, true);
    const Tensor all = attend_with(cache.get(), queries, dim);
    queries.negligible = 0.01f;
    const Tensor some = attend_with(cache.get(), queries, dim);
    CAPTURE(spec);
    CHECK((some.data != all.data));  // something was left out
    CHECK(reference::relative_error(all, some) < 0.05);
    queries.negligible = 0.5f;
    queries.scale = 1e-6f;  // all tokens weigh the same
    CHECK(attend_with(cache.get(), queries, dim).n_tokens == 1);
}

TEST_CASE("tokens split over tasks give the same bits on any number of threads", "[rules][split][thread]") {
    const auto spec = GENERATE(as<std::string>{}, "f16", "gear-4", "paper:gear-3");
    constexpr std::size_t n = 3400, n_heads = 3, dim = 64;
    const Tensor k = gaussian(n, 1, dim, 1), v = gaussian(n, 1, dim, 2), q = gaussian(2, n_heads, dim, 3);
    const std::vector<float> data = to_floats(q), sinks = {0.5f, minus_infinity, 3.0f};
    Queries queries = queries_of(data, q, true);
    queries.sinks = sinks.data();
    Tensor first;
    for (const unsigned n_threads : {1u, 2u, 3u, 7u}) {
        std::unique_ptr<Executor> executor;
        REQUIRE(create_executor(n_threads, &executor).ok());
        auto cache = make_cache(make_config(spec, 1, dim, dim, 6000));
        REQUIRE(append(cache.get(), k, v, 0, 2600, 0, *executor).ok());
        REQUIRE(append(cache.get(), k, v, 2600, 800, 0, *executor).ok());
        const Tensor found = attend_with(cache.get(), queries, dim, *executor);
        if (n_threads > 1) {
            CHECK(found.data == first.data);
            continue;
        }
        first = found;
        const auto [kept_k, kept_v] = read_all(cache.get());
        CAPTURE(spec);
        CHECK(reference::relative_error(expected_output(queries, q, kept_k, kept_v), found) <
              attention_tolerance(*cache));
        // A later window leaves whole parts without a token.
        queries.window = 40;
        CHECK(reference::relative_error(expected_output(queries, q, kept_k, kept_v),
                                        attend_with(cache.get(), queries, dim)) <
              attention_tolerance(*cache));
        queries.window = 0;
    }
}
