// The sizes of a llama-architecture model from its metadata.
#pragma once

#include "decoder/gguf/gguf.hpp"
#include "gearkv/model.hpp"

namespace gearkv {

// Fills everything but n_vocab. May throw std::bad_alloc. Errors: missing_key, bad_metadata,
// unsupported_model.
Status read_params(const GgufFile& file, ModelParams* out);

// Errors: bad_metadata when the file states another vocabulary size than it has tokens.
Status check_vocab_size(const GgufFile& file, std::uint32_t n_vocab) noexcept;

}  // namespace gearkv
