// Working memory of one block while it is compressed, and the stages that pass over it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec/rows.hpp"
#include "format/block.hpp"
#include "kernels/kernels.hpp"

namespace gearkv {

// The block being written and the scratch of all heads, which a trellis does without. Rows of a head are
// [n_tokens][stride] with stride = dim padded to 16; the padding of x is 0.
struct BlockWork {
    const Kernels* kernels = nullptr;
    Rows rows;                          // the input
    BlockHeader* header = nullptr;      // of the block being written
    BlockView view;                     // the same block
    const BlockView* source = nullptr;  // in place of rows: a trellis block of the same shape
    std::uint64_t seed = 0;
    const float* key_weights = nullptr;  // of the channels, [head][dim]; null for 1

    std::size_t stride = 0;
    float* x = nullptr;  // [head][token][stride]; the input, then the dense part, then the residual
    std::uint8_t* codes = nullptr;    // [head][token][stride]
    std::uint8_t* outlier = nullptr;  // [head][token][stride] 1 where an entry is an outlier; null without
    float* lines = nullptr;           // [head][4][line_floats]
    std::size_t line_floats = 0;      // max(dim, groups of a token) padded to 16
    float* vectors = nullptr;         // [slot][vector_floats], one vector of the outlier search; null without
    std::size_t vector_floats = 0;    // tokens (keys) or channels of all heads (values)
    std::uint32_t n_slices = 0;       // token ranges that values are searched in; slots of keys are heads
    float* factors = nullptr;         // [head][rank * (tokens padded to 16 + stride)]

    std::uint32_t n_tokens() const { return header->n_tokens; }
    std::uint32_t n_heads() const { return header->n_heads; }
    std::uint32_t dim() const { return header->dim; }
    bool keys() const { return header->kind == static_cast<std::uint8_t>(TensorKind::key); }
    float weight(std::size_t head, std::size_t channel) const {
        return key_weights == nullptr ? 1.0f : key_weights[head * dim() + channel];
    }
    float max_code() const { return static_cast<float>((1u << header->bits) - 1); }

    float* x_head(std::size_t head) const { return x + head * n_tokens() * stride; }
    std::uint8_t* codes_head(std::size_t head) const { return codes + head * n_tokens() * stride; }
    std::uint8_t* outlier_head(std::size_t head) const { return outlier + head * n_tokens() * stride; }
    float* line(std::size_t head, std::size_t i) const { return lines + (head * 4 + i) * line_floats; }
    // One input row: where it lies, or converted into `buffer` of dim floats.
    const float* row(std::size_t token, std::size_t head, float* buffer) const {
        return row_floats(kernels->codec, rows, token, head, dim(), buffer);
    }
    template <class T>
    T* part(std::uint64_t offset) const {
        return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(header) + offset);
    }
};

// ---- outliers.cpp (paper section 3.1, "outlier extraction") ----
// Marks the outliers of a key head (per channel), or of one slice of the tokens of values (per token over all
// heads), and puts the mean of the vector in their place in x.
void mark_key_outliers(const BlockWork& work, std::size_t head) noexcept;
void mark_value_outliers(const BlockWork& work, std::size_t slice) noexcept;
// Between marking and writing: the outliers of each head, and then the table of the first outlier of each.
void count_outliers(const BlockWork& work, std::size_t head) noexcept;
void number_outliers(const BlockWork& work) noexcept;
// Writes counts, channels and values of one head and clears its residual at the outliers.
void write_outliers(const BlockWork& work, std::size_t head) noexcept;

// ---- quantize.cpp (the backbones) ----
// Writes scales and zeros of kcvt values, which all heads share, for one slice of the tokens; before
// quantize_head.
void choose_shared_scales(const BlockWork& work, std::size_t slice) noexcept;
// Chooses scales, writes scales, zeros and code words of one head; leaves the residual in x.
void quantize_head(const BlockWork& work, std::size_t head) noexcept;

// ---- lowrank.cpp (paper algorithm 2, subspace iteration) ----
// Writes both factors of one head's residual.
void factor_head(const BlockWork& work, std::size_t head) noexcept;

}  // namespace gearkv
