// Latents (MLA): how they are best coded, on synthetic ones, and what attending them takes.
//
// Nothing here comes from a model. Latents are mixtures of factors that drift from token to token, divided by
// their root mean square and times a weight of each channel, as behind a norm; the keys beside them are loud
// in a few pairs of channels and turned by their places. Queries look for a token each.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "gearkv/codec.hpp"
#include "inputs.hpp"
#include "output.hpp"
#include "rounds.hpp"

using namespace gearkv;
using namespace gearkv::bench;

namespace {

constexpr std::uint32_t value_dim = 512, key_dim = 64, width = value_dim + key_dim;

// ---- data ----

struct Family {
    const char* name;
    double weights;   // deviation of the logarithm of the norm's weights
    double spectrum;  // factor i is i^-spectrum as loud
};
constexpr Family families[] = {{"alike", 0.0, 0.0},
                               {"weights .2", 0.2, 0.25},
                               {"weights .4", 0.4, 0.5},
                               {"weights .8", 0.8, 0.5},
                               {"few factors", 0.4, 1.0}};

struct Data {
    std::uint32_t n_tokens, n_queries;
    std::vector<float> rows;     // [token][latent, key]
    std::vector<float> queries;  // the same
};

Data make_data(const Family& family, std::uint32_t n_tokens, std::uint32_t n_queries) {
    constexpr std::uint32_t n_factors = 256, n_slow = 32, n_pairs = key_dim / 2;
    std::mt19937_64 random(11);
    std::normal_distribution<double> normal;
    const auto gauss = [&] { return normal(random); };
    std::vector<double> mixture(n_factors * value_dim), weight(value_dim), mean(value_dim);
    double power = 0.0;
    for (std::uint32_t i = 0; i < n_factors; ++i) {
        const double loud = std::pow(i + 1.0, -family.spectrum);
        power += loud * loud;
        for (std::uint32_t c = 0; c < value_dim; ++c)
            mixture[i * value_dim + c] = loud * gauss();
    }
    for (std::uint32_t c = 0; c < value_dim; ++c) {
        weight[c] = std::exp(family.weights * gauss());
        mean[c] = 0.3 * gauss();
    }
    Data data = {n_tokens, n_queries, std::vector<float>(std::size_t{n_tokens} * width),
                 std::vector<float>(std::size_t{n_queries} * width)};
    std::vector<double> factors(n_factors), x(value_dim), offset(key_dim), deviation(key_dim);
    for (std::uint32_t c = 0; c < key_dim; ++c) {
        deviation[c] = std::exp(0.5 * gauss());
        offset[c] = gauss();
    }
    for (std::uint32_t i = 0; i < 3; ++i)
        offset[20 + 11 * i] = 15.0 * (i + 1);
    for (std::uint32_t t = 0; t < n_tokens; ++t) {
        float* row = data.rows.data() + std::size_t{t} * width;
        double squares = 0.0;
        for (std::uint32_t i = 0; i < n_factors; ++i) {
            const double stays = i < n_slow ? 0.9 : 0.3;
            factors[i] = stays * factors[i] + std::sqrt(1 - stays * stays) * gauss();
        }
        for (std::uint32_t c = 0; c < value_dim; ++c) {
            double sum = 0.0;
            for (std::uint32_t i = 0; i < n_factors; ++i)
                sum += mixture[i * value_dim + c] * factors[i];
            x[c] = sum / std::sqrt(power) + mean[c] + 0.3 * gauss();
            squares += x[c] * x[c];
        }
        for (std::uint32_t c = 0; c < value_dim; ++c)
            row[c] = static_cast<float>(x[c] / std::sqrt(squares / value_dim) * weight[c]);
        for (std::uint32_t i = 0; i < n_pairs; ++i) {
            const double angle = t * std::pow(10000.0, -static_cast<double>(i) / n_pairs);
            const double a = offset[2 * i] + deviation[2 * i] * gauss(),
                         b = offset[2 * i + 1] + deviation[2 * i + 1] * gauss();
            row[value_dim + 2 * i] = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
            row[value_dim + 2 * i + 1] = static_cast<float>(a * std::sin(angle) + b * std::cos(angle));
        }
    }
    // What a query is after the product with the keys' half of the up-projection: 128 directions, which have
    // taken half of the norm's weights back. Scores deviate by 2.2 for the latents and .8 for the keys.
    constexpr std::uint32_t n_directions = 128;
    std::vector<double> up(n_directions * value_dim), q(width);
    for (std::uint32_t n = 0; n < n_queries; ++n) {
        if (n % 8 == 0) {
            for (std::size_t i = 0; i < up.size(); ++i)
                up[i] = gauss() / std::sqrt(weight[i % value_dim]);
        }
        const float* wanted = data.rows.data() + random() % n_tokens * width;
        std::fill(q.begin(), q.end(), 0.0);
        for (std::uint32_t j = 0; j < n_directions; ++j) {
            double along = 12.0 * gauss();
            for (std::uint32_t c = 0; c < value_dim; ++c)
                along += 0.5 * up[j * value_dim + c] * wanted[c];
            for (std::uint32_t c = 0; c < value_dim; ++c)
                q[c] += up[j * value_dim + c] * along;
        }
        for (std::uint32_t c = 0; c < key_dim; ++c)
            q[value_dim + c] = gauss() / (1.0 + std::fabs(offset[c]) / 4);
        const auto scale = [&](std::uint32_t first, std::uint32_t end, double wished) {
            double sum = 0.0, squares = 0.0;
            for (std::uint32_t t = 0; t < n_tokens; ++t) {
                double score = 0.0;
                for (std::uint32_t c = first; c < end; ++c)
                    score += q[c] * data.rows[std::size_t{t} * width + c];
                sum += score;
                squares += score * score;
            }
            const double by = wished / std::sqrt(squares / n_tokens - sum * sum / n_tokens / n_tokens);
            for (std::uint32_t c = first; c < end; ++c)
                data.queries[std::size_t{n} * width + c] = static_cast<float>(q[c] * by);
        };
        scale(0, value_dim, 2.2);
        scale(value_dim, width, 0.8);
    }
    return data;
}

// ---- error ----

// Channels [first, first + dim) of all rows through a block; *bits gets those of a token more.
std::vector<float> code(const Data& data, TensorKind kind, std::uint32_t first, std::uint32_t dim, float rate,
                        const float* weights, double* bits) {
    KvSpec spec;
    char text[64];
    std::snprintf(text, sizeof(text), "k=trellis-%.4f;v=f16", static_cast<double>(rate));
    if (kind == TensorKind::value)
        std::snprintf(text, sizeof(text), "k=f16;v=trellis-%.4f", static_cast<double>(rate));
    require(parse_spec(text, &spec));
    BlockOptions options;
    options.spec = kind == TensorKind::key ? spec.key : spec.value;
    options.key_weights = weights == nullptr ? nullptr : weights + first;
    const BlockShape shape = {kind, data.n_tokens, 1, dim};
    BlockBytes bytes;
    require(block_bytes(shape, options, &bytes));
    const Allocator allocator = default_allocator();
    void* block = allocator.allocate(allocator.context, bytes.bytes, 64);
    require(compress_block(block, bytes.bytes, {data.rows.data() + first, width, 0}, shape, options,
                           serial_executor()));
    std::vector<float> out(std::size_t{data.n_tokens} * dim);
    require(decompress_block(out.data(), out.size(), block, bytes.bytes));
    allocator.release(allocator.context, block, bytes.bytes);
    *bits += 8.0 * static_cast<double>(bytes.bytes) / data.n_tokens;
    return out;
}

struct Error {
    double bits = 0.0, score = 0.0, output = 0.0;
};

// Attention in double precision. Scores: deviation of the error of one, where scores deviate by 2.3.
Error measure(const Data& data, const std::vector<float>& latents, const std::vector<float>& keys,
              const std::vector<float>& values, double bits) {
    const std::uint32_t n = data.n_tokens;
    std::vector<double> scores(n), exact_scores(n), out(value_dim), exact(value_dim);
    const auto attend = [&](const float* q, const float* l, std::size_t l_step, const float* k,
                            std::size_t k_step, const float* v, std::size_t v_step,
                            std::vector<double>* score, std::vector<double>* o) {
        double most = -1e300, sum = 0.0;
        for (std::uint32_t t = 0; t < n; ++t) {
            double x = 0.0;
            for (std::uint32_t c = 0; c < value_dim; ++c)
                x += static_cast<double>(q[c]) * l[t * l_step + c];
            for (std::uint32_t c = 0; c < key_dim; ++c)
                x += static_cast<double>(q[value_dim + c]) * k[t * k_step + c];
            (*score)[t] = x;
            most = std::max(most, x);
        }
        std::fill(o->begin(), o->end(), 0.0);
        for (std::uint32_t t = 0; t < n; ++t) {
            const double weight = std::exp((*score)[t] - most);
            sum += weight;
            for (std::uint32_t c = 0; c < value_dim; ++c)
                (*o)[c] += weight * v[t * v_step + c];
        }
        for (double& x : *o)
            x /= sum;
    };
    double score_error = 0.0, error = 0.0, size = 0.0;
    for (std::uint32_t i = 0; i < data.n_queries; ++i) {
        const float* q = data.queries.data() + std::size_t{i} * width;
        const float* rows = data.rows.data();
        attend(q, rows, width, rows + value_dim, width, rows, width, &exact_scores, &exact);
        attend(q, latents.data(), value_dim, keys.data(), key_dim, values.data(), value_dim, &scores, &out);
        double mean = 0.0;
        for (std::uint32_t t = 0; t < n; ++t)
            mean += (scores[t] - exact_scores[t]) / n;
        for (std::uint32_t t = 0; t < n; ++t)
            score_error += std::pow(scores[t] - exact_scores[t] - mean, 2) / n;
        for (std::uint32_t c = 0; c < value_dim; ++c) {
            error += std::pow(out[c] - exact[c], 2);
            size += std::pow(exact[c], 2);
        }
    }
    return {bits, std::sqrt(score_error / data.n_queries), std::sqrt(error / size)};
}

void compare_layouts(std::uint32_t n_tokens, std::uint32_t n_queries, nlohmann::json* json) {
    const struct {
        const char* name;
        float key_rate, rate;
    } presets[] = {
        {"gear-1", 2.0f, 1.5f}, {"gear-2", 2.625f, 2.0f}, {"gear-3", 3.625f, 3.0f}, {"gear-4", 4.625f, 4.0f}};
    std::printf(
        "Bits a token (fp16: %u), error of scores and of outputs; in brackets outputs beside 'as keys'\n",
        16 * width);
    std::printf("%-12s %-7s %25s %31s %31s %31s\n", "latents", "preset", "as keys", "as values",
                "as keys, by queries", "two tensors");
    for (const Family& family : families) {
        const Data data = make_data(family, n_tokens, n_queries);
        std::vector<float> weights(width);
        for (std::uint32_t c = 0; c < width; ++c) {
            double squares = 0.0;
            for (std::uint32_t i = 0; i < n_queries; ++i)
                squares += std::pow(data.queries[std::size_t{i} * width + c], 2);
            weights[c] = static_cast<float>(std::pow(squares, 0.75));
        }
        for (const auto& [name, key_rate, rate] : presets) {
            double key_bits = 0.0, bits = 0.0;
            const std::vector<float> keys =
                code(data, TensorKind::key, value_dim, key_dim, key_rate, weights.data(), &key_bits);
            const double first_bits = key_bits;
            double value_bits = key_bits;
            const std::vector<float> as_values =
                code(data, TensorKind::value, 0, value_dim, rate, nullptr, &value_bits);
            // The others at as many bits.
            bits = key_bits;
            (void)code(data, TensorKind::key, 0, value_dim, rate, nullptr, &bits);
            const auto even = rate - static_cast<float>((bits - value_bits) / value_dim);
            const auto as_keys = [&](const float* by, double* taken) {
                *taken = key_bits;
                return code(data, TensorKind::key, 0, value_dim, even, by, taken);
            };
            const std::vector<float> plain = as_keys(nullptr, &bits);
            const Error chosen = measure(data, plain, keys, plain, bits);
            const std::vector<float> by_queries = as_keys(weights.data(), &bits);
            const std::vector<float> alone =
                code(data, TensorKind::key, 0, value_dim, key_rate, weights.data(), &key_bits);
            const Error others[] = {
                measure(data, as_values, keys, as_values, value_bits),
                measure(data, by_queries, keys, by_queries, bits),
                measure(data, alone, keys, as_values, key_bits + value_bits - first_bits)};
            std::printf("%-12s %-7s %10.0f %6.3f %7.4f", family.name, name, chosen.bits, chosen.score,
                        chosen.output);
            nlohmann::json line = {{"latents", family.name},
                                   {"preset", name},
                                   {"as_keys", {chosen.bits, chosen.score, chosen.output}}};
            const char* names[] = {"as_values", "by_queries", "two_tensors"};
            for (std::size_t i = 0; i < std::size(others); ++i) {
                const Error& e = others[i];
                std::printf(" %9.0f %6.3f %6.4f (%.2f)", e.bits, e.score, e.output, e.output / chosen.output);
                line[names[i]] = {e.bits, e.score, e.output};
            }
            std::printf("\n");
            (*json)["error"].push_back(line);
        }
    }
}

// ---- speed ----

std::unique_ptr<Cache> make_cache(const char* spec, bool latent, const Data& data, std::uint32_t n_tokens,
                                  Level level) {
    CacheConfig config;
    config.n_layers = config.n_kv_heads = 1;
    config.key_dim = latent ? key_dim : width;
    config.value_dim = value_dim;
    config.latent = latent;
    config.max_tokens = n_tokens;
    config.level = level;
    require(parse_spec(spec, &config.spec));
    std::unique_ptr<Cache> cache;
    require(Cache::create(config, &cache));
    for (std::uint32_t t = 0; t < n_tokens; t += data.n_tokens) {
        const float* rows = data.rows.data();
        require(cache->append(0, {rows + (latent ? value_dim : 0), width, 0}, {rows, width, 0}, data.n_tokens,
                              serial_executor()));
    }
    require(cache->compress(0, serial_executor()));
    return cache;
}

void time_attention(std::uint32_t n_tokens, std::size_t n_rounds, Level level, nlohmann::json* json) {
    const Data data = make_data(families[2], 512, 128);
    const struct {
        const char* name;
        const char* spec;
        bool latent;
    } subjects[] = {{"f16", "f16", true},
                    {"gear-4", "gear-4", true},
                    {"gear-3", "gear-3", true},
                    {"gear-2", "gear-2", true},
                    {"two tensors, f16", "f16", false},
                    {"two tensors, gear-4", "gear-4", false}};
    std::vector<std::unique_ptr<Cache>> caches;
    for (const auto& subject : subjects)
        caches.push_back(make_cache(subject.spec, subject.latent, data, n_tokens, level));
    std::printf("\nAttention of a step over %u tokens, one thread, level %s\n", n_tokens,
                level_name(caches[0]->level()));
    std::printf("%-20s %6s %8s %10s %8s %8s\n", "cache", "heads", "MiB", "us", "spread", "of f16");
    for (const std::uint32_t n_heads : {16u, 128u}) {
        std::vector<float> out(std::size_t{n_heads} * value_dim);
        std::vector<Timed> cases;
        for (std::size_t i = 0; i < caches.size(); ++i) {
            Queries queries = {
                data.queries.data(), std::size_t{n_heads} * width, width, 1, n_heads, 1.0f, true};
            if (subjects[i].latent) {
                queries.latents = queries.data;
                queries.data = data.queries.data() + value_dim;
            }
            cases.push_back({[&out, cache = caches[i].get(), queries] {
                require(cache->attend(0, queries, out.data(), out.size(), serial_executor()));
            }});
        }
        run_rounds(&cases, n_rounds);
        for (std::size_t i = 0; i < cases.size(); ++i) {
            const CacheBytes bytes = caches[i]->stats().bytes;
            const double mib =
                static_cast<double>(bytes.keys.bytes + bytes.values.bytes + bytes.buffer) / (1 << 20);
            const double us = 1e6 * median(cases[i].seconds), share = ratio(cases[i], cases[0]);
            std::printf("%-20s %6u %8.2f %10.0f %7.1f%% %8.3f\n", subjects[i].name, n_heads, mib, us,
                        100 * spread(cases[i].seconds), share);
            (*json)["speed"].push_back({{"cache", subjects[i].name},
                                        {"heads", n_heads},
                                        {"mib", mib},
                                        {"us", us},
                                        {"of_f16", share}});
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    CLI::App app{
        "Latents of 512 channels with keys of 64 beside them, synthetic: error by layout, and speed"};
    std::string level_text = "auto", json_path;
    std::uint32_t n_tokens = 1024, n_queries = 48, n_attended = 4096;
    std::size_t n_rounds = 15;
    bool skips_error = false;
    app.add_option("--tokens", n_tokens, "tokens whose error is measured")
        ->capture_default_str()
        ->check(CLI::Range(256, 65536));
    app.add_option("--queries", n_queries, "queries")->capture_default_str()->check(CLI::Range(1, 4096));
    app.add_option("--attended", n_attended, "tokens whose attention is timed, a multiple of 512")
        ->capture_default_str()
        ->check(CLI::Range(512, 1 << 20));
    app.add_option("--rounds", n_rounds, "rounds; the median counts")->capture_default_str();
    app.add_option("--level", level_text, "instruction-set level")->capture_default_str();
    app.add_flag("--speed", skips_error, "nothing but speed");
    app.add_option("--json", json_path, "also write the tables as JSON to this file");
    CLI11_PARSE(app, argc, argv);

    Level level = Level::automatic;
    if (level_text != "auto") require(parse_level(level_text.c_str(), &level));
    nlohmann::json json = {{"schema_version", 1}};
    if (!skips_error) compare_layouts(n_tokens / 128 * 128, n_queries, &json);
    time_attention((n_attended + 511) / 512 * 512, n_rounds, level, &json);
    return write_json(json_path, json) ? 0 : 1;
}
