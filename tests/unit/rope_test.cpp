// Ropes that removals are told, one for every layer: keys turn to where their tokens are now, as if they had
// been rotated for these places.
#include <functional>

#include "caches.hpp"
#include "gearkv/state.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::size_t n_heads = source_heads, dim = source_dim;

// A way to rotate keys: what is told of it, and its frequencies by other formulas.
struct Variant {
    RopeSpec spec;
    bool interleaved = false;
    std::function<double(std::size_t)> frequency;
    std::vector<double> told = {};

    std::size_t n_pairs() const { return told.size(); }
    RopeConfig rope() const { return {told.data(), static_cast<std::uint32_t>(told.size()), interleaved}; }
};

// In the engines' words: positions of slow pairs are interpolated, those of fast ones extrapolated.
double yarn_frequency(std::size_t pair) {
    const double n_dims = 64.0, base = 500000.0, scale = 1.0 / 4.0, context = 2048.0;
    const auto at = [&](double turns) {
        return n_dims * std::log(context / (turns * 2.0 * M_PI)) / (2.0 * std::log(base));
    };
    const double low = std::max(0.0, std::floor(at(32.0))), high = std::min(n_dims - 1.0, std::ceil(at(1.0)));
    const double y = (static_cast<double>(pair) - low) / std::max(0.001, high - low);
    const double mix = 1.0 - std::min(1.0, std::max(0.0, y));
    const double extrapolated = std::pow(std::pow(base, -2.0 / n_dims), static_cast<double>(pair));
    return scale * extrapolated * (1.0 - mix) + extrapolated * mix;
}

const std::vector<Variant>& variants() {
    static const std::vector<float> factors = [] {
        std::vector<float> x(32);
        for (std::size_t i = 0; i < x.size(); ++i)
            x[i] = 1.0f + 0.25f * static_cast<float>(i);
        return x;
    }();
    static const auto power = [](double base, double n_dims, std::size_t i) {
        return 1.0 / std::pow(base, 2.0 * static_cast<double>(i) / n_dims);
    };
    static const std::vector<Variant> all = [] {
        std::vector<Variant> list;
        list.push_back({{.n_dims = 64}, false, [](std::size_t i) { return power(10000.0, 64.0, i); }});
        list.push_back({{.n_dims = 64, .base = 1e6, .scale = 1.0 / 8.0}, true, [](std::size_t i) {
                            return power(1e6, 64.0, i) / 8.0;
                        }});
        list.push_back({{.n_dims = 64, .base = 500000.0, .factors = factors.data()}, true, [](std::size_t i) {
                            return power(500000.0, 64.0, i) / static_cast<double>(factors[i]);
                        }});
        list.push_back({{.n_dims = 48, .factors = factors.data()}, false, [](std::size_t i) {
                            return power(10000.0, 48.0, i) / static_cast<double>(factors[i]);
                        }});
        list.push_back({{.n_dims = 64,
                         .base = 500000.0,
                         .scale = 1.0 / 4.0,
                         .ext_factor = 1.0,
                         .original_context = 2048.0},
                        false,
                        yarn_frequency});
        list.push_back({});  // no rope at all
        for (Variant& variant : list) {
            variant.told.resize(variant.spec.n_dims / 2);
            if (variant.told.empty()) continue;
            REQUIRE(rope_frequencies(variant.spec, variant.told.data(), variant.told.size()).ok());
        }
        return list;
    }();
    return all;
}
const std::vector<RopeConfig>& ropes() {
    static const std::vector<RopeConfig> all = [] {
        std::vector<RopeConfig> list;
        for (const Variant& variant : variants())
            list.push_back(variant.rope());
        return list;
    }();
    return all;
}
const std::uint32_t n_variants = 6;

// Keys of these tokens of the source, rotated in double precision for places first, first + 1, ...
Tensor rotated(const Variant& variant, const std::vector<std::size_t>& tokens, std::size_t first) {
    Tensor keys{tokens.size(), n_heads, dim, {}};
    for (std::size_t t = 0; t < tokens.size(); ++t) {
        for (std::size_t head = 0; head < n_heads; ++head) {
            const double* x = source().keys.data.data() + (tokens[t] * n_heads + head) * dim;
            std::vector<double> row(x, x + dim);
            for (std::size_t i = 0; i < variant.n_pairs(); ++i) {
                const std::size_t a = variant.interleaved ? 2 * i : i;
                const std::size_t b = variant.interleaved ? 2 * i + 1 : i + variant.n_pairs();
                const double angle = static_cast<double>(first + t) * variant.frequency(i);
                row[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle);
                row[b] = x[a] * std::sin(angle) + x[b] * std::cos(angle);
            }
            keys.data.insert(keys.data.end(), row.begin(), row.end());
        }
    }
    return keys;
}
Tensor values_of(const std::vector<std::size_t>& tokens) {
    Tensor values{tokens.size(), n_heads, dim, {}};
    for (const std::size_t t : tokens) {
        const auto row = source().values.data.begin() + static_cast<std::ptrdiff_t>(t * n_heads * dim);
        values.data.insert(values.data.end(), row, row + n_heads * dim);
    }
    return values;
}

