#include "gearkv/cache.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>

#include "cache/check.hpp"
#include "cache/impl.hpp"

namespace gearkv {
namespace {

// Few heads and rows are split over the tokens, into parts of at least 1,024.
std::uint64_t parts_of(std::uint64_t n_tokens, std::uint64_t n_units) {
    constexpr std::uint64_t wanted_tasks = 8, least_tokens = 1024;
    return std::clamp<std::uint64_t>(n_tokens / least_tokens, 1, ceil_div(wanted_tasks, n_units));
}

std::uint64_t rope_bytes(const RopeConfig& rope) {
    return std::max(rope.n_pairs, 1u) * sizeof(double);
}

}  // namespace

bool Cache::Impl::reserve_runs(std::uint64_t n) noexcept {
    if (n <= max_runs) return true;
    auto* more = static_cast<KvRun*>(context.memory().take(2 * n * sizeof(KvRun), Use::table));
    if (more == nullptr) return false;
    context.memory().give_back(runs, max_runs * sizeof(KvRun), Use::table);
    runs = more;
    max_runs = 2 * n;
    return true;
}

KvSpec Cache::Impl::first_spec() const noexcept {
    KvSpec spec;
    (void)initial_spec(context.config, &spec).ok();  // the configuration was checked
    return spec;
}

bool Cache::Impl::create(const Impl* shared) noexcept {
    const CacheConfig& config = context.config;
    const Memory memory = context.memory();
    const RopeConfig& rope = config.rope;
    frequencies = static_cast<double*>(memory.take(rope_bytes(rope), Use::table));
    layers = static_cast<LayerStream**>(memory.take(config.n_layers * sizeof(LayerStream*), Use::table));
    if (layers == nullptr || frequencies == nullptr) return false;
    std::fill_n(layers, config.n_layers, nullptr);
    std::copy_n(rope.frequencies, rope.n_pairs, frequencies);
    context.config.rope.frequencies = frequencies;
    if (shared == nullptr ? !rates.create(&context) : !rates.copy(&context, shared->rates)) return false;
    const KvSpec spec = first_spec();
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        if (shared == nullptr) {
            layers[i] = LayerStream::make(&context, i, spec);
            if (layers[i] == nullptr) return false;
        } else if (shared->layers[i] != nullptr) {
            layers[i] = shared->layers[i];
            layers[i]->join(&context);
        }
    }
    max_runs = max_blocks(config) + 3;
    runs = static_cast<KvRun*>(memory.take(max_runs * sizeof(KvRun), Use::table));
    if (runs == nullptr) return false;
    slot_bytes = attend_scratch_bytes(config.key_dim, config.value_dim);
    if (!attend_scratch.ensure(memory, slot_bytes * config.n_kv_heads)) return false;
    std::uint64_t compress_bytes = 0;
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        for (const bool prompt : {false, true}) {
            BlockHeader header;
            const TensorSpec& tensor = kind == TensorKind::key ? spec.key : spec.value;
            if (!lay_out_unit(config, tensor, kind, {config.spec.buffer_tokens, prompt, true}, &header).ok())
                return false;
            compress_bytes = std::max(compress_bytes, compress_scratch_bytes(header));
        }
    }
    return context.compress_scratch.ensure(memory, compress_bytes);
}

void Cache::Impl::destroy() noexcept {
    const Memory memory = context.memory();
    const std::uint32_t n_layers = context.config.n_layers;
    for (std::uint32_t i = 0; layers != nullptr && i < n_layers; ++i) {
        if (layers[i] != nullptr) layers[i]->leave(&context);
    }
    memory.give_back(layers, n_layers * sizeof(LayerStream*), Use::table);
    memory.give_back(frequencies, rope_bytes(context.config.rope), Use::table);
    memory.give_back(runs, max_runs * sizeof(KvRun), Use::table);
    rates.destroy(&context);
    attend_scratch.free(memory);
    turn_scratch.free(memory);
    context.compress_scratch.free(memory);
}

