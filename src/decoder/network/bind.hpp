// Weights by their names in the file, each with the shape the metadata promise.
#pragma once

#include "decoder/network/model.hpp"

namespace gearkv {

// Every tensor of the file is taken, or the model refused: what nobody asked for (a bias, an expert) belongs
// to a model that would come out wrong without it. May throw std::bad_alloc. Errors: missing_tensor,
// shape_mismatch, bad_metadata (factors of RoPE), unsupported_model.
Status bind_weights(const GgufFile& file, const NetworkParams& params, Weights* out);

}  // namespace gearkv
