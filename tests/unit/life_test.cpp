// What happens to a cache beyond appending: forks, removals with turned keys, forgetting, budgets, saving.
// Beside it stands a plain list of the tokens that should be there, and where each came from.
#include <thread>

#include "caches.hpp"
#include "gearkv/state.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = 2, dim = 64, n_source = 3000;

const std::vector<double>& frequencies() {
    static const std::vector<double> all = [] {
        std::vector<double> x(dim / 2);
        for (std::size_t i = 0; i < x.size(); ++i)
            x[i] = std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
        return x;
    }();
    return all;
}

struct Source {
    Tensor keys = gaussian(n_source, n_heads, dim, 1), values = gaussian(n_source, n_heads, dim, 2);
};
const Source& source() {
    static const Source tokens;
    return tokens;
}

CacheConfig rope_config(const std::string& spec, bool interleaved, std::uint64_t max_tokens = 900) {
    CacheConfig config = make_config(spec, n_heads, dim, dim, max_tokens);
    config.rope = {frequencies().data(), dim / 2, interleaved};
    return config;
}

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
                    const std::size_t n_sinks = config.spec.sink_tokens;
                    if (n <= n_sinks) break;
                    const std::size_t first = n_sinks + random() % (n - n_sinks);
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

TEST_CASE("a fork goes on exactly as its source does, in the middle of a compression too", "[life]") {
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

TEST_CASE("forks live on threads of their own", "[life][threads]") {
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
                bool ok = forks[i]->attend(0, queries, out.data(), serial_executor()).ok();
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

TEST_CASE("removal refuses sinks and ranges that are not there, and changes nothing", "[life]") {
    auto cache = make_cache(rope_config("gear-4", false));
    REQUIRE(append(cache.get(), source().keys, source().values, 0, 300).ok());
    const auto before = read_all(cache.get());
    const struct {
        std::uint64_t first, n;
        Code code;
    } cases[] = {{10, 0, Code::wrong_size},          {3, 1, Code::invalid_argument},
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

TEST_CASE("a sliding window gives back blocks, and attends what it would have", "[life]") {
    CacheConfig config = make_config("gear-3", n_heads, dim, dim, 2000);
    auto windowed = make_cache(config), whole = make_cache(config);
    const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    const std::vector<float> data = to_floats(q);
    for (std::size_t t = 0; t + 50 <= 1500; t += 50) {
        REQUIRE(append(windowed.get(), source().keys, source().values, t, 50).ok());
        REQUIRE(append(whole.get(), source().keys, source().values, t, 50).ok());
        const std::uint64_t n = windowed->n_tokens(0);
        REQUIRE(windowed->forget_before(0, n > 300 ? n - 300 : 0).ok());
        Queries queries = queries_of(data, q, true);
        queries.window = 300;
        std::vector<float> found(2 * n_heads * dim), expected(found.size());
        REQUIRE(windowed->attend(0, queries, found.data(), serial_executor()).ok());
        REQUIRE(whole->attend(0, queries, expected.data(), serial_executor()).ok());
        CHECK(found == expected);
    }
    CHECK(windowed->stats().bytes.keys.bytes < whole->stats().bytes.keys.bytes / 3);
    CHECK(windowed->n_tokens(0) == 1500);
    std::vector<float> keys(n_heads * dim);
    const Status status = windowed->read(0, 500, 1, keys.data(), nullptr);
    CHECK(status.code() == Code::wrong_size);
    CHECK(std::string(status.message()).find("forgotten") != std::string::npos);
    CHECK(windowed->read(0, 1300, 1, keys.data(), nullptr).ok());
    // What was forgotten can be cut off or removed like the rest.
    REQUIRE(windowed->remove(100, 200).ok());
    CHECK(windowed->n_tokens(0) == 1300);
    REQUIRE(windowed->truncate(50).ok());
    CHECK(windowed->n_tokens(0) == 50);
    REQUIRE(append(windowed.get(), source().keys, source().values, 0, 300).ok());
}

TEST_CASE("a budget refuses what would exceed it and keeps the cache", "[life]") {
    CountingMemory memory;
    CacheConfig config = make_config("gear-2", n_heads, dim, dim, 20000);
    config.allocator = memory.allocator();
    config.max_bytes = 1500000;
    auto cache = make_cache(config);
    const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    std::size_t n = 0;
    Status status;
    while (status.ok() && n < 19000) {
        status = append(cache.get(), source().keys, source().values, n % 2900, 50);
        CHECK(memory.peak <= config.max_bytes + 4096);
        if (status.ok()) n += 50;
        // Attention takes its scratch once, within the budget.
        if (n == 50) CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
    }
    CHECK(status.code() == Code::over_budget);
    CHECK(std::string(status.message()).find("max_bytes is 1500000") != std::string::npos);
    CHECK(n > 1000);
    CHECK(cache->n_tokens(0) == n);
    CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
    // Room that is given back can be used.
    REQUIRE(cache->remove(4, 600).ok());
    CHECK(append(cache.get(), source().keys, source().values, 0, 50).ok());
    config.max_bytes = 1000;
    std::unique_ptr<Cache> none;
    CHECK(Cache::create(config, &none).code() == Code::over_budget);
    CHECK(none == nullptr);
}

TEST_CASE("recent tokens stay uncompressed", "[life]") {
    CacheConfig config = make_config("gear-2:recent=100", n_heads, dim, dim, 4000);
    for (const std::uint32_t spread : {0u, 16u}) {
        config.spread_tokens = spread;
        auto cache = make_cache(config);
        for (std::size_t t = 0; t < 900; ++t) {
            const std::size_t n = t < 400 && t % 100 == 0 ? 100 : t < 400 ? 0 : 1;
            if (n > 0) REQUIRE(append(cache.get(), source().keys, source().values, t, n).ok());
            const CacheStats stats = cache->stats();
            const std::uint64_t n_buffered = stats.n_tokens - stats.compressed_tokens;
            CHECK(n_buffered >= std::min<std::uint64_t>(stats.n_tokens, 100));
            if (t > 420) CHECK(n_buffered <= 4 + 100 + 128 + 16);
        }
        REQUIRE(cache->compress(0, serial_executor()).ok());
        CHECK(cache->stats().compressed_tokens == 768);
        CacheBytes bytes;
        REQUIRE(bytes_required(config, 900, 100, &bytes).ok());
        const CacheBytes found = cache->stats().bytes;
        CHECK(bytes.keys.bytes == found.keys.bytes);
        CHECK(bytes.values.bytes == found.values.bytes);
        CHECK(bytes.buffer == found.buffer);
    }
}

TEST_CASE("the first and last layers have a spec of their own", "[life]") {
    CacheConfig config = make_config("gear-2;edge-1=k=gear-4;v=kivi-4", n_heads, dim, dim, 2000, 4);
    auto cache = make_cache(config);
    const KvSpec edge = spec_of("k=gear-4;v=kivi-4:nb=128"), middle = spec_of("gear-2");
    for (std::uint32_t layer = 0; layer < 4; ++layer) {
        for (std::size_t t = 0; t < 600; t += 200)
            REQUIRE(append(cache.get(), source().keys, source().values, t, 200, layer).ok());
        REQUIRE(cache->compress(layer, serial_executor()).ok());
        KvSpec found;
        REQUIRE(cache->layer_spec(layer, &found).ok());
        const bool is_edge = layer == 0 || layer == 3;
        CHECK(found.key == (is_edge ? edge : middle).key);
        CHECK(found.value == (is_edge ? edge : middle).value);
    }
    // As much as caches of either kind alone.
    const auto bytes_of = [&](const char* spec, std::uint32_t n_layers) {
        CacheBytes bytes;
        REQUIRE(bytes_required(make_config(spec, n_heads, dim, dim, 2000, n_layers), 600, 0, &bytes).ok());
        return bytes;
    };
    CacheBytes planned;
    REQUIRE(bytes_required(config, 600, 0, &planned).ok());
    const CacheBytes a = bytes_of("k=gear-4;v=kivi-4:nb=128,sinks=4", 2), b = bytes_of("gear-2", 2);
    CHECK(planned.keys.bytes == a.keys.bytes + b.keys.bytes);
    CHECK(planned.values.bytes == a.values.bytes + b.values.bytes);
    CHECK(planned.buffer == cache->stats().bytes.buffer);
    CHECK(attention_error(cache.get(), gaussian(1, 2 * n_heads, dim, 3), true) < attention_tolerance(*cache));
    // All layers are edges.
    config = make_config("gear-2;edge-9=q8", n_heads, dim, dim, 2000, 3);
    cache = make_cache(config);
    KvSpec found;
    REQUIRE(cache->layer_spec(1, &found).ok());
    CHECK(found.key.bits == 8);
    REQUIRE(bytes_required(config, 600, 0, &planned).ok());
    CHECK(planned.keys.bytes == bytes_of("q8:nb=128,sinks=4", 3).keys.bytes);
}

TEST_CASE("shrinking takes outliers, then low rank, of the oldest blocks first", "[life]") {
    CacheConfig config = rope_config("paper:gear-4:nb=64", false, 2000);
    config.n_layers = 2;
    CountingMemory memory;
    config.allocator = memory.allocator();
    {
        auto cache = make_cache(config);
        for (std::uint32_t layer = 0; layer < 2; ++layer) {
            for (std::size_t t = 0; t < 1000; t += 50)
                REQUIRE(append(cache.get(), source().keys, source().values, t, 50, layer).ok());
            REQUIRE(cache->compress(layer, serial_executor()).ok());
        }
        REQUIRE(cache->remove(100, 20).ok());
        std::unique_ptr<Cache> whole;
        REQUIRE(cache->fork(&whole).ok());
        const auto exact = read_all(whole.get());
        const Tensor &exact_keys = exact.first, &exact_values = exact.second;
        const auto error = [&](Cache* of, std::size_t first, std::size_t n) {
            std::vector<float> keys(n * n_heads * dim);
            REQUIRE(of->read(0, first, n, keys.data(), nullptr).ok());
            double sum = 0.0;
            for (std::size_t i = 0; i < keys.size(); ++i) {
                const double e = static_cast<double>(keys[i]) - exact_keys.data[first * n_heads * dim + i];
                sum += e * e;
            }
            return sum;
        };
        std::uint64_t freed = 1;
        REQUIRE(cache->shrink(UINT64_MAX, &freed).ok());
        CHECK(freed == 0);
        const CacheBytes before = cache->stats().bytes;
        REQUIRE(
            cache->shrink(before.bytes - (before.keys.outliers + before.values.outliers) / 3, &freed).ok());
        CHECK(freed > 0);
        const CacheBytes some = cache->stats().bytes;
        CHECK(some.keys.outliers < before.keys.outliers);
        CHECK(some.keys.outliers > 0);
        CHECK(some.keys.low_rank == before.keys.low_rank);
        CHECK(some.keys.codes == before.keys.codes);
        CHECK(error(cache.get(), 0, 200) > 0.0);
        CHECK(error(cache.get(), 700, 200) == 0.0);
        const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
        CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
        REQUIRE(cache->shrink(0, &freed).ok());
        const CacheBytes least = cache->stats().bytes;
        CHECK(least.keys.outliers + least.values.outliers + least.keys.low_rank + least.values.low_rank == 0);
        CHECK(least.keys.codes == before.keys.codes);
        CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
        const TemporaryFile file;
        REQUIRE(save_state(*cache, file.path(), {}, serial_executor()).ok());
        std::unique_ptr<Cache> loaded;
        REQUIRE(load_state(file.path(), config, {}, serial_executor(), &loaded).ok());
        CHECK(read_all(loaded.get()).first.data == read_all(cache.get()).first.data);
        // The fork has what it had.
        CHECK(read_all(whole.get()).first.data == exact_keys.data);
        CHECK(read_all(whole.get()).second.data == exact_values.data);
        REQUIRE(append(cache.get(), source().keys, source().values, 1000, 200).ok());
    }
    CHECK(memory.held == 0);
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
