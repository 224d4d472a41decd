// Truncation: what stays is untouched, and a lossless one leaves a cache as if the dropped tokens had never
// come.
#include "caches.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = source_heads, dim = source_dim, n_source = source_tokens;

// What a cache went through: appends of source tokens, and calls of compress (n = 0) and attend, by which
// widths are chosen later.
struct Step {
    std::size_t first, n;
    bool attends = false;
};

const Tensor& query() {
    static const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
    return q;
}

Status run(Cache* cache, const Step& step) {
    if (step.attends) {
        (void)attend(cache, query(), dim, true);
        return {};
    }
    if (step.n == 0) return cache->compress(0, serial_executor());
    return append(cache, source().keys, source().values, step.first, step.n);
}

// The steps without the tokens from n_tokens on.
std::vector<Step> shortened(const std::vector<Step>& steps, std::size_t n_tokens) {
    std::vector<Step> kept;
    std::size_t n = 0;
    for (const Step& step : steps) {
        if (n >= n_tokens && step.n > 0) break;
        kept.push_back({step.first, std::min(step.n, n_tokens - n), step.attends});
        n += kept.back().n;
        if (step.n > 0 && kept.back().n < step.n) break;
    }
    return kept;
}

const char* const all_specs[] = {
    "gear-3",          "gear-2", "kivi-2:nb=64", "paper:gear-2:nb=64", "f16", "k=gear-4;v=f16:sinks=0",
    "gear-3:recent=60"};

// Random appends, compressions, attention and truncations, beside replays without the dropped tokens.
// Returns how often a block was opened again.
std::size_t run_at_random(const std::string& spec, std::uint32_t spread, int n_steps,
                          std::uint32_t rollback = 0) {
    CacheConfig config = make_config(spec, n_heads, dim, dim, 900);
    config.spread_tokens = spread;
    config.rollback_tokens = rollback;
    std::mt19937 random(spread + rollback + 1);
    const Tensor& q = query();
    auto cache = make_cache(config);
    std::vector<Step> steps;
    bool replayable = true;
    std::size_t next = 0, n_lossless = 0, n_lossy = 0, n_promised = 0, n_reopened = 0;
    // Of the tokens there were, those a rollback is promised for.
    std::size_t most_tokens = 0, n_fixed = 0;
    for (int i = 0; i < n_steps; ++i) {
        const std::size_t n = cache->n_tokens(0);
        const std::uint32_t any = random() % 10;
        CAPTURE(spec, spread, i, n);
        if (any < 6 || n == 0) {
            const std::size_t sizes[] = {1, 1, 1, 7, 30, 200};
            const std::size_t n_new = sizes[random() % std::size(sizes)];
            if (n + n_new > 900 || next + n_new > n_source) {
                REQUIRE(cache->truncate(0).ok());
                steps.clear();
                most_tokens = n_fixed = 0;
                replayable = true;
                if (next + n_new > n_source) next = 0;
                continue;
            }
            steps.push_back({next, n_new});
            REQUIRE(run(cache.get(), steps.back()).ok());
            next += n_new;
            most_tokens = std::max(most_tokens, n + n_new);
            if (n_new >= config.spec.buffer_tokens) n_fixed = n + n_new;
        } else if (any == 6) {
            steps.push_back({0, 0});
            REQUIRE(run(cache.get(), steps.back()).ok());
            n_fixed = n;
        } else if (any == 7) {
            CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
            steps.push_back({0, 0, true});
        } else {
            const std::size_t n_dropped =
                random() % (random() % 3 == 0 ? n + 1 : std::min<std::size_t>(n, 20) + 1);
            const auto [old_keys, old_values] = read_all(cache.get());
            const std::size_t n_left = n - n_dropped;
            const std::uint64_t n_closed = cache->stats().compressed_tokens;
            bool lossless = false;
            REQUIRE(cache->truncate(n - n_dropped, &lossless).ok());
            REQUIRE(cache->n_tokens(0) == n - n_dropped);
            const std::size_t n_kept = (n - n_dropped) * n_heads * dim;
            const auto [keys, values] = read_all(cache.get());
            // A block that was opened again shows its tokens as they came; the replay looks at them.
            const std::uint64_t n_cut = n_left - std::min<std::uint64_t>(n_left, config.spec.sink_tokens);
            const bool is_reopened = cache->stats().compressed_tokens < std::min(n_closed, n_cut);
            if (!is_reopened) {
                CHECK(std::equal(keys.data.begin(), keys.data.end(), old_keys.data.begin()));
                CHECK(std::equal(values.data.begin(), values.data.end(), old_values.data.begin()));
            }
            n_reopened += is_reopened;
            REQUIRE(keys.data.size() == n_kept);
            if (n_dropped == 0) CHECK(lossless);
            if (n_left >= n_fixed && n_left + rollback >= most_tokens) {
                CHECK(lossless);
                n_promised += n_dropped > 0;
            }
            n_fixed = std::min(n_fixed, n_left);
            most_tokens = lossless ? std::min(most_tokens, std::max(n_left + rollback, n_left)) : n_left;
            steps = shortened(steps, n - n_dropped);
            replayable = replayable && lossless;
            (lossless ? n_lossless : n_lossy) += 1;
        }
        if (replayable && i % 5 == 0 && cache->n_tokens(0) > 0) {
            auto never = make_cache(config);
            for (const Step& step : steps)
                REQUIRE(run(never.get(), step).ok());
            REQUIRE(never->n_tokens(0) == cache->n_tokens(0));
            CHECK(read_all(never.get()).first.data == read_all(cache.get()).first.data);
            CHECK(read_all(never.get()).second.data == read_all(cache.get()).second.data);
            CHECK(attend(never.get(), q, dim, true).data == attend(cache.get(), q, dim, true).data);
            steps.push_back({0, 0, true});
        }
    }
    CHECK(n_lossless > 2);
    if (rollback > 0) {
        CHECK(n_promised > 1);
    } else if (spec != "f16") {
        CHECK(n_lossy > 3);
    }
    return n_reopened;
}

}  // namespace

