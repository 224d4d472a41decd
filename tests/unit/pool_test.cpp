// The pool alone, against a plain list of what is out, and below caches, against the default allocator.
#include "gearkv/pool.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <set>
#include <thread>

#include "caches.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GEARKV_TEST_POISON
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define GEARKV_TEST_POISON
#endif
#if defined(GEARKV_TEST_POISON)
#include <sanitizer/asan_interface.h>
#endif

using namespace gearkv;
using namespace gearkv::testing;

namespace {

std::unique_ptr<BlockPool> make_pool(std::uint64_t n_bytes, std::uint64_t slab_bytes = 1 << 16,
                                     const Allocator& from = default_allocator()) {
    std::unique_ptr<BlockPool> pool;
    const Status status = BlockPool::create({n_bytes, slab_bytes, from}, &pool);
    INFO(status.message());
    REQUIRE(status.ok());
    return pool;
}

// Nothing is out, and all of the pool can be had as one block.
void check_empty(BlockPool* pool) {
    const PoolStats stats = pool->stats();
    CHECK(stats.n_blocks == 0);
    CHECK(stats.held_bytes == 0);
    CHECK(stats.taken_bytes == 0);
    CHECK(stats.longest_bytes == stats.n_bytes);
    const Allocator allocator = pool->allocator();
    void* all = allocator.allocate(allocator.context, stats.n_bytes, 64);
    REQUIRE(all != nullptr);
    CHECK(pool->stats().n_free_slabs == 0);
    CHECK(pool->stats().longest_bytes == 0);
    allocator.release(allocator.context, all, stats.n_bytes);
}

// A block that is out. Its first and last bytes say which it is.
struct Piece {
    unsigned char* at = nullptr;
    std::size_t n_bytes = 0;
    unsigned char mark = 0;

