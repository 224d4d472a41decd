#include "detect.hpp"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace gearkv {
namespace {

#if defined(__x86_64__)

// The registers the operating system saves on a context switch, of use only when CPUID says OSXSAVE.
std::uint32_t saved_state() {
    std::uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

struct Features {
    bool avx2 = false;
    bool avxvnni = false;
    bool avx512 = false;
};

Features detect_features() {
    constexpr std::uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28,
                            f16c = 1u << 29;  // leaf 1, ecx
    constexpr std::uint32_t avx2 = 1u << 5;   // leaf 7, ebx
    constexpr std::uint32_t avx512 =
        1u << 16 | 1u << 17 | 1u << 21 | 1u << 28 | 1u << 30 | 1u << 31;  // F, DQ, IFMA, CD, BW, VL
    constexpr std::uint32_t avx512_bytes = 1u << 1 | 1u << 11;            // leaf 7, ecx: VBMI, VNNI
    constexpr std::uint32_t avxvnni = 1u << 4;                            // leaf 7, second part, eax
    constexpr std::uint32_t ymm_state = 0x06,
                            zmm_state = 0xe6;  // xmm, ymm; and opmask, zmm halves, zmm16..31

    Features features;
    std::uint32_t a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0) return features;
    constexpr std::uint32_t needed = fma | osxsave | avx | f16c;
    if ((c & needed) != needed) return features;
    const std::uint32_t state = saved_state();
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return features;
    features.avx2 = (state & ymm_state) == ymm_state && (b & avx2) != 0;
    features.avx512 = features.avx2 && (state & zmm_state) == zmm_state && (b & avx512) == avx512 &&
                      (c & avx512_bytes) == avx512_bytes;
    if (features.avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) features.avxvnni = (a & avxvnni) != 0;
    return features;
}

#endif

}  // namespace

bool cpu_can_run(Level level) noexcept {
    switch (level) {
        case Level::scalar:
            return true;
#if defined(__x86_64__)
        case Level::avx2:
            return detect_features().avx2;
        case Level::avxvnni:
            return detect_features().avxvnni;
        case Level::avx512:
            return detect_features().avx512;
#elif defined(__aarch64__)
        case Level::neon:
            return true;  // part of every AArch64
        case Level::dotprod: {
#if defined(__ARM_FEATURE_DOTPROD)
            return true;
#elif defined(__linux__)
            constexpr unsigned long dot_product = 1ul << 20;  // HWCAP_ASIMDDP
            return (getauxval(AT_HWCAP) & dot_product) != 0;
#else
            return false;
#endif
        }
#endif
        default:
            return false;
    }
}

}  // namespace gearkv
