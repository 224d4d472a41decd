#include "gearkv/cache.hpp"

#include <algorithm>
#include <cmath>
#include <new>

#include "cache/check.hpp"
#include "cache/impl.hpp"

namespace gearkv {
namespace {

std::uint64_t rope_bytes(const RopeConfig& rope) {
    return std::max(rope.n_pairs, 1u) * sizeof(double);
}

std::uint64_t irreducible_bytes(const CacheConfig& config) {
    return 2 * config.n_layers * sizeof(std::uint64_t);
}

// Scratch to compress a full buffer, whatever its layer. False when a block cannot be laid out.
bool most_compress_bytes(const CacheConfig& config, std::uint64_t* most) {
    const LayerRule* last = nullptr;
    for (std::uint32_t layer = 0; layer < config.n_layers; ++layer) {
        const LayerRule* rule = config.spec.rule_of(layer, config.n_layers);
        if (layer > 0 && rule == last) continue;
        last = rule;
        const KvSpec spec = first_spec(config, layer);
        for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
            for (const bool prompt : {false, true}) {
                BlockHeader header;
                const TensorSpec& tensor = kind == TensorKind::key ? spec.key : spec.value;
                const Unit unit = {config.spec.buffer_tokens, prompt, true};
                if (!lay_out_unit(config, tensor, kind, unit, &header).ok()) return false;
                *most = std::max(*most, compress_scratch_bytes(header));
            }
        }
    }
    return true;
}

}  // namespace

bool WorkMemory::reserve_runs(const Memory& memory, std::uint64_t n) noexcept {
    if (n <= max_runs) return true;
    n = std::max(n, 2 * max_runs);
    auto* more = static_cast<KvRun*>(memory.take(n * sizeof(KvRun), Use::table));
    if (more == nullptr) return false;
    memory.give_back(runs, max_runs * sizeof(KvRun), Use::table);
    runs = more;
    max_runs = n;
    return true;
}

void WorkMemory::free(const Memory& memory) noexcept {
    memory.give_back(runs, max_runs * sizeof(KvRun), Use::table);
    runs = nullptr;
    max_runs = 0;
    for (Scratch* scratch : {&jobs, &attend, &turns, &compress, &batch})
        scratch->free(memory);
}

Status Workspace::create(const Allocator& allocator, std::unique_ptr<Workspace>* out) noexcept {
    if (out == nullptr || allocator.allocate == nullptr || allocator.release == nullptr)
        return Status::error(Code::invalid_argument, "%s",
                             out == nullptr ? "out is null" : "allocator has a null function");
    void* place = allocator.allocate(allocator.context, sizeof(Impl), alignof(Impl));
    Impl* impl = place == nullptr ? nullptr : new (place) Impl(allocator);
    Workspace* workspace = impl == nullptr ? nullptr : new (std::nothrow) Workspace(impl);
    if (workspace == nullptr) {
        if (place != nullptr) allocator.release(allocator.context, place, sizeof(Impl));
        return Status::error(Code::out_of_memory, "no memory for a workspace");
    }
    out->reset(workspace);
    return {};
}

Workspace::~Workspace() {
    const Allocator allocator = impl_->ledger.allocator();
    impl_->work.free(impl_->memory());
    impl_->~Impl();
    allocator.release(allocator.context, impl_, sizeof(Impl));
}

std::uint64_t Workspace::n_bytes() const noexcept {
    return impl_->ledger.total() + sizeof(Impl);
}

Cache::Impl::Impl(const CacheConfig& config) noexcept
    : context(config),
      workspace(CacheAccess::of(config.workspace)),
      working(workspace == nullptr ? own_work : workspace->work) {
    context.compress_scratch = &working.compress;
    context.attend_scratch = &working.attend;
}

