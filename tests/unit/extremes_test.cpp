// Numbers at the ends of what floats can hold: every finite query, scale, slope, mask, sink and cap has the
// answer of double precision.
#include <string>

#include "rules.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_kv_heads = 2, n_heads = 6, dim = 64, n_queries = 2;
constexpr float most = std::numeric_limits<float>::max();

// Queries that one case makes extreme.
struct Case {
    std::size_t n_tokens;
    std::vector<float> data, slopes, sinks, mask;
    Queries queries;

    explicit Case(std::size_t n) : n_tokens(n) {
        const Tensor q = gaussian(n_queries, n_heads, dim, 3);
        data = to_floats(q);
        queries = queries_of(data, q, true);
    }
    void scale_queries(float factor) {
        for (float& x : data)
            x *= factor;
    }
    void use_slopes(std::vector<float> all) {
        slopes = std::move(all);
        queries.slopes = slopes.data();
    }
    void use_sinks(std::vector<float> all) {
        sinks = std::move(all);
        queries.sinks = sinks.data();
    }
    // Of every third token one number, of the others another one.
    void use_mask(float third, float other) {
        for (std::size_t t = 0; t < n_tokens; ++t)
            mask.push_back(t % 3 == 0 ? third : other);
        queries.mask = mask.data();
    }
};

struct Extreme {
    const char* name;
    void (*set)(Case*);
    double slack = 1.0;
};

const Extreme extremes[] = {
    {"queries of 1e37", [](Case* c) { c->scale_queries(1e37f); }},
    {"queries of 1e37, softly capped",
     [](Case* c) {
         c->scale_queries(1e37f);
         c->queries.soft_cap = 5.0f;
     },
     10.0},  // every score is 5 or -5: rounding decides where the sum is about 0
    {"a scale of 3e38", [](Case* c) { c->queries.scale = 3e38f; }},
    {"a scale of -3e38 and queries of 1e37",
     [](Case* c) {
         c->queries.scale = -3e38f;
         c->scale_queries(1e37f);
     }},
    {"the largest of both, and a window",
     [](Case* c) {
         c->queries.scale = most;
         c->scale_queries(5e37f);
         c->queries.window = 60;
     }},
    {"scores just below what floats hold", [](Case* c) { c->scale_queries(1e30f); }},
    {"slopes of both signs",
     [](Case* c) {
         c->use_slopes({-1e38f, 1e38f, most, -most, -1e30f, 0.5f});
     }},
    {"slopes and huge queries",
     [](Case* c) {
         c->use_slopes({-1e38f, 1e38f, most, -most, -1e30f, 0.5f});
         c->scale_queries(1e37f);
     }},
    {"slopes, sinks and a cap",
     [](Case* c) {
         c->use_slopes({-1e38f, 1e38f, most, -most, -1e30f, 0.5f});
         c->use_sinks({most, -most, 1e38f, 0.0f, minus_infinity, -1.0f});
         c->queries.soft_cap = most;
     }},
    {"the lowest float as a mask", [](Case* c) { c->use_mask(-most, 0.0f); }},
    {"the lowest float for all tokens", [](Case* c) { c->use_mask(-most, -most); }},
    {"the highest float as a mask", [](Case* c) { c->use_mask(most, -most); }},
    {"masks over huge scores",
     [](Case* c) {
         c->use_mask(-most, minus_infinity);
         c->scale_queries(1e37f);
     }},
    {"masks of the highest float over huge scores",
     [](Case* c) {
         c->use_mask(most, 0.0f);
         c->queries.scale = 3e38f;
     }},
    {"sinks of the highest and lowest float",
     [](Case* c) {
         c->use_sinks({most, -most, most, -most, 1e38f, minus_infinity});
     }},
    {"sinks beside huge scores",
     [](Case* c) {
         c->use_sinks({most, -most, most, -most, 1e38f, minus_infinity});
         c->queries.scale = 3e38f;
     }},
    {"a cap of 1e6", [](Case* c) { c->queries.soft_cap = 1e6f; }},
    {"a cap of 1e20", [](Case* c) { c->queries.soft_cap = 1e20f; }},
    {"a cap of 3e38", [](Case* c) { c->queries.soft_cap = 3e38f; }},
    {"a cap of 1e-40", [](Case* c) { c->queries.soft_cap = 1e-40f; }},
    {"queries of 1e-38", [](Case* c) { c->scale_queries(1e-38f); }},
    {"denormal queries", [](Case* c) { c->scale_queries(1e-43f); }},
    {"a denormal scale", [](Case* c) { c->queries.scale = 1e-44f; }},
    {"denormal queries with slopes",
     [](Case* c) {
         c->scale_queries(1e-43f);
         c->use_slopes({-1e38f, 1e38f, most, 0.0f, -1e30f, 0.5f});
     }},
};

}  // namespace

