// Latents: values that are keys too.
#include <cstring>
#include <limits>

#include "caches.hpp"
#include "gearkv/state.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr const char* specs[] = {
    "f32", "f16", "gear-4", "gear-1", "k=kivi-4:nb=128;v=gear-3", "k=gear-2;v=f16", "k=f16;v=trellis-4"};

struct Shape {
    std::uint32_t n_kv_heads, key_dim, value_dim, n_heads;
};

CacheConfig latent_config(const std::string& spec, const Shape& shape, std::uint64_t max_tokens = 2000) {
    CacheConfig config = make_config(spec, shape.n_kv_heads, shape.key_dim, shape.value_dim, max_tokens);
    config.latent = true;
    return config;
}

// Latents as they come out of a norm, and keys beside them, of which a channel is loud.
struct Tokens {
    Tensor keys, latents;
    Tokens(const Shape& shape, std::size_t n, unsigned seed)
        : keys(gaussian(n, shape.n_kv_heads, shape.key_dim, seed)),
          latents(gaussian(n, shape.n_kv_heads, shape.value_dim, seed + 1)) {
        for (std::size_t i = 0; i < latents.data.size(); ++i)
            latents.data[i] *= 0.3 + 0.1 * static_cast<double>(i % shape.value_dim % 11);
        for (std::size_t i = 1; i < keys.data.size(); i += shape.key_dim)
            keys.data[i] += 20.0;
    }
};

// Queries [latent, key] side by side.
struct Asked {
    std::vector<float> data;
    Queries queries;
    std::vector<float> out;
    Shape shape;
    Asked(const Shape& of, std::uint32_t n, unsigned seed) : shape(of) {
        const std::size_t width = of.key_dim + of.value_dim;
        data = to_floats(gaussian(n, of.n_heads, width, seed));
        queries.latents = data.data();
        queries.data = data.data() + of.value_dim;
        queries.query_stride = of.n_heads * width;
        queries.head_stride = width;
        queries.n_queries = n;
        queries.n_heads = of.n_heads;
        queries.scale = 1.3f / std::sqrt(static_cast<float>(width));
        out.resize(std::size_t{n} * of.n_heads * of.value_dim);
    }
    Tensor tensor() const {
        return to_tensor(data.data(), queries.n_queries, shape.n_heads, shape.key_dim + shape.value_dim);
    }
    const std::vector<float>& ask(Cache* cache) {
        const Status status = cache->attend(0, queries, out.data(), out.size(), serial_executor());
        INFO(status.message());
        REQUIRE(status.ok());
        return out;
    }
};

// Beside attention in double precision on what the cache says it holds, latents and keys put together.
double error_of(Cache* cache, Asked* asked) {
    const auto [k, v] = read_all(cache);
    Tensor both = gaussian(k.n_tokens, k.n_heads, k.dim + v.dim, 1);
    for (std::size_t row = 0; row < k.n_tokens * k.n_heads; ++row) {
        std::copy_n(v.data.begin() + static_cast<std::ptrdiff_t>(row * v.dim), v.dim,
                    both.data.begin() + static_cast<std::ptrdiff_t>(row * both.dim));
        std::copy_n(k.data.begin() + static_cast<std::ptrdiff_t>(row * k.dim), k.dim,
                    both.data.begin() + static_cast<std::ptrdiff_t>(row * both.dim + v.dim));
    }
    const Tensor expected = reference::attend(
        asked->tensor(), both, v, static_cast<double>(asked->queries.scale), asked->queries.causal);
    asked->ask(cache);
    return reference::relative_error(
        expected, to_tensor(asked->out.data(), asked->queries.n_queries, asked->shape.n_heads, v.dim));
}

std::unique_ptr<Cache> filled(const CacheConfig& config, const Tokens& tokens, std::size_t n_prompt) {
    auto cache = make_cache(config);
    REQUIRE(append(cache.get(), tokens.keys, tokens.latents, 0, n_prompt).ok());
    for (std::size_t t = n_prompt; t < tokens.keys.n_tokens; ++t)
        REQUIRE(append(cache.get(), tokens.keys, tokens.latents, t, 1).ok());
    return cache;
}

}  // namespace

