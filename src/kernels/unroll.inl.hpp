// Loops that are unrolled before the compiler decides anything, so that arrays of vectors stay in registers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace gearkv {
namespace {

template <std::size_t i>
struct Index {
    static constexpr std::size_t value = i;
    constexpr operator std::size_t() const { return i; }
};

template <class Body, std::size_t... i>
[[gnu::always_inline]] inline void unroll_over(std::index_sequence<i...>, const Body& body) {
    (body(Index<i>()), ...);
}

// body(Index<0>()), ..., body(Index<n - 1>()). Bodies are lambdas marked GEARKV_INLINE.
template <std::size_t n, class Body>
[[gnu::always_inline]] inline void unroll(const Body& body) {
    unroll_over(std::make_index_sequence<n>(), body);
}

// Splits n rows into steps of at most `most` (4 or 8), halving towards the end: step(first, Index<rows>()).
template <std::size_t most, class Step>
void for_rows(std::size_t n, const Step& step, std::size_t first = 0) {
    for (; first + most <= n; first += most)
        step(first, Index<most>());
    if constexpr (most > 1) for_rows<most / 2>(n, step, first);
}

}  // namespace
}  // namespace gearkv

#define GEARKV_INLINE __attribute__((always_inline))
