// Trellis blocks that are encoded again at lower rates: which, how far, and what that costs.
#include <array>
#include <random>

#include "caches.hpp"
#include "format/block.hpp"
#include "format/spec.hpp"
#include "gearkv/state.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = 2, dim = 64, n_source = 3000;

// Keys and values as models have them, by layer, the second twice as loud.
const Tensor& rows(TensorKind kind, std::uint32_t layer) {
    static const std::array<Tensor, 4> all = [] {
        std::array<Tensor, 4> made;
        for (unsigned i = 0; i < 4; ++i) {
            made[i] = structured(n_source, n_heads, dim, i + 1);
            for (double& x : made[i].data)
                x *= i < 2 ? 1.0 : 2.0;
        }
        return made;
    }();
    return all[2 * (layer % 2) + static_cast<std::size_t>(kind)];
}

Status append_rows(Cache* cache, std::size_t first, std::size_t n, Executor& executor = serial_executor()) {
    Status status;
    for (std::uint32_t layer = 0; status.ok() && layer < cache->config().n_layers; ++layer)
        status = append(cache, rows(TensorKind::key, layer), rows(TensorKind::value, layer), first, n, layer,
                        executor);
    return status;
}

void compress_all(Cache* cache) {
    for (std::uint32_t layer = 0; layer < cache->config().n_layers; ++layer)
        REQUIRE(cache->compress(layer, serial_executor()).ok());
}

const Tensor& queries() {
    static const Tensor q = gaussian(3, 2 * n_heads, dim, 9);
    return q;
}

void attend_all(Cache* cache) {
    const std::vector<float> data = to_floats(queries());
    std::vector<float> out(3 * 2 * n_heads * dim);
    for (std::uint32_t layer = 0; layer < cache->config().n_layers; ++layer)
        REQUIRE(
            cache->attend(layer, queries_of(data, queries(), true), out.data(), out.size(), serial_executor())
                .ok());
}

// Blocks of a few sections, and of one.
void fill(Cache* cache) {
    REQUIRE(append_rows(cache, 0, 700).ok());
    if (cache->config().spec.auto_bits > 0.0f) attend_all(cache);
    compress_all(cache);
    for (std::size_t t = 700; t < 1500; t += 50)
        REQUIRE(append_rows(cache, t, 50).ok());
    compress_all(cache);
}

// Of attention over the first n tokens of the source.
double error_of(Cache* cache, std::size_t n) {
    Tensor keys = rows(TensorKind::key, 0), values = rows(TensorKind::value, 0);
    for (Tensor* x : {&keys, &values}) {
        x->n_tokens = n;
        x->data.resize(n * n_heads * dim);
    }
    const Tensor exact =
        reference::attend(queries(), keys, values, 1.0 / std::sqrt(static_cast<double>(dim)), true);
    return reference::relative_error(exact, attend(cache, queries(), dim, true));
}

std::uint64_t block_bytes(const Cache& cache) {
    const CacheBytes bytes = cache.stats().bytes;
    return bytes.keys.bytes + bytes.values.bytes;
}

std::vector<unsigned char> saved(const Cache& cache) {
    std::uint64_t n = 0;
    REQUIRE(state_bytes(cache, {}, &n).ok());
    std::vector<unsigned char> bytes(n);
    REQUIRE(save_state(cache, bytes.data(), bytes.size(), {}, serial_executor()).ok());
    return bytes;
}

std::unique_ptr<Cache> loaded(const std::vector<unsigned char>& bytes, const CacheConfig& config) {
    std::unique_ptr<Cache> cache;
    const Status status = load_state(bytes.data(), bytes.size(), config, {}, serial_executor(), &cache);
    INFO(status.message());
    REQUIRE(status.ok());
    return cache;
}

// What a cache of this SPEC holds after fill().
std::uint64_t filled_bytes(const char* spec) {
    auto cache = make_cache(make_config(spec, n_heads, dim, dim, 4000, 2));
    fill(cache.get());
    return block_bytes(*cache);
}

}  // namespace

