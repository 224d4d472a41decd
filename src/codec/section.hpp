// One section of one head on its way to trellis codes: what keys and values share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codec/trellis.hpp"
#include "format/trellis.hpp"

namespace gearkv {

struct Section {
    const BlockWork& work;
    TrellisScratch scratch;
    SectionLayout at;
    unsigned char* side;   // of this section
    std::uint32_t* words;  // of this section
    std::uint32_t dim;
    std::uint32_t head;
    std::uint32_t n_granules;
    SectionParts parts;
    std::uint8_t width[max_dim / key_granule];  // by granule

    TensorKind kind() const { return work.keys() ? TensorKind::key : TensorKind::value; }
    std::uint32_t width_of(std::uint32_t place) const { return width[place / granule_channels(kind())]; }
    float* row(std::size_t t) const { return scratch.x + t * work.stride; }
};

// Gives the planes of the section to the granules in which they save most error, by the mean variance of
// each.
void choose_widths(Section* s, const float* variance) noexcept;

// Sixteenths of an octave at or above log2(scale), with a little grace.
inline int scale_sixteenths(float scale) {
    return static_cast<int>(std::ceil(16.0f * std::log2(std::max(scale, 1e-20f)) - 0.25f));
}
inline std::uint8_t scale_code(int sixteenths, int base) {
    return static_cast<std::uint8_t>(std::clamp(sixteenths - base, 0, 255));
}
// Chooses the section's base so that the largest scale still fits a byte.
int write_base(Section* s, int largest) noexcept;

// Whether widths, base and whatever else precedes the codes is to be chosen; else it is in the block.
inline bool begins(const Section& s) {
    return s.parts.first == 0;
}
// Takes the widths from the block; its base.
int read_begun(Section* s) noexcept;

// Up to 16 stored places of one width: whole granules, or the first half of one.
struct Places {
    std::uint32_t width;
    std::uint32_t n;
    std::uint32_t at[lane_tile];  // beyond n any valid place

    bool contiguous() const { return at[lane_tile - 1] == at[0] + lane_tile - 1; }
};

// Calls visit(places) for all places of all widths but 0.
template <class Visit>
void for_all_panels(const Section& s, const Visit& visit) {
    for (std::uint32_t width = 1; width <= max_key_width; ++width) {
        Places p = {width, 0, {}};
        for (std::uint32_t place = 0; place < s.dim; ++place) {
            if (s.width_of(place) == width) p.at[p.n++] = place;
            if (p.n == lane_tile || (place + 1 == s.dim && p.n > 0)) {
                std::fill(p.at + p.n, p.at + lane_tile, p.at[0]);
                visit(p);
                p.n = 0;
            }
        }
    }
}

// The same for those of the section's parts.
template <class Visit>
void for_panels(const Section& s, const Visit& visit) {
    std::uint32_t n = 0, i = 0;
    if (s.parts.n > 1) for_all_panels(s, [&](const Places&) { ++n; });
    const std::uint32_t first = n * s.parts.first / s.parts.n, end = n * s.parts.end / s.parts.n;
    for_all_panels(s, [&](const Places& p) {
        if (s.parts.n == 1 || (i >= first && i < end)) visit(p);
        ++i;
    });
}

// The best path of scratch.panel, into scratch.codes and scratch.chosen.
inline void encode_panel(const Section& s, std::uint32_t width) {
    s.work.kernels->codec.encode_trellis({s.scratch.panel, trellis_levels(s.kind(), width), width,
                                          s.scratch.codes, s.scratch.chosen, s.scratch.kernel});
}

// First word of the planes of a granule.
std::uint32_t* granule_words(const Section& s, std::uint32_t granule) noexcept;

// Bits of codes, 8 tokens in a byte.
using PlaneBytes = std::uint8_t[section_tokens / 8][lane_tile];

// scratch.line, of 4, as a padded row of the section.
inline float* line(const Section& s, std::size_t i) {
    return s.scratch.line + i * s.work.stride;
}

// trellis_keys.cpp, trellis_values.cpp: the section of tokens from `first` on.
void encode_keys(Section* s, std::uint32_t head, std::uint32_t first) noexcept;
void encode_values(Section* s, std::uint32_t head, std::uint32_t first) noexcept;

}  // namespace gearkv
