// Weighted values of one tile:  w deq(V) + (w A) P^T + w S   (paper section 3.3).
//
// Per-token scales fold into the weights, the zeros into one number for each channel group:
//   sum_t w_t (code_tc scale_t + zero_t) = sum_t (w_t scale_t) code_tc + sum_t w_t zero_t
// w A is gathered over all tiles of a run and multiplied by P once.
#include <algorithm>
#include <cstring>

#include "attention/attend.hpp"
#include "format/built.hpp"
#include "format/trellis.hpp"

namespace gearkv {
namespace {

// Calls body(first, n) for the tokens of the tile that are mixed, in ranges of whole units of `step` tokens.
template <class Body>
void for_mixed(const Tile& tile, std::uint32_t step, const Body& body) {
    const auto is_mixed = [&](std::uint32_t t) {
        const std::uint32_t unit = (1u << step / slice_tokens) - 1;
        return (tile.slices >> t / slice_tokens & unit) != 0;
    };
    for (std::uint32_t t = 0; t < tile.n_tokens;) {
        const std::uint32_t first = t;
        while (t < tile.n_tokens && is_mixed(t))
            t += step;
        if (t > first) body(first, std::min(t, tile.n_tokens) - first);
        t += step;
    }
}

}  // namespace

ValueMixer::ValueMixer(const RowPass& pass, const TensorRun& run) noexcept
    : pass_(pass), run_(run), outliers_(run.block, pass.head) {
    std::fill_n(pass.scratch.along_value, pass.n_rows * max_rank, 0.0f);
    if (run.block.header != nullptr && run.block.trellis()) {
        std::fill_n(pass.scratch.mixed, pass.n_rows * pass.scratch.out_stride, 0.0f);
        std::fill_n(pass.scratch.weight_sum, pass.n_rows, 0.0f);
    }
    if (has_outliers())
        std::fill_n(pass.scratch.outlier_out, pass.dims.value_dim * outlier_lanes(pass.n_rows), 0.0f);
}

void ValueMixer::mix(const Tile& tile) noexcept {
    if (run_.block.header == nullptr) {
        mix_rows(tile);
        return;
    }
    if (run_.block.trellis()) {
        run_.block.kind() == TensorKind::key ? mix_key_section(tile) : mix_section(tile);
        return;
    }
    if constexpr (has_codes) {
        const AttendScratch& s = pass_.scratch;
        mix_codes(tile);
        if (run_.block.header->rank > 0) {
            const RawRows planes = {run_.block.factor_a(pass_.head) + tile.first,
                                    static_cast<std::size_t>(run_.block.sizes.a_stride),
                                    run_.block.header->rank, tile.n_tokens};
            pass_.kernels.attention.score_half(s.along_value, max_rank, planes, s.weights, tile_tokens,
                                               pass_.n_rows);
        }
        if (has_outliers()) {
            pass_.kernels.attention.mix_outliers(
                {outliers_.next_tokens(tile.n_tokens), s.weights, tile_tokens, s.outlier_out, pass_.n_rows});
        }
    }
}

void ValueMixer::mix_rows(const Tile& tile) noexcept {
    const AttendScratch& s = pass_.scratch;
    const auto& attention = pass_.kernels.attention;
    Ahead ahead = tile.value;
    for_mixed(tile, slice_tokens, [&](std::uint32_t first, std::uint32_t n_tokens) {
        const std::size_t at = pass_.head * run_.head_stride + (tile.first + first) * run_.row_stride;
        RawRows rows = {nullptr, run_.row_stride, n_tokens, pass_.dims.value_dim, ahead};
        ahead = {};
        if (run_.is_float) {
            rows.rows = static_cast<const float*>(run_.rows) + at;
            attention.mix_float(s.out, s.out_stride, rows, s.weights + first, tile_tokens, pass_.n_rows);
        } else {
            rows.rows = static_cast<const std::uint16_t*>(run_.rows) + at;
            attention.mix_half(s.out, s.out_stride, rows, s.weights + first, tile_tokens, pass_.n_rows);
        }
    });
}

void ValueMixer::mix_codes(const Tile& tile) noexcept {
    const AttendScratch& s = pass_.scratch;
    const BlockSizes& sizes = run_.block.sizes;
    const BlockHeader& header = *run_.block.header;
    for (std::uint32_t group = 0; group < sizes.n_groups; ++group) {
        const std::uint64_t at = std::uint64_t{group} * header.n_tokens + tile.first;
        const std::uint16_t* scales = run_.block.scales(pass_.head) + at;
        const std::uint16_t* zeros = run_.block.zeros(pass_.head) + at;
        float bias[max_rows];
        pass_.kernels.attention.fold_halves(
            {scales, zeros, tile.n_tokens, s.weights, s.partial, tile_tokens, bias, pass_.n_rows});
        for_mixed(tile, 32, [&](std::uint32_t first, std::uint32_t n_tokens) {
            mix_code_words(tile, group, bias, first, n_tokens);
            std::fill_n(bias, pass_.n_rows, 0.0f);
        });
    }
}

// Tokens [first, first + n_tokens) of the tile, first a multiple of 32.
void ValueMixer::mix_code_words(const Tile& tile, std::uint32_t group, const float* bias, std::uint32_t first,
                                std::uint32_t n_tokens) noexcept {
    const AttendScratch& s = pass_.scratch;
    const BlockSizes& sizes = run_.block.sizes;
    const BlockHeader& header = *run_.block.header;
    const std::uint32_t token = tile.first + first;
    const std::uint64_t word_row = header.bits == 3 ? token / 32 * 3 : token / codes_per_word(header.bits);
    MixCodes args = {};
    args.words = run_.block.codes(pass_.head) + word_row * sizes.n_lanes;
    args.n_tokens = n_tokens;
    args.n_lanes = static_cast<std::uint32_t>(sizes.n_lanes);
    args.first_channel = group * sizes.group_channels;
    args.n_channels = std::min(sizes.group_channels, header.dim - args.first_channel);
    args.weight = s.partial + first;
    args.weight_stride = tile_tokens;
    args.out = s.out;
    args.out_stride = s.out_stride;
    args.bias = bias;
    args.n_rows = pass_.n_rows;
    args.ahead = piece_of(tile.value, group, sizes.n_groups);
    pass_.kernels.attention.mix_codes[bits_slot(header.bits)](args);
}

void ValueMixer::rescale(std::uint32_t row, float alpha) noexcept {
    const AttendScratch& s = pass_.scratch;
    pass_.kernels.attention.scale(s.out + row * s.out_stride, alpha, s.out_stride);
    if (run_.block.header != nullptr && run_.block.trellis()) {
        pass_.kernels.attention.scale(s.mixed + row * s.out_stride, alpha, s.out_stride);
        s.weight_sum[row] *= alpha;
    }
    const std::uint32_t rank = run_.block.header == nullptr ? 0 : run_.block.header->rank;
    for (std::uint32_t r = 0; r < rank; ++r)
        s.along_value[row * max_rank + r] *= alpha;
    if (!has_outliers()) return;
    for (std::uint32_t c = 0; c < pass_.dims.value_dim; ++c)
        s.outlier_out[c * outlier_lanes(pass_.n_rows) + row] *= alpha;
}

void ValueMixer::finish() noexcept {
    if (run_.block.header == nullptr) return;
    if (run_.block.trellis()) {
        finish_sections();
        return;
    }
    const AttendScratch& s = pass_.scratch;
    if (has_outliers()) {
        const std::uint32_t n_lanes = outlier_lanes(pass_.n_rows);
        for (std::uint32_t row = 0; row < pass_.n_rows; ++row) {
            for (std::uint32_t c = 0; c < pass_.dims.value_dim; ++c)
                s.out[row * s.out_stride + c] += s.outlier_out[c * n_lanes + row];
        }
    }
    for (std::uint32_t r = 0; r < run_.block.header->rank; ++r) {
        const std::uint16_t* p = run_.block.factor_p(pass_.head) + std::uint64_t{r} * pass_.dims.value_dim;
        for (std::uint32_t row = 0; row < pass_.n_rows; ++row) {
            pass_.kernels.attention.add_half(s.out + row * s.out_stride, p, s.along_value[row * max_rank + r],
                                             pass_.dims.value_dim);
        }
    }
}

// One section of a trellis block:  S_c sum_t (w_t gain_t) level_tc, still rotated. What the mean counts is
// gathered beside it: sum_t w_t gain_t, in version 1 sum_t w_t.
void ValueMixer::mix_section(const Tile& tile) noexcept {
    const AttendScratch& s = pass_.scratch;
    const std::uint32_t index = tile.first / section_tokens;
    const std::uint32_t dim = pass_.dims.value_dim;
    const auto n_granules = static_cast<std::uint32_t>(ceil_div(dim, value_granule));
    const SectionLayout at = section_layout(TensorKind::value, dim);
    const unsigned char* side = run_.block.section(pass_.head, index);
    std::int16_t base;
    std::memcpy(&base, side + at.base, sizeof(base));
    std::uint8_t widths[round_up(max_dim / value_granule, 8)];
    read_nibbles(widths, side + at.widths, n_granules);
    const std::uint16_t version = run_.block.header->version;
    pass_.kernels.attention.fold_weights({side + at.gains, gains_of(gain_origin(side, version)), version > 1,
                                          s.weights, s.partial, tile_tokens, s.weight_sum, pass_.n_rows});
    float sums[max_rows * max_dim];
    const std::size_t stride = s.out_stride;
    pass_.kernels.attention.mix_trellis({run_.block.section_codes(pass_.head, index), widths, n_granules,
                                         s.partial, tile_tokens, sums, stride, pass_.n_rows, tile.value,
                                         tile.slices});
    pass_.kernels.attention.add_scaled({side + at.scales, base, dim, sums, s.mixed, stride, pass_.n_rows});
}

// The same of latents, which are stored as keys, in their order:
//   S_c (sum_t w_t level_tc + (zero_c / S_c) sum_t w_t)
void ValueMixer::mix_key_section(const Tile& tile) noexcept {
    const AttendScratch& s = pass_.scratch;
    const std::uint32_t index = tile.first / section_tokens;
    const std::uint32_t dim = pass_.dims.value_dim;
    const SectionLayout at = section_layout(TensorKind::key, dim);
    const unsigned char* side = run_.block.section(pass_.head, index);
    std::int16_t base;
    std::memcpy(&base, side + at.base, sizeof(base));
    std::uint8_t widths[round_up(max_dim / key_granule, 8)];
    read_nibbles(widths, side + at.widths, dim / key_granule);
    float sums[max_rows * max_dim];
    const std::size_t stride = s.out_stride;
    pass_.kernels.attention.mix_keys({run_.block.section_codes(pass_.head, index),
                                      widths,
                                      dim / key_granule,
                                      s.weights,
                                      tile_tokens,
                                      sums,
                                      stride,
                                      pass_.n_rows,
                                      {}});
    float zeros[max_dim];
    const auto* zero_codes = reinterpret_cast<const std::int8_t*>(side + at.zeros);
    for (std::uint32_t c = 0; c < dim; ++c)
        zeros[c] = static_cast<float>(zero_codes[c]) * zero_unit(widths[c / key_granule]);
    for (std::uint32_t row = 0; row < pass_.n_rows; ++row) {
        const float* weights = s.weights + row * tile_tokens;
        float parts[16] = {};
        for (std::uint32_t t = 0; t < tile_tokens; ++t)
            parts[t % 16] += weights[t];
        float sum = 0.0f;
        for (const float part : parts)
            sum += part;
        for (std::uint32_t c = 0; c < dim; ++c)
            sums[row * stride + c] += sum * zeros[c];
        s.weight_sum[row] += sum;
    }
    pass_.kernels.attention.add_scaled({side + at.scales, base, dim, sums, s.mixed, stride, pass_.n_rows});
}

// Turns the run's values back and adds the mean that every token carries by its gain. Latents are brought
// back into the order of their channels.
void ValueMixer::finish_sections() noexcept {
    const AttendScratch& s = pass_.scratch;
    const TrellisProfile profile = trellis_profile(run_.block, pass_.head);
    const bool is_key = run_.block.kind() == TensorKind::key;
    if (!is_key) pass_.kernels.codec.rotate_rows(s.mixed, s.out_stride, pass_.n_rows, pass_.dims.value_dim);
    for (std::uint32_t row = 0; row < pass_.n_rows; ++row) {
        float* mixed = s.mixed + row * s.out_stride;
        float* out = s.out + row * s.out_stride;
        for (std::uint32_t c = 0; c < pass_.dims.value_dim; ++c)
            out[is_key ? profile.order[c] : c] += mixed[c];
        pass_.kernels.attention.add_half(out, profile.mean, s.weight_sum[row], pass_.dims.value_dim);
    }
}

}  // namespace gearkv
