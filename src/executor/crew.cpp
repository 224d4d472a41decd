// Tasks shared among threads of the caller's that come and go.
#include <thread>

#include "gearkv/executor.hpp"

namespace gearkv {
namespace {

// In place of the next task: none is to be taken.
constexpr std::uint64_t closed = 0xffffffff;
constexpr std::uint64_t next_mask = 0xffffffff;
constexpr std::uint64_t one_round = closed + 1;
// More tasks than this run in several rounds.
constexpr std::size_t max_round = std::size_t{1} << 30;

// Rounds of one call follow one another within microseconds, so a worker looks for some 10 of them before it
// yields: whoever takes its place keeps it for milliseconds, and then the leader, or the engine, waits for it.
// After that it waits for somebody who does not run, and yields often.
class Patience {
  public:
    void wait() noexcept {
        if (++n_looks_ > first && n_looks_ % looks == 0) std::this_thread::yield();
    }
    void renew() noexcept { n_looks_ = 0; }

  private:
    static constexpr unsigned first = 1 << 14, looks = 256;
    unsigned n_looks_ = 0;
};

}  // namespace

// Takes the next task of the round in `state` and runs it. False when there is none, or when the round has
// moved on.
bool CrewExecutor::run_one(std::uint64_t state) noexcept {
    // What is read here belongs to this round if the exchange succeeds: the leader closes a round before it
    // writes the next one's. (A worker that sleeps through 2^32 rounds to the task would be fooled.)
    const std::size_t next = state & next_mask;
    if (next >= n_tasks_.load(std::memory_order_relaxed) || next == closed) return false;
    const Task task = task_.load(std::memory_order_relaxed);
    void* const context = context_.load(std::memory_order_relaxed);
    const std::size_t index = first_.load(std::memory_order_relaxed) + next;
    if (!state_.compare_exchange_strong(state, state + 1, std::memory_order_acq_rel,
                                        std::memory_order_relaxed)) {
        return false;
    }
    task(context, index);
    n_done_.fetch_add(1, std::memory_order_release);
    return true;
}

bool CrewExecutor::help(std::uint64_t ticket) noexcept {
    if (n_helpers_.fetch_add(1, std::memory_order_acq_rel) + 1 >= n_threads_) {
        n_helpers_.fetch_sub(1, std::memory_order_acq_rel);
        return false;
    }
    Patience patience;
    while (true) {
        // In this order: a round of a later operator is published after the release of this one, so whoever
        // sees the round sees the release too, and no worker takes a task of an operator it does not help.
        const std::uint64_t state = state_.load(std::memory_order_acquire);
        if (released_.load(std::memory_order_acquire) >= ticket) break;
        if (run_one(state)) {
            patience.renew();
        } else {
            patience.wait();
        }
    }
    n_helpers_.fetch_sub(1, std::memory_order_acq_rel);
    return true;
}

void CrewExecutor::release(std::uint64_t ticket) noexcept {
    released_.store(ticket, std::memory_order_release);
}

void CrewExecutor::parallel_for(std::size_t n_tasks, Task task, void* context) noexcept {
    if (n_tasks <= 1 || n_threads_ == 1 || leading_.exchange(1, std::memory_order_acquire) != 0) {
        for (std::size_t i = 0; i < n_tasks; ++i)
            task(context, i);
        return;
    }
    task_.store(task, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    for (std::size_t first = 0; first < n_tasks; first += max_round) {
        first_.store(first, std::memory_order_relaxed);
        run_round(n_tasks - first < max_round ? n_tasks - first : max_round);
    }
    leading_.store(0, std::memory_order_release);
}

void CrewExecutor::run_round(std::size_t n_tasks) noexcept {
    n_tasks_.store(n_tasks, std::memory_order_relaxed);
    n_done_.store(0, std::memory_order_relaxed);
    const std::uint64_t open = (state_.load(std::memory_order_relaxed) & ~next_mask) + one_round;
    state_.store(open, std::memory_order_release);
    std::uint64_t state = open;
    while ((state & next_mask) < n_tasks) {
        run_one(state);
        state = state_.load(std::memory_order_acquire);
    }
    state_.store(open | closed, std::memory_order_release);
    Patience patience;
    while (n_done_.load(std::memory_order_acquire) < n_tasks)
        patience.wait();
}

}  // namespace gearkv
