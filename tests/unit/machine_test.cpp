// What the caller's threads and executors are like makes no difference: their number may change, and their
// way of computing with floats is not taken over.
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include "gearkv/state.hpp"
#include "support/float_modes.hpp"
#include "support/temporary_file.hpp"
#include "unit/caches.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

// Says another number of threads at every question, and runs tasks from last to first.
struct MovingExecutor final : Executor {
    std::vector<unsigned> answers;
    mutable std::size_t n_asked = 0;
    explicit MovingExecutor(std::vector<unsigned> told) : answers(std::move(told)) {}
    void parallel_for(std::size_t n, Task task, void* context) noexcept override {
        while (n > 0)
            task(context, --n);
    }
    unsigned n_threads() const noexcept override { return answers[n_asked++ % answers.size()]; }
};

// Runs every task on a thread of its own that computes in another way.
struct StrangeThreads final : Executor {
    FloatWay way;
    bool all_kept = true;
    void parallel_for(std::size_t n, Task task, void* context) noexcept override {
        for (std::size_t i = 0; i < n; ++i) {
            std::thread([&] {
                const InFloatWay here(way);
                task(context, i);
                all_kept &= here.kept();
            }).join();
        }
    }
    unsigned n_threads() const noexcept override { return 2; }
};

// Memory whose end is looked at when it is given back.
struct FencedMemory {
    static constexpr std::size_t fence = 4096;
    bool whole = true;
    static void* allocate(void*, std::size_t n, std::size_t) {
        auto* place = static_cast<unsigned char*>(std::aligned_alloc(64, (n + 63) / 64 * 64 + fence));
        std::memset(place + n, 0xa5, fence);
        return place;
    }
    static void release(void* context, void* place, std::size_t n) {
        const auto* end = static_cast<unsigned char*>(place) + n;
        for (std::size_t i = 0; i < fence; ++i)
            static_cast<FencedMemory*>(context)->whole &= end[i] == 0xa5;
        std::free(place);
    }
    Allocator allocator() { return {allocate, release, this}; }
};

constexpr std::size_t n_heads = 8;

CacheConfig life_config(const char* spec) {
    CacheConfig config = rope_config(spec, true, 4000);
    config.seed = 5;
    return config;
}

const std::vector<float>& life_queries() {
    static const std::vector<float> queries = [] {
        std::vector<float> q = to_floats(gaussian(1, n_heads, source_dim, 3));
        for (std::size_t i = 0; i < q.size(); i += 5)
            q[i] *= 1e-30f;
        return q;
    }();
    return queries;
}

// All that computes: outputs and what is read back, of a cache that appends, attends, compresses, shifts and
// goes through a file.
std::vector<float> live(const CacheConfig& config, Executor& executor) {
    const Source& tokens = source();
    std::vector<float> trace;
    std::unique_ptr<Cache> cache = make_cache(config);
    const auto attend_one = [&](Cache* one) {
        Queries queries;
        queries.data = life_queries().data();
        queries.query_stride = n_heads * source_dim;
        queries.head_stride = source_dim;
        queries.n_queries = 1;
        queries.n_heads = n_heads;
        queries.scale = 0.125f;
        queries.soft_cap = 30.0f;
        std::vector<float> out(n_heads * source_dim);
        const Status status = one->attend(0, queries, out.data(), out.size(), executor);
        INFO(status.message());
        REQUIRE(status.ok());
        trace.insert(trace.end(), out.begin(), out.end());
    };
    std::size_t at = 0;
    const auto append_some = [&](std::size_t n) {
        REQUIRE(append(cache.get(), tokens.keys, tokens.values, at, n, 0, executor).ok());
        at += n;
        attend_one(cache.get());
    };
    append_some(1100);
    append_some(1100);
    for (int i = 0; i < 20; ++i)
        append_some(1);
    REQUIRE(cache->compress(0, executor).ok());
    REQUIRE(cache->remove(100, 37).ok());
    append_some(300);
    std::unique_ptr<Cache> loaded;
    const TemporaryFile file;
    REQUIRE(save_state(*cache, file.path(), {}, executor).ok());
    REQUIRE(load_state(file.path(), config, {}, executor, &loaded).ok());
    attend_one(loaded.get());
    const auto [keys, values] = read_all(loaded.get());
    for (const Tensor* tensor : {&keys, &values})
        trace.insert(trace.end(), tensor->data.begin(), tensor->data.end());
    return trace;
}

