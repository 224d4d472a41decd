#include "attention/kernels.inl.hpp"

#include "level.hpp"
#include "tables.hpp"

namespace gearkv {

constinit const AttentionKernels attention_avxvnni = make_attention_kernels<Lanes>();

}  // namespace gearkv
