// ARMv8.2 Advanced SIMD with the dot product instructions.
#pragma once

#include "../lanes.hpp"

namespace gearkv {
namespace {

struct Dotprod : xsimd::neon64 {};

}  // namespace
}  // namespace gearkv

GEARKV_DECLARE_ARCH(gearkv::Dotprod, neon64)

namespace gearkv {
namespace {

struct Lanes : NeonLanes<Lanes, Dotprod> {};

}  // namespace
}  // namespace gearkv
