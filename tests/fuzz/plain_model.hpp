// What a cache stands for, kept plainly: every token as it came, in double, and attention by the book.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gearkv/cache.hpp"

namespace gearkv::fuzz {

struct PlainToken {
    std::vector<double> key, value;  // [n_kv_heads, dim]
};

// The largest entries of some tokens.
struct Largest {
    double key = 0.0, value = 0.0;
};
inline Largest largest_of(const Largest& a, const Largest& b) {
    return {std::max(a.key, b.key), std::max(a.value, b.value)};
}

// One layer.
struct PlainLayer {
    std::vector<PlainToken> tokens;
    bool turned = false;   // keys were rotated since they came
    double squares = 0.0;  // of all entries that ever came
    Largest gone;          // of tokens that were taken back

    Largest largest(std::size_t first, std::size_t n) const {
        Largest of;
        for (std::size_t t = first; t < first + n; ++t) {
            for (const double x : tokens[t].key)
                of.key = std::max(of.key, std::fabs(x));
            for (const double x : tokens[t].value)
                of.value = std::max(of.value, std::fabs(x));
        }
        return of;
    }

    void take_back(std::size_t first, std::size_t n) {
        gone = largest_of(gone, largest(first, n));
        const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(first);
        tokens.erase(begin, begin + static_cast<std::ptrdiff_t>(n));
    }
};

// Keys that move by `shift` tokens.
inline void turn_key(const LayerDims& dims, const RopeConfig& rope, double shift, std::vector<double>* key) {
    for (std::uint32_t head = 0; head < dims.n_kv_heads; ++head) {
        double* x = key->data() + std::size_t{head} * dims.key_dim;
        for (std::uint32_t i = 0; i < rope.n_pairs; ++i) {
            double& a = x[rope.interleaved ? 2 * i : i];
            double& b = x[rope.interleaved ? 2 * i + 1 : i + rope.n_pairs];
            const double angle = shift * rope.frequencies[i];
            const double turned = a * std::cos(angle) - b * std::sin(angle);
            b = a * std::sin(angle) + b * std::cos(angle);
            a = turned;
        }
    }
}

// Attention of one query row over rows [n_tokens, n_kv_heads, dim] as a cache reads them, and how far an
// output may be from it.
struct PlainAttention {
    const LayerDims& dims;
    const Queries& queries;
    const std::vector<float>&keys, &values;
    std::uint64_t n_tokens;
    std::uint64_t gap_first, gap_end;  // tokens that are forgotten
    double noise;                      // of a score, as a share of the largest there can be
    Largest hidden;           // tokens not in rows that may share a block, and its scales, with those seen
    bool is_partial = false;  // sections may be left out

