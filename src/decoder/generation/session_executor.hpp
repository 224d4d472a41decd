// The caller's executor for the length of a session.
#pragma once

#include "executor/usual_mode.hpp"

namespace gearkv {

// Every task computes in the usual float mode.
class SessionExecutor final : public Executor {
  public:
    explicit SessionExecutor(Executor& executor) noexcept : executor_(executor) {}

    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override {
        run_in_usual_mode(executor_, n_tasks, task, context);
    }
    unsigned n_threads() const noexcept override { return executor_.n_threads(); }

  private:
    Executor& executor_;
};

}  // namespace gearkv
