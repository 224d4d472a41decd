#include "roofline.hpp"

#include <algorithm>
#include <atomic>

#include "report.hpp"

namespace gearkv::tool {
namespace {

constexpr std::size_t line_words = 8;

// A line of each of four stretches in turn: more of them are on their way at once than in one stretch.
std::uint64_t read_lines(const std::uint64_t* words, std::size_t n_words) {
    constexpr std::size_t n_stretches = 4;
    const std::size_t n = n_words / n_stretches / line_words * line_words;
    std::uint64_t sums[n_stretches] = {};
    for (std::size_t i = 0; i < n; i += line_words) {
        sums[0] += words[i];
        sums[1] += words[n + i];
        sums[2] += words[2 * n + i];
        sums[3] += words[3 * n + i];
    }
    return sums[0] + sums[1] + sums[2] + sums[3];
}

}  // namespace

Roofline::Roofline(std::uint64_t n_bytes) {
    const std::uint64_t n = std::clamp<std::uint64_t>(n_bytes, 64u << 20, 1u << 30) / sizeof(words_[0]);
    // Not zeros: pages of zeros may all be the same page.
    words_.resize(n, 1);
}

double Roofline::measure(Executor& executor) const {
    constexpr std::size_t part_words = (1u << 20) / sizeof(words_[0]);
    const std::size_t n_parts = words_.size() / part_words;
    double least = 0;
    for (int pass = 0; pass < 3; ++pass) {
        std::atomic<std::uint64_t> sum{0};
        const auto start = std::chrono::steady_clock::now();
        parallel_for(executor, n_parts, [&](std::size_t part) {
            sum.fetch_add(read_lines(words_.data() + part * part_words, part_words),
                          std::memory_order_relaxed);
        });
        const double seconds = seconds_since(start);
        if (sum.load() > 0 && (pass == 0 || seconds < least)) least = seconds;
    }
    return least > 0 ? static_cast<double>(n_parts * part_words * sizeof(words_[0])) / least : 0.0;
}

}  // namespace gearkv::tool