TEST_CASE("queries of latents meet values and keys, on whatever form", "[latent]") {
    for (const char* spec : specs) {
        for (const Shape& shape : {Shape{1, 64, 512, 16}, Shape{2, 8, 24, 6}, Shape{1, 72, 40, 1}}) {
            CAPTURE(spec, shape.value_dim);
            const Tokens tokens(shape, 300, 5);
            auto cache = filled(latent_config(spec, shape), tokens, 270);
            for (const std::uint32_t n_queries : {1u, 3u}) {
                Asked asked(shape, n_queries, 7);
                CHECK(error_of(cache.get(), &asked) < attention_tolerance(*cache));
                asked.queries.causal = false;
                asked.queries.negligible = 1e-6f;
                CHECK(error_of(cache.get(), &asked) < attention_tolerance(*cache));
            }
            if (std::strcmp(spec, "f32") != 0 && std::strcmp(spec, "f16") != 0) {
                CHECK(cache->stats().compressed_tokens >= 128);
            }
        }
    }
}

TEST_CASE("what is known of scores beforehand is of one token, also where only its key is in fp16",
          "[latent][once]") {
    const Shape shape = {1, 8, 64, 1};
    Tokens tokens(shape, 256, 5);
    for (double& x : tokens.keys.data)
        x *= 0.01;
    // Tokens 130 and 226 of a block without rows around it, whose parts would make a score together that is
    // that of neither.
    tokens.keys.data[130 * 8] = -20.0, tokens.latents.data[130 * 64] = 40.0;
    tokens.keys.data[226 * 8] = 20.0, tokens.latents.data[226 * 64] = -40.0;
    auto cache = filled(latent_config("k=f16;v=trellis-4:sinks=0", shape), tokens, 256);
    REQUIRE(cache->compress(0, serial_executor()).ok());
    REQUIRE(cache->stats().compressed_tokens == 256);
    Asked asked(shape, 1, 9);
    std::fill(asked.data.begin(), asked.data.end(), 0.0f);
    asked.data[0] = asked.data[64] = 1.0f;
    asked.queries.scale = 1.0f;
    asked.queries.negligible = 1e-4f;
    CHECK(error_of(cache.get(), &asked) < 0.01);
}

TEST_CASE("what is stored of latents is them", "[latent][once]") {
    const Shape shape = {1, 64, 512, 4};
    const Tokens tokens(shape, 388, 5);
    // Beside fp16: rates, side information of 2.03 bytes a channel and 128 tokens, and headers.
    const struct {
        const char* spec;
        double error, bits;
    } expected[] = {
        {"f16", 1e-3, 16.0}, {"gear-4", 0.085, 4.3}, {"gear-3", 0.14, 3.3}, {"gear-2", 0.28, 2.3}};
    for (const auto& [spec, error, bits] : expected) {
        CAPTURE(spec);
        CacheConfig config = latent_config(spec, shape);
        config.spread_tokens = 0;
        auto cache = filled(config, tokens, 388);
        REQUIRE(cache->compress(0, serial_executor()).ok());
        const auto [k, v] = read_all(cache.get());
        CHECK(reference::relative_error(tokens.latents, v) < error);
        CHECK(reference::relative_error(tokens.keys, k) < error);
        const CacheStats stats = cache->stats();
        const double n = static_cast<double>(stats.compressed_tokens) * (64 + 512) / 8;
        CHECK(stats.compressed_tokens == 384);
        CHECK(static_cast<double>(stats.bytes.keys.bytes + stats.bytes.values.bytes) < (bits + 0.15) * n);
        check_planned(*cache, 388, 388);
    }
}