    // out [value_dim] in double; *margin is how far off each entry may be.
    void attend(std::uint32_t query, std::uint32_t head, std::vector<double>* out, double* margin) const {
        const std::uint32_t kv_head = head / (queries.n_heads / dims.n_kv_heads);
        const std::size_t at = query * queries.query_stride + head * queries.head_stride;
        const float* q = static_cast<const float*>(queries.data) + at;
        const float* latent =
            queries.latents == nullptr ? nullptr : static_cast<const float*>(queries.latents) + at;
        const std::uint64_t end = queries.causal ? n_tokens - (queries.n_queries - 1 - query) : n_tokens;
        const std::uint64_t first = queries.window > 0 && end > queries.window ? end - queries.window : 0;
        const bool has_sink = queries.sinks != nullptr && std::isfinite(queries.sinks[head]);
        double most = has_sink ? static_cast<double>(queries.sinks[head]) : -HUGE_VAL;
        double largest_query = 0.0, largest_key = hidden.key, largest_rule = 0.0, low = 0.0, high = 0.0;
        for (std::uint32_t c = 0; c < dims.key_dim; ++c)
            largest_query = std::max(largest_query, std::fabs(static_cast<double>(q[c])));
        if (latent != nullptr) largest_key = std::max(largest_key, hidden.value);
        for (std::uint32_t c = 0; latent != nullptr && c < dims.value_dim; ++c)
            largest_query = std::max(largest_query, std::fabs(static_cast<double>(latent[c])));
        std::vector<double> scores(end, -HUGE_VAL);
        double largest_hidden = hidden.value;
        for (std::uint64_t t = 0; t < n_tokens; ++t) {
            if (t >= gap_first && t < gap_end) continue;
            const float* k = keys.data() + (t * dims.n_kv_heads + kv_head) * dims.key_dim;
            const float* v = values.data() + (t * dims.n_kv_heads + kv_head) * dims.value_dim;
            double score = 0.0;
            for (std::uint32_t c = 0; c < dims.key_dim; ++c) {
                score += static_cast<double>(q[c]) * static_cast<double>(k[c]);
                largest_key = std::max(largest_key, std::fabs(static_cast<double>(k[c])));
            }
            for (std::uint32_t c = 0; latent != nullptr && c < dims.value_dim; ++c) {
                score += static_cast<double>(latent[c]) * static_cast<double>(v[c]);
                largest_key = std::max(largest_key, std::fabs(static_cast<double>(v[c])));
            }
            const bool is_seen = t >= first && t < end && is_listed(kv_head, t);
            const double ruled =
                is_seen ? rule(score * static_cast<double>(queries.scale), query, head, t, end, &largest_rule)
                        : -HUGE_VAL;
            if (ruled == -HUGE_VAL) {  // outside of window or ranges, later than the query, or masked
                for (std::uint32_t c = 0; c < dims.value_dim; ++c)
                    largest_hidden = std::max(largest_hidden, std::fabs(static_cast<double>(v[c])));
                continue;
            }
            scores[t] = ruled;
            most = std::max(most, ruled);
            for (std::uint32_t c = 0; c < dims.value_dim; ++c) {
                low = std::min(low, static_cast<double>(v[c]));
                high = std::max(high, static_cast<double>(v[c]));
            }
        }
        out->assign(dims.value_dim, 0.0);
        *margin = 0.0;
        if (most == -HUGE_VAL) return;
        double sum = has_sink ? std::exp(static_cast<double>(queries.sinks[head]) - most) : 0.0;
        for (std::uint64_t t = first; t < end; ++t) {
            if (scores[t] == -HUGE_VAL) continue;
            const double weight = std::exp(scores[t] - most);
            sum += weight;
            const float* v = values.data() + (t * dims.n_kv_heads + kv_head) * dims.value_dim;
            for (std::uint32_t c = 0; c < dims.value_dim; ++c)
                (*out)[c] += weight * static_cast<double>(v[c]);
        }
        for (double& x : *out)
            x /= sum;
        // Scores that are off by so much change no weight by more than this factor, and no output by more
        // than the values reach.
        const std::uint32_t n_scored = dims.key_dim + (latent == nullptr ? 0 : dims.value_dim);
        double off =
            noise * largest_query * largest_key * n_scored * std::fabs(static_cast<double>(queries.scale));
        off = std::min(off, 1e300) + 0x1p-19 * (largest_rule + std::min(std::fabs(most), 1e300));
        // What is left out of the sections is no more than they weigh.
        const double reach = is_partial ? 1.0 : std::min(std::expm1(std::min(2.0 * off, 10.0)), 1.0);
        *margin = (high - low) * (reach + 20.0 * noise + 1e-5) + 20.0 * noise * largest_hidden;
        // A value that is left out weighs less than this beside the heaviest, which is in the sum.
        const double skipped = static_cast<double>(queries.negligible) * static_cast<double>(n_tokens) *
                               std::exp(std::min(2.0 * off, 100.0));
        *margin += std::min(skipped, 1.0) * std::max(-low, high);
    }

  private:
    bool is_listed(std::uint32_t kv_head, std::uint64_t t) const {
        if (queries.ranges == nullptr) return true;
        const TokenRange *first = queries.ranges + (kv_head == 0 ? 0 : queries.range_ends[kv_head - 1]),
                         *end = queries.ranges + queries.range_ends[kv_head];
        return std::any_of(first, end, [&](const TokenRange& r) { return t >= r.first && t < r.end; });
    }

    double rule(double score, std::uint32_t query, std::uint32_t head, std::uint64_t t, std::uint64_t end,
                double* largest) const {
        const auto cap = static_cast<double>(queries.soft_cap);
        if (cap > 0.0) score = cap * std::tanh(score / cap);
        if (queries.slopes != nullptr) {
            const double off = static_cast<double>(queries.slopes[head]) * static_cast<double>(end - 1 - t);
            *largest = std::max(*largest, std::fabs(off));
            score -= off;
        }
        if (queries.mask != nullptr) {
            const auto added = static_cast<double>(
                queries.mask[query * queries.mask_query_stride + head * queries.mask_head_stride + t]);
            if (std::isfinite(added)) *largest = std::max(*largest, std::fabs(added));
            score += added;
        }
        return score;
    }
};

}  // namespace gearkv::fuzz
