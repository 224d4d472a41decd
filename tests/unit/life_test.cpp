// What happens to a cache beyond appending: forks, removals with turned keys, forgetting, budgets, saving.
// Beside it stands a plain list of the tokens that should be there, and where each came from.
#include <thread>

#include "caches.hpp"
#include "gearkv/state.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = source_heads, dim = source_dim, n_source = 3000;

// A token of the model: where in the source it came from, and by how much it has moved since.
struct Token {
    std::size_t from;
    std::int64_t shift = 0;
};

// A cache and what it should hold.
struct Subject {
    std::unique_ptr<Cache> cache;
    std::vector<Token> tokens;
};

Tensor expected_keys(const CacheConfig& config, const std::vector<Token>& tokens) {
    Tensor keys{tokens.size(), n_heads, dim, {}};
    for (const Token& token : tokens) {
        for (std::size_t head = 0; head < n_heads; ++head) {
            const double* row = source().keys.data.data() + (token.from * n_heads + head) * dim;
            std::vector<double> turned(row, row + dim);
            for (std::size_t i = 0; i < config.rope.n_pairs; ++i) {
                const std::size_t a = config.rope.interleaved ? 2 * i : i;
                const std::size_t b = config.rope.interleaved ? 2 * i + 1 : i + config.rope.n_pairs;
                const double angle = static_cast<double>(token.shift) * frequencies()[i];
                turned[a] = row[a] * std::cos(angle) - row[b] * std::sin(angle);
                turned[b] = row[a] * std::sin(angle) + row[b] * std::cos(angle);
            }
            keys.data.insert(keys.data.end(), turned.begin(), turned.end());
        }
    }
    return keys;
}

Tensor expected_values(const std::vector<Token>& tokens) {
    Tensor values{tokens.size(), n_heads, dim, {}};
    for (const Token& token : tokens) {
        const auto row =
            source().values.data.begin() + static_cast<std::ptrdiff_t>(token.from * n_heads * dim);
        values.data.insert(values.data.end(), row, row + n_heads * dim);
    }
    return values;
}

// The cache holds the tokens of the model in their order, each about as its codec keeps it, and attends them.
void check(Subject* subject, double codec_error) {
    Cache* cache = subject->cache.get();
    REQUIRE(cache->n_tokens(0) == subject->tokens.size());
    if (subject->tokens.empty()) return;
    const auto [keys, values] = read_all(cache);
    CHECK(reference::relative_error(expected_keys(cache->config(), subject->tokens), keys) < codec_error);
    CHECK(reference::relative_error(expected_values(subject->tokens), values) < codec_error);
    static const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    CHECK(attention_error(cache, q, true) < attention_tolerance(*cache));
}

