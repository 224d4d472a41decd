// A pool of sleeping threads beside the caller's own.
#include "gearkv/executor.hpp"

#if defined(GEARKV_HAVE_THREADS)

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace gearkv {
namespace {

constexpr unsigned max_threads = 1024;

// Calls of a decode step follow one another within microseconds, and to be woken takes tens of them: so long
// a thread looks before it sleeps. Returns whether it came.
template <class Condition>
bool look_for(const Condition& came) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(20);
    do {
        for (int i = 0; i < 64; ++i) {
            if (came()) return true;
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

class ThreadsExecutor final : public Executor {
  public:
    // Throws std::system_error or std::bad_alloc; threads already started are joined then.
    explicit ThreadsExecutor(unsigned n_threads) {
        try {
            workers_.reserve(n_threads - 1);
            for (unsigned i = 1; i < n_threads; ++i)
                workers_.emplace_back([this] { work(); });
        } catch (...) {
            stop();
            throw;
        }
    }
    ~ThreadsExecutor() override { stop(); }

    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override {
        // A call from inside a task, or from a second thread, finds the pool busy and does without it.
        if (n_tasks <= 1 || workers_.empty() || busy_.exchange(1, std::memory_order_acquire) != 0) {
            for (std::size_t i = 0; i < n_tasks; ++i)
                task(context, i);
            return;
        }
        {
            const std::lock_guard lock(mutex_);
            task_ = task;
            context_ = context;
            n_tasks_ = n_tasks;
            next_.store(0, std::memory_order_relaxed);
            open_.store(true, std::memory_order_release);
        }
        for (std::size_t i = std::min(n_tasks - 1, workers_.size()); i > 0; --i)
            wake_.notify_one();
        run_tasks();
        {
            const std::lock_guard lock(mutex_);
            open_.store(false, std::memory_order_relaxed);
        }
        // Nobody joins from here on.
        const auto is_done = [this] { return n_working_.load(std::memory_order_acquire) == 0; };
        if (!look_for(is_done)) {
            std::unique_lock lock(mutex_);
            done_.wait(lock, is_done);
        }
        busy_.store(0, std::memory_order_release);
    }

    unsigned n_threads() const noexcept override { return static_cast<unsigned>(workers_.size()) + 1; }

  private:
    // Tasks are taken one by one, so a slow core takes fewer. Returns when all are taken.
    void run_tasks() noexcept {
        for (std::size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n_tasks_;)
            task_(context_, i);
    }

    void work() noexcept {
        std::unique_lock lock(mutex_);
        const auto is_called = [this] { return stopping_ || open_.load(std::memory_order_relaxed); };
        while (true) {
            wake_.wait(lock, is_called);
            if (stopping_) return;
            n_working_.fetch_add(1, std::memory_order_relaxed);
            lock.unlock();
            run_tasks();
            lock.lock();
            open_.store(false, std::memory_order_relaxed);
            if (n_working_.fetch_sub(1, std::memory_order_release) == 1) done_.notify_one();
            lock.unlock();
            (void)look_for([this] { return open_.load(std::memory_order_relaxed); });
            lock.lock();
        }
    }

    void stop() noexcept {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_)
            worker.join();
    }

    std::vector<std::thread> workers_;
    // 1: a parallel_for is running. A whole word, for which no processor needs a library of atomics.
    std::atomic<unsigned> busy_{0};

    // What runs now. Written under the mutex while no worker is at it; the caller waits only for workers that
    // took part, so one that the system wakes late holds up nobody.
    Task task_ = nullptr;
    void* context_ = nullptr;
    std::size_t n_tasks_ = 0;
    std::atomic<std::size_t> next_{0};

    std::mutex mutex_;  // of all below; the first two are looked at without it
    std::condition_variable wake_, done_;
    std::atomic<std::size_t> n_working_{0};
    std::atomic<bool> open_{false};  // tasks may be left
    bool stopping_ = false;
};

}  // namespace

Status create_threads_executor(unsigned n_threads, std::unique_ptr<Executor>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (n_threads > max_threads) {
        return Status::error(Code::invalid_argument, "%u threads, expected at most %u", n_threads,
                             max_threads);
    }
    if (n_threads == 0) n_threads = std::max(std::thread::hardware_concurrency(), 1u);
    try {
        *out = std::make_unique<ThreadsExecutor>(n_threads);
    } catch (const std::bad_alloc&) {
        return Status::error(Code::out_of_memory, "no memory for %u threads", n_threads);
    } catch (const std::system_error& error) {
        return Status::error(Code::thread_failure, "the system refused %u threads: %s", n_threads,
                             error.what());
    }
    return {};
}

}  // namespace gearkv

#else

namespace gearkv {

Status create_threads_executor(unsigned, std::unique_ptr<Executor>*) noexcept {
    return Status::error(Code::invalid_argument,
                         "this build has no threads, expected one with -Dthreads=std or tbb");
}

}  // namespace gearkv

#endif
