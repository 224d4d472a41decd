// How work is spread over threads: handed in by the caller, so that the library never owns the machine.
#pragma once

#include <cstddef>
#include <memory>
#include <type_traits>

#include "gearkv/status.hpp"

namespace gearkv {

// Runs independent tasks. Results of the library do not depend on the executor nor on its thread count.
// One parallel_for at a time per executor; calls from several threads must be serialised by the caller.
class Executor {
  public:
    using Task = void (*)(void* context, std::size_t index);

    virtual ~Executor() = default;
    // Calls task(context, i) once for every i in [0, n_tasks), in any order and on any thread,
    // and returns when all calls have returned. Tasks do not throw.
    virtual void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept = 0;
    // Threads that may run tasks at once, the caller's included; at least 1.
    virtual unsigned n_threads() const noexcept = 0;
};

// Runs every task on the calling thread. Stateless, always there; may be shared by any number of threads.
Executor& serial_executor() noexcept;

// A pool of n_threads - 1 sleeping threads beside the caller's own. 0 asks for one per processor. A call that
// finds the pool busy (from inside a task, or from a second thread) runs its tasks on the calling thread.
// Errors: invalid_argument (null out, more than 1024 threads), out_of_memory, thread_failure.
Status create_threads_executor(unsigned n_threads, std::unique_ptr<Executor>* out) noexcept;

// The same through a oneTBB arena, of no more threads than oneTBB finds processors; calls from inside a task
// share the arena. Errors: as above, and invalid_argument in a build without oneTBB.
Status create_tbb_executor(unsigned n_threads, std::unique_ptr<Executor>* out) noexcept;

// The executor this build prefers: oneTBB, then std threads, then a serial one whatever number is asked for;
// n_threads() tells what came of it. Errors: as above.
Status create_executor(unsigned n_threads, std::unique_ptr<Executor>* out) noexcept;

// Calls fn(i) for every i in [0, n_tasks) on the executor.
template <class Function>
void parallel_for(Executor& executor, std::size_t n_tasks, Function&& fn) noexcept {
    using F = std::remove_reference_t<Function>;
    executor.parallel_for(
        n_tasks, [](void* context, std::size_t index) { (*static_cast<F*>(context))(index); },
        const_cast<void*>(static_cast<const void*>(&fn)));
}

}  // namespace gearkv
