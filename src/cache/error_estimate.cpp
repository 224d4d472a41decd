#include "cache/error_estimate.hpp"

#include <algorithm>
#include <new>

#include "gearkv/executor.hpp"

namespace gearkv {

bool ErrorEstimate::create(const CacheConfig& config, const Memory& memory) noexcept {
    if (config.error_every == 0) return true;
    every_ = config.error_every;
    n_layers_ = config.n_layers;
    n_kv_heads_ = config.n_kv_heads;
    key_dim_ = config.key_dim;
    value_dim_ = config.value_dim;
    samples_ = static_cast<ErrorSample*>(memory.take(n_layers_ * sizeof(ErrorSample), Use::table));
    queries_ = static_cast<Query*>(memory.take(n_layers_ * sizeof(Query), Use::table));
    if (samples_ == nullptr || queries_ == nullptr) return false;
    reset();
    return true;
}

void ErrorEstimate::destroy(const Memory& memory) noexcept {
    memory.give_back(samples_, n_layers_ * sizeof(ErrorSample), Use::table);
    memory.give_back(queries_, n_layers_ * sizeof(Query), Use::table);
    memory.give_back(rows_, rows_bytes(), Use::table);
    *this = {};
}

void ErrorEstimate::reset() noexcept {
    for (std::uint32_t i = 0; samples_ != nullptr && i < n_layers_; ++i) {
        new (samples_ + i) ErrorSample;
        new (queries_ + i) Query;
    }
}

std::uint64_t ErrorEstimate::rows_bytes() const noexcept {
    return (n_layers_ * query_floats() + std::uint64_t{2} * n_heads_ * value_dim_) * sizeof(float);
}

bool ErrorEstimate::keep(const Memory& memory, std::uint32_t layer, const Queries& queries) noexcept {
    if (samples_ == nullptr) return true;
    if (n_heads_ != queries.n_heads) {
        ErrorEstimate other = *this;
        other.n_heads_ = queries.n_heads;
        auto* rows = static_cast<float*>(memory.take(other.rows_bytes(), Use::table));
        if (rows == nullptr) return false;
        memory.give_back(rows_, rows_bytes(), Use::table);
        rows_ = rows;
        n_heads_ = queries.n_heads;
        std::fill_n(queries_, n_layers_, Query());
    }
    queries_[layer] = {queries.scale, queries.soft_cap};
    const float* last = queries.data + (queries.n_queries - 1) * queries.query_stride;
    for (std::size_t head = 0; head < n_heads_; ++head)
        std::copy_n(last + head * queries.head_stride, key_dim_,
                    rows_ + layer * query_floats() + head * key_dim_);
    return true;
}

void ErrorEstimate::attend(const Kernels& kernels, std::uint32_t layer, const KvRun& run, void* scratch,
                           float* out, Executor& executor) noexcept {
    const std::uint32_t n_shared = n_heads_ / n_kv_heads_;
    const std::uint64_t slot_bytes = attend_scratch_bytes(key_dim_, value_dim_);
    parallel_for(executor, n_kv_heads_, [&](std::size_t kv_head) {
        const AttendScratch slot = place_attend_scratch(
            static_cast<unsigned char*>(scratch) + kv_head * slot_bytes, key_dim_, value_dim_);
        for (std::uint32_t row = 0; row < n_shared;) {
            RowGroup rows = {};
            rows.soft_cap = queries_[layer].soft_cap;
            for (; row < n_shared && rows.n_rows < max_rows; ++row) {
                const std::uint32_t i = rows.n_rows++;
                const std::size_t head = kv_head * n_shared + row;
                rows.query[i] = rows_ + layer * query_floats() + head * key_dim_;
                rows.visible[i] = run.n_tokens;
                rows.out[i] = out + head * value_dim_;
            }
            attend_rows(kernels, slot, rows, &run, 1, static_cast<std::uint32_t>(kv_head), key_dim_,
                        value_dim_, queries_[layer].scale);
        }
    });
}

void ErrorEstimate::measure(const Kernels& kernels, std::uint32_t layer, const KvRun& block,
                            const KvRun& tokens, void* scratch, Executor& executor) noexcept {
    if (samples_ == nullptr) return;
    ErrorSample& sample = samples_[layer];
    if (sample.n_closed++ % every_ != 0 || queries_[layer].scale == 0.0f) return;
    const std::size_t n = std::size_t{n_heads_} * value_dim_;
    float* exact = rows_ + n_layers_ * query_floats();
    float* found = exact + n;
    attend(kernels, layer, tokens, scratch, exact, executor);
    attend(kernels, layer, block, scratch, found, executor);
    for (std::size_t i = 0; i < n; ++i) {
        const double e = static_cast<double>(found[i]) - exact[i];
        sample.error += e * e;
        sample.output += static_cast<double>(exact[i]) * exact[i];
    }
    ++sample.n_blocks;
}

}  // namespace gearkv
