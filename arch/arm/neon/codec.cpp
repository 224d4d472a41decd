#include "codec/kernels.inl.hpp"

#include "level.hpp"
#include "tables.hpp"

namespace gearkv {

constinit const CodecKernels codec_neon = make_codec_kernels<Lanes>();

}  // namespace gearkv
