// The kernel tables that the folders of arch/ fill, one of each per level of the build.
#pragma once

#include "kernels/kernels.hpp"

namespace gearkv {

extern const CodecKernels codec_scalar;
extern const CodecKernels codec_avx2;
extern const CodecKernels codec_avx512;
extern const CodecKernels codec_neon;
extern const CodecKernels codec_dotprod;

extern const AttentionKernels attention_scalar;
extern const AttentionKernels attention_avx2;
extern const AttentionKernels attention_avxvnni;
extern const AttentionKernels attention_avx512;
extern const AttentionKernels attention_neon;
extern const AttentionKernels attention_dotprod;

}  // namespace gearkv