TEST_CASE("trellis blocks go to lower rates, as far as they are asked to", "[shrink]") {
    for (const char* spec : {"gear-4", "gear-3", "gear-2", "auto:4", "k=trellis-4.2;v=trellis-3.7"}) {
        CAPTURE(spec);
        CountingMemory memory;
        {
            CacheConfig config = make_config(spec, n_heads, dim, dim, 4000, 2);
            config.allocator = memory.allocator();
            auto cache = make_cache(config);
            fill(cache.get());
            (void)attend(cache.get(), queries(), dim, true);
            compress_all(cache.get());
            std::unique_ptr<Cache> fork;
            REQUIRE(cache->fork(&fork).ok());
            const double error = error_of(cache.get(), 1500);
            const Tensor before = attend(fork.get(), queries(), dim, true);
            std::uint64_t freed = 1;
            REQUIRE(cache->shrink(UINT64_MAX, &freed).ok());
            CHECK(freed == 0);
            const CacheStats full = cache->stats();
            const std::uint64_t least = filled_bytes("gear-1"), most = block_bytes(*cache);
            double last = error;
            for (const std::uint64_t wanted : {(3 * most + least) / 4, (most + least) / 2, least}) {
                const std::uint64_t held = cache->stats().bytes.bytes;
                const std::uint64_t target = held - (block_bytes(*cache) - wanted);
                REQUIRE(cache->shrink(target, &freed).ok());
                const CacheStats stats = cache->stats();
                CHECK(stats.bytes.bytes <= target);
                CHECK(stats.bytes.bytes == held - freed);
                CHECK(stats.n_shrunk > 0);
                CHECK(stats.n_blocks == full.n_blocks);
                CHECK(stats.shrunk_bytes == most - block_bytes(*cache));
                // Rates are mixed within a layer, and attended as they are read.
                CHECK(attention_error(cache.get(), queries(), true) < attention_tolerance(*cache));
                const double now = error_of(cache.get(), 1500);
                CHECK(now >= 0.95 * last);
                last = now;
                auto again = loaded(saved(*cache), config);
                CHECK(attend(again.get(), queries(), dim, true).data ==
                      attend(cache.get(), queries(), dim, true).data);
                CHECK(block_bytes(*again) == block_bytes(*cache));
            }
            CHECK(block_bytes(*cache) == least);
            // No worse by much than what was encoded once: errors of all encodings add up.
            auto once = make_cache(make_config("gear-1", n_heads, dim, dim, 4000, 2));
            fill(once.get());
            // Of a head that auto gave much, much goes.
            CHECK(last < (config.spec.auto_bits > 0.0f ? 1.8 : 1.35) * error_of(once.get(), 1500));
            CHECK(error < last);
            // Nothing is left to be had, and that is what it says.
            REQUIRE(cache->shrink(0, &freed).ok());
            CHECK(freed == 0);
            CHECK(attend(fork.get(), queries(), dim, true).data == before.data);
            CHECK(fork->stats().n_shrunk == 0);
            REQUIRE(append_rows(cache.get(), 1500, 300).ok());
            compress_all(cache.get());
            CHECK(attention_error(cache.get(), queries(), true) < attention_tolerance(*cache));
            // What came since has the rate of its layer, in a file too.
            auto again = loaded(saved(*cache), config);
            REQUIRE(again->shrink(0, &freed).ok());
            CHECK(freed > 0);
            CHECK(attention_error(again.get(), queries(), true) < attention_tolerance(*again));
        }
        CHECK(memory.held == 0);
    }
}

