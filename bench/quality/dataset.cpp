#include "dataset.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>

#include "npy.hpp"

namespace gearkv::quality {
namespace {

// Four sinks and whole blocks of 128, so that no format keeps a long uncompressed rest that others do not.
constexpr std::size_t whole_tokens(std::size_t n) {
    return (n - 4) / 128 * 128 + 4;
}
constexpr std::size_t n_tokens = whole_tokens(2048), n_kv_heads = 2, n_shared = 2, n_queries = 128;

// Family parameters are drawn from here; the standard library's distributions differ between platforms.
class Random {
  public:
    explicit Random(std::uint64_t seed) : bits_(seed) {}
    double uniform() { return static_cast<double>(bits_() >> 11) * 0x1p-53; }
    double normal() {
        const double radius = std::sqrt(-2 * std::log(1 - uniform()));
        return radius * std::cos(6.283185307179586 * uniform());
    }
    // Student's t with three degrees of freedom.
    double heavy() {
        const double a = normal(), b = normal(), c = normal();
        return normal() / std::sqrt((a * a + b * b + c * c) / 3);
    }
    std::size_t below(std::size_t n) { return bits_() % n; }

  private:
    std::mt19937_64 bits_;
};

Layer make_gaussian(std::size_t dim, Random* random) {
    Layer layer;
    layer.shape = {n_queries,
                   n_tokens,
                   n_kv_heads * n_shared,
                   n_kv_heads,
                   dim,
                   dim,
                   1 / std::sqrt(static_cast<double>(dim)),
                   false};
    const auto fill = [&](std::vector<float>* x, std::size_t n) {
        x->resize(n);
        for (float& v : *x)
            v = static_cast<float>(random->normal());
    };
    fill(&layer.keys, n_tokens * n_kv_heads * dim);
    fill(&layer.values, n_tokens * n_kv_heads * dim);
    fill(&layer.queries, n_queries * n_kv_heads * n_shared * dim);
    return layer;
}

template <class Change>
void for_channels(Layer* layer, std::size_t n_channels, Random* random, const Change& change) {
    const std::size_t dim = layer->shape.key_dim;
    for (std::size_t head = 0; head < n_kv_heads; ++head) {
        for (std::size_t i = 0; i < n_channels; ++i) {
            const std::size_t channel = random->below(dim);
            const double size = random->uniform(), sign = random->uniform() < 0.5 ? -1 : 1;
            for (std::size_t t = 0; t < n_tokens; ++t) {
                float& key = layer->keys[(t * n_kv_heads + head) * dim + channel];
                key = static_cast<float>(change(key, size, sign));
            }
        }
    }
}

// The first four tokens share a direction that every query likes, and carry almost no value.
void add_sinks(Layer* layer, Random* random) {
    const std::size_t dim = layer->shape.key_dim;
    constexpr double strength[] = {1.5, 0.8, 0.7, 0.6};
    for (std::size_t head = 0; head < n_kv_heads; ++head) {
        std::vector<double> direction(dim);
        double norm = 0;
        for (double& v : direction) {
            v = random->normal();
            norm += v * v;
        }
        for (double& v : direction)
            v /= std::sqrt(norm);
        for (std::size_t t = 0; t < 4; ++t) {
            for (std::size_t c = 0; c < dim; ++c) {
                const std::size_t at = (t * n_kv_heads + head) * dim + c;
                layer->keys[at] += static_cast<float>(direction[c] * 1.6 *
                                                      std::sqrt(static_cast<double>(dim)) * strength[t]);
                layer->values[at] *= 0.1f;
            }
        }
        for (std::size_t i = 0; i < n_queries; ++i) {
            for (std::size_t h = head * n_shared; h < (head + 1) * n_shared; ++h) {
                for (std::size_t c = 0; c < dim; ++c) {
                    layer->queries[(i * n_kv_heads * n_shared + h) * dim + c] +=
                        static_cast<float>(4 * direction[c]);
                }
            }
        }
    }
}

}  // namespace

std::vector<Dataset> make_families() {
    std::vector<Dataset> families;
    std::uint64_t seed = 0;
    for (const std::size_t dim : {64u, 128u}) {
        const auto add = [&](const char* name, bool structured, const auto& shape) {
            Dataset data;
            data.name = std::string(name) + "-" + std::to_string(dim);
            data.structured = structured;
            for (int i = 0; i < 2; ++i) {
                Random random(++seed);
                data.layers.push_back(make_gaussian(dim, &random));
                shape(&data.layers.back(), &random);
            }
            families.push_back(std::move(data));
        };
        add("gauss", false, [](Layer*, Random*) {});
        add("outlier-channels", true, [&](Layer* layer, Random* random) {
            for_channels(layer, dim * 3 / 100 + 1, random,
                         [](double key, double size, double) { return key * (5 + 10 * size); });
        });
        add("key-bias", true, [&](Layer* layer, Random* random) {
            for_channels(layer, dim / 8, random,
                         [](double key, double size, double sign) { return key + sign * (10 + 50 * size); });
        });
        add("sinks", true, add_sinks);
        add("heavy-values", true, [](Layer* layer, Random* random) {
            for (float& v : layer->values)
                v = static_cast<float>(random->heavy());
        });
    }
    return families;
}

namespace {

Dataset load_layers(const std::string& prefix, std::size_t n_last) {
    const npy::Array k = npy::load(prefix + "_k.npy"), v = npy::load(prefix + "_v.npy"),
                     q = npy::load(prefix + "_q.npy");
    if (k.shape.size() != 4 || v.shape != k.shape || q.shape.size() != 4 || q.shape[0] != k.shape[0] ||
        q.shape[1] != k.shape[1] || q.shape[3] != k.shape[3]) {
        throw std::runtime_error(prefix + ": keys " + npy::shape_text(k.shape) + ", values " +
                                 npy::shape_text(v.shape) + ", queries " + npy::shape_text(q.shape) +
                                 ", expected the same layers, tokens and channels");
    }
    const std::size_t n_all = k.shape[1], heads = k.shape[2], dim = k.shape[3], q_heads = q.shape[2];
    if (n_all < n_last + 4)
        throw std::runtime_error(prefix + ": fewer than " + std::to_string(n_last + 4) + " tokens");
    const std::size_t n = whole_tokens(n_all);
    Dataset data;
    data.name = prefix.substr(prefix.rfind('/') + 1);
    data.real = true;
    for (std::size_t i = 0; i < k.shape[0]; ++i) {
        Layer layer;
        layer.shape = {n_last, n, q_heads, heads, dim, dim, 1 / std::sqrt(static_cast<double>(dim)), true};
        const auto rows = [](const npy::Array& x, std::size_t first, std::size_t count) {
            return std::vector<float>(x.floats.begin() + static_cast<std::ptrdiff_t>(first),
                                      x.floats.begin() + static_cast<std::ptrdiff_t>(first + count));
        };
        layer.keys = rows(k, i * n_all * heads * dim, n * heads * dim);
        layer.values = rows(v, i * n_all * heads * dim, n * heads * dim);
        layer.all_queries = rows(q, i * n_all * q_heads * dim, n * q_heads * dim);
        layer.queries.assign(layer.all_queries.end() - static_cast<std::ptrdiff_t>(n_last * q_heads * dim),
                             layer.all_queries.end());
        data.layers.push_back(std::move(layer));
    }
    return data;
}

}  // namespace

Dataset load_dump(const std::string& folder, const std::string& name) {
    return load_layers(folder + "/" + name, 256);
}

Dataset load_model_dump(const std::string& prefix) {
    Dataset data = load_layers(prefix, 128);
    std::ifstream file(prefix + ".json");
    if (!file) return data;
    const nlohmann::json about = nlohmann::json::parse(file);
    if (about.at("layers").size() != data.layers.size())
        throw std::runtime_error(prefix + ".json: other layers than the arrays have");
    for (std::size_t i = 0; i < data.layers.size(); ++i) {
        data.layers[i].shape.scale = about["layers"][i].at("scale").get<double>();
        data.layers[i].window = about["layers"][i].at("window").get<std::size_t>();
    }
    return data;
}

Dataset load_conformance(const std::string& folder, const std::string& name) {
    const npy::Array k = npy::load(folder + "/" + name + "_K.npy"),
                     v = npy::load(folder + "/" + name + "_V.npy"), q = npy::load(folder + "/Q.npy");
    Layer layer;
    layer.shape = {q.shape.at(0), k.shape.at(0), q.shape.at(1), k.shape.at(1),
                   k.shape.at(2), k.shape.at(2), 0.125,         false};
    layer.shape.n_tokens = whole_tokens(layer.shape.n_tokens);
    const std::size_t n = layer.shape.n_tokens * layer.shape.n_kv_heads * layer.shape.key_dim;
    layer.keys.assign(k.floats.begin(), k.floats.begin() + static_cast<std::ptrdiff_t>(n));
    layer.values.assign(v.floats.begin(), v.floats.begin() + static_cast<std::ptrdiff_t>(n));
    layer.queries = q.floats;
    Dataset data = {name, name != "gauss", false, {std::move(layer)}};
    return data;
}

}  // namespace gearkv::quality
