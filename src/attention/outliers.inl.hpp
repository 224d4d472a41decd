// Outliers of keys and values met with a few rows at once, for one vector level: the rows are the lanes, so
// that all of them walk the outliers once.
//
// Loops over the outliers of a token would mispredict their end every time. Scores take the tokens in the
// order of their counts; values, of which each adds to a place of its own, go through one list.
#pragma once

#include <cstring>

#include "format/block.hpp"
#include "kernels/kernels.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

using FourRows [[gnu::vector_size(16)]] = float;

[[gnu::always_inline]] inline FourRows load_four(const void* x) {
    FourRows four;
    std::memcpy(&four, x, sizeof(four));
    return four;
}
[[gnu::always_inline]] inline void store_four(void* to, FourRows four) {
    std::memcpy(to, &four, sizeof(four));
}
// L::width tokens of four rows, rows side by side: [token][row] from [row][token] by two steps that zip the
// lower half of the vectors with the upper one, and back by as many as bring the tokens round.
template <class L>
[[gnu::always_inline]] inline void zip_halves(typename L::Float (&x)[4]) {
    L::zip(x[0], x[2]);
    L::zip(x[1], x[3]);
    const typename L::Float zipped[4] = {x[0], x[2], x[1], x[3]};
    unroll<4>([&](auto i) GEARKV_INLINE { x[i] = zipped[i]; });
}
template <class L>
inline constexpr std::size_t token_steps = L::width == 4   ? 2
                                           : L::width == 8 ? 3
                                                           : 4;

// The outliers of consecutive tokens, ready to be met: values as floats, and where the rows of their channels
// begin, in bytes.
struct OutlierChunk {
    static constexpr std::uint32_t most = 1024;
    static_assert(most >= max_dim);  // a token fits
    static constexpr std::uint32_t surplus = 16;
    float value[most + surplus];
    std::uint16_t at[most + surplus];

    // The first n; up to `surplus` more are 0.
    template <class L>
    void fill(const Outliers& from, std::uint64_t first, std::uint32_t n, std::uint32_t row_bytes) {
        const std::uint16_t* values = from.values + first;
        std::uint32_t i = 0;
        for (; i + L::width <= n; i += L::width)
            L::store(value + i, L::load_half(values + i));
        if (i < n) L::store(value + i, L::load_half_first(values + i, n - i));
        std::memset(value + n, 0, surplus * sizeof(float));
        if (from.wide) {
            const auto* channels = static_cast<const std::uint16_t*>(from.channels) + first;
            for (i = 0; i < n; ++i)
                at[i] = static_cast<std::uint16_t>(channels[i] * row_bytes);
        } else {
            const auto* channels = static_cast<const std::uint8_t*>(from.channels) + first;
            for (i = 0; i < n; ++i)
                at[i] = static_cast<std::uint16_t>(channels[i] * row_bytes);
        }
        std::memset(at + n, 0, surplus * sizeof(at[0]));
    }
    static_assert(max_dim * max_rows * sizeof(float) <= 65536);
};

// Outliers of each token, in one type.
struct OutlierCounts {
    std::uint16_t of[tile_tokens];

    explicit OutlierCounts(const Outliers& from) {
        if (from.wide) {
            std::memcpy(of, from.counts, from.n_tokens * sizeof(of[0]));
        } else {
            const auto* counts = static_cast<const std::uint8_t*>(from.counts);
            for (std::uint32_t t = 0; t < from.n_tokens; ++t)
                of[t] = counts[t];
        }
    }
};

// Calls body(first token, end token, outliers of the chunks before, their count) for as many tokens at a time
// as surely fit a chunk.
template <class Body>
[[gnu::always_inline]] inline void for_outlier_chunks(const Outliers& from, const OutlierCounts& counts,
                                                      const Body& body) {
    std::uint32_t first = 0;
    for (std::uint32_t t = 0; t < from.n_tokens && first < from.n;) {
        std::uint32_t end = from.n_tokens, n = from.n - first;
        if (n > OutlierChunk::most) {
            for (end = t, n = 0; end < from.n_tokens && n + counts.of[end] <= OutlierChunk::most; ++end)
                n += counts.of[end];
        }
        body(t, end, std::uint64_t{first}, n);
        first += n;
        t = end;
    }
}

// Tokens by their count of outliers, so that loops over them have a length that is known.
struct TokensByCount {
    static constexpr std::uint32_t most = 7;  // the last has this many and more
    std::uint8_t token[most + 1][tile_tokens];
    std::uint16_t from[most + 1][tile_tokens];  // first outlier
    std::uint64_t n_each = 0;                   // how many tokens, a byte for each count
    static_assert(tile_tokens < 256);

