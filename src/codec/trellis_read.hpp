// Sections of trellis blocks back as the encoder has them: keys in stored order less the mean of the profile,
// values rotated. What a block is encoded again from.
#pragma once

#include "format/trellis.hpp"

namespace gearkv {

// Writes x [128][stride], of which channels beyond dim are 0; keys less the mean. Of values `mean` is that of
// the profile, rotated, [stride], and tokens that are not there are 0; keys repeat the last one.
void read_section(const BlockView& view, std::uint32_t head, std::uint32_t section, float* x,
                  std::size_t stride, const float* mean = nullptr) noexcept;

// Squares over the tokens there are and all channels.
struct SectionSquares {
    double error = 0.0;   // of what was encoded
    double signal = 0.0;  // of what it should be
};
// How far a section is from x [128][stride] as the encoder leaves it: both less the mean, that of values by
// the section's own gains. Of keys, channels count by `weights` [dim], in natural order; null for 1.
SectionSquares compare_section(const BlockView& view, std::uint32_t head, std::uint32_t section,
                               const float* x, std::size_t stride, const float* weights) noexcept;

}  // namespace gearkv
