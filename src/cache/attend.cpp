// Attention over one layer of a cache: what is asked for is checked, cut into tasks, and put together.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cache/impl.hpp"

namespace gearkv {
namespace {

// Few heads and rows are split over the tokens, into parts of at least 1,024.
std::uint64_t parts_of(std::uint64_t n_tokens, std::uint64_t n_units) {
    constexpr std::uint64_t wanted_tasks = 8, least_tokens = 1024;
    return std::clamp<std::uint64_t>(n_tokens / least_tokens, 1, ceil_div(wanted_tasks, n_units));
}

}  // namespace

Queries Cache::Impl::within_window(std::uint32_t layer, const Queries& asked) const noexcept {
    Queries queries = asked;
    const std::uint64_t window = windows == nullptr ? 0 : windows[layer];
    if (window > 0) queries.window = asked.window == 0 ? window : std::min(asked.window, window);
    return queries;
}

Status Cache::Impl::check_queries(const Queries& queries, std::uint64_t n_tokens) const noexcept {
    const CacheConfig& config = context.config;
    if (queries.data == nullptr) return Status::error(Code::invalid_argument, "queries are null");
    if (queries.n_heads == 0 || queries.n_heads % config.n_kv_heads != 0) {
        return Status::error(Code::wrong_size, "%u query heads, expected a multiple of the %u KV heads",
                             queries.n_heads, config.n_kv_heads);
    }
    if (queries.n_queries == 0) return Status::error(Code::wrong_size, "0 queries, expected at least 1");
    if (n_tokens == 0) return Status::error(Code::wrong_size, "the layer holds no tokens to attend");
    if (queries.causal && queries.n_queries > n_tokens) {
        return Status::error(Code::wrong_size,
                             "%u causal queries over %llu tokens, expected no more queries than tokens",
                             queries.n_queries, static_cast<unsigned long long>(n_tokens));
    }
    if (!std::isfinite(queries.scale) || queries.scale == 0.0f) {
        return Status::error(Code::invalid_argument, "scale %g, expected finite and not 0",
                             static_cast<double>(queries.scale));
    }
    for (std::size_t i = 0; i < queries.n_queries; ++i) {
        for (std::size_t head = 0; head < queries.n_heads; ++head) {
            const float* row = queries.data + i * queries.query_stride + head * queries.head_stride;
            if (!std::isfinite(context.kernels->codec.max_abs(row, config.key_dim))) {
                return Status::error(Code::non_finite,
                                     "query %zu, head %zu holds NaN or Inf, expected finite", i, head);
            }
        }
    }
    return check_rules(queries, n_tokens);
}

Status Cache::Impl::check_rules(const Queries& queries, std::uint64_t n_tokens) const noexcept {
    if (!std::isfinite(queries.soft_cap) || queries.soft_cap < 0.0f) {
        return Status::error(Code::invalid_argument, "soft_cap %g, expected finite and not negative",
                             static_cast<double>(queries.soft_cap));
    }
    if (!(queries.negligible >= 0.0f && queries.negligible < 1.0f)) {
        return Status::error(Code::invalid_argument, "negligible %g, expected at least 0 and below 1",
                             static_cast<double>(queries.negligible));
    }
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (std::uint32_t head = 0; head < queries.n_heads; ++head) {
        if (queries.slopes != nullptr && !std::isfinite(queries.slopes[head])) {
            return Status::error(Code::non_finite, "slope of head %u is %g, expected finite", head,
                                 static_cast<double>(queries.slopes[head]));
        }
        if (queries.sinks != nullptr && !(queries.sinks[head] < infinity)) {
            return Status::error(Code::non_finite, "sink of head %u is %g, expected finite or -Inf", head,
                                 static_cast<double>(queries.sinks[head]));
        }
    }
    if (queries.mask == nullptr) return {};
    for (std::size_t i = 0; i < queries.n_queries; ++i) {
        for (std::size_t head = 0; head < queries.n_heads; ++head) {
            if (head > 0 && queries.mask_head_stride == 0) break;
            const float* mask =
                queries.mask + i * queries.mask_query_stride + head * queries.mask_head_stride;
            const auto is_bad = [](float x) { return !(x < infinity); };
            const float* bad = std::find_if(mask, mask + n_tokens, is_bad);
            if (bad != mask + n_tokens) {
                return Status::error(Code::non_finite,
                                     "mask of query %zu, head %zu, token %td is %g, expected finite or -Inf",
                                     i, head, bad - mask, static_cast<double>(*bad));
            }
        }
    }
    return {};
}

// Row `row` of the rows that share a KV head.
void Cache::Impl::add_row(const Queries& queries, float* out, std::uint32_t kv_head, std::uint64_t row,
                          std::uint64_t n_tokens, RowGroup* rows) const noexcept {
    const std::uint32_t n_shared = queries.n_heads / context.config.n_kv_heads;
    const std::uint64_t query = row / n_shared, head = kv_head * n_shared + row % n_shared;
    const std::uint32_t i = rows->n_rows++;
    rows->query[i] = queries.data + query * queries.query_stride + head * queries.head_stride;
    rows->out[i] = out + (query * queries.n_heads + head) * context.config.value_dim;
    rows->visible[i] = queries.causal ? n_tokens - (queries.n_queries - 1 - query) : n_tokens;
    if (queries.window > 0 && rows->visible[i] > queries.window)
        rows->first[i] = rows->visible[i] - queries.window;
    if (queries.slopes != nullptr) rows->slope[i] = queries.slopes[head];
    if (queries.mask != nullptr)
        rows->mask[i] = queries.mask + query * queries.mask_query_stride + head * queries.mask_head_stride;
    if (queries.sinks != nullptr) rows->sink[i] = queries.sinks[head];
    rows->soft_cap = queries.soft_cap;
    rows->negligible = queries.negligible;
    rows->has_sinks = queries.sinks != nullptr;
}

RowGroup Cache::Impl::group_of(const Queries& queries, float* out, std::uint32_t kv_head, std::uint64_t group,
                               std::uint64_t n_tokens) const noexcept {
    const std::uint64_t n_rows =
        std::uint64_t{queries.n_queries} * (queries.n_heads / context.config.n_kv_heads);
    RowGroup rows = {};
    for (std::uint64_t row = group * max_rows; row < n_rows && rows.n_rows < max_rows; ++row)
        add_row(queries, out, kv_head, row, n_tokens, &rows);
    return rows;
}

void Cache::Impl::attend_heads(const Queries& queries, float* out, LayerStream& layer, const Work& work,
                               Executor& executor) noexcept {
    const CacheConfig& config = context.config;
    const std::uint64_t n_tokens = layer.n_tokens();
    const std::size_t n_runs = layer.n_runs();
    const KvRun* runs = working.runs;
    const std::uint64_t n_tiles = count_tiles(runs, n_runs);
    auto* memory = static_cast<unsigned char*>(working.attend.data());
    float* parts = reinterpret_cast<float*>(memory + work.n_slots * slot_bytes);
    const std::size_t stride = part_floats(config.value_dim);
    // Compression first: a piece takes longer than a head of a short context.
    const PieceRun pieces = layer.due_pieces(context);
    parallel_for(executor, pieces.n + work.n_slots, [&](std::size_t index) {
        if (index < pieces.n) {
            run_piece(pieces, static_cast<std::uint32_t>(index), serial_executor());
            return;
        }
        const std::uint64_t slot = index - pieces.n;
        const AttendScratch scratch =
            place_attend_scratch(memory + slot * slot_bytes, config.key_dim, config.value_dim);
        for (std::uint64_t task = slot; task < work.n_tasks; task += work.n_slots) {
            const std::uint64_t unit = task / work.n_parts, part = task % work.n_parts;
            const auto head = static_cast<std::uint32_t>(unit / work.n_groups);
            const RowGroup rows = group_of(queries, out, head, unit % work.n_groups, n_tokens);
            const TileRange range = {n_tiles * part / work.n_parts, n_tiles * (part + 1) / work.n_parts};
            attend_rows(*context.kernels, scratch, rows, runs, n_runs, head, config.key_dim, config.value_dim,
                        queries.scale, range, work.n_parts > 1 ? parts + task * stride : nullptr);
        }
    });
    layer.note_done(pieces);
    for (std::uint64_t unit = 0; work.n_parts > 1 && unit < work.n_tasks / work.n_parts; ++unit) {
        const auto head = static_cast<std::uint32_t>(unit / work.n_groups);
        merge_parts(group_of(queries, out, head, unit % work.n_groups, n_tokens),
                    parts + unit * work.n_parts * stride, stride, work.n_parts, config.value_dim);
    }
}

Status Cache::attend(std::uint32_t layer, const Queries& asked, float* out, Executor& executor) noexcept {
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    const Queries queries = impl_->within_window(layer, asked);
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (Status status = impl_->check_queries(queries, n_tokens(layer)); !status.ok()) return status;
    LayerStream& stream = *impl_->layers[layer];
    if (Status status = stream.check_blocks(executor); !status.ok()) return status;
    const CacheConfig& config = impl_->context.config;
    Work work;
    work.n_groups =
        ceil_div(std::uint64_t{queries.n_queries} * (queries.n_heads / config.n_kv_heads), max_rows);
    const std::uint64_t n_units = config.n_kv_heads * work.n_groups;
    work.n_parts = parts_of(stream.n_tokens(), n_units);
    work.n_tasks = n_units * work.n_parts;
    const auto slots_of = [&](std::uint64_t n_tasks) {
        return std::min(n_tasks,
                        std::max<std::uint64_t>(config.n_kv_heads, 4 * std::uint64_t{executor.n_threads()}));
    };
    work.n_slots = slots_of(work.n_tasks);
    // Room for the parts of the longest sequence, so that later calls need no more.
    const std::uint64_t most_parts = parts_of(config.max_tokens, n_units);
    const std::uint64_t part_bytes =
        most_parts > 1 ? n_units * most_parts * part_floats(config.value_dim) * sizeof(float) : 0;
    const std::uint64_t most_slots = slots_of(n_units * most_parts);
    if (!impl_->working.attend.ensure(impl_->work_memory(), impl_->slot_bytes * most_slots + part_bytes)) {
        return memory_error(impl_->context, "for the scratch of %llu attention tasks",
                            static_cast<unsigned long long>(most_slots));
    }
    if (impl_->rates.waits()) {
        Status status = impl_->rates.keep(&impl_->context, layer, queries, stream.n_tokens());
        if (!status.ok()) return status;
    }
    if (!impl_->context.errors.keep(impl_->context.memory(), layer, queries))
        return memory_error(impl_->context, "to keep a query of layer %u", layer);
    if (!impl_->working.reserve_runs(impl_->work_memory(), stream.n_runs()))
        return memory_error(impl_->context, "to list the %zu runs of layer %u", stream.n_runs(), layer);
    stream.list_runs(impl_->working.runs);
    if (Status status = impl_->set_turns(stream.n_runs()); !status.ok()) return status;
    impl_->attend_heads(queries, out, stream, work, executor);
    return {};
}

Status Cache::Impl::set_turns(std::size_t n_runs) noexcept {
    const RopeConfig& rope = context.config.rope;
    if (rope.n_pairs == 0) return {};
    KvRun* runs = working.runs;
    const auto differs = [&](std::size_t i) {
        return runs[i].shift != 0 && (i == 0 || runs[i].shift != runs[i - 1].shift);
    };
    std::uint64_t n = 0;
    for (std::size_t i = 0; i < n_runs; ++i)
        n += differs(i);
    if (n == 0) return {};
    const std::size_t turn_floats = 2 * std::size_t{rope.n_pairs};
    if (!working.turns.ensure(work_memory(), n * turn_floats * sizeof(float)))
        return memory_error(context, "for the rotations of %llu runs", static_cast<unsigned long long>(n));
    auto* next = static_cast<float*>(working.turns.data());
    for (std::size_t i = 0; i < n_runs; ++i) {
        if (runs[i].shift == 0) continue;
        if (differs(i)) {
            runs[i].turn = make_rotation(frequencies, rope.n_pairs, rope.interleaved, -runs[i].shift, next);
            next += turn_floats;
        } else {
            runs[i].turn = runs[i - 1].turn;
        }
    }
    return {};
}

}  // namespace gearkv
