// exp for the lanes L of a vector level (arch/lanes.hpp).
#pragma once

#include <xsimd/xsimd.hpp>

namespace gearkv {
namespace {

// exp(x) to about an ulp: 0 where the result is below the normal floats, Inf above 2^127.5.
//   x = k ln 2 + r,  |r| <= ln 2 / 2,  exp(x) = 2^k (1 + r + r^2 q(r))
// with q the interpolant of degree 4 at Chebyshev nodes: relative error 1.1e-8 before rounding.
template <class L>
[[gnu::always_inline]] inline typename L::Float exponential(typename L::Float x) {
    using Float = typename L::Float;
    constexpr float log2_e = 0x1.715476p+0f;
    constexpr float ln2 = 0x1.62e430p-1f, ln2_rest = -0x1.05c610p-29f;
    constexpr float smallest = -87.33654f;  // exp of it is the smallest normal float
    constexpr float largest = 88.5f;        // k is 128, the exponent of Inf
    const Float in_range = xsimd::min(xsimd::max(x, L::broadcast(smallest)), L::broadcast(largest));
    const Float k = L::round(in_range * L::broadcast(log2_e));
    const Float r = L::fma(k, L::broadcast(-ln2_rest), L::fma(k, L::broadcast(-ln2), in_range));
    Float q = L::broadcast(0x1.6d117cp-10f);
    q = L::fma(q, r, L::broadcast(0x1.120be2p-7f));
    q = L::fma(q, r, L::broadcast(0x1.555518p-5f));
    q = L::fma(q, r, L::broadcast(0x1.5554dcp-3f));
    q = L::fma(q, r, L::broadcast(0.5f));
    const Float y = L::fma(q, r * r, r) + L::broadcast(1.0f);
    const auto power = L::template shift_left<23>(L::to_words(k + L::broadcast(127.0f)));
    return xsimd::select(x < L::broadcast(smallest), L::broadcast(0.0f), y * L::from_bits(power));
}

}  // namespace
}  // namespace gearkv
