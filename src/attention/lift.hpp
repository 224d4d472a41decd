// Scores beyond the range of float. Finite queries, keys, slopes and scales can give them; then a row's
// queries are made smaller by a power of two, its rules are applied in double, and its scores are kept
// smaller by another power, which exp takes back from their differences.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention/attend.hpp"

namespace gearkv {

// Halves, and what codecs make of them, are far below.
inline constexpr double largest_half_key = 0x1p28, largest_float_key = max_float_entry;

struct RowLift {
    int query = 0;           // queries are 2^-query of what they are
    int score = 0;           // scores in the softmax are 2^-score of what they are
    bool is_lifted = false;  // either is needed
    bool is_zero = false;    // no score can be told from 0: the query is taken for zeros
};

// Of a row whose largest query entry times the scale is `largest`.
inline RowLift lift_of(const RowGroup& rows, std::uint32_t row, double largest, std::uint32_t key_dim,
                       double largest_key) {
    // Up to these a mask of any finite size may be added, and what kernels have on the way stays finite.
    constexpr double usual = 0x1p100, least = 0x1p-40;
    constexpr int score_bits = 126;
    const auto bits_above = [](double x, int most) {
        return x < 1.0 ? 0 : std::max(0, std::ilogb(x) + 1 - most);
    };
    const double dots = largest * key_dim * largest_key;
    const double capped = rows.soft_cap > 0.0f ? std::min<double>(dots, rows.soft_cap) : dots;
    const double ruled =
        capped + std::fabs(static_cast<double>(rows.slope[row])) * static_cast<double>(rows.visible[row]);
    RowLift lift;
    lift.is_zero = dots < least;
    lift.is_lifted = dots >= usual || ruled >= usual;
    if (!lift.is_lifted) return lift;
    lift.query = bits_above(dots, 100);
    const double mask = rows.mask[row] == nullptr ? 0.0 : 0x1p128;
    const bool sink = rows.has_sinks && std::isfinite(rows.sink[row]);
    lift.score =
        bits_above(ruled + mask + (sink ? std::fabs(static_cast<double>(rows.sink[row])) : 0.0), score_bits);
    return lift;
}

// Changes the scores of one row as its rules say; `start` is the place of the first in the sequence.
inline void rule_lifted(const RowGroup& rows, std::uint32_t row, const RowLift& lift, std::uint64_t start,
                        std::uint32_t n_tokens, float* scores) {
    const auto cap = static_cast<double>(rows.soft_cap);
    const auto last = static_cast<double>(static_cast<std::int64_t>(rows.visible[row] - 1 - start));
    for (std::uint32_t t = 0; t < n_tokens; ++t) {
        double score = std::ldexp(static_cast<double>(scores[t]), lift.query);
        if (cap > 0.0) score = cap * std::tanh(score / cap);
        score -= static_cast<double>(rows.slope[row]) * (last - t);
        if (rows.mask[row] != nullptr) score += static_cast<double>(rows.mask[row][start + t]);
        scores[t] = static_cast<float>(std::ldexp(score, -lift.score));
    }
}

// What the softmax of a tile works on: scores, and the largest before, less the largest of all, as they are.
// The return value is that; -Inf when nothing is seen yet.
inline float lower_lifted(const RowLift& lift, float* scores, std::uint32_t n_tokens, float* before) {
    const float most = std::max(*before, *std::max_element(scores, scores + n_tokens));
    if (std::isinf(most)) return most;
    const auto lower = [&](float x) {
        constexpr double no_weight = -0x1p120;
        return static_cast<float>(
            std::max(std::ldexp(static_cast<double>(x) - static_cast<double>(most), lift.score), no_weight));
    };
    for (std::uint32_t t = 0; t < n_tokens; ++t)
        scores[t] = lower(scores[t]);
    *before = lower(*before);
    return most;
}

}  // namespace gearkv