    std::size_t held_bytes() const { return (n_bytes + 63) / 64 * 64; }
    std::size_t n_marked() const { return std::min<std::size_t>(n_bytes, 256); }
    void write() const {
        std::memset(at, mark, n_marked());
        std::memset(at + n_bytes - n_marked(), mark, n_marked());
    }
    bool is_whole() const {
        const auto is_mark = [this](unsigned char c) { return c == mark; };
        return std::all_of(at, at + n_marked(), is_mark) &&
               std::all_of(at + n_bytes - n_marked(), at + n_bytes, is_mark);
    }
};

constexpr std::size_t some_sizes[] = {1,     64,    65,    136,   1000,   4096,   5000,   20480,
                                      20544, 41000, 65536, 65600, 131072, 200000, 262208, 1000000};

std::size_t size_at_random(std::mt19937& random) {
    if (random() % 50 == 0) return 1 + random() % 3000000;
    const std::size_t i = random() % std::size(some_sizes);
    return some_sizes[random() % (i + 1)];  // the small ones more often
}

// Takes and gives back at random. Any overlap of blocks, and any difference to its own sums, fails.
void run_at_random(std::uint64_t n_bytes, std::uint64_t slab_bytes, unsigned seed, int n_steps) {
    const auto pool = make_pool(n_bytes, slab_bytes);
    const Allocator allocator = pool->allocator();
    std::mt19937 random(seed);
    std::vector<Piece> pieces;
    std::map<const unsigned char*, std::size_t> out;  // bytes from each start
    std::uint64_t held = 0, most_held = 0;
    int n_refused = 0, n_bad = 0;
    std::uint64_t n_wrong = 0;
    for (int i = 0; i < n_steps; ++i) {
        const bool filling = i / 1000 % 2 == 0;
        if (!pieces.empty() && random() % 8 < (filling ? 3u : 5u)) {
            std::swap(pieces[random() % pieces.size()], pieces.back());
            const Piece piece = pieces.back();
            pieces.pop_back();
            n_bad += !piece.is_whole();
            out.erase(piece.at);
            held -= piece.held_bytes();
            if (i % 7 == 0) {  // what is not out, or of another size
                allocator.release(allocator.context, piece.at, piece.n_bytes + 64);
                allocator.release(allocator.context, piece.at + 1, piece.n_bytes);
                ++n_wrong;
            }
            allocator.release(allocator.context, piece.at, piece.n_bytes);
            if (i % 7 == 0) allocator.release(allocator.context, piece.at, piece.n_bytes);
        } else {
            Piece piece{nullptr, size_at_random(random), static_cast<unsigned char>(i)};
            const PoolStats before = pool->stats();
            piece.at = static_cast<unsigned char*>(allocator.allocate(allocator.context, piece.n_bytes, 64));
            if (piece.at == nullptr) {
                ++n_refused;
                n_bad += piece.n_bytes <= before.longest_bytes;
                n_bad += pool->stats().taken_bytes != before.taken_bytes;
                continue;
            }
            n_bad += reinterpret_cast<std::uintptr_t>(piece.at) % 64 != 0;
            const auto behind = out.lower_bound(piece.at);
            n_bad += behind != out.end() && behind->first < piece.at + piece.n_bytes;
            n_bad += behind != out.begin() && std::prev(behind)->first + std::prev(behind)->second > piece.at;
            out[piece.at] = piece.n_bytes;
            piece.write();
            pieces.push_back(piece);
            held += piece.held_bytes();
            most_held = std::max(most_held, held);
        }
        const PoolStats stats = pool->stats();
        n_bad += stats.held_bytes != held || stats.most_held_bytes != most_held;
        n_bad += stats.n_refused != 3 * n_wrong;
        n_bad += stats.n_blocks != pieces.size() || stats.taken_bytes < held;
        n_bad += stats.taken_bytes + stats.n_free_slabs * slab_bytes != n_bytes;
        if (n_bad > 0) {
            CAPTURE(slab_bytes, seed, i, pieces.size());
            REQUIRE(n_bad == 0);
        }
    }
    CHECK(n_refused > 10);
    for (const Piece& piece : pieces) {
        n_bad += !piece.is_whole();
        allocator.release(allocator.context, piece.at, piece.n_bytes);
    }
    CHECK(n_bad == 0);
    check_empty(pool.get());
}

}  // namespace

TEST_CASE("blocks of a pool are aligned, apart and counted, and go back into one run", "[pool][once]") {
    run_at_random(12 << 20, 1 << 16, 1, 6000);
    run_at_random(10 << 20, 1 << 12, 2, 4000);
    run_at_random(20 << 20, 1 << 20, 3, 4000);
}

TEST_CASE("a pool counts what is given back wrongly, and gives nothing out twice", "[pool][once]") {
    const auto pool = make_pool(1 << 20);
    const Allocator allocator = pool->allocator();
    const auto take = [&](std::size_t n) { return allocator.allocate(allocator.context, n, 64); };
    const auto give_back = [&](void* block, std::size_t n) {
        allocator.release(allocator.context, block, n);
    };
    std::uint64_t n_refused = 0;
    for (const std::size_t n : {100, 70000, 300000}) {
        CAPTURE(n);
        void* block = take(n);
        auto* bytes = static_cast<unsigned char*>(block);
        const PoolStats held = pool->stats();
        unsigned char outside[64];
        const std::pair<void*, std::size_t> wrong[] = {{block, n + 64},
                                                       {block, n - 64},
                                                       {block, 0},
                                                       {block, SIZE_MAX},
                                                       {bytes + 64, n},
                                                       {bytes + 1, n},
                                                       {bytes + (1 << 16), n},
                                                       {bytes + (1 << 20), n},
                                                       {bytes - 64, n},
                                                       {static_cast<void*>(outside), n}};
        for (const auto& [at, size] : wrong) {
            give_back(at, size);
            CAPTURE(&at - &wrong[0].first);
            CHECK(pool->stats().n_refused == ++n_refused);
            CHECK(pool->stats().held_bytes == held.held_bytes);
            CHECK(pool->stats().n_blocks == held.n_blocks);
        }
        give_back(nullptr, n);
        give_back(block, n);
        CHECK(pool->stats().n_refused == n_refused);
        give_back(block, n);
        CHECK(pool->stats().n_refused == ++n_refused);
        void *first = take(n), *second = take(n);
        CHECK((first != nullptr && second != nullptr && first != second));
        give_back(first, n);
        give_back(first, n);
        ++n_refused;
        void* third = take(n);
        CHECK(third != second);
        give_back(second, n);
        give_back(third, n);
        CHECK(pool->stats().n_blocks == 0);
    }
    CHECK(pool->stats().n_refused == n_refused);
    check_empty(pool.get());
}

