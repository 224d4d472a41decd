#include "cache/rate_measure.hpp"

#include <algorithm>
#include <cmath>

namespace gearkv {
namespace {

// One layer, attended with one tensor compressed at one rate.
class LayerMeasure {
  public:
    LayerMeasure(const CacheContext& context, const LayerStream& layer, const QuerySample& sample)
        : context_(context), config_(context.config), layer_(layer), sample_(sample) {
        layer.tokens().list_runs(runs_);
        n_runs_ = layer.tokens().n_runs();
        first_ = n_runs_ - 1;
        // The tokens that are compressed, and those behind them, which are not.
        const KvRun buffered = runs_[first_];
        runs_[first_].n_tokens = std::min(buffered.n_tokens, most_tokens);
        const std::uint32_t n_left = buffered.n_tokens - n_tokens();
        if (n_left == 0) return;
        runs_[n_runs_] = buffered;
        runs_[n_runs_].n_tokens = n_left;
        for (TensorRun* run : {&runs_[n_runs_].key, &runs_[n_runs_].value})
            run->rows = static_cast<const std::uint16_t*>(run->rows) + n_tokens() * run->row_stride;
        ++n_runs_;
    }

    // Writes the squares of the heads.
    void run(const MeasureMemory& memory, Squares* squares, Executor& executor) {
        attend(memory, memory.exact, executor);
        const std::size_t n = std::size_t{n_rows()} * config_.value_dim;
        double output = 1e-30;
        for (std::size_t i = 0; i < config_.n_kv_heads * n; ++i)
            output += static_cast<double>(memory.exact[i]) * memory.exact[i];
        for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
            TensorRun& run = kind == TensorKind::key ? runs_[first_].key : runs_[first_].value;
            const TensorRun rows = run;
            for (std::uint32_t rate = 1; rate <= most_rate(kind); ++rate) {
                run = run_of_block(compress(memory, kind, static_cast<float>(rate), executor));
                attend(memory, memory.found, executor);
                for (std::uint32_t head = 0; head < config_.n_kv_heads; ++head) {
                    double sum = 0.0;
                    for (std::size_t i = head * n; i < (head + 1) * n; ++i) {
                        const double e = static_cast<double>(memory.found[i]) - memory.exact[i];
                        sum += e * e;
                    }
                    squares[head].log_error[static_cast<int>(kind)][rate - 1] =
                        std::log(sum / output + 1e-12);
                }
            }
            run = rows;
        }
    }

  private:
    std::uint32_t n_tokens() const { return runs_[first_].n_tokens; }
    std::uint32_t n_shared() const { return sample_.n_heads / config_.n_kv_heads; }
    std::uint32_t n_rows() const { return sample_.n_queries * n_shared(); }

    BlockView compress(const MeasureMemory& memory, TensorKind kind, float rate, Executor& executor) const {
        CompressTask task;
        task.kernels = context_.kernels;
        task.rows = layer_.tokens().buffer(kind).source(0);
        task.header = lay_out(kind, config_, n_tokens(), rate, true);
        compress_into(memory.block, memory.compress, task, executor);
        return trusted_block(memory.block);
    }

    void attend(const MeasureMemory& memory, float* out, Executor& executor) const {
        parallel_for(executor, config_.n_kv_heads, [&](std::size_t head) {
            const AttendScratch scratch = place_attend_scratch(memory.attend + head * memory.slot_bytes,
                                                               config_.key_dim, config_.value_dim);
            for (std::uint32_t row = 0; row < n_rows();) {
                RowGroup rows = {};
                for (; row < n_rows() && rows.n_rows < max_rows; ++row) {
                    const std::uint32_t query = row / n_shared(), i = rows.n_rows++;
                    const std::size_t query_head = head * n_shared() + row % n_shared();
                    rows.query[i] = sample_.rows + (query * sample_.n_heads + query_head) * config_.key_dim;
                    rows.visible[i] = sample_.visible[query];
                    rows.out[i] = out + (head * n_rows() + row) * config_.value_dim;
                }
                attend_rows(*context_.kernels, scratch, rows, runs_, n_runs_,
                            static_cast<std::uint32_t>(head), config_.key_dim, config_.value_dim,
                            sample_.scale);
            }
        });
    }

    const CacheContext& context_;
    const CacheConfig& config_;
    const LayerStream& layer_;
    const QuerySample& sample_;
    KvRun runs_[3];  // sinks, compressed tokens, tokens behind them
    std::size_t n_runs_ = 0;
    std::size_t first_ = 0;  // the compressed ones
};

}  // namespace

BlockHeader lay_out(TensorKind kind, const CacheConfig& config, std::uint32_t n_tokens, float rate,
                    bool with_profile) noexcept {
    BlockHeader header = {};
    const BlockShape shape = {kind, n_tokens, config.n_kv_heads, dim_of(kind, config)};
    (void)lay_out_block(shape, trellis_spec(rate), 0, &header, with_profile).ok();
    return header;
}

std::uint64_t place_memory(const CacheConfig& config, std::uint64_t n_rows, std::uint64_t n_tokens,
                           void* base, MeasureMemory* out) noexcept {
    std::uint64_t block_bytes = 0, compress_bytes = 0, used = 0;
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const BlockHeader header = lay_out(kind, config, static_cast<std::uint32_t>(n_tokens),
                                           static_cast<float>(most_rate(kind)), true);
        block_bytes = std::max(block_bytes, header.n_bytes);
        compress_bytes = std::max(compress_bytes, compress_scratch_bytes(header));
    }
    const auto take = [&](std::uint64_t n_bytes) -> unsigned char* {
        const std::uint64_t at = used;
        used += round_up(n_bytes, block_alignment);
        return base == nullptr ? nullptr : static_cast<unsigned char*>(base) + at;
    };
    const std::uint64_t out_bytes = config.n_kv_heads * n_rows * config.value_dim * sizeof(float);
    out->block = take(block_bytes);
    out->compress = take(compress_bytes);
    out->slot_bytes = attend_scratch_bytes(config.key_dim, config.value_dim);
    out->attend = take(out->slot_bytes * config.n_kv_heads);
    out->exact = reinterpret_cast<float*>(take(out_bytes));
    out->found = reinterpret_cast<float*>(take(out_bytes));
    return used;
}

void measure_layer(const CacheContext& context, const LayerStream& layer, const QuerySample& sample,
                   const MeasureMemory& memory, Squares* squares, Executor& executor) noexcept {
    LayerMeasure(context, layer, sample).run(memory, squares, executor);
}

}  // namespace gearkv
