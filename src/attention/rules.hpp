// Queries made ready for a pass, and what is done to their scores: shared by what attends and what selects.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/lift.hpp"

namespace gearkv {

inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// Changes the scores of one row as its rules say; `start` is the place of the first in the sequence.
inline void apply_rules(const Kernels& kernels, const RowGroup& rows, std::uint32_t row, std::uint64_t start,
                        std::uint32_t n_tokens, float* scores) {
    if (rows.soft_cap > 0.0f) kernels.attention.soft_cap(scores, rows.soft_cap, n_tokens);
    if (rows.slope[row] != 0.0f) {
        const auto last = static_cast<float>(static_cast<std::int64_t>(rows.visible[row] - 1 - start));
        for (std::uint32_t t = 0; t < n_tokens; ++t)
            scores[t] -= rows.slope[row] * (last - static_cast<float>(t));
    }
    if (rows.mask[row] != nullptr) {
        const float* mask = rows.mask[row] + start;
        for (std::uint32_t t = 0; t < n_tokens; ++t)
            scores[t] += mask[t];
    }
}

inline void hide_unseen(const RowGroup& rows, std::uint32_t row, std::uint64_t start, std::uint32_t n_tokens,
                        float* scores) {
    const std::uint64_t first = rows.first[row] > start ? rows.first[row] - start : 0;
    const std::uint64_t end = rows.visible[row] > start ? rows.visible[row] - start : 0;
    std::fill_n(scores, std::min<std::uint64_t>(first, n_tokens), minus_infinity);
    for (std::uint64_t t = end; t < n_tokens; ++t)
        scores[t] = minus_infinity;
}

// The queries of some rows, and zeros behind them.
inline void set_queries(const QueryScratch& to, const float* const* from, std::uint32_t n_rows,
                        const RowLift* lift, float scale, const Rotation& turn) {
    for (std::uint32_t row = 0; row < n_rows; ++row) {
        float* query = to.query + row * to.stride;
        if (lift[row].is_zero) {
            std::fill_n(query, to.dim, 0.0f);
        } else if (lift[row].query > 0) {
            for (std::uint32_t c = 0; c < to.dim; ++c) {
                const double exact = static_cast<double>(from[row][c]) * static_cast<double>(scale);
                query[c] = static_cast<float>(std::ldexp(exact, -lift[row].query));
            }
        } else {
            for (std::uint32_t c = 0; c < to.dim; ++c)
                query[c] = from[row][c] * scale;
        }
        if (turn.n_pairs > 0) rotate(turn, query);
        std::fill(query + to.dim, query + to.stride, 0.0f);
    }
}

// Queries in the scratch, for keys that have moved against `turn`.
inline void set_queries(const RowPass& pass, const RowGroup& rows, const RowLift* lift, float scale,
                        const Rotation& turn, bool has_outliers) {
    const AttendScratch& s = pass.scratch;
    set_queries(s.keys, rows.query, pass.n_rows, lift, scale, turn);
    if (pass.dims.latent) set_queries(s.latents, rows.latent, pass.n_rows, lift, scale, {});
    const std::uint32_t n_lanes = outlier_lanes(pass.n_rows);
    for (std::uint32_t c = 0; has_outliers && c < s.keys.dim; ++c) {
        for (std::uint32_t row = 0; row < n_lanes; ++row) {
            s.query_rows[c * n_lanes + row] =
                row < pass.n_rows ? s.keys.query[row * s.keys.stride + c] : 0.0f;
        }
    }
}

// The first of the row group's ranges that ends behind a token.
inline const TokenRange* next_range(const RowGroup& rows, std::uint64_t token) {
    return std::upper_bound(rows.ranges, rows.ranges + rows.n_ranges, token,
                            [](std::uint64_t t, const TokenRange& range) { return t < range.end; });
}

// Takes out what is in no range.
inline void hide_unlisted(const RowGroup& rows, std::uint64_t start, std::uint32_t n_tokens, float* scores) {
    if (rows.ranges == nullptr) return;
    const TokenRange *range = next_range(rows, start), *end = rows.ranges + rows.n_ranges;
    for (std::uint64_t t = 0; t < n_tokens; ++range) {
        const std::uint64_t first = range == end ? n_tokens : std::max(range->first, start) - start;
        const std::uint64_t hidden_end = std::min<std::uint64_t>(first, n_tokens);
        if (hidden_end > t) std::fill(scores + t, scores + hidden_end, minus_infinity);
        if (range == end) break;
        t = range->end - start;
    }
}

// The rules for the scores of one tile; `start` is the place of the first in the sequence.
inline void rule_scores(const RowPass& pass, const RowGroup& rows, std::uint32_t row, const RowLift& lift,
                        std::uint64_t start, std::uint32_t n_tokens, float* scores) {
    if (lift.is_lifted) {
        rule_lifted(rows, row, lift, start, n_tokens, scores);
    } else {
        apply_rules(pass.kernels, rows, row, start, n_tokens, scores);
    }
    hide_unseen(rows, row, start, n_tokens, scores);
    hide_unlisted(rows, start, n_tokens, scores);
}

// How a row's scores are kept within the range of float.
inline RowLift lift_of_row(const RowPass& pass, const RowGroup& rows, std::uint32_t row, float scale,
                           const KvRun* runs, std::size_t n_runs) {
    const HeadDims& dims = pass.dims;
    const bool any_float = std::any_of(runs, runs + n_runs, [&](const KvRun& run) {
        return run.key.is_float || (dims.latent && run.value.is_float);
    });
    float most = pass.kernels.codec.max_abs(rows.query[row], dims.key_dim);
    if (dims.latent) most = std::max(most, pass.kernels.codec.max_abs(rows.latent[row], dims.value_dim));
    const double largest = static_cast<double>(most) * std::fabs(static_cast<double>(scale));
    return lift_of(rows, row, largest, dims.key_dim + (dims.latent ? dims.value_dim : 0),
                   any_float ? largest_float_key : largest_half_key);
}

}  // namespace gearkv
