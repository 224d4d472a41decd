// What makes the life of a cache out of bytes, and runs it strangely.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <utility>
#include <vector>

#include "gearkv/cache.hpp"
#include "gearkv/executor.hpp"
#include "support/layouts.hpp"

// Prints what a life was, and ends.
#define EXPECT(condition, ...)                                                   \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            std::fprintf(stderr, __VA_ARGS__);                                   \
            std::fprintf(stderr, "\n");                                          \
            std::abort();                                                        \
        }                                                                        \
    } while (false)

namespace gearkv::fuzz {

// The bytes, mixed with numbers that the first four of them begin; these alone once the bytes have ended.
class Choices {
  public:
    Choices(const std::uint8_t* data, std::size_t n) : data_(data), n_(n) {
        std::uint32_t seed = 0;
        if (n >= 4) std::memcpy(&seed, data, 4);
        random_.seed(seed);
        at_ = std::min<std::size_t>(n, 4);
    }
    std::uint32_t below(std::uint32_t end) {
        const std::uint32_t from_data = at_ < n_ ? data_[at_++] * 0x9e3779b9u : 0;
        return static_cast<std::uint32_t>(random_() ^ from_data) % end;
    }
    bool one_in(std::uint32_t n) { return below(n) == 0; }
    template <class T, std::size_t n>
    const T& of(const T (&all)[n]) {
        return all[below(n)];
    }
    float gaussian() { return normal_(random_); }
    // Choices that are none of these, so that lives known by their bytes go on as they did.
    Choices aside() const {
        Choices other = *this;
        other.random_.discard(1000);
        return other;
    }

  private:
    const std::uint8_t* data_;
    std::size_t n_, at_ = 0;
    std::mt19937 random_;
    std::normal_distribution<float> normal_;
};

// Other threads at every question; tasks in some order, some of them inside of others.
class StrangeExecutor final : public Executor {
  public:
    explicit StrangeExecutor(std::uint32_t seed) : random_(seed) {}
    void parallel_for(std::size_t n, Task task, void* context) noexcept override {
        switch (random_() % 3) {
            case 0:
                for (std::size_t i = n; i-- > 0;)
                    task(context, i);
                break;
            case 1:
                for (std::size_t i = 0; i < n; i += 2)
                    task(context, i);
                for (std::size_t i = 1; i < n; i += 2)
                    task(context, i);
                break;
            default:
                serial_executor().parallel_for(n, task, context);
        }
    }
    unsigned n_threads() const noexcept override {
        constexpr unsigned counts[] = {1, 2, 3, 8, 64, 100000};
        return counts[random_() % 6];
    }

