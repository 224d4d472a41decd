#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "gearkv/cache.hpp"
#include "gearkv/executor.hpp"
#include "support/catch.hpp"

using namespace gearkv;

namespace {

// The barrier between two operators of an engine.
class Barrier {
  public:
    explicit Barrier(unsigned n) : n_(n) {}
    void arrive() {
        const unsigned round = round_;
        if (n_arrived_.fetch_add(1) + 1 == n_) {
            n_arrived_ = 0;
            ++round_;
        } else {
            while (round_ == round)
                std::this_thread::yield();
        }
    }

  private:
    const unsigned n_;
    std::atomic<unsigned> n_arrived_{0};
    std::atomic<unsigned> round_{0};
};

void dawdle(unsigned n) {
    for (unsigned i = 0; i < n; ++i)
        std::this_thread::yield();
}

}  // namespace

TEST_CASE("a crew runs every task once, whoever comes early, late or not at all",
          "[executor][crew][thread]") {
    for (const unsigned n_workers : {1u, 2u, 3u, 6u}) {
        CrewExecutor crew(n_workers);
        CHECK(crew.n_threads() == n_workers);
        Barrier barrier(n_workers);
        // More workers than cores wait for one another by time slices.
        const std::uint64_t n_operators = 400 / (n_workers * n_workers) + 20;
        std::vector<std::size_t> values(40, 0);  // plain memory: the sanitizer sees what is not ordered
        const auto work = [&](unsigned worker) {
            for (std::uint64_t ticket = 1; ticket <= n_operators; ++ticket) {
                if (worker == 0) {
                    dawdle(ticket % 5 == 0 ? 20 : 0);
                    for (std::size_t round = 0; round < 1 + ticket % 3; ++round) {
                        parallel_for(crew, (ticket + round) % 41,
                                     [&](std::size_t i) { values[i] += ticket; });
                    }
                    crew.release(ticket);
                } else {
                    const std::uint64_t mood = (ticket * 2654435761u + worker * 40503u) >> 8 & 3;
                    if (mood == 1) dawdle(50);
                    if (mood != 2) crew.help(ticket);  // mood 2: does not come
                }
                barrier.arrive();
            }
        };
        std::vector<std::thread> workers;
        for (unsigned i = 1; i < n_workers; ++i)
            workers.emplace_back(work, i);
        work(0);
        for (std::thread& worker : workers)
            worker.join();

        std::vector<std::size_t> expected(40, 0);
        for (std::uint64_t ticket = 1; ticket <= n_operators; ++ticket) {
            for (std::size_t round = 0; round < 1 + ticket % 3; ++round) {
                for (std::size_t i = 0; i < (ticket + round) % 41; ++i)
                    expected[i] += ticket;
            }
        }
        CHECK(values == expected);
    }
}

TEST_CASE("without barriers a worker may be operators behind", "[executor][crew][thread]") {
    CrewExecutor crew(3);
    constexpr std::uint64_t n_operators = 3000;
    std::atomic<std::size_t> n_runs{0};
    const auto lag = [&](unsigned every) {
        for (std::uint64_t ticket = 1; ticket <= n_operators; ticket += every)
            crew.help(ticket);
    };
    std::thread first(lag, 1u), second(lag, 7u);
    std::size_t n_expected = 0;
    for (std::uint64_t ticket = 1; ticket <= n_operators; ++ticket) {
        parallel_for(crew, ticket % 9, [&](std::size_t) { ++n_runs; });
        n_expected += ticket % 9;
        CHECK(n_runs == n_expected);
        crew.release(ticket);
    }
    first.join();
    second.join();
}

TEST_CASE("late workers find the door closed", "[executor][crew]") {
    CrewExecutor crew(4);
    std::size_t n = 0;
    parallel_for(crew, 10, [&](std::size_t) { ++n; });
    crew.release(7);
    CHECK(crew.help(7));
    CHECK(crew.help(3));
    CHECK(n == 10);
}

