// S: the k largest and k smallest entries of each vector, kept apart (paper section 3.1).
//
// A vector is one channel of keys over the block's tokens, or one token of values over the channels of all
// heads. Ties go to the lowest index, at both ends.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
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

// ---- few outliers ----
// Entries fall into groups. The k largest of the groups' largest are k entries, so the k largest of all are
// not below the least of them: few entries reach that bound, and these are kept in order.

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

// Bounds that at least per_end entries reach, from the largest and smallest of n groups that lie `step`
// apart.
void find_bounds(const float* highs, const float* lows, std::uint32_t n, std::uint32_t step,
                 std::uint32_t per_end, float* high, float* low) {
    KeptEnds kept;
    kept.clear(per_end);
    for (std::uint32_t g = 0; g < n; ++g) {
        kept.high.offer(highs[g * step], per_end);
        kept.low.offer(lows[g * step], per_end);
    }
    *high = kept.high.kept[per_end - 1];
    *low = kept.low.kept[per_end - 1];
}

// Calls visit(row, lane) for the entries of n rows of 16 that reach their bounds, in order.
template <class Visit>
void visit_reaching(const CodecKernels& kernels, const float* x, std::size_t stride, std::size_t n,
                    const float* high, const float* low, const Visit& visit) {
    constexpr std::size_t at_once = 64;
    std::uint16_t reaching[at_once];
    for (std::size_t first = 0; first < n; first += at_once) {
        const std::size_t n_rows = std::min(at_once, n - first);
        kernels.find_reaching(reaching, x + first * stride, stride, n_rows, high, low);
        for (std::size_t i = 0; i < n_rows; ++i) {
            for (std::uint32_t bits = reaching[i]; bits != 0; bits &= bits - 1)
                visit(first + i, static_cast<std::uint32_t>(std::countr_zero(bits)));
        }
    }
}

void add_rows(double* __restrict sum, const float* x, std::size_t stride, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        for (std::uint32_t lane = 0; lane < n_lanes; ++lane)
            sum[lane] += static_cast<double>(x[i * stride + lane]);
    }
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

// 16 channels of keys, whose vectors lie across the rows. Lanes beyond the channels hold zeros.
void mark_key_panel(const BlockWork& work, std::size_t head, std::size_t first, std::uint32_t per_end) {
    const CodecKernels& kernels = work.kernels->codec;
    const float* x = work.x_head(head) + first;
    const std::size_t n_tokens = work.n_tokens();
    const auto n = static_cast<std::uint32_t>(std::min<std::size_t>(n_lanes, work.dim() - first));
    double sum[n_lanes] = {};
    Ends ends[n_lanes];
    float high[n_lanes], low[n_lanes];
    add_rows(sum, x, work.stride, n_tokens);
    if (per_end <= most_kept) {
        float highs[most_kept * n_lanes], lows[most_kept * n_lanes];
        std::fill_n(highs, most_kept * n_lanes, -HUGE_VALF);
        std::fill_n(lows, most_kept * n_lanes, HUGE_VALF);
        kernels.group_ends(highs, lows, most_kept, x, work.stride, n_tokens);
        KeptEnds kept[n_lanes];
        for (std::uint32_t lane = 0; lane < n_lanes; ++lane) {
            find_bounds(highs + lane, lows + lane, most_kept, n_lanes, per_end, high + lane, low + lane);
            kept[lane].clear(per_end);
        }
        visit_reaching(kernels, x, work.stride, n_tokens, high, low, [&](std::size_t t, std::uint32_t lane) {
            kept[lane].offer(x[t * work.stride + lane], per_end);
        });
        for (std::uint32_t lane = 0; lane < n; ++lane)
            ends[lane] = kept[lane].ends(per_end);
    } else {
        float* scratch = work.vectors + head * work.vector_floats;
        for (std::uint32_t lane = 0; lane < n; ++lane) {
            for (std::size_t t = 0; t < n_tokens; ++t)
                scratch[t] = x[t * work.stride + lane];
            ends[lane] = find_ends(scratch, n_tokens, per_end);
        }
    }
    float mean[n_lanes];
    for (std::uint32_t lane = 0; lane < n_lanes; ++lane) {
        mean[lane] = static_cast<float>(sum[lane] / static_cast<double>(n_tokens));
        high[lane] = lane < n ? ends[lane].high.bound : HUGE_VALF;
        low[lane] = lane < n ? ends[lane].low.bound : -HUGE_VALF;
    }
    visit_reaching(kernels, x, work.stride, n_tokens, high, low, [&](std::size_t t, std::uint32_t lane) {
        if (ends[lane].take(x[t * work.stride + lane])) replace(work, head, t, first + lane, mean[lane]);
    });
}

