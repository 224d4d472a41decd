// The caller's executor for the length of one call, or of a session.
#pragma once

#include "../arch/float_mode.hpp"
#include "gearkv/executor.hpp"

namespace gearkv {

// The caller's executor, with every task in the usual float mode.
class UsualModeExecutor : public Executor {
  public:
    explicit UsualModeExecutor(Executor& executor) noexcept : executor_(executor) {}

    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override {
        struct Work {
            Task task;
            void* context;
        } work = {task, context};
        executor_.parallel_for(
            n_tasks,
            [](void* to_do, std::size_t index) {
                const FloatMode mode;
                const auto* one = static_cast<const Work*>(to_do);
                one->task(one->context, index);
            },
            &work);
    }
    unsigned n_threads() const noexcept override { return executor_.n_threads(); }

  private:
    Executor& executor_;
};

// What the caller's executor says of itself is asked for once: buffers are laid out by it. Every task, and
// the calling thread while this lives, computes in the usual float mode. One in every public function that
// takes an executor, before anything else.
class CallExecutor final : public UsualModeExecutor {
  public:
    explicit CallExecutor(Executor& executor) noexcept
        : UsualModeExecutor(executor), n_threads_(executor.n_threads()) {}

    // Errors: invalid_argument.
    Status check() const noexcept {
        if (n_threads_ > 0) return {};
        return Status::error(Code::invalid_argument, "an executor of 0 threads, expected at least 1");
    }
    unsigned n_threads() const noexcept override { return n_threads_; }

  private:
    const FloatMode mode_;
    const unsigned n_threads_;
};

}  // namespace gearkv
