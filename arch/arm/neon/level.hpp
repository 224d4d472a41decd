// ARMv8.0 Advanced SIMD.
#pragma once

#include "../lanes.hpp"

namespace gearkv {
namespace {

struct Neon : xsimd::neon64 {};

}  // namespace
}  // namespace gearkv

GEARKV_DECLARE_ARCH(gearkv::Neon, neon64)

namespace gearkv {
namespace {

struct Lanes : NeonLanes<Lanes, Neon> {};

}  // namespace
}  // namespace gearkv
