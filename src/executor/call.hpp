// The caller's executor for the length of one call.
#pragma once

#include "../arch/float_mode.hpp"
#include "executor/usual_mode.hpp"

namespace gearkv {

// What the caller's executor says of itself is asked for once: buffers are laid out by it. Every task, and
// the calling thread while this lives, computes in the usual float mode. One in every public function of the
// core that takes an executor, before anything else.
class CallExecutor final : public Executor {
  public:
    explicit CallExecutor(Executor& executor) noexcept
        : executor_(executor), n_threads_(executor.n_threads()) {}

    // Errors: invalid_argument.
    Status check() const noexcept {
        if (n_threads_ > 0) return {};
        return Status::error(Code::invalid_argument, "an executor of 0 threads, expected at least 1");
    }
    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override {
        run_in_usual_mode(executor_, n_tasks, task, context);
    }
    unsigned n_threads() const noexcept override { return n_threads_; }

  private:
    const FloatMode mode_;
    Executor& executor_;
    const unsigned n_threads_;
};

}  // namespace gearkv
