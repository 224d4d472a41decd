// How loud the queries of a layer are in each channel: what an error of a key's channel counts. Squares of
// some queries, chosen by their token's place alone, so that neither chunks nor batches nor threads change
// them.
#pragma once

#include <algorithm>

#include "format/block.hpp"
#include "format/state.hpp"
#include "gearkv/cache.hpp"
#include "kernels/kernels.hpp"
#include "memory/ledger.hpp"

namespace gearkv {

// What is kept of the queries of one token, as in a state file.
using SquareRow = StateSquareRow;

// Rows of tokens that are in no block, and a sum over those before. What a block is made by is all of its own
// tokens and those before it, whenever it is made.
class QuerySquares {
    struct Stretch {
        std::uint64_t end, stride;
    };
    static constexpr Stretch stretches[] = {{128, 4}, {1024, 16}, {8192, 64}, {~std::uint64_t{0}, 256}};

  public:
    // Out of every so many tokens one is kept: many while there are few.
    static constexpr std::uint64_t stride_at(std::uint64_t token) noexcept {
        const Stretch* stretch = stretches;
        while (token >= stretch->end)
            ++stretch;
        return stretch->stride;
    }
    // The first that is kept from this one on: no rotary embedding turns in step with them.
    static constexpr std::uint64_t next_kept(std::uint64_t token) noexcept {
        for (;; ++token) {
            const std::uint64_t stride = stride_at(token), first = token / stride * stride;
            const std::uint64_t kept = first + (first / stride * 2654435761u >> 16) % stride;
            if (kept >= token) return kept;
            token = first + stride - 1;
        }
    }

    // Rows of n_tokens tokens, of the first ones, of which most are kept.
    static constexpr std::uint64_t n_rows_of(std::uint64_t n_tokens) noexcept {
        std::uint64_t n = 0, first = 0;
        for (const Stretch& stretch : stretches) {
            const std::uint64_t n_here = std::min(stretch.end, n_tokens) - std::min(first, n_tokens);
            n += (n_here + stretch.stride - 1) / stretch.stride;
            first = stretch.end;
        }
        return n;
    }
    // What is held for n_rows rows, and for the sum.
    static constexpr std::uint64_t bytes_of(const LayerDims& dims, std::uint64_t n_rows) noexcept {
        const std::uint64_t n_channels = std::uint64_t{dims.n_kv_heads} * dims.key_dim;
        return n_rows * (sizeof(SquareRow) + n_channels * sizeof(float)) +
               n_channels * (sizeof(double) + sizeof(float));
    }
    // A capacity is so much more than the rows that were there at its making.
    static constexpr std::uint64_t least_rows = 2;

    void create(const LayerDims& dims) noexcept {
        n_heads_ = dims.n_kv_heads;
        dim_ = dims.key_dim;
    }
    // After create. False when memory is short; destroy() is right in any case.
    bool copy(const Memory& memory, const QuerySquares& other) noexcept;
    void destroy(const Memory& memory) noexcept;

    // Tokens of [first, end) to be kept that are not.
    std::uint64_t n_missing(std::uint64_t first, std::uint64_t end) const noexcept;
    // Room for n rows more, and for the sum. False when memory is short.
    bool reserve(const Memory& memory, std::uint64_t n) noexcept;
    // After reserve: those of [first, n_tokens) that are missing, out of the queries of the last n_tokens.
    void keep(const CodecKernels& kernels, const Queries& queries, std::uint64_t first,
              std::uint64_t n_tokens) noexcept;

    // Drops what a stream of the first n_tokens would not have. True when there was some.
    bool truncate(std::uint64_t n_tokens) noexcept;
    // Of tokens [first, first + n), those behind move up.
    void remove(std::uint64_t first, std::uint64_t n) noexcept;
    // Rows of tokens before `end` go into the sum.
    void fold(const Memory& memory, std::uint64_t end) noexcept;
    // Nothing was ever kept.
    void forget(const Memory& memory) noexcept { destroy(memory); }

    // What channels count beside each other in a block that ends before token `end`, [n_heads][dim]; null
    // when no query was kept. It holds until the next call.
    const float* weigh(std::uint64_t end) noexcept { return weigh(end, weights_) ? weights_ : nullptr; }
    // The same of all that is known, to `out`. False when no query was kept.
    bool weigh_all(float* out) const noexcept { return weigh(~std::uint64_t{0}, out); }

    // ---- for a state file ----
    std::uint64_t n_rows() const noexcept { return n_rows_; }
    bool is_empty() const noexcept { return n_rows_ == 0 && n_summed_ == 0; }
    const SquareRow* rows() const noexcept { return rows_; }
    const float* levels() const noexcept { return levels_; }
    const double* sum() const noexcept { return sum_; }
    std::uint64_t n_summed() const noexcept { return n_summed_; }
    std::uint64_t n_channels() const noexcept { return std::uint64_t{n_heads_} * dim_; }
    // Into an empty one. False when memory is short.
    bool restore(const Memory& memory, const double* sum, std::uint64_t n_summed, const SquareRow* rows,
                 const float* levels, std::uint64_t n_rows) noexcept;

  private:
    bool weigh(std::uint64_t end, float* out) const noexcept;
    bool resize(const Memory& memory, std::uint64_t capacity) noexcept;
    std::uint64_t row_bytes() const noexcept { return sizeof(SquareRow) + n_channels() * sizeof(float); }
    std::uint64_t sum_bytes() const noexcept { return n_channels() * (sizeof(double) + sizeof(float)); }
    std::uint64_t find(std::uint64_t token) const noexcept;  // the first row from this token on
    void add(double* sum, std::uint64_t row) const noexcept;

    std::uint32_t n_heads_ = 0, dim_ = 0;
    SquareRow* rows_ = nullptr;  // by token
    float* levels_ = nullptr;    // [row][head][dim] root mean square over the query heads; behind rows_
    std::uint64_t n_rows_ = 0, capacity_ = 0;
    double* sum_ = nullptr;       // [head][dim], of squares
    float* weights_ = nullptr;    // [head][dim], behind sum_
    std::uint64_t n_summed_ = 0;  // tokens that the sum stands for
};

}  // namespace gearkv