    TokensByCount(const std::uint16_t* counts, std::uint32_t n_tokens) {
        std::uint32_t at = 0;
        for (std::uint32_t t = 0; t < n_tokens; ++t) {
            const std::uint32_t count = counts[t], slot = count < most ? count : most, place = n(slot);
            n_each += std::uint64_t{1} << (8 * slot);
            token[slot][place] = static_cast<std::uint8_t>(t);
            from[slot][place] = static_cast<std::uint16_t>(at);
            at += count;
        }
    }
    std::uint32_t n(std::uint32_t slot) const { return n_each >> (8 * slot) & 255; }
};

template <std::uint32_t n_lanes>
struct TokenRows {
    alignas(64) float rows[tile_tokens + lane_tile][n_lanes];
};

template <std::uint32_t n_lanes, std::uint32_t n>
[[gnu::always_inline]] inline void sum_outliers(TokenRows<n_lanes>* sums, const OutlierChunk& chunk,
                                                const TokensByCount& tokens, const char* query) {
    for (std::uint32_t k = 0; k < tokens.n(n); ++k) {
        const float* value = chunk.value + tokens.from[n][k];
        const std::uint16_t* at = chunk.at + tokens.from[n][k];
        float* sum = sums->rows[tokens.token[n][k]];
        unroll<n_lanes / 4>([&](auto part) GEARKV_INLINE {
            FourRows four = {};
            unroll<n>([&](auto i) GEARKV_INLINE { four += load_four(query + at[i] + 16 * part) * value[i]; });
            store_four(sum + 4 * part, four);
        });
    }
}

template <class L, std::uint32_t n_lanes>
void score_outlier_chunk(const ScoreOutliers& args, const OutlierChunk& chunk, const std::uint16_t* counts,
                         std::uint32_t n_tokens, float* scores) {
    const char* query = reinterpret_cast<const char*>(args.query);
    const TokensByCount tokens(counts, n_tokens);
    TokenRows<n_lanes> sums;
    unroll<TokensByCount::most + 1>(
        [&](auto n) GEARKV_INLINE { sum_outliers<n_lanes, n.value>(&sums, chunk, tokens, query); });
    for (std::uint32_t k = 0; k < tokens.n(TokensByCount::most); ++k) {
        const std::uint32_t t = tokens.token[TokensByCount::most][k],
                            from = tokens.from[TokensByCount::most][k];
        for (std::uint32_t part = 0; part < n_lanes / 4; ++part) {
            FourRows four = load_four(sums.rows[t] + 4 * part);
            for (std::uint32_t i = from + TokensByCount::most; i < from + counts[t]; ++i)
                four += load_four(query + chunk.at[i] + 16 * part) * chunk.value[i];
            store_four(sums.rows[t] + 4 * part, four);
        }
    }
    for (std::uint32_t t = 0; t < n_tokens; t += L::width) {
        const std::uint32_t n = n_tokens - t;
        for (std::uint32_t row = 0; row < n_lanes && row < args.n_rows; row += 4) {
            typename L::Float x[4];
            if constexpr (n_lanes == 4) {
                const float* rows = sums.rows[t];
                unroll<4>([&](auto i) GEARKV_INLINE { x[i] = L::load(rows + i * L::width); });
            } else {
                alignas(64) float four[L::width][4];
                for (std::size_t k = 0; k < L::width; ++k)
                    store_four(four[k], load_four(sums.rows[t + k] + row));
                const float* rows = four[0];
                unroll<4>([&](auto i) GEARKV_INLINE { x[i] = L::load(rows + i * L::width); });
            }
            unroll<token_steps<L>>([&](auto) GEARKV_INLINE { zip_halves<L>(x); });
            const std::uint32_t n_rows = args.n_rows - row;
            unroll<4>([&](auto r) GEARKV_INLINE {
                float* at = scores + (row + r) * args.score_stride + t;
                if (r >= n_rows) return;
                if (n >= L::width) {
                    L::store(at, L::load(at) + x[r]);
                } else {
                    L::store_first(at, L::load_first(at, n) + x[r], n);
                }
            });
        }
    }
}

