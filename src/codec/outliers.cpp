// S: the k largest and k smallest entries of each vector, kept apart (paper section 3.1).
//
// A vector is one channel of keys over the block's tokens, or one token of values over the channels of all
// heads. Ties go to the lowest index, at both ends.
#include <algorithm>
#include <functional>

#include "codec/work.hpp"

namespace gearkv {
namespace {

constexpr float max_half = 65504.0f;

// Entries beyond `bound` belong to an end; of those equal to it, the first n_ties.
struct End {
    float bound;
    std::uint32_t n_ties;
};

template <class Before>
End find_end(float* scratch, std::size_t length, std::uint32_t per_end, const Before& before) {
    std::nth_element(scratch, scratch + (per_end - 1), scratch + length, before);
    const float bound = scratch[per_end - 1];
    const auto n_beyond =
        std::count_if(scratch, scratch + per_end, [&](float v) { return before(v, bound); });
    return {bound, per_end - static_cast<std::uint32_t>(n_beyond)};
}

// Calls mark(i) for the outliers of values[0, length). scratch holds the same numbers on entry and is
// reordered.
template <class Mark>
void select_outliers(const float* values, float* scratch, std::size_t length, std::uint32_t per_end,
                     const Mark& mark) {
    End high = find_end(scratch, length, per_end, std::greater<float>());
    End low = find_end(scratch, length, per_end, std::less<float>());
    for (std::size_t i = 0; i < length; ++i) {
        const float v = values[i];
        if (v > high.bound || (v == high.bound && high.n_ties > 0)) {
            high.n_ties -= v == high.bound;
            mark(i);
        } else if (v < low.bound || (v == low.bound && low.n_ties > 0)) {
            low.n_ties -= v == low.bound;
            mark(i);
        }
    }
}

// Reads the vector with load(i), marks its outliers and replaces them by the mean with store(i, mean).
template <class Load, class Store>
void replace_outliers(float* values, std::size_t length, std::uint32_t per_end, const Load& load,
                      const Store& store) {
    float* scratch = values + length;
    double sum = 0.0;
    for (std::size_t i = 0; i < length; ++i) {
        values[i] = scratch[i] = load(i);
        sum += values[i];
    }
    const float mean = static_cast<float>(sum / static_cast<double>(length));
    select_outliers(values, scratch, length, per_end, [&](std::size_t i) { store(i, mean); });
}

}  // namespace

void mark_key_outliers(const BlockWork& work, std::size_t head) noexcept {
    const std::uint32_t per_end = outliers_per_end(work.header->sparsity, work.n_tokens());
    if (per_end == 0) return;
    float* values = work.vectors + head * 2 * work.vector_floats;
    float* x = work.x_head(head);
    std::uint8_t* outlier = work.outlier_head(head);
    for (std::size_t channel = 0; channel < work.dim(); ++channel) {
        replace_outliers(
            values, work.n_tokens(), per_end, [&](std::size_t t) { return x[t * work.stride + channel]; },
            [&](std::size_t t, float mean) {
                x[t * work.stride + channel] = mean;
                outlier[t * work.stride + channel] = 1;
            });
    }
}

void mark_value_outliers(const BlockWork& work, std::size_t slice) noexcept {
    const std::size_t dim = work.dim();
    const std::size_t length = work.n_heads() * dim;
    const std::uint32_t per_end = outliers_per_end(work.header->sparsity, length);
    if (per_end == 0) return;
    float* values = work.vectors + slice * 2 * work.vector_floats;
    for (std::size_t t = slice; t < work.n_tokens(); t += work.n_slices) {
        replace_outliers(
            values, length, per_end,
            [&](std::size_t i) { return work.x_head(i / dim)[t * work.stride + i % dim]; },
            [&](std::size_t i, float mean) {
                work.x_head(i / dim)[t * work.stride + i % dim] = mean;
                work.outlier_head(i / dim)[t * work.stride + i % dim] = 1;
            });
    }
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
