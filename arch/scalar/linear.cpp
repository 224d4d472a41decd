// Reference of the decoder's products: a row is expanded to float a block of columns at a time, then
// multiplied with every vector in sixteen interleaved partial sums.
#include "decoder/network/linear.hpp"

#include <cmath>

#include "expand.hpp"

namespace gearkv {
namespace {

constexpr std::size_t n_parts = 16;

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

using Expand = void(float* out, const std::uint8_t* w, std::size_t first, std::size_t n);

template <Expand* expand>
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

void geglu(float* gate, const float* up, std::size_t n) {
    for (std::size_t i = 0; i < n; i++) {
        const float slope = (gelu_slope * gelu_cube * gate[i] * gate[i] + gelu_slope) * gate[i];
        gate[i] = gate[i] / (1.0f + std::exp(-slope)) * up[i];
    }
}

template <Expand*... expands>
constexpr LinearKernels make_kernels() {
    static_assert(sizeof...(expands) == n_weight_types);
    return {Level::scalar, {multiply<expands>...}, {expands...}, swiglu, geglu};
}

}  // namespace

constinit const LinearKernels linear_scalar =
    make_kernels<expand_f32, expand_f16, expand_bf16, expand<WeightType::q4_0, block_q4_0>,
                 expand<WeightType::q4_1, block_q4_1>, expand<WeightType::q5_0, block_q5_0>,
                 expand<WeightType::q5_1, block_q5_1>, expand<WeightType::q8_0, block_q8_0>,
                 expand<WeightType::q2_k, block_q2_k>, expand<WeightType::q3_k, block_q3_k>,
                 expand<WeightType::q4_k, block_q4_k>, expand<WeightType::q5_k, block_q5_k>,
                 expand<WeightType::q6_k, block_q6_k>, expand<WeightType::iq4_nl, block_iq4_nl>,
                 expand<WeightType::iq4_xs, block_iq4_xs>, expand<WeightType::mxfp4, block_mxfp4>,
                 expand<WeightType::tq2_0, block_tq2_0>>();

}  // namespace gearkv
