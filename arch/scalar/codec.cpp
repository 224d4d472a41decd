// Reference of the codec kernels: each does what kernels/kernels.hpp says, one number at a time.
#include "level.hpp"
#include "panels.hpp"
#include "tables.hpp"
#include "trellis.hpp"

namespace gearkv {
namespace {

using std::size_t;
using std::uint16_t;
using std::uint32_t;
using std::uint8_t;

float max_abs(const float* x, size_t n) {
    // Magnitudes order as their bits do, with NaN above Inf above all finite numbers.
    constexpr uint32_t infinity = 0x7f800000u;
    uint32_t most = 0;
    for (size_t i = 0; i < n; ++i) {
        const uint32_t magnitude = float_bits(x[i]) & 0x7fffffffu;
        if (magnitude > most) most = magnitude;
    }
    return bits_float(most < infinity ? most : infinity);
}

void column_range(float* lo, float* hi, const float* x, size_t row_stride, size_t n_rows, size_t n_cols) {
    for (size_t c = 0; c < n_cols; ++c) {
        float low = x[c], high = x[c];
        for (size_t r = 1; r < n_rows; ++r) {
            const float value = x[r * row_stride + c];
            if (value < low) low = value;
            if (value > high) high = value;
        }
        lo[c] = low + 0.0f;  // -0 becomes 0
        hi[c] = high + 0.0f;
    }
}

void row_range(float* lo, float* hi, const float* x, size_t n) {
    float low = x[0], high = x[0];
    for (size_t i = 1; i < n; ++i) {
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
    }
    *lo = low + 0.0f;
    *hi = high + 0.0f;
}

uint8_t quantize(float* x, float scale, float zero, float max_code) {
    float code = 0.0f;
    if (scale != 0.0f) {
        code = (*x - zero) / scale;
        code = code > 0.0f ? code : 0.0f;
        code = code < max_code ? code : max_code;
        // Adding 1.5 * 2^23 leaves no bits for a fraction: rounds half to even.
        code = (code + 0x1.8p23f) - 0x1.8p23f;
    }
    const float product = code * scale;
    const float dense = product + zero;
    *x -= dense;
    return static_cast<uint8_t>(code);
}

void quantize_columns(uint8_t* codes, float* x, size_t row_stride, size_t n_rows, size_t n_cols,
                      const float* scale, const float* zero, float max_code) {
    for (size_t r = 0; r < n_rows; ++r) {
        for (size_t c = 0; c < n_cols; ++c) {
            const size_t at = r * row_stride + c;
            codes[at] = quantize(&x[at], scale[c], zero[c], max_code);
        }
    }
}

void quantize_row(uint8_t* codes, float* x, size_t n, float scale, float zero, float max_code) {
    for (size_t i = 0; i < n; ++i)
        codes[i] = quantize(&x[i], scale, zero, max_code);
}

// Field p of byte i of word `word` within one lane of a plane of `bits` bits; see block.hpp.
// Only `width` bits of each code from bit `first_bit` up enter the plane.
template <class CodeAt>
uint32_t plane_word(CodeAt code_at, uint32_t word, uint32_t width, uint32_t first_bit) {
    uint32_t result = 0;
    for (uint32_t i = 0; i < 32 / width; ++i) {
        const uint32_t field = code_at(word * (32 / width) + i) >> first_bit & ((1u << width) - 1);
        result |= field << (8 * (i % 4) + width * (i / 4));
    }
    return result;
}

template <uint32_t bits>
void pack_key(uint32_t* words, const uint8_t* codes, size_t code_stride, size_t n_tokens, size_t dim) {
    constexpr uint32_t low = bits == 3 ? 2 : bits;
    const size_t n_units = (dim + 31) / 32;
    const size_t n_low = bits == 3 ? 2 * n_units : (dim + 32 / low - 1) / (32 / low);
    const size_t n_high = bits == 3 ? n_units : 0;
    for (size_t tile = 0; tile < n_tokens; tile += lane_tile) {
        for (size_t lane = 0; lane < lane_tile; ++lane) {
            const size_t token = tile + lane;
            const auto code_at = [=](size_t channel) {
                return token < n_tokens && channel < dim ? uint32_t{codes[token * code_stride + channel]}
                                                         : 0u;
            };
            for (uint32_t w = 0; w < n_low; ++w)
                words[w * lane_tile + lane] = plane_word(code_at, w, low, 0);
            for (uint32_t w = 0; w < n_high; ++w) {
                words[(n_low + w) * lane_tile + lane] = plane_word(code_at, w, 1, 2);
            }
        }
        words += (n_low + n_high) * lane_tile;
    }
}

template <uint32_t bits>
void pack_value(uint32_t* words, const uint8_t* codes, size_t code_stride, size_t n_tokens, size_t dim) {
    constexpr uint32_t low = bits == 3 ? 2 : bits;
    const size_t n_lanes = (dim + lane_tile - 1) / lane_tile * lane_tile;
    const size_t n_units = (n_tokens + 31) / 32;
    const size_t n_low = bits == 3 ? 2 * n_units : (n_tokens + 32 / low - 1) / (32 / low);
    for (size_t channel = 0; channel < n_lanes; ++channel) {
        const auto code_at = [=](size_t token) {
            return token < n_tokens && channel < dim ? uint32_t{codes[token * code_stride + channel]} : 0u;
        };
        for (uint32_t w = 0; w < n_low; ++w) {
            const size_t row = bits == 3 ? w / 2 * 3 + w % 2 : w;
            words[row * n_lanes + channel] = plane_word(code_at, w, low, 0);
        }
        for (uint32_t unit = 0; bits == 3 && unit < n_units; ++unit) {
            words[(unit * 3 + 2) * n_lanes + channel] = plane_word(code_at, unit, 1, 2);
        }
    }
}

void project(float* a, size_t a_stride, const float* x, size_t row_stride, size_t n_rows, size_t n_cols,
             const float* p, size_t p_stride, size_t rank) {
    for (size_t t = 0; t < n_rows; ++t) {
        for (size_t r = 0; r < rank; ++r) {
            float sum = 0.0f;
            for (size_t c = 0; c < n_cols; ++c)
                sum += x[t * row_stride + c] * p[r * p_stride + c];
            a[r * a_stride + t] = sum;
        }
    }
}

void project_back(float* p, size_t p_stride, const float* x, size_t row_stride, size_t n_rows, size_t n_cols,
                  const float* a, size_t a_stride, size_t rank) {
    const size_t n_padded = (n_cols + lane_tile - 1) / lane_tile * lane_tile;
    for (size_t r = 0; r < rank; ++r) {
        float* plane = p + r * p_stride;
        for (size_t c = 0; c < n_padded; ++c)
            plane[c] = 0.0f;
        for (size_t t = 0; t < n_rows; ++t) {
            const float weight = a[r * a_stride + t];
            for (size_t c = 0; c < n_padded; ++c)
                plane[c] += weight * x[t * row_stride + c];
        }
    }
}

// Viterbi search of one channel. State: bit 0 is p[t-1], bit 1 is p[t-2]. From state s, path bit p leads to
// state (s << 1 | p) & 3 and allows the levels whose index ends in z1 z0 = (p ^ p[t-2]) p[t-1].
void encode_channel(const EncodeTrellis& args, size_t channel) {
    constexpr uint32_t n_states = 4;
    const uint32_t n_free = 1u << (args.width - 1);  // levels of one subset
    const auto level = [&](uint32_t index) {
        if (args.levels != nullptr) return static_cast<float>(args.levels[index]);
        return 2.0f * static_cast<float>(index) - static_cast<float>((2u << args.width) - 1);
    };
    uint8_t from[section_tokens][n_states];     // p[t-2] of the better way into a state
    uint8_t nearest[section_tokens][n_states];  // free bits of the nearest level, by subset
    float cost[n_states] = {0.0f, 3e38f, 3e38f, 3e38f};
    for (uint32_t t = 0; t < section_tokens; ++t) {
        const float x = args.x[t * lane_tile + channel];
        float distance[n_states];
        for (uint32_t subset = 0; subset < n_states; ++subset) {
            nearest[t][subset] = 0;
            for (uint32_t u = 0; u < n_free; ++u) {
                const float d = x - level(u << 2 | subset);
                if (u > 0 && d * d >= distance[subset]) continue;
                distance[subset] = d * d;
                nearest[t][subset] = static_cast<uint8_t>(u);
            }
        }
        float next[n_states];
        for (uint32_t state = 0; state < n_states; ++state) {
            const uint32_t p = state & 1, p1 = state >> 1;
            const float way0 = cost[p1] + distance[p << 1 | p1];
            const float way1 = cost[p1 | 2] + distance[(p ^ 1) << 1 | p1];
            from[t][state] = way1 < way0;
            next[state] = way1 < way0 ? way1 : way0;
        }
        for (uint32_t state = 0; state < n_states; ++state)
            cost[state] = next[state];
    }
    uint32_t state = 0;
    for (uint32_t s = 1; s < n_states; ++s) {
        if (cost[s] < cost[state]) state = s;
    }
    for (uint32_t t = section_tokens; t-- > 0;) {
        const uint32_t p = state & 1, p1 = state >> 1, p2 = from[t][state];
        const uint32_t subset = (p ^ p2) << 1 | p1;
        const uint32_t u = nearest[t][subset];
        args.codes[t * lane_tile + channel] = static_cast<uint8_t>(u << 1 | p);
        args.chosen[t * lane_tile + channel] = static_cast<std::int8_t>(level(u << 2 | subset));
        state = p1 | p2 << 1;
    }
}

void encode_trellis(const EncodeTrellis& args) {
    for (size_t channel = 0; channel < lane_tile; ++channel)
        encode_channel(args, channel);
}

void to_half(uint16_t* out, const float* x, size_t n) {
    for (size_t i = 0; i < n; ++i)
        out[i] = float_to_half(x[i]);
}

void from_half(float* out, const uint16_t* x, size_t n) {
    for (size_t i = 0; i < n; ++i)
        out[i] = half_to_float(x[i]);
}

void to_bfloat(uint16_t* out, const float* x, size_t n) {
    for (size_t i = 0; i < n; ++i)
        out[i] = float_to_bfloat(x[i]);
}

void from_bfloat(float* out, const uint16_t* x, size_t n) {
    for (size_t i = 0; i < n; ++i)
        out[i] = bfloat_to_float(x[i]);
}

uint16_t max_magnitude(const uint16_t* x, size_t n) {
    uint16_t most = 0;
    for (size_t i = 0; i < n; ++i) {
        const auto magnitude = static_cast<uint16_t>(x[i] & 0x7fff);
        if (magnitude > most) most = magnitude;
    }
    return most;
}

}  // namespace

constinit const CodecKernels codec_scalar = {
    max_abs,
    column_range,
    of_codes<row_range>,
    of_codes<quantize_columns>,
    of_codes<quantize_row>,
    {of_codes<pack_key<2>>, of_codes<pack_key<3>>, of_codes<pack_key<4>>, of_codes<pack_key<8>>},
    {of_codes<pack_value<2>>, of_codes<pack_value<3>>, of_codes<pack_value<4>>, of_codes<pack_value<8>>},
    of_codes<project>,
    of_codes<project_back>,
    of_codes<group_ends>,
    of_codes<find_reaching>,
    column_moments,
    row_squares,
    rotate_rows,
    order_row,
    fill_panel,
    sum_panel,
    cube_errors,
    gather_bits,
    encode_trellis,
    to_half,
    from_half,
    to_bfloat,
    from_bfloat,
    max_magnitude,
};

}  // namespace gearkv
