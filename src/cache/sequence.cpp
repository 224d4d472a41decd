#include "cache/sequence.hpp"

#include <algorithm>
#include <memory>

namespace gearkv {
namespace {

std::uint64_t rope_bytes(const RopeConfig& rope) {
    return std::max(rope.n_pairs, 1u) * sizeof(double);
}

}  // namespace

bool Sequence::create(const Sequence* shared) noexcept {
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
    if (config.dims != nullptr) {
        dims = static_cast<LayerDims*>(memory.take(config.n_layers * sizeof(LayerDims), Use::table));
        if (dims == nullptr) return false;
        std::copy_n(config.dims, config.n_layers, dims);
        context.config.dims = dims;
    }
    irreducible = static_cast<std::uint64_t*>(memory.take(irreducible_bytes(config), Use::table));
    if (irreducible == nullptr) return false;
    lower_rates = static_cast<LowerRate*>(memory.take(lower_rates_bytes(config), Use::table));
    if (lower_rates == nullptr) return false;
    std::uninitialized_fill_n(lower_rates, lower_rates_bytes(config) / sizeof(LowerRate), LowerRate());
    if (shared != nullptr)
        std::copy_n(shared->lower_rates, lower_rates_bytes(config) / sizeof(LowerRate), lower_rates);
    look_again();
    if (shared != nullptr) has_stepped = shared->has_stepped;
    if (!context.errors.create(config, memory)) return false;
    if (shared == nullptr ? !rates.create(&context) : !rates.copy(&context, shared->rates)) return false;
    for (std::uint32_t i = 0; i < config.n_layers; ++i) {
        if (shared == nullptr) {
            if (!has_keys(i)) continue;
            layers[i] = LayerStream::make(&context, i, first_spec(config, i));
            if (layers[i] == nullptr) return false;
        } else if (shared->layers[i] != nullptr) {
            layers[i] = shared->layers[i];
            layers[i]->join(&context);
        }
    }
    return true;
}

std::uint64_t Sequence::created_bytes(const CacheConfig& config) noexcept {
    std::uint64_t of_layer = sizeof(LayerStream*);
    if (config.windows != nullptr) of_layer += sizeof(std::uint32_t);
    if (config.dims != nullptr) of_layer += sizeof(LayerDims);
    return rope_bytes(config.rope) + of_layer * config.n_layers + irreducible_bytes(config) +
           lower_rates_bytes(config) + ErrorEstimate::created_bytes(config);
}

void Sequence::destroy() noexcept {
    const Memory memory = context.memory();
    const std::uint32_t n_layers = context.config.n_layers;
    lowering.drop(memory);
    for (std::uint32_t i = 0; layers != nullptr && i < n_layers; ++i) {
        if (layers[i] != nullptr) layers[i]->leave(&context);
    }
    memory.give_back(layers, n_layers * sizeof(LayerStream*), Use::table);
    memory.give_back(frequencies, rope_bytes(context.config.rope), Use::table);
    memory.give_back(windows, n_layers * sizeof(std::uint32_t), Use::table);
    memory.give_back(irreducible, irreducible_bytes(context.config), Use::table);
    memory.give_back(lower_rates, lower_rates_bytes(context.config), Use::table);
    rates.destroy(&context);
    context.errors.destroy(memory);
    memory.give_back(dims, n_layers * sizeof(LayerDims), Use::table);
}

Status Sequence::check_layer(std::uint32_t layer) const noexcept {
    if (layer < context.config.n_layers) return {};
    return Status::error(Code::invalid_argument, "layer %u, expected below %u", layer,
                         context.config.n_layers);
}

Status Sequence::check_keys(std::uint32_t layer) const noexcept {
    if (Status status = check_layer(layer); !status.ok() || has_keys(layer)) return status;
    return Status::error(Code::no_keys, "layer %u has 0 KV heads, expected a layer with keys of its own",
                         layer);
}

std::uint64_t Sequence::least_tokens() const noexcept {
    std::uint64_t least = n_tokens(longest_layer());
    for (std::uint32_t i = 0; i < context.config.n_layers; ++i) {
        if (!is_passed_over(i)) least = std::min(least, n_tokens(i));
    }
    return least;
}

std::uint32_t Sequence::longest_layer() const noexcept {
    std::uint32_t longest = 0;
    for (std::uint32_t i = 1; i < context.config.n_layers; ++i) {
        if (n_tokens(i) > n_tokens(longest)) longest = i;
    }
    return longest;
}

bool Sequence::can_choose() const noexcept {
    if (!rates.waits()) return false;
    const std::uint64_t n = n_tokens(longest_layer());
    for (std::uint32_t i = 0; i < context.config.n_layers; ++i) {
        if (is_passed_over(i)) continue;
        if (layers[i] == nullptr || n_tokens(i) < n || !rates.can_measure(i, *layers[i])) return false;
    }
    return true;
}

Status Sequence::own(std::uint32_t layer) noexcept {
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

Status Sequence::own_all() noexcept {
    Status status;
    for (std::uint32_t i = 0; status.ok() && i < context.config.n_layers; ++i) {
        if (has_keys(i)) status = own(i);
    }
    return status;
}

Status Sequence::choose_rates(std::uint32_t layer, std::uint64_t n_needed, Executor& executor) noexcept {
    if (!rates.waits() || unit_tokens(context.config, layer, layers[layer]->tokens().n_buffered()) == 0)
        return {};
    if (Status status = own_all(); !status.ok()) return status;
    if (Status status = rates.choose(&context, layers, executor); !status.ok()) return status;
    for (std::uint32_t i = 0; i < context.config.n_layers; ++i) {
        if (layers[i] != nullptr) layers[i]->note(i == layer ? n_needed : layers[i]->n_tokens());
    }
    return {};
}

bool Sequence::truncate_rates(std::uint64_t n_tokens) noexcept {
    if (!rates.waits()) return true;
    bool is_whole = true;
    for (std::uint32_t i = 0; i < context.config.n_layers; ++i) {
        if (n_tokens < this->n_tokens(i)) is_whole &= rates.truncate(&context, i, n_tokens);
    }
    return is_whole;
}

Status Sequence::check_window(std::uint32_t layer, const LayerShape& shape, const char* what) const noexcept {
    const std::uint32_t window = window_of(context.config, layer);
    const std::uint64_t n_tokens = shape.n_tokens(), first = first_seen(n_tokens, window);
    if (!shape.lacks(first, n_tokens)) return {};
    return Status::error(Code::forgotten,
                         "%s: the window of %u of layer %u would show tokens from %llu of %llu, those from "
                         "%llu to %llu were given back",
                         what, window, layer, static_cast<unsigned long long>(first),
                         static_cast<unsigned long long>(n_tokens),
                         static_cast<unsigned long long>(shape.n_sinks),
                         static_cast<unsigned long long>(shape.left_end() - 1));
}

Status Sequence::give_back(std::uint32_t layer, std::uint64_t n, bool by_caller,
                           bool behind_window) noexcept {
    if (n == 0) return {};
    if (Status status = own(layer); !status.ok()) return status;
    if (Status status = layers[layer]->check_first_block(); !status.ok()) return status;
    if (!layers[layer]->reserve_cut(&context))
        return memory_error(context, "to cut the blocks of layer %u", layer);
    if (by_caller) layers[layer]->settle(&context);
    layers[layer]->forget(&context, n, behind_window);
    look_again(layer);
    return {};
}

Status Sequence::forget_before(std::uint32_t layer, std::uint64_t token) noexcept {
    if (layers[layer] == nullptr) return {};
    const std::uint32_t window = window_of(context.config, layer);
    const bool behind_window = window > 0 && token <= first_seen(n_tokens(layer), window);
    return give_back(layer, layers[layer]->n_forgettable(token, false), true, behind_window);
}

Status Sequence::keep_within(std::uint32_t layer, std::uint64_t n_sections, Executor& executor) noexcept {
    const std::uint64_t token = first_visible(context.config, layer, n_tokens(layer));
    Status status = give_back(layer, layers[layer]->n_forgettable(token, true), false, true);
    if (!status.ok()) return status;
    // What a prompt left behind may have gone, here or where an append failed.
    if (layers[layer]->note_skipped()) look_again(layer);
    if (lowering.is_open() && !layers[lowered.layer]->can_go_on(lowering)) lowering.drop(context.memory());
    const std::uint64_t soft_bytes = context.config.soft_bytes;
    if (soft_bytes > 0 && context.ledger.total() > soft_bytes)
        (void)shrink(soft_bytes, n_sections, executor);  // as far as it can
    return {};
}

}  // namespace gearkv