Status Cache::Impl::make(const CacheConfig& config, const Kernels* kernels, const Impl* shared,
                         std::unique_ptr<Cache>* out) noexcept {
    const Allocator& allocator = config.allocator;
    // The cache itself comes from the caller's memory too.
    void* place = allocator.allocate(allocator.context, sizeof(Impl), alignof(Impl));
    if (place == nullptr) return Status::error(Code::out_of_memory, "no %zu bytes for a cache", sizeof(Impl));
    Impl* impl = new (place) Impl(config);
    impl->context.kernels = kernels;
    Cache* cache = impl->create(shared) ? new (std::nothrow) Cache(impl) : nullptr;
    if (cache == nullptr) {
        const Status status =
            memory_error(impl->context, "for the buffers and tables of %u layers", config.n_layers);
        impl->destroy();
        impl->~Impl();
        allocator.release(allocator.context, place, sizeof(Impl));
        return status;
    }
    out->reset(cache);
    return {};
}

Status Cache::create(const CacheConfig& config, std::unique_ptr<Cache>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (Status status = check_config(config); !status.ok()) return status;
    Level level;
    if (Status status = resolve_level(config.level, &level); !status.ok()) return status;
    return Impl::make(config, find_kernels(level), nullptr, out);
}

Status Cache::fork(std::unique_ptr<Cache>* out) const noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    return Impl::make(config(), impl_->context.kernels, impl_, out);
}

Status Cache::Impl::own(std::uint32_t layer) noexcept {
    LayerStream* stream = layers[layer];
    if (stream != nullptr && !stream->is_shared()) return {};
    LayerStream* own =
        stream == nullptr ? LayerStream::make(&context, layer, first_spec()) : stream->clone(&context);
    if (own == nullptr) return memory_error(context, "for the buffers and tables of layer %u", layer);
    if (stream != nullptr) stream->leave(&context);
    layers[layer] = own;
    return {};
}

Status Cache::Impl::own_all() noexcept {
    Status status;
    for (std::uint32_t i = 0; status.ok() && i < context.config.n_layers; ++i)
        status = own(i);
    return status;
}

Cache::~Cache() {
    const Allocator allocator = impl_->context.config.allocator;
    impl_->destroy();
    impl_->~Impl();
    allocator.release(allocator.context, impl_, sizeof(Impl));
}

Status Cache::Impl::check_layer(std::uint32_t layer) const noexcept {
    if (layer < context.config.n_layers) return {};
    return Status::error(Code::invalid_argument, "layer %u, expected below %u", layer,
                         context.config.n_layers);
}

Status Cache::Impl::choose_rates(std::uint32_t layer, Executor& executor) noexcept {
    if (!rates.waits() || unit_tokens(context.config, layers[layer]->n_buffered()) == 0) return {};
    if (Status status = own_all(); !status.ok()) return status;
    return rates.choose(&context, layers, executor);
}

Status Cache::append(std::uint32_t layer, const Rows& keys, const Rows& values, std::uint32_t n_tokens,
                     Executor& executor) noexcept {
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    CacheContext& context = impl_->context;
    const CacheConfig& config = context.config;
    if (keys.data == nullptr || values.data == nullptr) {
        return Status::error(Code::invalid_argument, "%s are null", keys.data == nullptr ? "keys" : "values");
    }
    if (n_tokens == 0) return Status::error(Code::wrong_size, "append of 0 tokens, expected at least 1");
    if (impl_->n_tokens(layer) + n_tokens > config.max_tokens) {
        return Status::error(Code::capacity_exceeded,
                             "layer %u holds %llu tokens and cannot take %u more, %llu are reserved", layer,
                             static_cast<unsigned long long>(impl_->n_tokens(layer)), n_tokens,
                             static_cast<unsigned long long>(config.max_tokens));
    }
    const BlockShape key_shape = {TensorKind::key, n_tokens, config.n_kv_heads, config.key_dim};
    const BlockShape value_shape = {TensorKind::value, n_tokens, config.n_kv_heads, config.value_dim};
    const auto any_float = [](const TensorSpec& spec) { return spec.backbone == Backbone::raw32; };
    Status status = check_rows(*context.kernels, keys, key_shape, any_float(config.spec.key), executor);
    if (status.ok())
        status = check_rows(*context.kernels, values, value_shape, any_float(config.spec.value), executor);
    if (status.ok()) status = impl_->own(layer);
    if (status.ok()) status = impl_->choose_rates(layer, executor);
    if (!status.ok()) return status;
    LayerStream& stream = *impl_->layers[layer];
    if (status = stream.check_first_block(); !status.ok()) return status;
    if (status = stream.advance(&context, n_tokens, executor); !status.ok()) return status;
    if (!stream.reserve_append(&context, n_tokens))
        return memory_error(context, "to buffer %u tokens of layer %u", n_tokens, layer);
    stream.append(context, keys, values, n_tokens);
    return {};
}

