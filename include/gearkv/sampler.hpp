// From logits to the next token. Used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "gearkv/status.hpp"
#include "gearkv/tokenizer.hpp"

namespace gearkv {

// temperature 0 is greedy. Filters apply in this order: top_k, top_p, min_p, then temperature.
struct SamplerConfig {
    float temperature = 0.0f;  // >= 0
    std::uint32_t top_k = 0;   // 0: off
    float top_p = 1.0f;        // (0, 1]
    float min_p = 0.0f;        // [0, 1)
    std::uint64_t seed = 0;
};

// Equal seeds and logits give equal tokens on every machine. Used by one thread at a time.
class Sampler {
  public:
    virtual ~Sampler() = default;
    // Errors: invalid_argument naming the field, out_of_memory.
    static Status create(const SamplerConfig& config, std::unique_ptr<Sampler>* out) noexcept;
    // Draws a token. Errors: non_finite (a NaN logit, or none above -Inf), out_of_memory, invalid_argument;
    // then nothing was drawn. Allocates only for more logits than in any call before.
    virtual Status sample(const float* logits, std::size_t n_vocab, Token* out) noexcept = 0;
};

}  // namespace gearkv
