// Compression of one block with scratch that the caller keeps.
#pragma once

#include "codec/work.hpp"

namespace gearkv {

// What compress_into needs beside its output. The rows are known to be finite and representable.
struct CompressTask {
    const Kernels* kernels = nullptr;
    Rows rows;
    BlockHeader header;  // from lay_out_block
    std::uint64_t seed = 0;
    const unsigned char* profiles = nullptr;  // trellis without a profile of its own: that of the stream
    // Trellis with a profile: [n_heads + 1], the first plane of each head; null shares them evenly.
    const std::uint32_t* plane_starts = nullptr;
    // Trellis of keys: [n_heads][dim], what the variance of a channel counts when widths are chosen; null
    // for 1.
    const float* key_weights = nullptr;
};

// Bytes of scratch for a block of this layout, 64-byte aligned.
std::uint64_t compress_scratch_bytes(const BlockHeader& header) noexcept;

// Writes header.n_bytes to `block`.
void compress_into(void* block, void* scratch, const CompressTask& task, Executor& executor) noexcept;

// The same in pieces, which need not run in one call: begin_block, then every piece once. A trellis has the
// profiles of the heads as one stage, and parts of the sections of all heads as another; everything else is a
// single piece. Groups of a stage may run at once on different threads, each with a slot of the scratch of
// its own, below piece_slots(): a profile, or the parts of a section, which share what goes before their
// codes.
void begin_block(void* block, const CompressTask& task) noexcept;
std::uint32_t n_pieces(const BlockHeader& header) noexcept;
// Pieces of the stage that piece `next` is in, from it on; of its group.
std::uint32_t stage_left(const BlockHeader& header, std::uint32_t next) noexcept;
std::uint32_t group_left(const BlockHeader& header, std::uint32_t next) noexcept;
std::uint32_t piece_slots(const BlockHeader& header) noexcept;
// Pieces [first, first + n) of one group.
void compress_pieces(void* block, void* scratch, const CompressTask& task, std::uint32_t first,
                     std::uint32_t n, std::uint32_t slot, Executor& executor) noexcept;

// Whether all entries of rows [n_tokens, n_heads, dim] can be stored. Errors: non_finite, not_representable
// (beyond `limit`), naming the token and head.
Status check_rows(const Kernels& kernels, const Rows& rows, const BlockShape& shape, float limit,
                  Executor& executor) noexcept;

}  // namespace gearkv
