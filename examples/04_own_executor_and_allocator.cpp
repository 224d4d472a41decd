// Hand the library your own threads and your own memory. The cache's report of its bytes is checked against
// what its allocator really gave out, at every step.
//
//   04_own_executor_and_allocator
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "gearkv/cache.hpp"

using namespace gearkv;

namespace {

// One helper thread that shares the tasks with the caller; a real program wraps the pool it already has.
class PairExecutor final : public Executor {
  public:
    PairExecutor() : helper_([this] { help(); }) {}
    ~PairExecutor() override {
        hand_over(true);
        helper_.join();
    }
    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override {
        n_tasks_ = n_tasks;
        task_ = task;
        context_ = context;
        next_ = 0;
        hand_over(false);
        take_tasks();
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !busy_; });
    }
    unsigned n_threads() const noexcept override { return 2; }

  private:
    void hand_over(bool stop) noexcept {
        const std::lock_guard lock(mutex_);
        busy_ = true;
        stop_ = stop;
        changed_.notify_all();
    }
    void take_tasks() noexcept {
        for (std::size_t i; (i = next_++) < n_tasks_;)
            task_(context_, i);
    }
    void help() noexcept {
        std::unique_lock lock(mutex_);
        while (true) {
            changed_.wait(lock, [this] { return busy_; });
            if (stop_) return;
            lock.unlock();
            take_tasks();
            lock.lock();
            busy_ = false;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    bool busy_ = false, stop_ = false;
    std::size_t n_tasks_ = 0;
    Task task_ = nullptr;
    void* context_ = nullptr;
    std::atomic<std::size_t> next_{0};
    std::thread helper_;
};

// Bytes given out and not yet taken back.
struct Counter {
    std::atomic<std::uint64_t> n_bytes{0};

    static void* allocate(void* counter, std::size_t n_bytes, std::size_t alignment) {
        static_cast<Counter*>(counter)->n_bytes += n_bytes;
        return std::aligned_alloc(alignment, (n_bytes + alignment - 1) / alignment * alignment);
    }
    static void release(void* counter, void* pointer, std::size_t n_bytes) {
        static_cast<Counter*>(counter)->n_bytes -= n_bytes;
        std::free(pointer);
    }
};

void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s: %s\n", code_name(status.code()), status.message());
    std::exit(1);
}

// Reported and measured bytes may differ by 2 % and the cache object itself.
void compare(const char* when, const Cache& cache, const Counter& counter) {
    const auto reported = static_cast<double>(cache.stats().bytes.bytes);
    const auto measured = static_cast<double>(counter.n_bytes);
    std::printf("%-22s %12.0f %12.0f\n", when, reported, measured);
    if (std::abs(measured - reported) <= 0.02 * measured + 1024) return;
    std::fprintf(stderr, "the cache reports other bytes than it holds\n");
    std::exit(1);
}

}  // namespace

int main() {
    constexpr std::uint32_t n_kv_heads = 4, dim = 128, n_layers = 2, n_prompt = 1000, n_generated = 300;
    Counter counter;
    PairExecutor executor;
    CacheConfig config;
    config.n_layers = n_layers;
    config.n_kv_heads = n_kv_heads;
    config.key_dim = config.value_dim = dim;
    config.max_tokens = n_prompt + n_generated;
    config.allocator = {Counter::allocate, Counter::release, &counter};
    require(parse_spec("gear-4", &config.spec));

    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::vector<float> x(n_prompt * n_kv_heads * dim);
    for (float& v : x)
        v = normal(random);
    const Rows rows = {x.data(), n_kv_heads * dim, dim};  // the same rows serve as keys and values

    std::printf("%-22s %12s %12s\n", "bytes", "reported", "measured");
    {
        std::unique_ptr<Cache> cache;
        require(Cache::create(config, &cache));
        compare("created", *cache, counter);
        for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
            require(cache->append(layer, rows, rows, n_prompt, executor));
        }
        compare("prompt in fp16", *cache, counter);
        for (std::uint32_t layer = 0; layer < n_layers; ++layer)
            require(cache->compress(layer, executor));
        compare("prompt compressed", *cache, counter);
        for (std::uint32_t t = 0; t < n_generated; ++t) {
            for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
                require(cache->append(layer, rows, rows, 1, executor));
            }
        }
        compare("300 tokens generated", *cache, counter);
        cache->reset();
        compare("reset", *cache, counter);
    }
    std::printf("%-22s %12s %12llu\n", "destroyed", "", static_cast<unsigned long long>(counter.n_bytes));
    return counter.n_bytes == 0 ? 0 : 1;
}