TEST_CASE("the cheapest keys and values go first, and what has no lower rate stays", "[shrink][once]") {
    auto cache = make_cache(make_config("gear-4", n_heads, dim, dim, 4000, 2));
    for (std::uint32_t layer = 0; layer < 2; ++layer) {
        REQUIRE(append(cache.get(), source().keys, source().values, 0, 1500, layer).ok());
        REQUIRE(cache->compress(layer, serial_executor()).ok());
    }
    const CacheBytes before = cache->stats().bytes;
    REQUIRE(cache->shrink(before.bytes - before.bytes / 20).ok());
    // An error of keys is worse than one of values, and both are as hard to encode.
    const CacheBytes after = cache->stats().bytes;
    CHECK(after.values.bytes < before.values.bytes);
    CHECK(after.keys.bytes == before.keys.bytes);
    LayerStats layers[2];
    for (std::uint32_t layer = 0; layer < 2; ++layer)
        REQUIRE(cache->layer_stats(layer, &layers[layer]).ok());
    CHECK(layers[0].shrunk_bytes + layers[1].shrunk_bytes == cache->stats().shrunk_bytes);
    CHECK(layers[0].n_shrunk + layers[1].n_shrunk == cache->stats().n_shrunk);
    // Tokens in fp16 are never touched.
    std::vector<float> first(4 * n_heads * dim), again(first.size());
    REQUIRE(cache->read(0, 0, 4, first.data(), first.size(), nullptr, 0).ok());
    REQUIRE(cache->shrink(0).ok());
    REQUIRE(cache->read(0, 0, 4, again.data(), again.size(), nullptr, 0).ok());
    CHECK(first == again);
    CHECK(cache->stats().bytes.buffer == before.buffer);

    auto mixed = make_cache(make_config("k=gear-4;v=f16", n_heads, dim, dim, 4000, 2));
    fill(mixed.get());
    const CacheBytes full = mixed->stats().bytes;
    REQUIRE(mixed->shrink(0).ok());
    CHECK(mixed->stats().bytes.keys.bytes < full.keys.bytes * 6 / 10);
    CHECK(mixed->stats().bytes.values.bytes == full.values.bytes);
    CHECK(mixed->stats().n_shrunk == mixed->stats().n_blocks / 2);
    CHECK(attention_error(mixed.get(), queries(), true) < attention_tolerance(*mixed));
    for (const char* spec : {"gear-1", "kivi-4:nb=64", "f16"}) {
        auto none = make_cache(make_config(spec, n_heads, dim, dim, 4000, 2));
        fill(none.get());
        std::uint64_t freed = 1;
        REQUIRE(none->shrink(0, &freed).ok());
        CHECK(freed == 0);
        CHECK(none->stats().n_shrunk == 0);
    }
}

TEST_CASE("blocks shrink to the same bits on any number of threads", "[shrink][thread]") {
    std::vector<std::vector<unsigned char>> found;
    for (const unsigned n_threads : {1u, 2u, 3u}) {
        std::unique_ptr<Executor> executor;
        REQUIRE(create_executor(n_threads, &executor).ok());
        CacheConfig config = make_config("gear-4", 3, dim, dim, 4000, 2);
        config.soft_bytes = 500000;
        auto cache = make_cache(config);
        const Tensor keys = structured(900, 3, dim, 5), values = structured(900, 3, dim, 6);
        const Tensor q = gaussian(1, 6, dim, 7);
        for (std::size_t t = 0; t < 900; t += 45) {
            for (std::uint32_t layer = 0; layer < 2; ++layer)
                REQUIRE(append(cache.get(), keys, values, t, 45, layer, *executor).ok());
            (void)attend(cache.get(), q, dim, true, *executor);
        }
        CHECK(cache->stats().n_shrunk > 0);
        REQUIRE(cache->shrink(cache->stats().bytes.bytes - 30000, nullptr, *executor).ok());
        found.push_back(saved(*cache));
    }
    CHECK(found[0] == found[1]);
    CHECK(found[0] == found[2]);
}

TEST_CASE("above soft_bytes trellis blocks go to lower rates, a unit a step", "[shrink][once]") {
    CacheConfig config = make_config("gear-4", n_heads, dim, dim, 4000, 2);
    config.block_tokens = 128;
    auto whole = make_cache(config);
    REQUIRE(append_rows(whole.get(), 0, 500).ok());
    for (std::size_t t = 500; t < 2500; ++t)
        REQUIRE(append_rows(whole.get(), t, 1).ok());
    const CacheStats full = whole->stats();
    config.soft_bytes = full.bytes.bytes - block_bytes(*whole) / 3;
    auto cache = make_cache(config);
    REQUIRE(append_rows(cache.get(), 0, 500).ok());
    std::uint64_t n_shrunk = 0, most_at_once = 0, shrunk_bytes = 0;
    for (std::size_t t = 500; t < 2500; ++t) {
        REQUIRE(append_rows(cache.get(), t, 1).ok());
        const CacheStats stats = cache->stats();
        CHECK(stats.n_shrunk >= n_shrunk);
        most_at_once = std::max(most_at_once, stats.shrunk_bytes - shrunk_bytes);
        n_shrunk = stats.n_shrunk;
        shrunk_bytes = stats.shrunk_bytes;
    }
    CHECK(n_shrunk > 0);
    CHECK(n_shrunk < cache->stats().n_blocks);
    CHECK(cache->stats().bytes.bytes < config.soft_bytes + block_bytes(*whole) / 40);
    // Of two blocks of one section, a bit each at the most.
    CHECK(most_at_once <= 2 * 128 * n_heads * dim * 10 / 8 / 8);
    CHECK(attention_error(cache.get(), queries(), true) < attention_tolerance(*cache));
    // A rollback may meet other blocks than there were.
    bool lossless = true;
    REQUIRE(cache->truncate(2499, &lossless).ok());
    CHECK_FALSE(lossless);
}

