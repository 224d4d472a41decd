#include "dump.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "inputs.hpp"
#include "npy.hpp"
#include "pools.hpp"
#include "rounds.hpp"

namespace gearkv::bench {
namespace {

// Keys, values and queries, the last ones causal, of every layer.
struct Data {
    std::string name;
    std::uint32_t n_layers, n_tokens, n_heads, n_kv_heads, key_dim, value_dim, n_queries;
    std::vector<float> keys, values, queries;

    std::vector<float> part(const std::vector<float>& x, std::uint32_t layer, std::size_t first,
                            std::size_t n, std::size_t n_all, std::size_t row) const {
        const auto at = x.begin() + static_cast<std::ptrdiff_t>((layer * n_all + first) * row);
        return {at, at + static_cast<std::ptrdiff_t>(n * row)};
    }
    Queries query(std::uint32_t layer, std::uint32_t i) const {
        const std::size_t row = std::size_t{n_heads} * key_dim;
        Queries out;
        out.data = queries.data() + (std::size_t{layer} * n_queries + i) * row;
        out.query_stride = row;
        out.head_stride = key_dim;
        out.n_queries = 1;
        out.n_heads = n_heads;
        out.scale = 1.0f / std::sqrt(static_cast<float>(key_dim));
        return out;
    }
};

Data load_dump(const std::string& prefix, const std::string& name) {
    npy::Array k = npy::load(prefix + "_k.npy"), v = npy::load(prefix + "_v.npy"),
               q = npy::load(prefix + "_q.npy");
    const auto n = [](const npy::Array& x, std::size_t i) {
        return static_cast<std::uint32_t>(x.shape.at(i));
    };
    if (n(q, 1) >= n(k, 1)) {  // what comes before the queries is compressed first
        throw npy::Error(prefix + ": queries of all " + std::to_string(n(k, 1)) +
                         " tokens, expected of fewer (bench/dump has --queries)");
    }
    return {name,
            n(k, 0),
            n(k, 1),
            n(q, 2),
            n(k, 2),
            n(k, 3),
            n(v, 3),
            n(q, 1),
            std::move(k.floats),
            std::move(v.floats),
            std::move(q.floats)};
}

// Two layers of the same shape.
Data random_like(const Data& model) {
    Data data = model;
    data.name = "random";
    data.n_layers = 2;
    data.keys = make_rows(std::size_t{2} * data.n_tokens, data.n_kv_heads, data.key_dim, 1);
    data.values = make_rows(std::size_t{2} * data.n_tokens, data.n_kv_heads, data.value_dim, 2);
    data.queries = make_rows(std::size_t{2} * data.n_queries, data.n_heads, data.key_dim, 3);
    return data;
}

// Texts that one model read, behind each other, with the queries of the last; 8 KV heads that are two heads
// of a layer side by side, and 4 query heads each. Two layers, since many heads are used.
Data join(const std::vector<Data>& texts) {
    const Data& last = texts.back();
    Data wide = last;
    wide.name = "wide";
    wide.n_layers = 2;
    wide.n_heads = 32;
    wide.n_kv_heads = 8;
    wide.key_dim = 2 * last.key_dim;
    wide.value_dim = 2 * last.value_dim;
    wide.n_tokens = 0;
    for (const Data& text : texts)
        wide.n_tokens += text.n_tokens;
    const auto copy = [](const std::vector<float>& x, std::size_t at, std::size_t dim,
                         std::vector<float>* to) {
        const auto from = x.begin() + static_cast<std::ptrdiff_t>(at * dim);
        to->insert(to->end(), from, from + static_cast<std::ptrdiff_t>(dim));
    };
    // Half `i` of KV head h of a layer: layer and KV head of the dump.
    const auto source = [&](std::size_t layer, std::size_t h, std::size_t i) {
        const std::size_t pair = layer * wide.n_kv_heads + h;
        return std::pair((pair / last.n_kv_heads) % last.n_layers, (pair + i) % last.n_kv_heads);
    };
    wide.keys.clear();
    wide.values.clear();
    wide.queries.clear();
    const std::size_t n_shared = last.n_heads / last.n_kv_heads;
    for (std::size_t layer = 0; layer < wide.n_layers; ++layer) {
        for (const Data& text : texts) {
            for (std::size_t t = 0; t < text.n_tokens; ++t) {
                for (std::size_t half = 0; half < 2 * wide.n_kv_heads; ++half) {
                    const auto [from, head] = source(layer, half / 2, half % 2);
                    const std::size_t at = (from * text.n_tokens + t) * text.n_kv_heads + head;
                    copy(text.keys, at, text.key_dim, &wide.keys);
                    copy(text.values, at, text.value_dim, &wide.values);
                }
            }
        }
        for (std::size_t i = 0; i < last.n_queries; ++i) {
            for (std::size_t half = 0; half < 2 * wide.n_heads; ++half) {
                const auto [from, head] = source(layer, half / 8, half % 2);
                const std::size_t query_head = head * n_shared + half / 2 % 4 % n_shared;
                copy(last.queries, (from * last.n_queries + i) * last.n_heads + query_head, last.key_dim,
                     &wide.queries);
            }
        }
    }
    return wide;
}

// 1,048,576 tokens of one KV head, those of the layer in the middle over and over: what a choice costs there.
Data million(const Data& model) {
    Data long_one = model;
    const std::uint32_t layer = model.n_layers / 2, n = 1u << 20;
    long_one.name = "million";
    long_one.n_layers = long_one.n_kv_heads = 1;
    long_one.n_heads = model.n_heads / model.n_kv_heads;
    long_one.n_tokens = n;
    // Of the first head; the queries come behind the dump's last token.
    const auto fill = [&](const std::vector<float>& from, std::size_t dim, std::vector<float>* to) {
        to->resize(std::size_t{n} * dim);
        for (std::size_t t = 0; t < n; ++t) {
            const std::size_t token = model.n_tokens - 1 - (n - 1 - t) % model.n_tokens,
                              at = (std::size_t{layer} * model.n_tokens + token) * model.n_kv_heads * dim;
            std::copy_n(from.data() + at, dim, to->data() + t * dim);
        }
    };
    fill(model.keys, model.key_dim, &long_one.keys);
    fill(model.values, model.value_dim, &long_one.values);
    const std::size_t row = std::size_t{long_one.n_heads} * model.key_dim;
    long_one.queries.resize(model.n_queries * row);
    for (std::size_t i = 0; i < model.n_queries; ++i) {
        const std::size_t at = (std::size_t{layer} * model.n_queries + i) * model.n_heads * model.key_dim;
        std::copy_n(model.queries.data() + at, row, long_one.queries.data() + i * row);
    }
    return long_one;
}

// What is read.
struct Reading {
    const char* name;
    float negligible = 0.0f, mass = 1.0f, most_share = 1.0f;