TEST_CASE("latents and their queries come in any type, wherever their parts lie", "[latent][once]") {
    const Shape shape = {1, 16, 64, 4};
    const std::size_t width = shape.key_dim + shape.value_dim, n = 200;
    // [key, latent] as well as [latent, key].
    const std::vector<float> rows = to_floats(gaussian(n, 1, width, 3));
    const auto ask = [&](bool key_first) {
        std::vector<float> moved(rows.size());
        for (std::size_t t = 0; t < n; ++t) {
            const float* from = rows.data() + t * width;
            float* to = moved.data() + t * width;
            std::copy_n(from, shape.value_dim, to + (key_first ? shape.key_dim : 0));
            std::copy_n(from + shape.value_dim, shape.key_dim, to + (key_first ? 0 : shape.value_dim));
        }
        const float* latents = moved.data() + (key_first ? shape.key_dim : 0);
        const float* keys = moved.data() + (key_first ? 0 : shape.value_dim);
        auto cache = make_cache(latent_config("gear-4", shape));
        REQUIRE(cache->append(0, {keys, width, width}, {latents, width, width}, n, serial_executor()).ok());
        Asked asked(shape, 2, 9);
        return asked.ask(cache.get());
    };
    CHECK(ask(true) == ask(false));
    // Halves and a stride between channels.
    auto cache = make_cache(latent_config("gear-4", shape));
    REQUIRE(
        cache->append(0, {rows.data() + 64, width, width}, {rows.data(), width, width}, n, serial_executor())
            .ok());
    Asked asked(shape, 1, 9);
    for (float& x : asked.data)
        x = std::round(64.0f * x) / 64.0f;
    std::vector<std::uint16_t> bfloats(2 * asked.data.size());
    std::vector<float> apart(3 * asked.data.size(), std::numeric_limits<float>::quiet_NaN());
    for (std::size_t i = 0; i < asked.data.size(); ++i)
        apart[3 * i] = asked.data[i];
    const std::vector<float> expected = asked.ask(cache.get());
    Queries& queries = asked.queries;
    queries.data = apart.data() + 3 * shape.value_dim;
    queries.latents = apart.data();
    queries.head_stride *= 3, queries.query_stride *= 3, queries.channel_stride = 3;
    CHECK(asked.ask(cache.get()) == expected);
}

TEST_CASE("forks, files and batches of latents go on with the same bits", "[latent]") {
    const Shape shape = {1, 16, 64, 9};
    for (const char* spec : specs) {
        CAPTURE(spec);
        const Tokens tokens(shape, 420, 5);
        CacheConfig config = latent_config(spec, shape);
        std::unique_ptr<Workspace> workspace;
        REQUIRE(Workspace::create(default_allocator(), &workspace).ok());
        config.workspace = workspace.get();
        auto cache = make_cache(config);
        Asked first(shape, 1, 8);
        for (std::size_t t = 0; t < 300; ++t) {
            REQUIRE(append(cache.get(), tokens.keys, tokens.latents, t, 1).ok());
            if (t % 7 == 0) (void)first.ask(cache.get());
        }
        std::uint64_t n_bytes = 0;
        REQUIRE(state_bytes(*cache, {}, &n_bytes).ok());
        std::vector<unsigned char> state(n_bytes);
        REQUIRE(save_state(*cache, state.data(), state.size(), {}, serial_executor()).ok());
        std::unique_ptr<Cache> fork, loaded, refused;
        REQUIRE(cache->fork(&fork).ok());
        REQUIRE(load_state(state.data(), state.size(), config, {}, serial_executor(), &loaded).ok());
        for (Cache* each : {cache.get(), fork.get(), loaded.get()}) {
            for (std::size_t t = 300; t < 420; ++t)
                REQUIRE(append(each, tokens.keys, tokens.latents, t, 1).ok());
        }
        std::vector<Asked> asked(3, Asked(shape, 2, 9));
        std::vector<AttendRequest> requests;
        for (std::size_t i = 0; i < 3; ++i) {
            Asked& one = asked[i];
            one.queries.latents = one.data.data();
            one.queries.data = one.data.data() + shape.value_dim;
            requests.push_back({i == 0   ? cache.get()
                                : i == 1 ? fork.get()
                                         : loaded.get(),
                                one.queries, one.out.data(), one.out.size()});
        }
        REQUIRE(Cache::attend_batch(0, requests.data(), requests.size(), serial_executor()).ok());
        CHECK(asked[1].out == asked[0].out);
        CHECK(asked[2].out == asked[0].out);
        Asked alone(shape, 2, 9);
        CHECK(alone.ask(cache.get()) == asked[0].out);
        // Values that are no keys would be read wrongly, and the other way round.
        config.latent = false;
        CHECK(load_state(state.data(), state.size(), config, {}, serial_executor(), &refused).code() ==
              Code::other_model);
        auto plain = make_cache(config);
        state.resize(1 << 20);
        std::size_t n_plain = 0;
        REQUIRE(save_state(*plain, state.data(), state.size(), {}, serial_executor(), &n_plain).ok());
        config.latent = true;
        CHECK(load_state(state.data(), n_plain, config, {}, serial_executor(), &refused).code() ==
              Code::other_model);
    }
}

