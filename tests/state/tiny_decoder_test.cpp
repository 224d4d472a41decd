// What the library saves, read by a decoder that knows the drawings alone, is what the cache attends.
#include <array>
#include <complex>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>

#include <unistd.h>

#include "gearkv/state.hpp"
#include "state/tiny_decoder.hpp"
#include "support/temporary_file.hpp"
#include "unit/caches.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr std::uint32_t n_heads = 2;  // of layers that are all alike
constexpr std::size_t n_source = 740;

std::vector<unsigned char> saved(const Cache& cache, const std::string& extra = {}) {
    const TemporaryFile file;
    SaveOptions options;
    options.extra = extra.data();
    options.n_extra = extra.size();
    const Status status = save_state(cache, file.path(), options, serial_executor());
    INFO(status.message());
    REQUIRE(status.ok());
    return file.read();
}

std::vector<float> slice(const std::vector<float>& x, std::size_t first, std::size_t last) {
    return {x.begin() + static_cast<std::ptrdiff_t>(first), x.begin() + static_cast<std::ptrdiff_t>(last)};
}

// The largest difference within a row, as a share of the row's largest entry, over all rows.
double row_error(const std::vector<float>& expected, const std::vector<float>& found, std::size_t dim) {
    if (expected.size() != found.size()) return INFINITY;
    double worst = 0.0;
    for (std::size_t row = 0; row + dim <= expected.size(); row += dim) {
        double largest = 1e-30, difference = 0.0;
        for (std::size_t i = row; i < row + dim; ++i) {
            largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
            const double d = std::abs(static_cast<double>(expected[i]) - found[i]);
            difference = d <= difference ? difference : d;  // NaN stays
        }
        worst = std::max(worst, std::isnan(difference) ? INFINITY : difference / largest);
    }
    return worst;
}

// Tokens to append, made once for each shape.
const std::pair<Tensor, Tensor>& source(const CacheConfig& config, std::uint32_t layer) {
    static std::map<std::array<std::uint32_t, 4>, std::pair<Tensor, Tensor>> made;
    const LayerDims dims = config.dims_of(layer);
    auto& tokens = made[{dims.n_kv_heads, dims.key_dim, dims.value_dim, layer}];
    if (tokens.first.n_tokens == 0) {
        tokens = {structured(n_source, dims.n_kv_heads, dims.key_dim, 10 * layer + 1),
                  structured(n_source, dims.n_kv_heads, dims.value_dim, 10 * layer + 6)};
    }
    return tokens;
}

// A cache, and how far each of its tokens has moved while it was in a block.
struct Subject {
    std::unique_ptr<Cache> cache;
    std::vector<std::int64_t> moves;
    std::size_t next = 0;
    std::size_t n_forgotten = 0;
    std::size_t n_closed = 0;  // tokens that are not in the buffer, as the last check found
    std::set<std::string> seen;
    std::vector<RopeConfig> ropes;  // that removals are told; empty: that of the configuration

    explicit Subject(const CacheConfig& config, const std::vector<RopeConfig>& told = {})
        : cache(make_cache(config)), ropes(told) {}
    std::uint32_t n_layers() const { return cache->config().n_layers; }
    bool has_keys(std::uint32_t layer) const { return cache->config().dims_of(layer).has_keys(); }

