// Attention of a group of query rows over the keys and values of one head, on the compressed form (paper
// section 3.3), with an online softmax. Nothing of the compressed part is expanded to a temporary larger than
// a tile.
#pragma once

#include <cstddef>
#include <cstdint>

#include "format/block.hpp"
#include "kernels.hpp"

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
};

// A closed block as a run; raw blocks become rows.
TensorRun run_of_block(const BlockView& view) noexcept;

// Up to max_rows query rows that read one KV head.
struct RowGroup {
    std::uint32_t n_rows = 0;
    const float* query[max_rows];     // key_dim channels each
    std::uint64_t visible[max_rows];  // tokens each row may see, from the first of the sequence
    float* out[max_rows];             // value_dim channels each
};

// Working memory of one row group, float arrays carved from one run; see place_scratch.
struct AttendScratch {
    std::size_t query_stride = 0;  // key channels padded to 32
    std::size_t out_stride = 0;    // value channels padded to 16
    float* query = nullptr;        // [row][query_stride] scaled, zero-padded
    float* ordered = nullptr;      // [row][query_stride] trellis: query in the stored order of channels
    float* folded = nullptr;       // [row][query_stride] query times the scales of a token group
    float* scores = nullptr;       // [row][tile_tokens]
    float* weights = nullptr;      // [row][tile_tokens]
    float* partial = nullptr;      // [row][tile_tokens] scores or scaled weights of one channel group
    float* out = nullptr;          // [row][out_stride] not yet divided by the sum of weights
    float* along_key = nullptr;    // [row][max_rank] q P of the block
    float* along_value = nullptr;  // [row][max_rank] w A of the block so far
    float* mixed = nullptr;        // [row][out_stride] trellis: weighted values of the run, still rotated
    float* weight_sum = nullptr;   // [row] trellis: weights of the run
    float* values = nullptr;       // outliers of one token
};

std::uint64_t attend_scratch_bytes(std::uint32_t key_dim, std::uint32_t value_dim) noexcept;
AttendScratch place_attend_scratch(void* scratch, std::uint32_t key_dim, std::uint32_t value_dim) noexcept;

// Writes softmax(scale q K^T) V for every row over `runs`, which follow each other. Every row sees at least
// one token.
void attend_rows(const Kernels& kernels, const AttendScratch& scratch, const RowGroup& rows,
                 const KvRun* runs, std::size_t n_runs, std::uint32_t head, std::uint32_t key_dim,
                 std::uint32_t value_dim, float scale) noexcept;

// The row group on its way over the runs of one head: what score.cpp and mix.cpp share.
struct RowPass {
    const Kernels& kernels;
    const AttendScratch& scratch;
    std::uint32_t n_rows;
    std::uint32_t head;
    std::uint32_t key_dim;
    std::uint32_t value_dim;
};

// Tokens [first, first + n_tokens) of a run, n_tokens at most tile_tokens, first a multiple of it.
struct Tile {
    std::uint32_t first;
    std::uint32_t n_tokens;
};

// ---- score.cpp: scores of a tile into scratch.scores ----
class KeyScorer {
  public:
    KeyScorer(const RowPass& pass, const TensorRun& run) noexcept;
    // Tiles come in order.
    void score(const Tile& tile) noexcept;

  private:
    void score_rows(const Tile& tile) noexcept;
    void score_channel_scales(const Tile& tile) noexcept;
    void score_token_scales(const Tile& tile) noexcept;
    void score_section(const Tile& tile) noexcept;
    void fold_group(std::uint32_t group) noexcept;
    void order_query() noexcept;
    void add_low_rank(const Tile& tile) noexcept;
    void add_outliers(const Tile& tile) noexcept;

    const RowPass& pass_;
    const TensorRun& run_;
    OutlierCursor outliers_;
    std::uint32_t folded_group_ = UINT32_MAX;
    float bias_[max_rows] = {};  // trellis: of the means; else of the folded group
};

// ---- mix.cpp: weighted values of a tile, added to scratch.out ----
class ValueMixer {
  public:
    ValueMixer(const RowPass& pass, const TensorRun& run) noexcept;
    // Tiles come in order; weights are scratch.weights, zero beyond the tile.
    void mix(const Tile& tile) noexcept;
    // Earlier tiles of a row were weighted too much by 1 / alpha.
    void rescale(std::uint32_t row, float alpha) noexcept;
    // Adds what is kept in factored form; after the last tile of the run.
    void finish() noexcept;

  private:
    void mix_rows(const Tile& tile) noexcept;
    void mix_codes(const Tile& tile) noexcept;
    void mix_section(const Tile& tile) noexcept;
    void finish_sections() noexcept;
    void add_outliers(const Tile& tile) noexcept;

    const RowPass& pass_;
    const TensorRun& run_;
    OutlierCursor outliers_;
};

}  // namespace gearkv
