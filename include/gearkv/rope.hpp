// Rotary position embeddings (RoPE) of keys, as far as keys turn when they move. What a model multiplies
// rotated heads by (the attention factor of YaRN and longrope) is in its keys and queries already, and no
// turn changes it: it is named nowhere here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gearkv/status.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

// How the keys of a layer turn from one token to the next.
struct RopeConfig {
    const double* frequencies = nullptr;  // [n_pairs] radians a token, finite over 2^31 tokens; copied
    std::uint32_t n_pairs = 0;            // 0: keys are not rotated; at most key_dim / 2
    bool interleaved = false;  // pair i is channels 2i and 2i + 1 (GGUF llama); else i and i + n_pairs (NeoX)
};

// What frequencies follow from, in the words of model files and engines.
struct RopeSpec {
    std::uint32_t n_dims = 0;  // first channels of a head, those that turn: even, 2 to 1024
    double base = 10000.0;     // finite, above 0; above 0 and not 1 with YaRN
    double scale = 1.0;        // of positions, finite: 1 / factor with linear scaling and YaRN
    // [n_dims / 2] Frequencies are divided by these, finite and not 0: Llama 3's rope_freqs; of longrope the
    // short or the long ones, as in use. Keys that were rotated by different ones must not meet. Null: 1.
    const float* factors = nullptr;
    // YaRN: pairs that turn beta_fast times or more within the original context keep their frequency, those
    // that turn beta_slow times or less get the whole scale, those between something between. 1; 0 for none.
    double ext_factor = 0.0;
    double original_context = 0.0;  // tokens, above 0 with YaRN
    double beta_fast = 32.0;        // above 0
    double beta_slow = 1.0;         // above 0
};

// Writes the n_dims / 2 frequencies for a RopeConfig: base^(-2i / n_dims), over the factors, and scaled.
// Errors: invalid_argument (null; a parameter out of range, by name), wrong_size (room for fewer); nothing is
// written then.
Status rope_frequencies(const RopeSpec& params, double* frequencies, std::size_t n_frequencies) noexcept;

}  // namespace gearkv
#pragma GCC visibility pop
