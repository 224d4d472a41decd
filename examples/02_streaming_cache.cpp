// A cache without a model: a prompt comes in at once, then tokens one by one, each attended as it arrives.
// The result is compared with attention over the uncompressed rows.
//
//   02_streaming_cache [SPEC ...]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "dense_attention.hpp"
#include "gearkv/cache.hpp"

using namespace gearkv;

namespace {

constexpr std::uint32_t n_heads = 8, n_kv_heads = 2, dim = 64;
constexpr std::uint32_t n_prompt = 500, n_tokens = 700;
constexpr std::size_t kv_row = n_kv_heads * dim, q_row = n_heads * dim;

std::vector<float> gaussian(std::size_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& v : x)
        v = normal(random);
    return x;
}

void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s: %s\n", code_name(status.code()), status.message());
    std::exit(1);
}

// What a model would hand over for one layer.
struct Stream {
    std::vector<float> keys = gaussian(n_tokens * kv_row, 1);
    std::vector<float> values = gaussian(n_tokens * kv_row, 2);
    std::vector<float> queries = gaussian(n_tokens * q_row, 3);

    Rows key_rows(std::size_t first) const { return {keys.data() + first * kv_row, kv_row, dim}; }
    Rows value_rows(std::size_t first) const { return {values.data() + first * kv_row, kv_row, dim}; }
};

Queries queries_of(const Stream& stream, std::size_t first, std::uint32_t n) {
    Queries queries;
    queries.data = stream.queries.data() + first * q_row;
    queries.query_stride = q_row;
    queries.head_stride = dim;
    queries.n_queries = n;
    queries.n_heads = n_heads;
    queries.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    return queries;
}

// Feeds the stream; returns the attention output of every token, [n_tokens, n_heads, dim].
std::vector<float> feed(const Stream& stream, Cache& cache) {
    std::vector<float> out(n_tokens * q_row);
    Executor& executor = serial_executor();
    require(cache.append(0, stream.key_rows(0), stream.value_rows(0), n_prompt, executor));
    require(cache.attend(0, queries_of(stream, 0, n_prompt), out.data(), out.size(), executor));
    require(cache.compress(0, executor));  // frees the prompt's fp16 rows at once
    for (std::uint32_t t = n_prompt; t < n_tokens; ++t) {
        require(cache.append(0, stream.key_rows(t), stream.value_rows(t), 1, executor));
        require(cache.attend(0, queries_of(stream, t, 1), out.data() + t * q_row, q_row, executor));
    }
    return out;
}

// Relative distance of the last token's output from dense attention over what the cache holds.
double distance_from_read(const Stream& stream, Cache& cache, const std::vector<float>& out,
                          AttentionShape shape) {
    std::vector<float> keys(n_tokens * kv_row), values(n_tokens * kv_row);
    require(cache.read(0, 0, n_tokens, keys.data(), keys.size(), values.data(), values.size()));
    shape.n_queries = 1;
    const float* query = stream.queries.data() + (n_tokens - 1) * q_row;
    const std::vector<float> last(out.end() - static_cast<std::ptrdiff_t>(q_row), out.end());
    return relative_error(last, attend_dense(query, keys.data(), values.data(), shape));
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::string> specs(argv + 1, argv + argc);
    if (specs.empty()) specs = {"f32", "f16", "q8", "gear-4", "kivi-4", "gear-2", "kivi-2"};
    const Stream stream;
    AttentionShape shape = {n_tokens, n_tokens, n_heads, n_kv_heads, dim, dim, 1.0 / std::sqrt(1.0 * dim),
                            true};
    const std::vector<double> expected =
        attend_dense(stream.queries.data(), stream.keys.data(), stream.values.data(), shape);

    std::printf("%-12s %14s %14s %22s\n", "kv", "output error", "bits/element", "blocks + buffer bytes");
    for (const std::string& name : specs) {
        CacheConfig config;
        config.n_layers = 1;
        config.n_kv_heads = n_kv_heads;
        config.key_dim = config.value_dim = dim;
        config.max_tokens = n_tokens;
        require(parse_spec(name.c_str(), &config.spec));
        std::unique_ptr<Cache> cache;
        require(Cache::create(config, &cache));
        const std::vector<float> out = feed(stream, *cache);
        const double error = relative_error(out, expected);
        const CacheStats stats = cache->stats();
        std::printf("%-12s %14.6f %14.3f %22llu\n", name.c_str(), error, stats.bits_per_element,
                    static_cast<unsigned long long>(stats.bytes.keys.bytes + stats.bytes.values.bytes +
                                                    stats.bytes.buffer));
        const double most = name == "f32" ? 1e-5 : name == "f16" ? 1e-3 : 1.0;
        const double distance = distance_from_read(stream, *cache, out, shape);
        // Attention rounds queries and weights to 15 bits where it multiplies integers.
        if (!(error < most) || !(distance < 1e-3)) {
            std::fprintf(stderr, "%s is off by %g, and by %g from what it holds\n", name.c_str(), error,
                         distance);
            return 1;
        }
    }
    return 0;
}
