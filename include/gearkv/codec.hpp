// Compress and decompress one block: the tokens of one layer, all KV heads, keys or values.
//
// A block is position-independent bytes, immutable once written, 64-byte aligned, and states its own codec,
// so it can live in a caller's buffer or a mapped file. Its drawing is in src/format/block.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gearkv/config.hpp"
#include "gearkv/cpu.hpp"
#include "gearkv/executor.hpp"
#include "gearkv/memory.hpp"
#include "gearkv/status.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

enum class TensorKind : std::uint8_t { key = 0, value = 1 };

// What the numbers in the caller's memory are.
enum class ElementType : std::uint8_t {
    f32 = 0,   // float
    f16 = 1,   // IEEE half
    bf16 = 2,  // the upper half of a float
};

// Keys or values of some tokens in the caller's memory, read in place: element (token, head, channel) of
// `type` is data[token * token_stride + head * head_stride + channel * channel_stride]. Strides are in
// elements; that of channels is not 0. Keys laid out as [head][channel][token] have a token_stride of 1, a
// channel_stride of the tokens there are in a row, and so on. Rows in f16 come to the same as the floats they
// stand for, and so do those in bf16.
struct Rows {
    const void* data = nullptr;
    std::size_t token_stride = 0;
    std::size_t head_stride = 0;
    ElementType type = ElementType::f32;
    std::size_t channel_stride = 1;
};

// Where keys, values or outputs of some tokens go: to the same places, of numbers of `type`, all of them
// different ones and below n_elements.
struct OutRows {
    void* data = nullptr;
    std::size_t n_elements = 0;
    std::size_t token_stride = 0;
    std::size_t head_stride = 0;
    ElementType type = ElementType::f32;
    std::size_t channel_stride = 1;
};

// Tokens [first, end) of a sequence.
struct TokenRange {
    std::uint64_t first = 0;
    std::uint64_t end = 0;
};

// Shape of one block. n_tokens >= 1, n_heads in [1, 4096], dim a multiple of 8 in [8, 1024].
struct BlockShape {
    TensorKind kind = TensorKind::key;
    std::uint32_t n_tokens = 0;
    std::uint32_t n_heads = 0;
    std::uint32_t dim = 0;
};

// How one block is to be compressed.
struct BlockOptions {
    TensorSpec spec;
    std::uint32_t rank = 0;  // the rank to use, clamped to min(n_tokens, dim); spec.rank_* are not read
    std::uint64_t seed = 0;  // start of the subspace iteration; equal seeds give equal bytes
    Level level = Level::automatic;
    // Trellis of keys: [n_heads, dim], what an error in a channel counts beside one in another, such as the
    // mean square of the queries that are to meet it; channels that count more get more bits. Null: all
    // count the same. Finite, not negative, and read during the call alone.
    const float* key_weights = nullptr;
};

// Bytes of a block by part. `bytes` is the whole and equals the sum of the parts.
struct BlockBytes {
    std::uint64_t bytes = 0;
    std::uint64_t header = 0;
    std::uint64_t codes = 0;
    std::uint64_t scales = 0;    // scales and minima
    std::uint64_t low_rank = 0;  // both factors
    std::uint64_t outliers = 0;  // counts, indices and values
    std::uint64_t padding = 0;   // alignment between the parts

    BlockBytes& operator+=(const BlockBytes& other) noexcept {
        bytes += other.bytes;
        header += other.header;
        codes += other.codes;
        scales += other.scales;
        low_rank += other.low_rank;
        outliers += other.outliers;
        padding += other.padding;
        return *this;
    }
    friend BlockBytes operator*(const BlockBytes& a, std::uint64_t times) noexcept {
        return {a.bytes * times,    a.header * times,   a.codes * times,  a.scales * times,
                a.low_rank * times, a.outliers * times, a.padding * times};
    }
};

// Exact size of the block these arguments produce. Errors: bad_spec, unavailable_spec, wrong_size.
Status block_bytes(const BlockShape& shape, const BlockOptions& options, BlockBytes* out) noexcept;

// Compresses (paper section 3, algorithm 1: outliers, backbone, residual, low rank). Reads rows, writes
// exactly block_bytes() bytes to `block` (64-byte aligned, n_bytes long). Scratch comes from `allocator` and
// is given back. On any error the contents of `block` are unspecified and nothing else has changed. Errors:
// invalid_argument, bad_spec, wrong_size, non_finite, not_representable, out_of_memory, unknown_level,
// unavailable_level.
Status compress_block(void* block, std::size_t n_bytes, const Rows& rows, const BlockShape& shape,
                      const BlockOptions& options, Executor& executor,
                      const Allocator& allocator = default_allocator()) noexcept;

// Writes the reconstruction as [n_tokens, n_heads, dim] float, contiguous. The block may come from anywhere:
// it is checked before it is read. Errors: invalid_argument, bad_block, unavailable_spec, wrong_size
// (n_floats too small).
Status decompress_block(float* out, std::size_t n_floats, const void* block, std::size_t n_bytes) noexcept;

// Shape, spec and bytes by part of a block, checked as in decompress_block. Errors: bad_block,
// unavailable_spec.
Status inspect_block(const void* block, std::size_t n_bytes, BlockShape* shape, TensorSpec* spec,
                     BlockBytes* bytes) noexcept;

}  // namespace gearkv
#pragma GCC visibility pop
