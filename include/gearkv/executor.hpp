// How work is spread over threads: handed in by the caller, so that the library never owns the machine.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

#include "gearkv/status.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

// Runs independent tasks. Results of the library do not depend on the executor nor on its thread count.
// One parallel_for at a time per executor; calls from several threads must be serialised by the caller.
// Whatever rounding mode, denormals and traps the threads have: tasks compute to nearest, with denormals and
// without traps, and leave the threads as they found them.
class Executor {
  public:
    using Task = void (*)(void* context, std::size_t index);

    virtual ~Executor() = default;
    // Calls task(context, i) once for every i in [0, n_tasks), in any order and on any thread,
    // and returns when all calls have returned. Tasks do not throw.
    virtual void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept = 0;
    // Threads that may run tasks at once, the caller's included; at least 1, else calls fail with
    // invalid_argument. Asked for once a call; it may change from one call to the next.
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

// Threads that are there already: the workers of an engine, all of which enter an operator together. One of
// them, the leader, hands this executor to the library; the others lend it a hand until the leader releases
// them. Nobody waits for a worker that comes late or never: the leader waits only for tasks that somebody has
// begun, and a worker who comes when the operator is over finds the door closed.
//
//   leader                                                any other worker
//     cache.append(layer, ..., crew);                       crew.help(ticket);
//     cache.attend(layer, ..., crew);
//     crew.release(ticket);
//
// A ticket names one operator; tickets of later operators are larger, and each is known to all workers before
// they enter (a number of the graph times its operators, say). No memory, no threads and no locks of its own;
// workers that have nothing to do spin and yield.
class CrewExecutor final : public Executor {
  public:
    // At most n_threads threads work at once, the leader included; 0 counts as 1. Further workers are turned
    // away.
    explicit CrewExecutor(unsigned n_threads) noexcept : n_threads_(n_threads == 0 ? 1 : n_threads) {}
    CrewExecutor(const CrewExecutor&) = delete;
    CrewExecutor& operator=(const CrewExecutor&) = delete;

    // Runs tasks of the leader until the ticket, or a later one, has been released. May be called before the
    // leader begins, or long after it has ended. Returns false when the crew was full, and then has done
    // nothing.
    bool help(std::uint64_t ticket) noexcept;
    // To be called by the leader after its last call with this executor for the ticket (above 0).
    void release(std::uint64_t ticket) noexcept;

    // By the leader only; a call from inside a task runs its tasks on the calling thread.
    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override;
    unsigned n_threads() const noexcept override { return n_threads_; }

  private:
    bool run_one(std::uint64_t state) noexcept;
    void run_round(std::size_t n_tasks) noexcept;

    const unsigned n_threads_;
    std::atomic<unsigned> n_helpers_{0};
    std::atomic<unsigned> leading_{0};  // 1: a parallel_for is running
    std::atomic<std::uint64_t> released_{0};

    // The round: its number in the upper half, the next task to take in the lower one. Taking a task is one
    // exchange of the whole, which fails when anything has changed since the rest was read.
    std::atomic<std::uint64_t> state_{0xffffffff};  // closed
    std::atomic<std::size_t> n_tasks_{0};
    std::atomic<Task> task_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<std::size_t> first_{0};  // index of the round's task 0
    std::atomic<std::size_t> n_done_{0};
};

// Calls fn(i) for every i in [0, n_tasks) on the executor.
template <class Function>
void parallel_for(Executor& executor, std::size_t n_tasks, Function&& fn) noexcept {
    using F = std::remove_reference_t<Function>;
    executor.parallel_for(
        n_tasks, [](void* context, std::size_t index) { (*static_cast<F*>(context))(index); },
        const_cast<void*>(static_cast<const void*>(&fn)));
}

}  // namespace gearkv
#pragma GCC visibility pop
