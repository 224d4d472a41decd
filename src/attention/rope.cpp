#include "attention/rope.hpp"

#include <cmath>

namespace gearkv {

Rotation make_rotation(const double* frequencies, std::uint32_t n_pairs, bool interleaved,
                       std::int64_t distance, float* out) noexcept {
    for (std::uint32_t i = 0; i < n_pairs; ++i) {
        const double angle = static_cast<double>(distance) * frequencies[i];
        out[i] = static_cast<float>(std::cos(angle));
        out[n_pairs + i] = static_cast<float>(std::sin(angle));
    }
    return {out, out + n_pairs, n_pairs, interleaved};
}

void rotate(const Rotation& turn, float* row) noexcept {
    const std::size_t step = turn.interleaved ? 2 : 1, other = turn.interleaved ? 1 : turn.n_pairs;
    for (std::size_t i = 0; i < turn.n_pairs; ++i) {
        float* x = row + i * step;
        const float a = x[0], b = x[other];
        x[0] = a * turn.cosines[i] - b * turn.sines[i];
        x[other] = a * turn.sines[i] + b * turn.cosines[i];
    }
}

}  // namespace gearkv
