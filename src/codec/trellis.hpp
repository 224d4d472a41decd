// Compression into the trellis backbone; src/format/trellis.hpp tells what is stored.
#pragma once

#include "codec/work.hpp"

namespace gearkv {

// Working memory of one head.
struct TrellisScratch {
    float* x = nullptr;             // [128][stride] one section: keys in stored order, values rotated
    float* line = nullptr;          // [4][stride]
    float* ones = nullptr;          // [128] of 1
    float* rows = nullptr;          // [128][16] 16 channels that do not lie side by side
    float* panel = nullptr;         // [128][16] 16 channels in units of the levels
    std::uint8_t* codes = nullptr;  // [128][16]
    std::uint8_t* best = nullptr;   // [128][16]
    std::int8_t* chosen = nullptr;  // [128][16]
    void* kernel = nullptr;         // encode_scratch_bytes
};

// Carves the scratch out of `base` (64-byte aligned) and returns its bytes; with a null base it only counts.
std::uint64_t place_trellis_scratch(TrellisScratch* scratch, std::uint32_t dim, void* base) noexcept;

// Writes mean and order of one head into the block, which carries its profile.
void write_profile(const BlockWork& work, std::uint32_t head, void* scratch) noexcept;

// A section can be written in parts, one after the other: parts [first, end) of n are the codes of some
// panels. What comes before the codes of all goes into the block with the first part, and is read there by
// the others.
struct SectionParts {
    std::uint32_t first = 0, end = 1, n = 1;
};

// Writes one section of one head. work.view.profiles is set.
void encode_section(const BlockWork& work, std::uint32_t head, std::uint32_t section, void* scratch,
                    const SectionParts& parts = {}) noexcept;

}  // namespace gearkv
