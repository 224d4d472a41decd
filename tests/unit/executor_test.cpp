#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gearkv/executor.hpp"
#include "support/catch.hpp"
#include "support/count_memory.hpp"
#include "support/refuse_threads.hpp"

using namespace gearkv;

namespace {

using Create = Status (*)(unsigned, std::unique_ptr<Executor>*) noexcept;

struct Pool {
    const char* name;
    Create create;
};

// The pools of this build.
std::vector<Pool> pools() {
    std::vector<Pool> found;
    for (const Pool pool : {Pool{"threads", create_threads_executor}, Pool{"tbb", create_tbb_executor},
                            Pool{"preferred", create_executor}}) {
        std::unique_ptr<Executor> executor;
        if (pool.create(1, &executor).ok()) found.push_back(pool);
    }
    return found;
}

std::unique_ptr<Executor> created(const Pool& pool, unsigned n_threads) {
    std::unique_ptr<Executor> executor;
    const Status status = pool.create(n_threads, &executor);
    INFO(pool.name << " with " << n_threads << " threads: " << status.message());
    REQUIRE(status.ok());
    return executor;
}

constexpr unsigned thread_counts[] = {0, 1, 2, 3, 8, 33};

}  // namespace

TEST_CASE("every task runs exactly once", "[executor][thread]") {
    for (const Pool& pool : pools()) {
        for (const unsigned n_threads : thread_counts) {
            const auto executor = created(pool, n_threads);
            INFO(pool.name << " with " << n_threads << " threads");
            CHECK(executor->n_threads() >= 1);
            if (n_threads != 0) CHECK(executor->n_threads() <= n_threads);
            for (const std::size_t n_tasks : {0u, 1u, 2u, 7u, 64u, 1000u, 20000u}) {
                std::vector<std::atomic<int>> runs(n_tasks);
                parallel_for(*executor, n_tasks, [&](std::size_t i) { runs[i].fetch_add(1); });
                for (auto& n : runs)
                    REQUIRE(n == 1);
            }
        }
    }
}

TEST_CASE("what tasks wrote is seen by the caller, call after call", "[executor][thread]") {
    for (const Pool& pool : pools()) {
        for (const unsigned n_threads : thread_counts) {
            const auto executor = created(pool, n_threads);
            INFO(pool.name << " with " << n_threads << " threads");
            // Plain memory: the thread sanitizer sees any access that is not ordered by the calls.
            std::vector<std::size_t> values(16, 0);
            for (std::size_t round = 1; round <= 3000; ++round) {
                const std::size_t n_tasks = 1 + round % values.size();
                parallel_for(*executor, n_tasks, [&](std::size_t i) { values[i] += round; });
            }
            std::vector<std::size_t> expected(16, 0);
            for (std::size_t round = 1; round <= 3000; ++round) {
                for (std::size_t i = 0; i <= round % values.size(); ++i)
                    expected[i] += round;
            }
            CHECK(values == expected);
        }
    }
}

TEST_CASE("tasks run on more than one thread at once", "[executor][thread]") {
    for (const Pool& pool : pools()) {
        const auto executor = created(pool, 0);
        if (executor->n_threads() < 2) continue;
        INFO(pool.name);
        // Two tasks that meet: possible only when both run at the same time.
        std::atomic<int> n_arrived{0};
        std::atomic<bool> met{false};
        parallel_for(*executor, 2, [&](std::size_t) {
            const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
            ++n_arrived;
            while (n_arrived < 2 && std::chrono::steady_clock::now() < end)
                std::this_thread::yield();
            if (n_arrived == 2) met = true;
        });
        CHECK(met);
    }
}

TEST_CASE("a call from inside a task runs all its tasks", "[executor][thread]") {
    for (const Pool& pool : pools()) {
        for (const unsigned n_threads : thread_counts) {
            const auto executor = created(pool, n_threads);
            INFO(pool.name << " with " << n_threads << " threads");
            std::vector<std::atomic<int>> runs(8 * 16);
            parallel_for(*executor, 8, [&](std::size_t outer) {
                parallel_for(*executor, 16,
                             [&](std::size_t inner) { runs[outer * 16 + inner].fetch_add(1); });
            });
            for (auto& n : runs)
                REQUIRE(n == 1);
        }
    }
}