TEST_CASE("a pool full of blocks of one size wastes a sixteenth at most", "[pool][once]") {
    const auto pool = make_pool(32 << 20);
    const Allocator allocator = pool->allocator();
    const std::uint64_t n_bytes = pool->stats().n_bytes;
    std::mt19937 random(1);
    for (int i = 0; i < 40; ++i) {
        const std::size_t size = 64 * (1 + random() % (i % 2 == 0 ? 1000 : 20000));
        CAPTURE(size);
        std::vector<void*> blocks;
        const auto take = [&] { return allocator.allocate(allocator.context, size, 64); };
        while (void* block = take())
            blocks.push_back(block);
        CHECK(std::set<void*>(blocks.begin(), blocks.end()).size() == blocks.size());
        // The first runs and the last may be too short for that.
        CHECK(16 * (pool->stats().held_bytes + 3 * (size + (1 << 16))) >= 15 * n_bytes);
        // One more goes where one was given back.
        void* const middle = blocks[blocks.size() / 2];
        allocator.release(allocator.context, middle, size);
        CHECK(take() == middle);
        for (void* block : blocks)
            allocator.release(allocator.context, block, size);
        REQUIRE(pool->stats().taken_bytes == 0);
    }
    check_empty(pool.get());
}

TEST_CASE("a pool serves more sizes at once than it keeps lists for", "[pool][once]") {
    const auto pool = make_pool(256 << 20);
    const Allocator allocator = pool->allocator();
    std::vector<Piece> pieces;
    for (int round = 0; round < 2; ++round) {
        for (std::size_t n = 64 * 1200; n > 0; n -= 64) {
            pieces.push_back({nullptr, n, static_cast<unsigned char>(n / 64)});
            pieces.back().at = static_cast<unsigned char*>(allocator.allocate(allocator.context, n, 64));
            REQUIRE(pieces.back().at != nullptr);
            pieces.back().write();
        }
    }
    std::shuffle(pieces.begin(), pieces.end(), std::mt19937(1));
    int n_bad = 0;
    for (const Piece& piece : pieces) {
        n_bad += !piece.is_whole();
        allocator.release(allocator.context, piece.at, piece.n_bytes);
    }
    CHECK(n_bad == 0);
    // And has lists for others then.
    for (std::size_t n = 64; n <= 64 * 100; n += 64) {
        CAPTURE(n);
        void* const two[] = {allocator.allocate(allocator.context, n, 64),
                             allocator.allocate(allocator.context, n, 64)};
        REQUIRE(pool->stats().taken_bytes == 1 << 16);
        for (void* block : two)
            allocator.release(allocator.context, block, n);
    }
    check_empty(pool.get());
}