TEST_CASE("a cache that has no memory to shrink with stays as it is, and says so", "[shrink][once]") {
    CountingMemory memory;
    {
        CacheConfig config = make_config("gear-4", n_heads, dim, dim, 4000, 2);
        config.allocator = memory.allocator();
        auto cache = make_cache(config);
        fill(cache.get());
        (void)attend(cache.get(), queries(), dim, true);
        const std::vector<unsigned char> before = saved(*cache);
        memory.budget = 0;
        std::uint64_t freed = 1;
        CHECK(cache->shrink(0, &freed).code() == Code::out_of_memory);
        CHECK(freed == 0);
        memory.budget = INT64_MAX;
        CHECK(saved(*cache) == before);
        CHECK(cache->stats().n_shrunk == 0);
        bool done = false;
        for (std::int64_t n = 1; !done; n += n < 12 ? 1 : 7) {
            memory.budget = n;
            const Status status = cache->shrink(0);
            memory.budget = INT64_MAX;
            done = status.ok();
            if (!done) CHECK(status.code() == Code::out_of_memory);
            CHECK(attention_error(cache.get(), queries(), true) < attention_tolerance(*cache));
        }
        // Within a budget as well, where only small blocks have room at first.
        const std::uint64_t held = loaded(before, config)->stats().bytes.bytes;
        config.max_bytes = held + 30000;
        auto tight = loaded(before, config);
        REQUIRE(tight->shrink(0).ok());
        CHECK(block_bytes(*tight) == filled_bytes("gear-1"));
    }
    CHECK(memory.held == 0);
}

TEST_CASE("outliers that have no memory to go with are told, and go when there is some", "[shrink][once]") {
    CountingMemory memory;
    CacheConfig config = make_config("paper:gear-4:nb=64", n_heads, dim, dim, 4000, 2);
    config.allocator = memory.allocator();
    auto cache = make_cache(config);
    fill(cache.get());
    const CacheBytes before = cache->stats().bytes;
    std::uint64_t freed = 1;
    for (const std::int64_t n : {0, 3}) {
        memory.budget = n;
        CHECK(cache->shrink(0, &freed).code() == Code::out_of_memory);
        CHECK((freed > 0) == (n > 0));
        // None loses its low rank before.
        CHECK(cache->stats().bytes.keys.low_rank == before.keys.low_rank);
        CHECK(cache->stats().n_shrunk == 2 * static_cast<std::uint64_t>(n));
    }
    memory.budget = INT64_MAX;
    REQUIRE(cache->shrink(0, &freed).ok());
    CHECK(cache->stats().bytes.keys.outliers == 0);
    CHECK(cache->stats().bytes.keys.low_rank == 0);
}

TEST_CASE("blocks behind those that a prompt left shrink as others do", "[shrink][once]") {
    const std::uint32_t window = 512;
    for (const char* spec : {"gear-4", "paper:gear-4:nb=64"}) {
        CAPTURE(spec);
        CacheConfig config = make_config(spec, n_heads, dim, dim, 4000);
        config.windows = &window;
        config.block_tokens = 128;
        auto cache = make_cache(config);
        REQUIRE(append_rows(cache.get(), 0, 600).ok());
        compress_all(cache.get());
        for (int i = 0; i < 2; ++i)
            REQUIRE(cache->shrink(0).ok());
        REQUIRE(append_rows(cache.get(), 0, 2500).ok());
        compress_all(cache.get());
        CHECK(cache->stats().n_shrunk == 0);
        const std::uint64_t target = cache->stats().bytes.bytes - block_bytes(*cache) / 40;
        REQUIRE(cache->shrink(target).ok());
        CHECK(cache->stats().bytes.bytes <= target);
        CHECK(cache->stats().n_shrunk > 0);
    }
}

