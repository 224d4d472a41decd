// A trellis block encoded again at a lower rate, out of itself: what it was made from is gone, so the error
// of the second encoding comes on top of that of the first.
#pragma once

#include "codec/compress.hpp"
#include "codec/trellis_read.hpp"

namespace gearkv {

struct ReencodeTask {
    const Kernels* kernels = nullptr;
    BlockView source;                    // with its profiles
    BlockHeader header;                  // of lay_out_lower, or the same of the first sections alone
    const float* key_weights = nullptr;  // as in CompressTask
    bool compares = true;                // whether to tell what is lost
};

// Writes header.n_bytes to `block`, with scratch as for compress_into, and tells what the second encoding
// lost. Equal inputs give equal bytes and sums, whatever the executor. A profile is copied.
SectionSquares reencode_block(void* block, void* scratch, const ReencodeTask& task,
                              Executor& executor) noexcept;

// The same in parts: what is in front of the sections, then n sections of every head from `first` on.
void begin_reencoding(void* block, const ReencodeTask& task) noexcept;
SectionSquares reencode_sections(void* block, void* scratch, const ReencodeTask& task, std::uint32_t first,
                                 std::uint32_t n, Executor& executor) noexcept;

}  // namespace gearkv