TEST_CASE("a pool takes its memory once and gives all of it back", "[pool][once]") {
    CountingMemory memory;
    {
        const auto pool = make_pool(1 << 20, 1 << 16, memory.allocator());
        const std::uint64_t taken = memory.held;
        CHECK(taken >= 1 << 20);
        CHECK(taken < (1 << 20) + 16 * (32 + 128) + 10000);
        memory.budget = 0;
        const Allocator allocator = pool->allocator();
        for (const std::size_t n : {std::size_t{0}, std::size_t{1} << 20, (std::size_t{1} << 20) - 1}) {
            void* p = allocator.allocate(allocator.context, n, 64);
            CHECK(p != nullptr);
            CHECK(pool->stats().held_bytes == std::max<std::size_t>((n + 63) / 64, 1) * 64);
            allocator.release(allocator.context, p, n);
        }
        allocator.release(allocator.context, nullptr, 100);
        for (const std::size_t n : {(std::size_t{1} << 20) + 1, std::size_t{1} << 62, SIZE_MAX}) {
            CAPTURE(n);
            CHECK(allocator.allocate(allocator.context, n, 64) == nullptr);
        }
        CHECK(pool->stats().most_held_bytes == 1 << 20);
        CHECK(memory.held == taken);
        check_empty(pool.get());
    }
    CHECK(memory.held == 0);
}

TEST_CASE("what is no pool is refused", "[pool][once]") {
    CountingMemory memory;
    std::unique_ptr<BlockPool> pool;
    const PoolOptions good = {1 << 20, 1 << 16, memory.allocator()};
    CHECK(BlockPool::create(good, nullptr).code() == Code::invalid_argument);
    PoolOptions bad = good;
    bad.from.release = nullptr;
    CHECK(BlockPool::create(bad, &pool).code() == Code::invalid_argument);
    const struct {
        std::uint64_t n_bytes, slab_bytes;
        const char* message;
    } cases[] = {{0, 1 << 16, "a pool of 0 bytes, expected 1 to"},
                 {100000, 1 << 16, "a pool of 100000 bytes, expected 1 to"},
                 {std::uint64_t{1} << 63, 1 << 16, "slabs of 65536 bytes"},
                 {1 << 20, 0, "slabs of 0 bytes, expected a power of two"},
                 {1 << 20, 2048, "slabs of 2048 bytes"},
                 {3 << 15, 3 << 14, "slabs of 49152 bytes"},
                 {std::uint64_t{1} << 31, std::uint64_t{1} << 31, "slabs of 2147483648 bytes"}};
    for (const auto& [n_bytes, slab_bytes, message] : cases) {
        const Status status = BlockPool::create({n_bytes, slab_bytes, memory.allocator()}, &pool);
        INFO(status.message());
        CHECK(status.code() == Code::wrong_size);
        CHECK(std::string(status.message()).find(message) != std::string::npos);
    }
    for (const int budget : {0, 1}) {
        memory.budget = budget;
        CHECK(BlockPool::create(good, &pool).code() == Code::out_of_memory);
        CHECK(memory.held == 0);
    }
    CHECK(pool == nullptr);
}

#if defined(GEARKV_TEST_POISON)
TEST_CASE("the address sanitizer sees uses of blocks that are not out", "[pool][once]") {
    const auto pool = make_pool(1 << 20);
    const Allocator allocator = pool->allocator();
    auto* p = static_cast<unsigned char*>(allocator.allocate(allocator.context, 1000, 64));
    CHECK(__asan_region_is_poisoned(p, 1000) == nullptr);
    CHECK(__asan_address_is_poisoned(p + 1000));
    allocator.release(allocator.context, p, 1000);
    CHECK(__asan_address_is_poisoned(p));
    CHECK(__asan_address_is_poisoned(p + 999));
}
#endif

namespace {

constexpr std::size_t n_heads = source_heads, dim = source_dim, n_source = 1200;

// The same cache twice: one in the pool, one beside it.
struct Twins {
    std::unique_ptr<Cache> pooled, plain;