TEST_CASE("what shrinks in a step is enough for all layers, whatever the first one is", "[shrink][once]") {
    constexpr std::uint32_t n_layers = 32, n_wide = 2, n_tokens = 400;
    const std::vector<float> x = to_floats(gaussian(n_tokens, n_wide, 8, 3));
    std::uint64_t found[2];
    for (const std::uint32_t narrow : {0u, n_layers - 1}) {
        std::vector<LayerDims> dims(n_layers, {n_wide, 8, 8});
        dims[narrow].n_kv_heads = 1;
        CacheConfig config = make_config("gear-4", 0, 0, 0, 4000, n_layers);
        config.dims = dims.data();
        config.block_tokens = 128;
        config.soft_bytes = 1;
        auto cache = make_cache(config);
        for (std::size_t i = 0; i < n_tokens * n_layers; ++i) {
            const Rows row = {x.data() + i / n_layers * n_wide * 8, n_wide * 8, 8};
            if (!cache->append(i % n_layers, row, row, 1, serial_executor()).ok()) FAIL();
        }
        found[narrow > 0] = block_bytes(*cache);
    }
    CHECK(found[0] < found[1] * 102 / 100);
}

namespace {

// One layer, and what its tokens were.
class ShrinkingLife {
  public:
    explicit ShrinkingLife(unsigned seed) : random_(seed) {
        const char* specs[] = {"gear-4", "gear-3:recent=20", "auto:4", "k=gear-2;v=gear-4"};
        config_ = make_config(specs[seed % 4], n_heads, dim, dim, 4000);
        config_.rollback_tokens = seed % 2 == 0 ? 0 : 40;
        config_.block_tokens = seed % 3 == 0 ? 128 : 0;
        if (seed % 5 == 0) config_.soft_bytes = 150000;
        cache_ = make_cache(config_);
        for (Tensor* x : {&keys_, &values_})
            *x = Tensor{0, n_heads, dim, {}};
    }

    void step() {
        const std::size_t n = keys_.n_tokens;
        switch (random_() % 8) {
            case 0:
            case 1:
            case 2:
                return grow(random_() % 2 == 0 ? 1 + random_() % 60 : 128 + random_() % 200);
            case 3:
                return compress_all(cache_.get());
            case 4:
                return shrink();
            case 5: {
                if (n == 0) return;
                const std::size_t n_kept = n - std::min<std::size_t>(n, random_() % 200);
                REQUIRE(cache_->truncate(n_kept).ok());
                return erase(n_kept, n - n_kept);
            }
            case 6: {
                const std::size_t first = n == 0 ? 0 : random_() % n,
                                  n_gone = std::min<std::size_t>(n - first, 50);
                if (n_gone == 0) return;
                REQUIRE(cache_->remove(first, n_gone).ok());
                return erase(first, n_gone);
            }
            default:
                break;
        }
        if (random_() % 2 == 0) {
            cache_ = loaded(saved(*cache_), config_);
        } else {
            forks_.emplace_back();
            REQUIRE(cache_->fork(&forks_.back().first).ok());
            forks_.back().second = saved(*cache_);
        }
    }

    // Within what one encoding at the lowest rates loses, and half of it for those before.
    void check() {
        if (keys_.n_tokens < 10) return;
        auto once = make_cache(make_config("gear-1", n_heads, dim, dim, 4000));
        REQUIRE(append(once.get(), keys_, values_, 0, keys_.n_tokens).ok());
        compress_all(once.get());
        const Tensor exact =
            reference::attend(queries(), keys_, values_, 1.0 / std::sqrt(static_cast<double>(dim)), true);
        const double most = reference::relative_error(exact, attend(once.get(), queries(), dim, true));
        const double found = reference::relative_error(exact, attend(cache_.get(), queries(), dim, true));
        CAPTURE(keys_.n_tokens, most);
        CHECK(found < 1.5 * most + 0.02);
        CHECK(attention_error(cache_.get(), queries(), true) < attention_tolerance(*cache_));
    }
    void check_forks() {
        for (const auto& [fork, before] : forks_)
            CHECK(saved(*fork) == before);
    }

