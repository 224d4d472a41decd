// Attention that reads some of the tokens: sections by their estimated mass, and ranges of the caller's.
#include <cstring>

#include "gearkv/state.hpp"
#include "rules.hpp"
#include "support/temporary_file.hpp"

namespace gearkv::testing {
namespace {

constexpr std::size_t n_heads = 4, n_kv_heads = 2, dim = 64;

// Text-like: every 256 tokens have a direction of their own, which keys lean to and queries like.
struct Topics {
    Tensor keys, values, queries;

    explicit Topics(std::size_t n, std::size_t n_queries = 1)
        : keys(gaussian(n, n_kv_heads, dim, 1)),
          values(gaussian(n, n_kv_heads, dim, 2)),
          queries(gaussian(n_queries, n_heads, dim, 3)) {
        const Tensor topics = gaussian(n / 256 + 1, 1, dim, 4);
        for (std::size_t t = 0; t < n; ++t) {
            for (std::size_t h = 0; h < n_kv_heads; ++h) {
                for (std::size_t c = 0; c < dim; ++c)
                    keys.at(t, h, c) = 0.5 * keys.at(t, h, c) + topics.at(t / 256, 0, c);
            }
        }
        for (std::size_t i = 0; i < n_queries; ++i) {
            for (std::size_t h = 0; h < n_heads; ++h) {
                for (std::size_t c = 0; c < dim; ++c)
                    queries.at(i, h, c) =
                        0.5 * queries.at(i, h, c) + 1.5 * topics.at((2 + h / 2) % (n / 256), 0, c);
            }
        }
    }
};

std::vector<float> attend_floats(Cache* cache, const Queries& queries,
                                 Executor& executor = serial_executor()) {
    std::vector<float> out(std::size_t{queries.n_queries} * queries.n_heads * dim, -1.0f);
    const Status status = cache->attend(0, queries, out.data(), out.size(), executor);
    INFO(status.message());
    REQUIRE(status.ok());
    return out;
}

double relative(const std::vector<float>& all, const std::vector<float>& some) {
    double error = 0.0, output = 0.0;
    for (std::size_t i = 0; i < all.size(); ++i) {
        error += std::pow(static_cast<double>(all[i] - some[i]), 2);
        output += std::pow(static_cast<double>(all[i]), 2);
    }
    return std::sqrt(error / output);
}

LayerStats stats_of(const Cache& cache) {
    LayerStats stats;
    REQUIRE(cache.layer_stats(0, &stats).ok());
    return stats;
}

// Every token of n in ranges, cut where nothing else is.
struct FullList {
    std::vector<TokenRange> ranges;
    std::vector<std::size_t> ends;