void run_at_random(const std::string& spec, double codec_error, unsigned seed, int n_steps) {
    std::mt19937 random(seed);
    CountingMemory memory;
    CacheConfig config = rope_config(spec, seed % 2 == 0);
    config.allocator = memory.allocator();
    config.spread_tokens = seed % 3 == 0 ? 0 : 16;
    config.rollback_tokens = seed % 2 == 0 ? 40 : 0;
    std::size_t next = 0;
    const TemporaryFile file;
    {
        std::vector<Subject> subjects;
        subjects.push_back({make_cache(config), {}});
        for (int i = 0; i < n_steps; ++i) {
            Subject& subject = subjects[random() % subjects.size()];
            const std::size_t n = subject.tokens.size();
            CAPTURE(spec, seed, i, n, subjects.size());
            switch (const std::uint32_t any = random() % 14; any) {
                case 0:
                case 1: {  // a fork, of all or of a prefix
                    if (subjects.size() == 4) break;
                    Subject fork;
                    REQUIRE(subject.cache->fork(&fork.cache).ok());
                    fork.tokens = subject.tokens;
                    if (any == 1 && n > 0) {
                        fork.tokens.resize(random() % n);
                        REQUIRE(fork.cache->truncate(fork.tokens.size()).ok());
                    }
                    subjects.push_back(std::move(fork));
                    break;
                }
                case 2:  // an end
                    if (subjects.size() > 1) {
                        subjects.erase(subjects.begin() +
                                       static_cast<std::ptrdiff_t>(random() % subjects.size()));
                    }
                    break;
                case 3: {  // a truncation
                    subject.tokens.resize(n - std::min<std::size_t>(random() % 60, n));
                    REQUIRE(subject.cache->truncate(subject.tokens.size()).ok());
                    break;
                }
                case 4:
                case 5: {  // a removal
                    if (n == 0) break;
                    const std::size_t first = random() % (random() % 3 > 0 ? n : std::min<std::size_t>(n, 6));
                    const std::size_t count = 1 + random() % std::min<std::size_t>(n - first, 200);
                    REQUIRE(subject.cache->remove(first, count).ok());
                    const auto begin = subject.tokens.begin() + static_cast<std::ptrdiff_t>(first);
                    subject.tokens.erase(begin, begin + static_cast<std::ptrdiff_t>(count));
                    for (std::size_t t = first; t < subject.tokens.size(); ++t)
                        subject.tokens[t].shift -= static_cast<std::int64_t>(count);
                    break;
                }
                case 6:
                    REQUIRE(subject.cache->compress(0, serial_executor()).ok());
                    break;
                case 7:
                    if (random() % 4 == 0) {
                        subject.cache->reset();
                        subject.tokens.clear();
                    }
                    break;
                case 9:  // smaller by a tenth, if it can be
                    if (random() % 3 == 0) {
                        const CacheBytes bytes = subject.cache->stats().bytes;
                        // What trellis codes lose by it is in shrink_test.cpp.
                        if (subject.cache->config().spec.key.backbone != Backbone::trellis)
                            REQUIRE(subject.cache->shrink(bytes.bytes - bytes.bytes / 10).ok());
                    }
                    break;
                case 8: {  // saved, ended and loaded
                    REQUIRE(save_state(*subject.cache, file.path(), {}, serial_executor()).ok());
                    subject.cache.reset();
                    LoadOptions options;
                    if (random() % 2 == 0) options.loading = StateLoading::map;
                    if (random() % 2 == 0) options.checking = StateChecking::on_first_use;
                    const Status status =
                        load_state(file.path(), config, options, serial_executor(), &subject.cache);
                    INFO(status.message());
                    REQUIRE(status.ok());
                    break;
                }
                default: {
                    const std::size_t sizes[] = {1, 3, 30, 150, 260};
                    const std::size_t n_new = sizes[random() % std::size(sizes)];
                    if (n + n_new > config.max_tokens) break;
                    if (next + n_new > n_source) next = 0;
                    REQUIRE(append(subject.cache.get(), source().keys, source().values, next, n_new).ok());
                    for (std::size_t t = 0; t < n_new; ++t)
                        subject.tokens.push_back({next + t});
                    next += n_new;
                }
            }
            if (i % 3 == 0) check(&subjects[random() % subjects.size()], codec_error);
        }
        for (Subject& subject : subjects)
            check(&subject, codec_error);
    }
    CHECK(memory.held == 0);
}

}  // namespace

TEST_CASE("forks, removals, truncations, saving and loading keep to a plain list of tokens", "[life][once]") {
    run_at_random("gear-4", 0.12, 1, 150);
    run_at_random("gear-4:recent=50", 0.12, 2, 150);
    run_at_random("paper:gear-4", 0.5, 3, 120);  // without outliers, once shrunk
    run_at_random("k=gear-4;v=f16:sinks=0", 0.12, 4, 120);
}

TEST_CASE("so they do for long", "[life][slow]") {
    const struct {
        const char* spec;
        double error;
    } specs[] = {{"gear-4", 0.12},      {"gear-2", 0.45}, {"paper:gear-4:nb=64", 0.5},
                 {"q8:recent=7", 0.02}, {"f16", 1e-3},    {"gear-3:recent=200", 0.22}};
    unsigned seed = 10;
    for (const auto& [spec, error] : specs) {
        for (int i = 0; i < 2; ++i)
            run_at_random(spec, error, seed++, 400);
    }
}

