#include <atomic>
#include <memory>
#include <vector>

#include "gearkv/executor.hpp"
#include "support/catch.hpp"

using namespace gearkv;

namespace {

using Create = Status (*)(unsigned, std::unique_ptr<Executor>*) noexcept;

// The pools of this build.
std::vector<Create> pools() {
    std::vector<Create> found;
    for (const Create create : {create_threads_executor, create_tbb_executor, create_executor}) {
        std::unique_ptr<Executor> executor;
        if (create(1, &executor).ok()) found.push_back(create);
    }
    return found;
}

}  // namespace

TEST_CASE("every task runs exactly once", "[executor][thread]") {
    for (const Create create : pools()) {
        for (const unsigned n_threads : {0u, 1u, 2u, 3u, 8u}) {
            std::unique_ptr<Executor> executor;
            REQUIRE(create(n_threads, &executor).ok());
            CHECK(executor->n_threads() >= 1);
            for (const std::size_t n_tasks : {0u, 1u, 2u, 7u, 64u, 1000u}) {
                std::vector<std::atomic<int>> runs(n_tasks);
                parallel_for(*executor, n_tasks, [&](std::size_t i) { runs[i].fetch_add(1); });
                for (auto& n : runs)
                    REQUIRE(n == 1);
            }
        }
    }
}

TEST_CASE("what tasks wrote is seen by the caller, call after call", "[executor][thread]") {
    for (const Create create : pools()) {
        std::unique_ptr<Executor> executor;
        REQUIRE(create(4, &executor).ok());
        std::vector<std::size_t> values(16, 0);
        for (std::size_t round = 1; round <= 3000; ++round) {
            parallel_for(*executor, values.size(), [&](std::size_t i) { values[i] += i * round; });
        }
        for (std::size_t i = 0; i < values.size(); ++i)
            CHECK(values[i] == i * 3000 * 3001 / 2);
    }
}

TEST_CASE("pools come and go", "[executor][thread]") {
    for (const Create create : pools()) {
        for (int i = 0; i < 50; ++i) {
            std::unique_ptr<Executor> executor;
            REQUIRE(create(3, &executor).ok());
            std::atomic<int> n{0};
            if (i % 2 == 0) parallel_for(*executor, 5, [&](std::size_t) { ++n; });
            CHECK(n == (i % 2 == 0 ? 5 : 0));
        }
    }
}

TEST_CASE("the serial executor runs in order on the calling thread", "[executor]") {
    std::vector<std::size_t> order;
    parallel_for(serial_executor(), 5, [&](std::size_t i) { order.push_back(i); });
    CHECK(order == std::vector<std::size_t>{0, 1, 2, 3, 4});
    CHECK(serial_executor().n_threads() == 1);
}

TEST_CASE("impossible pools are refused", "[executor]") {
    std::unique_ptr<Executor> executor;
    for (const Create create : pools()) {
        CHECK(create(1025, &executor).code() == Code::invalid_argument);
        CHECK(create(1, nullptr).code() == Code::invalid_argument);
    }
    CHECK(executor == nullptr);
}
