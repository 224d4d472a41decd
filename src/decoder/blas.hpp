// OpenBLAS behind one function, so that nothing else knows whether it is there.
#pragma once

#include "decoder/linear.hpp"

namespace gearkv {

// To be called before the first product: OpenBLAS must not start threads of its own within our tasks.
void prepare_blas() noexcept;

// Runs a product of float weights that is large enough to gain from it; false when it has to be run
// otherwise. The level says which kernels it would replace: never those of scalar, which are the reference.
bool multiply_blas(const LinearArgs& args, Level level) noexcept;

}  // namespace gearkv
