// Threads for a benchmark, and what they wait for.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "inputs.hpp"
#include "rounds.hpp"

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
        const std::size_t n_pieces = n_tasks - std::min<std::size_t>(n_tasks, executor_.n_threads());
        if (n_pieces == 0) {
            executor_.parallel_for(n_tasks, task, context);
            return;
        }
        tasks_.assign(n_tasks, {});
        task_ = task;
        context_ = context;
        executor_.parallel_for(
            n_tasks,
            [](void* self, std::size_t i) {
                auto* timer = static_cast<PieceTimer*>(self);
                Timing& timing = timer->tasks_[i];
                const double before = processor_us();
                timer->task_(timer->context_, i);
                timing.processor = processor_us() - before;
                timing.end = Clock::now();
            },
            this);
        Clock::time_point attended{}, compressed{};
        double sum = 0.0;
        for (std::size_t i = 0; i < n_tasks; ++i) {
            Clock::time_point& end = i < n_pieces ? compressed : attended;
            end = std::max(end, tasks_[i].end);
            if (i >= n_pieces) continue;
            sum += tasks_[i].processor;
            longest_ = std::max(longest_, tasks_[i].processor);
        }
        const std::chrono::duration<double, std::micro> late = compressed - attended;
        waits_.push_back(executor_.n_threads() == 1 ? sum : std::max(late.count(), 0.0));
    }
    unsigned n_threads() const noexcept override { return executor_.n_threads(); }

    // Of all pieces that one thread ran at a time the longest, in microseconds of the processor; and what
    // each call that had some waited for them: with one thread their sum, in the same time, with more what
    // all attention had ended before the last of them, by the clock.
    double longest_us() const { return longest_; }
    const std::vector<double>& waits_us() const { return waits_; }

  private:
    using Clock = std::chrono::steady_clock;
    struct Timing {
        Clock::time_point end;
        double processor = 0.0;
    };
    Executor& executor_;
    Task task_ = nullptr;
    void* context_ = nullptr;
    std::vector<Timing> tasks_;
    std::vector<double> waits_;
    double longest_ = 0.0;
};

}  // namespace gearkv::bench
