// OpenBLAS behind one function, so that nothing else knows whether it is there.
#pragma once

#include "decoder/network/linear.hpp"

namespace gearkv {

// Whether this build has a BLAS, and the process memory without a limit of its own (ulimit -v, -d), which
// OpenBLAS does not survive. To be called before the first product: OpenBLAS must not start threads of
// its own within our tasks, so its thread count becomes 1.
bool prepare_blas() noexcept;

// Runs a product of float weights (args.w holds floats, row_bytes a multiple of 4). Only after
// prepare_blas().
void multiply_blas(const LinearArgs& args) noexcept;

}  // namespace gearkv
