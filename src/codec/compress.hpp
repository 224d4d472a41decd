// Compression of one block with scratch that the caller keeps.
#pragma once

#include "codec/work.hpp"

namespace gearkv {

// What compress_into needs beside its output. The rows are known to be finite and representable.
struct CompressTask {
    const Kernels* kernels = nullptr;
    RowSource rows;
    BlockHeader header;  // from lay_out_block
    std::uint64_t seed = 0;
    const unsigned char* profiles = nullptr;  // trellis without a profile of its own: that of the stream
};

// Bytes of scratch for a block of this layout, 64-byte aligned.
std::uint64_t compress_scratch_bytes(const BlockHeader& header) noexcept;

// Writes header.n_bytes to `block`.
void compress_into(void* block, void* scratch, const CompressTask& task, Executor& executor) noexcept;

// Whether all entries of rows [n_tokens, n_heads, dim] can be stored. Errors: non_finite, not_representable
// (beyond the range of fp16, unless `any_float`), naming the token and head.
Status check_rows(const Kernels& kernels, const Rows& rows, const BlockShape& shape, bool any_float) noexcept;

}  // namespace gearkv
