// L: rank-r approximation of one head's residual by subspace iteration (paper algorithm 2).
//
//   A = orth(R P);  P = R^T A      three times, from a seeded start
//   L = A P^T                      A [tokens, r] orthonormal, P [dim, r] carries the magnitude
// Columns are kept as planes: A [r][tokens padded to 16], P [r][stride].
#include <algorithm>
#include <cmath>

#include "codec/work.hpp"

namespace gearkv {
namespace {

constexpr int n_passes = 3;

// A counter-based generator: equal seeds give equal starts on every machine.
std::uint64_t mix_bits(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// The start: rows of R with random signs, token t added to plane t mod rank. It lies in the row space of R
// already, which saves about half a pass over a start that knows nothing of R.
void seed_start(float* p, const BlockWork& work, const float* residual, std::uint64_t seed) {
    const std::size_t rank = work.header->rank;
    std::fill_n(p, rank * work.stride, 0.0f);
    std::uint64_t signs = 0;
    for (std::size_t t = 0; t < work.n_tokens(); ++t, signs >>= 1) {
        if (t % 64 == 0) signs = mix_bits(seed + t);
        const float sign = (signs & 1) != 0 ? 1.0f : -1.0f;
        float* plane = p + t % rank * work.stride;
        for (std::size_t c = 0; c < work.dim(); ++c)
            plane[c] += sign * residual[t * work.stride + c];
    }
}

double dot(const float* x, const float* y, std::size_t n) {
    // Eight running sums: the order is the same at every level, and the compiler can keep them apart.
    double sums[8] = {};
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (std::size_t k = 0; k < 8; ++k)
            sums[k] += static_cast<double>(x[i + k]) * y[i + k];
    }
    for (; i < n; ++i)
        sums[i % 8] += static_cast<double>(x[i]) * y[i];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Modified Gram-Schmidt, twice per plane. A plane that depends on those before it becomes 0 and adds nothing.
void orthonormalize(float* a, std::size_t stride, std::size_t n, std::size_t rank) {
    for (std::size_t r = 0; r < rank; ++r) {
        float* plane = a + r * stride;
        const double before = std::sqrt(dot(plane, plane, n));
        for (int round = 0; round < 2; ++round) {
            for (std::size_t s = 0; s < r; ++s) {
                const auto along = static_cast<float>(dot(plane, a + s * stride, n));
                for (std::size_t i = 0; i < n; ++i)
                    plane[i] -= along * a[s * stride + i];
            }
        }
        const double norm = std::sqrt(dot(plane, plane, n));
        const float inverse = norm > 1e-6 * before && norm > 0 ? static_cast<float>(1.0 / norm) : 0.0f;
        for (std::size_t i = 0; i < n; ++i)
            plane[i] *= inverse;
    }
}

float largest(const float* x, std::size_t n) {
    float m = 0.0f;
    for (std::size_t i = 0; i < n; ++i)
        m = std::max(m, std::fabs(x[i]));
    return m;
}

// Moves a power of two from P to A when P alone would leave the normal range of fp16; the product is
// unchanged.
void balance(float* a, std::size_t n_a, float* p, std::size_t n_p) {
    const float in_p = largest(p, n_p);
    const float in_a = largest(a, n_a);
    if (in_p == 0.0f || in_a == 0.0f || (in_p < 32768.0f && in_p > 0.00390625f)) return;
    const float shift = std::exp2(std::round(std::log2(in_p / in_a) / 2));
    for (std::size_t i = 0; i < n_a; ++i)
        a[i] *= shift;
    for (std::size_t i = 0; i < n_p; ++i)
        p[i] /= shift;
}

}  // namespace

void factor_head(const BlockWork& work, std::size_t head) noexcept {
    const std::size_t rank = work.header->rank;
    const std::size_t n = work.n_tokens();
    const std::size_t dim = work.dim();
    const std::size_t a_stride = work.view.sizes.a_stride;
    const auto& codec = work.kernels->codec;
    float* a = work.factors + head * rank * (a_stride + work.stride);
    float* p = a + rank * a_stride;
    const float* residual = work.x_head(head);

    seed_start(p, work, residual, mix_bits(work.seed ^ (std::uint64_t{head} << 32)));
    for (int pass = 0; pass < n_passes; ++pass) {
        codec.project(a, a_stride, residual, work.stride, n, dim, p, work.stride, rank);
        orthonormalize(a, a_stride, n, rank);
        codec.project_back(p, work.stride, residual, work.stride, n, dim, a, a_stride, rank);
    }
    auto* stored_a = const_cast<std::uint16_t*>(work.view.factor_a(static_cast<std::uint32_t>(head)));
    auto* stored_p = const_cast<std::uint16_t*>(work.view.factor_p(static_cast<std::uint32_t>(head)));
    for (std::size_t r = 0; r < rank; ++r) {
        float* plane = a + r * a_stride;
        std::fill(plane + n, plane + a_stride, 0.0f);
        balance(plane, n, p + r * work.stride, dim);
        codec.to_half(stored_a + r * a_stride, plane, a_stride);
        codec.to_half(stored_p + r * dim, p + r * work.stride, dim);
    }
}

}  // namespace gearkv
