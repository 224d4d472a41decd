// Kernels of avx2 that avxvnni has too: there is no dot product of integers in them.
#pragma once

#include "kernels/kernels.hpp"

namespace gearkv {

void fold_halves_avx2(const FoldHalves& args);
void fold_keys_avx2(const FoldKeys& args);
void estimate_keys_avx2(const EstimateKeys& args);
void fold_weights_avx2(const FoldWeights& args);
void add_scaled_avx2(const AddScaled& args);
void score_outliers_avx2(const ScoreOutliers& args);
void mix_outliers_avx2(const MixOutliers& args);
void score_half_avx2(float* scores, std::size_t score_stride, const RawRows& x, const float* query,
                     std::size_t query_stride, std::uint32_t n_rows);
void score_float_avx2(float* scores, std::size_t score_stride, const RawRows& x, const float* query,
                      std::size_t query_stride, std::uint32_t n_rows);
void mix_half_avx2(float* out, std::size_t out_stride, const RawRows& x, const float* weight,
                   std::size_t weight_stride, std::uint32_t n_rows);
void mix_float_avx2(float* out, std::size_t out_stride, const RawRows& x, const float* weight,
                    std::size_t weight_stride, std::uint32_t n_rows);
void add_half_avx2(float* y, const std::uint16_t* x, float alpha, std::size_t n);
float dot_half_avx2(const float* y, const std::uint16_t* x, std::size_t n);
void scale_half_avx2(float* out, const float* x, const std::uint16_t* y, std::size_t n);
float softmax_tile_avx2(float* weight, const float* score, std::size_t n, float* max, float* sum);
void soft_cap_avx2(float* x, float cap, std::size_t n);
void scale_avx2(float* x, float alpha, std::size_t n);

namespace {

constexpr AttentionKernels with_shared(AttentionKernels kernels) {
    kernels.fold_halves = of_codes<fold_halves_avx2>;
    kernels.fold_keys = fold_keys_avx2;
    kernels.estimate_keys = estimate_keys_avx2;
    kernels.fold_weights = fold_weights_avx2;
    kernels.add_scaled = add_scaled_avx2;
    kernels.score_outliers = of_codes<score_outliers_avx2>;
    kernels.mix_outliers = of_codes<mix_outliers_avx2>;
    kernels.score_half = score_half_avx2;
    kernels.score_float = score_float_avx2;
    kernels.mix_half = mix_half_avx2;
    kernels.mix_float = mix_float_avx2;
    kernels.add_half = add_half_avx2;
    kernels.dot_half = dot_half_avx2;
    kernels.scale_half = of_codes<scale_half_avx2>;
    kernels.softmax_tile = softmax_tile_avx2;
    kernels.soft_cap = soft_cap_avx2;
    kernels.scale = scale_avx2;
    return kernels;
}

}  // namespace
}  // namespace gearkv
