// S: the k largest and k smallest entries of each vector, kept apart (paper section 3.1).
//
// A vector is one channel of keys over the block's tokens, or one token of values over the channels of all
// heads. Ties go to the lowest index, at both ends.
#include <algorithm>
#include <cmath>
#include <functional>

#include "codec/work.hpp"

namespace gearkv {
namespace {

constexpr float max_half = 65504.0f;

// Entries beyond `bound` belong to an end; of those equal to it, the first n_ties.
struct End {
    float bound;
    std::uint32_t n_ties;

    template <class Before>
    bool takes(float v, const Before& before) {
        if (before(v, bound)) return true;
        if (v != bound || n_ties == 0) return false;
        --n_ties;
        return true;
    }
};

// Marks both ends, in order of the entries: the high end first where they meet.
struct Ends {
    End high, low;
    bool take(float v) { return high.takes(v, std::greater<float>()) || low.takes(v, std::less<float>()); }
};

// ---- few outliers: the best so far are kept in order, and hardly an entry gets past the last of them ----

constexpr std::uint32_t most_kept = 32;
constexpr std::uint32_t n_lanes = lane_tile;

template <class Before>
struct KeptEnd {
    float kept[most_kept];  // the best first

    void clear(std::uint32_t per_end, float worst) { std::fill_n(kept, per_end, worst); }
    void offer(float v, std::uint32_t per_end) {
        std::uint32_t i = per_end - 1;
        if (!Before()(v, kept[i])) return;
        for (; i > 0 && Before()(v, kept[i - 1]); --i)
            kept[i] = kept[i - 1];
        kept[i] = v;
    }
    End end(std::uint32_t per_end) const {
        const float bound = kept[per_end - 1];
        const auto n_beyond =
            std::count_if(kept, kept + per_end, [&](float v) { return Before()(v, bound); });
        return {bound, per_end - static_cast<std::uint32_t>(n_beyond)};
    }
};
struct KeptEnds {
    KeptEnd<std::greater<float>> high;
    KeptEnd<std::less<float>> low;

