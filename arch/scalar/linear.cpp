// Reference of the decoder's products: a row is expanded to float a block of columns at a time, then
// multiplied with every vector in sixteen interleaved partial sums.
#include "decoder/network/linear.hpp"

#include <cmath>
#include <cstring>

#include "level.hpp"

namespace gearkv {
namespace {

constexpr std::size_t n_parts = 16;

template <class T>
T load(const std::uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof(value));
    return value;
}

void expand_f32(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    std::memcpy(out, w + first * sizeof(float), n * sizeof(float));
}

void expand_f16(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    for (std::size_t i = 0; i < n; i++) {
        out[i] = half_to_float(load<std::uint16_t>(w + 2 * (first + i)));
    }
}

void expand_bf16(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    for (std::size_t i = 0; i < n; i++) {
        out[i] = bits_float(std::uint32_t{load<std::uint16_t>(w + 2 * (first + i))} << 16);
    }
}

void expand_q8_0(float* out, const std::uint8_t* w, std::size_t first, std::size_t n) {
    const std::uint8_t* block = w + first / q8_block * q8_block_bytes;
    for (std::size_t i = 0; i < n; i += q8_block, block += q8_block_bytes) {
        const float scale = half_to_float(load<std::uint16_t>(block));
        for (std::size_t j = 0; j < q8_block; j++) {
            out[i + j] = scale * static_cast<float>(static_cast<std::int8_t>(block[2 + j]));
        }
    }
}

float multiply_row(const float* w, const float* x, std::size_t n) {
    float parts[n_parts] = {};
    std::size_t i = 0;
    for (; i + n_parts <= n; i += n_parts) {
        for (std::size_t part = 0; part < n_parts; part++) {
            parts[part] += w[i + part] * x[i + part];
        }
    }
    for (std::size_t part = 0; i + part < n; part++) {
        parts[part] += w[i + part] * x[i + part];
    }
    for (std::size_t half = n_parts / 2; half > 0; half /= 2) {
        for (std::size_t part = 0; part < half; part++) {
            parts[part] += parts[part + half];
        }
    }
    return parts[0];
}

template <void (*expand)(float*, const std::uint8_t*, std::size_t, std::size_t)>
void multiply(const LinearArgs& args) {
    float row[column_block];
    for (std::size_t r = 0; r < args.n_rows; r++) {
        for (std::size_t first = 0; first < args.n_cols; first += column_block) {
            const std::size_t n = args.n_cols - first < column_block ? args.n_cols - first : column_block;
            expand(row, args.w + r * args.row_bytes, first, n);
            for (std::size_t t = 0; t < args.n_tokens; t++) {
                float* y = args.y + t * args.y_stride + r;
                const float sum = multiply_row(row, args.x + t * args.x_stride + first, n);
                *y = first > 0 || args.accumulate ? *y + sum : sum;
            }
        }
    }
}

void swiglu(float* gate, const float* up, std::size_t n) {
    for (std::size_t i = 0; i < n; i++) {
        gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
    }
}

}  // namespace

const LinearKernels linear_scalar = {
    Level::scalar,
    {multiply<expand_f32>, multiply<expand_f16>, multiply<expand_bf16>, multiply<expand_q8_0>},
    {expand_f32, expand_f16, expand_bf16, expand_q8_0},
    swiglu,
};

}  // namespace gearkv