    void append(std::size_t n) {
        for (std::uint32_t layer = 0; layer < n_layers(); ++layer) {
            if (!has_keys(layer)) continue;
            const auto& [keys, values] = source(cache->config(), layer);
            REQUIRE(testing::append(cache.get(), keys, values, next, n, layer).ok());
        }
        next += n;
        moves.resize(moves.size() + n);
    }
    void attend() {
        for (std::uint32_t layer = 0; layer < n_layers(); ++layer) {
            if (!has_keys(layer)) continue;
            const LayerDims dims = cache->config().dims_of(layer);
            const bool latent = cache->config().latent;
            const std::uint32_t dim = latent ? std::max(dims.key_dim, dims.value_dim) : dims.key_dim;
            const Tensor q = gaussian(20, 2 * dims.n_kv_heads, dim, 9);
            const std::vector<float> data = to_floats(q);
            std::vector<float> out(q.n_tokens * q.n_heads * dims.value_dim);
            Queries queries = queries_of(data, q, true);
            if (latent) queries.latents = data.data();
            REQUIRE(cache->attend(layer, queries, out.data(), out.size(), serial_executor()).ok());
        }
    }
    void compress() {
        for (std::uint32_t layer = 0; layer < n_layers(); ++layer)
            REQUIRE(cache->compress(layer, serial_executor()).ok());
    }
    void truncate(std::size_t n) {
        REQUIRE(cache->truncate(n).ok());
        moves.resize(n);
    }
    // Of tokens in blocks.
    void remove(std::size_t first, std::size_t n) {
        REQUIRE(first + n <= n_closed);
        REQUIRE((ropes.empty() ? cache->remove(first, n) : cache->remove(first, n, ropes.data())).ok());
        for (std::size_t t = first + n; t < n_closed; ++t)
            moves[t] -= static_cast<std::int64_t>(n);
        const auto from = moves.begin() + static_cast<std::ptrdiff_t>(first);
        moves.erase(from, from + static_cast<std::ptrdiff_t>(n));
        n_closed -= n;
    }

    // Saves, decodes and compares.
    void check(const char* step) {
        CAPTURE(step);
        const CacheConfig& config = cache->config();
        const tiny::State state = tiny::decode(saved(*cache));
        seen.insert(state.seen.begin(), state.seen.end());
        REQUIRE(state.layers.size() == config.n_layers);
        char spec[max_spec_chars];
        REQUIRE(format_spec(config.spec, spec, sizeof(spec)).ok());
        CHECK(state.spec == spec);
        for (std::uint32_t i = 0; i < config.n_layers; ++i) {
            const tiny::Layer& layer = state.layers[i];
            CAPTURE(i, layer.n_sinks, layer.n_forgotten, layer.n_buffered);
            const LayerDims dims = {layer.n_heads, layer.key_dim, layer.value_dim};
            REQUIRE(dims == config.dims_of(i));
            if (!has_keys(i)) continue;
            REQUIRE(layer.n_tokens == moves.size());
            CHECK(layer.n_sinks == std::min<std::size_t>(config.spec.sink_tokens, moves.size()));
            CHECK(layer.n_forgotten == n_forgotten);
            CHECK(layer.shifts == moves);
            n_closed = moves.size() - layer.n_buffered;
            compare(i, layer, 0, layer.n_sinks);
            compare(i, layer, layer.n_sinks + n_forgotten, moves.size());
        }
    }

    void compare(std::uint32_t i, const tiny::Layer& layer, std::size_t first, std::size_t last) {
        const std::size_t key_row = std::size_t{layer.n_heads} * layer.key_dim,
                          value_row = std::size_t{layer.n_heads} * layer.value_dim;
        std::vector<float> keys((last - first) * key_row), values((last - first) * value_row);
        if (first == last) return;
        REQUIRE(
            cache->read(i, first, last - first, keys.data(), keys.size(), values.data(), values.size()).ok());
        CAPTURE(first, last);
        std::vector<float> found = slice(layer.keys, first * key_row, last * key_row);
        for (std::size_t t = first; t < last; ++t)
            turn(layer, &found[(t - first) * key_row], layer.shifts[t]);
        CHECK(row_error(keys, found, layer.key_dim) < 1e-5);
        CHECK(row_error(values, slice(layer.values, first * value_row, last * value_row), layer.value_dim) <
              1e-5);
    }

    // The keys of a token, from where they were rotated for to where they are now.
    void turn(const tiny::Layer& layer, float* keys, std::int64_t shift) const {
        RopeConfig rope = cache->config().rope;
        if (!layer.frequencies.empty() || layer.n_pairs == 0)
            rope = {layer.frequencies.data(), static_cast<std::uint32_t>(layer.n_pairs), layer.interleaved};
        for (std::uint32_t i = 0; i < layer.n_heads * rope.n_pairs; ++i) {
            float* head = keys + i / rope.n_pairs * layer.key_dim;
            const std::uint32_t pair = i % rope.n_pairs;
            float& a = head[rope.interleaved ? 2 * pair : pair];
            float& b = head[rope.interleaved ? 2 * pair + 1 : pair + rope.n_pairs];
            const std::complex<double> turned =
                std::complex<double>(a, b) *
                std::polar(1.0, static_cast<double>(shift) * rope.frequencies[pair]);
            a = static_cast<float>(turned.real());
            b = static_cast<float>(turned.imag());
        }
    }
};

