#include "attention/kernels.inl.hpp"

#include "../shared.hpp"
#include "level.hpp"
#include "tables.hpp"

namespace gearkv {

constinit const AttentionKernels attention_avxvnni = with_shared(make_attention_kernels<Lanes>());

}  // namespace gearkv
