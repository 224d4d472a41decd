// Rotary position embeddings: frequencies and magnitudes of every scaling, and the turning of heads.
#pragma once

#include <vector>

#include "decoder/network/model.hpp"

namespace gearkv {

// Pair i of a head turns by frequencies[i] radians a position, and its two channels grow by `magnitude`.
struct Rope {
    std::vector<double> frequencies;  // [rope_dim / 2]
    double magnitude = 1.0;
};

// Of a session of n_ctx tokens: a model with two sets of factors has the long one beyond its original
// context, and keys of the two must not meet. LayerRope::none gives no frequencies.
Rope make_rope(const FileModel& model, LayerRope kind, std::uint32_t n_ctx);

// Cosines, then sines of one position, times the magnitude, [2][rope_dim / 2]. In double before they are
// rounded: a float angle of some thousand radians would be off in the fourth digit.
void write_turns(float* out, const Rope& rope, std::uint64_t position) noexcept;

// Turns the first 2 * n_pairs channels of a head.
void turn_head(float* head, const float* turns, std::size_t n_pairs, Pairing pairing) noexcept;

}  // namespace gearkv