    Twins() = default;
    Twins(CacheConfig config, BlockPool* pool) {
        plain = make_cache(config);
        config.allocator = pool->allocator();
        pooled = make_cache(config);
    }
    Twins fork() const {
        Twins forks;
        REQUIRE(pooled->fork(&forks.pooled).ok());
        REQUIRE(plain->fork(&forks.plain).ok());
        return forks;
    }
    void append(std::size_t first, std::size_t n) const {
        REQUIRE(gearkv::testing::append(pooled.get(), source().keys, source().values, first, n).ok());
        REQUIRE(gearkv::testing::append(plain.get(), source().keys, source().values, first, n).ok());
    }
    void truncate(std::uint64_t n) const {
        REQUIRE(pooled->truncate(n).ok());
        REQUIRE(plain->truncate(n).ok());
    }
    void check() const {
        const std::uint64_t n = plain->n_tokens(0);
        REQUIRE(pooled->n_tokens(0) == n);
        REQUIRE(pooled->stats().bytes.bytes == plain->stats().bytes.bytes);
        if (n == 0) return;
        const auto [keys, values] = read_all(pooled.get());
        const auto [plain_keys, plain_values] = read_all(plain.get());
        REQUIRE(keys.data == plain_keys.data);
        REQUIRE(values.data == plain_values.data);
        static const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
        REQUIRE(attend(pooled.get(), q, dim, true).data == attend(plain.get(), q, dim, true).data);
    }
};

}  // namespace

TEST_CASE("two hundred caches of one pool are as they would be with memory of their own", "[pool]") {
    const auto pool = make_pool(64 << 20);
    std::mt19937 random(1);
    {
        const CacheConfig configs[] = {make_config("gear-2", n_heads, dim, dim, 500),
                                       make_config("kivi-2", n_heads, dim, dim, 500)};
        std::vector<Twins> all;
        for (std::size_t i = 0; i < 200; ++i)
            all.emplace_back(configs[i % 2], pool.get());
        for (int step = 0; step < 500; ++step) {
            Twins& twins = all[random() % all.size()];
            const std::uint64_t n = twins.plain->n_tokens(0);
            CAPTURE(step, n);
            switch (random() % 8) {
                case 0:
                    twins = all[random() % all.size()].fork();
                    break;
                case 1:
                    twins.truncate(n - std::min<std::uint64_t>(n, random() % 100));
                    break;
                case 2:
                    twins = Twins(configs[random() % 2], pool.get());
                    break;
                default: {
                    const std::size_t sizes[] = {1, 3, 40, 70, 150};
                    const std::size_t n_new = sizes[random() % std::size(sizes)];
                    if (n + n_new <= 500) twins.append(random() % (n_source - n_new), n_new);
                }
            }
            if (step % 8 == 0) twins.check();
        }
        CHECK(pool->stats().n_blocks > 2000);
        std::shuffle(all.begin(), all.end(), random);
        while (!all.empty()) {
            if (all.size() % 10 == 0) all.back().check();
            all.pop_back();
        }
    }
    check_empty(pool.get());
}

TEST_CASE("threads share a pool", "[pool][thread]") {
    const auto pool = make_pool(32 << 20);
    const CacheConfig plain_config = make_config("kivi-2", n_heads, dim, dim, 500);
    CacheConfig config = plain_config;
    config.allocator = pool->allocator();
    auto shared = make_cache(config);
    REQUIRE(append(shared.get(), source().keys, source().values, 0, 200).ok());
    std::atomic<int> n_bad{0};
    const auto work = [&](unsigned id) {
        const Allocator allocator = pool->allocator();
        std::mt19937 random(id);
        std::vector<Piece> pieces;
        std::unique_ptr<Cache> cache;
        const std::vector<float> row(n_heads * dim, 0.5f);
        const Rows rows = {row.data(), n_heads * dim, dim};
        for (int i = 0; i < 600; ++i) {
            if (i % 40 == 0) n_bad += !shared->fork(&cache).ok();
            if (i % 4 == 0) n_bad += !cache->append(0, rows, rows, 1, serial_executor()).ok();
            if (i % 40 == 30) n_bad += !cache->truncate(50).ok();
            for (int j = 0; j < 10; ++j) {
                if (pieces.size() > 30 || (!pieces.empty() && random() % 2 == 0)) {
                    std::swap(pieces[random() % pieces.size()], pieces.back());
                    n_bad += !pieces.back().is_whole();
                    allocator.release(allocator.context, pieces.back().at, pieces.back().n_bytes);
                    pieces.pop_back();
                } else {
                    Piece piece{nullptr, some_sizes[random() % 12],
                                static_cast<unsigned char>(64 * id + 10 * i % 64 + j)};
                    piece.at =
                        static_cast<unsigned char*>(allocator.allocate(allocator.context, piece.n_bytes, 64));
                    n_bad += piece.at == nullptr;
                    if (piece.at == nullptr) continue;
                    piece.write();
                    pieces.push_back(piece);
                }
            }
            if (i % 16 == 0) n_bad += pool->stats().held_bytes > pool->stats().n_bytes;
        }
        for (const Piece& piece : pieces) {
            n_bad += !piece.is_whole();
            allocator.release(allocator.context, piece.at, piece.n_bytes);
        }
    };
    std::vector<std::thread> threads;
    for (unsigned id = 0; id < 3; ++id)
        threads.emplace_back(work, id);
    for (std::thread& thread : threads)
        thread.join();
    CHECK(n_bad == 0);
    const auto plain = make_cache(plain_config);
    REQUIRE(append(plain.get(), source().keys, source().values, 0, 200).ok());
    CHECK(read_all(shared.get()).first.data == read_all(plain.get()).first.data);
    shared.reset();
    check_empty(pool.get());
}

