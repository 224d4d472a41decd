// Attention of a group of query rows over the keys and values of one head, on the compressed form (paper
// section 3.3), with an online softmax. Nothing of the compressed part is expanded to a temporary larger than
// a tile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "attention/rope.hpp"
#include "format/block.hpp"
#include "format/built.hpp"
#include "gearkv/codec.hpp"
#include "kernels/kernels.hpp"

namespace gearkv {

// Keys or values of consecutive tokens: a compressed block, or rows in half or float.
struct TensorRun {
    BlockView block;              // header is null for rows
    const void* rows = nullptr;   // [token][row_stride], of head 0
    std::size_t row_stride = 0;   // elements
    std::size_t head_stride = 0;  // elements
    bool is_float = false;        // rows are float, not half
};

// Keys and values of the same tokens.
struct KvRun {
    TensorRun key;
    TensorRun value;
    std::uint32_t n_tokens = 0;
    std::uint32_t n_hidden = 0;  // the first of them, which are not part of the sequence
    std::int64_t shift = 0;      // tokens by which the rest has moved since its keys were rotated
    Rotation turn;               // for the queries, when shift is not 0 and keys are rotated

    bool is_gap() const noexcept { return key.block.header == nullptr && key.rows == nullptr; }
};

// Tokens that count but are not there.
inline KvRun gap_run(std::uint64_t n_tokens) noexcept {
    KvRun run;
    run.n_tokens = static_cast<std::uint32_t>(n_tokens);
    return run;
}

// A closed block as a run; raw blocks become rows.
TensorRun run_of_block(const BlockView& view) noexcept;

// Channels of one KV head as they are stored. Latents are values that are keys too: a score is that of the
// keys and that of the values together, and queries have channels for both.
struct HeadDims {
    std::uint32_t key_dim, value_dim;
    bool latent;
};

// Up to max_rows query rows that read one KV head, and what is done to their scores, in this order.
struct RowGroup {
    std::uint32_t n_rows = 0;
    const float* query[max_rows];   // key_dim channels each
    const float* latent[max_rows];  // of latents: what meets the values, value_dim channels each
    float* out[max_rows];           // value_dim channels each; may be scratch.out
    float soft_cap = 0.0f;          // > 0: scores become soft_cap tanh(score / soft_cap)
    float slope[max_rows];          // times the distance from the last visible token, taken off
    const float* mask[max_rows];    // null or [token], added
    std::uint64_t first[max_rows];  // tokens [first, visible) of the sequence are seen
    std::uint64_t visible[max_rows];
    float negligible = 0.0f;  // slices of a tile without a weight of this are not mixed
    bool has_sinks = false;
    float sink[max_rows];                   // a score without a value, when has_sinks
    const TokenRange* ranges = nullptr;     // not null: only tokens in these are seen, in their order
    std::size_t n_ranges = 0;               // none may be
    const std::uint64_t* chosen = nullptr;  // not null: a bit for every tile of the runs, 0 leaves it out
};

// Tiles of all runs, counted from the first of the first run: the pieces a long sequence is split into.
struct TileRange {
    std::uint64_t first = 0, end = UINT64_MAX;
    std::uint64_t part = 0;  // its number
};
inline std::uint32_t tiles_of(const KvRun& run) noexcept {
    return run.is_gap() ? 0 : (run.n_tokens + tile_tokens - 1) / tile_tokens;
}
std::uint64_t count_tiles(const KvRun* runs, std::size_t n_runs) noexcept;

// The queries of a row group that meet one tensor.
struct QueryScratch {
    std::uint32_t dim = 0;     // channels
    std::size_t stride = 0;    // padded to 32
    float* query = nullptr;    // [row][stride] scaled, zero-padded
    float* ordered = nullptr;  // [row][stride] trellis: query in the stored order of channels
    float* folded = nullptr;   // [row][stride] query times the scales of a token group
    float* given = nullptr;    // [row][dim] for queries that do not come as floats side by side
};

// Working memory of one row group, float arrays carved from one run; see place_scratch.
struct AttendScratch {
    QueryScratch keys, latents;    // the second of latents alone
    std::size_t out_stride = 0;    // value channels padded to 16
    float* scores = nullptr;       // [row][tile_tokens]
    float* weights = nullptr;      // [row][tile_tokens]
    float* partial = nullptr;      // [row][tile_tokens] scores or scaled weights of one channel group
    float* out = nullptr;          // [row][out_stride] not yet divided by the sum of weights
    float* along_key = nullptr;    // [row][max_rank] q P of the block
    float* along_value = nullptr;  // [row][max_rank] w A of the block so far
    float* mixed = nullptr;        // [row][out_stride] trellis: weighted values of the run, still rotated
    float* weight_sum = nullptr;   // [row] trellis: weights of the run
    float* query_rows = nullptr;   // [key channel][outlier_lanes] the query again, for outliers
    float* outlier_out = nullptr;  // [value channel][outlier_lanes] weighted outliers of the run
};

std::uint64_t attend_scratch_bytes(const HeadDims& dims) noexcept;
AttendScratch place_attend_scratch(void* scratch, const HeadDims& dims) noexcept;

// Floats of the results of some tiles: [row] largest score, sum, the power of two the score is kept smaller
// by (src/attention/lift.hpp), and value_dim outputs not yet divided by the sum.
inline constexpr std::size_t part_head = 3;
constexpr std::size_t part_row_floats(std::uint32_t value_dim) {
    return part_head + value_dim;
}
constexpr std::uint64_t part_floats(std::uint32_t value_dim) {
    return std::uint64_t{max_rows} * part_row_floats(value_dim);
}

// Writes softmax(scale q K^T) V for every row over `runs`, which follow each other; zeros where a row sees no
// token. With `part`, of part_floats, only the tiles of `range` are attended and nothing is written to out.
void attend_rows(const Kernels& kernels, const AttendScratch& scratch, const RowGroup& rows,
                 const KvRun* runs, std::size_t n_runs, std::uint32_t head, const HeadDims& dims, float scale,
                 TileRange range = {}, float* part = nullptr) noexcept;
// The outputs of all rows from n_parts parts, `stride` floats apart, that cover all tiles. The same parts
// give the same bits.
void merge_parts(const RowGroup& rows, const float* parts, std::size_t stride, std::size_t n_parts,
                 std::uint32_t value_dim) noexcept;

// The row group on its way over the runs of one head: what score.cpp and mix.cpp share.
struct RowPass {
    const Kernels& kernels;
    const AttendScratch& scratch;
    std::uint32_t n_rows;
    std::uint32_t head;
    const HeadDims& dims;
};

// Tokens [first, first + n_tokens) of a run, n_tokens at most tile_tokens, first a multiple of it.
struct Tile {
    std::uint32_t first;
    std::uint32_t n_tokens;
    Ahead key, value;                   // of the tile after it
    std::uint32_t slices = all_slices;  // whose values are mixed; the weights of others are 0
    Ahead also = {};                    // its own values, where no tile before it has asked for them
};

// The i-th of n pieces of one row.
inline Ahead piece_of(const Ahead& ahead, std::size_t i, std::size_t n) {
    const std::size_t first = ahead.row_bytes * i / n, end = ahead.row_bytes * (i + 1) / n;
    return {static_cast<const unsigned char*>(ahead.bytes) + first, end - first};
}

// ---- score.cpp: scores of a tile into scratch.scores ----
class KeyScorer {
  public:
    // With `adds`, scores come on top of those that are there: of values, which are rows or a trellis.
    KeyScorer(const RowPass& pass, const TensorRun& run, const QueryScratch& queries, bool adds) noexcept;
    // Tiles come in order, each scored or skipped.
    void score(const Tile& tile) noexcept;
    void skip(const Tile& tile) noexcept {
        if (has_outliers()) (void)outliers_.next_tokens(tile.n_tokens);
    }
    // Of a trellis: adds for every row the mean of the scores of the keys of n sections and half their
    // variance, estimated from their side information, to mean and spread [n_rows][stride].
    void estimate(std::uint32_t first, std::uint32_t n, float* mean, float* spread,
                  std::size_t stride) const noexcept;

