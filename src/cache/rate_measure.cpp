#include "cache/rate_measure.hpp"

#include <algorithm>
#include <cmath>

namespace gearkv {
namespace {

// One layer, attended with one tensor compressed at one rate.
class LayerMeasure {
  public:
    LayerMeasure(const CacheContext& context, std::uint32_t index, const LayerStream& layer,
                 const QuerySample& sample)
        : context_(context), dims_(context.config.dims_of(index)), layer_(layer), sample_(sample) {
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
        const std::size_t n = std::size_t{n_rows()} * dims_.value_dim;
        double output = 1e-30;
        for (std::size_t i = 0; i < dims_.n_kv_heads * n; ++i)
            output += static_cast<double>(memory.exact[i]) * memory.exact[i];
        for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
            TensorRun& run = kind == TensorKind::key ? runs_[first_].key : runs_[first_].value;
            const TensorRun rows = run;
            for (std::uint32_t rate = 1; rate <= most_rate(kind); ++rate) {
                run = run_of_block(compress(memory, kind, static_cast<float>(rate), executor));
                attend(memory, memory.found, executor);
                for (std::uint32_t head = 0; head < dims_.n_kv_heads; ++head) {
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
    std::uint32_t n_shared() const { return sample_.n_heads / dims_.n_kv_heads; }
    std::uint32_t n_rows() const { return sample_.n_queries * n_shared(); }

    // No latents: auto:BITS, which this is for, does not go with them.
    HeadDims head_dims() const { return {dims_.key_dim, dims_.value_dim, false}; }
    BlockView compress(const MeasureMemory& memory, TensorKind kind, float rate, Executor& executor) const {
        CompressTask task;
        task.kernels = context_.kernels;
        task.rows = layer_.tokens().buffer(kind).source(0);
        task.header = lay_out(kind, dims_, n_tokens(), rate, true);
        compress_into(memory.block, memory.compress, task, executor);
        return trusted_block(memory.block);
    }

    void attend(const MeasureMemory& memory, float* out, Executor& executor) const {
        const std::uint64_t slot_bytes = attend_scratch_bytes(head_dims());
        parallel_for(executor, dims_.n_kv_heads, [&](std::size_t head) {
            const AttendScratch scratch =
                place_attend_scratch(memory.attend + head * slot_bytes, head_dims());
            for (std::uint32_t row = 0; row < n_rows();) {
                RowGroup rows = {};
                for (; row < n_rows() && rows.n_rows < max_rows; ++row) {
                    const std::uint32_t query = row / n_shared(), i = rows.n_rows++;
                    const std::size_t query_head = head * n_shared() + row % n_shared();
                    rows.query[i] = sample_.rows + (query * sample_.n_heads + query_head) * dims_.key_dim;
                    rows.visible[i] = sample_.visible[query];
                    rows.out[i] = out + (head * n_rows() + row) * dims_.value_dim;
                }
                attend_rows(*context_.kernels, scratch, rows, runs_, n_runs_,
                            static_cast<std::uint32_t>(head), head_dims(), sample_.scale);
            }
        });
    }

    const CacheContext& context_;
    const LayerDims dims_;
    const LayerStream& layer_;
    const QuerySample& sample_;
    KvRun runs_[3];  // sinks, compressed tokens, tokens behind them
    std::size_t n_runs_ = 0;
    std::size_t first_ = 0;  // the compressed ones
};

}  // namespace

BlockHeader lay_out(TensorKind kind, const LayerDims& dims, std::uint32_t n_tokens, float rate,
                    bool with_profile) noexcept {
    BlockHeader header = {};
    const BlockShape shape = {kind, n_tokens, dims.n_kv_heads, dim_of(dims, kind)};
    (void)lay_out_block(shape, trellis_spec(rate), 0, &header, with_profile).ok();
    return header;
}

void MeasureBytes::include(const MeasureBytes& other) noexcept {
    block = std::max(block, other.block);
    compress = std::max(compress, other.compress);
    attend = std::max(attend, other.attend);
    out = std::max(out, other.out);
}

MeasureBytes bytes_to_measure(const LayerDims& dims, const LayerStream& layer,
                              const QuerySample& sample) noexcept {
    const auto n_tokens =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(layer.tokens().n_buffered(), most_tokens));
    MeasureBytes bytes;
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const BlockHeader header = lay_out(kind, dims, n_tokens, static_cast<float>(most_rate(kind)), true);
        bytes.block = std::max(bytes.block, round_up(header.n_bytes, block_alignment));
        bytes.compress = std::max(bytes.compress, round_up(compress_scratch_bytes(header), block_alignment));
    }
    bytes.attend = round_up(attend_scratch_bytes({dims.key_dim, dims.value_dim, false}) * dims.n_kv_heads,
                            std::uint64_t{block_alignment});
    bytes.out = round_up(std::uint64_t{sample.n_queries} * sample.n_heads * dims.value_dim * sizeof(float),
                         std::uint64_t{block_alignment});
    return bytes;
}

MeasureMemory place_memory(const MeasureBytes& bytes, unsigned char* base) noexcept {
    const auto take = [&](std::uint64_t n_bytes) {
        unsigned char* at = base;
        base += n_bytes;
        return at;
    };
    MeasureMemory memory;
    memory.block = take(bytes.block);
    memory.compress = take(bytes.compress);
    memory.attend = take(bytes.attend);
    memory.exact = reinterpret_cast<float*>(take(bytes.out));
    memory.found = reinterpret_cast<float*>(take(bytes.out));
    return memory;
}

void measure_layer(const CacheContext& context, std::uint32_t index, const LayerStream& layer,
                   const QuerySample& sample, const MeasureMemory& memory, Squares* squares,
                   Executor& executor) noexcept {
    LayerMeasure(context, index, layer, sample).run(memory, squares, executor);
}

}  // namespace gearkv