constexpr const char* specs[] = {"gear-2", "paper:gear-4:nb=64", "k=kivi-2;v=kcvt-4", "auto:3", "f16"};

}  // namespace

TEST_CASE("an executor may have other threads at every question", "[machine]") {
    for (const char* spec : specs) {
        CAPTURE(spec);
        const std::vector<float> expected = live(life_config(spec), serial_executor());
        const std::vector<unsigned> told[] = {{8, 1},       {1, 8},          {2, 3, 1},
                                              {1000000, 1}, {1, UINT32_MAX}, {64, 32, 16, 8, 4, 2, 1}};
        for (const std::vector<unsigned>& answers : told) {
            CAPTURE(answers.front(), answers.back());
            FencedMemory memory;
            CacheConfig config = life_config(spec);
            config.allocator = memory.allocator();
            MovingExecutor executor(answers);
            CHECK((live(config, executor) == expected));
            CHECK(memory.whole);
        }
    }
}

TEST_CASE("an executor without threads is refused by every call that takes one", "[machine][once]") {
    MovingExecutor none({0});
    const CacheConfig config = life_config("gear-2");
    auto cache = make_cache(config);
    const Source& tokens = source();
    CHECK(append(cache.get(), tokens.keys, tokens.values, 0, 200, 0, none).code() == Code::invalid_argument);
    CHECK(cache->n_tokens(0) == 0);
    REQUIRE(append(cache.get(), tokens.keys, tokens.values, 0, 200).ok());
    CHECK(cache->compress(0, none).code() == Code::invalid_argument);
    Queries queries;
    queries.data = life_queries().data();
    queries.query_stride = n_heads * source_dim;
    queries.head_stride = source_dim;
    queries.n_queries = 1;
    queries.n_heads = n_heads;
    queries.scale = 0.125f;
    std::vector<float> out(n_heads * source_dim, -1.0f);
    const Status status = cache->attend(0, queries, out.data(), out.size(), none);
    CHECK(status.code() == Code::invalid_argument);
    CHECK(std::string(status.message()) == "an executor of 0 threads, expected at least 1");
    const AttendRequest request = {cache.get(), queries, out.data(), out.size()};
    CHECK(Cache::attend_batch(0, &request, 1, none).code() == Code::invalid_argument);
    CHECK(out == std::vector<float>(out.size(), -1.0f));
    const TemporaryFile file;
    REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
    CHECK(save_state(*cache, file.path(), {}, none).code() == Code::invalid_argument);
    std::unique_ptr<Cache> loaded;
    CHECK(load_state(file.path(), config, {}, none, &loaded).code() == Code::invalid_argument);
    StateInfo info;
    CHECK(verify_state(file.path(), none, &info).code() == Code::invalid_argument);
    alignas(64) unsigned char block[4096];
    const float row[64] = {};
    CHECK(compress_block(block, sizeof(block), {row, 64, 64}, {TensorKind::key, 1, 1, 64}, {}, none).code() ==
          Code::invalid_argument);
}

TEST_CASE("the caller's rounding and denormals change no bit, and are the caller's again afterwards",
          "[machine]") {
    for (const char* spec : specs) {
        const std::vector<float> expected = live(life_config(spec), serial_executor());
        for (const FloatWay& way : float_ways()) {
            CAPTURE(spec, way.rounding, way.flushes);
            std::vector<float> found;
            bool kept;
            {
                const InFloatWay here(way);
                found = live(life_config(spec), serial_executor());
                kept = here.kept();
            }
            CHECK((found == expected));
            CHECK(kept);
        }
    }
}

TEST_CASE("nor do those of the threads that run the tasks", "[machine]") {
    for (const char* spec : {"gear-2", "paper:gear-4:nb=64"}) {
        const std::vector<float> expected = live(life_config(spec), serial_executor());
        for (const FloatWay& way : {FloatWay{FE_UPWARD, true}, FloatWay{FE_TOWARDZERO, false}}) {
            CAPTURE(spec, way.rounding);
            StrangeThreads executor;
            executor.way = way;
            CHECK((live(life_config(spec), executor) == expected));
            CHECK(executor.all_kept);
        }
    }
}