TEST_CASE("calls from two threads run all their tasks", "[executor][thread]") {
    for (const Pool& pool : pools()) {
        const auto executor = created(pool, 3);
        INFO(pool.name);
        std::atomic<std::size_t> sums[2] = {0, 0};
        const auto caller = [&](std::size_t which) {
            for (int round = 0; round < 200; ++round)
                parallel_for(*executor, 10, [&](std::size_t i) { sums[which] += i; });
        };
        std::thread other(caller, std::size_t{1});
        caller(0);
        other.join();
        CHECK(sums[0] == 200 * 45);
        CHECK(sums[1] == 200 * 45);
    }
}

TEST_CASE("pools come and go", "[executor][thread]") {
    for (const Pool& pool : pools()) {
        for (int i = 0; i < 50; ++i) {
            const auto executor = created(pool, i % 3 == 0 ? 1 : 0);
            std::atomic<int> n{0};
            if (i % 2 == 0) parallel_for(*executor, 5, [&](std::size_t) { ++n; });
            CHECK(n == (i % 2 == 0 ? 5 : 0));
        }
    }
}

TEST_CASE("the serial executor runs in order on the calling thread", "[executor]") {
    std::vector<std::size_t> order;
    const std::thread::id caller = std::this_thread::get_id();
    parallel_for(serial_executor(), 5, [&](std::size_t i) {
        order.push_back(i);
        CHECK(std::this_thread::get_id() == caller);
    });
    CHECK(order == std::vector<std::size_t>{0, 1, 2, 3, 4});
    CHECK(serial_executor().n_threads() == 1);
    CHECK(&serial_executor() == &serial_executor());
}

TEST_CASE("impossible pools are refused and leave the output alone", "[executor]") {
    for (const Pool& pool : pools()) {
        std::unique_ptr<Executor> executor = created(pool, 1);
        const Executor* const before = executor.get();
        INFO(pool.name);
        CHECK(pool.create(1025, &executor).code() == Code::invalid_argument);
        CHECK(executor.get() == before);
        CHECK(pool.create(1, nullptr).code() == Code::invalid_argument);
    }
}

TEST_CASE("a pool that is not part of the build says so", "[executor]") {
    for (const auto& [create, word] : {std::pair<Create, const char*>{create_threads_executor, "threads"},
                                       std::pair<Create, const char*>{create_tbb_executor, "oneTBB"}}) {
        std::unique_ptr<Executor> executor;
        const Status status = create(1, &executor);
        if (status.ok()) continue;
        INFO(status.message());
        CHECK(status.code() == Code::invalid_argument);
        CHECK(std::strstr(status.message(), word) != nullptr);
        CHECK(executor == nullptr);
    }
}

TEST_CASE("a thread the system refuses is an error, and the threads before it end", "[executor]") {
    for (const long n_granted : {0L, 1L, 5L}) {
        std::unique_ptr<Executor> executor;
        const Status available = create_threads_executor(1, &executor);
        if (!available.ok()) return;
        executor.reset();
        const test::RefuseThreadsAfter refuse(n_granted);
        const Status status = create_threads_executor(8, &executor);
        INFO(n_granted << " threads granted: " << status.message());
        CHECK(status.code() == Code::thread_failure);
        CHECK(std::string(status.message()).find("refused 8 threads") != std::string::npos);
        CHECK(executor == nullptr);
    }
}

TEST_CASE("a pool without memory is refused at every allocation, and leaves none behind", "[executor]") {
    std::unique_ptr<Executor> executor;
    if (!create_threads_executor(1, &executor).ok()) return;
    executor.reset();
    long n_granted = 0;
    for (;; ++n_granted) {
        const long before = test::count_bytes();
        Status status;
        {
            const test::RefuseAfter refuse(n_granted);
            status = create_threads_executor(4, &executor);
        }
        if (status.ok()) break;
        const long after = test::count_bytes();
        INFO(n_granted << " allocations granted: " << status.message());
        REQUIRE(status.code() == Code::out_of_memory);
        CHECK(executor == nullptr);
        CHECK(after == before);
        REQUIRE(n_granted < 100);
    }
    CHECK(n_granted >= 5);  // the pool, its list, and each of three threads
}