  private:
    void grow(std::size_t n) {
        if (keys_.n_tokens + n > 1500) return;
        next_ = next_ + n > n_source ? 0 : next_;
        REQUIRE(append(cache_.get(), rows(TensorKind::key, 0), rows(TensorKind::value, 0), next_, n).ok());
        for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
            Tensor& to = kind == TensorKind::key ? keys_ : values_;
            const auto from = rows(kind, 0).data.begin() + static_cast<std::ptrdiff_t>(next_ * n_heads * dim);
            to.data.insert(to.data.end(), from, from + static_cast<std::ptrdiff_t>(n * n_heads * dim));
            to.n_tokens += n;
        }
        next_ += n;
        if (random_() % 2 == 0 && keys_.n_tokens >= 3) (void)attend(cache_.get(), queries(), dim, true);
    }
    void erase(std::size_t first, std::size_t n) {
        for (Tensor* x : {&keys_, &values_}) {
            const auto at = x->data.begin() + static_cast<std::ptrdiff_t>(first * n_heads * dim);
            x->data.erase(at, at + static_cast<std::ptrdiff_t>(n * n_heads * dim));
            x->n_tokens -= n;
        }
    }
    void shrink() {
        const std::uint64_t held = cache_->stats().bytes.bytes;
        const std::uint64_t target = held - std::min<std::uint64_t>(held, random_() % 60000);
        std::uint64_t freed = 0;
        REQUIRE(cache_->shrink(target, &freed).ok());
        const std::uint64_t now = cache_->stats().bytes.bytes;
        // A layer that is owned for it may come to hold more, or less.
        if (forks_.empty()) CHECK(now == held - freed);
        if (now <= target) return;
        REQUIRE(cache_->shrink(0, &freed).ok());
        CHECK(freed == 0);
    }

    std::mt19937 random_;
    CacheConfig config_;
    std::unique_ptr<Cache> cache_;
    Tensor keys_, values_;
    std::size_t next_ = 0;
    std::vector<std::pair<std::unique_ptr<Cache>, std::vector<unsigned char>>> forks_;
};

}  // namespace

TEST_CASE("whatever comes between, attention stays within the error of the lowest rate",
          "[shrink][property]") {
    for (unsigned seed = 0; seed < 12; ++seed) {
        CAPTURE(seed);
        ShrinkingLife life(seed);
        for (int i = 0; i < 40; ++i) {
            CAPTURE(i);
            life.step();
            if (i % 8 == 7) life.check();
        }
        life.check_forks();
    }
}

TEST_CASE("a header tells the rate that is next, and planes are shared in proportion", "[shrink][once]") {
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const bool keys = kind == TensorKind::key;
        BlockHeader header;
        REQUIRE(lay_out_block({kind, 256, 3, 64}, trellis_spec(keys ? 4.625f : 4.0f), 0, &header).ok());
        for (const float rate : keys ? std::array{3.625f, 2.625f, 2.0f} : std::array{3.0f, 2.0f, 1.5f}) {
            BlockHeader lower;
            REQUIRE(lay_out_lower(header, &lower));
            CHECK(lower.rate == rate);
            CHECK(lower.n_bytes < header.n_bytes);
            CHECK(lower.profile == header.profile);
            header = lower;
        }
        CHECK_FALSE(lay_out_lower(header, &header));
        REQUIRE(lay_out_block({kind, 256, 3, 64}, {Backbone::kivi, 4}, 0, &header).ok());
        CHECK_FALSE(lay_out_lower(header, &header));
    }
    BlockHeader header;
    REQUIRE(lay_out_block({TensorKind::key, 128, 3, 64}, trellis_spec(2.0f), 0, &header, false).ok());
    BlockView view;
    view.header = &header;
    view.sizes = block_sizes(header);
    REQUIRE(view.sizes.n_planes == 96);
    const std::uint32_t wide[] = {0, 100, 130, 200}, exact[] = {0, 40, 50, 96};
    view.plane_starts = wide;
    CHECK(view.first_plane(1) == 48);
    CHECK(view.n_planes(1) == 14);
    CHECK(view.first_plane(3) == 96);
    view.plane_starts = exact;
    CHECK(view.first_plane(2) == 50);
}
