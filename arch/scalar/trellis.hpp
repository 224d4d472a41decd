// Reference of the trellis kernels: each does what kernels/kernels.hpp and format/trellis.hpp say, one entry
// at a time.
#pragma once

#include "format/trellis.hpp"
#include "kernels/kernels.hpp"

namespace gearkv {
namespace {

// One channel's walk along its tokens; path(t) and free(t) give its bits.
template <class Path, class Free, class Visit>
void walk_trellis(TensorKind kind, std::uint32_t width, const Path& path, const Free& free_bits,
                  const Visit& visit) {
    std::uint32_t p1 = 0, p2 = 0;
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        const std::uint32_t p = path(t);
        const std::uint32_t index = free_bits(t) << 2 | (p ^ p2) << 1 | p1;
        visit(t, static_cast<float>(trellis_level(kind, width, index)));
        p2 = p1;
        p1 = p;
    }
}

// Bit of one plane: keys have token 8 l + k, channel i at word l, bit 8 i + k; values token 32 j + k, channel
// c at word 16 j + c, bit k.
inline std::uint32_t plane_bit(TensorKind kind, const std::uint32_t* plane, std::uint32_t channel,
                               std::uint32_t t) {
    if (kind == TensorKind::key) return plane[t / 8] >> (8 * channel + t % 8) & 1;
    return plane[t / 32 * 16 + channel] >> (t % 32) & 1;
}

// Calls visit(channel of the granule, token, level) for a granule whose planes start at `words`.
template <class Visit>
void walk_granule(TensorKind kind, const std::uint32_t* words, std::uint32_t width, const Visit& visit) {
    if (width == 0) return;
    const std::uint32_t n_words = plane_words(kind);
    for (std::uint32_t c = 0; c < granule_channels(kind); ++c) {
        walk_trellis(
            kind, width, [&](std::uint32_t t) { return plane_bit(kind, words, c, t); },
            [&](std::uint32_t t) {
                std::uint32_t bits = 0;
                for (std::uint32_t i = 1; i < width; ++i)
                    bits |= plane_bit(kind, words + i * n_words, c, t) << (i - 1);
                return bits;
            },
            [&](std::uint32_t t, float level) { visit(c, t, level); });
    }
}

}  // namespace
}  // namespace gearkv
