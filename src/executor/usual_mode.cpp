#include "executor/usual_mode.hpp"

#include "../arch/float_mode.hpp"

namespace gearkv {

void run_in_usual_mode(Executor& executor, std::size_t n_tasks, Executor::Task task, void* context) noexcept {
    struct Work {
        Executor::Task task;
        void* context;
    } work = {task, context};
    executor.parallel_for(
        n_tasks,
        [](void* to_do, std::size_t index) {
            const FloatMode mode;
            const auto* one = static_cast<const Work*>(to_do);
            one->task(one->context, index);
        },
        &work);
}

}  // namespace gearkv