    explicit FullList(std::uint64_t n) {
        for (std::size_t h = 0; h < n_kv_heads; ++h) {
            for (std::uint64_t t = 0; t < n; t += 77 + 50 * h)
                ranges.push_back({t, std::min<std::uint64_t>(n, t + 77 + 50 * h)});
            ends.push_back(ranges.size());
        }
    }
    void set(Queries* queries) const {
        queries->ranges = ranges.data();
        queries->range_ends = ends.data();
    }
};

// A cache that has lived: blocks cut by a removal, keys that moved, blocks of one unit, a buffer.
std::unique_ptr<Cache> lived(const std::string& spec, const Topics& data) {
    CacheConfig config = make_config(spec, n_kv_heads, dim, dim, 4000);
    config.rope = {frequencies().data(), dim / 2, false};
    auto cache = make_cache(config);
    const std::size_t n = data.keys.n_tokens;
    REQUIRE(append(cache.get(), data.keys, data.values, 0, n - 400).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    for (std::size_t t = n - 400; t < n - 30; t += 10)
        REQUIRE(append(cache.get(), data.keys, data.values, t, 10).ok());
    REQUIRE(cache->remove(300, 217).ok());
    REQUIRE(append(cache.get(), data.keys, data.values, n - 30, 30).ok());
    return cache;
}

TEST_CASE("a list of all tokens is full attention to the bit", "[select]") {
    const auto spec = GENERATE(as<std::string>{}, "gear-4", "f16", "paper:gear-3");
    const Topics data(2900, 3);
    auto cache = lived(spec, data);
    const std::vector<float> q = to_floats(data.queries), slopes = {0.01f, 0.0f, -0.001f, 0.02f},
                             sinks = {0.5f, minus_infinity, 3.0f, 1.0f};
    const FullList list(cache->n_tokens(0));
    for (int rule = 0; rule < 4; ++rule) {
        Queries queries = queries_of(q, data.queries, true);
        if (rule == 1) queries.window = 700;
        if (rule == 2) queries.slopes = slopes.data();
        if (rule == 3) queries.sinks = sinks.data(), queries.soft_cap = 20.0f;
        Queries listed = queries;
        list.set(&listed);
        CAPTURE(spec, rule);
        CHECK(attend_floats(cache.get(), queries) == attend_floats(cache.get(), listed));
    }
}

TEST_CASE("a mass that takes every section is full attention to the bit", "[select]") {
    const Topics data(2900, 3);
    auto cache = lived("gear-4", data);
    const std::vector<float> q = to_floats(data.queries);
    Queries queries = queries_of(q, data.queries, true);
    queries.scale = 1e-3f;  // all weigh alike
    const std::vector<float> all = attend_floats(cache.get(), queries);
    queries.mass = 0.9999999f;
    CHECK(attend_floats(cache.get(), queries) == all);
    CHECK(stats_of(*cache).share_read == 1.0);
    CHECK(stats_of(*cache).n_selections == 2);
    queries.mass = 0.5f;
    CHECK(attend_floats(cache.get(), queries) != all);
}

TEST_CASE("whatever selects everything gives the bits of full attention, on threads, in forks and batches",
          "[select][thread]") {
    const Topics data(2900, 3);
    auto cache = lived("gear-4", data);
    const std::vector<float> q = to_floats(data.queries);
    Queries queries = queries_of(q, data.queries, true);
    queries.scale = 1e-3f;  // all weigh alike
    const std::vector<float> all = attend_floats(cache.get(), queries);
    const FullList list(cache->n_tokens(0));
    const int way = GENERATE(0, 1, 2);
    if (way == 0) queries.mass = 0.9999999f;
    if (way == 1) queries.most_share = 0.9999999f;
    if (way == 2) list.set(&queries);
    CAPTURE(way);
    for (const unsigned n_threads : {1u, 2u, 5u}) {
        std::unique_ptr<Executor> executor;
        REQUIRE(create_executor(n_threads, &executor).ok());
        CHECK(attend_floats(cache.get(), queries, *executor) == all);
    }
    CHECK(stats_of(*cache).share_read == 1.0);
    std::unique_ptr<Cache> fork;
    REQUIRE(cache->fork(&fork).ok());
    CHECK(attend_floats(fork.get(), queries) == all);

    std::unique_ptr<Workspace> workspace;
    REQUIRE(Workspace::create(default_allocator(), &workspace).ok());
    const TemporaryFile file;
    REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
    CacheConfig config = cache->config();
    config.workspace = workspace.get();
    std::unique_ptr<Cache> caches[2];
    std::vector<float> outs[2];
    AttendRequest requests[2];
    for (std::size_t i = 0; i < 2; ++i) {
        REQUIRE(load_state(file.path(), config, {}, serial_executor(), &caches[i]).ok());
        outs[i].assign(all.size(), -1.0f);
        requests[i] = {caches[i].get(), queries, outs[i].data(), outs[i].size()};
    }
    requests[1].queries.mass = requests[1].queries.most_share = 1.0f;
    requests[1].queries.ranges = nullptr;
    requests[1].queries.range_ends = nullptr;
    REQUIRE(Cache::attend_batch(0, requests, 2, serial_executor()).ok());
    CHECK(outs[0] == all);
    CHECK(outs[1] == all);
}

TEST_CASE("sections are read until every row has its mass", "[select]") {
    const auto spec = GENERATE(as<std::string>{}, "gear-4", "gear-2");
    const Topics data(3500);
    // Not turned: these keys have no positions.
    auto cache = make_cache(make_config(spec, n_kv_heads, dim, dim, 4000));
    REQUIRE(append(cache.get(), data.keys, data.values, 0, 3500).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const std::vector<float> q = to_floats(data.queries);
    Queries queries = queries_of(q, data.queries, true);
    const std::vector<float> all = attend_floats(cache.get(), queries);
    double last_error = 1.0, last_share = 0.0;
    std::uint64_t n = 0;
    double share_sum = 0.0;
    for (const float mass : {0.5f, 0.9f, 0.99f, 0.999f}) {
        queries.mass = mass;
        const double error = relative(all, attend_floats(cache.get(), queries));
        const LayerStats stats = stats_of(*cache);
        const double share = (stats.share_read * static_cast<double>(stats.n_selections) - share_sum) / 2.0;
        share_sum += 2.0 * share;
        n += 2;
        CAPTURE(spec, mass, error, share);
        CHECK(stats.n_selections == n);
        CHECK(error <= last_error);
        CHECK(error < 10.0 * (1.0 - static_cast<double>(mass)));
        CHECK(share >= last_share);
        CHECK(share < 0.7);
        last_error = error;
        last_share = share;
    }
    CHECK(stats_of(*cache).mass_read > 0.84);
    queries.mass = 1.0f;
    queries.most_share = 0.1f;
    attend_floats(cache.get(), queries);
    CHECK(stats_of(*cache).share_read * static_cast<double>(n + 2) - share_sum < 2.0 * 0.25);
}

TEST_CASE("no more sections are read than their share says", "[select][once]") {
    constexpr std::size_t n_sections = 10;
    const Topics data(n_sections * 128 + 40);
    auto cache = make_cache(make_config("gear-4", n_kv_heads, dim, dim, 4000));
    REQUIRE(append(cache.get(), data.keys, data.values, 0, n_sections * 128 + 40).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    REQUIRE(stats_of(*cache).n_closed == n_sections * 128);
    const double n_others = 2.0;  // sinks and the buffer
    const std::vector<float> q = to_floats(data.queries);
    Queries queries = queries_of(q, data.queries, true);
    queries.n_queries = 1;
    double before = 0.0;
    for (std::size_t n = 1; n < n_sections; ++n) {
        queries.most_share = static_cast<float>(n) / static_cast<float>(n_sections);
        attend_floats(cache.get(), queries);
        const LayerStats stats = stats_of(*cache);
        const double sum = stats.share_read * static_cast<double>(stats.n_selections);
        CHECK((sum - before) / n_kv_heads ==
              Approx((static_cast<double>(n) + n_others) / (n_sections + n_others)));
        before = sum;
    }
}

TEST_CASE("sections whose scores spread widely do not pass for everything", "[select]") {
    // Names that are looked up: a token of many has all the weight, and a wide section is not where it is.
    const auto spec = GENERATE(as<std::string>{}, "gear-4", "gear-2");
    Topics data(3500, 16);
    data.keys = gaussian(3500, n_kv_heads, dim, 1);
    data.queries = gaussian(16, n_heads, dim, 3);
    for (std::size_t t = 0; t < 3500; ++t) {
        for (std::size_t at = t * n_kv_heads * dim; at < (t + 1) * n_kv_heads * dim; ++at)
            data.keys.data[at] *= 1.0 + 0.03 * static_cast<double>(t / 128 % 10);
    }
    for (double& x : data.queries.data)
        x *= 7.0;
    auto cache = make_cache(make_config(spec, n_kv_heads, dim, dim, 4000));
    REQUIRE(append(cache.get(), data.keys, data.values, 0, 3500).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const std::vector<float> q = to_floats(data.queries);
    Queries queries = queries_of(q, data.queries, true);
    queries.n_queries = 1;
    double worst = 0.0, sum = 0.0;
    for (std::size_t i = 0; i < 16; ++i) {
        queries.data = q.data() + i * n_heads * dim;
        queries.mass = 1.0f;
        const std::vector<float> all = attend_floats(cache.get(), queries);
        queries.mass = 0.99f;
        const double error = relative(all, attend_floats(cache.get(), queries));
        worst = std::max(worst, error);
        sum += error;
    }
    CAPTURE(spec, worst, sum / 16, stats_of(*cache).share_read);
    CHECK(worst < 0.5);
    CHECK(sum / 16 < 0.05);
}

TEST_CASE("what is selected depends on no number of threads, batch, fork or file", "[select][thread]") {
    const Topics data(3500);
    const std::vector<float> q = to_floats(data.queries);
    const bool listed = GENERATE(false, true);
    const TokenRange ranges[] = {{0, 9}, {130, 700}, {2000, 2001}, {5, 2500}};
    const std::size_t ends[] = {3, 4};
    Queries queries = queries_of(q, data.queries, true);
    queries.negligible = 1e-4f;
    if (listed) {
        queries.ranges = ranges;
        queries.range_ends = ends;
    } else {
        queries.mass = 0.95f;
    }
    auto cache = lived("gear-4", data);
    const std::vector<float> first = attend_floats(cache.get(), queries);
    CHECK(attend_floats(cache.get(), queries) == first);
    for (const unsigned n_threads : {2u, 5u}) {
        std::unique_ptr<Executor> executor;
        REQUIRE(create_executor(n_threads, &executor).ok());
        CHECK(attend_floats(cache.get(), queries, *executor) == first);
    }
    std::unique_ptr<Cache> fork;
    REQUIRE(cache->fork(&fork).ok());
    CHECK(stats_of(*fork).n_selections == 0);
    CHECK(attend_floats(fork.get(), queries) == first);
    const TemporaryFile file;
    REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
    CacheConfig config = cache->config();
    std::unique_ptr<Cache> mapped;
    LoadOptions options;
    options.loading = StateLoading::map;
    REQUIRE(load_state(file.path(), config, options, serial_executor(), &mapped).ok());
    CHECK(attend_floats(mapped.get(), queries) == first);

    std::unique_ptr<Workspace> workspace;
    REQUIRE(Workspace::create(default_allocator(), &workspace).ok());
    config.workspace = workspace.get();
    std::unique_ptr<Cache> some, others;
    REQUIRE(load_state(file.path(), config, {}, serial_executor(), &some).ok());
    REQUIRE(load_state(file.path(), config, {}, serial_executor(), &others).ok());
    Queries plain = queries_of(q, data.queries, true);
    std::vector<float> a(first.size()), b(first.size());
    const AttendRequest requests[] = {{others.get(), plain, b.data(), b.size()},
                                      {some.get(), queries, a.data(), a.size()}};
    REQUIRE(Cache::attend_batch(0, requests, 2, serial_executor()).ok());
    CHECK(a == first);
    CHECK(b == attend_floats(cache.get(), plain));
}

TEST_CASE("tokens in no range are as if masked", "[select]") {
    const auto spec = GENERATE(as<std::string>{}, "gear-4", "f32", "paper:gear-3");
    const Topics data(900, 2);
    auto cache = make_cache(make_config(spec, n_kv_heads, dim, dim, 1000));
    REQUIRE(append(cache.get(), data.keys, data.values, 0, 900).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const TokenRange ranges[] = {{0, 1}, {100, 130}, {131, 132}, {256, 512}, {898, 900}, {3, 640}};
    const std::size_t ends[] = {5, 6};
    std::vector<float> mask(2 * n_heads * 900, minus_infinity);
    for (std::size_t i = 0; i < 2; ++i) {
        for (std::size_t h = 0; h < n_heads; ++h) {
            for (std::size_t r = h < 2 ? 0 : 5; r < ends[h / 2]; ++r)
                std::fill_n(
                    mask.begin() + static_cast<std::ptrdiff_t>((i * n_heads + h) * 900 + ranges[r].first),
                    ranges[r].end - ranges[r].first, 0.0f);
        }
    }
    const std::vector<float> q = to_floats(data.queries);
    Queries masked = queries_of(q, data.queries, true), listed = masked;
    masked.mask = mask.data();
    masked.mask_query_stride = n_heads * 900;
    masked.mask_head_stride = 900;
    listed.ranges = ranges;
    listed.range_ends = ends;
    CAPTURE(spec);
    CHECK(attend_floats(cache.get(), listed) == attend_floats(cache.get(), masked));
    // A head without a range sees nothing.
    const std::size_t none[] = {0, 1};
    listed.range_ends = none;
    const std::vector<float> out = attend_floats(cache.get(), listed);
    CHECK(std::all_of(out.begin(), out.begin() + 2 * dim, [](float x) { return x == 0.0f; }));
    CHECK(out[2 * dim] != 0.0f);
}

TEST_CASE("selections that make no sense are refused", "[select]") {
    const Topics data(300);
    auto cache = make_cache(make_config("gear-4", n_kv_heads, dim, dim, 1000));
    REQUIRE(append(cache.get(), data.keys, data.values, 0, 300).ok());
    const std::vector<float> q = to_floats(data.queries);
    const auto check = [&](const char* word, const auto& change) {
        Queries queries = queries_of(q, data.queries, true);
        change(queries);
        std::vector<float> out(n_heads * dim, -1.0f);
        const Status status = cache->attend(0, queries, out.data(), out.size(), serial_executor());
        CAPTURE(word, status.message());
        CHECK(status.code() == Code::invalid_argument);
        CHECK(std::strstr(status.message(), word) != nullptr);
        CHECK(out[0] == -1.0f);
    };
    for (const float bad : {0.0f, -1.0f, 1.5f, std::nanf("")}) {
        check("mass", [&](Queries& x) { x.mass = bad; });
        check("most_share", [&](Queries& x) { x.most_share = bad; });
    }
    const auto list = [&](const char* word, std::vector<TokenRange> ranges, std::vector<std::size_t> ends,
                          float mass = 1.0f) {
        check(word, [&](Queries& x) {
            x.ranges = ranges.data();
            x.range_ends = ends.empty() ? nullptr : ends.data();
            x.mass = mass;
        });
    };
    list("range_ends", {{0, 1}}, {});
    list("along with mass", {{0, 1}}, {1, 1}, 0.5f);
    list("range_ends of KV head 1", {{0, 1}}, {1, 0});
    list("range 0 of KV head 0", {{5, 5}}, {1, 1});
    list("range 0 of KV head 1", {{0, 301}}, {0, 1});
    list("range 1 of KV head 0", {{0, 10}, {9, 20}}, {2, 2});
}

}  // namespace
}  // namespace gearkv::testing
