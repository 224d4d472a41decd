#include "codec/reference.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

namespace gearkv::reference {
namespace {

// Entries (indices into data) that share one scale, or one outlier search.
using Vector = std::vector<std::size_t>;

struct Shape {
    std::size_t n_tokens, n_heads, dim;
    std::size_t index(std::size_t t, std::size_t h, std::size_t c) const {
        return (t * n_heads + h) * dim + c;
    }
};

std::vector<Vector> channels_of_keys(const Shape& s, std::size_t first, std::size_t n) {
    std::vector<Vector> vectors;
    for (std::size_t h = 0; h < s.n_heads; ++h) {
        for (std::size_t c = 0; c < s.dim; ++c) {
            Vector v;
            for (std::size_t t = first; t < std::min(first + n, s.n_tokens); ++t)
                v.push_back(s.index(t, h, c));
            vectors.push_back(v);
        }
    }
    return vectors;
}

std::vector<Vector> tokens_of_all_heads(const Shape& s) {
    std::vector<Vector> vectors;
    for (std::size_t t = 0; t < s.n_tokens; ++t) {
        Vector v(s.n_heads * s.dim);
        std::iota(v.begin(), v.end(), s.index(t, 0, 0));
        vectors.push_back(v);
    }
    return vectors;
}

std::vector<Vector> token_groups(const Shape& s, std::size_t group) {
    std::vector<Vector> vectors;
    for (std::size_t t = 0; t < s.n_tokens; ++t) {
        for (std::size_t h = 0; h < s.n_heads; ++h) {
            for (std::size_t first = 0; first < s.dim; first += group) {
                Vector v(std::min(group, s.dim - first));
                std::iota(v.begin(), v.end(), s.index(t, h, first));
                vectors.push_back(v);
            }
        }
    }
    return vectors;
}

// The groups of a backbone (paper section 3.1).
std::vector<Vector> groups_of(const Shape& s, TensorKind kind, const TensorSpec& spec) {
    const bool per_channel = kind == TensorKind::key && spec.backbone != Backbone::token;
    if (per_channel && spec.backbone == Backbone::kcvt) return channels_of_keys(s, 0, s.n_tokens);
    if (per_channel) {
        std::vector<Vector> vectors;
        for (std::size_t first = 0; first < s.n_tokens; first += spec.group) {
            auto more = channels_of_keys(s, first, spec.group);
            vectors.insert(vectors.end(), more.begin(), more.end());
        }
        return vectors;
    }
    return spec.backbone == Backbone::kcvt ? tokens_of_all_heads(s) : token_groups(s, spec.group);
}

double to_half(double x) {
    // Eleven significant bits, ties to even, with the subnormal spacing below 2^-14.
    if (x == 0) return 0;
    const double step = std::ldexp(1.0, std::max(std::ilogb(x), -14) - 10);
    return std::nearbyint(x / step) * step;
}

// Marks the k largest and k smallest entries of one vector, lowest index first among equals.
void mark_outliers(const Vector& vector, const std::vector<double>& x, std::size_t k,
                   std::vector<bool>* outlier) {
    Vector order = vector;
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] > x[b]; });
    for (std::size_t i = 0; i < k; ++i)
        (*outlier)[order[i]] = true;
    order = vector;
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return x[a] < x[b]; });
    for (std::size_t i = 0; i < k; ++i)
        (*outlier)[order[i]] = true;
}

// Quantises one group in place and writes its codes.
void quantize_group(const Vector& group, const Options& options, std::vector<double>* x,
                    std::vector<std::uint8_t>* codes) {
    const double max_code = (1 << options.spec.bits) - 1;
    double lo = INFINITY, hi = -INFINITY;
    for (std::size_t i : group) {
        lo = std::min(lo, (*x)[i]);
        hi = std::max(hi, (*x)[i]);
    }
    double scale = (hi - lo) / max_code;
    double zero = lo;
    if (options.half_metadata) {
        // The stored form divides in float before it rounds.
        scale = to_half(static_cast<float>(hi - lo) / static_cast<float>(max_code));
        zero = to_half(zero);
    }
    for (std::size_t i : group) {
        const double code =
            scale == 0 ? 0 : std::clamp(std::nearbyint(((*x)[i] - zero) / scale), 0.0, max_code);
        (*codes)[i] = static_cast<std::uint8_t>(code);
        (*x)[i] = code * scale + zero;
    }
}

// Columns of an [n, r] matrix made orthonormal by Gram-Schmidt, twice.
using Matrix = std::vector<std::vector<double>>;  // [column][row]