Status Cache::compress(std::uint32_t layer, Executor& executor) noexcept {
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    const LayerStream* stream = impl_->layers[layer];
    if (stream == nullptr || unit_tokens(config(), stream->n_buffered()) == 0) return {};
    // A caller that compresses layer after layer of the first chunk must not decide for those to come.
    if (impl_->rates.waits() && !impl_->rates.is_ready(impl_->context, impl_->layers)) return {};
    if (Status status = impl_->own(layer); !status.ok()) return status;
    if (Status status = impl_->choose_rates(layer, executor); !status.ok()) return status;
    if (Status status = impl_->layers[layer]->check_first_block(); !status.ok()) return status;
    return impl_->layers[layer]->compress(&impl_->context, executor);
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
    const std::uint64_t n_tiles = count_tiles(runs, n_runs);
    auto* memory = static_cast<unsigned char*>(attend_scratch.data());
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

Status Cache::attend(std::uint32_t layer, const Queries& queries, float* out, Executor& executor) noexcept {
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
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
    if (!impl_->attend_scratch.ensure(impl_->context.memory(), impl_->slot_bytes * most_slots + part_bytes)) {
        return memory_error(impl_->context, "for the scratch of %llu attention tasks",
                            static_cast<unsigned long long>(most_slots));
    }
    if (impl_->rates.waits()) {
        Status status = impl_->rates.keep(&impl_->context, layer, queries, stream.n_tokens());
        if (!status.ok()) return status;
    }
    if (!impl_->reserve_runs(stream.n_runs()))
        return memory_error(impl_->context, "to list the %zu runs of layer %u", stream.n_runs(), layer);
    stream.list_runs(impl_->runs);
    if (Status status = impl_->set_turns(stream.n_runs()); !status.ok()) return status;
    impl_->attend_heads(queries, out, stream, work, executor);
    return {};
}

Status Cache::Impl::set_turns(std::size_t n_runs) noexcept {
    const RopeConfig& rope = context.config.rope;
    if (rope.n_pairs == 0) return {};
    const auto differs = [&](std::size_t i) {
        return runs[i].shift != 0 && (i == 0 || runs[i].shift != runs[i - 1].shift);
    };
    std::uint64_t n = 0;
    for (std::size_t i = 0; i < n_runs; ++i)
        n += differs(i);
    if (n == 0) return {};
    const std::size_t turn_floats = 2 * std::size_t{rope.n_pairs};
    if (!turn_scratch.ensure(context.memory(), n * turn_floats * sizeof(float)))
        return memory_error(context, "for the rotations of %llu runs", static_cast<unsigned long long>(n));
    auto* next = static_cast<float*>(turn_scratch.data());
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

Status Cache::read(std::uint32_t layer, std::uint64_t first, std::uint64_t n_tokens, float* keys,
                   float* values) noexcept {
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    const std::uint64_t n_held = this->n_tokens(layer);
    if (first > n_held || n_tokens > n_held - first) {
        return Status::error(Code::wrong_size, "%llu tokens from %llu, the layer holds %llu",
                             static_cast<unsigned long long>(n_tokens),
                             static_cast<unsigned long long>(first), static_cast<unsigned long long>(n_held));
    }
    if (n_tokens == 0) return {};
    const LayerStream& stream = *impl_->layers[layer];
    const LayerShape shape = stream.shape();
    const std::uint64_t gap = shape.n_sinks, gap_end = gap + shape.n_forgotten;
    if (first < gap_end && first + n_tokens > gap && gap < gap_end) {
        return Status::error(Code::wrong_size, "%llu tokens from %llu, of which %llu to %llu were forgotten",
                             static_cast<unsigned long long>(n_tokens),
                             static_cast<unsigned long long>(first), static_cast<unsigned long long>(gap),
                             static_cast<unsigned long long>(gap_end - 1));
    }
    if (Status status = stream.check_blocks(serial_executor()); !status.ok()) return status;
    stream.read_range(impl_->context, first, n_tokens, keys, values);
    return {};
}

Status Cache::truncate(std::uint64_t n_tokens, bool* lossless) noexcept {
    const std::uint32_t n_layers = config().n_layers;
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (n_tokens <= this->n_tokens(i)) continue;
        return Status::error(Code::wrong_size, "truncation to %llu tokens, layer %u holds %llu",
                             static_cast<unsigned long long>(n_tokens), i,
                             static_cast<unsigned long long>(this->n_tokens(i)));
    }
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (n_tokens == this->n_tokens(i)) continue;
        if (Status status = impl_->own(i); !status.ok()) return status;
    }
    bool all_buffered = true;
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (n_tokens < this->n_tokens(i))
            all_buffered &= impl_->layers[i]->truncate(&impl_->context, n_tokens);
    }
    // What was kept to choose rates from may have been of dropped tokens.
    if (impl_->rates.waits()) impl_->rates.reset(&impl_->context);
    if (lossless != nullptr) *lossless = all_buffered;
    return {};
}