TEST_CASE("latents lose tokens at either end and in the middle, and only keys turn", "[latent]") {
    const Shape shape = {1, 16, 64, 5};
    const std::vector<double> turns = {1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003};
    for (const char* spec : specs) {
        CAPTURE(spec);
        const Tokens tokens(shape, 600, 5);
        CacheConfig config = latent_config(spec, shape);
        config.rope = {turns.data(), 8, true};
        config.rollback_tokens = 20;
        auto cache = filled(config, tokens, 410);
        const auto [k, v] = read_all(cache.get());
        REQUIRE(cache->truncate(590).ok());
        REQUIRE(cache->remove(30, 100).ok());
        REQUIRE(cache->remove(200, 3).ok());
        const auto [kept_keys, kept] = read_all(cache.get());
        REQUIRE(kept.n_tokens == 487);
        const auto is_row = [&all = v.data, &left = kept.data](std::size_t to, std::size_t from) {
            return std::equal(left.begin() + static_cast<std::ptrdiff_t>(to * 64),
                              left.begin() + static_cast<std::ptrdiff_t>((to + 1) * 64),
                              all.begin() + static_cast<std::ptrdiff_t>(from * 64));
        };
        CHECK(is_row(29, 29));
        CHECK(is_row(30, 130));
        CHECK(is_row(480, 583));
        // The first pair of channels has turned by 100 tokens.
        const double* from = k.data.data() + 150 * 16;
        const double* to = kept_keys.data.data() + 50 * 16;
        CHECK(std::fabs(to[0] - (std::cos(100.0) * from[0] + std::sin(100.0) * from[1])) < 0.05);
        Asked asked(shape, 2, 9);
        CHECK(error_of(cache.get(), &asked) < attention_tolerance(*cache));
        REQUIRE(append(cache.get(), tokens.keys, tokens.latents, 0, 300).ok());
        CHECK(error_of(cache.get(), &asked) < attention_tolerance(*cache));
    }
}

TEST_CASE("a window and a selection leave out tokens of latents", "[latent]") {
    const Shape shape = {1, 16, 128, 4};
    const Tokens tokens(shape, 1400, 5);
    CacheConfig config = latent_config("gear-3:sinks=0", shape);
    auto all = filled(config, tokens, 1390);
    REQUIRE(all->compress(0, serial_executor()).ok());
    const std::uint32_t window = 300;
    config.block_tokens = 128;
    config.windows = &window;
    auto some = filled(config, tokens, 1390);
    REQUIRE(some->compress(0, serial_executor()).ok());
    Asked asked(shape, 1, 9);
    const std::vector<float> seen = asked.ask(some.get());
    CHECK(some->first_token(0) > 900);
    asked.queries.window = window;
    const auto distance = [](const std::vector<float>& a, const std::vector<float>& b) {
        double error = 0.0, norm = 0.0;
        for (std::size_t i = 0; i < a.size(); ++i) {
            error += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
            norm += std::pow(static_cast<double>(a[i]), 2);
        }
        return std::sqrt(error / norm);
    };
    CHECK(distance(seen, asked.ask(all.get())) < 0.2);  // blocks were cut otherwise
    // The queries of a token that has most of their weight: the sections with it are found.
    asked.queries.window = 0;
    for (std::size_t head = 0; head < shape.n_heads; ++head) {
        for (std::size_t c = 0; c < shape.value_dim; ++c)
            asked.data[head * 144 + c] = 4.0f * static_cast<float>(tokens.latents.data[700 * 128 + c]);
    }
    const std::vector<float> whole = asked.ask(all.get());
    asked.queries.mass = 0.9f;
    CHECK(distance(whole, asked.ask(all.get())) < 0.1);
    LayerStats stats;
    REQUIRE(all->layer_stats(0, &stats).ok());
    CHECK(stats.share_read < 0.9);
    asked.queries.mass = 1.0f;
    const TokenRange range = {690, 720};
    const std::size_t end = 1;
    asked.queries.ranges = &range;
    asked.queries.range_ends = &end;
    CHECK(distance(whole, asked.ask(all.get())) < 0.1);
}

