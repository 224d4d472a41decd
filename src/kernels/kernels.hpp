// One struct of typed function pointers per kernel family, filled once per level by the files of arch/.
//
// Kernels take raw pointers and sizes, allocate nothing and check nothing. They never read or write outside
// the arrays as described; all float arrays they are given may be unaligned unless said otherwise. "padded to
// N" means that the array is ours, has round_up(n, N) entries, and that the surplus may be read and written.
// Each slot has a reference in arch/scalar and is compared with it at every level in tests/kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format/built.hpp"
#include "gearkv/cpu.hpp"

namespace gearkv {

inline constexpr std::uint32_t lane_tile = 16;     // lanes of one tile of code words
inline constexpr std::uint32_t max_rows = 8;       // query rows that share one unpack
inline constexpr std::uint32_t tile_tokens = 128;  // tokens attended between two softmax updates

// Index of a code width in the kernel tables: 2, 3, 4, 8 bits -> 0, 1, 2, 3.
constexpr std::uint32_t bits_slot(std::uint32_t bits) {
    return bits == 8 ? 3 : bits - 2;
}

// ---- codec ----
// Rows are [n_rows, row_stride] floats with n_cols used, n_cols padded to 16 (stride >= padded n_cols).
// 128 tokens of 16 channels, in units of the levels. Ties go to the lower level and to path bit history 0.
struct EncodeTrellis {
    const float* x;             // [128][16], finite, at most 1e18 in magnitude
    const std::int8_t* levels;  // [2^(width+1)] sorted; null for the uniform levels 2 j - (2^(width+1) - 1)
    std::uint32_t width;        // [2, 6]
    std::uint8_t* codes;        // [128][16] out: free bits << 1 | path bit
    std::int8_t* chosen;        // [128][16] out: the level of each entry
    void* scratch;              // encode_scratch_bytes, 64-byte aligned
};
inline constexpr std::size_t encode_scratch_bytes = 128 * 16 * 4;

// A panel: 16 channels of the 128 tokens of a section, rows of `stride` floats. Products and sums are rounded
// apart and sums go along the tokens, so that every level has the same bits.
struct Panel {
    const float* x;  // [128][stride], 16 channels
    std::size_t stride;
    const float* token_factor;  // [128]
};

struct CodecKernels {
    // Largest |x| of n floats as a finite number, or +Inf when any is NaN or Inf.
    float (*max_abs)(const float* x, std::size_t n);

    // Per column: smallest and largest of n_rows >= 1 rows, a zero without its sign. lo and hi are padded to
    // 16.
    void (*column_range)(float* lo, float* hi, const float* x, std::size_t row_stride, std::size_t n_rows,
                         std::size_t n_cols);
    // Smallest and largest of n >= 1 floats, a zero without its sign.
    void (*row_range)(float* lo, float* hi, const float* x, std::size_t n);

    // Per column: codes[r][c] = clamp(round_half_even((x[r][c] - zero[c]) / scale[c]), 0, max_code), or 0
    // where scale[c] == 0; then x[r][c] -= codes[r][c] * scale[c] + zero[c] (product and sum rounded apart).
    // scale and zero are padded to 16; codes have the row stride of x, in bytes, and are padded as x is.
    void (*quantize_columns)(std::uint8_t* codes, float* x, std::size_t row_stride, std::size_t n_rows,
                             std::size_t n_cols, const float* scale, const float* zero, float max_code);
    // The same with one scale and zero for n consecutive floats of a row.
    void (*quantize_row)(std::uint8_t* codes, float* x, std::size_t n, float scale, float zero,
                         float max_code);

    // Code words of src/format/block.hpp from byte codes [n_tokens][code_stride]; slot by bits_slot.
    // Codes are below 2^bits; those from channel dim on are not read. Padding is written as 0.
    //
    // Keys: words[tile of 16 tokens][word][16], channels run along the words.
    void (*pack_key[4])(std::uint32_t* words, const std::uint8_t* codes, std::size_t code_stride,
                        std::size_t n_tokens, std::size_t dim);
    // Values: words[word][channel padded to 16], tokens run along the words.
    void (*pack_value[4])(std::uint32_t* words, const std::uint8_t* codes, std::size_t code_stride,
                          std::size_t n_tokens, std::size_t dim);

