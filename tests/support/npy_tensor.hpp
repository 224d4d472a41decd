// .npy files as tensors [tokens, heads, dim].
#pragma once

#include <string>

#include "npy.hpp"
#include "support/tensors.hpp"

namespace gearkv::testing {

Tensor load_npy(const std::string& path);

}  // namespace gearkv::testing