Status Cache::remove(std::uint64_t first, std::uint64_t n_tokens) noexcept {
    const std::uint32_t n_layers = config().n_layers;
    if (n_tokens == 0) return Status::error(Code::wrong_size, "removal of 0 tokens, expected at least 1");
    if (first < config().spec.sink_tokens) {
        return Status::error(Code::invalid_argument, "removal from token %llu, the first %u are sinks",
                             static_cast<unsigned long long>(first), config().spec.sink_tokens);
    }
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        const std::uint64_t n_held = this->n_tokens(i);
        if (first <= n_held && n_tokens <= n_held - first) continue;
        return Status::error(Code::wrong_size, "removal of %llu tokens from %llu, layer %u holds %llu",
                             static_cast<unsigned long long>(n_tokens),
                             static_cast<unsigned long long>(first), i,
                             static_cast<unsigned long long>(n_held));
    }
    if (Status status = impl_->own_all(); !status.ok()) return status;
    CacheContext& context = impl_->context;
    for (std::uint32_t i = 0; i < n_layers; ++i) {
        if (Status status = impl_->layers[i]->check_first_block(); !status.ok()) return status;
        if (!impl_->layers[i]->reserve_cut(&context))
            return memory_error(context, "to cut the blocks of layer %u", i);
    }
    float angles[max_dim];
    const RopeConfig& rope = config().rope;
    const Rotation turn = make_rotation(impl_->frequencies, rope.n_pairs, rope.interleaved,
                                        -static_cast<std::int64_t>(n_tokens), angles);
    for (std::uint32_t i = 0; i < n_layers; ++i)
        impl_->layers[i]->remove(&context, first, n_tokens, turn);
    if (impl_->rates.waits()) impl_->rates.reset(&context);
    return {};
}

