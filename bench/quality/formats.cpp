#include "formats.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>

#include "gearkv/cache.hpp"
#include "npy.hpp"
#include "rivals.hpp"

namespace gearkv::quality {

float to_stored(float x) {
    return npy::from_half(npy::to_half(x));
}

void rotate(float* x, std::size_t n) {
    for (std::size_t half = 1; half < n; half *= 2) {
        for (std::size_t i = 0; i < n; i += 2 * half) {
            for (std::size_t j = i; j < i + half; ++j) {
                const float a = x[j], b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
        }
    }
    const float scale = 1 / std::sqrt(static_cast<float>(n));
    for (std::size_t i = 0; i < n; ++i)
        x[i] *= scale;
}

namespace {

constexpr std::size_t block = 32;

// Formats of 32 values with one fp16 scale. Each rounds one block in place.
void round_q8_0(float* x) {
    float most = 0;
    for (std::size_t i = 0; i < block; ++i)
        most = std::max(most, std::fabs(x[i]));
    const float scale = most / 127, stored = to_stored(scale), inverse = scale != 0 ? 1 / scale : 0;
    for (std::size_t i = 0; i < block; ++i)
        x[i] = std::nearbyint(x[i] * inverse) * stored;
}

// The entry of largest magnitude, with its sign.
float loudest(const float* x) {
    return *std::max_element(x, x + block, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
}

void round_q4_0(float* x) {
    const float scale = loudest(x) / -8, stored = to_stored(scale), inverse = scale != 0 ? 1 / scale : 0;
    for (std::size_t i = 0; i < block; ++i)
        x[i] = (std::min(15.0f, std::trunc(x[i] * inverse + 8.5f)) - 8) * stored;
}

// Sixteen non-uniform levels; the scale with the least squared error (weighted by x^2) of a few is taken.
constexpr float nl_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

float nearest_level(float x) {
    const float* above = std::lower_bound(nl_levels, nl_levels + 16, x);
    if (above == nl_levels) return *above;
    if (above == nl_levels + 16) return nl_levels[15];
    return x - above[-1] < *above - x ? above[-1] : *above;
}

void round_iq4_nl(float* x) {
    const float most = loudest(x);
    if (most == 0) return;
    float best_scale = 0;
    double best = 0;
    for (int step = -7; step <= 8; ++step) {
        // One candidate puts the loudest entry on the lowest level, the others around it.
        const float inverse =
            step == 8 ? nl_levels[0] / -most : (static_cast<float>(step) + nl_levels[0]) / most;
        double along = 0, square = 0;
        for (std::size_t i = 0; i < block; ++i) {
            const double level = nearest_level(x[i] * inverse), weight = static_cast<double>(x[i]) * x[i];
            along += weight * level * x[i];
            square += weight * level * level;
        }
        if (square > 0 && along * along > best * square) {
            best = along * along / square;
            best_scale = static_cast<float>(along / square);
        }
    }
    const float stored = to_stored(best_scale), inverse = best_scale != 0 ? 1 / best_scale : 0;
    for (std::size_t i = 0; i < block; ++i)
        x[i] = nearest_level(x[i] * inverse) * stored;
}

// Per-token rows cut into blocks of 32, rotated per head first or not.
class RowFormat final : public Format {
  public:
    RowFormat(std::string name, double bits, void (*round)(float*), bool rotated)
        : name_(std::move(name)), bits_(bits), round_(round), rotated_(rotated) {}
    std::string name() const override { return rotated_ ? name_ + "+hadamard" : name_; }
    Reconstruction run(const Layer& layer) const override {
        return {round(layer.keys, layer.shape.key_dim), round(layer.values, layer.shape.value_dim), bits_};
    }

  private:
    std::vector<float> round(std::vector<float> x, std::size_t dim) const {
        for (std::size_t row = 0; row < x.size(); row += dim) {
            if (rotated_) rotate(x.data() + row, dim);
            for (std::size_t i = row; i < row + dim; i += block)
                round_(x.data() + i);
            if (rotated_) rotate(x.data() + row, dim);
        }
        return x;
    }

    std::string name_;
    double bits_;
    void (*round_)(float*);
    bool rotated_;
};

void require(const Status& status) {
    if (!status.ok()) throw std::runtime_error(status.message());
}

class SpecFormat final : public Format {
  public:
    SpecFormat(std::string spec, std::size_t chunk, bool ours)
        : text_(std::move(spec)), chunk_(chunk), ours_(ours) {
        require(parse_spec(text_.c_str(), &spec_));
    }
    std::string name() const override { return text_; }
    bool ours() const override { return ours_; }
    bool keeps_sinks() const override { return true; }

    Reconstruction run(const Layer& layer) const override {
        const AttentionShape& shape = layer.shape;
        CacheConfig config;
        config.n_layers = 1;
        config.n_kv_heads = static_cast<std::uint32_t>(shape.n_kv_heads);
        config.key_dim = static_cast<std::uint32_t>(shape.key_dim);
        config.value_dim = static_cast<std::uint32_t>(shape.value_dim);
        config.max_tokens = shape.n_tokens;
        config.spec = spec_;
        config.spec.sink_tokens = std::max(spec_.sink_tokens, static_cast<std::uint32_t>(layer.n_sinks));
        std::unique_ptr<Cache> cache;
        require(Cache::create(config, &cache));
        const std::size_t step = chunk_ == 0 ? shape.n_tokens : chunk_;
        const bool asks = ours_ && !layer.all_queries.empty();
        std::vector<float> out(asks ? step * shape.n_heads * shape.value_dim : 0);
        for (std::size_t t = 0; t < shape.n_tokens; t += step) {
            const Rows keys = {layer.keys.data() + t * shape.n_kv_heads * shape.key_dim,
                               shape.n_kv_heads * shape.key_dim, shape.key_dim};
            const Rows values = {layer.values.data() + t * shape.n_kv_heads * shape.value_dim,
                                 shape.n_kv_heads * shape.value_dim, shape.value_dim};
            const auto n = static_cast<std::uint32_t>(std::min(step, shape.n_tokens - t));
            require(cache->append(0, keys, values, n, serial_executor()));
            if (asks) {
                Queries queries = {};
                queries.data = layer.all_queries.data() + t * shape.n_heads * shape.key_dim;
                queries.query_stride = shape.n_heads * shape.key_dim;
                queries.head_stride = shape.key_dim;
                queries.n_queries = n;
                queries.n_heads = static_cast<std::uint32_t>(shape.n_heads);
                queries.scale = static_cast<float>(shape.scale);
                queries.causal = true;
                require(cache->attend(0, queries, out.data(), out.size(), serial_executor()));
            }
            require(cache->compress(0, serial_executor()));
        }
        Reconstruction result;
        result.keys.resize(layer.keys.size());
        result.values.resize(layer.values.size());
        require(cache->read(0, 0, shape.n_tokens, result.keys.data(), result.keys.size(),
                            result.values.data(), result.values.size()));
        result.bits_per_element = cache->stats().bits_per_element;
        return result;
    }

  private:
    std::string text_;
    std::size_t chunk_;
    bool ours_;
    KvSpec spec_;
};

}  // namespace

std::vector<std::unique_ptr<Format>> rival_formats() {
    std::vector<std::unique_ptr<Format>> formats;
    formats.push_back(std::make_unique<RowFormat>("q8_0", 8.5, round_q8_0, false));
    formats.push_back(std::make_unique<RowFormat>("q4_0", 4.5, round_q4_0, false));
    formats.push_back(std::make_unique<RowFormat>("q4_0", 4.5, round_q4_0, true));
    formats.push_back(std::make_unique<RowFormat>("iq4_nl", 4.5, round_iq4_nl, false));
    formats.push_back(std::make_unique<RowFormat>("iq4_nl", 4.5, round_iq4_nl, true));
    for (const bool centred : {false, true}) {
        for (const int bits : {2, 3, 4})
            formats.push_back(turbo_format(bits, centred));
        for (const int bits : {1, 2, 3, 4})
            formats.push_back(trellis_turbo_format(bits, centred));
    }
    for (const auto& [key_bits, value_bits] : {std::pair(2, 2), {3, 3}, {4, 2}, {4, 4}})
        formats.push_back(kvarn_format(key_bits, value_bits));
    return formats;
}

std::unique_ptr<Format> spec_format(const std::string& spec, std::size_t chunk, bool ours) {
    return std::make_unique<SpecFormat>(spec, chunk, ours);
}

}  // namespace gearkv::quality
