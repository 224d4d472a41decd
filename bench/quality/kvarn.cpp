#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "rivals.hpp"

namespace gearkv::quality {
namespace {

constexpr std::size_t tile_tokens = 128;

// [rows, columns]: a scale and a least value for each row, a scale for each column.
struct Tile {
    std::size_t n_rows = 0, n_columns = 0;
    std::vector<float> entries;

    float& at(std::size_t row, std::size_t column) { return entries[row * n_columns + column]; }
};

// Logarithms of the factors that are taken off rows and columns.
struct Balance {
    std::vector<double> rows, columns;
};

// Standard deviations of the rows and columns of what is left of a tile.
struct Deviations {
    std::vector<double> rows, columns;

    static double of(double sum, double square, std::size_t n) {
        const auto count = static_cast<double>(n);
        return n < 2 ? 0 : std::sqrt(std::max(square - sum * sum / count, 0.0) / (count - 1));
    }
    static double ratio(const std::vector<double>& all) {
        const auto [least, most] = std::minmax_element(all.begin(), all.end());
        return *most / std::max(*least, 1e-8);
    }
    double imbalance() const { return ratio(rows) + ratio(columns); }
};

std::vector<double> inverse_of(const std::vector<double>& logs) {
    std::vector<double> factors(logs.size());
    std::transform(logs.begin(), logs.end(), factors.begin(), [](double x) { return std::exp(-x); });
    return factors;
}

Deviations deviations_of(const Tile& tile, const Balance& balance) {
    const std::vector<double> by_row = inverse_of(balance.rows), by_column = inverse_of(balance.columns);
    Deviations found = {std::vector<double>(tile.n_rows), std::vector<double>(tile.n_columns)};
    std::vector<double> sums(tile.n_columns), squares(tile.n_columns);
    for (std::size_t r = 0; r < tile.n_rows; ++r) {
        const float* row = tile.entries.data() + r * tile.n_columns;
        double sum = 0, square = 0;
        for (std::size_t c = 0; c < tile.n_columns; ++c) {
            const double x = row[c] * by_row[r] * by_column[c];
            sum += x;
            square += x * x;
            sums[c] += x;
            squares[c] += x * x;
        }
        found.rows[r] = Deviations::of(sum, square, tile.n_columns);
    }
    for (std::size_t c = 0; c < tile.n_columns; ++c)
        found.columns[c] = Deviations::of(sums[c], squares[c], tile.n_rows);
    return found;
}

void take_off(const std::vector<double>& deviations, std::vector<double>* logs) {
    for (std::size_t i = 0; i < logs->size(); ++i)
        (*logs)[i] = std::clamp((*logs)[i] + std::log(std::clamp(deviations[i], 1e-3, 1e3)), -0.3, 10.0);
}

Balance find_balance(const Tile& tile) {
    Balance now = {std::vector<double>(tile.n_rows), std::vector<double>(tile.n_columns)}, best = now;
    Deviations left = deviations_of(tile, now);
    double least = left.imbalance();
    for (int round = 0; round < 16; ++round) {
        take_off(left.columns, &now.columns);
        take_off(deviations_of(tile, now).rows, &now.rows);
        left = deviations_of(tile, now);
        if (left.imbalance() > least) continue;
        least = left.imbalance();
        best = now;
    }
    return best;
}

void round_tile(int bits, Tile* tile) {
    const Balance balance = find_balance(*tile);
    const std::vector<double> by_column = inverse_of(balance.columns);
    const int n_steps = (1 << bits) - 1;
    for (std::size_t r = 0; r < tile->n_rows; ++r) {
        const double factor = std::exp(balance.rows[r]);
        std::vector<double> row(tile->n_columns);
        for (std::size_t c = 0; c < row.size(); ++c)
            row[c] = tile->at(r, c) / factor * by_column[c];
        const auto [low, high] = std::minmax_element(row.begin(), row.end());
        const double least = *low, step = std::max((*high - least) / n_steps, 1e-10);
        const float stored_step = to_stored(static_cast<float>(step * factor)),
                    stored_least = to_stored(static_cast<float>(least * factor));
        for (std::size_t c = 0; c < row.size(); ++c) {
            const double code = std::clamp(std::nearbyint((row[c] - least) / step), 0.0, double(n_steps));
            tile->at(r, c) = (static_cast<float>(code) * stored_step + stored_least) *
                             to_stored(static_cast<float>(1 / by_column[c]));
        }
    }
}

class KvarnFormat final : public Format {
  public:
    KvarnFormat(int key_bits, int value_bits) : key_bits_(key_bits), value_bits_(value_bits) {}
    std::string name() const override {
        return "kvarn-k" + std::to_string(key_bits_) + "v" + std::to_string(value_bits_);
    }
    bool published() const override { return true; }
    Reconstruction run(const Layer& layer) const override {
        const AttentionShape& s = layer.shape;
        Reconstruction result;
        result.keys = round(layer.keys, key_bits_, layer.n_sinks, s.n_kv_heads, s.key_dim, true);
        result.values = round(layer.values, value_bits_, layer.n_sinks, s.n_kv_heads, s.value_dim, false);
        // Of keys two numbers a channel of a tile and one a token, of values the other way round.
        const auto dim = static_cast<double>(s.key_dim);
        result.bits_per_element = (key_bits_ + value_bits_) / 2.0 + 24 / dim + 24.0 / tile_tokens;
        return result;
    }

  private:
    static std::vector<float> round(std::vector<float> x, int bits, std::size_t first, std::size_t n_heads,
                                    std::size_t dim, bool by_channel) {
        const std::size_t n_tokens = x.size() / (n_heads * dim);
        const auto row = [&](std::size_t token, std::size_t head) {
            return x.data() + (token * n_heads + head) * dim;
        };
        for (std::size_t start = first; start < n_tokens; start += tile_tokens) {
            const std::size_t n = std::min(tile_tokens, n_tokens - start);
            for (std::size_t head = 0; head < n_heads; ++head) {
                Tile tile = {by_channel ? dim : n, by_channel ? n : dim, std::vector<float>(n * dim)};
                const auto entry = [&](std::size_t t, std::size_t c) -> float& {
                    return by_channel ? tile.at(c, t) : tile.at(t, c);
                };
                for (std::size_t t = 0; t < n; ++t) {
                    rotate(row(start + t, head), dim);
                    for (std::size_t c = 0; c < dim; ++c)
                        entry(t, c) = row(start + t, head)[c];
                }
                round_tile(bits, &tile);
                for (std::size_t t = 0; t < n; ++t) {
                    for (std::size_t c = 0; c < dim; ++c)
                        row(start + t, head)[c] = entry(t, c);
                    rotate(row(start + t, head), dim);
                }
            }
        }
        return x;
    }

    int key_bits_, value_bits_;
};

}  // namespace

std::unique_ptr<Format> kvarn_format(int key_bits, int value_bits) {
    return std::make_unique<KvarnFormat>(key_bits, value_bits);
}

}  // namespace gearkv::quality