  private:
    mutable std::mt19937 random_;
};

constexpr float largest = std::numeric_limits<float>::max();
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// Queries of n tokens of a layer with any rules, extreme ones among them; of latents [key, latent] side by
// side.
class Asked {
  public:
    Asked() = default;
    Asked(Asked&&) = default;  // what the queries point to stays where it is
    Asked& operator=(Asked&&) = default;
    Asked(Choices& choices, const LayerDims& dims, bool latent, std::uint64_t n)
        : n_before_latent_(latent ? dims.key_dim : 0) {
        const std::uint32_t width = dims.key_dim + (latent ? dims.value_dim : 0);
        const auto extreme = [&](float usual) {
            constexpr float numbers[] = {0.0f, 1e-44f, 1e-30f, 1e20f, -1e30f, 1e37f, largest, -largest};
            return choices.one_in(6) ? choices.of(numbers) : usual;
        };
        queries.n_heads = dims.n_kv_heads * (1 + choices.below(5));
        queries.n_queries = 1 + choices.below(choices.one_in(4) ? 20 : 2);
        queries.causal = !choices.one_in(4);
        if (queries.causal) queries.n_queries = std::min(queries.n_queries, static_cast<std::uint32_t>(n));
        queries.head_stride = width;
        queries.query_stride = std::size_t{queries.n_heads} * width;
        data_.resize(queries.n_queries * queries.query_stride);
        const float factor = extreme(1.0f);
        for (float& x : data_)
            x = std::clamp(choices.gaussian() * factor, -largest, largest);
        const ElementType type = choices.of(testing::all_types);
        constexpr float largest_bfloat = 0x1.fep127f;
        for (float& x : data_) {
            if (type == ElementType::bf16) x = std::clamp(x, -largest_bfloat, largest_bfloat);
        }
        data_ = testing::rounded(std::move(data_), type);
        laid_ = testing::Laid(data_, queries.n_heads, width, type, choices.of(testing::all_orders));
        queries.data = data_.data();
        if (latent) queries.latents = data_.data() + n_before_latent_;
        queries.scale = extreme(0.2f);
        if (queries.scale == 0.0f) queries.scale = 1.0f;
        if (choices.one_in(4)) queries.soft_cap = std::fabs(extreme(3.0f));
        if (choices.one_in(4)) queries.window = 1 + choices.below(300);
        if (choices.one_in(8)) queries.negligible = 1e-7f;
        for (std::uint32_t head = 0; head < queries.n_heads; ++head) {
            slopes_.push_back(extreme(0.1f));
            sinks_.push_back(choices.one_in(5) ? minus_infinity : extreme(0.5f));
        }
        if (choices.one_in(4)) queries.slopes = slopes_.data();
        if (choices.one_in(4)) queries.sinks = sinks_.data();
        if (choices.one_in(4)) {
            const bool shared = choices.one_in(2);
            mask_.resize((shared ? 1 : queries.n_heads) * n);
            const float hidden = choices.one_in(2) ? minus_infinity : extreme(-5.0f);
            for (float& x : mask_)
                x = choices.gaussian() > 0.5f ? hidden : choices.gaussian();
            queries.mask = mask_.data();
            queries.mask_head_stride = shared ? 0 : n;
        }
        read_less(choices.aside(), dims, n);
    }
    std::size_t n_floats(const LayerDims& dims) const {
        return std::size_t{queries.n_queries} * queries.n_heads * dims.value_dim;
    }

    // The same numbers in another layout.
    Queries laid() const {
        Queries other = laid_.queries(queries);
        if (queries.latents != nullptr)
            other.latents =
                laid_.bytes.data() + n_before_latent_ * other.channel_stride * testing::bytes_of(other.type);
        return other;
    }

    Queries queries;

  private:
    void read_less(Choices choices, const LayerDims& dims, std::uint64_t n) {
        constexpr float shares[] = {1e-3f, 0.25f, 0.5f, 0.9f, 0.99f, 0.999f, 0x1.fffffep-1f};
        if (choices.one_in(8)) {
            constexpr float weights[] = {1e-30f, 1e-5f, 1e-3f, 0.1f, 0.99f};
            queries.negligible = choices.of(weights);
        }
        if (choices.one_in(4)) queries.mass = choices.of(shares);
        if (choices.one_in(8)) queries.most_share = choices.of(shares);
        if (queries.mass < 1.0f || queries.most_share < 1.0f || n == 0 || !choices.one_in(4)) return;
        const auto step = 1 + static_cast<std::uint32_t>(n) / (1 + choices.below(6));
        for (std::uint32_t head = 0; head < dims.n_kv_heads; ++head) {
            for (std::uint64_t first = choices.below(step); first < n && !choices.one_in(12);) {
                const std::uint64_t end = std::min<std::uint64_t>(n, first + 1 + choices.below(step));
                ranges_.push_back({first, end});
                first = end + (choices.one_in(3) ? 0 : choices.below(step));
            }
            range_ends_.push_back(ranges_.size());
        }
        ranges_.reserve(1);  // null is all tokens, not none
        queries.ranges = ranges_.data();
        queries.range_ends = range_ends_.data();
    }

    testing::Laid laid_;
    std::size_t n_before_latent_ = 0;  // channels of a query
    std::vector<float> data_, slopes_, sinks_, mask_;
    std::vector<TokenRange> ranges_;
    std::vector<std::size_t> range_ends_;
};

}  // namespace gearkv::fuzz