// Appends, compresses and cuts; adds what the decoder had to know on the way.
void run(const CacheConfig& config, const char* spec, std::set<std::string>* seen,
         const std::vector<RopeConfig>& ropes = {}) {
    CAPTURE(spec, config.key_dim, config.value_dim);
    const std::size_t n_sinks = config.spec.sink_tokens;
    Subject subject(config, ropes);
    subject.append(300);
    subject.attend();
    subject.append(1);
    subject.append(149);
    subject.compress();
    subject.truncate(330);
    subject.append(150);
    subject.compress();
    subject.check("compressed behind a truncated block");
    const std::uint64_t held = subject.cache->stats().bytes.bytes;
    REQUIRE(subject.cache->shrink(held - held / 50).ok());
    subject.check("some of it made smaller");
    subject.remove(n_sinks + 290, 7);
    subject.remove(n_sinks + 270, 9);
    subject.remove(n_sinks, 262);
    subject.check("the first block gone, and one cut in three");
    if (config.n_layers > 1) {
        subject.append(140);
        subject.compress();
        subject.check("compressed behind all that");
    }
    REQUIRE(subject.cache->shrink(0).ok());
    subject.check("as small as can be");
    seen->insert(subject.seen.begin(), subject.seen.end());
}

}  // namespace

TEST_CASE("a decoder written from the drawings reads what a cache holds", "[state][once]") {
    std::set<std::string> seen;
    for (const char* spec :
         {"gear-2", "gear-3", "gear-4", "auto:3", "paper:gear-2", "paper:gear-4:g=32", "gear-kcvt-4",
          "gear-token-2", "kivi-2", "kivi-3", "q8", "f16", "f32", "k=gear-4;v=kivi-2:nb=128"}) {
        run(make_config(spec, n_heads, 64, 64), spec, &seen);
        run(make_config(spec, n_heads, 72, 40, 1024, 2), spec, &seen);
    }
    // Together they know all there is.
    for (const std::string name : {"key ", "value "}) {
        for (const char* what :
             {"raw16", "raw32", "kivi", "kcvt", "token", "trellis", "2 bits", "3 bits", "4 bits", "8 bits",
              "low rank", "outliers", "profiles apart", "chosen planes"}) {
            CAPTURE(name, what);
            CHECK(seen.contains(name + what));
        }
    }
    CHECK(seen.contains("cut block"));
}

TEST_CASE("so it does where parts meet that seldom do", "[state][once]") {
    std::set<std::string> seen;
    const char* mixed = "k=token-3:g=32,r=3,rg=2,s=0.02;v=trellis-1.5:nb=128";
    run(make_config(mixed, n_heads, 72, 40), mixed, &seen);
    const char* wide = "k=kcvt-3:s=0.02;v=token-3:g=96,s=0.02";  // channels need 16 bits, groups have a rest
    run(make_config(wide, n_heads, 264, 272), wide, &seen);
    const char* uneven = "k=f32;v=trellis-4:recent=30,sinks=9";
    run(make_config(uneven, n_heads, 64, 24), uneven, &seen);
    const char* widest = "k=trellis-6;v=kivi-8";
    run(make_config(widest, n_heads, 8, 8), widest, &seen);
    const char* by_layer = "gear-3;edge-1=k=kivi-4;v=gear-token-2:g=32;layers-2=k=f16;v=trellis-1.5";
    run(make_config(by_layer, n_heads, 72, 40, 1024, 3), by_layer, &seen);
}

TEST_CASE("and where layers have different shapes, or no keys", "[state][dims][once]") {
    const LayerDims dims[] = {{2, 72, 40}, {0, 0, 0}, {1, 128, 64}, {3, 16, 16}};
    const std::vector<double> frequencies(64, 0.2);
    const std::vector<RopeConfig> ropes = {
        {frequencies.data(), 30, true}, {}, {frequencies.data(), 64, false}, {frequencies.data(), 8, true}};
    for (const char* spec : {"gear-3", "auto:4", "paper:gear-4:g=32", "kivi-3;edge-1=gear-2", "f32"}) {
        std::set<std::string> seen;
        CacheConfig config = make_config(spec, 0, 0, 0, 1024, 4);
        config.dims = dims;
        run(config, spec, &seen);
        run(config, spec, &seen, ropes);
        CHECK(seen.contains("shapes of layers"));
    }
}

