// Reference of the decoder's integer products: a block is taken apart element by element, and the sums of 32
// or 16 products enter the result one after the other.
#include "decoder/network/integer.hpp"

#include <cmath>

#include "expand.hpp"

namespace gearkv {
namespace {

// What a block of up to 256 weights holds; a scale and a minimum for every `group` weights.
struct Parts {
    std::int8_t codes[256];
    float scale[16];
    float minimum[16];
};

// ---- one function for each type: the parts of a block ----

void parts_q4_0(Parts& parts, const std::uint8_t* block) {
    parts.scale[0] = load_half(block);
    for (std::size_t i = 0; i < 32; i++) {
        parts.codes[i] = static_cast<std::int8_t>(nibble(block + 2, i) - 8);
    }
}

void parts_q4_1(Parts& parts, const std::uint8_t* block) {
    parts.scale[0] = load_half(block);
    parts.minimum[0] = load_half(block + 2);
    for (std::size_t i = 0; i < 32; i++) {
        parts.codes[i] = static_cast<std::int8_t>(nibble(block + 4, i));
    }
}

void parts_q5_0(Parts& parts, const std::uint8_t* block) {
    parts.scale[0] = load_half(block);
    for (std::size_t i = 0; i < 32; i++) {
        parts.codes[i] = static_cast<std::int8_t>(five_bits(block + 2, block + 6, i) - 16);
    }
}

void parts_q5_1(Parts& parts, const std::uint8_t* block) {
    parts.scale[0] = load_half(block);
    parts.minimum[0] = load_half(block + 2);
    for (std::size_t i = 0; i < 32; i++) {
        parts.codes[i] = static_cast<std::int8_t>(five_bits(block + 4, block + 8, i));
    }
}

void parts_q8_0(Parts& parts, const std::uint8_t* block) {
    parts.scale[0] = load_half(block);
    std::memcpy(parts.codes, block + 2, 32);
}

void parts_iq4_nl(Parts& parts, const std::uint8_t* block) {
    parts.scale[0] = load_half(block);
    for (std::size_t i = 0; i < 32; i++) {
        parts.codes[i] = uneven_codes[nibble(block + 2, i)];
    }
}

void parts_mxfp4(Parts& parts, const std::uint8_t* block) {
    parts.scale[0] = half_power(block[0]);
    for (std::size_t i = 0; i < 32; i++) {
        parts.codes[i] = doubled_floats[nibble(block + 1, i)];
    }
}

void parts_q2_k(Parts& parts, const std::uint8_t* block) {
    const float scale = load_half(block + 80), low = load_half(block + 82);
    for (std::size_t n = 0; n < 16; n++) {
        parts.scale[n] = scale * static_cast<float>(block[n] & 15);
        parts.minimum[n] = -low * static_cast<float>(block[n] >> 4);
    }
    for (std::size_t i = 0; i < 256; i++) {
        parts.codes[i] = static_cast<std::int8_t>(two_bits(block + 16, i));
    }
}

void parts_q3_k(Parts& parts, const std::uint8_t* block) {
    const std::uint8_t* scales = block + 96;
    const float scale = load_half(block + 108);
    for (std::size_t n = 0; n < 16; n++) {
        const int factor = (scales[n % 8] >> 4 * (n / 8) & 15) | (scales[8 + n % 4] >> 2 * (n / 4) & 3) << 4;
        parts.scale[n] = scale * static_cast<float>(factor - 32);
    }
    for (std::size_t i = 0; i < 256; i++) {
        const int high = block[i % 32] >> i / 32 & 1;
        parts.codes[i] = static_cast<std::int8_t>(two_bits(block + 32, i) + 4 * high - 4);
    }
}

void scales_k(Parts& parts, const std::uint8_t* block) {
    const float scale = load_half(block), low = load_half(block + 2);
    for (std::size_t k = 0; k < 8; k++) {
        parts.scale[k] = scale * static_cast<float>(six_bits(block + 4, k, false));
        parts.minimum[k] = -low * static_cast<float>(six_bits(block + 4, k, true));
    }
}

void parts_q4_k(Parts& parts, const std::uint8_t* block) {
    scales_k(parts, block);
    for (std::size_t i = 0; i < 256; i++) {
        const std::size_t k = i / 32;
        parts.codes[i] = static_cast<std::int8_t>(block[16 + k / 2 * 32 + i % 32] >> 4 * (k % 2) & 15);
    }
}

void parts_q5_k(Parts& parts, const std::uint8_t* block) {
    scales_k(parts, block);
    for (std::size_t i = 0; i < 256; i++) {
        const std::size_t k = i / 32;
        const int low = block[48 + k / 2 * 32 + i % 32] >> 4 * (k % 2) & 15;
        parts.codes[i] = static_cast<std::int8_t>(low | (block[16 + i % 32] >> k & 1) << 4);
    }
}

void parts_q6_k(Parts& parts, const std::uint8_t* block) {
    const float scale = load_half(block + 208);
    for (std::size_t n = 0; n < 16; n++) {
        parts.scale[n] = scale * static_cast<float>(static_cast<std::int8_t>(block[192 + n]));
    }
    for (std::size_t i = 0; i < 256; i++) {
        const std::size_t half = i / 128, j = i / 32 % 4;
        const int low = block[64 * half + i % 32 + 32 * (j % 2)] >> 4 * (j / 2) & 15;
        parts.codes[i] = static_cast<std::int8_t>((low | two_bits(block + 128, i) << 4) - 32);
    }
}

void parts_iq4_xs(Parts& parts, const std::uint8_t* block) {
    const float scale = load_half(block);
    const auto high = load<std::uint16_t>(block + 2);
    for (std::size_t k = 0; k < 8; k++) {
        const int factor = (block[4 + k / 2] >> 4 * (k % 2) & 15) | (high >> 2 * k & 3) << 4;
        parts.scale[k] = scale * static_cast<float>(factor - 32);
    }
    for (std::size_t i = 0; i < 256; i++) {
        parts.codes[i] = uneven_codes[nibble(block + 8 + i / 32 * 16, i % 32)];
    }
}

void parts_tq2_0(Parts& parts, const std::uint8_t* block) {
    const float scale = load_half(block + 64);
    for (std::size_t k = 0; k < 8; k++) {
        parts.scale[k] = scale;
    }
    for (std::size_t i = 0; i < 256; i++) {
        parts.codes[i] = static_cast<std::int8_t>(two_bits(block, i) - 1);
    }
}

// ---- multiply ----

int sum_products(const std::int8_t* codes, const CodeBlock& x, std::size_t first, std::size_t n) {
    int sum = 0;
    for (std::size_t i = 0; i < n; i++) {
        sum += codes[i] * (128 * x.high[first + i] + x.low[first + i]);
    }
    return sum;
}

// What 32 columns from column 32 k of a block on add to a result.
template <std::size_t group, bool has_minimum>
float add_block(float sum, const Parts& parts, std::size_t k, const CodeBlock& x) {
    constexpr std::size_t n = code_block / group;
    for (std::size_t i = 0; i < n; i++) {
        const int products = sum_products(parts.codes + k * code_block + i * group, x, i * group, group);
        sum = std::fma(static_cast<float>(products), parts.scale[k * n + i] * x.scale, sum);
    }
    for (std::size_t i = 0; has_minimum && i < n; i++) {
        const float x_sum = group == code_block ? x.sum : x.scale * static_cast<float>(x.halves[i]);
        sum = std::fma(parts.minimum[k * n + i], x_sum, sum);
    }
    return sum;
}

template <WeightType type, void (*read)(Parts&, const std::uint8_t*), std::size_t group, bool has_minimum>
void multiply(const IntegerArgs& args) {
    constexpr TensorType info = tensor_type(type);
    constexpr std::size_t n_codes = info.block / code_block, most_tokens = 16;
    for (std::size_t r = 0; r < args.n_rows; r++) {
        for (std::size_t first = 0; first < args.n_tokens; first += most_tokens) {
            const std::size_t n = args.n_tokens - first < most_tokens ? args.n_tokens - first : most_tokens;
            float sums[most_tokens] = {};
            for (std::size_t b = 0; b < args.n_cols / info.block; b++) {
                Parts parts;
                read(parts, args.w + r * args.row_bytes + b * info.block_bytes);
                for (std::size_t t = 0; t < n; t++) {
                    const CodeBlock* x = args.x + (first + t) * args.x_stride + b * n_codes;
                    for (std::size_t k = 0; k < n_codes; k++) {
                        sums[t] = add_block<group, has_minimum>(sums[t], parts, k, x[k]);
                    }
                }
            }
            for (std::size_t t = 0; t < n; t++) {
                float* y = args.y + (first + t) * args.y_stride + r;
                *y = args.accumulate ? *y + sums[t] : sums[t];
            }
        }
    }
}

// ---- codes ----

int round_half_even(float x) {
    const auto whole = static_cast<int>(x);
    const float rest = x - static_cast<float>(whole);
    const int away = rest < 0 ? -1 : 1;
    const float magnitude = std::fabs(rest);
    return magnitude > 0.5f || (magnitude == 0.5f && whole % 2 != 0) ? whole + away : whole;
}

void round_block(CodeBlock& out, const float* x) {
    out = {};
    float largest = 0;
    bool finite = true;
    for (std::size_t i = 0; i < code_block; i++) {
        finite &= std::isfinite(x[i]);
        largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    }
    if (!finite) out.scale = out.sum = NAN;
    if (!finite || largest < 0x1p-112f) return;
    const float factor = largest_code / largest;
    for (std::size_t i = 0; i < code_block; i++) {
        const int code = round_half_even(x[i] * factor);
        const int high = (code + 16384 + 64) / 128 - 128;
        out.high[i] = static_cast<std::int8_t>(high);
        out.low[i] = static_cast<std::int8_t>(code - 128 * high);
        out.halves[i / 16] += code;
    }
    out.scale = largest / largest_code;
    out.sum = out.scale * static_cast<float>(out.halves[0] + out.halves[1]);
}

void round(CodeBlock* out, const float* x, std::size_t n_blocks) {
    for (std::size_t i = 0; i < n_blocks; i++) {
        round_block(out[i], x + i * code_block);
    }
}

template <WeightType type, void (*read)(Parts&, const std::uint8_t*), std::size_t group, bool has_minimum>
constexpr void set(IntegerKernels& kernels) {
    kernels.multiply[static_cast<std::size_t>(type)] = multiply<type, read, group, has_minimum>;
}

constexpr IntegerKernels make_kernels() {
    IntegerKernels kernels = {Level::scalar, {}, round, {}};
    set<WeightType::q4_0, parts_q4_0, 32, false>(kernels);
    set<WeightType::q4_1, parts_q4_1, 32, true>(kernels);
    set<WeightType::q5_0, parts_q5_0, 32, false>(kernels);
    set<WeightType::q5_1, parts_q5_1, 32, true>(kernels);
    set<WeightType::q8_0, parts_q8_0, 32, false>(kernels);
    set<WeightType::q2_k, parts_q2_k, 16, true>(kernels);
    set<WeightType::q3_k, parts_q3_k, 16, false>(kernels);
    set<WeightType::q4_k, parts_q4_k, 32, true>(kernels);
    set<WeightType::q5_k, parts_q5_k, 32, true>(kernels);
    set<WeightType::q6_k, parts_q6_k, 16, false>(kernels);
    set<WeightType::iq4_nl, parts_iq4_nl, 32, false>(kernels);
    set<WeightType::iq4_xs, parts_iq4_xs, 32, false>(kernels);
    set<WeightType::mxfp4, parts_mxfp4, 32, false>(kernels);
    set<WeightType::tq2_0, parts_tq2_0, 32, false>(kernels);
    return kernels;
}

}  // namespace

constinit const IntegerKernels integer_scalar = make_kernels();

}  // namespace gearkv
