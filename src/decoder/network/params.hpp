// What the metadata say about the forward pass, checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "decoder/gguf/gguf.hpp"
#include "decoder/network/family.hpp"
#include "gearkv/model.hpp"

namespace gearkv {

enum class RopeScaling : std::uint8_t { none, linear, yarn };

// Of the layers that have no local RoPE. Factors of single frequencies are tensors (Weights::rope_factors).
struct RopeParams {
    float base = 10000.0f;
    RopeScaling scaling = RopeScaling::none;
    float factor = 1.0f;                        // positions are divided by it
    std::uint32_t original_context = 0;         // tokens, before any scaling; 0: not stated
    float magnitude = 0.0f;                     // of the rotated channels beside YaRN's own; 0: not stated
    float yarn_fast = 32.0f, yarn_slow = 1.0f;  // turns within the original context
    float yarn_log_multiplier = 0.0f;
};

// What each layer does about positions.
enum class LayerRope : std::uint8_t { global = 0, local = 1, none = 2 };

struct NetworkParams {
    ModelParams sizes;
    const Family* family = nullptr;
    float embedding_scale = 1.0f;
    float branch_scale = 1.0f;  // of what attention and feed-forward add
    float logit_scale = 1.0f;
    float attention_scale = 0.0f;
    float attention_cap = 0.0f;  // 0: none
    float logit_cap = 0.0f;      // 0: none
    RopeParams rope;
    float local_base = 0.0f;             // of LayerRope::local, which is not scaled
    std::vector<LayerRope> layer_ropes;  // [n_layers]
};

// Fills everything but n_vocab. May throw std::bad_alloc. Errors: missing_key, bad_metadata,
// unsupported_model.
Status read_params(const GgufFile& file, NetworkParams* out);

// Errors: bad_metadata when the file states another vocabulary size than it has tokens.
Status check_vocab_size(const GgufFile& file, const Family& family, std::uint32_t n_vocab);

}  // namespace gearkv
