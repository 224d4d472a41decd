// The adapter to oneTBB: the only file that knows it.
#include "gearkv/executor.hpp"

#if defined(GEARKV_HAVE_TBB)

#include <oneapi/tbb/info.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <new>

namespace gearkv {
namespace {

constexpr unsigned max_threads = 1024;

class TbbExecutor final : public Executor {
  public:
    explicit TbbExecutor(unsigned n_threads) : arena_(static_cast<int>(n_threads)), n_threads_(n_threads) {
        arena_.initialize();
    }

    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override {
        std::atomic<std::size_t> next{0};
        const auto run_tasks = [&] {
            for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n_tasks;)
                task(context, i);
        };
        const std::size_t n_runners = std::min<std::size_t>(n_tasks, n_threads_);
        try {
            if (n_runners > 1) {
                arena_.execute([&] {
                    tbb::parallel_for(
                        std::size_t{0}, n_runners, [&](std::size_t) { run_tasks(); },
                        tbb::simple_partitioner());
                });
            }
        } catch (...) {
            // No memory for oneTBB's own bookkeeping: runners that started have returned.
        }
        run_tasks();  // what nobody took
    }

    unsigned n_threads() const noexcept override { return n_threads_; }

  private:
    tbb::task_arena arena_;
    unsigned n_threads_;
};

}  // namespace

Status create_tbb_executor(unsigned n_threads, std::unique_ptr<Executor>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (n_threads > max_threads) {
        return Status::error(Code::invalid_argument, "%u threads, expected at most %u", n_threads,
                             max_threads);
    }
    try {
        // oneTBB runs no more workers than it has processors, and prints a warning when asked to.
        const unsigned most = static_cast<unsigned>(tbb::info::default_concurrency());
        n_threads = n_threads == 0 ? most : std::min(n_threads, most);
        *out = std::make_unique<TbbExecutor>(n_threads);
    } catch (const std::bad_alloc&) {
        return Status::error(Code::out_of_memory, "no memory for an arena of %u threads", n_threads);
    } catch (const std::exception& error) {
        return Status::error(Code::thread_failure, "oneTBB refused an arena of %u threads: %s", n_threads,
                             error.what());
    } catch (...) {
        return Status::error(Code::thread_failure, "oneTBB refused an arena of %u threads", n_threads);
    }
    return {};
}

}  // namespace gearkv

#else

namespace gearkv {

Status create_tbb_executor(unsigned, std::unique_ptr<Executor>*) noexcept {
    return Status::error(Code::invalid_argument, "this build has no oneTBB, expected one with -Dthreads=tbb");
}

}  // namespace gearkv

#endif