Status Cache::forget_before(std::uint32_t layer, std::uint64_t token) noexcept {
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    const LayerStream* stream = impl_->layers[layer];
    if (stream == nullptr || stream->n_forgettable(token) == 0) return {};
    if (Status status = impl_->own(layer); !status.ok()) return status;
    if (Status status = impl_->layers[layer]->check_first_block(); !status.ok()) return status;
    if (!impl_->layers[layer]->reserve_cut(&impl_->context))
        return memory_error(impl_->context, "to cut the blocks of layer %u", layer);
    impl_->layers[layer]->forget_before(&impl_->context, token);
    return {};
}

void Cache::reset() noexcept {
    const KvSpec spec = impl_->first_spec();
    impl_->rates.reset(&impl_->context);
    for (std::uint32_t i = 0; i < config().n_layers; ++i) {
        LayerStream*& stream = impl_->layers[i];
        if (stream == nullptr) continue;
        if (stream->is_shared()) {
            stream->leave(&impl_->context);
            stream = nullptr;
        } else {
            stream->reset(&impl_->context);
            stream->share_evenly(spec);
        }
    }
}

Status Cache::layer_spec(std::uint32_t layer, KvSpec* out) const noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    const LayerStream* stream = impl_->layers[layer];
    const KvSpec first = impl_->first_spec();
    *out = config().spec;
    out->key = stream == nullptr ? first.key : stream->spec(TensorKind::key);
    out->value = stream == nullptr ? first.value : stream->spec(TensorKind::value);
    return {};
}

std::uint64_t Cache::n_tokens(std::uint32_t layer) const noexcept {
    return layer < impl_->context.config.n_layers ? impl_->n_tokens(layer) : 0;
}

CacheStats Cache::stats() const noexcept {
    const CacheContext& context = impl_->context;
    CacheStats stats;
    CacheBytes& bytes = stats.bytes;
    bytes.buffer = context.held[Use::buffer];
    bytes.scratch = context.held[Use::scratch];
    bytes.tables = context.held[Use::table] + sizeof(Impl);
    std::uint64_t n_elements = 0, n_uncompressed = 0;
    for (std::uint32_t i = 0; i < context.config.n_layers; ++i) {
        const LayerStream* stream = impl_->layers[i];
        if (stream == nullptr) continue;
        bytes.keys += stream->block_bytes(TensorKind::key);
        bytes.values += stream->block_bytes(TensorKind::value);
        bytes.buffer += stream->held()[Use::buffer];
        bytes.scratch += stream->held()[Use::scratch];
        bytes.tables += stream->held()[Use::table];
        bytes.mapped += stream->blocks().mapped_bytes();
        bytes.shared += stream->is_shared() ? stream->held().total() : stream->blocks().shared_bytes();
        stats.n_blocks += 2 * stream->blocks().size();
        stats.compress_seconds += stream->compress_seconds();
        const LayerShape shape = stream->shape();
        if (i == 0) stats.n_tokens = shape.n_tokens();
        if (i == 0) stats.compressed_tokens = shape.n_closed;
        n_elements += shape.n_tokens() - shape.n_forgotten;
        n_uncompressed += shape.n_sinks + shape.n_buffered;
    }
    bytes.bytes = bytes.keys.bytes + bytes.values.bytes + bytes.buffer + bytes.scratch + bytes.tables;
    if (n_elements > 0) {
        const std::uint64_t held = bytes.keys.bytes + bytes.values.bytes +
                                   buffer_bytes(context.config, TensorKind::key, n_uncompressed) +
                                   buffer_bytes(context.config, TensorKind::value, n_uncompressed);
        const double elements = static_cast<double>(n_elements) * context.config.n_kv_heads *
                                (context.config.key_dim + context.config.value_dim);
        stats.bits_per_element = 8.0 * static_cast<double>(held) / elements;
    }
    return stats;
}

const CacheConfig& Cache::config() const noexcept {
    return impl_->context.config;
}
Level Cache::level() const noexcept {
    return impl_->context.kernels->level;
}

}  // namespace gearkv