    // Tall-skinny products of the subspace iteration, rank in [1, 64], planes of stride n padded to 16.
    // The surplus columns of x and p must be finite and one of the two 0: they enter the sums.
    // a[r][t] = sum_c x[t][c] p[r][c] for t < n_rows          a: [rank][a_stride], p: [rank][p_stride]
    void (*project)(float* a, std::size_t a_stride, const float* x, std::size_t row_stride,
                    std::size_t n_rows, std::size_t n_cols, const float* p, std::size_t p_stride,
                    std::size_t rank);
    // p[r][c] = sum_t x[t][c] a[r][t]; columns up to padded n_cols are written.
    void (*project_back)(float* p, std::size_t p_stride, const float* x, std::size_t row_stride,
                         std::size_t n_rows, std::size_t n_cols, const float* a, std::size_t a_stride,
                         std::size_t rank);

    // The search for outliers, over n rows of 16 floats that lie `stride` apart.
    // Row i goes to group i % n_groups: high[g][lane] and low[g][lane] become the largest and smallest of
    // what they are and what the rows hold.
    void (*group_ends)(float* high, float* low, std::size_t n_groups, const float* x, std::size_t stride,
                       std::size_t n);
    // Bit `lane` of reaching[i] tells whether x[i][lane] >= high[lane] or x[i][lane] <= low[lane].
    void (*find_reaching)(std::uint16_t* reaching, const float* x, std::size_t stride, std::size_t n,
                          const float* high, const float* low);

    // Per column of n_rows rows, with u = row_factor[r] * x[r][c]: sum[c] = sum_r u, square[c] = sum_r u * u.
    // sum and square are padded to 16.
    void (*column_moments)(float* sum, float* square, const float* x, std::size_t row_stride,
                           std::size_t n_rows, std::size_t n_cols, const float* row_factor);
    // Per row: square[r] = sum_c (column_factor[c] * x[r][c])^2, in 16 partial sums of every 16th column that
    // are added in halves. Surplus columns must be 0 in x or column_factor, which is padded to 16.
    void (*row_squares)(float* square, const float* x, std::size_t row_stride, std::size_t n_rows,
                        std::size_t n_cols, const float* column_factor);
    // rotate_head of src/format/trellis.hpp for each row; n_cols is a multiple of 8, surplus columns are
    // kept.
    void (*rotate_rows)(float* x, std::size_t row_stride, std::size_t n_rows, std::size_t n_cols);

    // out[i] = x[order[i]] - shift[i] for one row of n_cols; out, order and shift are padded to 16, surplus
    // entries of order are below n_cols.
    void (*order_row)(float* out, const float* x, const std::uint16_t* order, const float* shift,
                      std::size_t n_cols);

    // out[t][lane] = (x[t][lane] + shift[lane]) * (token_factor[t] * factor[lane]), out [128][16].
    void (*fill_panel)(float* out, const Panel& panel, const float* shift, const float* factor);
    // Sums over the tokens, with u = chosen[t][lane] * token_factor[t]: level = u, along = u x, square = u u.
    void (*sum_panel)(float* level, float* along, float* square, const Panel& panel,
                      const std::int8_t* chosen);
    // sum_t (|x[t][lane] - chosen[t][lane]| * factor[lane])^3 of an x [128][16].
    void (*cube_errors)(float* error, const float* x, const std::int8_t* chosen, const float* factor);

    // Bit `bit` < 8 of codes [128][16], 8 tokens in a byte, the first in its lowest bit: bytes [16][16].
    void (*gather_bits)(std::uint8_t* bytes, const std::uint8_t* codes, std::uint32_t bit);

    // The path through the trellis of src/format/trellis.hpp with the least squared error, for 16 channels
    // apart.
    void (*encode_trellis)(const EncodeTrellis& args);

