#include "codec/kernels.inl.hpp"

#include "level.hpp"
#include "tables.hpp"

namespace gearkv {

constinit const CodecKernels codec_avx512 = make_codec_kernels<Lanes>();

}  // namespace gearkv
