// Instruction-set levels: list, choose and force them.
#pragma once

#include <cstddef>

#include "gearkv/status.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

// One level is one set of kernels. Numbers are stable.
enum class Level : unsigned char {
    automatic = 0,  // GEARKV_LEVEL when that is set (and heard), else the best one that can run here
    scalar = 1,     // portable C++, the reference of all others
    avx2 = 2,       // AVX2 + FMA + F16C
    avx512 = 3,     // AVX-512 F, CD, BW, DQ, VL, VBMI, IFMA, VNNI (Ice Lake, Zen 4 and later)
    neon = 4,       // ARMv8.0 Advanced SIMD
    dotprod = 5,    // ARMv8.2 with the dot product instructions
    avxvnni = 6,    // avx2 and AVX-VNNI (Alder Lake, Zen 5 and later); between avx2 and avx512
};
inline constexpr std::size_t n_levels = 6;  // without automatic

// "avx2" and so on; "automatic" for automatic; "?" for a value outside the enum.
const char* level_name(Level level) noexcept;

// Errors: unknown_level, with the known names in the message; *out is untouched then.
Status parse_level(const char* name, Level* out) noexcept;

// True when the level is compiled in and this processor and operating system can run it.
bool level_available(Level level) noexcept;

// Fills levels[0 .. n_levels) with what is available, slowest first, and returns how many.
std::size_t available_levels(Level levels[n_levels]) noexcept;

// What `wanted` stands for on this machine.
// Errors: unknown_level (GEARKV_LEVEL holds an unknown name), unavailable_level (it cannot run here).
Status resolve_level(Level wanted, Level* out) noexcept;

}  // namespace gearkv
#pragma GCC visibility pop