    // IEEE half, round to nearest even; what is too large becomes Inf.
    void (*to_half)(std::uint16_t* out, const float* x, std::size_t n);
    void (*from_half)(float* out, const std::uint16_t* x, std::size_t n);
    // The upper half of a float, round to nearest even; what is too large becomes Inf.
    void (*to_bfloat)(std::uint16_t* out, const float* x, std::size_t n);
    void (*from_bfloat)(float* out, const std::uint16_t* x, std::size_t n);
    // Largest of n words without their top bit: of halves and of bfloats the magnitude that is largest, with
    // NaN above Inf.
    std::uint16_t (*max_magnitude)(const std::uint16_t* x, std::size_t n);
};

// ---- attention ----
// Scores are [n_rows][score_stride] floats over the tokens of a tile, accumulated into (+=).
// Queries are [n_rows][query_stride] floats, padded with zeros to 32 channels. n_rows in [1, max_rows].

// Memory that will be read next, n_rows of row_bytes that lie `stride` bytes apart: kernels that take it ask
// for it while they work.
struct Ahead {
    const void* bytes = nullptr;
    std::size_t row_bytes = 0;
    std::size_t stride = 0;
    std::size_t n_rows = 1;
};

// scores[row][t] = bias[row] + sum_c query[row][c] * code(t, first_channel + c). Whole words enter, those of
// channels [0, n_channels) and no others: what a word holds beyond them must meet zeros in the query.
struct ScoreCodes {
    const std::uint32_t* words;   // channel 0 of the first tile of 16 tokens
    std::size_t tile_words;       // words from one tile of 16 tokens to the next
    std::uint32_t n_tiles;        // tiles of 16 tokens; scores has room for 16 * n_tiles
    std::uint32_t first_channel;  // a multiple of 32
    std::uint32_t n_channels;     // first_channel + n_channels is at most dim
    std::uint32_t dim;            // channels of the block, to find the 1-bit plane of 3-bit codes
    const float* query;           // channel first_channel of the first row
    std::size_t query_stride;
    float* scores;
    std::size_t score_stride;
    const float* bias;  // [n_rows]
    std::uint32_t n_rows;
    Ahead ahead = {};
};

// out[row][channel] += bias[row] + sum_t weight[row][t] * code(t, channel) over channels [first, first + n)
// of 16-padded lanes. Weights are padded with zeros to 32 tokens; token 0 of the weights is the first of
// `words`, which must be a multiple of 32 within the block. Whole words enter, as above.
struct MixCodes {
    const std::uint32_t* words;  // of the first token unit, channel 0
    std::uint32_t n_tokens;
    std::uint32_t n_lanes;        // channels of the block padded to 16
    std::uint32_t first_channel;  // a multiple of 16
    std::uint32_t n_channels;     // padded to 16 inside
    const float* weight;
    std::size_t weight_stride;
    float* out;  // channel 0 of the first row, padded to 16
    std::size_t out_stride;
    const float* bias;  // [n_rows]
    std::uint32_t n_rows;
    Ahead ahead = {};
};

// Scales and zeros of a group folded into queries or weights: folded[row][i] = x[row][i] scales[i], 0 from n
// to round_up(n, 32), and bias[row] = sum_i x[row][i] zeros[i].
struct FoldHalves {
    const std::uint16_t* scales;  // half
    const std::uint16_t* zeros;   // half
    std::uint32_t n;
    const float* x;  // [n_rows][stride]
    float* folded;   // as x
    std::size_t stride;
    float* bias;
    std::uint32_t n_rows;
};

// Scores of the 128 tokens of one trellis section: scores[row][t] += sum_c query[row][c] level(t, c),
// channels in stored order, granules of 4.
struct ScoreTrellis {
    const std::uint32_t* words;  // first plane
    const std::uint8_t* widths;  // [n_granules], 0 to 6
    std::uint32_t n_granules;
    const float* query;  // [n_rows][query_stride], readable for 4 * n_granules channels
    std::size_t query_stride;
    float* scores;  // [n_rows][score_stride], 128 tokens
    std::size_t score_stride;
    std::uint32_t n_rows;  // [1, max_rows]
    Ahead ahead = {};
    Ahead also = {};  // before it, one row
};

// 16 tokens of a tile, whose values are read or not.
inline constexpr std::uint32_t slice_tokens = 16;
inline constexpr std::uint32_t all_slices = (1u << (tile_tokens / slice_tokens)) - 1;

// out[row][c] = sum_t weight[row][t] level(t, c) over the 128 tokens of one trellis section, granules of 16.
struct MixTrellis {
    const std::uint32_t* words;
    const std::uint8_t* widths;  // [n_granules], 0 to 4
    std::uint32_t n_granules;
    const float* weight;  // [n_rows][weight_stride], 128 tokens
    std::size_t weight_stride;
    float* out;  // [n_rows][out_stride], 16 * n_granules channels, overwritten
    std::size_t out_stride;
    std::uint32_t n_rows;
    Ahead ahead = {};
    std::uint32_t slices = all_slices;  // bit i: tokens 16 i to 16 i + 15; the weights of others are 0
};

// The side information of a section of keys folded into queries, in stored order: with S_c and zero_c as
// floats, folded[row][c] = query[row][c] S_c and bias[row] += sum_c folded[row][c] zero_c.
struct FoldKeys {
    const std::uint8_t* scales;  // [dim], readable for round_up(dim, 16), as are zeros and widths
    const std::int8_t* zeros;    // [dim]
    const std::uint8_t* widths;  // nibbles, of 4 channels each
    int base;
    std::uint32_t dim;
    const float* query;  // [n_rows][query_stride], padded with zeros to 16 channels
    float* folded;       // as query
    std::size_t query_stride;
    float* bias;
    std::uint32_t n_rows;
};

// What the scores of sections of keys may be, as what lies beside their codes tells (attention/select.hpp):
//   mean[row][i] += sum_c q_c zero_c and spread[row][i] += sum_c (q_c range_c)^2, of section i
struct EstimateKeys {
    const unsigned char* sections;  // of the first, those of the next `stride` bytes on
    std::size_t stride;
    std::uint32_t n_sections;
    std::uint32_t dim;
    const float* query;  // as FoldKeys::query
    std::size_t query_stride;
    float *mean, *spread;  // [n_rows][out_stride]
    std::size_t out_stride;
    std::uint32_t n_rows;
};

// Gains of the 128 tokens of a section of values: scaled[row][t] = weight[row][t] gain_t and
// sum[row] += sum_t weight[row][t], or the sum of what is scaled.
struct FoldWeights {
    const std::uint8_t* gains;  // nibbles
    const float* gain_of;       // [16], of each nibble
    bool sums_scaled;
    const float* weight;  // [n_rows][stride]
    float* scaled;        // as weight
    std::size_t stride;
    float* sum;
    std::uint32_t n_rows;
};

// out[row][c] += S_c x[row][c], padded to 16 channels.
struct AddScaled {
    const std::uint8_t* scales;  // [dim], readable for round_up(dim, 16)
    int base;
    std::uint32_t dim;
    const float* x;  // [n_rows][stride]
    float* out;      // as x
    std::size_t stride;
    std::uint32_t n_rows;
};

// Rows of the buffer and of raw blocks: [n_tokens][row_stride] of half or float, channels padded to 16 with
// zeros.
struct RawRows {
    const void* rows;  // row_stride is a multiple of 16 elements
    std::size_t row_stride;
    std::uint32_t n_tokens;    // at most tile_tokens
    std::uint32_t n_channels;  // padded to 16 inside
    Ahead ahead = {};
};

// The outliers of n_tokens tokens of one head, token by token.
struct Outliers {
    const void* counts;    // [n_tokens] u8 or u16, at most max_dim each
    const void* channels;  // [n] u8 or u16
    const std::uint16_t* values;
    bool wide;               // counts and channels are u16
    std::uint32_t n_tokens;  // at most tile_tokens
    std::uint32_t n;         // all counts together
};

// Rows side by side for outliers: [channel][outlier_lanes], those beyond n_rows are 0 or of no concern.
constexpr std::uint32_t outlier_lanes(std::uint32_t n_rows) {
    return n_rows <= 4 ? 4 : max_rows;
}

// scores[row][t] += sum of query[channel][row] * value over the outliers of token t.
struct ScoreOutliers {
    Outliers outliers;
    const float* query;  // [channel][outlier_lanes]
    float* scores;       // [n_rows][score_stride]
    std::size_t score_stride;
    std::uint32_t n_rows;
};

// out[channel][row] += sum over the outliers of that channel of weight[row][token] * value.
struct MixOutliers {
    Outliers outliers;
    const float* weight;  // [n_rows][weight_stride], readable for round_up(n_tokens, 16)
    std::size_t weight_stride;
    float* out;  // [channel][outlier_lanes]
    std::uint32_t n_rows;
};

struct AttentionKernels {
    void (*score_codes[4])(const ScoreCodes& args);
    void (*mix_codes[4])(const MixCodes& args);
    void (*fold_halves)(const FoldHalves& args);