// A cache of a layer for every variant, and which tokens of the source it holds.
struct Subject {
    std::unique_ptr<Cache> cache;
    std::vector<std::size_t> tokens = {};
    std::size_t next = 0;

    void append(std::size_t n) {
        std::vector<std::size_t> added(n);
        for (std::size_t& t : added)
            t = next++;
        for (std::uint32_t layer = 0; layer < n_variants; ++layer) {
            const Tensor keys = rotated(variants()[layer], added, tokens.size());
            REQUIRE(testing::append(cache.get(), keys, values_of(added), 0, n, layer).ok());
        }
        tokens.insert(tokens.end(), added.begin(), added.end());
    }
    Status remove(std::size_t first, std::size_t n, const RopeConfig* told = ropes().data()) {
        const Status status = cache->remove(first, n, told);
        if (!status.ok()) return status;
        const auto from = tokens.begin() + static_cast<std::ptrdiff_t>(first);
        tokens.erase(from, from + static_cast<std::ptrdiff_t>(n));
        return status;
    }
    void compress() {
        for (std::uint32_t layer = 0; layer < n_variants; ++layer)
            REQUIRE(cache->compress(layer, serial_executor()).ok());
    }
    std::vector<float> attend(std::uint32_t layer) const {
        static const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
        const std::vector<float> data = to_floats(q);
        std::vector<float> out(q.n_heads * dim);
        REQUIRE(
            cache->attend(layer, queries_of(data, q, true), out.data(), out.size(), serial_executor()).ok());
        return out;
    }
    // Of keys as they are read, and of attention.
    void check(double key_error, double output_error) const {
        for (std::uint32_t layer = 0; layer < n_variants; ++layer) {
            CAPTURE(layer);
            const std::size_t n = tokens.size();
            REQUIRE(cache->n_tokens(layer) == n);
            std::vector<float> keys(n * n_heads * dim);
            REQUIRE(cache->read(layer, 0, n, keys.data(), keys.size(), nullptr, 0).ok());
            const Tensor expected = rotated(variants()[layer], tokens, 0);
            CHECK(reference::relative_error(expected, to_tensor(keys.data(), n, n_heads, dim)) < key_error);
            static const Tensor q = gaussian(1, 2 * n_heads, dim, 3);
            const Tensor output = reference::attend(q, expected, values_of(tokens),
                                                    1.0 / std::sqrt(static_cast<double>(dim)), true);
            CHECK(reference::relative_error(output, to_tensor(attend(layer).data(), 1, 2 * n_heads, dim)) <
                  output_error);
        }
    }
};

CacheConfig config_of(const char* spec) {
    return make_config(spec, n_heads, dim, dim, 1000, n_variants);
}

}  // namespace

TEST_CASE("keys turn by the rope of their layer, of every scaling, as if rotated for their new places",
          "[rope]") {
    const struct {
        const char* spec;
        double key_error, output_error;
    } cases[] = {{"f32", 1e-5, 1e-5}, {"f16", 2e-3, 2e-3}, {"q8:nb=64", 0.02, 0.02}, {"gear-4", 0.06, 0.15}};
    for (const auto& c : cases) {
        CAPTURE(c.spec);
        Subject subject{make_cache(config_of(c.spec))};
        subject.append(200);
        subject.compress();
        REQUIRE(subject.remove(30, 50).ok());
        subject.check(c.key_error, c.output_error);
        subject.append(150);
        subject.compress();
        REQUIRE(subject.remove(0, 20).ok());
        REQUIRE(subject.remove(100, 3).ok());
        subject.check(c.key_error, c.output_error);
        // A fork and a file take the ropes along.
        Subject fork{nullptr, subject.tokens, subject.next}, loaded = {nullptr, subject.tokens, subject.next};
        const TemporaryFile file;
        REQUIRE(subject.cache->fork(&fork.cache).ok());
        REQUIRE(save_state(*subject.cache, file.path(), {}, serial_executor()).ok());
        LoadOptions options;
        options.loading = StateLoading::map;
        REQUIRE(load_state(file.path(), config_of(c.spec), options, serial_executor(), &loaded.cache).ok());
        for (Subject* other : {&subject, &fork, &loaded}) {
            REQUIRE(other->cache->remove(50, 7).code() == Code::other_rope);
            REQUIRE(other->remove(50, 7).ok());
            other->append(20);
        }
        subject.check(c.key_error, c.output_error);
        for (std::uint32_t layer = 0; layer < n_variants; ++layer) {
            CHECK(fork.attend(layer) == subject.attend(layer));
            CHECK(loaded.attend(layer) == subject.attend(layer));
        }
    }
}

