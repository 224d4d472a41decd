// Which formats this build has, as meson's -Dspecs and CMake's GEARKV_SPECS say. src/sources.txt tells the
// files that only the others need.
#pragma once

namespace gearkv {

// Whether the backbones kivi, kcvt and token are built, with their low rank and outliers. What is left out is
// refused before it gets to codec or attention: by validate_spec, which whoever opens a block asks too.
#ifdef GEARKV_TRELLIS_ONLY
inline constexpr bool has_codes = false;
#else
inline constexpr bool has_codes = true;
#endif

}  // namespace gearkv