TEST_CASE("workers beyond a crew's places are turned away", "[executor][crew][thread]") {
    CrewExecutor alone(0);
    CHECK(alone.n_threads() == 1);
    CHECK_FALSE(alone.help(1));

    CrewExecutor crew(2);
    std::atomic<int> n_refused{0}, n_working{0}, n_most{0};
    std::vector<std::thread> workers;
    for (int i = 0; i < 5; ++i)
        workers.emplace_back([&] { n_refused += crew.help(1) ? 0 : 1; });
    while (n_refused < 4)
        std::this_thread::yield();
    parallel_for(crew, 200, [&](std::size_t) {
        const int now = ++n_working;
        for (int most = n_most; now > most && !n_most.compare_exchange_weak(most, now);) {
        }
        dawdle(3);
        --n_working;
    });
    crew.release(1);
    for (std::thread& worker : workers)
        worker.join();
    CHECK(n_refused == 4);
    CHECK(n_most <= 2);
}

TEST_CASE("two threads of a crew work at once, and a call from inside a task ends",
          "[executor][crew][thread]") {
    CrewExecutor crew(2);
    std::thread helper([&] { crew.help(1); });
    std::atomic<int> n_arrived{0}, n_inner{0};
    parallel_for(crew, 2, [&](std::size_t) {  // two tasks that meet
        ++n_arrived;
        while (n_arrived < 2)
            std::this_thread::yield();
        parallel_for(crew, 3, [&](std::size_t) { ++n_inner; });
    });
    crew.release(1);
    helper.join();
    CHECK(n_inner == 6);
}

TEST_CASE("a cache gives the same bits on a crew", "[executor][crew][thread]") {
    constexpr std::uint32_t n_layers = 2, n_heads = 4, n_kv_heads = 2, dim = 64, n_tokens = 300;
    CacheConfig config;
    config.n_layers = n_layers;
    config.n_kv_heads = n_kv_heads;
    config.key_dim = config.value_dim = dim;
    config.max_tokens = 1024;
    REQUIRE(parse_spec("gear-4", &config.spec).ok());
    std::vector<float> rows(n_tokens * n_kv_heads * dim), q(n_heads * dim);
    for (std::size_t i = 0; i < rows.size(); ++i)
        rows[i] = std::sin(0.37f * static_cast<float>(i % 8191));
    for (std::size_t i = 0; i < q.size(); ++i)
        q[i] = std::cos(0.11f * static_cast<float>(i));
    const Rows kv = {rows.data(), n_kv_heads * dim, dim};
    const Queries queries = {q.data(), n_heads * dim, dim, 1, n_heads, 0.125f, true};
    using Outputs = std::vector<std::vector<float>>;
    // One step: every layer is an operator, entered by all.
    const auto lead = [&](Executor& executor, auto&& release) {
        std::unique_ptr<Cache> cache;
        REQUIRE(Cache::create(config, &cache).ok());
        Outputs outputs;
        std::uint64_t ticket = 0;
        for (int step = 0; step < 3; ++step) {
            for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
                outputs.emplace_back(n_heads * dim);
                Status status = cache->append(layer, kv, kv, step == 0 ? n_tokens : 7, executor);
                if (status.ok())
                    status =
                        cache->attend(layer, queries, outputs.back().data(), outputs.back().size(), executor);
                if (status.ok()) status = cache->compress(layer, executor);
                release(++ticket);
                REQUIRE(status.ok());
            }
        }
        return outputs;
    };
    const Outputs expected = lead(serial_executor(), [](std::uint64_t) {});
    CrewExecutor crew(3);
    const auto help = [&] {
        for (std::uint64_t ticket = 1; ticket <= 3 * n_layers; ++ticket)
            crew.help(ticket);
    };
    std::thread first(help), second(help);
    const Outputs outputs = lead(crew, [&](std::uint64_t ticket) { crew.release(ticket); });
    first.join();
    second.join();
    for (std::size_t i = 0; i < expected.size(); ++i)
        CHECK(std::memcmp(outputs[i].data(), expected[i].data(), expected[i].size() * sizeof(float)) == 0);
}
