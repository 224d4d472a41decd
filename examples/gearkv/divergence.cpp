#include "divergence.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "failure.hpp"

namespace gearkv::tool {

void Prediction::set(const float* logits, std::size_t n) {
    logs_.assign(logits, logits + n);
    likeliest_ = static_cast<std::size_t>(std::max_element(logs_.begin(), logs_.end()) - logs_.begin());
    const double largest = logs_[likeliest_];
    shares_.resize(n);
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i)
        sum += shares_[i] = std::exp(logs_[i] - largest);
    const double shift = largest + std::log(sum);
    for (std::size_t i = 0; i < n; ++i) {
        logs_[i] -= shift;
        shares_[i] /= sum;
    }
}

void Divergence::add(const Prediction& exact, const Prediction& own) {
    double divergence = 0;
    for (std::size_t i = 0; i < exact.logs().size(); ++i)
        divergence += exact.shares()[i] * (exact.logs()[i] - own.logs()[i]);
    all_.push_back(divergence);
    agrees_.push_back(exact.likeliest() == own.likeliest());
}

double Divergence::mean_of(std::size_t begin, std::size_t end) const {
    const auto first = all_.begin();
    return std::accumulate(first + static_cast<std::ptrdiff_t>(begin),
                           first + static_cast<std::ptrdiff_t>(end), 0.0) /
           static_cast<double>(end - begin);
}

double Divergence::at(double share) const {
    std::vector<double> sorted = all_;
    const auto n = static_cast<double>(sorted.size());
    const auto place = static_cast<std::size_t>(std::max(std::ceil(share * n) - 1, 0.0));
    std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(place), sorted.end());
    return sorted[place];
}

double Divergence::agreement_of(std::size_t begin, std::size_t end) const {
    const auto first = agrees_.begin();
    return static_cast<double>(std::count(first + static_cast<std::ptrdiff_t>(begin),
                                          first + static_cast<std::ptrdiff_t>(end), true)) /
           static_cast<double>(end - begin);
}

void Holdings::add(const Cache& cache) {
    const CacheConfig& config = cache.config();
    const CacheStats stats = cache.stats();
    const auto bytes_of = [](const TensorSpec& spec) { return spec.backbone == Backbone::raw32 ? 4.0 : 2.0; };
    double elements = 0;
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        LayerStats layer;
        check(cache.layer_stats(i, &layer));
        const LayerDims dims = config.dims_of(i);
        const std::uint64_t n_held = layer.n_tokens - layer.n_forgotten;
        const auto n_tail = static_cast<double>((n_held - layer.n_closed - layer.n_sinks) * dims.n_kv_heads);
        elements += static_cast<double>(n_held * dims.n_kv_heads) * (dims.key_dim + dims.value_dim);
        tail_elements_ += n_tail * (dims.key_dim + dims.value_dim);
        tail_bytes_ += n_tail * (bytes_of(config.spec.key) * dims.key_dim +
                                 bytes_of(config.spec.value) * dims.value_dim);
    }
    elements_ += elements;
    bytes_ += stats.bits_per_element / 8 * elements;
    bits_ += stats.bits_per_element * static_cast<double>(stats.n_tokens);
    weight_ += static_cast<double>(stats.n_tokens);
}

double Holdings::fp16_percent_of_blocks() const {
    if (tail_elements_ >= elements_) return fp16_percent();
    return 50 * (bytes_ - tail_bytes_) / (elements_ - tail_elements_);
}

}  // namespace gearkv::tool
