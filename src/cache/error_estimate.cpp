#include "cache/error_estimate.hpp"

#include <algorithm>
#include <new>

#include "cache/query_rows.hpp"
#include "gearkv/executor.hpp"

namespace gearkv {

bool ErrorEstimate::create(const CacheConfig& config, const Memory& memory) noexcept {
    if (config.error_every == 0) return true;
    every_ = config.error_every;
    n_layers_ = config.n_layers;
    samples_ = static_cast<ErrorSample*>(memory.take(n_layers_ * sizeof(ErrorSample), Use::table));
    queries_ = static_cast<Query*>(memory.take(n_layers_ * sizeof(Query), Use::table));
    for (std::uint32_t i = 0; queries_ != nullptr && i < n_layers_; ++i)
        new (queries_ + i) Query;
    if (samples_ == nullptr || queries_ == nullptr) return false;
    reset();
    return true;
}

void ErrorEstimate::destroy(const Memory& memory) noexcept {
    for (std::uint32_t i = 0; queries_ != nullptr && i < n_layers_; ++i)
        memory.give_back(queries_[i].rows, queries_[i].n_bytes(), Use::table);
    memory.give_back(samples_, n_layers_ * sizeof(ErrorSample), Use::table);
    memory.give_back(queries_, n_layers_ * sizeof(Query), Use::table);
    memory.give_back(outputs_, outputs_bytes(), Use::table);
    *this = {};
}

void ErrorEstimate::reset() noexcept {
    for (std::uint32_t i = 0; samples_ != nullptr && i < n_layers_; ++i) {
        new (samples_ + i) ErrorSample;
        queries_[i].scale = 0.0f;
    }
}

bool ErrorEstimate::keep(const Kernels& kernels, const Memory& memory, std::uint32_t layer,
                         const LayerDims& dims, const Queries& queries) noexcept {
    if (samples_ == nullptr) return true;
    Query& kept = queries_[layer];
    Query query;
    query.dims = dims;
    query.latent = queries.latents != nullptr;
    query.n_heads = queries.n_heads;
    query.scale = queries.scale;
    query.soft_cap = queries.soft_cap;
    if (query.n_out() > most_out_) {
        auto* outputs = static_cast<float*>(memory.take(2 * query.n_out() * sizeof(float), Use::table));
        if (outputs == nullptr) return false;
        memory.give_back(outputs_, outputs_bytes(), Use::table);
        outputs_ = outputs;
        most_out_ = query.n_out();
    }
    query.rows = kept.rows;
    if (query.n_heads != kept.n_heads) {
        query.rows = static_cast<float*>(memory.take(query.n_bytes(), Use::table));
        if (query.rows == nullptr) return false;
        memory.give_back(kept.rows, kept.n_bytes(), Use::table);
    }
    kept = query;
    float* to = query.rows;
    const auto copy = [&](const Rows& rows, std::uint32_t dim) {
        for (std::size_t head = 0; head < query.n_heads; ++head, to += dim) {
            const float* row = gearkv::row_floats(kernels.codec, rows, queries.n_queries - 1, head, dim, to);
            if (row != to) std::copy_n(row, dim, to);
        }
    };
    copy(query_rows(queries), dims.key_dim);
    if (query.latent) copy(latent_rows(queries), dims.value_dim);
    return true;
}

void ErrorEstimate::attend(const Kernels& kernels, const Query& query, const KvRun& run, void* scratch,
                           float* out, Executor& executor) noexcept {
    const LayerDims& dims = query.dims;
    const std::uint32_t n_shared = query.n_heads / dims.n_kv_heads;
    const HeadDims head_dims = {dims.key_dim, dims.value_dim, query.latent};
    const std::uint64_t slot_bytes = attend_scratch_bytes(head_dims);
    parallel_for(executor, dims.n_kv_heads, [&](std::size_t kv_head) {
        const AttendScratch slot =
            place_attend_scratch(static_cast<unsigned char*>(scratch) + kv_head * slot_bytes, head_dims);
        for (std::uint32_t row = 0; row < n_shared;) {
            RowGroup rows = {};
            rows.soft_cap = query.soft_cap;
            for (; row < n_shared && rows.n_rows < max_rows; ++row) {
                const std::uint32_t i = rows.n_rows++;
                const std::size_t head = kv_head * n_shared + row;
                rows.query[i] = query.rows + head * dims.key_dim;
                if (query.latent) rows.latent[i] = query.latents() + head * dims.value_dim;
                rows.visible[i] = run.n_tokens;
                rows.out[i] = out + head * dims.value_dim;
            }
            attend_rows(kernels, slot, rows, &run, 1, static_cast<std::uint32_t>(kv_head), head_dims,
                        query.scale);
        }
    });
}

void ErrorEstimate::measure(const Kernels& kernels, std::uint32_t layer, const KvRun& block,
                            const KvRun& tokens, void* scratch, Executor& executor) noexcept {
    if (samples_ == nullptr) return;
    ErrorSample& sample = samples_[layer];
    const Query& query = queries_[layer];
    if (sample.n_closed++ % every_ != 0 || query.scale == 0.0f) return;
    const std::size_t n = query.n_out();
    float* exact = outputs_;
    float* found = outputs_ + most_out_;
    attend(kernels, query, tokens, scratch, exact, executor);
    attend(kernels, query, block, scratch, found, executor);
    for (std::size_t i = 0; i < n; ++i) {
        const double e = static_cast<double>(found[i]) - exact[i];
        sample.error += e * e;
        sample.output += static_cast<double>(exact[i]) * exact[i];
    }
    ++sample.n_blocks;
}

}  // namespace gearkv
