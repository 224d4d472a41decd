#include "decoder/network/integer.hpp"

namespace gearkv {

const IntegerKernels* find_integer_kernels(Level level) noexcept {
    Level found = Level::automatic;
    if (!resolve_level(level, &found).ok()) return nullptr;
    switch (found) {
        case Level::scalar:
            return &integer_scalar;
#ifdef GEARKV_HAVE_AVX2
        case Level::avx2:
            return &integer_avx2;
#endif
#ifdef GEARKV_HAVE_AVXVNNI
        case Level::avxvnni:
            return &integer_avxvnni;
#endif
#ifdef GEARKV_HAVE_AVX512
        case Level::avx512:
            return &integer_avx512;
#endif
#ifdef GEARKV_HAVE_NEON
        case Level::neon:
            return &integer_neon;
#endif
#ifdef GEARKV_HAVE_DOTPROD
        case Level::dotprod:
            return &integer_dotprod;
#endif
        default:
            return nullptr;
    }
}

}  // namespace gearkv
