#pragma once

#include "gearkv/cache.hpp"

namespace gearkv {

// Errors: invalid_argument, wrong_size, bad_spec, naming the field with found and expected.
Status check_config(const CacheConfig& config) noexcept;

// Errors: wrong_size.
Status check_max_tokens(std::uint64_t max_tokens) noexcept;

}  // namespace gearkv
