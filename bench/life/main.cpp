// The life of a full cache: what it holds in memory, and what forks, truncations, shifts, saving and mapping
// cost. Bytes are counted by an allocator and read from the system.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <fcntl.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "gearkv/pool.hpp"
#include "gearkv/state.hpp"
#include "inputs.hpp"
#include "output.hpp"
#include "rounds.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

// Counts what is held, and the most since reset_peak.
struct CountedMemory {
    std::atomic<std::uint64_t> held{0}, peak{0};

    Allocator from = default_allocator();

    static void* allocate(void* context, std::size_t n_bytes, std::size_t alignment) {
        auto* self = static_cast<CountedMemory*>(context);
        const std::uint64_t now = self->held += n_bytes;
        self->peak = std::max(self->peak.load(), now);
        return self->from.allocate(self->from.context, n_bytes, alignment);
    }
    static void release(void* context, void* pointer, std::size_t n_bytes) {
        auto* self = static_cast<CountedMemory*>(context);
        self->held -= n_bytes;
        self->from.release(self->from.context, pointer, n_bytes);
    }
    Allocator allocator() { return {allocate, release, this}; }
    void reset_peak() { peak = held.load(); }
};

std::uint64_t resident_bytes() {
    std::ifstream status("/proc/self/statm");
    std::uint64_t size = 0, resident = 0;
    status >> size >> resident;
    return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

double seconds_of(const std::function<void()>& run) {
    const auto start = std::chrono::steady_clock::now();
    run();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median_of(int n, const std::function<double()>& seconds) {
    std::vector<double> all;
    for (int i = 0; i < n; ++i)
        all.push_back(seconds());
    return median(all);
}

struct Shape {
    std::uint32_t n_layers = 32, n_kv_heads = 8, n_heads = 32, dim = 128, n_tokens = 32768, chunk = 1024;
};

class Subject {
  public:
    // pool_bytes above 0: all memory is a BlockPool's.
    Subject(const Shape& shape, const std::string& spec, bool pages, std::uint64_t pool_bytes,
            Executor& executor)
        : shape_(shape), executor_(executor) {
        if (pages) memory_.from = page_allocator();
        if (pool_bytes > 0) {
            PoolOptions options;
            options.n_bytes = pool_bytes;
            options.from = memory_.from;
            require(BlockPool::create(options, &pool_));
            memory_.from = pool_->allocator();
        }
        frequencies_.resize(shape.dim / 2);
        for (std::size_t i = 0; i < frequencies_.size(); ++i)
            frequencies_[i] = std::pow(10000.0, -2.0 * static_cast<double>(i) / shape.dim);
        config_.n_layers = shape.n_layers;
        config_.n_kv_heads = shape.n_kv_heads;
        config_.key_dim = config_.value_dim = shape.dim;
        config_.max_tokens = shape.n_tokens + 1024;
        config_.rope = {frequencies_.data(), shape.dim / 2, false};
        config_.allocator = memory_.allocator();
        require(parse_spec(spec.c_str(), &config_.spec));
        k_ = make_rows(shape.chunk, shape.n_kv_heads, shape.dim, 1);
        v_ = make_rows(shape.chunk, shape.n_kv_heads, shape.dim, 2);
        q_ = make_rows(1, shape.n_heads, shape.dim, 3);
        out_.resize(q_.size());
    }

    void fill() {
        require(Cache::create(config_, &cache));
        for (std::uint32_t n = 0; n < shape_.n_tokens; n += shape_.chunk) {
            append(*cache, std::min(shape_.chunk, shape_.n_tokens - n));
            for (std::uint32_t layer = 0; layer < shape_.n_layers; ++layer)
                require(cache->compress(layer, executor_));
        }
    }
    void append(Cache& to, std::uint32_t n) {
        for (std::uint32_t layer = 0; layer < shape_.n_layers; ++layer)
            require(to.append(layer, rows_of(k_, shape_.n_kv_heads, shape_.dim),
                              rows_of(v_, shape_.n_kv_heads, shape_.dim), n, executor_));
    }
    void attend(Cache& of) {
        const Queries queries = queries_of(q_, 1, shape_.n_heads, shape_.dim);
        for (std::uint32_t layer = 0; layer < shape_.n_layers; ++layer)
            require(of.attend(layer, queries, out_.data(), out_.size(), executor_));
    }
    std::uint64_t fp16_bytes() const {
        return std::uint64_t{4} * shape_.n_layers * shape_.n_kv_heads * shape_.dim * shape_.n_tokens;
    }

    const CacheConfig& config() const { return config_; }
    CountedMemory& memory() { return memory_; }

  private:
    Shape shape_;
    Executor& executor_;
    std::unique_ptr<BlockPool> pool_;
    std::vector<double> frequencies_;
    CacheConfig config_;
    CountedMemory memory_;
    std::vector<float> k_, v_, q_, out_;

  public:
    std::unique_ptr<Cache> cache;  // before the memory it counts in
};

void measure_changes(Subject* subject, nlohmann::json* json) {
    Cache& cache = *subject->cache;
    CountedMemory& memory = subject->memory();
    const double n_layers = cache.config().n_layers;

    const std::uint64_t before = memory.held;
    std::uint64_t fork_bytes = 0;
    const double fork = median_of(9, [&] {
        std::unique_ptr<Cache> fork;
        const double seconds = seconds_of([&] { require(cache.fork(&fork)); });
        fork_bytes = memory.held - before;
        return seconds;
    });
    std::unique_ptr<Cache> kept;
    require(cache.fork(&kept));
    const CacheBytes own = kept->stats().bytes;
    kept.reset();
    std::printf("fork: %.0f us; %.3f MB, of which scratch %.3f and tables %.3f\n", 1e6 * fork,
                1e-6 * fork_bytes, 1e-6 * own.scratch, 1e-6 * own.tables);
    const double rollback = median_of(9, [&] {
        const std::uint64_t n = cache.n_tokens(0);
        subject->append(cache, 8);
        return seconds_of([&] { require(cache.truncate(n)); });
    });
    std::printf("truncate 8 tokens: %.2f us a layer\n", 1e6 * rollback / n_layers);

    const double step = median_of(5, [&] { return seconds_of([&] { subject->attend(cache); }); });
    const std::uint64_t n = cache.n_tokens(0);
    memory.reset_peak();
    const std::uint64_t held = memory.held;
    const double shift = seconds_of([&] { require(cache.remove(n / 4, n / 4)); });
    const std::uint64_t temporary = memory.peak - held;
    const double after = median_of(5, [&] { return seconds_of([&] { subject->attend(cache); }); });
    std::printf(
        "shift of 25 %%: %.0f us, %.3f %% of the cache's bytes as temporary memory; a step of all layers "
        "%.2f ms before, %.2f after, on .75 of the tokens\n",
        1e6 * shift, 100.0 * static_cast<double>(temporary) / static_cast<double>(held), 1e3 * step,
        1e3 * after);
    const double cut = seconds_of([&] { require(cache.truncate(n / 3)); });
    std::printf("truncate to a third: %.2f us a layer\n", 1e6 * cut / n_layers);
    (*json)["fork_us"] = 1e6 * fork;
    (*json)["fork_bytes"] = fork_bytes;
    (*json)["truncate_us_per_layer"] = 1e6 * rollback / n_layers;
    (*json)["shift_us"] = 1e6 * shift;
    (*json)["shift_temporary_bytes"] = temporary;
    (*json)["step_ms"] = {1e3 * step, 1e3 * after};
}

// Plain writing of the same bytes, with the same calls, in the fastest chunks of 64 KiB, 256 KiB and 4 MiB.
double plain_write(const std::string& path, std::uint64_t n_bytes) {
    const std::vector<char> chunk(256 << 10, 'x');
    return seconds_of([&] {
        const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0666);
        for (std::uint64_t left = n_bytes; left > 0;) {
            const ssize_t n = write(file, chunk.data(), std::min<std::uint64_t>(left, chunk.size()));
            if (n <= 0) require(Status::error(Code::io_error, "cannot write %s", path.c_str()));
            left -= static_cast<std::uint64_t>(n);
        }
        (void)!fsync(file);
        close(file);
    });
}

std::uint64_t n_faults() {
    rusage usage = {};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<std::uint64_t>(usage.ru_minflt) + static_cast<std::uint64_t>(usage.ru_majflt);
}

// What was freed goes to the system, so that the next to ask has pages to fault on whatever was freed before.
void give_memory_back() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

// Memory whose pages are all there. Nothing is given back before reset.
class TouchedMemory {
  public:
    explicit TouchedMemory(std::size_t n_bytes) : bytes_(n_bytes + 64, 1) { reset(); }
    void reset() { at_ = 64 - reinterpret_cast<std::uintptr_t>(bytes_.data()) % 64; }
    Allocator allocator() {
        return {[](void* context, std::size_t n_bytes, std::size_t) -> void* {
                    auto* self = static_cast<TouchedMemory*>(context);
                    const std::size_t from = self->at_, n = (n_bytes + 63) / 64 * 64;
                    if (n > self->bytes_.size() - from) return nullptr;
                    self->at_ += n;
                    return self->bytes_.data() + from;
                },
                [](void*, void*, std::size_t) {}, this};
    }

  private:
    std::vector<unsigned char> bytes_;
    std::size_t at_ = 0;
};

// Seconds of n page faults on a file in the page cache, evenly spread over it.
double file_faults_seconds(const std::string& path, std::uint64_t n_bytes, std::uint64_t n) {
    const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    const std::uint64_t step = std::max(n_bytes / n / page, std::uint64_t{1}) * page;
    const int file = open(path.c_str(), O_RDONLY);
    void* place = mmap(nullptr, n_bytes, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (place == MAP_FAILED) require(Status::error(Code::io_error, "cannot map %s", path.c_str()));
    const auto* at = static_cast<const volatile unsigned char*>(place);
    const std::uint64_t before = n_faults();
    const double seconds = seconds_of([&] {
        for (std::uint64_t i = 0; i < n_bytes; i += step)
            (void)at[i];
    });
    const std::uint64_t found = std::max<std::uint64_t>(n_faults() - before, 1);
    munmap(place, n_bytes);
    return seconds / static_cast<double>(found) * static_cast<double>(n);
}

// Mapping in the time of its page faults and the rest. What faults on memory cost shows when the same is done
// in memory that was touched before, which leaves those on the file; as many of these are repeated alone.
void measure_faults(Subject* subject, const std::string& path, std::uint64_t n_bytes, int n_rounds,
                    Executor& executor, nlohmann::json* json) {
    std::vector<double> all, faults, file_faults, cost, rest;
    const auto map = [&](const CacheConfig& config, double* seconds) {
        std::unique_ptr<Cache> loaded;
        LoadOptions options;
        options.loading = StateLoading::map;
        options.checking = StateChecking::on_first_use;
        give_memory_back();
        const std::uint64_t before = n_faults();
        *seconds = seconds_of([&] { require(load_state(path.c_str(), config, options, executor, &loaded)); });
        return n_faults() - before;
    };
    CountedMemory& memory = subject->memory();
    memory.reset_peak();
    const std::uint64_t held = memory.held;
    double fresh_seconds = 0.0, seconds = 0.0;
    map(subject->config(), &fresh_seconds);
    TouchedMemory touched(2 * (memory.peak - held) + (1 << 20));
    CacheConfig config = subject->config();
    config.allocator = touched.allocator();
    for (int i = 0; i < n_rounds; ++i) {
        const std::uint64_t n = map(subject->config(), &fresh_seconds);
        touched.reset();
        const std::uint64_t n_file = std::max<std::uint64_t>(map(config, &seconds), 1);
        const double of_file = file_faults_seconds(path, n_bytes, n_file);
        all.push_back(fresh_seconds);
        faults.push_back(static_cast<double>(n));
        file_faults.push_back(static_cast<double>(n_file));
        cost.push_back(fresh_seconds - seconds + of_file);
        rest.push_back(seconds - of_file);
    }
    std::printf(
        "mapped in %.1f ms with %.0f page faults, %.0f of them on the file, which alone cost %.1f ms; the "
        "rest "
        "%.1f ms\n",
        1e3 * median(all), median(faults), median(file_faults), 1e3 * median(cost), 1e3 * median(rest));
    (*json)["map_faults"] = median(faults);
    (*json)["map_file_faults"] = median(file_faults);
    (*json)["map_faults_ms"] = 1e3 * median(cost);
    (*json)["map_rest_ms"] = 1e3 * median(rest);
}

void measure_file(Subject* subject, const std::string& path, int n_rounds, Executor& executor,
                  nlohmann::json* json) {
    Timed save{[&] { require(save_state(*subject->cache, path.c_str(), {}, executor)); }};
    std::uint64_t n_bytes = 0;
    save.run();
    StateInfo info;
    require(inspect_state(path.c_str(), &info));
    n_bytes = info.n_bytes;
    Timed plain{[&] { (void)plain_write(path + ".plain", n_bytes); }};
    std::vector<Timed> cases = {save, plain};
    // Both write a new file, with as many pages free: an old one takes time to drop, and pages that it just
    // gave up are filled sooner than those a virtual machine must ask its host for.
    run_rounds(&cases, static_cast<std::size_t>(n_rounds), [&] {
        std::remove(path.c_str());
        std::remove((path + ".plain").c_str());
    });
    std::remove((path + ".plain").c_str());
    save.run();
    const auto load = [&](StateLoading loading, StateChecking checking) {
        return median_of(n_rounds, [&] {
            std::unique_ptr<Cache> loaded;
            LoadOptions options;
            options.loading = loading;
            options.checking = checking;
            give_memory_back();
            return seconds_of(
                [&] { require(load_state(path.c_str(), subject->config(), options, executor, &loaded)); });
        });
    };
    const double map = load(StateLoading::map, StateChecking::on_first_use);
    const double checked = load(StateLoading::map, StateChecking::all);
    const double copied = load(StateLoading::copy, StateChecking::all);
    const double empty = median_of(n_rounds, [&] {
        std::unique_ptr<Cache> none;
        give_memory_back();
        return seconds_of([&] { require(Cache::create(subject->config(), &none)); });
    });
    measure_faults(subject, path, n_bytes, n_rounds, executor, json);
    const double write_share = ratio(cases[1], cases[0]);
    std::printf(
        "file of %.3f GiB: saved at %.2f GB/s, %.2f of a plain write of the same bytes; mapped in %.2f ms "
        "(an empty cache takes %.2f), with every byte checked %.0f ms, copied %.0f ms\n",
        static_cast<double>(n_bytes) / (1 << 30),
        1e-9 * static_cast<double>(n_bytes) / median(cases[0].seconds), write_share, 1e3 * map, 1e3 * empty,
        1e3 * checked, 1e3 * copied);
    (*json)["file_bytes"] = n_bytes;
    (*json)["save_share_of_plain_write"] = write_share;
    (*json)["map_ms"] = 1e3 * map;
    (*json)["create_ms"] = 1e3 * empty;
    (*json)["map_checked_ms"] = 1e3 * checked;
    (*json)["copy_ms"] = 1e3 * copied;
    std::remove(path.c_str());
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{"A full cache: resident memory, and what forks, truncations, shifts and files cost"};
    Shape shape;
    std::vector<std::string> specs = {"gear-2"};
    unsigned n_threads = 0;
    int n_rounds = 3;
    bool pages = false;
    double pool_gib = 0.0;
    std::string json_path, state_path;
    app.add_option("--kv", specs, "SPECs of the cache")->capture_default_str();
    app.add_option("--threads", n_threads, "0: one per processor")->capture_default_str();
    app.add_option("--layers", shape.n_layers)->capture_default_str();
    app.add_option("--kv-heads", shape.n_kv_heads)->capture_default_str();
    app.add_option("--heads", shape.n_heads)->capture_default_str();
    app.add_option("--head-dim", shape.dim)->capture_default_str();
    app.add_option("--tokens", shape.n_tokens)->capture_default_str();
    app.add_option("--rounds", n_rounds, "of saving and loading")->capture_default_str();
    app.add_flag("--pages", pages, "take memory from page_allocator, in large pages");
    app.add_option("--pool", pool_gib, "GiB of a BlockPool that all memory comes from; 0: no pool")
        ->capture_default_str();
    app.add_option("--state", state_path, "also save to this file, map it and load it");
    app.add_option("--json", json_path, "also write the figures as JSON to this file");
    CLI11_PARSE(app, argc, argv);

    std::unique_ptr<Executor> executor;
    require(create_executor(n_threads, &executor));
    Level level;
    require(resolve_level(Level::automatic, &level));
    std::printf("%u layers, %u/%u heads of %u channels, %u tokens, level %s, %u threads\n", shape.n_layers,
                shape.n_heads, shape.n_kv_heads, shape.dim, shape.n_tokens, level_name(level),
                executor->n_threads());
    nlohmann::json json = {
        {"schema_version", 1}, {"level", level_name(level)}, {"rows", nlohmann::json::array()}};
    for (const std::string& spec : specs) {
        nlohmann::json row = {{"spec", spec}};
        const auto slabs = static_cast<std::uint64_t>(pool_gib * (1 << 30)) / PoolOptions().slab_bytes;
        Subject subject(shape, spec, pages, slabs * PoolOptions().slab_bytes, *executor);
        const std::uint64_t resident = resident_bytes();
        const double filled = seconds_of([&] { subject.fill(); });
        const double step = seconds_of([&] { subject.attend(*subject.cache); });
        const CacheStats stats = subject.cache->stats();
        const double gib = 1 << 30;
        const std::uint64_t grown = resident_bytes() - resident;
        std::printf(
            "%s: %.3f GiB resident for %.3f GiB of fp16, allocated %.3f; %.2f bits per element; filled in "
            "%.1f s, first step of all layers %.1f ms\n",
            spec.c_str(), static_cast<double>(grown) / gib, static_cast<double>(subject.fp16_bytes()) / gib,
            static_cast<double>(subject.memory().held) / gib, stats.bits_per_element, filled, 1e3 * step);
        row["resident_bytes"] = grown;
        row["fp16_bytes"] = subject.fp16_bytes();
        row["bits_per_element"] = stats.bits_per_element;
        row["fill_seconds"] = filled;
        if (!state_path.empty()) measure_file(&subject, state_path, n_rounds, *executor, &row);
        measure_changes(&subject, &row);
        json["rows"].push_back(row);
    }
    return write_json(json_path, json) ? 0 : 1;
}
