// Inputs, comparisons and the walk over levels that the kernel tests share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "guarded_array.hpp"
#include "kernels/kernels.hpp"
#include "support/catch.hpp"

namespace gearkv::test {

inline std::size_t round_to(std::size_t n, std::size_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

// Equal seeds give equal inputs on every machine.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
    std::uint64_t bits() {
        state_ += 0x9e3779b97f4a7c15u;
        std::uint64_t x = state_;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        return x ^ (x >> 31);
    }
    std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>((bits() >> 32) * n >> 32); }
    // In [-1, 1), with zeros of both signs now and then.
    float real() {
        const std::uint64_t x = bits();
        if (x % 31 == 0) return x % 62 == 0 ? 0.0f : -0.0f;
        return static_cast<float>(static_cast<std::int64_t>(x) >> 39) * 0x1p-24f;
    }

  private:
    std::uint64_t state_;
};

// What fills the floats of a case.
enum class Pattern { random, wide, constant, largest, smallest, denormal };
inline constexpr Pattern all_patterns[] = {Pattern::random,  Pattern::wide,     Pattern::constant,
                                           Pattern::largest, Pattern::smallest, Pattern::denormal};
inline const char* pattern_name(Pattern pattern) {
    constexpr const char* names[] = {"random", "wide", "constant", "largest", "smallest", "denormal"};
    return names[static_cast<int>(pattern)];
}

inline std::vector<float> make_floats(std::size_t n, Pattern pattern, std::uint64_t seed) {
    Random random(seed);
    std::vector<float> x(n);
    for (float& value : x) {
        const float base = random.real();
        switch (pattern) {
            case Pattern::random:
                value = base;
                break;
            case Pattern::wide:
                value = std::ldexp(base, static_cast<int>(random.below(40)) - 24);
                break;
            case Pattern::constant:
                value = 0.7f;
                break;
            case Pattern::largest:
                value = 65504.0f;
                break;
            case Pattern::smallest:
                value = -65504.0f;
                break;
            case Pattern::denormal:
                value = base * 0x1p-130f;
                break;
        }
    }
    return x;
}

// Those of the level that GEARKV_LEVEL forces; without it, of every level that can run here.
inline std::vector<const Kernels*> all_kernels() {
    Level levels[n_levels];
    std::size_t n = available_levels(levels);
    if (std::getenv("GEARKV_LEVEL") != nullptr && resolve_level(Level::automatic, &levels[0]).ok()) n = 1;
    std::vector<const Kernels*> kernels;
    for (std::size_t i = 0; i < n; ++i)
        kernels.push_back(find_kernels(levels[i]));
    return kernels;
}

inline std::vector<std::size_t> sizes_up_to(std::size_t last, std::size_t first = 0) {
    std::vector<std::size_t> sizes;
    for (std::size_t n = first; n <= last; ++n)
        sizes.push_back(n);
    return sizes;
}

// Four of the widest vectors and one entry more.
inline constexpr std::size_t most_entries = 4 * 16 + 1;

// Index of the first entry whose bytes differ; n when there is none.
template <class T>
std::size_t first_difference(const T* a, const T* b, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        if (std::memcmp(a + i, b + i, sizeof(T)) != 0) return i;
    }
    return n;
}

// A sum of products in double, and what a float sum of the same terms in any order may differ by: every
// product and every partial sum is rounded once, each partial sum is at most the sum of magnitudes.
struct ExactSum {
    double sum = 0.0;
    double magnitude = 0.0;
    std::size_t n_terms = 0;

    void add(double term) {
        sum += term;
        magnitude += std::fabs(term);
        ++n_terms;
    }
    double tolerance() const {
        constexpr double unit = 0x1p-24, smallest = 0x1p-149;
        const auto n = static_cast<double>(n_terms + 4);
        return n * unit * magnitude * 1.001 + n * smallest;
    }
    bool accepts(float value, double rounding = 0.0) const {
        return std::fabs(static_cast<double>(value) - sum) <= tolerance() + rounding;
    }
};

// What factors that are rounded to bytes may change a sum by: a share of the largest for every code.
struct FactorRounding {
    double largest = 0.0, codes = 0.0;

    void add(double factor, double code) {
        largest = std::max(largest, std::fabs(factor));
        codes += std::fabs(code);
    }
    double most(const Kernels& kernels) const {
        return static_cast<double>(kernels.attention.factor_step) * largest * codes;
    }
};

}  // namespace gearkv::test
