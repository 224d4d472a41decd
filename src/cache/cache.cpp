#include "gearkv/cache.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <new>

#include "cache/check.hpp"
#include "cache/impl.hpp"
#include "executor/call.hpp"

namespace gearkv {

Cache::Impl::Impl(const CacheConfig& config) noexcept
    : Sequence(config),
      workspace(CacheAccess::of(config.workspace)),
      working(workspace == nullptr ? own_work : workspace->work) {
    context.compress_scratch = &working.compress;
    context.attend_scratch = &working.attend;
}

bool Cache::Impl::create(const Sequence* shared) noexcept {
    slot_bytes = most_attend_bytes(context.config).of_slot;
    return Sequence::create(shared) && working.create(context.config, work_memory());
}

void Cache::Impl::destroy() noexcept {
    Sequence::destroy();
    own_work.free(context.memory());
    context.memory().give_back(context.selections, context.config.n_layers * sizeof(SelectionTally),
                               Use::table);
}

Status Cache::Impl::make(const CacheConfig& config, const Kernels* kernels, const Sequence* shared,
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
    const FloatMode mode;
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

Cache::~Cache() {
    const Allocator allocator = impl_->context.config.allocator;
    impl_->destroy();
    impl_->~Impl();
    allocator.release(allocator.context, impl_, sizeof(Impl));
}

Status Cache::append(std::uint32_t layer, const Rows& keys, const Rows& values, std::uint32_t n_tokens,
                     Executor& caller) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (Status status = impl_->check_keys(layer); !status.ok()) return status;
    CacheContext& context = impl_->context;
    const CacheConfig& config = context.config;
    if (Status status = check_layout(keys, "keys"); !status.ok()) return status;
    if (Status status = check_layout(values, "values"); !status.ok()) return status;
    if (n_tokens == 0) return Status::error(Code::wrong_size, "append of 0 tokens, expected at least 1");
    if (impl_->n_tokens(layer) + n_tokens > config.max_tokens) {
        return Status::error(Code::capacity_exceeded,
                             "layer %u holds %llu tokens and cannot take %u more, %llu are reserved", layer,
                             static_cast<unsigned long long>(impl_->n_tokens(layer)), n_tokens,
                             static_cast<unsigned long long>(config.max_tokens));
    }
    const LayerDims dims = config.dims_of(layer);
    const BlockShape key_shape = {TensorKind::key, n_tokens, dims.n_kv_heads, dims.key_dim};
    const BlockShape value_shape = {TensorKind::value, n_tokens, dims.n_kv_heads, dims.value_dim};
    const auto limit = [](const TensorSpec& spec) {
        return spec.backbone == Backbone::raw32 ? max_float_entry : max_half_entry;
    };
    Status status = check_rows(*context.kernels, keys, key_shape, limit(config.spec.key), executor);
    if (status.ok())
        status = check_rows(*context.kernels, values, value_shape, limit(config.spec.value), executor);
    if (status.ok()) status = impl_->own(layer);
    if (status.ok()) status = impl_->choose_rates(layer, impl_->n_tokens(layer) + 1, executor);
    if (!status.ok()) return status;
    LayerStream& stream = *impl_->layers[layer];
    if (status = stream.check_first_block(); !status.ok()) return status;
    if (status = stream.advance(&context, n_tokens, executor); !status.ok()) return status;
    const std::uint64_t n_sections = impl_->soft_sections(layer, n_tokens);
    if (status = impl_->keep_within(layer, n_sections, executor); !status.ok()) return status;
    if (!stream.reserve_append(&context, n_tokens))
        return memory_error(context, "to buffer %u tokens of layer %u", n_tokens, layer);
    // So that attending needs no memory: of those that there are to be, sinks and buffer may be new.
    const std::uint64_t n_runs = stream.tokens().n_runs() + 2;
    if (!impl_->working.reserve_runs(impl_->work_memory(), n_runs)) {
        return memory_error(context, "to list the %llu runs of layer %u",
                            static_cast<unsigned long long>(n_runs), layer);
    }
    impl_->note_append(layer);
    stream.append(context, keys, values, n_tokens);
    return {};
}

Status Cache::compress(std::uint32_t layer, Executor& caller) noexcept {
    CallExecutor executor(caller);
    if (Status status = executor.check(); !status.ok()) return status;
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    return impl_->compress(layer, executor);
}

Status Cache::Impl::compress(std::uint32_t layer, Executor& executor) noexcept {
    const LayerStream* stream = layers[layer];
    if (stream == nullptr) return {};
    const std::uint64_t first = first_visible(context.config, layer, n_tokens(layer));
    if (unit_tokens(context.config, layer, stream->tokens().n_buffered()) == 0 &&
        stream->n_forgettable(first, false) == 0)
        return {};
    // A caller that compresses layer after layer of the first chunk must not decide for those to come.
    if (rates.waits() && !can_choose()) return {};
    if (Status status = own(layer); !status.ok()) return status;
    if (Status status = choose_rates(layer, n_tokens(layer), executor); !status.ok()) return status;
    if (Status status = layers[layer]->check_first_block(); !status.ok()) return status;
    if (Status status = layers[layer]->compress(&context, executor); !status.ok()) return status;
    return keep_within(layer, UINT64_MAX, executor);
}

void Cache::Impl::close_prompt(std::uint32_t layer, std::uint32_t n_queries, Executor& executor) noexcept {
    const CacheConfig& config = context.config;
    if (!config.close_prompts || n_queries < config.spec.buffer_tokens || !layers[layer]->ends_long()) return;
    // What fails here is done by the next append, which tells why if it cannot.
    if (!rates.waits()) return (void)compress(layer, executor).ok();
    for (std::uint32_t i = 0; i < config.n_layers; ++i)
        (void)compress(i, executor).ok();
}

Status Cache::read(std::uint32_t layer, std::uint64_t first, std::uint64_t n_tokens, void* keys,
                   std::size_t n_key_floats, void* values, std::size_t n_value_floats,
                   ElementType type) noexcept {
    if (Status status = check_type(type, "the output"); !status.ok()) return status;
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    const LayerDims dims = config().dims_of(layer);
    const std::size_t n_heads = dims.n_kv_heads;
    const OutRows key_rows = {keys, n_key_floats, n_heads * dims.key_dim, dims.key_dim, type};
    const OutRows value_rows = {values, n_value_floats, n_heads * dims.value_dim, dims.value_dim, type};
    return read(layer, first, n_tokens, keys == nullptr ? nullptr : &key_rows,
                values == nullptr ? nullptr : &value_rows);
}

Status Cache::read(std::uint32_t layer, std::uint64_t first, std::uint64_t n_tokens, const OutRows* keys,
                   const OutRows* values) noexcept {
    const FloatMode mode;
    if (Status status = impl_->check_layer(layer); !status.ok()) return status;
    const std::uint64_t n_held = this->n_tokens(layer);
    if (first > n_held || n_tokens > n_held - first) {
        return Status::error(Code::wrong_size, "%llu tokens from %llu, the layer holds %llu",
                             static_cast<unsigned long long>(n_tokens),
                             static_cast<unsigned long long>(first), static_cast<unsigned long long>(n_held));
    }
    const LayerDims dims = config().dims_of(layer);
    const auto check = [&](const OutRows* out, std::uint32_t dim, const char* what) {
        if (out == nullptr) return Status();
        char name[32];
        std::snprintf(name, sizeof(name), "%s of layer %u", what, layer);
        return check_room(*out, n_tokens, dims.n_kv_heads, dim, name);
    };
    if (n_tokens == 0) return {};
    if (Status status = check(keys, dims.key_dim, "keys"); !status.ok()) return status;
    if (Status status = check(values, dims.value_dim, "values"); !status.ok()) return status;
    const LayerStream& stream = *impl_->layers[layer];
    const LayerShape shape = stream.tokens().shape();
    const std::uint64_t gap = shape.n_sinks, gap_end = gap + shape.n_forgotten;
    if (first < gap_end && first + n_tokens > gap && gap < gap_end) {
        return Status::error(Code::forgotten, "%llu tokens from %llu, of which %llu to %llu were forgotten",
                             static_cast<unsigned long long>(n_tokens),
                             static_cast<unsigned long long>(first), static_cast<unsigned long long>(gap),
                             static_cast<unsigned long long>(gap_end - 1));
    }
    if (Status status = stream.check_blocks(serial_executor()); !status.ok()) return status;
    stream.tokens().read_range(impl_->context, stream.rope(impl_->context), first, n_tokens, keys, values);
    return {};
}

Status Cache::reserve(std::uint64_t max_tokens) noexcept {
    if (Status status = check_max_tokens(max_tokens); !status.ok()) return status;
    // Buffers and tables grow with tokens.
    std::uint64_t& most = impl_->context.config.max_tokens;
    most = std::max(most, max_tokens);
    return {};
}

void Cache::reset() noexcept {
    impl_->rates.reset(&impl_->context);
    impl_->context.errors.reset();
    impl_->look_again();
    impl_->forget_prices();
    impl_->has_stepped = false;
    for (std::uint32_t i = 0; i < config().n_layers; ++i) {
        LayerStream*& stream = impl_->layers[i];
        if (stream == nullptr) continue;
        if (stream->is_shared()) {
            stream->leave(&impl_->context);
            stream = nullptr;
        } else {
            stream->reset(&impl_->context);
            stream->mutable_rates()->share_evenly(first_spec(config(), i));
        }
    }
}

const CacheConfig& Cache::config() const noexcept {
    return impl_->context.config;
}
Level Cache::level() const noexcept {
    return impl_->context.kernels->level;
}

}  // namespace gearkv
