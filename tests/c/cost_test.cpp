// What a step costs through the C ABI beside the same step in C++, without a clock (bench/abi has one).
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "gearkv/cache.hpp"
#include "gearkv/gearkv.h"
#include "support/catch.hpp"
#include "support/count_memory.hpp"

using namespace gearkv;

namespace {

constexpr std::uint32_t n_kv_heads = 2, n_heads = 8, dim = 64, n_prompt = 300, n_steps = 40;

// Calls for threads, and tasks of theirs.
struct Counts {
    std::size_t n_calls = 0, n_tasks = 0;
    bool operator==(const Counts& other) const {
        return n_calls == other.n_calls && n_tasks == other.n_tasks;
    }
};

class CountingExecutor final : public Executor {
  public:
    Counts counts;

  private:
    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override {
        counts.n_calls += 1, counts.n_tasks += n_tasks;
        for (std::size_t i = 0; i < n_tasks; ++i)
            task(context, i);
    }
    unsigned n_threads() const noexcept override { return 1; }
};

}  // namespace

TEST_CASE("a step through the C ABI takes the memory and does the work of the same step in C++, and no more",
          "[c]") {
    std::vector<float> rows((n_prompt + n_steps) * n_kv_heads * dim), q(n_heads * dim, 0.1f);
    for (std::size_t i = 0; i < rows.size(); ++i)
        rows[i] = std::sin(0.37f * static_cast<float>(i % 977));

    CacheConfig config;
    REQUIRE(parse_spec("gear-4", &config.spec).ok());
    config.n_layers = 1;
    config.n_kv_heads = n_kv_heads;
    config.key_dim = config.value_dim = dim;
    config.max_tokens = 1000;
    std::unique_ptr<Cache> cache;
    REQUIRE(Cache::create(config, &cache).ok());
    gearkv_config c_config;
    gearkv_config_init(&c_config, sizeof(c_config));
    c_config.spec = "gear-4";
    c_config.n_layers = 1;
    c_config.n_kv_heads = n_kv_heads;
    c_config.key_dim = c_config.value_dim = dim;
    c_config.max_tokens = 1000;
    gearkv_cache* c_cache = nullptr;
    REQUIRE(gearkv_cache_create(&c_config, &c_cache, nullptr) == GEARKV_OK);

    CountingExecutor executor;
    Counts c_counts;
    gearkv_executor_callbacks callbacks = {};
    callbacks.struct_size = sizeof(callbacks);
    callbacks.context = &c_counts;
    callbacks.parallel_for = [](void* context, std::size_t n_tasks, gearkv_task task, void* task_context) {
        auto* counts = static_cast<Counts*>(context);
        counts->n_calls += 1, counts->n_tasks += n_tasks;
        for (std::size_t i = 0; i < n_tasks; ++i)
            task(task_context, i);
    };
    callbacks.n_threads = [](void*) { return 1u; };
    gearkv_executor* c_executor = nullptr;
    REQUIRE(gearkv_executor_create_custom(&callbacks, &c_executor, nullptr) == GEARKV_OK);

    std::vector<float> out(n_heads * dim), c_out(n_heads * dim);
    gearkv_error error;
    const auto step = [&](std::size_t first, std::uint32_t n) {
        const float* data = rows.data() + first * n_kv_heads * dim;
        const Rows view = {data, n_kv_heads * dim, dim};
        const Queries queries = {q.data(), n_heads * dim, dim, 1, n_heads, 0.125f, true};
        bool ok = cache->append(0, view, view, n, executor).ok();
        return cache->attend(0, queries, out.data(), out.size(), executor).ok() && ok;
    };
    const auto c_step = [&](std::size_t first, std::uint32_t n) {
        const gearkv_rows view = {rows.data() + first * n_kv_heads * dim, n_kv_heads * dim, dim};
        gearkv_queries queries;
        gearkv_queries_init(&queries, sizeof(queries));
        queries.data = q.data();
        queries.query_stride = n_heads * dim;
        queries.head_stride = dim;
        queries.n_queries = 1;
        queries.n_heads = n_heads;
        queries.scale = 0.125f;
        bool ok = gearkv_cache_append(c_cache, 0, &view, &view, n, c_executor, &error) == GEARKV_OK;
        ok &= gearkv_cache_attend(c_cache, 0, &queries, c_out.data(), c_out.size(), c_executor, &error) ==
              GEARKV_OK;
        return ok;
    };
    REQUIRE((step(0, n_prompt) && c_step(0, n_prompt)));
    REQUIRE((step(n_prompt, 1) && c_step(n_prompt, 1)));
    bool all_ok = true, same = true;
    long n_taken = 0, c_taken = 0;
    for (std::uint32_t i = 1; i < n_steps; ++i) {
        const long before = test::count_allocations();
        all_ok &= step(n_prompt + i, 1);
        const long between = test::count_allocations();
        all_ok &= c_step(n_prompt + i, 1);
        n_taken += between - before;
        c_taken += test::count_allocations() - between;
        same &= std::memcmp(out.data(), c_out.data(), out.size() * sizeof(float)) == 0;
    }
    CHECK(all_ok);
    CHECK(same);
    CHECK(c_taken == n_taken);
    CHECK(executor.counts.n_calls > n_steps);
    CHECK(c_counts == executor.counts);
    gearkv_cache_destroy(c_cache);
    gearkv_executor_destroy(c_executor);
}
