// What calls need of a thread's stack, as README says.
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "gearkv/state.hpp"
#include "support/temporary_file.hpp"
#include "unit/caches.hpp"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GEARKV_OTHER_STACKS
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define GEARKV_OTHER_STACKS
#endif
#endif

namespace gearkv::testing {
namespace {

#if !defined(GEARKV_OTHER_STACKS) && defined(NDEBUG)

constexpr std::size_t promised_bytes = 128 * 1024;

// Runs `work` on a thread of so much stack, against a page that cannot be touched, and returns how much of it
// was used.
template <class Work>
std::size_t stack_used(Work work) {
    constexpr std::size_t page = 65536, mark = 0xa5;
    auto* map = static_cast<unsigned char*>(
        ::mmap(nullptr, page + promised_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(map != MAP_FAILED);
    REQUIRE(::mprotect(map, page, PROT_NONE) == 0);
    unsigned char* stack = map + page;
    std::memset(stack, mark, promised_bytes);
    pthread_attr_t attributes;
    REQUIRE(::pthread_attr_init(&attributes) == 0);
    REQUIRE(::pthread_attr_setstack(&attributes, stack, promised_bytes) == 0);
    pthread_t thread;
    const auto run = [](void* context) -> void* {
        (*static_cast<Work*>(context))();
        return nullptr;
    };
    REQUIRE(::pthread_create(&thread, &attributes, run, &work) == 0);
    ::pthread_join(thread, nullptr);
    ::pthread_attr_destroy(&attributes);
    const auto* touched =
        std::find_if(stack, stack + promised_bytes, [](unsigned char x) { return x != mark; });
    const auto used = static_cast<std::size_t>(stack + promised_bytes - touched);
    ::munmap(map, page + promised_bytes);
    return used;
}

TEST_CASE("every call lives within the stack that is promised", "[stack]") {
    constexpr std::uint32_t dim = 1024, n_heads = 2;
    const TemporaryFile file;
    const char* path = file.path();
    std::vector<float> x(200 * n_heads * dim), out(8 * 2 * n_heads * dim), read(200 * n_heads * dim);
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = std::sin(0.1f * static_cast<float>(i % 9973));
    std::size_t most = 0;
    for (const char* text : {"gear-4", "auto:3", "paper:gear-2:nb=64,s=0.1", "kivi-3:nb=64", "q8:nb=64",
                             "f32:nb=64", "k=kcvt-2:nb=64;v=token-8"}) {
        Status failed;
        const std::size_t used = stack_used([&] {
            const auto note = [&](const Status& status) {
                if (!status.ok() && failed.ok()) failed = status;
            };
            CacheConfig config;
            config.n_layers = 1;
            config.n_kv_heads = n_heads;
            config.key_dim = config.value_dim = dim;
            config.max_tokens = 1000;
            config.error_every = 1;
            std::vector<double> turns(dim / 2, 0.01);
            config.rope = {turns.data(), dim / 2, true};
            note(parse_spec(text, &config.spec));
            std::unique_ptr<Cache> cache, fork, loaded;
            note(Cache::create(config, &cache));
            const Rows rows = {x.data(), n_heads * dim, dim},
                       transposed = {x.data(), 1, 200, ElementType::f32, 400};
            Queries queries = {x.data(), 2 * n_heads * dim, dim, 8, 2 * n_heads, 0.03f, true};
            queries.soft_cap = 20.0f;
            note(cache->append(0, rows, rows, 200, serial_executor()));
            note(cache->attend(0, queries, out.data(), out.size(), serial_executor()));
            note(cache->compress(0, serial_executor()));
            note(cache->append(0, transposed, transposed, 100, serial_executor()));
            queries.out_type = ElementType::bf16;
            queries.channel_stride = 2;
            note(cache->attend(0, queries, out.data(), out.size(), serial_executor()));
            note(cache->remove(20, 50));
            note(cache->attend(0, queries, out.data(), out.size(), serial_executor()));
            note(
                cache->read(0, 0, 200, read.data(), read.size(), read.data(), read.size(), ElementType::f16));
            note(cache->fork(&fork));
            note(fork->truncate(100));
            note(cache->shrink(1));
            note(save_state(*cache, path, {}, serial_executor()));
            note(load_state(path, config, {}, serial_executor(), &loaded));
            note(loaded == nullptr ? Status() : loaded->compress(0, serial_executor()));
        });
        INFO(text << ": " << failed.message());
        CHECK(failed.ok());
        most = std::max(most, used);
    }
    INFO("most of a stack that was used: " << most << " bytes");
    CHECK(most <= promised_bytes * 3 / 4);
}

#endif

}  // namespace
}  // namespace gearkv::testing
