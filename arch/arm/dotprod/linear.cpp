#include "decoder/network/linear.inl.hpp"

#include "../linear_lanes.hpp"
#include "level.hpp"

namespace gearkv {

constinit const LinearKernels linear_dotprod = make_linear_kernels<LinearLanes<Lanes>>(Level::dotprod);

}  // namespace gearkv