TEST_CASE("a fork shares all until it changes, and then its blocks still", "[life]") {
    CountingMemory memory;
    CacheConfig config = rope_config("gear-2", false, 4000);
    config.allocator = memory.allocator();
    auto cache = make_cache(config);
    REQUIRE(append(cache.get(), source().keys, source().values, 0, 2100).ok());
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const CacheStats before = cache->stats();
    const std::uint64_t block_bytes = before.bytes.keys.bytes + before.bytes.values.bytes;
    CHECK(before.bytes.shared == 0);
    const std::uint64_t held = memory.held;
    std::unique_ptr<Cache> fork;
    REQUIRE(cache->fork(&fork).ok());
    CHECK(fork->stats().bytes.shared > block_bytes);
    CHECK(fork->stats().bytes.keys.bytes == before.bytes.keys.bytes);
    // Scratch and tables of its own, and none of the tokens.
    const CacheStats own = fork->stats();
    CHECK(memory.held - held < own.bytes.scratch + own.bytes.tables + 4096);
    REQUIRE(append(fork.get(), source().keys, source().values, 2100, 1).ok());
    CHECK(fork->stats().bytes.shared == block_bytes);
    CHECK(cache->stats().bytes.shared == block_bytes);
    CHECK(memory.held - held < own.bytes.scratch + own.bytes.tables + own.bytes.buffer + 4096);
    CHECK(cache->n_tokens(0) == 2100);
    // The first to go leaves the other whole.
    const auto [keys, values] = read_all(cache.get());
    cache.reset();
    CHECK(fork->stats().bytes.shared == 0);
    const auto [fork_keys, fork_values] = read_all(fork.get());
    CHECK(std::equal(keys.data.begin(), keys.data.end(), fork_keys.data.begin()));
    fork.reset();
    CHECK(memory.held == 0);
}

TEST_CASE("a fork goes on exactly as its source does, in the middle of a compression too", "[life][once]") {
    for (const char* spec : {"gear-3", "paper:gear-2", "auto:3"}) {
        const CacheConfig config = make_config(spec, n_heads, dim, dim, 900);
        const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
        for (const std::size_t n : {20, 140, 270}) {
            CAPTURE(spec, n);
            auto cache = make_cache(config);
            if (n == 270) REQUIRE(append(cache.get(), source().keys, source().values, 1000, 200).ok());
            for (std::size_t t = 0; t < n; ++t) {
                REQUIRE(append(cache.get(), source().keys, source().values, t, 1).ok());
                (void)attend(cache.get(), q, dim, true);
            }
            std::unique_ptr<Cache> fork;
            REQUIRE(cache->fork(&fork).ok());
            for (std::size_t t = n; t < n + 150; ++t) {
                REQUIRE(append(cache.get(), source().keys, source().values, t, 1).ok());
                REQUIRE(append(fork.get(), source().keys, source().values, t, 1).ok());
                REQUIRE(attend(cache.get(), q, dim, true).data == attend(fork.get(), q, dim, true).data);
            }
        }
    }
}

TEST_CASE("forks live on threads of their own", "[life][thread]") {
    CacheConfig config = rope_config("gear-2", false);
    config.spread_tokens = 16;
    auto cache = make_cache(config);
    REQUIRE(append(cache.get(), source().keys, source().values, 0, 150).ok());
    std::vector<std::unique_ptr<Cache>> forks(3);
    for (auto& fork : forks)
        REQUIRE(cache->fork(&fork).ok());
    std::vector<std::vector<double>> found(forks.size());
    std::vector<std::thread> threads;
    std::atomic<int> failures{0};
    for (std::size_t i = 0; i < forks.size(); ++i) {
        threads.emplace_back([&, i] {
            const std::vector<float> data(2 * n_heads * dim, 0.1f);
            std::vector<float> out(2 * n_heads * dim);
            Queries queries = {data.data(), 2 * n_heads * dim, dim, 1, 2 * n_heads, 0.125f, true};
            const std::vector<float> row(n_heads * dim, 0.5f);
            const Rows rows = {row.data(), n_heads * dim, dim};
            for (int step = 0; step < 40; ++step) {
                bool ok = forks[i]->attend(0, queries, out.data(), out.size(), serial_executor()).ok();
                if (i > 0 || step > 20) ok &= forks[i]->append(0, rows, rows, 1, serial_executor()).ok();
                if (i == 1 && step == 15) ok &= forks[i]->truncate(100).ok();
                if (i == 2 && step == 10) ok &= forks[i]->remove(10, 60).ok();
                std::unique_ptr<Cache> child;
                if (step % 8 == 0) ok &= forks[i]->fork(&child).ok();
                failures += !ok;
            }
            found[i].assign(out.begin(), out.end());
            if (i == 0) forks[i].reset();
        });
    }
    threads.emplace_back([&] { cache.reset(); });
    for (std::thread& thread : threads)
        thread.join();
    CHECK(failures == 0);
    for (const auto& out : found)
        CHECK(out.size() == 2 * n_heads * dim);
}

