#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "rivals.hpp"

namespace gearkv::quality {
namespace {

// What a row of entries becomes whose squares have a mean of 1.
class RowCode {
  public:
    virtual ~RowCode() = default;
    virtual void round(float* row, std::size_t n) const = 0;
};

// Lloyd's levels of a coordinate of the unit sphere in `dim` dimensions, times the root of dim.
class ScalarCode final : public RowCode {
  public:
    ScalarCode(int bits, std::size_t dim) {
        constexpr int n_points = 8000;
        const double root = std::sqrt(static_cast<double>(dim)), most = std::min(7.0, root);
        std::vector<double> points, weights;
        for (int i = 0; i < n_points; ++i) {
            const double x = most * (2 * (i + 0.5) / n_points - 1), sine = 1 - x * x / (root * root);
            points.push_back(x);
            weights.push_back(std::pow(sine, (static_cast<double>(dim) - 3) / 2));
        }
        const std::size_t n_levels = std::size_t{1} << bits;
        std::vector<double> levels(n_levels);
        for (std::size_t i = 0; i < n_levels; ++i)
            levels[i] = 3 * ((static_cast<double>(i) + 0.5) / static_cast<double>(n_levels) * 2 - 1);
        for (int round = 0; round < 1000; ++round) {
            std::vector<double> sums(n_levels), counts(n_levels);
            std::size_t level = 0;
            for (std::size_t i = 0; i < points.size(); ++i) {
                while (level + 1 < n_levels && 2 * points[i] > levels[level] + levels[level + 1])
                    ++level;
                sums[level] += weights[i] * points[i];
                counts[level] += weights[i];
            }
            for (std::size_t i = 0; i < n_levels; ++i)
                levels[i] = sums[i] / counts[i];
        }
        levels_.assign(levels.begin(), levels.end());
    }
    void round(float* row, std::size_t n) const override {
        for (std::size_t i = 0; i < n; ++i) {
            std::size_t level = 0;
            while (level + 1 < levels_.size() && 2 * row[i] > levels_[level] + levels_[level + 1])
                ++level;
            row[i] = levels_[level];
        }
    }

  private:
    std::vector<float> levels_;
};

// A state is the last n_window bits, new ones on top; each has a level.
class TrellisCode final : public RowCode {
  public:
    TrellisCode(int bits, int n_window)
        : bits_(bits), n_low_(std::size_t{1} << (n_window - bits)), levels_(std::size_t{1} << n_window) {
        start();
        std::mt19937_64 random(1);
        std::vector<float> samples(std::size_t{1} << 15);
        for (std::size_t i = 0; i < samples.size(); i += 2) {
            const auto uniform = [&] { return (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53; };
            const double radius = std::sqrt(-2 * std::log(uniform())), angle = 6.283185307179586 * uniform();
            samples[i] = static_cast<float>(radius * std::cos(angle));
            samples[i + 1] = static_cast<float>(radius * std::sin(angle));
        }
        for (int round = 0; round < 30; ++round)
            train(samples);
    }
    void round(float* row, std::size_t n) const override {
        const std::vector<std::size_t> path = find_path(row, n);
        for (std::size_t i = 0; i < n; ++i)
            row[i] = levels_[path[i]];
    }

  private:
    // Quantiles of a normal variable: the new bits say which part of the line, the others where in it.
    void start() {
        const std::size_t n = levels_.size();
        std::vector<std::size_t> place(n_low_);
        for (std::size_t low = 0; low < n_low_; ++low) {
            for (std::size_t bit = 1; bit < n_low_; bit *= 2)
                place[low] = place[low] * 2 + ((low & bit) != 0);
        }
        for (std::size_t state = 0; state < n; ++state) {
            const std::size_t at = state / n_low_ * n_low_ + place[state % n_low_];
            const double share = (static_cast<double>(at) + 0.5) / static_cast<double>(n);
            double low = -8, high = 8;
            while (high - low > 1e-9) {
                const double middle = (low + high) / 2;
                (0.5 * std::erfc(-middle / std::sqrt(2.0)) < share ? low : high) = middle;
            }
            levels_[state] = static_cast<float>(low);
        }
    }

    // A level becomes the mean of what it stood for.
    void train(const std::vector<float>& samples) {
        const std::vector<std::size_t> path = find_path(samples.data(), samples.size());
        std::vector<double> sums(levels_.size()), counts(levels_.size());
        for (std::size_t i = 0; i < path.size(); ++i) {
            sums[path[i]] += samples[i];
            counts[path[i]] += 1;
        }
        for (std::size_t state = 0; state < levels_.size(); ++state) {
            if (counts[state] > 0) levels_[state] = static_cast<float>(sums[state] / counts[state]);
        }
    }

    // The states with the least squared error, from any first one. Before a state are those whose upper bits
    // are its lower ones; they differ in their own lowest, by which costs are laid out: [lowest][upper].
    std::vector<std::size_t> find_path(const float* row, std::size_t n) const {
        const std::size_t n_states = levels_.size(), n_before = std::size_t{1} << bits_;
        std::vector<float> costs(n_states), best(n_low_);
        std::vector<int> from(n * n_low_);
        for (std::size_t t = 0; t < n; ++t) {
            int* chosen = from.data() + t * n_low_;
            for (std::size_t lowest = 0; t > 0 && lowest < n_before; ++lowest) {
                const float* before = costs.data() + lowest * n_low_;
                for (std::size_t low = 0; low < n_low_; ++low) {
                    const bool better = lowest == 0 || before[low] < best[low];
                    best[low] = better ? before[low] : best[low];
                    chosen[low] = better ? static_cast<int>(lowest) : chosen[low];
                }
            }
            for (std::size_t newest = 0; newest < n_before; ++newest) {
                for (std::size_t low = 0; low < n_low_; ++low) {
                    const std::size_t state = newest * n_low_ + low;
                    const float error = row[t] - levels_[state];
                    costs[place_of(state)] = best[low] + error * error;
                }
            }
        }
        std::vector<std::size_t> path(n);
        std::size_t state = 0;
        for (std::size_t other = 1; other < n_states; ++other) {
            if (costs[place_of(other)] < costs[place_of(state)]) state = other;
        }
        for (std::size_t t = n; t-- > 0;) {
            path[t] = state;
            const std::size_t low = state % n_low_;
            state = (low << bits_) + static_cast<std::size_t>(from[t * n_low_ + low]);
        }
        return path;
    }
    std::size_t place_of(std::size_t state) const {
        return (state & ((std::size_t{1} << bits_) - 1)) * n_low_ + (state >> bits_);
    }

    int bits_;
    std::size_t n_low_;  // ways to choose the bits that are not new
    std::vector<float> levels_;
};

class TurboFormat final : public Format {
  public:
    TurboFormat(int bits, bool trellis, bool centred)
        : bits_(bits), n_window_(trellis ? std::max(8, 6 + bits) : 0), centred_(centred) {}
    std::string name() const override {
        return (n_window_ > 0 ? "turbo-tcq-" : "turbo-") + std::to_string(bits_) +
               (centred_ ? " centred" : "");
    }
    bool published() const override { return !centred_ && (n_window_ == 0 || bits_ < 4); }
    Reconstruction run(const Layer& layer) const override {
        const AttentionShape& s = layer.shape;
        const auto dim = static_cast<double>(s.key_dim);
        Reconstruction result;
        result.keys = round(layer.keys, s.n_kv_heads, s.key_dim, centred_);
        result.values = round(layer.values, s.n_kv_heads, s.value_dim, false);
        result.bits_per_element = bits_ + (16 + (n_window_ > 0 ? n_window_ - bits_ : 0)) / dim;
        if (centred_) result.bits_per_element += 8 / static_cast<double>(s.n_tokens);  // of keys, a half
        return result;
    }