TEST_CASE("a full pool refuses and keeps the cache, and the others go on", "[pool]") {
    const auto pool = make_pool(4 << 20);
    CacheConfig config = make_config("f16", n_heads, dim, dim, 20000);  // exact, in blocks or not
    config.allocator = pool->allocator();
    auto first = make_cache(config), second = make_cache(config), third = make_cache(config);
    for (Cache* cache : {first.get(), second.get(), third.get()})
        REQUIRE(append(cache, source().keys, source().values, 0, 300).ok());
    // Another one with its scratch and with room for more tokens.
    const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    REQUIRE(second->compress(0, serial_executor()).ok());
    CHECK(attention_error(second.get(), q, true) < attention_tolerance(*second));
    Status status;
    std::uint64_t n = 300;
    while (status.ok() && n + 200 <= 20000) {
        status = append(first.get(), source().keys, source().values, n % 1000, 200);
        if (status.ok()) n += 200;
    }
    INFO(status.message());
    CHECK(status.code() == Code::out_of_memory);
    CHECK(n > 2000);
    CHECK(pool->stats().longest_bytes < pool->stats().n_bytes / 16);
    const auto before = read_all(first.get());
    CHECK(append(first.get(), source().keys, source().values, 0, 200).code() == Code::out_of_memory);
    std::vector<std::unique_ptr<Cache>> more;  // until there is no room for another
    do {
        more.emplace_back();
        status = Cache::create(config, &more.back());
    } while (status.ok());
    CHECK(status.code() == Code::out_of_memory);
    CHECK(more.back() == nullptr);
    more.clear();
    REQUIRE(first->n_tokens(0) == n);
    const auto after = read_all(first.get());
    CHECK(after.first.data == before.first.data);
    CHECK(after.second.data == before.second.data);
    const auto twin = make_cache(make_config("f16", n_heads, dim, dim, 20000));
    for (std::uint64_t t = 0; t < n; t += t == 0 ? 300 : 200)
        REQUIRE(append(twin.get(), source().keys, source().values, t % 1000, t == 0 ? 300 : 200).ok());
    CHECK(read_all(twin.get()).first.data == after.first.data);
    CHECK(attention_error(second.get(), q, true) < attention_tolerance(*second));
    REQUIRE(append(second.get(), source().keys, source().values, 300, 1).ok());
    CHECK(second->n_tokens(0) == 301);
    third.reset();
    second.reset();
    CHECK(append(first.get(), source().keys, source().values, n % 1000, 200).ok());
    CHECK(first->n_tokens(0) == n + 200);
    first.reset();
    check_empty(pool.get());
}