    void set(Queries* queries) const {
        queries->negligible = negligible;
        queries->mass = mass;
        queries->most_share = most_share;
    }
};
constexpr Reading readings[] = {{"all"},
                                {"values 1e-4", 1e-4f},
                                {"values 1e-3", 1e-3f},
                                {"mass .999999", 0.0f, 0.999999f},
                                {"mass .999", 0.0f, 0.999f},
                                {"mass .99", 0.0f, 0.99f},
                                {"mass .95", 0.0f, 0.95f},
                                {"mass .9", 0.0f, 0.9f},
                                {".99, 1e-4", 1e-4f, 0.99f},
                                {"a quarter", 0.0f, 1.0f, 0.25f}};
constexpr std::size_t n_readings = std::size(readings);

// Of one reading over one layer.
struct Found {
    double error = 0.0, output = 0.0;         // squares
    double share = 0.0, mass = 0.0, n = 0.0;  // of sections read, sums over selections
};

struct Subject {
    std::vector<std::unique_ptr<Cache>> caches;  // [layer]
    std::vector<Found> found;                    // [reading][layer]
    std::vector<std::size_t> cases;              // [reading]
    std::size_t read = 0;                        // the plain read
    std::size_t n_bytes = 0;
    std::string spec, level;
    const Data* data;
    Executor* executor;
    unsigned threads;
};

// All tokens but those of the last queries, which then come one by one and ask in every way.
void fill(Subject* s, Level level) {
    const Data& d = *s->data;
    CacheConfig config;
    config.n_layers = 1;
    config.n_kv_heads = d.n_kv_heads;
    config.key_dim = d.key_dim;
    config.value_dim = d.value_dim;
    config.max_tokens = d.n_tokens;
    config.level = level;
    require(parse_spec(s->spec.c_str(), &config.spec));
    s->found.resize(n_readings * d.n_layers);
    const std::size_t key_row = std::size_t{d.n_kv_heads} * d.key_dim,
                      value_row = std::size_t{d.n_kv_heads} * d.value_dim;
    const std::uint32_t n_before = d.n_tokens - d.n_queries;
    for (std::uint32_t layer = 0; layer < d.n_layers; ++layer) {
        std::unique_ptr<Cache> cache;
        require(Cache::create(config, &cache));
        const auto append = [&](std::uint32_t first, std::uint32_t n) {
            const std::vector<float> k = d.part(d.keys, layer, first, n, d.n_tokens, key_row),
                                     v = d.part(d.values, layer, first, n, d.n_tokens, value_row);
            require(cache->append(0, rows_of(k, d.n_kv_heads, d.key_dim),
                                  rows_of(v, d.n_kv_heads, d.value_dim), n, *s->executor));
        };
        constexpr std::uint32_t most = 1u << 14;
        for (std::uint32_t first = 0; first < n_before; first += most)
            append(first, std::min(most, n_before - first));
        require(cache->compress(0, *s->executor));
        std::vector<float> all(std::size_t{d.n_heads} * d.value_dim), some(all.size());
        LayerStats before;
        for (std::uint32_t i = 0; i < d.n_queries; ++i) {
            append(n_before + i, 1);
            if (i % 4 != 3) continue;
            Queries query = d.query(layer, i);
            require(cache->attend(0, query, all.data(), all.size(), *s->executor));
            for (std::size_t r = 1; r < n_readings; ++r) {
                readings[r].set(&query);
                require(cache->attend(0, query, some.data(), some.size(), *s->executor));
                Found& found = s->found[r * d.n_layers + layer];
                LayerStats now;
                require(cache->layer_stats(0, &now));
                const double n_new = static_cast<double>(now.n_selections - before.n_selections);
                found.n += n_new;
                found.share += now.share_read * static_cast<double>(now.n_selections) -
                               before.share_read * static_cast<double>(before.n_selections);
                found.mass += now.mass_read * static_cast<double>(now.n_selections) -
                              before.mass_read * static_cast<double>(before.n_selections);
                before = now;
                for (std::size_t c = 0; c < all.size(); ++c) {
                    found.error += std::pow(static_cast<double>(some[c] - all[c]), 2);
                    found.output += std::pow(static_cast<double>(all[c]), 2);
                }
            }
        }
        s->n_bytes += static_cast<std::size_t>(cache->stats().bits_per_element / 8 * d.n_tokens *
                                               static_cast<double>(key_row + value_row));
        s->caches.push_back(std::move(cache));
    }
}

void attend_layers(const Subject& s, const Reading& reading, std::vector<float>* out) {
    const Data& d = *s.data;
    for (std::uint32_t layer = 0; layer < d.n_layers; ++layer) {
        Queries query = d.query(layer, d.n_queries - 1);
        reading.set(&query);
        require(s.caches[layer]->attend(0, query, out->data(), out->size(), *s.executor));
    }
}

}  // namespace

bool time_dumps(const DumpOptions& options, nlohmann::json* rows) {
    std::vector<Data> data;
    try {
        for (const std::string& prefix : options.prefixes)
            data.push_back(load_dump(prefix, prefix.substr(prefix.rfind('/') + 1)));
    } catch (const npy::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return false;
    }
    if (data.size() > 1) data.push_back(join(data));
    data.push_back(random_like(data[0]));
    if (options.million) data.push_back(million(data[0]));
    std::vector<std::unique_ptr<Executor>> executors;
    std::vector<std::unique_ptr<Subject>> subjects;
    std::vector<Timed> cases;
    std::vector<float> out;
    std::size_t most_bytes = 0;
    for (const unsigned n_threads : options.threads)
        executors.push_back(make_pool(options.pool, n_threads));
    for (const Data& d : data) {
        for (const std::string& level_text : options.levels) {
            Level level = Level::automatic;
            if (level_text != "automatic") require(parse_level(level_text.c_str(), &level));
            if (level != Level::automatic && !level_available(level)) continue;
            require(resolve_level(level, &level));
            for (const std::string& spec : options.specs) {
                for (std::size_t i = 0; i < options.threads.size(); ++i) {
                    auto s = std::make_unique<Subject>();
                    s->spec = spec;
                    s->level = level_name(level);
                    s->data = &d;
                    s->executor = executors[i].get();
                    s->threads = options.threads[i];
                    fill(s.get(), level);
                    most_bytes = std::max(most_bytes, s->n_bytes);
                    out.resize(std::max(out.size(), std::size_t{d.n_heads} * d.value_dim));
                    subjects.push_back(std::move(s));
                }
            }
        }
    }
    const std::vector<unsigned char> bytes(most_bytes + 4096, 1), evicting(std::size_t{96} << 20, 1);
    for (const auto& s : subjects) {
        for (const Reading& reading : readings) {
            s->cases.push_back(cases.size());
            cases.push_back({[&s, &reading, &out] { attend_layers(*s, reading, &out); }});
        }
        s->read = cases.size();
        cases.push_back({[&s, &bytes] { keep(read_lines(bytes.data(), s->n_bytes)); }});
    }
    run_rounds(
        &cases, options.n_rounds,
        [&] {
            if (!options.warm) keep(read_lines(evicting.data(), evicting.size()));
        },
        options.processor);
    const Data* shown = nullptr;
    for (const auto& s : subjects) {
        const Data& d = *s->data;
        if (shown != &d) {
            std::printf(
                "%s rows: %u layers, %u tokens, %u/%u heads of %u, one query, %s, %zu rounds%s; roofline is "
                "a plain read of all bytes\n",
                d.name.c_str(), d.n_layers, d.n_tokens, d.n_heads, d.n_kv_heads, d.key_dim,
                options.warm ? "warm" : "cold", options.n_rounds,
                options.processor ? ", time of the processor" : "");
            std::printf("%-10s %-8s %7s %-14s %6s %6s %9s %9s %9s %8s %9s\n", "spec", "level", "threads",
                        "reads", "share", "mass", "error", "worst", "us/layer", "of all", "roofline");
            shown = &d;
        }
        for (std::size_t r = 0; r < n_readings; ++r) {
            const Timed& t = cases[s->cases[r]];
            double mean = 0.0, worst = 0.0, n = 0.0, share = 0.0, mass = 0.0;
            for (std::uint32_t layer = 0; layer < d.n_layers; ++layer) {
                const Found& found = s->found[r * d.n_layers + layer];
                const double error = found.output > 0.0 ? std::sqrt(found.error / found.output) : 0.0;
                mean += error / d.n_layers;
                worst = std::max(worst, error);
                n += found.n;
                share += found.share;
                mass += found.mass;
            }
            share = n > 0.0 ? share / n : 1.0;
            mass = n > 0.0 ? mass / n : 1.0;
            const double us = 1e6 * median(t.seconds) / d.n_layers, of_all = ratio(t, cases[s->cases[0]]),
                         roofline = 1.0 / ratio(t, cases[s->read]);
            std::printf("%-10s %-8s %7u %-14s %6.3f %6.3f %9.5f %9.5f %9.1f %8.3f %8.0f%%\n", s->spec.c_str(),
                        s->level.c_str(), s->threads, readings[r].name, share, mass, mean, worst, us, of_all,
                        100 * roofline);
            rows->push_back({{"rows", d.name},
                             {"spec", s->spec},
                             {"level", s->level},
                             {"threads", s->threads},
                             {"reads", readings[r].name},
                             {"share_read", share},
                             {"mass_read", mass},
                             {"error", mean},
                             {"worst_error", worst},
                             {"us", us},
                             {"of_all", of_all},
                             {"share_of_roofline", roofline}});
        }
    }
    return true;
}

}  // namespace gearkv::bench
