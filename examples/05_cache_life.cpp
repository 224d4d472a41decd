// What can happen to a cache beyond appending and attending: rollback, fork, batch, context shift, sliding
// window, budgets, saving and mapping.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "gearkv/pool.hpp"
#include "gearkv/state.hpp"

using namespace gearkv;

namespace {

constexpr std::uint32_t n_heads = 4, n_kv_heads = 2, dim = 64;

void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s: %s\n", code_name(status.code()), status.message());
    std::exit(1);
}

void expect(bool holds, const char* what) {
    std::printf("%s: %s\n", what, holds ? "yes" : "NO");
    if (!holds) std::exit(1);
}

// Keys and values of n tokens, as a model would make them.
void append(Cache& cache, std::uint32_t n, std::uint32_t first = 0) {
    std::vector<float> k(n * n_kv_heads * dim), v(k.size());
    for (std::size_t i = 0; i < k.size(); ++i) {
        const auto x = static_cast<float>(i + first * n_kv_heads * dim);
        k[i] = std::sin(0.37f * x);
        v[i] = 0.5f + std::cos(0.11f * x);
    }
    const Rows keys = {k.data(), n_kv_heads * dim, dim}, values = {v.data(), n_kv_heads * dim, dim};
    require(cache.append(0, keys, values, n, serial_executor()));
}

std::vector<float> attend(Cache& cache, std::uint64_t window = 0) {
    std::vector<float> q(n_heads * dim), out(n_heads * dim);
    for (std::size_t i = 0; i < q.size(); ++i)
        q[i] = std::sin(0.05f * static_cast<float>(i));
    Queries queries = {q.data(), n_heads * dim, dim, 1, n_heads, 0.125f, true};
    queries.window = window;
    require(cache.attend(0, queries, out.data(), out.size(), serial_executor()));
    return out;
}

}  // namespace