// One token of values, over the channels of all heads.
void mark_value_token(const BlockWork& work, std::size_t token, std::uint32_t per_end, float* scratch) {
    const CodecKernels& kernels = work.kernels->codec;
    const std::size_t dim = work.dim(), n_rows = dim / n_lanes;  // whole rows of 16 of a head
    const auto row = [&](std::size_t head) { return work.x_head(head) + token * work.stride; };
    float high[n_lanes], low[n_lanes];
    // Calls visit(head, channel) for the entries that reach high and low, in order.
    const auto visit_all = [&](const auto& visit) {
        for (std::size_t head = 0; head < work.n_heads(); ++head) {
            visit_reaching(kernels, row(head), n_lanes, n_rows, high, low,
                           [&](std::size_t i, std::uint32_t lane) { visit(head, i * n_lanes + lane); });
            for (std::size_t c = n_rows * n_lanes; c < dim; ++c) {
                if (row(head)[c] >= high[0] || row(head)[c] <= low[0]) visit(head, c);
            }
        }
    };
    double sums[n_lanes] = {};
    for (std::size_t head = 0; head < work.n_heads(); ++head) {
        add_rows(sums, row(head), n_lanes, n_rows);
        for (std::size_t c = n_rows * n_lanes; c < dim; ++c)
            sums[c % n_lanes] += static_cast<double>(row(head)[c]);
    }
    double sum = 0.0;
    for (const double part : sums)
        sum += part;
    Ends ends;
    if (per_end <= most_kept) {
        constexpr std::uint32_t n_groups = 4 * n_lanes;
        float highs[n_groups], lows[n_groups];
        std::fill_n(highs, n_groups, -HUGE_VALF);
        std::fill_n(lows, n_groups, HUGE_VALF);
        for (std::size_t head = 0; head < work.n_heads(); ++head) {
            kernels.group_ends(highs, lows, n_groups / n_lanes, row(head), n_lanes, n_rows);
            for (std::size_t c = n_rows * n_lanes; c < dim; ++c) {
                highs[c % n_groups] = std::max(highs[c % n_groups], row(head)[c]);
                lows[c % n_groups] = std::min(lows[c % n_groups], row(head)[c]);
            }
        }
        find_bounds(highs, lows, n_groups, 1, per_end, high, low);
        std::fill_n(high, n_lanes, high[0]);
        std::fill_n(low, n_lanes, low[0]);
        KeptEnds kept;
        kept.clear(per_end);
        visit_all([&](std::size_t head, std::size_t c) { kept.offer(row(head)[c], per_end); });
        ends = kept.ends(per_end);
    } else {
        for (std::size_t head = 0; head < work.n_heads(); ++head)
            std::copy_n(row(head), dim, scratch + head * dim);
        ends = find_ends(scratch, work.n_heads() * dim, per_end);
    }
    const float mean = static_cast<float>(sum / static_cast<double>(work.n_heads() * dim));
    std::fill_n(high, n_lanes, ends.high.bound);
    std::fill_n(low, n_lanes, ends.low.bound);
    visit_all([&](std::size_t head, std::size_t c) {
        if (ends.take(row(head)[c])) replace(work, head, token, c, mean);
    });
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

void count_outliers(const BlockWork& work, std::size_t head) noexcept {
    const std::uint8_t* outlier = work.outlier_head(head);
    std::uint64_t n = 0;  // marks are 0 or 1, rows of 16
    for (std::size_t first = 0; first < work.n_tokens() * work.stride; first += 8) {
        std::uint64_t marks;
        std::memcpy(&marks, outlier + first, sizeof(marks));
        n += marks * 0x0101010101010101u >> 56;
    }
    work.part<std::uint32_t>(work.header->outlier_starts)[head + 1] = static_cast<std::uint32_t>(n);
}

void number_outliers(const BlockWork& work) noexcept {
    auto* starts = work.part<std::uint32_t>(work.header->outlier_starts);
    for (std::size_t head = 0; head < work.n_heads(); ++head)
        starts[head + 1] += starts[head];
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
        for (std::size_t first = 0; first < work.dim(); first += 8) {  // dim is a multiple of 8
            std::uint64_t marks;
            std::memcpy(&marks, outlier + first, sizeof(marks));
            for (; marks != 0; marks &= marks - 1) {
                const std::size_t c = first + static_cast<std::size_t>(std::countr_zero(marks)) / 8;
                channels[n + n_token] = static_cast<Index>(c);
                missing[n_token++] =
                    std::clamp(input[c] - dense_value(work, head, t, c), -max_half, max_half);
                work.x_head(head)[t * work.stride + c] = 0.0f;
            }
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