  private:
    std::vector<float> round(std::vector<float> x, std::size_t n_heads, std::size_t dim, bool centred) const {
        const std::size_t width = n_heads * dim;
        const RowCode& code = code_for(dim);
        std::vector<float> mean(width);
        if (centred) {
            std::vector<double> sums(width);
            for (std::size_t i = 0; i < x.size(); ++i)
                sums[i % width] += x[i];
            for (std::size_t c = 0; c < width; ++c)
                mean[c] = to_stored(
                    static_cast<float>(sums[c] * static_cast<double>(width) / static_cast<double>(x.size())));
        }
        for (std::size_t start = 0; start < x.size(); start += dim) {
            float* row = x.data() + start;
            const float* middle = mean.data() + start % width;
            double square = 0;
            for (std::size_t c = 0; c < dim; ++c) {
                row[c] -= middle[c];
                square += static_cast<double>(row[c]) * row[c];
                row[c] *= sign(c);
            }
            if (square > 0) {
                rotate(row, dim);
                round_row(code, static_cast<float>(std::sqrt(square)), row, dim);
                rotate(row, dim);
            }
            for (std::size_t c = 0; c < dim; ++c)
                row[c] = row[c] * sign(c) + middle[c];
        }
        return x;
    }

    void round_row(const RowCode& code, float length, float* row, std::size_t dim) const {
        const float root = std::sqrt(static_cast<float>(dim));
        for (std::size_t c = 0; c < dim; ++c)
            row[c] *= root / length;
        code.round(row, dim);
        float shortened = root;
        if (n_window_ > 0) {
            double square = 0;
            for (std::size_t c = 0; c < dim; ++c)
                square += static_cast<double>(row[c]) * row[c];
            shortened = static_cast<float>(std::sqrt(square));
        }
        const float stored = to_stored(length / shortened * root);
        for (std::size_t c = 0; c < dim; ++c)
            row[c] *= stored / root;
    }

    const RowCode& code_for(std::size_t dim) const {
        if (code_ == nullptr || (n_window_ == 0 && dim != code_dim_)) {
            code_dim_ = dim;
            if (n_window_ > 0) {
                code_ = std::make_unique<TrellisCode>(bits_, n_window_);
            } else {
                code_ = std::make_unique<ScalarCode>(bits_, dim);
            }
        }
        return *code_;
    }

    static float sign(std::size_t channel) { return (channel * 2654435761u >> 7 & 1) != 0 ? -1.0f : 1.0f; }

    int bits_, n_window_;
    bool centred_;
    mutable std::unique_ptr<RowCode> code_;  // made when it is first asked for
    mutable std::size_t code_dim_ = 0;
};

}  // namespace

std::unique_ptr<Format> turbo_format(int bits, bool centred) {
    return std::make_unique<TurboFormat>(bits, false, centred);
}

std::unique_ptr<Format> trellis_turbo_format(int bits, bool centred) {
    return std::make_unique<TurboFormat>(bits, true, centred);
}

}  // namespace gearkv::quality
