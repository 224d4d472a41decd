#include "attention/kernels.inl.hpp"

#include "../shared.hpp"
#include "level.hpp"
#include "tables.hpp"

namespace gearkv {

void fold_halves_avx2(const FoldHalves& args) {
    fold_halves<Lanes>(args);
}
void fold_keys_avx2(const FoldKeys& args) {
    fold_keys<Lanes>(args);
}
void estimate_keys_avx2(const EstimateKeys& args) {
    estimate_keys<Lanes>(args);
}
void fold_weights_avx2(const FoldWeights& args) {
    fold_weights<Lanes>(args);
}
void add_scaled_avx2(const AddScaled& args) {
    add_scaled<Lanes>(args);
}
void score_outliers_avx2(const ScoreOutliers& args) {
    score_outliers<Lanes>(args);
}
void mix_outliers_avx2(const MixOutliers& args) {
    mix_outliers<Lanes>(args);
}
void score_half_avx2(float* scores, std::size_t score_stride, const RawRows& x, const float* query,
                     std::size_t query_stride, std::uint32_t n_rows) {
    score_rows<Lanes, std::uint16_t>(scores, score_stride, x, query, query_stride, n_rows);
}
void score_float_avx2(float* scores, std::size_t score_stride, const RawRows& x, const float* query,
                      std::size_t query_stride, std::uint32_t n_rows) {
    score_rows<Lanes, float>(scores, score_stride, x, query, query_stride, n_rows);
}
void mix_half_avx2(float* out, std::size_t out_stride, const RawRows& x, const float* weight,
                   std::size_t weight_stride, std::uint32_t n_rows) {
    mix_rows<Lanes, std::uint16_t>(out, out_stride, x, weight, weight_stride, n_rows);
}
void mix_float_avx2(float* out, std::size_t out_stride, const RawRows& x, const float* weight,
                    std::size_t weight_stride, std::uint32_t n_rows) {
    mix_rows<Lanes, float>(out, out_stride, x, weight, weight_stride, n_rows);
}
void add_half_avx2(float* y, const std::uint16_t* x, float alpha, std::size_t n) {
    add_half<Lanes>(y, x, alpha, n);
}
float dot_half_avx2(const float* y, const std::uint16_t* x, std::size_t n) {
    return dot_half<Lanes>(y, x, n);
}
void scale_half_avx2(float* out, const float* x, const std::uint16_t* y, std::size_t n) {
    scale_half<Lanes>(out, x, y, n);
}
float softmax_tile_avx2(float* weight, const float* score, std::size_t n, float* max, float* sum) {
    return softmax_tile<Lanes>(weight, score, n, max, sum);
}
void soft_cap_avx2(float* x, float cap, std::size_t n) {
    soft_cap<Lanes>(x, cap, n);
}
void scale_avx2(float* x, float alpha, std::size_t n) {
    scale<Lanes>(x, alpha, n);
}

constinit const AttentionKernels attention_avx2 = with_shared(make_attention_kernels<Lanes>());

}  // namespace gearkv