    void (*score_trellis)(const ScoreTrellis& args);
    void (*mix_trellis)(const MixTrellis& args);
    // The same of a section of keys, of latents: granules of 4, widths 0 to 6, out padded to 16 channels.
    // Slices are not left out, as far as weights are 0 they count for nothing.
    void (*mix_keys)(const MixTrellis& args);
    void (*fold_keys)(const FoldKeys& args);
    void (*estimate_keys)(const EstimateKeys& args);
    void (*fold_weights)(const FoldWeights& args);
    void (*add_scaled)(const AddScaled& args);

    void (*score_outliers)(const ScoreOutliers& args);
    void (*mix_outliers)(const MixOutliers& args);

    // scores[row][t] += sum_c query[row][c] x[t][c]
    void (*score_half)(float* scores, std::size_t score_stride, const RawRows& x, const float* query,
                       std::size_t query_stride, std::uint32_t n_rows);
    void (*score_float)(float* scores, std::size_t score_stride, const RawRows& x, const float* query,
                        std::size_t query_stride, std::uint32_t n_rows);
    // out[row][c] += sum_t weight[row][t] x[t][c], up to padded n_channels
    void (*mix_half)(float* out, std::size_t out_stride, const RawRows& x, const float* weight,
                     std::size_t weight_stride, std::uint32_t n_rows);
    void (*mix_float)(float* out, std::size_t out_stride, const RawRows& x, const float* weight,
                      std::size_t weight_stride, std::uint32_t n_rows);

