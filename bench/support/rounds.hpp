// Timing by rounds: every case once in each round, so that what disturbs the machine disturbs all of them
// alike, and ratios are taken within a round.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <ctime>
#include <functional>
#include <vector>

namespace gearkv::bench {

// Microseconds of the processor that the calling thread has had: what else runs on the machine is not in it.
inline double processor_us() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return 1e6 * static_cast<double>(now.tv_sec) + 1e-3 * static_cast<double>(now.tv_nsec);
}

struct Timed {
    std::function<void()> run;
    std::vector<double> seconds = {};  // one entry a round
};

// One round first to warm up, which is not counted. `before` runs before each case, untimed. By the time that
// the calling thread has the processor, or by the clock.
inline void run_rounds(std::vector<Timed>* cases, std::size_t n_rounds,
                       const std::function<void()>& before = {}, bool processor = false) {
    for (std::size_t round = 0; round <= n_rounds; ++round) {
        for (Timed& one : *cases) {
            if (before) before();
            const auto start = std::chrono::steady_clock::now();
            const double processor_start = processor_us();
            one.run();
            const double processor_taken = 1e-6 * (processor_us() - processor_start);
            const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
            if (round > 0) one.seconds.push_back(processor ? processor_taken : taken.count());
        }
    }
}

// Linear between the neighbours; share in [0, 1].
inline double quantile(std::vector<double> values, double share) {
    std::sort(values.begin(), values.end());
    const double at = share * static_cast<double>(values.size() - 1);
    const auto low = static_cast<std::size_t>(at);
    const std::size_t high = std::min(low + 1, values.size() - 1);
    return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

inline double median(const std::vector<double>& values) {
    return quantile(values, 0.5);
}

// Half the distance of the quartiles, as a share of the median.
inline double spread(const std::vector<double>& values) {
    return (quantile(values, 0.75) - quantile(values, 0.25)) / 2 / median(values);
}

// Median over the rounds of a / b.
inline double ratio(const Timed& a, const Timed& b) {
    std::vector<double> ratios(a.seconds.size());
    for (std::size_t i = 0; i < ratios.size(); ++i)
        ratios[i] = a.seconds[i] / b.seconds[i];
    return median(ratios);
}

// Reads every 64-byte line once.
inline double read_lines(const void* bytes, std::size_t n_bytes) {
    const auto* at = static_cast<const unsigned char*>(bytes);
    double sums[8] = {};
    for (std::size_t i = 0; i + 512 <= n_bytes; i += 512) {
        for (std::size_t line = 0; line < 8; ++line) {
            double x;
            std::memcpy(&x, at + i + line * 64, sizeof(x));
            sums[line] += x;
        }
    }
    return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

// Keeps the compiler from dropping the computation of x.
template <class T>
inline void keep(const T& x) {
    asm volatile("" : : "r"(&x) : "memory");
}

}  // namespace gearkv::bench
