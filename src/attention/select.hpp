// Which tiles of a head are worth attending, from what is stored beside the codes of its keys.
//
// Scores of a query over the 128 keys of a section of a trellis are about normal: their mean is that of the
// middles of the channels' ranges, their variance sum_c (q_c sigma_c)^2 with sigma_c a sixth of the range. So
// the section weighs about 128 exp(mean + variance / 2), or, where a row's scores spread so widely that one
// token has most of a section, has a share of the heaviest tokens (sharpness_of). Side information alone is
// read, about 1.5 % of what attending reads; nothing is kept between calls.
#pragma once

#include "attention/attend.hpp"

namespace gearkv {

struct SelectRule {
    float mass = 1.0f;        // of every row's weights, estimated; 1 without a limit
    float most_share = 1.0f;  // of the sections, at most
};

struct SelectResult {
    double share = 1.0;  // of the tiles that a row sees, read
    double mass = 1.0;   // estimated, of the row that has least
};

constexpr std::uint64_t chosen_words(std::uint64_t n_tiles) {
    return ceil_div(n_tiles, 64);
}
inline bool is_chosen(const std::uint64_t* chosen, std::uint64_t tile) {
    return chosen == nullptr || (chosen[tile / 64] >> (tile % 64) & 1) != 0;
}

std::uint64_t select_scratch_bytes(std::uint64_t n_tiles) noexcept;

// Sets the bits of the tiles to attend, of all n_tiles of the runs, in chosen [chosen_words]: sections of a
// trellis, heaviest first, until every row has its mass; the last section that is seen, and whatever is not
// in a trellis. All, where a row's scores are beyond the range of float. Works in `room`, of
// select_scratch_bytes.
SelectResult select_tiles(const RowPass& pass, const RowGroup& rows, const KvRun* runs, std::size_t n_runs,
                          float scale, const SelectRule& rule, void* room, std::uint64_t* chosen) noexcept;

// The same for the ranges of `rows`.
SelectResult list_tiles(const RowGroup& rows, const KvRun* runs, std::size_t n_runs,
                        std::uint64_t* chosen) noexcept;

}  // namespace gearkv