    // y[t] += alpha * x[t], and sum_t y[t] x[t], with x in half: one plane of a low-rank factor, or scales.
    void (*add_half)(float* y, const std::uint16_t* x, float alpha, std::size_t n);
    float (*dot_half)(const float* y, const std::uint16_t* x, std::size_t n);
    // out[i] = x[i] * y[i] with y in half: scales folded into queries or weights. out may be x.
    void (*scale_half)(float* out, const float* x, const std::uint16_t* y, std::size_t n);

    // Online softmax of one row over n scores (-Inf for what is masked, else finite):
    //   max' = the larger of *max and all scores    weight[t] = exp(score[t] - max')
    //   *max = max'                                 *sum = *sum * exp(max - max') + sum_t weight[t]
    // Returns exp(max - max'), by which earlier outputs are scaled; exactly 1 when max' is max, and when
    // every score so far is -Inf (weights are 0 then). weight is padded to 16 with zeros.
    float (*softmax_tile)(float* weight, const float* score, std::size_t n, float* max, float* sum);
    // x[i] = cap tanh(x[i] / cap), cap > 0 and finite, off by at most 2^-21 cap; x is finite.
    void (*soft_cap)(float* x, float cap, std::size_t n);
    // x[i] *= alpha
    void (*scale)(float* x, float alpha, std::size_t n);
    // Bit i tells whether one of the weights 16 i to 16 i + 15 of the 128 of a tile is at least `least`.
    std::uint32_t (*find_slices)(const float* weight, float least);

    // Queries and weights that meet codes or levels are rounded by at most this share of the largest of their
    // row and call, or four times it in rows of more than 256; 0 where products are made of floats.
    float factor_step;
};

struct Kernels {
    Level level;
    const CodecKernels& codec;
    const AttentionKernels& attention;
};

// A kernel that only blocks of codes call: null where these are not built.
template <auto kernel>
inline constexpr decltype(kernel) of_codes = has_codes ? kernel : nullptr;

// The tables, compiled per level; null where a level is not part of this build.
const Kernels* kernels_scalar();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512();
const Kernels* kernels_neon();
const Kernels* kernels_dotprod();

// The table of a level that is available; null otherwise. Level::automatic is resolved.
const Kernels* find_kernels(Level level) noexcept;

}  // namespace gearkv
