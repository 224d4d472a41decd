// exp for the lanes L of a vector level (arch/lanes.hpp).
#pragma once

#include <xsimd/xsimd.hpp>

namespace gearkv {
namespace {

// exp(x) = 2^k y, y about 1, of an x that is finite:
//   x = k ln 2 + r,  |r| <= ln 2 / 2,  y = 1 + r + r^2 q(r)
// with q the interpolant of degree 4 at Chebyshev nodes: relative error 1.1e-8 before rounding.
template <class L>
struct Exponential {
    typename L::Float k, y, over_one;  // y - 1, exact where y is about 1
};

template <class L>
[[gnu::always_inline]] inline Exponential<L> split_exponential(typename L::Float x) {
    using Float = typename L::Float;
    constexpr float log2_e = 0x1.715476p+0f;
    constexpr float ln2 = 0x1.62e430p-1f, ln2_rest = -0x1.05c610p-29f;
    const Float k = L::round(x * L::broadcast(log2_e));
    const Float r = L::fma(k, L::broadcast(-ln2_rest), L::fma(k, L::broadcast(-ln2), x));
    Float q = L::broadcast(0x1.6d117cp-10f);
    q = L::fma(q, r, L::broadcast(0x1.120be2p-7f));
    q = L::fma(q, r, L::broadcast(0x1.555518p-5f));
    q = L::fma(q, r, L::broadcast(0x1.5554dcp-3f));
    q = L::fma(q, r, L::broadcast(0.5f));
    const Float over_one = L::fma(q, r * r, r);
    return {k, over_one + L::broadcast(1.0f), over_one};
}

// exp(x) to about an ulp for x below 88.5, -Inf among them: 0 where the result is below the normal floats, or
// what a denormal has of it.
template <class L>
[[gnu::always_inline]] inline typename L::Float falling_exponential(typename L::Float x) {
    if constexpr (L::scales_by_powers) {
        constexpr float nothing = -128.0f;  // exp of it is below all floats
        const Exponential<L> e = split_exponential<L>(xsimd::max(x, L::broadcast(nothing)));
        return L::scale_by_power(e.y, e.k);
    } else {
        constexpr float smallest = -87.33654f;  // exp of it is the smallest normal float
        const Exponential<L> e = split_exponential<L>(xsimd::max(x, L::broadcast(smallest)));
        const auto power = L::template shift_left<23>(L::to_words(e.k + L::broadcast(127.0f)));
        return xsimd::select(x < L::broadcast(smallest), L::broadcast(0.0f), e.y * L::from_bits(power));
    }
}

// The same for all x; Inf above 2^127.5.
template <class L>
[[gnu::always_inline]] inline typename L::Float exponential(typename L::Float x) {
    constexpr float largest = 88.5f;  // k is 128, the exponent of Inf
    return falling_exponential<L>(xsimd::min(x, L::broadcast(largest)));
}

}  // namespace
}  // namespace gearkv