TEST_CASE("sinks may be removed: what is behind moves up, and is a sink only where nothing else was",
          "[life]") {
    for (const char* spec : {"gear-4", "kivi-4:sinks=4", "f32:sinks=4,nb=128"}) {
        for (const std::size_t n : {3u, 40u, 300u}) {
            const std::pair<std::size_t, std::size_t> cases[] = {{0, 1},  {1, 1},   {0, 2},
                                                                 {2, 30}, {0, 200}, {0, n}};
            for (const auto& [first, count] : cases) {
                if (first + count > n) continue;
                CAPTURE(spec, n, first, count);
                CacheConfig config = rope_config(spec, n == 40);
                Subject subject{make_cache(config), {}};
                const auto grow = [&](std::size_t from, std::size_t n_new) {
                    REQUIRE(append(subject.cache.get(), source().keys, source().values, from, n_new).ok());
                    for (std::size_t t = from; t < from + n_new; ++t)
                        subject.tokens.push_back({t});
                };
                grow(0, n);
                if (n == 300) REQUIRE(subject.cache->compress(0, serial_executor()).ok());
                REQUIRE(subject.cache->remove(first, count).ok());
                const auto begin = subject.tokens.begin() + static_cast<std::ptrdiff_t>(first);
                subject.tokens.erase(begin, begin + static_cast<std::ptrdiff_t>(count));
                for (std::size_t t = first; t < subject.tokens.size(); ++t)
                    subject.tokens[t].shift = -static_cast<std::int64_t>(count);
                const std::size_t n_before = std::min<std::size_t>(n, 4);
                const std::size_t n_sinks =
                    n_before - (std::min(first + count, n_before) - std::min(first, n_before));
                LayerStats stats;
                REQUIRE(subject.cache->layer_stats(0, &stats).ok());
                CHECK(stats.n_sinks == n_sinks);
                check(&subject, 0.12);
                // Saved and loaded it goes on as it does by itself.
                const TemporaryFile file;
                std::unique_ptr<Cache> loaded;
                REQUIRE(save_state(*subject.cache, file.path(), {}, serial_executor()).ok());
                REQUIRE(load_state(file.path(), config, {}, serial_executor(), &loaded).ok());
                const bool was_empty = subject.tokens.size() == n_sinks;
                for (std::size_t t = 400; t < 600; t += 20) {
                    grow(t, 20);
                    REQUIRE(append(loaded.get(), source().keys, source().values, t, 20).ok());
                }
                REQUIRE(subject.cache->layer_stats(0, &stats).ok());
                CHECK(stats.n_sinks == (was_empty ? 4 : n_sinks));
                check(&subject, 0.12);
                CHECK(read_all(loaded.get()).first.data == read_all(subject.cache.get()).first.data);
                if (count < n) continue;
                // Without any token it is as new.
                auto fresh = make_cache(config);
                for (std::size_t t = 400; t < 600; t += 20)
                    REQUIRE(append(fresh.get(), source().keys, source().values, t, 20).ok());
                const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
                CHECK(attend(fresh.get(), q, dim, true).data ==
                      attend(subject.cache.get(), q, dim, true).data);
            }
        }
    }
}