TEST_CASE("truncation at any place keeps what stays, through appends, compressions and attention",
          "[truncate][once]") {
    std::uint32_t spread = 0;
    for (const char* spec : all_specs) {
        CHECK(run_at_random(spec, spread, 80) == 0);
        spread = 16 - spread;
    }
}

TEST_CASE("a rollback of up to rollback_tokens is lossless, also over a block that was closed",
          "[truncate][once]") {
    std::size_t n_reopened = 0;
    n_reopened += run_at_random("gear-3", 0, 100, 64);
    n_reopened += run_at_random("gear-3:recent=10", 16, 100, 20);
    n_reopened += run_at_random("kivi-2:nb=64", 16, 100, 20);
    n_reopened += run_at_random("paper:gear-2:nb=64", 16, 100, 64);
    CHECK(n_reopened > 3);
}

TEST_CASE("so is any other", "[truncate][slow]") {
    std::size_t n_reopened = 0;
    for (const char* spec : {"gear-3", "kivi-2:nb=64", "paper:gear-2:nb=64", "gear-3:recent=10"}) {
        for (const std::uint32_t rollback : {8u, 20u, 64u})
            n_reopened += run_at_random(spec, 16, 200, rollback);
    }
    CHECK(n_reopened > 20);
}

TEST_CASE("drafts of eight tokens, of which some are kept, leave what the kept ones alone would have",
          "[truncate]") {
    CountingMemory memory;
    CacheConfig config = make_config("kivi-2:nb=64", n_heads, dim, dim, 900);
    config.rollback_tokens = 8;
    config.allocator = memory.allocator();
    auto drafted = make_cache(config);
    auto never = make_cache(config);
    std::size_t n = 0;
    for (std::size_t i = 0; n < 400; ++i) {
        REQUIRE(append(drafted.get(), source().keys, source().values, n, 1).ok());
        REQUIRE(append(drafted.get(), source().keys, source().values, 2000 + i, 7).ok());
        const std::size_t n_kept = 1;
        bool lossless = false;
        REQUIRE(drafted->truncate(n + n_kept, &lossless).ok());
        CAPTURE(n);
        CHECK(lossless);
        REQUIRE(append(never.get(), source().keys, source().values, n, n_kept).ok());
        n += n_kept;
        if (n % 16 == 0) {
            CHECK(read_all(drafted.get()).first.data == read_all(never.get()).first.data);
            CHECK(read_all(drafted.get()).second.data == read_all(never.get()).second.data);
        }
    }
    CHECK(drafted->stats().compressed_tokens == 320);
    // A fork has what it takes to open the block again, too; and its first owner may be gone by then.
    for (; drafted->stats().compressed_tokens == 320; ++n)
        REQUIRE(append(drafted.get(), source().keys, source().values, n, 1).ok());
    std::unique_ptr<Cache> fork;
    REQUIRE(drafted->fork(&fork).ok());
    REQUIRE(append(fork.get(), source().keys, source().values, n, 1).ok());
    drafted.reset();
    bool lossless = false;
    REQUIRE(fork->truncate(n - 4, &lossless).ok());
    CHECK(lossless);
    CHECK(fork->stats().compressed_tokens == 320);
    for (std::size_t i = n - 4; i < n + 60; ++i)
        REQUIRE(append(fork.get(), source().keys, source().values, i, 1).ok());
    for (std::size_t i = never->n_tokens(0); i < n + 60; ++i)
        REQUIRE(append(never.get(), source().keys, source().values, i, 1).ok());
    CHECK(read_all(fork.get()).first.data == read_all(never.get()).first.data);
    fork.reset();
    never.reset();
    CHECK(memory.held == 0);
}