TEST_CASE("a layer whose keys have moved by one rope refuses others, and nothing changes", "[rope]") {
    for (const char* spec : {"f32:sinks=4", "gear-4"}) {
        CAPTURE(spec);
        Subject subject{make_cache(config_of(spec))};
        subject.append(spec[0] == 'f' ? 30 : 300);  // in the buffer, and in blocks
        // Nothing moves here, so that any rope will do then.
        REQUIRE(
            subject.remove(subject.tokens.size() - 5, 5, std::vector<RopeConfig>(n_variants).data()).ok());
        REQUIRE(subject.remove(5, 10).ok());
        std::vector<float> before[n_variants];
        for (std::uint32_t layer = 0; layer < n_variants; ++layer)
            before[layer] = subject.attend(layer);
        const CacheStats stats = subject.cache->stats();
        for (std::uint32_t layer = 0; layer < n_variants; ++layer) {
            CAPTURE(layer);
            std::vector<RopeConfig> others = ropes();
            std::vector<double> changed(frequencies());
            others[layer] = {changed.data(), dim / 2, others[layer].interleaved};
            if (layer == 0) changed[31] *= 1.0 + 1e-15;  // one bit
            const Status status = subject.remove(0, 4, others.data());
            CHECK(status.code() == Code::other_rope);
            CHECK(std::string(status.message()).find("layer " + std::to_string(layer)) != std::string::npos);
            if (layer > 4) continue;
            others[layer] = ropes()[layer];
            others[layer].interleaved = !others[layer].interleaved;
            CHECK(subject.remove(0, 4, others.data()).code() == Code::other_rope);
        }
        CHECK(subject.cache->remove(0, 4).code() == Code::other_rope);
        CHECK(subject.cache->stats().bytes.bytes == stats.bytes.bytes);
        for (std::uint32_t layer = 0; layer < n_variants; ++layer)
            CHECK(subject.attend(layer) == before[layer]);
        // Copies of the frequencies do as well, and an empty cache takes any.
        std::vector<RopeConfig> copies = ropes();
        const std::vector<double> copied = variants()[0].told;
        copies[0].frequencies = copied.data();
        REQUIRE(subject.remove(0, 4, copies.data()).ok());
        subject.check(0.06, 0.15);
        std::unique_ptr<Cache> fork;
        REQUIRE(subject.cache->fork(&fork).ok());
        REQUIRE(fork->truncate(0).ok());
        subject.cache->reset();
        for (Cache* cache : {fork.get(), subject.cache.get()}) {
            for (std::uint32_t layer = 0; layer < n_variants; ++layer)
                REQUIRE(append(cache, source().keys, source().values, 0, 20, layer).ok());
            CHECK(cache->remove(0, 4).ok());
            CHECK(cache->remove(0, 4, ropes().data()).code() == Code::other_rope);
        }
        CHECK(fork->remove(0, 16).ok());
        CHECK(fork->n_tokens(0) == 0);
        for (std::uint32_t layer = 0; layer < n_variants; ++layer)
            REQUIRE(append(fork.get(), source().keys, source().values, 0, 20, layer).ok());
        CHECK(fork->remove(0, 4, ropes().data()).ok());
    }
}

TEST_CASE("the rope of the configuration may be told as well, and takes no room", "[rope]") {
    CacheConfig config = config_of("gear-4");
    config.rope = ropes()[0];
    auto told = make_cache(config), untold = make_cache(config);
    for (Cache* cache : {told.get(), untold.get()}) {
        for (std::uint32_t layer = 0; layer < n_variants; ++layer)
            REQUIRE(append(cache, source().keys, source().values, 0, 300, layer).ok());
    }
    const std::vector<RopeConfig> all(n_variants, ropes()[0]);
    REQUIRE(told->remove(10, 20, all.data()).ok());
    REQUIRE(untold->remove(10, 20).ok());
    CHECK(told->stats().bytes.bytes == untold->stats().bytes.bytes);
    CHECK(read_all(told.get()).first.data == read_all(untold.get()).first.data);
    CHECK(told->remove(10, 20).ok());
    CHECK(untold->remove(10, 20, all.data()).ok());
    CHECK(untold->remove(10, 20, ropes().data()).code() == Code::other_rope);
}

