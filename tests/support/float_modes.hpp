// The ways in which a thread may compute with floats.
#pragma once

#include <cfenv>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gearkv::testing {

struct FloatWay {
    int rounding = FE_TONEAREST;
    bool flushes = false;  // denormals, on the way in and out
};

inline std::uint64_t float_control() {
#if defined(__x86_64__)
    return _mm_getcsr();
#elif defined(__aarch64__)
    std::uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return control;
#else
    return static_cast<std::uint64_t>(std::fegetround());
#endif
}

inline void set_float_control(std::uint64_t control) {
#if defined(__x86_64__)
    _mm_setcsr(static_cast<unsigned>(control));
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(control) : "memory");
#else
    std::fesetround(static_cast<int>(control));
#endif
}

// This thread's way, until the end of its life.
class InFloatWay {
  public:
    explicit InFloatWay(const FloatWay& way) : found_(float_control()) {
        std::fesetround(way.rounding);
#if defined(__x86_64__)
        constexpr unsigned flush_to_zero = 0x8000, denormals_are_zero = 0x40;
        if (way.flushes) set_float_control(float_control() | flush_to_zero | denormals_are_zero);
#elif defined(__aarch64__)
        constexpr std::uint64_t flush_to_zero = 1u << 24;
        if (way.flushes) set_float_control(float_control() | flush_to_zero);
#endif
        set_ = float_control();
    }
    ~InFloatWay() {
        set_float_control(found_);
    }
    InFloatWay(const InFloatWay&) = delete;
    InFloatWay& operator=(const InFloatWay&) = delete;
    // Whether it is as it was set.
    bool kept() const {
        return float_control() == set_;
    }

  private:
    std::uint64_t found_, set_;
};

inline std::vector<FloatWay> float_ways() {
    std::vector<FloatWay> ways;
    for (const int rounding : {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO}) {
        for (const bool flushes : {false, true})
            ways.push_back({rounding, flushes});
    }
    return ways;
}

}  // namespace gearkv::testing