TEST_CASE("so it does for long", "[truncate][slow]") {
    for (const char* spec : all_specs) {
        for (const std::uint32_t spread : {0u, 5u, 16u})
            run_at_random(spec, spread, 300);
    }
}

TEST_CASE("blocks cut again and again do not overflow their table, and reset gives everything back",
          "[truncate]") {
    CountingMemory memory;
    CacheConfig config = make_config("gear-3", n_heads, dim, dim, 300);
    config.allocator = memory.allocator();
    {
        auto cache = make_cache(config);
        const std::uint64_t empty = memory.held;
        // One token stays of every block.
        for (std::size_t i = 0; i < 40; ++i) {
            REQUIRE(append(cache.get(), source().keys, source().values, 140 * (i % 20), 133).ok());
            REQUIRE(cache->compress(0, serial_executor()).ok());
            REQUIRE(cache->truncate(5 + i).ok());
        }
        CHECK(cache->stats().n_blocks == 80);
        const Tensor q = gaussian(1, 2, dim, 3);
        CHECK(attention_error(cache.get(), q, true) < attention_tolerance(*cache));
        CHECK(memory.held > empty);
        cache->reset();
        CHECK(cache->stats().n_blocks == 0);
        CHECK(cache->stats().bytes.keys.bytes == 0);
        CHECK(cache->stats().bytes.values.bytes == 0);
    }
    CHECK(memory.held == 0);
}

TEST_CASE("a truncation beyond the tokens of a layer is refused and changes nothing", "[truncate]") {
    auto cache = make_cache(make_config("gear-4", n_heads, dim, dim, 900, 2));
    REQUIRE(append(cache.get(), source().keys, source().values, 0, 300, 0).ok());
    REQUIRE(append(cache.get(), source().keys, source().values, 0, 200, 1).ok());
    bool lossless = false;
    const Status status = cache->truncate(201, &lossless);
    CHECK(status.code() == Code::wrong_size);
    CHECK(std::string(status.message()) == "truncation to 201 tokens, layer 1 holds 200");
    CHECK_FALSE(lossless);
    CHECK(cache->n_tokens(0) == 300);
    CHECK(cache->n_tokens(1) == 200);
    REQUIRE(cache->truncate(100).ok());
    CHECK(cache->n_tokens(0) == 100);
    CHECK(cache->n_tokens(1) == 100);
}