TEST_CASE("latents shrink, and their error is measured", "[latent]") {
    const Shape shape = {1, 16, 64, 4};
    const Tokens tokens(shape, 700, 5);
    CacheConfig config = latent_config("gear-4", shape);
    config.error_every = 1;
    auto cache = make_cache(config);
    Asked asked(shape, 1, 9);
    for (std::size_t t = 0; t < 700; ++t) {
        REQUIRE(append(cache.get(), tokens.keys, tokens.latents, t, 1).ok());
        if (t % 50 == 0) (void)asked.ask(cache.get());
    }
    LayerStats stats;
    REQUIRE(cache->layer_stats(0, &stats).ok());
    CHECK(stats.n_sampled == 5);
    CHECK(stats.output_error > 0.01);
    CHECK(stats.output_error < 0.3);
    REQUIRE(cache->compress(0, serial_executor()).ok());
    const CacheBytes before = cache->stats().bytes;
    std::uint64_t freed = 0;
    REQUIRE(cache->shrink(0, &freed).ok());
    const CacheBytes after = cache->stats().bytes;
    CHECK(freed > 0);
    CHECK(after.values.bytes < 7 * before.values.bytes / 10);
    CHECK(error_of(cache.get(), &asked) < attention_tolerance(*cache));
    // What shrank is still read from a file.
    std::vector<unsigned char> state(1 << 20);
    std::size_t n = 0;
    std::unique_ptr<Cache> loaded;
    REQUIRE(save_state(*cache, state.data(), state.size(), {}, serial_executor(), &n).ok());
    REQUIRE(load_state(state.data(), n, config, {}, serial_executor(), &loaded).ok());
    const std::vector<float> kept = asked.ask(cache.get());
    CHECK(asked.ask(loaded.get()) == kept);
}

TEST_CASE("what latents do not go with is refused", "[latent][once]") {
    const Shape shape = {1, 16, 64, 4};
    std::unique_ptr<Cache> cache;
    for (const char* spec : {"kivi-4", "q8", "auto:3", "paper:gear-4", "gear-4;layers-0=kivi-2"}) {
        CAPTURE(spec);
        CHECK(Cache::create(latent_config(spec, shape), &cache).code() == Code::bad_spec);
        CHECK(cache == nullptr);
    }
    const Tokens tokens(shape, 10, 5);
    auto latent = filled(latent_config("gear-4", shape), tokens, 10);
    CacheConfig config = latent_config("gear-4", shape);
    config.latent = false;
    auto plain = filled(config, tokens, 10);
    Asked asked(shape, 1, 9);
    const auto code = [&](Cache* of) {
        return of->attend(0, asked.queries, asked.out.data(), asked.out.size(), serial_executor()).code();
    };
    CHECK(code(latent.get()) == Code::ok);
    CHECK(code(plain.get()) == Code::invalid_argument);
    for (const std::size_t at : {std::size_t{0}, std::size_t{63}, std::size_t{64}, std::size_t{79}}) {
        const float was = asked.data[at];
        asked.data[at] = std::numeric_limits<float>::infinity();
        CHECK(code(latent.get()) == Code::non_finite);
        asked.data[at] = was;
    }
    asked.queries.latents = nullptr;
    CHECK(code(latent.get()) == Code::invalid_argument);
    CHECK(code(plain.get()) == Code::ok);
}

TEST_CASE("scores of latents beyond the range of float are compared by their size", "[latent][once]") {
    const Shape shape = {1, 16, 64, 1};
    for (const char* spec : {"f16", "gear-4"}) {
        CAPTURE(spec);
        Tokens tokens(shape, 200, 5);
        for (std::size_t c = 0; c < 64; ++c)
            tokens.latents.data[77 * 64 + c] = 3.0;
        auto cache = filled(latent_config(spec, shape), tokens, 200);
        Asked asked(shape, 1, 9);
        for (std::size_t c = 0; c < 80; ++c)
            asked.data[c] = c < 64 ? 1e36f : 0.0f;
        asked.queries.scale = 1e6f;
        const std::vector<float> out = asked.ask(cache.get());
        std::vector<float> v(200 * 64);
        REQUIRE(cache->read(0, 0, 200, nullptr, 0, v.data(), v.size()).ok());
        for (std::size_t c = 0; c < 64; ++c)
            CHECK(std::fabs(out[c] - v[77 * 64 + c]) < 0.02f);
    }
}