TEST_CASE("extreme numbers have the answer of double precision", "[extremes]") {
    for (const char* spec : {"f16", "f32", "gear-4", "q8", "paper:gear-4:s=0.05", "k=gear-2;v=kcvt-4"}) {
        for (const std::size_t n : {300, 2300}) {  // in one part and in several
            if (n == 2300 && spec[0] != 'f' && spec[0] != 'g') continue;
            const Tensor k = gaussian(n, n_kv_heads, dim, 1), v = gaussian(n, n_kv_heads, dim, 2);
            auto cache = make_cache(make_config(spec, n_kv_heads, dim, dim, n));
            REQUIRE(append(cache.get(), k, v, 0, n).ok());
            REQUIRE(cache->compress(0, serial_executor()).ok());
            const auto [kept_k, kept_v] = read_all(cache.get());
            for (const Extreme& extreme : extremes) {
                Case one(n);
                extreme.set(&one);
                const Tensor q = to_tensor(one.data.data(), n_queries, n_heads, dim);
                const Tensor found = attend_with(cache.get(), one.queries, dim);
                const double error =
                    reference::relative_error(expected_output(one.queries, q, kept_k, kept_v), found);
                CAPTURE(spec, n, extreme.name, error);
                CHECK(error < 3.0 * extreme.slack * attention_tolerance(*cache));
            }
        }
    }
}

TEST_CASE("equal scores share the weight, however large they are", "[extremes]") {
    for (const char* spec : {"f16", "f32", "gear-4", "paper:gear-4", "q8"}) {
        constexpr std::size_t n = 400;
        Tensor k = {n, n_kv_heads, dim, std::vector<double>(n * n_kv_heads * dim, 1.0)};
        const Tensor v = gaussian(n, n_kv_heads, dim, 2);
        auto cache = make_cache(make_config(spec, n_kv_heads, dim, dim, n));
        REQUIRE(append(cache.get(), k, v, 0, n).ok());
        REQUIRE(cache->compress(0, serial_executor()).ok());
        const auto [kept_k, kept_v] = read_all(cache.get());
        const std::vector<float> largest(n_heads * dim, 3e38f), lowest(n_heads * dim, -3e38f);
        for (const std::vector<float>& data : {largest, lowest}) {
            Queries queries;
            queries.data = data.data();
            queries.query_stride = n_heads * dim;
            queries.head_stride = dim;
            queries.n_queries = 1;
            queries.n_heads = n_heads;
            queries.scale = 0.125f;
            const Tensor found = attend_with(cache.get(), queries, dim);
            bool all_finite = true;
            for (const double x : found.data)
                all_finite &= std::isfinite(x);
            CAPTURE(spec, static_cast<double>(data[0]));
            CHECK(all_finite);
            const bool exact = spec[0] == 'f';
            double worst = 0.0;
            for (std::size_t c = 0; c < dim; ++c) {
                double mean = 0.0;
                for (std::size_t t = 0; t < n; ++t)
                    mean += kept_v.at(t, 0, c) / n;
                worst = std::max(worst, std::fabs(mean - found.at(0, 0, c)));
            }
            if (exact) CHECK(worst < 1e-5);
        }
    }
}

TEST_CASE("an f32 cache takes entries up to 2^64, and all of them are attended", "[extremes]") {
    constexpr std::size_t n = 300;
    Tensor k = gaussian(n, n_kv_heads, dim, 1), v = gaussian(n, n_kv_heads, dim, 2);
    for (double& x : k.data)
        x *= 3e18;
    for (double& x : v.data)
        x *= 3e18;
    auto cache = make_cache(make_config("f32", n_kv_heads, dim, dim, n));
    REQUIRE(append(cache.get(), k, v, 0, n - 1).ok());
    const auto [kept_k, kept_v] = read_all(cache.get());
    for (const float factor : {1e-30f, 1e-19f, 1.0f, 1e20f}) {
        Case one(n - 1);
        one.scale_queries(factor);
        const Tensor q = to_tensor(one.data.data(), n_queries, n_heads, dim);
        const Tensor found = attend_with(cache.get(), one.queries, dim);
        CAPTURE(factor);
        CHECK(reference::relative_error(expected_output(one.queries, q, kept_k, kept_v), found) < 1e-4);
    }
    for (Tensor* tensor : {&k, &v}) {
        tensor->data.back() = 2e19;
        CHECK(append(cache.get(), k, v, n - 1, 1).code() == Code::not_representable);
        tensor->data.back() = 0.0;
    }
    CHECK(cache->n_tokens(0) == n - 1);
}
