// Reference of the attention kernels: each does what kernels/kernels.hpp says, one number at a time.
#include <math.h>
#include <string.h>

#include "level.hpp"
#include "tables.hpp"
#include "trellis.hpp"

namespace gearkv {
namespace {

using std::size_t;
using std::uint16_t;
using std::uint32_t;
using std::uint8_t;

// Code `depth` of a plane of `bits` bits, whose words are `stride` apart; see block.hpp.
uint32_t plane_code(const uint32_t* words, size_t stride, uint32_t depth, uint32_t bits) {
    const uint32_t per_word = 32 / bits;
    const uint32_t at = depth % per_word;
    return words[depth / per_word * stride] >> (8 * (at % 4) + bits * (at / 4)) & ((1u << bits) - 1);
}

template <uint32_t bits>
uint32_t key_code(const uint32_t* lane, uint32_t channel, uint32_t dim) {
    if (bits != 3) return plane_code(lane, lane_tile, channel, bits);
    const uint32_t* high_plane = lane + size_t{2} * ((dim + 31) / 32) * lane_tile;
    return plane_code(lane, lane_tile, channel, 2) | plane_code(high_plane, lane_tile, channel, 1) << 2;
}

template <uint32_t bits>
void score_codes(const ScoreCodes& args) {
    for (uint32_t token = 0; token < args.n_tiles * lane_tile; ++token) {
        const uint32_t* lane = args.words + token / lane_tile * args.tile_words + token % lane_tile;
        float sums[max_rows] = {};
        for (uint32_t c = 0; c < args.n_channels; ++c) {
            const auto code = static_cast<float>(key_code<bits>(lane, args.first_channel + c, args.dim));
            for (uint32_t row = 0; row < args.n_rows; ++row) {
                sums[row] += args.query[row * args.query_stride + c] * code;
            }
        }
        for (uint32_t row = 0; row < args.n_rows; ++row) {
            args.scores[row * args.score_stride + token] = args.bias[row] + sums[row];
        }
    }
}

template <uint32_t bits>
uint32_t value_code(const uint32_t* lane, size_t n_lanes, uint32_t token) {
    if (bits != 3) return plane_code(lane, n_lanes, token, bits);
    const uint32_t* unit = lane + size_t{token / 32} * 3 * n_lanes;
    return plane_code(unit, n_lanes, token % 32, 2) | plane_code(unit + 2 * n_lanes, n_lanes, token % 32, 1)
                                                          << 2;
}

template <uint32_t bits>
void mix_codes(const MixCodes& args) {
    const uint32_t n_padded = (args.n_channels + lane_tile - 1) / lane_tile * lane_tile;
    for (uint32_t channel = args.first_channel; channel < args.first_channel + n_padded; ++channel) {
        float sums[max_rows] = {};
        for (uint32_t t = 0; t < args.n_tokens; ++t) {
            const auto code = static_cast<float>(value_code<bits>(args.words + channel, args.n_lanes, t));
            for (uint32_t row = 0; row < args.n_rows; ++row) {
                sums[row] += args.weight[row * args.weight_stride + t] * code;
            }
        }
        for (uint32_t row = 0; row < args.n_rows; ++row)
            args.out[row * args.out_stride + channel] += args.bias[row] + sums[row];
    }
}

void score_trellis(const ScoreTrellis& args) {
    const uint32_t* words = args.words;
    for (uint32_t g = 0; g < args.n_granules; ++g) {
        walk_granule(TensorKind::key, words, args.widths[g], [&](uint32_t c, uint32_t t, float level) {
            for (uint32_t row = 0; row < args.n_rows; ++row) {
                args.scores[row * args.score_stride + t] +=
                    args.query[row * args.query_stride + g * key_granule + c] * level;
            }
        });
        words += args.widths[g] * key_plane_words;
    }
}

void mix_trellis(const MixTrellis& args) {
    const uint32_t* words = args.words;
    for (uint32_t g = 0; g < args.n_granules; ++g) {
        for (uint32_t row = 0; row < args.n_rows; ++row) {
            for (uint32_t c = 0; c < value_granule; ++c) {
                args.out[row * args.out_stride + g * value_granule + c] = 0.0f;
            }
        }
        walk_granule(TensorKind::value, words, args.widths[g], [&](uint32_t c, uint32_t t, float level) {
            if ((args.slices >> (t / slice_tokens) & 1) == 0) return;
            for (uint32_t row = 0; row < args.n_rows; ++row) {
                args.out[row * args.out_stride + g * value_granule + c] +=
                    args.weight[row * args.weight_stride + t] * level;
            }
        });
        words += args.widths[g] * value_plane_words;
    }
}

void mix_keys(const MixTrellis& args) {
    const uint32_t* words = args.words;
    const uint32_t n_padded = (args.n_granules * key_granule + lane_tile - 1) / lane_tile * lane_tile;
    for (uint32_t row = 0; row < args.n_rows; ++row) {
        for (uint32_t c = 0; c < n_padded; ++c)
            args.out[row * args.out_stride + c] = 0.0f;
    }
    for (uint32_t g = 0; g < args.n_granules; ++g) {
        walk_granule(TensorKind::key, words, args.widths[g], [&](uint32_t c, uint32_t t, float level) {
            for (uint32_t row = 0; row < args.n_rows; ++row) {
                args.out[row * args.out_stride + g * key_granule + c] +=
                    args.weight[row * args.weight_stride + t] * level;
            }
        });
        words += args.widths[g] * key_plane_words;
    }
}

float to_float(float x) {
    return x;
}
float to_float(uint16_t x) {
    return half_to_float(x);
}

template <class T>
void score_rows(float* scores, size_t score_stride, const RawRows& x, const float* query, size_t query_stride,
                uint32_t n_rows) {
    for (uint32_t t = 0; t < x.n_tokens; ++t) {
        const T* key = static_cast<const T*>(x.rows) + t * x.row_stride;
        for (uint32_t row = 0; row < n_rows; ++row) {
            float sum = 0.0f;
            for (uint32_t c = 0; c < x.n_channels; ++c)
                sum += query[row * query_stride + c] * to_float(key[c]);
            scores[row * score_stride + t] += sum;
        }
    }
}

template <class T>
void mix_rows(float* out, size_t out_stride, const RawRows& x, const float* weight, size_t weight_stride,
              uint32_t n_rows) {
    for (uint32_t row = 0; row < n_rows; ++row) {
        for (uint32_t c = 0; c < x.n_channels; ++c) {
            float sum = 0.0f;
            for (uint32_t t = 0; t < x.n_tokens; ++t) {
                sum += weight[row * weight_stride + t] *
                       to_float(static_cast<const T*>(x.rows)[t * x.row_stride + c]);
            }
            out[row * out_stride + c] += sum;
        }
    }
}

void add_half(float* y, const uint16_t* x, float alpha, size_t n) {
    for (size_t t = 0; t < n; ++t)
        y[t] += alpha * half_to_float(x[t]);
}

float dot_half(const float* y, const uint16_t* x, size_t n) {
    float sum = 0.0f;
    for (size_t t = 0; t < n; ++t)
        sum += y[t] * half_to_float(x[t]);
    return sum;
}

void scale_half(float* out, const float* x, const uint16_t* y, size_t n) {
    for (size_t i = 0; i < n; ++i)
        out[i] = x[i] * half_to_float(y[i]);
}

float softmax_tile(float* weight, const float* score, size_t n, float* max, float* sum) {
    float most = *max;
    for (size_t t = 0; t < n; ++t) {
        if (score[t] > most) most = score[t];
    }
    for (size_t t = n; t % lane_tile != 0; ++t)
        weight[t] = 0.0f;
    if (most == -HUGE_VALF) {
        for (size_t t = 0; t < n; ++t)
            weight[t] = 0.0f;
        return 1.0f;
    }
    float total = 0.0f;
    for (size_t t = 0; t < n; ++t) {
        weight[t] = ::expf(score[t] - most);
        total += weight[t];
    }
    const float alpha = ::expf(*max - most);
    *sum = *sum * alpha + total;
    *max = most;
    return alpha;
}

void soft_cap(float* x, float cap, size_t n) {
    for (size_t i = 0; i < n; ++i)
        x[i] = fabsf(x[i]) <= cap * 0x1p-12f ? x[i] : cap * tanhf(x[i] / cap);
}

void scale(float* x, float alpha, size_t n) {
    for (size_t i = 0; i < n; ++i)
        x[i] *= alpha;
}

uint32_t find_slices(const float* weight, float least) {
    uint32_t slices = 0;
    for (uint32_t t = 0; t < tile_tokens; ++t) {
        if (weight[t] >= least) slices |= 1u << (t / slice_tokens);
    }
    return slices;
}

void fold_halves(const FoldHalves& args) {
    for (size_t row = 0; row < args.n_rows; ++row) {
        args.bias[row] = dot_half(args.x + row * args.stride, args.zeros, args.n);
        scale_half(args.folded + row * args.stride, args.x + row * args.stride, args.scales, args.n);
        for (size_t i = args.n; i % 32 != 0; ++i)
            args.folded[row * args.stride + i] = 0.0f;
    }
}

void fold_keys(const FoldKeys& args) {
    for (size_t row = 0; row < args.n_rows; ++row) {
        for (size_t c = 0; c < args.dim; ++c) {
            const float unit = zero_unit(read_nibble(args.widths, static_cast<uint32_t>(c / key_granule)));
            const size_t at = row * args.query_stride + c;
            args.folded[at] = args.query[at] * exp2_sixteenths(args.base + args.scales[c]);
            args.bias[row] += args.folded[at] * (static_cast<float>(args.zeros[c]) * unit);
        }
    }
}

void estimate_keys(const EstimateKeys& args) {
    const SectionLayout at = section_layout(TensorKind::key, args.dim);
    for (size_t i = 0; i < args.n_sections; ++i) {
        const unsigned char* side = args.sections + i * args.stride;
        int16_t base;
        memcpy(&base, side + at.base, sizeof(base));
        for (size_t row = 0; row < args.n_rows; ++row) {
            float mean = 0.0f, spread = 0.0f;
            for (uint32_t c = 0; c < args.dim; ++c) {
                const uint32_t width = read_nibble(side + at.widths, c / key_granule);
                const float folded =
                    args.query[row * args.query_stride + c] * exp2_sixteenths(base + side[at.scales + c]);
                const float zero = static_cast<int8_t>(side[at.zeros + c]);
                mean += folded * (zero * zero_unit(width));
                const float wide = folded * key_spread(width);
                spread += wide * wide;
            }
            args.mean[row * args.out_stride + i] += mean;
            args.spread[row * args.out_stride + i] += spread;
        }
    }
}

void fold_weights(const FoldWeights& args) {
    for (size_t row = 0; row < args.n_rows; ++row) {
        for (uint32_t t = 0; t < section_tokens; ++t) {
            const float weight = args.weight[row * args.stride + t];
            const float scaled = weight * args.gain_of[read_nibble(args.gains, t)];
            args.scaled[row * args.stride + t] = scaled;
            args.sum[row] += args.sums_scaled ? scaled : weight;
        }
    }
}

void add_scaled(const AddScaled& args) {
    for (size_t row = 0; row < args.n_rows; ++row) {
        for (size_t c = 0; c < args.dim; ++c) {
            const size_t at = row * args.stride + c;
            args.out[at] += exp2_sixteenths(args.base + args.scales[c]) * args.x[at];
        }
    }
}

// visit(token, channel, value) for each.
template <class Visit>
void visit_outliers(const Outliers& outliers, const Visit& visit) {
    const auto read = [&](const void* x, size_t i) {
        return outliers.wide ? uint32_t{static_cast<const uint16_t*>(x)[i]}
                             : uint32_t{static_cast<const uint8_t*>(x)[i]};
    };
    size_t at = 0;
    for (uint32_t t = 0; t < outliers.n_tokens; ++t) {
        for (uint32_t i = 0; i < read(outliers.counts, t); ++i, ++at)
            visit(t, read(outliers.channels, at), half_to_float(outliers.values[at]));
    }
}

void score_outliers(const ScoreOutliers& args) {
    visit_outliers(args.outliers, [&](uint32_t t, uint32_t channel, float value) {
        for (uint32_t row = 0; row < args.n_rows; ++row) {
            args.scores[row * args.score_stride + t] +=
                args.query[channel * size_t{outlier_lanes(args.n_rows)} + row] * value;
        }
    });
}

void mix_outliers(const MixOutliers& args) {
    visit_outliers(args.outliers, [&](uint32_t t, uint32_t channel, float value) {
        for (uint32_t row = 0; row < args.n_rows; ++row) {
            args.out[channel * size_t{outlier_lanes(args.n_rows)} + row] +=
                args.weight[row * args.weight_stride + t] * value;
        }
    });
}

}  // namespace

constinit const AttentionKernels attention_scalar = {
    {of_codes<score_codes<2>>, of_codes<score_codes<3>>, of_codes<score_codes<4>>, of_codes<score_codes<8>>},
    {of_codes<mix_codes<2>>, of_codes<mix_codes<3>>, of_codes<mix_codes<4>>, of_codes<mix_codes<8>>},
    of_codes<fold_halves>,
    score_trellis,
    mix_trellis,
    mix_keys,
    fold_keys,
    estimate_keys,
    fold_weights,
    add_scaled,
    of_codes<score_outliers>,
    of_codes<mix_outliers>,
    score_rows<uint16_t>,
    score_rows<float>,
    mix_rows<uint16_t>,
    mix_rows<float>,
    add_half,
    dot_half,
    of_codes<scale_half>,
    softmax_tile,
    soft_cap,
    scale,
    find_slices,
    0.0f,
};

}  // namespace gearkv
