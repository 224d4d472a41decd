// Rotary position embeddings of keys that have moved: instead of turning stored keys, queries are turned the
// other way, since q . R(d) k = R(-d) q . k. Nothing compressed is touched, and the result is exact.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gearkv {

// Cosines and sines of one distance, by pair of channels; null when keys are not rotated.
struct Rotation {
    const float* cosines = nullptr;  // [n_pairs]
    const float* sines = nullptr;    // [n_pairs]
    std::uint32_t n_pairs = 0;
    bool interleaved = false;  // pair i is channels 2i and 2i + 1; else i and i + n_pairs
};

// Angles of `distance` tokens into [2 * n_pairs] floats, cosines first, rounded once.
Rotation make_rotation(const double* frequencies, std::uint32_t n_pairs, bool interleaved,
                       std::int64_t distance, float* out) noexcept;
void rotate(const Rotation& turn, float* row) noexcept;

}  // namespace gearkv
