#include "cache/rate_measure.hpp"

#include <algorithm>
#include <cmath>

namespace gearkv {
namespace {

std::uint64_t last_visible(const QuerySample& sample) noexcept {
    return *std::max_element(sample.visible, sample.visible + sample.n_queries);
}

// Those of the buffer that the last of the queries sees: it may have come before others of its tokens, and
// a window leaves it the last ones.
struct Seen {
    std::uint64_t first, n;
};
Seen buffered_seen(std::uint32_t window, const LayerStream& layer, const QuerySample& sample) noexcept {
    const LayerShape shape = layer.tokens().shape();
    const std::uint64_t last = last_visible(sample);
    const std::uint64_t start = shape.buffer_start(), end = std::min(last, start + shape.n_buffered),
                        first = std::max(start, first_seen(last, window));
    return {std::min(first, end) - start, end - std::min(first, end)};
}

// Buffered tokens that are compressed, those in the middle, and what a query must see to have exact ones
// behind them.
struct Stretch {
    std::uint32_t first, n;
    std::uint64_t least_visible;
};
Stretch stretch_of(std::uint32_t window, const LayerStream& layer, const QuerySample& sample) noexcept {
    const std::uint64_t last = last_visible(sample);
    const std::uint64_t all =
        exact_tokens + last - *std::min_element(sample.visible, sample.visible + sample.n_queries);
    const Seen seen = buffered_seen(window, layer, sample);
    const std::uint64_t behind = std::min(all, seen.n / 2), before = seen.n - behind;
    const auto n = static_cast<std::uint32_t>(std::min<std::uint64_t>(before, most_tokens));
    // In a short prompt some queries lie too near.
    return {static_cast<std::uint32_t>(seen.first + (before - n) / 2), n,
            last - (behind - std::min<std::uint64_t>(exact_tokens, behind / 2))};
}

// One layer, attended with one tensor compressed at one rate.
class LayerMeasure {
  public:
    LayerMeasure(const CacheContext& context, std::uint32_t index, LayerStream& layer,
                 const QuerySample& sample)
        : context_(context),
          dims_(context.config.dims_of(index)),
          window_(window_of(context.config, index)),
          layer_(layer),
          sample_(sample),
          key_weights_(layer.weigh_buffered(layer.tokens().n_buffered())) {
        layer.tokens().list_runs(runs_);
        n_runs_ = layer.tokens().n_runs() - 1;
        // The tokens that are compressed, and those before and behind them, which are not.
        const KvRun buffered = runs_[n_runs_];
        stretch_ = stretch_of(window_, layer, sample);
        const std::uint32_t end = stretch_.first + stretch_.n;
        const auto add = [&](std::uint32_t first, std::uint32_t n) {
            if (n == 0) return;
            runs_[n_runs_] = buffered;
            runs_[n_runs_].n_tokens = n;
            for (TensorRun* run : {&runs_[n_runs_].key, &runs_[n_runs_].value})
                run->rows = static_cast<const std::uint16_t*>(run->rows) + first * run->row_stride;
            ++n_runs_;
        };
        add(0, stretch_.first);
        compressed_ = n_runs_;
        add(stretch_.first, stretch_.n);
        add(end, buffered.n_tokens - end);
        for (std::uint32_t i = 0; i < sample.n_queries; ++i) {
            if (sample.visible[i] >= stretch_.least_visible) queries_[n_queries_++] = i;
        }
    }

    // Writes the squares of the heads.
    void run(const MeasureMemory& memory, Squares* squares, Executor& executor) {
        attend(memory, memory.exact, executor);
        const std::size_t n = std::size_t{n_rows()} * dims_.value_dim;
        double output = 1e-30;
        for (std::size_t i = 0; i < dims_.n_kv_heads * n; ++i)
            output += static_cast<double>(memory.exact[i]) * memory.exact[i];
        for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
            TensorRun& run = kind == TensorKind::key ? runs_[compressed_].key : runs_[compressed_].value;
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
    std::uint32_t n_shared() const { return sample_.n_heads / dims_.n_kv_heads; }
    std::uint32_t n_rows() const { return n_queries_ * n_shared(); }

    // No latents: auto:BITS, which this is for, does not go with them.
    HeadDims head_dims() const { return {dims_.key_dim, dims_.value_dim, false}; }
    BlockView compress(const MeasureMemory& memory, TensorKind kind, float rate, Executor& executor) const {
        CompressTask task;
        task.kernels = context_.kernels;
        task.rows = layer_.tokens().buffer(kind).source(stretch_.first);
        task.header = lay_out(kind, dims_, stretch_.n, rate, true);
        if (kind == TensorKind::key) task.key_weights = key_weights_;
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
                    const std::uint32_t query = queries_[row / n_shared()], i = rows.n_rows++;
                    const std::size_t query_head = head * n_shared() + row % n_shared();
                    rows.query[i] = sample_.rows + (query * sample_.n_heads + query_head) * dims_.key_dim;
                    rows.visible[i] = sample_.visible[query];
                    rows.first[i] = first_seen(rows.visible[i], window_);
                    rows.out[i] = out + (head * n_rows() + row) * dims_.value_dim;
                }
                attend_rows(*context_.kernels, scratch, rows, runs_, n_runs_,
                            static_cast<std::uint32_t>(head), head_dims(), sample_.scale);
            }
        });
    }

    const CacheContext& context_;
    const LayerDims dims_;
    const std::uint32_t window_;
    const LayerStream& layer_;
    const QuerySample& sample_;
    const float* key_weights_;
    Stretch stretch_ = {};
    KvRun runs_[5];  // sinks, a gap, tokens before the compressed ones, these, and tokens behind them
    std::size_t n_runs_ = 0;
    std::size_t compressed_ = 0;  // their run
    std::uint32_t queries_[QuerySample::most_queries];
    std::uint32_t n_queries_ = 0;
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

bool tells_enough(std::uint32_t window, const LayerStream& layer, const QuerySample& sample) noexcept {
    return first_seen(last_visible(sample), window) >= window &&
           buffered_seen(window, layer, sample).n >= exact_tokens;
}

MeasureBytes bytes_to_measure(const LayerDims& dims, std::uint32_t window, const LayerStream& layer,
                              const QuerySample& sample) noexcept {
    const std::uint32_t n_tokens = stretch_of(window, layer, sample).n;
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

void measure_layer(const CacheContext& context, std::uint32_t index, LayerStream& layer,
                   const QuerySample& sample, const MeasureMemory& memory, Squares* squares,
                   Executor& executor) noexcept {
    LayerMeasure(context, index, layer, sample).run(memory, squares, executor);
}

}  // namespace gearkv
