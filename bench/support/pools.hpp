// Threads for a benchmark, and what they wait for.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "inputs.hpp"

namespace gearkv::bench {

inline const std::vector<std::string> pool_names = {"preferred", "std", "tbb"};

inline std::unique_ptr<Executor> make_pool(const std::string& name, unsigned n_threads) {
    std::unique_ptr<Executor> executor;
    require(name == "std"   ? create_threads_executor(n_threads, &executor)
            : name == "tbb" ? create_tbb_executor(n_threads, &executor)
                            : create_executor(n_threads, &executor));
    return executor;
}

// Times the pieces of compression that run beside attention: they are the first tasks of such a call, and
// behind them comes one for each thread that attends.
class PieceTimer final : public Executor {
  public:
    explicit PieceTimer(Executor& executor) : executor_(executor) {}

    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override {
        tasks_.assign(n_tasks, {});
        task_ = task;
        context_ = context;
        executor_.parallel_for(
            n_tasks,
            [](void* self, std::size_t i) {
                auto* timer = static_cast<PieceTimer*>(self);
                timer->tasks_[i].first = Clock::now();
                timer->task_(timer->context_, i);
                timer->tasks_[i].second = Clock::now();
            },
            this);
        const std::size_t n_pieces = n_tasks - std::min<std::size_t>(n_tasks, executor_.n_threads());
        Clock::time_point attended{};
        for (std::size_t i = n_pieces; i < n_tasks; ++i)
            attended = std::max(attended, tasks_[i].second);
        for (std::size_t i = 0; i < n_pieces; ++i) {
            longest_ = std::max(longest_, tasks_[i].second - tasks_[i].first);
            longest_wait_ =
                std::max(longest_wait_, executor_.n_threads() == 1 ? tasks_[i].second - tasks_[i].first
                                                                   : tasks_[i].second - attended);
        }
    }
    unsigned n_threads() const noexcept override { return executor_.n_threads(); }

    // Of all pieces the longest, and the longest time that all else of a call had to wait for one: with one
    // thread, all of it.
    double longest_us() const { return std::chrono::duration<double, std::micro>(longest_).count(); }
    double longest_wait_us() const {
        return std::chrono::duration<double, std::micro>(longest_wait_).count();
    }

  private:
    using Clock = std::chrono::steady_clock;
    Executor& executor_;
    Task task_ = nullptr;
    void* context_ = nullptr;
    std::vector<std::pair<Clock::time_point, Clock::time_point>> tasks_;
    Clock::duration longest_{}, longest_wait_{};
};

}  // namespace gearkv::bench
