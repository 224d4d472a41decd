// Q: the dense backbones (paper section 3.1; KIVI, KCVT, per-token).
//
// x' = code * scale + zero with zero = min and scale = (max - min) / (2^b - 1), both rounded to fp16 before
// the codes are chosen, so that each code is the best one for what the decoder will see.
#include <algorithm>

#include "codec/work.hpp"

namespace gearkv {
namespace {

// One token slice or token group: rounds the ranges lo, hi of n groups to stored scales and zeros.
// lo and hi become zero and scale as the decoder sees them.
void round_scales(const BlockWork& work, float* lo, float* hi, std::size_t n, std::uint16_t* scales,
                  std::uint16_t* zeros) {
    const float max_code = work.max_code();
    for (std::size_t i = 0; i < n; ++i)
        hi[i] = (hi[i] - lo[i]) / max_code;
    work.kernels->codec.to_half(zeros, lo, n);
    work.kernels->codec.to_half(scales, hi, n);
    work.kernels->codec.from_half(lo, zeros, n);
    work.kernels->codec.from_half(hi, scales, n);
}

// Keys per channel: one scale for each channel and group of tokens.
void quantize_channel_groups(const BlockWork& work, std::size_t head) {
    const BlockSizes& sizes = work.view.sizes;
    const std::size_t dim = work.dim();
    float* lo = work.line(head, 0);
    float* hi = work.line(head, 1);
    auto* scales = const_cast<std::uint16_t*>(work.view.scales(static_cast<std::uint32_t>(head)));
    auto* zeros = const_cast<std::uint16_t*>(work.view.zeros(static_cast<std::uint32_t>(head)));
    for (std::size_t group = 0; group < sizes.n_groups; ++group) {
        const std::size_t first = group * sizes.group_tokens;
        const std::size_t n = std::min<std::size_t>(sizes.group_tokens, work.n_tokens() - first);
        float* x = work.x_head(head) + first * work.stride;
        work.kernels->codec.column_range(lo, hi, x, work.stride, n, dim);
        round_scales(work, lo, hi, dim, scales + group * dim, zeros + group * dim);
        std::fill(lo + dim, lo + work.stride, 0.0f);
        std::fill(hi + dim, hi + work.stride, 0.0f);
        work.kernels->codec.quantize_columns(work.codes_head(head) + first * work.stride, x, work.stride, n,
                                             dim, hi, lo, work.max_code());
    }
}

// One scale for each token and group of channels; with shared scales they are chosen already.
void quantize_token_groups(const BlockWork& work, std::size_t head) {
    const BlockSizes& sizes = work.view.sizes;
    const auto& kernels = work.kernels->codec;
    float* lo = work.line(head, 0);
    float* hi = work.line(head, 1);
    auto* scales = const_cast<std::uint16_t*>(work.view.scales(static_cast<std::uint32_t>(head)));
    auto* zeros = const_cast<std::uint16_t*>(work.view.zeros(static_cast<std::uint32_t>(head)));
    // The groups of a token are rounded together: one call for each would cost as much as their codes.
    std::uint16_t token_scales[max_dim], token_zeros[max_dim];
    for (std::size_t t = 0; t < work.n_tokens(); ++t) {
        float* x = work.x_head(head) + t * work.stride;
        std::uint8_t* codes = work.codes_head(head) + t * work.stride;
        const auto for_groups = [&](const auto& body) {
            for (std::size_t group = 0; group < sizes.n_groups; ++group) {
                const std::size_t first = group * sizes.group_channels;
                body(group, first, std::min<std::size_t>(sizes.group_channels, work.dim() - first));
            }
        };
        if (sizes.shared_scales) {
            kernels.from_half(lo, zeros + t, 1);
            kernels.from_half(hi, scales + t, 1);
        } else {
            for_groups([&](std::size_t group, std::size_t first, std::size_t n) {
                kernels.row_range(lo + group, hi + group, x + first, n);
            });
            round_scales(work, lo, hi, sizes.n_groups, token_scales, token_zeros);
            for (std::size_t group = 0; group < sizes.n_groups; ++group) {
                scales[group * work.n_tokens() + t] = token_scales[group];
                zeros[group * work.n_tokens() + t] = token_zeros[group];
            }
        }
        for_groups([&](std::size_t group, std::size_t first, std::size_t n) {
            kernels.quantize_row(codes + first, x + first, n, hi[group], lo[group], work.max_code());
        });
    }
}

}  // namespace

void choose_shared_scales(const BlockWork& work, std::size_t slice) noexcept {
    auto* scales = work.part<std::uint16_t>(work.header->scales);
    auto* zeros = work.part<std::uint16_t>(work.header->zeros);
    for (std::size_t t = slice; t < work.n_tokens(); t += work.n_slices) {
        float lo = 0.0f, hi = 0.0f;
        for (std::size_t head = 0; head < work.n_heads(); ++head) {
            float head_lo, head_hi;
            work.kernels->codec.row_range(&head_lo, &head_hi, work.x_head(head) + t * work.stride,
                                          work.dim());
            lo = head == 0 ? head_lo : std::min(lo, head_lo);
            hi = head == 0 ? head_hi : std::max(hi, head_hi);
        }
        round_scales(work, &lo, &hi, 1, scales + t, zeros + t);
    }
}

void quantize_head(const BlockWork& work, std::size_t head) noexcept {
    if (work.view.sizes.token_scales) {
        quantize_token_groups(work, head);
    } else {
        quantize_channel_groups(work, head);
    }
    const auto slot = bits_slot(work.header->bits);
    const auto& codec = work.kernels->codec;
    const auto pack = work.keys() ? codec.pack_key[slot] : codec.pack_value[slot];
    pack(const_cast<std::uint32_t*>(work.view.codes(static_cast<std::uint32_t>(head))), work.codes_head(head),
         work.stride, work.n_tokens(), work.dim());
}

}  // namespace gearkv