TEST_CASE("ropes that cannot be are refused by layer, and memory that is short changes nothing", "[rope]") {
    CountingMemory memory;
    {
        CacheConfig config = config_of("gear-4");
        config.allocator = memory.allocator();
        Subject subject{make_cache(config)};
        subject.append(300);
        CHECK(subject.remove(5, 5, nullptr).code() == Code::invalid_argument);
        const double infinite[] = {1.0, INFINITY, 1e303};
        const std::pair<RopeConfig, Code> bad[] = {{{infinite, 2, false}, Code::non_finite},
                                                   {{infinite + 2, 1, false}, Code::non_finite},
                                                   {{nullptr, 2, false}, Code::invalid_argument},
                                                   {{infinite, 33, false}, Code::wrong_size}};
        for (const auto& [rope, code] : bad) {
            std::vector<RopeConfig> told = ropes();
            told[4] = rope;
            const Status status = subject.remove(5, 5, told.data());
            CHECK(status.code() == code);
            CHECK(std::string(status.message()).find("layer 4") == 0);
        }
        const std::vector<float> before = subject.attend(1);
        std::int64_t budget = 0;
        for (;; ++budget) {
            REQUIRE(budget < 100);
            memory.budget = budget;
            const Status status = subject.remove(20, 50);
            memory.budget = INT64_MAX;
            if (status.ok()) break;
            REQUIRE(status.code() == Code::out_of_memory);
            REQUIRE(subject.cache->n_tokens(n_variants - 1) == 300);
            REQUIRE(subject.attend(1) == before);
            // No rope is in use yet.
            std::unique_ptr<Cache> fork;
            REQUIRE(subject.cache->fork(&fork).ok());
            REQUIRE(fork->remove(20, 50).ok());
        }
        CHECK(budget >= 3);  // what one attempt took the next one has
        subject.check(0.06, 0.15);
    }
    CHECK(memory.held == 0);
}

TEST_CASE("frequencies follow from what engines know, and what they cannot follow from is refused",
          "[rope]") {
    for (const Variant& variant : variants()) {
        for (std::size_t i = 0; i < variant.n_pairs(); ++i) {
            CAPTURE(i, variant.spec.base, variant.spec.scale);
            CHECK(variant.told[i] == Approx(variant.frequency(i)).epsilon(1e-12));
        }
    }
    const auto code = [](RopeSpec spec, std::size_t n = 32) {
        std::vector<double> out(32, 7.0);
        const Status status = rope_frequencies(spec, out.data(), n);
        CHECK((out == std::vector<double>(32, 7.0)) == !status.ok());
        return status.code();
    };
    const float factors[] = {1.0f, 0.0f};
    CHECK(code({.n_dims = 64}) == Code::ok);
    CHECK(code({.n_dims = 64}, 31) == Code::wrong_size);
    CHECK(code({.n_dims = 0}) == Code::invalid_argument);
    CHECK(code({.n_dims = 7}) == Code::invalid_argument);
    CHECK(code({.n_dims = 1026}) == Code::invalid_argument);
    CHECK(code({.n_dims = 64, .base = 0.0}) == Code::invalid_argument);
    CHECK(code({.n_dims = 64, .base = NAN}) == Code::invalid_argument);
    CHECK(code({.n_dims = 64, .scale = INFINITY}) == Code::invalid_argument);
    CHECK(code({.n_dims = 4, .factors = factors}) == Code::invalid_argument);
    CHECK(code({.n_dims = 64, .ext_factor = 1.0}) == Code::invalid_argument);
    CHECK(code({.n_dims = 64, .ext_factor = NAN, .original_context = 9.0}) == Code::invalid_argument);
    CHECK(code({.n_dims = 64, .base = 1.0, .ext_factor = 1.0, .original_context = 9.0}) ==
          Code::invalid_argument);
    CHECK(code({.n_dims = 64, .ext_factor = 1.0, .original_context = 9.0, .beta_slow = 0.0}) ==
          Code::invalid_argument);
    CHECK(rope_frequencies({.n_dims = 64}, nullptr, 32).code() == Code::invalid_argument);
}