TEST_CASE("removal refuses ranges that are not there, and changes nothing", "[life]") {
    auto cache = make_cache(rope_config("gear-4", false));
    REQUIRE(append(cache.get(), source().keys, source().values, 0, 300).ok());
    const auto before = read_all(cache.get());
    const struct {
        std::uint64_t first, n;
        Code code;
    } cases[] = {{10, 0, Code::wrong_size},          {0, 301, Code::wrong_size},
                 {300, 1, Code::wrong_size},         {299, 2, Code::wrong_size},
                 {10, UINT64_MAX, Code::wrong_size}, {UINT64_MAX, 2, Code::wrong_size}};
    for (const auto& c : cases) {
        CAPTURE(c.first, c.n);
        CHECK(cache->remove(c.first, c.n).code() == c.code);
    }
    CHECK(read_all(cache.get()).first.data == before.first.data);
    CacheConfig bad = rope_config("gear-4", false);
    bad.rope.n_pairs = 33;
    std::unique_ptr<Cache> none;
    CHECK(Cache::create(bad, &none).code() == Code::wrong_size);
    bad.rope = {nullptr, 2, false};
    CHECK(Cache::create(bad, &none).code() == Code::invalid_argument);
    const double infinite[] = {1.0, INFINITY};
    bad.rope = {infinite, 2, false};
    CHECK(Cache::create(bad, &none).code() == Code::non_finite);
}

TEST_CASE("hundreds of sequences share their working memory", "[life]") {
    CountingMemory memory, work;
    std::unique_ptr<Workspace> workspace;
    REQUIRE(Workspace::create(work.allocator(), &workspace).ok());
    CacheConfig config = make_config("gear-2", n_heads, dim, dim, 1000);
    config.allocator = memory.allocator();
    const CacheConfig alone = config;
    config.workspace = workspace.get();
    const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    {
        std::vector<std::unique_ptr<Cache>> caches;
        for (std::size_t i = 0; i < 200; ++i) {
            caches.push_back(make_cache(config));
            REQUIRE(append(caches.back().get(), source().keys, source().values, i, 150 + i % 40).ok());
        }
        for (std::size_t i = 0; i < 200; i += 20) {
            auto single = make_cache(alone);
            REQUIRE(append(single.get(), source().keys, source().values, i, 150 + i % 40).ok());
            for (Cache* cache : {caches[i].get(), single.get()})
                REQUIRE(append(cache, source().keys, source().values, 300, 1).ok());
            CHECK(attend(caches[i].get(), q, dim, true).data == attend(single.get(), q, dim, true).data);
            CHECK(caches[i]->stats().bytes.scratch == 0);
            CHECK(single->stats().bytes.scratch > 0);
        }
        std::unique_ptr<Cache> fork;
        REQUIRE(caches[0]->fork(&fork).ok());
        caches[0].reset();
        (void)attend(fork.get(), q, dim, true);
        CHECK(workspace->n_bytes() >= work.held);
        CHECK(work.held < 4u << 20);
    }
    CHECK(memory.held == 0);
    workspace.reset();
    CHECK(work.held == 0);
    CHECK(Workspace::create({}, &workspace).code() == Code::invalid_argument);
    CHECK(Workspace::create(work.allocator(), nullptr).code() == Code::invalid_argument);
    work.budget = 0;
    CHECK(Workspace::create(work.allocator(), &workspace).code() == Code::out_of_memory);
}

TEST_CASE("a unit being compressed keeps the profiles it counts on when all blocks go", "[life]") {
    Subject subject{make_cache(rope_config("gear-3", true)), {}};
    Cache* cache = subject.cache.get();
    const auto grow_to = [&](std::size_t end) {
        for (std::size_t i = cache->n_tokens(0); i < end; ++i) {
            REQUIRE(append(cache, source().keys, source().values, i, 1).ok());
            subject.tokens.push_back({i});
        }
    };
    grow_to(4 + 128 + 128 + 5);
    REQUIRE(cache->stats().compressed_tokens == 128);
    REQUIRE(cache->remove(4, 128).ok());
    subject.tokens.erase(subject.tokens.begin() + 4, subject.tokens.begin() + 132);
    for (std::size_t t = 4; t < subject.tokens.size(); ++t)
        subject.tokens[t].shift = -128;
    REQUIRE(cache->truncate(cache->n_tokens(0) - 1).ok());
    subject.tokens.pop_back();
    grow_to(4 + 128 + 30);
    CHECK(cache->stats().compressed_tokens == 128);
    check(&subject, 0.2);
}