template <class L, std::uint32_t n_lanes>
void score_outlier_rows(const ScoreOutliers& args) {
    OutlierChunk chunk;
    const OutlierCounts counts(args.outliers);
    for_outlier_chunks(
        args.outliers, counts,
        [&](std::uint32_t first_token, std::uint32_t end_token, std::uint64_t first, std::uint32_t n) {
            chunk.fill<L>(args.outliers, first, n, n_lanes * sizeof(float));
            score_outlier_chunk<L, n_lanes>(args, chunk, counts.of + first_token, end_token - first_token,
                                            args.scores + first_token);
        });
}

// Rows of the weights side by side; those beyond n_rows are 0.
template <class L, std::uint32_t n_lanes>
void turn_weights(TokenRows<n_lanes>* to, const MixOutliers& args) {
    for (std::uint32_t t = 0; t < args.outliers.n_tokens; t += L::width) {
        for (std::uint32_t row = 0; row < n_lanes; row += 4) {
            typename L::Float x[4];
            unroll<4>([&](auto r) GEARKV_INLINE {
                x[r] = row + r < args.n_rows ? L::load(args.weight + (row + r) * args.weight_stride + t)
                                             : L::broadcast(0.0f);
            });
            unroll<2>([&](auto) GEARKV_INLINE { zip_halves<L>(x); });
            if constexpr (n_lanes == 4) {
                float* rows = to->rows[t];
                unroll<4>([&](auto i) GEARKV_INLINE { L::store(rows + i * L::width, x[i]); });
            } else {
                alignas(64) float four[L::width][4];
                float* rows = four[0];
                unroll<4>([&](auto i) GEARKV_INLINE { L::store(rows + i * L::width, x[i]); });
                for (std::size_t k = 0; k < L::width; ++k)
                    store_four(to->rows[t + k] + row, load_four(four[k]));
            }
        }
    }
}

// `at` becomes where the rows of each outlier's weights begin, in units of eight bytes.
template <std::uint32_t n_lanes>
void list_tokens(std::uint16_t* at, const std::uint16_t* counts, std::uint32_t first_token,
                 std::uint32_t end_token) {
    constexpr std::uint64_t step = 0x0001000100010001u * (n_lanes / 2);
    std::uint64_t four = first_token * step;
    for (std::uint32_t t = first_token; t < end_token; ++t) {
        const std::uint32_t n = counts[t];
        std::memcpy(at, &four, sizeof(four));
        std::memcpy(at + 4, &four, sizeof(four));
        for (std::uint32_t i = 8; i < n; i += 4)
            std::memcpy(at + i, &four, sizeof(four));
        at += n;
        four += step;
    }
}

template <class L, std::uint32_t n_lanes>
void mix_outlier_rows(const MixOutliers& args) {
    OutlierChunk chunk;
    TokenRows<n_lanes> weights;
    turn_weights<L>(&weights, args);
    std::uint16_t token_at[OutlierChunk::most + OutlierChunk::surplus];
    const OutlierCounts counts(args.outliers);
    for_outlier_chunks(
        args.outliers, counts,
        [&](std::uint32_t first_token, std::uint32_t end_token, std::uint64_t first, std::uint32_t n) {
            chunk.fill<L>(args.outliers, first, n, n_lanes * sizeof(float));
            list_tokens<n_lanes>(token_at, counts.of, first_token, end_token);
            char* out = reinterpret_cast<char*>(args.out);
            const char* from = reinterpret_cast<const char*>(weights.rows[0]);
            const auto add = [&](std::uint32_t i) GEARKV_INLINE {
                const std::size_t weight = token_at[i], at = chunk.at[i];
                unroll<n_lanes / 4>([&](auto part) GEARKV_INLINE {
                    const FourRows product = load_four(from + 8 * weight + 16 * part) * chunk.value[i];
                    store_four(out + at + 16 * part, load_four(out + at + 16 * part) + product);
                });
            };
            std::uint32_t i = 0;
            for (; i + 4 <= n; i += 4)
                unroll<4>([&](auto k) GEARKV_INLINE { add(i + k); });
            for (; i < n; ++i)
                add(i);
        });
}

template <class L>
void score_outliers(const ScoreOutliers& args) {
    if (outlier_lanes(args.n_rows) == 4) {
        score_outlier_rows<L, 4>(args);
    } else {
        score_outlier_rows<L, 8>(args);
    }
}

template <class L>
void mix_outliers(const MixOutliers& args) {
    if (outlier_lanes(args.n_rows) == 4) {
        mix_outlier_rows<L, 4>(args);
    } else {
        mix_outlier_rows<L, 8>(args);
    }
}

}  // namespace
}  // namespace gearkv