double dot(const std::vector<double>& x, const std::vector<double>& y) {
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

void orthonormalize(Matrix* columns) {
    for (std::size_t r = 0; r < columns->size(); ++r) {
        auto& column = (*columns)[r];
        for (std::size_t s = 0; s < 2 * r; ++s) {
            const auto& other = (*columns)[s % r];
            const double along = dot(column, other);
            for (std::size_t i = 0; i < column.size(); ++i)
                column[i] -= along * other[i];
        }
        const double norm = std::sqrt(dot(column, column));
        for (double& v : column)
            v = norm > 1e-30 ? v / norm : 0.0;
    }
}

// L of one head's residual (paper algorithm 2): A = orth(R P), P = R^T A.
void add_low_rank(const Tensor& residual, std::size_t head, const Options& options, Tensor* out) {
    const std::size_t n = residual.n_tokens, dim = residual.dim;
    const std::size_t rank = std::min({options.rank, n, dim});
    std::mt19937_64 random(options.seed + head);
    std::normal_distribution<double> normal;
    Matrix a(rank, std::vector<double>(n)), p(rank, std::vector<double>(dim));
    for (auto& column : p)
        std::generate(column.begin(), column.end(), [&] { return normal(random); });
    for (int pass = 0; pass < options.n_passes; ++pass) {
        for (std::size_t r = 0; r < rank; ++r) {
            for (std::size_t t = 0; t < n; ++t) {
                a[r][t] = 0;
                for (std::size_t c = 0; c < dim; ++c)
                    a[r][t] += residual.at(t, head, c) * p[r][c];
            }
        }
        orthonormalize(&a);
        for (std::size_t r = 0; r < rank; ++r) {
            for (std::size_t c = 0; c < dim; ++c) {
                p[r][c] = 0;
                for (std::size_t t = 0; t < n; ++t)
                    p[r][c] += residual.at(t, head, c) * a[r][t];
            }
        }
    }
    for (std::size_t r = 0; r < rank; ++r) {
        for (std::size_t t = 0; t < n; ++t) {
            for (std::size_t c = 0; c < dim; ++c)
                out->at(t, head, c) += a[r][t] * p[r][c];
        }
    }
}

}  // namespace

Result compress(const Tensor& x, TensorKind kind, const Options& options) {
    const Shape shape = {x.n_tokens, x.n_heads, x.dim};
    Result result;
    result.outlier.assign(x.data.size(), false);
    result.codes.assign(x.data.size(), 0);

    // S: the ends of each vector are taken out, and their mean stands in.
    std::vector<double> dense = x.data;
    const auto vectors =
        kind == TensorKind::key ? channels_of_keys(shape, 0, x.n_tokens) : tokens_of_all_heads(shape);
    for (const Vector& vector : vectors) {
        if (options.spec.sparsity <= 0) break;
        const double share =
            static_cast<double>(options.spec.sparsity) / 2 * static_cast<double>(vector.size());
        const auto k =
            std::min(std::max<std::size_t>(static_cast<std::size_t>(share + 1e-6), 1), vector.size() / 2);
        mark_outliers(vector, x.data, k, &result.outlier);
        double mean = 0;
        for (std::size_t i : vector)
            mean += x.data[i] / static_cast<double>(vector.size());
        for (std::size_t i : vector) {
            if (result.outlier[i]) dense[i] = mean;
        }
    }

    // Q, then R = X - Q - S.
    for (const Vector& group : groups_of(shape, kind, options.spec)) {
        quantize_group(group, options, &dense, &result.codes);
    }
    result.reconstruction = x;
    result.residual = x;
    for (std::size_t i = 0; i < dense.size(); ++i) {
        double missing = x.data[i] - dense[i];
        if (options.half_metadata) missing = to_half(missing);
        result.reconstruction.data[i] = dense[i] + (result.outlier[i] ? missing : 0);
        result.residual.data[i] = result.outlier[i] ? 0 : x.data[i] - dense[i];
    }

    // L
    for (std::size_t head = 0; head < x.n_heads && options.rank > 0; ++head) {
        add_low_rank(result.residual, head, options, &result.reconstruction);
    }
    return result;
}

double relative_error(const Tensor& x, const Tensor& y) {
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < x.data.size(); ++i) {
        error += (x.data[i] - y.data[i]) * (x.data[i] - y.data[i]);
        norm += x.data[i] * x.data[i];
    }
    return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, double scale, bool causal) {
    Tensor out = {q.n_tokens, q.n_heads, v.dim, std::vector<double>(q.n_tokens * q.n_heads * v.dim)};
    const std::size_t n_shared = q.n_heads / k.n_heads;
    std::vector<double> weights(k.n_tokens);
    for (std::size_t i = 0; i < q.n_tokens; ++i) {
        const std::size_t n_seen = causal ? k.n_tokens - (q.n_tokens - 1 - i) : k.n_tokens;
        for (std::size_t h = 0; h < q.n_heads; ++h) {
            double most = -INFINITY, sum = 0;
            for (std::size_t t = 0; t < n_seen; ++t) {
                weights[t] = 0;
                for (std::size_t c = 0; c < k.dim; ++c)
                    weights[t] += scale * q.at(i, h, c) * k.at(t, h / n_shared, c);
                most = std::max(most, weights[t]);
            }
            for (std::size_t t = 0; t < n_seen; ++t)
                sum += weights[t] = std::exp(weights[t] - most);
            for (std::size_t t = 0; t < n_seen; ++t) {
                for (std::size_t c = 0; c < v.dim; ++c)
                    out.at(i, h, c) += weights[t] / sum * v.at(t, h / n_shared, c);
            }
        }
    }
    return out;
}

}  // namespace gearkv::reference