bool Cache::Impl::create(const Impl* shared) noexcept {
    const CacheConfig& config = context.config;
    const Memory memory = context.memory();
    const RopeConfig& rope = config.rope;
    frequencies = static_cast<double*>(memory.take(rope_bytes(rope), Use::table));
    if (frequencies == nullptr) return false;
    layers = static_cast<LayerStream**>(memory.take(config.n_layers * sizeof(LayerStream*), Use::table));
    if (layers == nullptr) return false;
    std::fill_n(layers, config.n_layers, nullptr);
    std::copy_n(rope.frequencies, rope.n_pairs, frequencies);
    context.config.rope.frequencies = frequencies;
    if (config.windows != nullptr) {
        windows =
            static_cast<std::uint32_t*>(memory.take(config.n_layers * sizeof(std::uint32_t), Use::table));
        if (windows == nullptr) return false;
        std::copy_n(config.windows, config.n_layers, windows);
        context.config.windows = windows;
    }
    irreducible = static_cast<std::uint64_t*>(memory.take(irreducible_bytes(config), Use::table));
    if (irreducible == nullptr) return false;
    look_again();
    if (!context.errors.create(config, memory)) return false;
    if (shared == nullptr ? !rates.create(&context) : !rates.copy(&context, shared->rates)) return false;
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        if (shared == nullptr) {
            layers[i] = LayerStream::make(&context, i, first_spec(config, i));
            if (layers[i] == nullptr) return false;
        } else if (shared->layers[i] != nullptr) {
            layers[i] = shared->layers[i];
            layers[i]->join(&context);
        }
    }
    if (!working.reserve_runs(work_memory(), max_blocks(config) + 3)) return false;
    slot_bytes = attend_scratch_bytes(config.key_dim, config.value_dim);
    if (!working.attend.ensure(work_memory(), slot_bytes * config.n_kv_heads)) return false;
    std::uint64_t compress_bytes = 0;
    return most_compress_bytes(config, &compress_bytes) &&
           working.compress.ensure(work_memory(), compress_bytes);
}

void Cache::Impl::destroy() noexcept {
    const Memory memory = context.memory();
    const std::uint32_t n_layers = context.config.n_layers;
    for (std::uint32_t i = 0; layers != nullptr && i < n_layers; ++i) {
        if (layers[i] != nullptr) layers[i]->leave(&context);
    }
    memory.give_back(layers, n_layers * sizeof(LayerStream*), Use::table);
    memory.give_back(frequencies, rope_bytes(context.config.rope), Use::table);
    memory.give_back(windows, n_layers * sizeof(std::uint32_t), Use::table);
    memory.give_back(irreducible, irreducible_bytes(context.config), Use::table);
    rates.destroy(&context);
    context.errors.destroy(memory);
    own_work.free(memory);
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
    LayerStream* own = stream == nullptr
                           ? LayerStream::make(&context, layer, first_spec(context.config, layer))
                           : stream->clone(&context);
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
    if (status = impl_->keep_within(layer); !status.ok()) return status;
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
    if (Status status = impl_->layers[layer]->compress(&impl_->context, executor); !status.ok())
        return status;
    return impl_->keep_within(layer);
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

void Cache::reset() noexcept {
    impl_->rates.reset(&impl_->context);
    impl_->context.errors.reset();
    impl_->look_again();
    for (std::uint32_t i = 0; i < config().n_layers; ++i) {
        LayerStream*& stream = impl_->layers[i];
        if (stream == nullptr) continue;
        if (stream->is_shared()) {
            stream->leave(&impl_->context);
            stream = nullptr;
        } else {
            stream->reset(&impl_->context);
            stream->share_evenly(first_spec(config(), i));
        }
    }
}

Status Cache::layer_stats(std::uint32_t layer, LayerStats* out) const noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    LayerStats stats;
    if (const LayerStream* stream = impl_->layers[layer]; stream != nullptr) {
        const LayerShape shape = stream->shape();
        stats.n_tokens = shape.n_tokens();
        stats.n_forgotten = shape.n_forgotten;
        stats.n_closed = shape.n_closed;
        stats.n_blocks = 2 * stream->blocks().size();
        stats.n_shrunk = stream->blocks().n_reduced();
        stats.compress_seconds = stream->compress_seconds();
    }
    const ErrorSample* sample = impl_->context.errors.sample(layer);
    if (sample != nullptr && sample->n_blocks > 0) {
        stats.output_error = sample->output > 0.0 ? std::sqrt(sample->error / sample->output) : 0.0;
        stats.n_sampled = sample->n_blocks;
    }
    *out = stats;
    return {};
}

Status Cache::layer_spec(std::uint32_t layer, KvSpec* out) const noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    const LayerStream* stream = impl_->layers[layer];
    const KvSpec first = first_spec(config(), layer);
    *out = config().spec;
    out->n_layer_rules = 0;
    std::fill_n(out->layer_rules, max_layer_rules, LayerRule());
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
        stats.n_shrunk += stream->blocks().n_reduced();
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
