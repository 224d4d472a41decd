// Version, errors, levels, memory, threads and SPECs for C.
#include <new>

#include "c/convert.hpp"
#include "gearkv/pool.hpp"

namespace gearkv::c {
namespace {

// A pool of the caller's.
class CustomExecutor final : public Executor {
  public:
    explicit CustomExecutor(const gearkv_executor_callbacks& callbacks) noexcept : callbacks_(callbacks) {}
    void parallel_for(std::size_t n_tasks, Task task, void* context) noexcept override {
        callbacks_.parallel_for(callbacks_.context, n_tasks, task, context);
    }
    unsigned n_threads() const noexcept override { return callbacks_.n_threads(callbacks_.context); }

  private:
    const gearkv_executor_callbacks callbacks_;
};

CrewExecutor* cpp(gearkv_crew* crew) noexcept {
    return reinterpret_cast<CrewExecutor*>(crew);
}
BlockPool* cpp(gearkv_pool* pool) noexcept {
    return reinterpret_cast<BlockPool*>(pool);
}
Level cpp(gearkv_level level) noexcept {
    return static_cast<Level>(level);
}

}  // namespace

}  // namespace gearkv::c

using namespace gearkv;
using namespace gearkv::c;

uint32_t gearkv_version_number(void) {
    return GEARKV_VERSION_NUMBER;
}

#define GEARKV_TEXT(x) #x
#define GEARKV_VERSION_TEXT(a, b, c) GEARKV_TEXT(a) "." GEARKV_TEXT(b) "." GEARKV_TEXT(c)
const char* gearkv_version(void) {
    return GEARKV_VERSION_TEXT(GEARKV_VERSION_MAJOR, GEARKV_VERSION_MINOR, GEARKV_VERSION_PATCH);
}

const char* gearkv_code_name(gearkv_code code) {
    if (code == GEARKV_DECODER_ERROR) return "decoder_error";
    for (unsigned i = 0; i < 256; ++i) {
        const Code candidate = static_cast<Code>(i);
        if (plain(candidate) == code) return code_name(candidate);
    }
    return "?";
}

const char* gearkv_level_name(gearkv_level level) {
    return is_level(level) ? level_name(cpp(level)) : "?";
}

int gearkv_level_available(gearkv_level level) {
    return is_level(level) && level_available(cpp(level));
}

gearkv_allocator gearkv_default_allocator(void) {
    return plain(default_allocator());
}

gearkv_allocator gearkv_page_allocator(int huge, int prefault) {
    return plain(page_allocator({huge != 0, prefault != 0}));
}

gearkv_code gearkv_pool_create(uint64_t n_bytes, uint64_t slab_bytes, const gearkv_allocator* from,
                               gearkv_pool** out, gearkv_error* error) {
    if (out == nullptr) return report(null_argument("out"), error);
    PoolOptions options;
    options.n_bytes = n_bytes;
    if (slab_bytes > 0) options.slab_bytes = slab_bytes;
    if (from != nullptr) options.from = cpp(*from);
    std::unique_ptr<BlockPool> pool;
    const Status status = BlockPool::create(options, &pool);
    if (status.ok()) *out = reinterpret_cast<gearkv_pool*>(pool.release());
    return report(status, error);
}

void gearkv_pool_destroy(gearkv_pool* pool) {
    delete cpp(pool);
}

gearkv_allocator gearkv_pool_allocator(gearkv_pool* pool) {
    return pool == nullptr ? gearkv_allocator{} : plain(cpp(pool)->allocator());
}

gearkv_code gearkv_pool_get_stats(const gearkv_pool* pool, gearkv_pool_stats* out, gearkv_error* error) {
    if (pool == nullptr) return report(null_argument("pool"), error);
    if (Status status = check_output(out, "out"); !status.ok()) return report(status, error);
    const PoolStats stats = reinterpret_cast<const BlockPool*>(pool)->stats();
    give({sizeof(gearkv_pool_stats), stats.n_bytes, stats.held_bytes, stats.most_held_bytes,
          stats.taken_bytes, stats.longest_bytes, stats.n_blocks, stats.n_free_slabs, stats.n_refused},
         out);
    return report({}, error);
}

