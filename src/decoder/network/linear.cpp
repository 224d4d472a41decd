#include "decoder/network/linear.hpp"

namespace gearkv {

const LinearKernels* find_linear_kernels(Level level) noexcept {
    Level found = Level::automatic;
    if (!resolve_level(level, &found).ok()) return nullptr;
    switch (found) {
        case Level::scalar:
            return &linear_scalar;
#ifdef GEARKV_HAVE_AVX2
        case Level::avx2:
        case Level::avxvnni:
            return &linear_avx2;
#endif
#ifdef GEARKV_HAVE_AVX512
        case Level::avx512:
            return &linear_avx512;
#endif
#ifdef GEARKV_HAVE_NEON
        case Level::neon:
            return &linear_neon;
#endif
#ifdef GEARKV_HAVE_DOTPROD
        case Level::dotprod:
            return &linear_dotprod;
#endif
        default:
            return nullptr;
    }
}

}  // namespace gearkv