  private:
    FoldKeys fold_of(std::uint32_t section, float* bias) const noexcept;
    void score_rows(const Tile& tile) noexcept;
    void score_channel_scales(const Tile& tile) noexcept;
    void score_token_scales(const Tile& tile) noexcept;
    void score_section(const Tile& tile) noexcept;
    void fold_group(std::uint32_t group) noexcept;
    void order_query() noexcept;
    void add_low_rank(const Tile& tile) noexcept;
    bool has_outliers() const noexcept {
        return has_codes && run_.block.header != nullptr && run_.block.header->n_outliers > 0;
    }

    const RowPass& pass_;
    const TensorRun& run_;
    const QueryScratch& queries_;
    bool adds_;
    OutlierCursor outliers_;
    std::uint32_t folded_group_ = UINT32_MAX;
    float bias_[max_rows] = {};  // trellis: of the means; else of the folded group
};

// Scores of keys and, of latents, values.
class RunScorer {
  public:
    RunScorer(const RowPass& pass, const KvRun& run) noexcept
        : n_rows_(pass.n_rows), keys_(pass, run.key, pass.scratch.keys, false) {
        if (pass.dims.latent) latents_.emplace(pass, run.value, pass.scratch.latents, true);
    }
    void score(const Tile& tile) noexcept {
        keys_.score(tile);
        // Values are read here first, and those of the next tile asked for.
        if (latents_) latents_->score({tile.first, tile.n_tokens, tile.value, {}});
    }
    void skip(const Tile& tile) noexcept { keys_.skip(tile); }
    // The same of keys and latents, and not added.
    void estimate(std::uint32_t first, std::uint32_t n, float* mean, float* spread,
                  std::size_t stride) const noexcept;

  private:
    std::uint32_t n_rows_;
    KeyScorer keys_;
    std::optional<KeyScorer> latents_;
};

// ---- mix.cpp: weighted values of a tile, added to scratch.out ----
class ValueMixer {
  public:
    ValueMixer(const RowPass& pass, const TensorRun& run) noexcept;
    // Tiles come in order, each mixed or skipped; weights are scratch.weights, zero beyond the tile.
    void mix(const Tile& tile) noexcept;
    void skip(const Tile& tile) noexcept {
        if (has_outliers()) (void)outliers_.next_tokens(tile.n_tokens);
    }
    // Earlier tiles of a row were weighted too much by 1 / alpha.
    void rescale(std::uint32_t row, float alpha) noexcept;
    // Adds what is kept in factored form; after the last tile of the run.
    void finish() noexcept;

  private:
    void mix_rows(const Tile& tile) noexcept;
    void mix_codes(const Tile& tile) noexcept;
    void mix_code_words(const Tile& tile, std::uint32_t group, const float* bias, std::uint32_t first,
                        std::uint32_t n_tokens) noexcept;
    void mix_section(const Tile& tile) noexcept;
    void mix_key_section(const Tile& tile) noexcept;
    void finish_sections() noexcept;
    bool has_outliers() const noexcept {
        return has_codes && run_.block.header != nullptr && run_.block.header->n_outliers > 0;
    }

    const RowPass& pass_;
    const TensorRun& run_;
    OutlierCursor outliers_;
};

}  // namespace gearkv