gearkv_code gearkv_workspace_create(const gearkv_allocator* allocator, gearkv_workspace** out,
                                    gearkv_error* error) {
    if (out == nullptr) return report(null_argument("out"), error);
    std::unique_ptr<Workspace> workspace;
    const Status status =
        Workspace::create(allocator == nullptr ? default_allocator() : cpp(*allocator), &workspace);
    if (status.ok()) *out = reinterpret_cast<gearkv_workspace*>(workspace.release());
    return report(status, error);
}

void gearkv_workspace_destroy(gearkv_workspace* workspace) {
    delete cpp(workspace);
}

uint64_t gearkv_workspace_bytes(const gearkv_workspace* workspace) {
    return workspace == nullptr ? 0 : reinterpret_cast<const Workspace*>(workspace)->n_bytes();
}

gearkv_code gearkv_executor_create(unsigned n_threads, gearkv_executor** out, gearkv_error* error) {
    if (out == nullptr) return report(null_argument("out"), error);
    std::unique_ptr<Executor> executor;
    const Status status = create_executor(n_threads, &executor);
    if (status.ok()) *out = reinterpret_cast<gearkv_executor*>(executor.release());
    return report(status, error);
}

void gearkv_executor_destroy(gearkv_executor* executor) {
    delete reinterpret_cast<Executor*>(executor);
}

unsigned gearkv_executor_n_threads(const gearkv_executor* executor) {
    return executor == nullptr ? 1 : reinterpret_cast<const Executor*>(executor)->n_threads();
}

gearkv_code gearkv_executor_create_custom(const gearkv_executor_callbacks* callbacks, gearkv_executor** out,
                                          gearkv_error* error) {
    gearkv_executor_callbacks taken = {};
    if (Status status = take(callbacks, "callbacks", &taken); !status.ok()) return report(status, error);
    if (taken.parallel_for == nullptr) return report(null_argument("parallel_for"), error);
    if (taken.n_threads == nullptr) return report(null_argument("n_threads"), error);
    if (out == nullptr) return report(null_argument("out"), error);
    Executor* executor = new (std::nothrow) CustomExecutor(taken);
    if (executor == nullptr)
        return report(Status::error(Code::out_of_memory, "no memory for an executor"), error);
    *out = reinterpret_cast<gearkv_executor*>(executor);
    return report({}, error);
}

gearkv_code gearkv_crew_create(unsigned n_threads, gearkv_crew** out, gearkv_error* error) {
    if (out == nullptr) return report(null_argument("out"), error);
    if (n_threads == 0) {
        return report(Status::error(Code::invalid_argument, "a crew of 0 threads, expected at least 1"),
                      error);
    }
    auto* crew = new (std::nothrow) CrewExecutor(n_threads);
    if (crew == nullptr) return report(Status::error(Code::out_of_memory, "no memory for a crew"), error);
    *out = reinterpret_cast<gearkv_crew*>(crew);
    return report({}, error);
}

void gearkv_crew_destroy(gearkv_crew* crew) {
    delete cpp(crew);
}

gearkv_executor* gearkv_crew_executor(gearkv_crew* crew) {
    return reinterpret_cast<gearkv_executor*>(static_cast<Executor*>(cpp(crew)));
}

int gearkv_crew_help(gearkv_crew* crew, uint64_t ticket) {
    return crew != nullptr && cpp(crew)->help(ticket);
}

void gearkv_crew_release(gearkv_crew* crew, uint64_t ticket) {
    if (crew != nullptr) cpp(crew)->release(ticket);
}

gearkv_code gearkv_format_spec(const char* spec, char* text, size_t n_chars, gearkv_error* error) {
    KvSpec parsed;
    Status status = parse_spec(spec, &parsed);
    if (status.ok() && text != nullptr) status = format_spec(parsed, text, n_chars);
    return report(status, error);
}
