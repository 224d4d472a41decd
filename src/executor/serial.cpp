// Every task on the calling thread, and the choice of the executor this build prefers.
#include "gearkv/executor.hpp"

#include <new>

namespace gearkv {
namespace {

class SerialExecutor final : public Executor {
  public:
    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override {
        for (std::size_t i = 0; i < n_tasks; ++i)
            task(context, i);
    }
    unsigned n_threads() const noexcept override { return 1; }
};

}  // namespace

Executor& serial_executor() noexcept {
    // Built at the first call and never destroyed: it may serve a cache that outlives static destruction.
    alignas(SerialExecutor) static unsigned char memory[sizeof(SerialExecutor)];
    static SerialExecutor* const executor = new (memory) SerialExecutor;
    return *executor;
}

Status create_executor(unsigned n_threads, std::unique_ptr<Executor>* out) noexcept {
#if defined(GEARKV_HAVE_TBB)
    return create_tbb_executor(n_threads, out);
#elif defined(GEARKV_HAVE_THREADS)
    return create_threads_executor(n_threads, out);
#else
    constexpr unsigned max_threads = 1024;
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (n_threads > max_threads) {
        return Status::error(Code::invalid_argument, "%u threads, expected at most %u", n_threads,
                             max_threads);
    }
    auto* executor = new (std::nothrow) SerialExecutor;
    if (executor == nullptr) return Status::error(Code::out_of_memory, "no memory for an executor");
    out->reset(executor);
    return {};
#endif
}

}  // namespace gearkv