TEST_CASE("and where values are latents, coded as keys", "[state][latent][once]") {
    for (const char* spec : {"gear-3", "k=kivi-3:nb=128;v=trellis-1.5", "f16"}) {
        std::set<std::string> seen;
        CacheConfig config = make_config(spec, n_heads, 72, 40, 1024, 2);
        config.latent = true;
        run(config, spec, &seen);
    }
}

TEST_CASE("its shifts turn keys to where they are attended", "[state][once]") {
    std::vector<double> frequencies(24);
    for (std::size_t i = 0; i < frequencies.size(); ++i)
        frequencies[i] = std::pow(10000.0, -static_cast<double>(i) / 24.0);
    std::set<std::string> seen;
    for (const bool interleaved : {false, true}) {
        CacheConfig config = make_config("gear-4", n_heads, 72, 40);
        config.rope = {frequencies.data(), 24, interleaved};
        run(config, "gear-4, rotated", &seen);
        // Of a rope for each layer: that of all, a slower one, none.
        std::vector<double> slower = frequencies;
        for (double& frequency : slower)
            frequency /= 8.0;
        config.n_layers = 3;
        run(config, "gear-4, rotated by layer", &seen,
            {config.rope, {slower.data(), 20, !interleaved}, {nullptr, 0, interleaved}});
    }
    CHECK(seen.contains("rope of a layer"));
}

TEST_CASE("it finds few tokens, and those that were given back", "[state][once]") {
    for (const char* spec : {"gear-3", "paper:gear-4"}) {
        CAPTURE(spec);
        Subject subject(make_config(spec, n_heads, 64, 64, 1024, 2));
        subject.check("empty");
        subject.append(3);
        subject.check("a few tokens");
        subject.append(197);
        subject.check("a buffer that is full");
        subject.compress();
        subject.append(250);
        subject.compress();
        for (std::uint32_t layer = 0; layer < 2; ++layer)
            REQUIRE(subject.cache->forget_before(layer, 440).ok());
        subject.n_forgotten = tiny::decode(saved(*subject.cache)).layers[0].n_forgotten;
        CHECK(subject.n_forgotten > 0);
        subject.check("the first block given back");
        subject.append(260);
        subject.compress();
        subject.check("more behind that");
    }
}

TEST_CASE("it finds the queries that rates will be chosen by", "[state][once]") {
    Subject subject(make_config("auto:4", n_heads, 64, 40, 1024, 2));
    subject.append(202);  // the query of the last is one of those that tell widths
    subject.attend();
    subject.check("before the choice");
    CHECK(subject.seen.contains("queries"));
    CHECK(subject.seen.contains("squares of queries"));
    tiny::State state = tiny::decode(saved(*subject.cache));
    CHECK_FALSE(state.rates_chosen);
    CHECK(state.layers[1].n_queries > 0);
    subject.compress();
    state = tiny::decode(saved(*subject.cache));
    CHECK(state.rates_chosen);
    CHECK(state.layers[1].n_queries == 0);
    subject.check("after the choice");
    subject.truncate(0);
    subject.check("rates, and no tokens");
}

TEST_CASE("it refuses files that are not as drawn, and gives back the caller's bytes", "[state][once]") {
    Subject subject(make_config("gear-3", n_heads, 64, 64));
    subject.append(200);
    subject.compress();
    const std::string extra = "tokens and the like";
    std::vector<unsigned char> file = saved(*subject.cache, extra);
    const std::vector<unsigned char> found = tiny::decode(file).extra;
    CHECK(std::string(found.begin(), found.end()) == extra);
    for (std::size_t i = 0; i < file.size(); i += 1 + i / 16) {
        CAPTURE(i);
        file[i] ^= 4;
        CHECK_THROWS_AS(tiny::decode(file), std::runtime_error);
        file[i] ^= 4;
    }
    file.back() = 1;
    CHECK_THROWS_AS(tiny::decode(file), std::runtime_error);
    file.pop_back();
    CHECK_THROWS_AS(tiny::decode(file), std::runtime_error);
}
