// Scores of one tile of keys:  q deq(K)^T + (q P) A^T + q S^T   (paper section 3.3).
//
// Per-channel scales fold into the query once per token group, and the zeros into one number:
//   sum_c q_c (code_tc scale_c + zero_c) = sum_c (q_c scale_c) code_tc + sum_c q_c zero_c
// Per-token scales are applied to the sums of each channel group:
//   sum_c q_c (code_tc scale_t + zero_t) = scale_t sum_c q_c code_tc + zero_t sum_c q_c
#include <algorithm>
#include <cstring>

#include "attention/attend.hpp"
#include "format/built.hpp"
#include "format/trellis.hpp"

namespace gearkv {

KeyScorer::KeyScorer(const RowPass& pass, const TensorRun& run, const QueryScratch& queries,
                     bool adds) noexcept
    : pass_(pass), run_(run), queries_(queries), adds_(adds), outliers_(run.block, pass.head) {
    if (run.block.header == nullptr) return;
    if (run.block.trellis()) order_query();
    if constexpr (!has_codes) return;
    const std::uint32_t rank = run.block.header->rank;
    const AttendScratch& s = pass.scratch;
    for (std::uint32_t row = 0; row < pass.n_rows; ++row) {
        const float* query = queries.query + row * queries.stride;
        for (std::uint32_t r = 0; r < rank; ++r) {
            const std::uint16_t* p = run.block.factor_p(pass.head) + std::uint64_t{r} * queries.dim;
            s.along_key[row * max_rank + r] = pass.kernels.attention.dot_half(query, p, queries.dim);
        }
    }
}

void KeyScorer::score(const Tile& tile) noexcept {
    const AttendScratch& s = pass_.scratch;
    if (run_.block.header == nullptr) {
        if (!adds_) std::fill_n(s.scores, pass_.n_rows * tile_tokens, 0.0f);
        score_rows(tile);
        return;
    }
    if (run_.block.trellis()) {
        score_section(tile);
        return;
    }
    if constexpr (has_codes) {
        if (run_.block.sizes.token_scales) {
            score_token_scales(tile);
        } else {
            score_channel_scales(tile);
        }
        if (run_.block.header->rank > 0) add_low_rank(tile);
        if (has_outliers()) {
            pass_.kernels.attention.score_outliers(
                {outliers_.next_tokens(tile.n_tokens), s.query_rows, s.scores, tile_tokens, pass_.n_rows});
        }
    }
}

void KeyScorer::score_rows(const Tile& tile) noexcept {
    const AttendScratch& s = pass_.scratch;
    const std::size_t at = pass_.head * run_.head_stride + tile.first * run_.row_stride;
    RawRows rows = {nullptr, run_.row_stride, tile.n_tokens, queries_.dim, tile.key};
    const auto& attention = pass_.kernels.attention;
    if (run_.is_float) {
        rows.rows = static_cast<const float*>(run_.rows) + at;
        attention.score_float(s.scores, tile_tokens, rows, queries_.query, queries_.stride, pass_.n_rows);
    } else {
        rows.rows = static_cast<const std::uint16_t*>(run_.rows) + at;
        attention.score_half(s.scores, tile_tokens, rows, queries_.query, queries_.stride, pass_.n_rows);
    }
}

void KeyScorer::fold_group(std::uint32_t group) noexcept {
    if (group == folded_group_) return;
    folded_group_ = group;
    const std::uint64_t at = std::uint64_t{group} * queries_.dim;
    const std::uint16_t* scales = run_.block.scales(pass_.head) + at;
    const std::uint16_t* zeros = run_.block.zeros(pass_.head) + at;
    pass_.kernels.attention.fold_halves(
        {scales, zeros, queries_.dim, queries_.query, queries_.folded, queries_.stride, bias_, pass_.n_rows});
}

void KeyScorer::score_channel_scales(const Tile& tile) noexcept {
    const AttendScratch& s = pass_.scratch;
    const BlockSizes& sizes = run_.block.sizes;
    const BlockHeader& header = *run_.block.header;
    const std::uint32_t end = tile.first + tile.n_tokens;
    for (std::uint32_t t = tile.first; t < end;) {
        const std::uint32_t group = t / sizes.group_tokens;
        const std::uint32_t n = std::min(end, (group + 1) * sizes.group_tokens) - t;
        fold_group(group);
        ScoreCodes args = {};
        args.words = run_.block.codes(pass_.head) + t / 16 * sizes.tile_words;
        args.tile_words = sizes.tile_words;
        args.n_tiles = static_cast<std::uint32_t>(ceil_div(n, 16));
        args.n_channels = header.dim;
        args.dim = header.dim;
        args.query = queries_.folded;
        args.query_stride = queries_.stride;
        args.scores = s.scores + (t - tile.first);
        args.score_stride = tile_tokens;
        args.bias = bias_;
        args.n_rows = pass_.n_rows;
        const std::size_t n_calls = ceil_div(tile.n_tokens, sizes.group_tokens);
        args.ahead = piece_of(tile.key, (t - tile.first) / sizes.group_tokens, n_calls);
        pass_.kernels.attention.score_codes[bits_slot(header.bits)](args);
        t += n;
    }
}

void KeyScorer::score_token_scales(const Tile& tile) noexcept {
    const AttendScratch& s = pass_.scratch;
    const BlockSizes& sizes = run_.block.sizes;
    const BlockHeader& header = *run_.block.header;
    const auto& attention = pass_.kernels.attention;
    static constexpr float no_bias[max_rows] = {};
    std::fill_n(s.scores, pass_.n_rows * tile_tokens, 0.0f);
    for (std::uint32_t group = 0; group < sizes.n_groups; ++group) {
        const std::uint32_t first = group * sizes.group_channels;
        const std::uint32_t n = std::min(sizes.group_channels, header.dim - first);
        ScoreCodes args = {};
        args.words = run_.block.codes(pass_.head) + tile.first / 16 * sizes.tile_words;
        args.tile_words = sizes.tile_words;
        args.n_tiles = static_cast<std::uint32_t>(ceil_div(tile.n_tokens, 16));
        args.first_channel = first;
        args.n_channels = n;
        args.dim = header.dim;
        args.query = queries_.query + first;
        args.query_stride = queries_.stride;
        args.scores = s.partial;
        args.score_stride = tile_tokens;
        args.bias = no_bias;
        args.n_rows = pass_.n_rows;
        args.ahead = piece_of(tile.key, group, sizes.n_groups);
        attention.score_codes[bits_slot(header.bits)](args);
        const std::uint64_t at = std::uint64_t{group} * header.n_tokens + tile.first;
        const std::uint16_t* scales = run_.block.scales(pass_.head) + at;
        const std::uint16_t* zeros = run_.block.zeros(pass_.head) + at;
        for (std::uint32_t row = 0; row < pass_.n_rows; ++row) {
            const float* query = queries_.query + row * queries_.stride + first;
            float sum = 0.0f;
            for (std::uint32_t c = 0; c < n; ++c)
                sum += query[c];
            float* partial = s.partial + row * tile_tokens;
            float* scores = s.scores + row * tile_tokens;
            attention.scale_half(partial, partial, scales, tile.n_tokens);
            attention.add_half(scores, zeros, sum, tile.n_tokens);
            for (std::uint32_t i = 0; i < tile.n_tokens; ++i)
                scores[i] += partial[i];
        }
    }
}

// The planes of A are rows of tokens.
void KeyScorer::add_low_rank(const Tile& tile) noexcept {
    const AttendScratch& s = pass_.scratch;
    const RawRows planes = {run_.block.factor_a(pass_.head) + tile.first,
                            static_cast<std::size_t>(run_.block.sizes.a_stride), run_.block.header->rank,
                            tile.n_tokens};
    pass_.kernels.attention.mix_half(s.scores, tile_tokens, planes, s.along_key, max_rank, pass_.n_rows);
}

// What all sections of a run share.
void KeyScorer::order_query() noexcept {
    const TrellisProfile profile = trellis_profile(run_.block, pass_.head);
    static constexpr float nothing[max_dim] = {};
    static_assert(max_dim % lane_tile == 0);
    std::uint16_t order[max_dim];
    std::fill(std::copy_n(profile.order, queries_.dim, order), order + round_up(queries_.dim, lane_tile),
              std::uint16_t{0});
    for (std::uint32_t row = 0; row < pass_.n_rows; ++row) {
        const float* query = queries_.query + row * queries_.stride;
        float* ordered = queries_.ordered + row * queries_.stride;
        pass_.kernels.codec.order_row(ordered, query, order, nothing, queries_.dim);
        std::fill(ordered + queries_.dim, ordered + queries_.stride, 0.0f);
        bias_[row] = pass_.kernels.attention.dot_half(query, profile.mean, queries_.dim);
    }
}

// Scales and zeros of a section, to be folded into the ordered queries; bias starts with that of the means.
FoldKeys KeyScorer::fold_of(std::uint32_t section, float* bias) const noexcept {
    const SectionLayout at = section_layout(TensorKind::key, queries_.dim);
    const unsigned char* side = run_.block.section(pass_.head, section);
    std::int16_t base;
    std::memcpy(&base, side + at.base, sizeof(base));
    std::copy_n(bias_, pass_.n_rows, bias);
    FoldKeys fold = {};
    fold.scales = side + at.scales;
    fold.zeros = reinterpret_cast<const std::int8_t*>(side + at.zeros);
    fold.widths = side + at.widths;
    fold.base = base;
    fold.dim = queries_.dim;
    fold.query = queries_.ordered;
    fold.folded = queries_.folded;
    fold.query_stride = queries_.stride;
    fold.bias = bias;
    fold.n_rows = pass_.n_rows;
    return fold;
}

void KeyScorer::estimate(std::uint32_t first, std::uint32_t n, float* mean, float* spread,
                         std::size_t stride) const noexcept {
    for (std::uint32_t row = 0; row < pass_.n_rows; ++row) {
        for (std::uint32_t i = 0; i < n; ++i)
            mean[row * stride + i] += bias_[row];
    }
    pass_.kernels.attention.estimate_keys({run_.block.section(pass_.head, first),
                                           run_.block.sizes.section_bytes, n, queries_.dim, queries_.ordered,
                                           queries_.stride, mean, spread, stride, pass_.n_rows});
}

void RunScorer::estimate(std::uint32_t first, std::uint32_t n, float* mean, float* spread,
                         std::size_t stride) const noexcept {
    for (std::uint32_t row = 0; row < n_rows_; ++row) {
        std::fill_n(mean + row * stride, n, 0.0f);
        std::fill_n(spread + row * stride, n, 0.0f);
    }
    keys_.estimate(first, n, mean, spread, stride);
    if (latents_) latents_->estimate(first, n, mean, spread, stride);
}

// One section of a trellis block:  sum_c (q_c S_c) level_tc + sum_c q_c (zero_c + mean_c), channels in stored
// order.
void KeyScorer::score_section(const Tile& tile) noexcept {
    const AttendScratch& s = pass_.scratch;
    const std::uint32_t index = tile.first / section_tokens;
    const std::uint32_t dim = queries_.dim;
    float bias[max_rows];
    const FoldKeys fold = fold_of(index, bias);
    std::uint8_t widths[round_up(max_dim / key_granule, 8)];
    read_nibbles(widths, fold.widths, dim / key_granule);
    pass_.kernels.attention.fold_keys(fold);
    for (std::uint32_t row = 0; row < pass_.n_rows; ++row) {
        float* scores = s.scores + row * tile_tokens;
        for (std::uint32_t t = 0; t < tile_tokens; ++t)
            scores[t] = (adds_ ? scores[t] : 0.0f) + bias[row];
    }
    const std::uint32_t* words = run_.block.section_codes(pass_.head, index);
    pass_.kernels.attention.score_trellis({words, widths, dim / key_granule, queries_.folded, queries_.stride,
                                           s.scores, tile_tokens, pass_.n_rows, tile.key, tile.also});
}

}  // namespace gearkv