    void clear(std::uint32_t per_end) {
        high.clear(per_end, -HUGE_VALF);
        low.clear(per_end, HUGE_VALF);
    }
    void offer(float v, std::uint32_t per_end) {
        high.offer(v, per_end);
        low.offer(v, per_end);
    }
    Ends ends(std::uint32_t per_end) const { return {high.end(per_end), low.end(per_end)}; }
};

// Whether any of 16 entries is beyond its bounds.
bool any_beyond(const float* x, const float* high, const float* low) {
    std::uint32_t any = 0;
    for (std::uint32_t lane = 0; lane < n_lanes; ++lane)
        any |= static_cast<std::uint32_t>(x[lane] > high[lane]) |
               static_cast<std::uint32_t>(x[lane] < low[lane]);
    return any != 0;
}

// ---- many: selection in a copy ----

template <class Before>
End find_end(float* scratch, std::size_t length, std::uint32_t per_end, const Before& before) {
    std::nth_element(scratch, scratch + (per_end - 1), scratch + length, before);
    const float bound = scratch[per_end - 1];
    const auto n_beyond =
        std::count_if(scratch, scratch + per_end, [&](float v) { return before(v, bound); });
    return {bound, per_end - static_cast<std::uint32_t>(n_beyond)};
}

Ends find_ends(float* scratch, std::size_t length, std::uint32_t per_end) {
    const End high = find_end(scratch, length, per_end, std::greater<float>());
    return {high, find_end(scratch, length, per_end, std::less<float>())};
}

void replace(const BlockWork& work, std::size_t head, std::size_t token, std::size_t channel, float mean) {
    work.x_head(head)[token * work.stride + channel] = mean;
    work.outlier_head(head)[token * work.stride + channel] = 1;
}

// 16 channels of keys, whose vectors lie across the rows.
void mark_key_panel(const BlockWork& work, std::size_t head, std::size_t first, std::uint32_t per_end) {
    const float* x = work.x_head(head) + first;
    const auto n = static_cast<std::uint32_t>(std::min<std::size_t>(n_lanes, work.dim() - first));
    float* scratch = work.vectors + head * work.vector_floats;
    double sum[n_lanes] = {};
    Ends ends[n_lanes];
    if (per_end <= most_kept) {
        KeptEnds kept[n_lanes];
        float high[n_lanes], low[n_lanes];
        for (KeptEnds& lane : kept)
            lane.clear(per_end);
        std::fill_n(high, n_lanes, -HUGE_VALF);
        std::fill_n(low, n_lanes, HUGE_VALF);
        for (std::size_t t = 0; t < work.n_tokens(); ++t) {
            const float* row = x + t * work.stride;
            for (std::uint32_t lane = 0; lane < n_lanes; ++lane)
                sum[lane] += static_cast<double>(row[lane]);
            if (!any_beyond(row, high, low)) continue;
            for (std::uint32_t lane = 0; lane < n_lanes; ++lane) {
                kept[lane].offer(row[lane], per_end);
                high[lane] = kept[lane].high.kept[per_end - 1];
                low[lane] = kept[lane].low.kept[per_end - 1];
            }
        }
        for (std::uint32_t lane = 0; lane < n_lanes; ++lane)
            ends[lane] = kept[lane].ends(per_end);
    } else {
        for (std::uint32_t lane = 0; lane < n; ++lane) {
            for (std::size_t t = 0; t < work.n_tokens(); ++t) {
                scratch[t] = x[t * work.stride + lane];
                sum[lane] += static_cast<double>(scratch[t]);
            }
            ends[lane] = find_ends(scratch, work.n_tokens(), per_end);
        }
    }
    float mean[n_lanes];
    for (std::uint32_t lane = 0; lane < n_lanes; ++lane)
        mean[lane] = static_cast<float>(sum[lane] / static_cast<double>(work.n_tokens()));
    for (std::size_t t = 0; t < work.n_tokens(); ++t) {
        for (std::uint32_t lane = 0; lane < n; ++lane) {
            if (ends[lane].take(x[t * work.stride + lane])) replace(work, head, t, first + lane, mean[lane]);
        }
    }
}

// One token of values, over the channels of all heads.
void mark_value_token(const BlockWork& work, std::size_t token, std::uint32_t per_end, float* scratch) {
    const std::size_t dim = work.dim();
    const auto row = [&](std::size_t head) { return work.x_head(head) + token * work.stride; };
    double sum = 0.0;
    Ends ends;
    if (per_end <= most_kept) {
        KeptEnds kept;
        kept.clear(per_end);
        for (std::size_t head = 0; head < work.n_heads(); ++head) {
            for (std::size_t c = 0; c < dim; ++c) {
                sum += static_cast<double>(row(head)[c]);
                kept.offer(row(head)[c], per_end);
            }
        }
        ends = kept.ends(per_end);
    } else {
        for (std::size_t head = 0; head < work.n_heads(); ++head) {
            for (std::size_t c = 0; c < dim; ++c)
                sum += static_cast<double>(scratch[head * dim + c] = row(head)[c]);
        }
        ends = find_ends(scratch, work.n_heads() * dim, per_end);
    }
    const float mean = static_cast<float>(sum / static_cast<double>(work.n_heads() * dim));
    for (std::size_t head = 0; head < work.n_heads(); ++head) {
        for (std::size_t c = 0; c < dim; ++c) {
            if (ends.take(row(head)[c])) replace(work, head, token, c, mean);
        }
    }
}

}  // namespace

void mark_key_outliers(const BlockWork& work, std::size_t head) noexcept {
    const std::uint32_t per_end = outliers_per_end(work.header->sparsity, work.n_tokens());
    if (per_end == 0) return;
    for (std::size_t first = 0; first < work.dim(); first += n_lanes)
        mark_key_panel(work, head, first, per_end);
}

void mark_value_outliers(const BlockWork& work, std::size_t slice) noexcept {
    const std::uint32_t per_end =
        outliers_per_end(work.header->sparsity, work.n_heads() * std::size_t{work.dim()});
    if (per_end == 0) return;
    float* scratch = work.vectors + slice * work.vector_floats;
    for (std::size_t t = slice; t < work.n_tokens(); t += work.n_slices)
        mark_value_token(work, t, per_end, scratch);
}

void count_outliers(const BlockWork& work) noexcept {
    auto* starts = work.part<std::uint32_t>(work.header->outlier_starts);
    std::uint32_t n = 0;
    for (std::size_t head = 0; head < work.n_heads(); ++head) {
        starts[head] = n;
        const std::uint8_t* outlier = work.outlier_head(head);
        n += static_cast<std::uint32_t>(std::count(outlier, outlier + work.n_tokens() * work.stride, 1));
    }
    starts[work.n_heads()] = n;
}

namespace {

// The dense part at one entry, as the decoder sees it.
float dense_value(const BlockWork& work, std::size_t head, std::size_t token, std::size_t channel) {
    const std::uint64_t i = scale_index(*work.header, work.view.sizes, token, channel);
    const std::uint16_t halves[2] = {work.view.scales(head)[i], work.view.zeros(head)[i]};
    float values[2];
    work.kernels->codec.from_half(values, halves, 2);
    const float step = static_cast<float>(work.codes_head(head)[token * work.stride + channel]) * values[0];
    return step + values[1];
}

template <class Index>
void write_entries(const BlockWork& work, std::size_t head) {
    const BlockHeader& header = *work.header;
    std::uint32_t n = work.part<std::uint32_t>(header.outlier_starts)[head];
    Index* counts = work.part<Index>(header.outlier_counts) + head * work.n_tokens();
    Index* channels = work.part<Index>(header.outlier_channels);
    std::uint16_t* values = work.part<std::uint16_t>(header.outlier_values);
    float* missing = work.line(head, 0);
    for (std::size_t t = 0; t < work.n_tokens(); ++t) {
        const std::uint8_t* outlier = work.outlier_head(head) + t * work.stride;
        const float* input = work.row(t, head, work.line(head, 1));
        std::uint32_t n_token = 0;
        for (std::size_t c = 0; c < work.dim(); ++c) {
            if (outlier[c] == 0) continue;
            channels[n + n_token] = static_cast<Index>(c);
            missing[n_token++] = std::clamp(input[c] - dense_value(work, head, t, c), -max_half, max_half);
            work.x_head(head)[t * work.stride + c] = 0.0f;
        }
        work.kernels->codec.to_half(values + n, missing, n_token);
        counts[t] = static_cast<Index>(n_token);
        n += n_token;
    }
}

}  // namespace

void write_outliers(const BlockWork& work, std::size_t head) noexcept {
    if (work.header->index_bytes == 2) {
        write_entries<std::uint16_t>(work, head);
    } else {
        write_entries<std::uint8_t>(work, head);
    }
}

}  // namespace gearkv