int main(int argc, char** argv) {
    const char* path = argc > 1 ? argv[1] : "05_cache_life.state";
    std::vector<double> frequencies(dim / 2);  // of the model's rotary embedding
    for (std::size_t i = 0; i < frequencies.size(); ++i)
        frequencies[i] = std::pow(10000.0, -2.0 * static_cast<double>(i) / dim);

    CacheConfig config;
    config.n_layers = 1;
    config.n_kv_heads = n_kv_heads;
    config.key_dim = config.value_dim = dim;
    config.max_tokens = 4096;
    config.rope = {frequencies.data(), dim / 2, true};
    config.max_bytes = 4 << 20;                             // a hard limit
    config.rollback_tokens = 8;                             // the longest draft
    config.error_every = 1;                                 // look at every block that closes
    require(parse_spec("gear-4:recent=32", &config.spec));  // the last 32 tokens stay in fp16
    std::unique_ptr<Workspace> workspace;                   // working memory of all caches
    require(Workspace::create(config.allocator, &workspace));
    config.workspace = workspace.get();
    std::unique_ptr<Cache> cache;
    require(Cache::create(config, &cache));
    append(*cache, 996);
    (void)attend(*cache);
    require(cache->compress(0, serial_executor()));
    LayerStats stats;
    require(cache->layer_stats(0, &stats));
    std::printf("attention on the blocks is off by %.3f of its output\n", stats.output_error);

    // Rollback, as after a rejected draft; lossless also when a block was closed meanwhile.
    append(*cache, 4, 996);
    const std::vector<float> before = attend(*cache);
    append(*cache, 8, 1000);
    bool lossless = false;
    require(cache->truncate(1000, &lossless));
    expect(lossless && attend(*cache) == before, "after a rollback attention is what it was");

    // A fork costs no tokens; the two go their own ways.
    std::unique_ptr<Cache> fork;
    require(cache->fork(&fork));
    append(*fork, 200, 2000);
    std::printf("the fork holds %llu tokens, and shares %llu bytes\n",
                static_cast<unsigned long long>(fork->n_tokens(0)),
                static_cast<unsigned long long>(fork->stats().bytes.shared));
    expect(attend(*cache) == before, "the source of a fork stays as it is");

    // Many sequences in one call, each as it would be alone.
    std::vector<float> q(n_heads * dim), outs(2 * q.size());
    for (std::size_t i = 0; i < q.size(); ++i)
        q[i] = std::sin(0.05f * static_cast<float>(i));
    const Queries queries = {q.data(), n_heads * dim, dim, 1, n_heads, 0.125f, true};
    const AttendRequest requests[] = {{cache.get(), queries, outs.data(), q.size()},
                                      {fork.get(), queries, outs.data() + q.size(), q.size()}};
    require(Cache::attend_batch(0, requests, 2, serial_executor()));
    outs.resize(q.size());
    expect(outs == before, "in a batch too");

    // A context shift: tokens 100 to 399 go, the rest moves up.
    require(fork->remove(100, 300));
    expect(fork->n_tokens(0) == 900, "900 tokens are left after the shift");
    (void)attend(*fork);

    // A layer with a sliding window gives back what it will not see again.
    const std::vector<float> in_window = attend(*fork, 256);
    require(fork->forget_before(0, fork->n_tokens(0) - 256));
    expect(attend(*fork, 256) == in_window, "a window sees the same after older blocks are given back");

    // Saved, and attended where it lies in the file.
    require(save_state(*cache, path, {}, serial_executor()));
    LoadOptions options;
    options.loading = StateLoading::map;
    std::unique_ptr<Cache> mapped;
    require(load_state(path, config, options, serial_executor(), &mapped));
    std::printf("%llu bytes are attended in the file\n",
                static_cast<unsigned long long>(mapped->stats().bytes.mapped));
    expect(attend(*mapped) == before, "a mapped cache attends as the saved one");
    append(*mapped, 300, 3000);

    // The first 700 tokens through a function, whose bytes go to where you like, and back out of memory.
    SaveOptions first;
    first.n_tokens = 700;
    std::vector<unsigned char> bytes;
    const ByteSink sink = {[](void* context, const void* piece, std::size_t n) {
                               auto* to = static_cast<std::vector<unsigned char>*>(context);
                               const auto* from = static_cast<const unsigned char*>(piece);
                               to->insert(to->end(), from, from + n);
                               return true;
                           },
                           &bytes};
    std::uint64_t n_bytes = 0;
    require(state_bytes(*cache, first, &n_bytes));
    bytes.reserve(n_bytes);
    require(save_state(*cache, sink, first, serial_executor()));
    std::unique_ptr<Cache> prefix;
    require(load_state(bytes.data(), bytes.size(), config, {}, serial_executor(), &prefix));
    expect(bytes.size() == n_bytes && prefix->n_tokens(0) == 700, "700 tokens in as many bytes as were told");

    // Windows say it once. Another kind of compression, whose older blocks shrink above 600 KiB; and all of
    // it in memory that is taken once for any number of caches.
    PoolOptions pool_options;
    pool_options.n_bytes = 8 << 20;
    std::unique_ptr<BlockPool> pool;
    require(BlockPool::create(pool_options, &pool));
    {
        const std::uint32_t windows[] = {256};
        CacheConfig served = config;
        served.allocator = pool->allocator();
        served.windows = windows;
        served.block_tokens = 128;
        std::unique_ptr<Cache> in_window_only, shrinking;
        require(Cache::create(served, &in_window_only));
        served.windows = nullptr;
        served.soft_bytes = 600 << 10;
        require(parse_spec("paper:gear-4", &served.spec));
        require(Cache::create(served, &shrinking));
        for (Cache* one : {in_window_only.get(), shrinking.get()}) {
            append(*one, 3000);
            require(one->compress(0, serial_executor()));
            (void)attend(*one);
        }
        require(in_window_only->layer_stats(0, &stats));
        expect(stats.n_forgotten > 2500, "what a window leaves behind is not kept");
        std::uint64_t freed = 0;
        const std::uint64_t n_shrunk = shrinking->stats().n_shrunk;
        require(shrinking->shrink(0, &freed));
        expect(n_shrunk > 0 && freed > 0, "older blocks shrank by themselves, and the others when asked to");
        const PoolStats used = pool->stats();
        std::printf("%llu bytes of the pool are held, %llu are free in one piece\n",
                    static_cast<unsigned long long>(used.held_bytes),
                    static_cast<unsigned long long>(used.longest_bytes));
    }
    expect(pool->stats().held_bytes == 0, "the pool has everything back");

    // The limit holds, and what is there stays.
    config.max_bytes = 1 << 19;
    std::unique_ptr<Cache> small;
    require(Cache::create(config, &small));
    Status status;
    std::uint32_t n = 0;
    for (std::vector<float> rows(64 * n_kv_heads * dim, 0.5f); status.ok() && n < 4096;
         n += status.ok() ? 64 : 0) {
        const Rows all = {rows.data(), n_kv_heads * dim, dim};
        status = small->append(0, all, all, 64, serial_executor());
    }
    expect(status.code() == Code::over_budget && small->n_tokens(0) == n, "a budget refuses, and keeps");
    std::remove(path);
    return 0;
}
