// Older blocks made smaller, of all layers: parts go, and what is in trellis codes goes to lower rates.
#include <algorithm>
#include <iterator>
#include <memory>

#include "cache/sequence.hpp"
#include "format/spec.hpp"

namespace gearkv {
namespace {

constexpr std::size_t n_presets = std::size(presets);
constexpr TensorKind kinds[] = {TensorKind::key, TensorKind::value};

// Errors of keys move attention to other tokens, which a model bears less well than noise in its values.
constexpr double key_weight = 3.0;        // of squares
constexpr std::uint64_t price_every = 8;  // blocks

const BlockHeader& header_of(const ClosedBlock& block, TensorKind kind) {
    return *static_cast<const BlockHeader*>(kind == TensorKind::key ? block.key : block.value);
}
float rate_of(TensorKind kind, std::size_t preset) {
    return kind == TensorKind::key ? presets[preset].key_rate : presets[preset].value_rate;
}
// Of a rate that lay_out_lower gave.
std::size_t preset_of(const BlockHeader& lower) {
    std::size_t preset = 0;
    while (rate_of(static_cast<TensorKind>(lower.kind), preset) != lower.rate)
        ++preset;
    return preset;
}
double price_of(TensorKind kind, float error, std::uint64_t n_tokens, std::uint64_t n_saved) {
    const double weight = kind == TensorKind::key ? key_weight : 1.0;
    return weight * static_cast<double>(error) * static_cast<double>(n_tokens) / static_cast<double>(n_saved);
}
// What smaller blocks may have room for, all the same.
bool is_short(const Status& status) {
    return status.code() == Code::out_of_memory || status.code() == Code::over_budget;
}

}  // namespace

std::uint64_t Sequence::lower_rates_bytes(const CacheConfig& config) noexcept {
    return config.n_layers * std::size(kinds) * n_presets * sizeof(LowerRate);
}

Status Sequence::shrink(std::uint64_t target_bytes, std::uint64_t n_sections, Executor& executor) noexcept {
    if (n_sections == UINT64_MAX) look_again();
    if (Status status = drop_parts(target_bytes); !status.ok()) return status;
    if (n_sections == UINT64_MAX) {
        Status status = lower_far(target_bytes, executor);
        if (!status.ok() && !is_short(status)) return status;
    }
    return lower_steps(target_bytes, n_sections, executor);
}

// ---- parts ----

Status Sequence::drop_parts(std::uint64_t target_bytes) noexcept {
    // Outliers of all blocks first, then low rank; the oldest blocks of all layers before younger ones.
    for (const bool drop_low_rank : {false, true}) {
        Status short_of;
        // Where memory was short for some blocks, what others gave back may do.
        for (bool any = true; any && context.ledger.total() > target_bytes;) {
            short_of = {};
            if (Status status = drop_parts_once(target_bytes, drop_low_rank, &any, &short_of); !status.ok())
                return status;
            any &= !short_of.ok();
        }
        if (context.ledger.total() > target_bytes && !short_of.ok()) return short_of;
    }
    return {};
}

Status Sequence::drop_parts_once(std::uint64_t target_bytes, bool drop_low_rank, bool* any,
                                 Status* short_of) noexcept {
    const std::uint32_t n_layers = context.config.n_layers;
    *any = false;
    for (std::uint64_t i = 0; context.ledger.total() > target_bytes; ++i) {
        std::uint64_t next = UINT64_MAX;
        for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
            if (layers[layer] == nullptr) continue;
            const std::uint64_t at = next_reducible(layer, i, drop_low_rank);
            if (at < layers[layer]->tokens().blocks().size()) next = std::min(next, at);
        }
        if (next == UINT64_MAX) break;
        i = next;
        for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
            if (layers[layer] == nullptr || i >= layers[layer]->tokens().blocks().size()) continue;
            if (next_reducible(layer, i, drop_low_rank) != i) continue;
            if (Status status = own(layer); !status.ok()) return status;
            if (layers[layer]->reduce(&context, i, drop_low_rank)) {
                *any = true;
            } else {
                *short_of = memory_error(context, "for a smaller block of layer %u", layer);
            }
        }
    }
    return {};
}

std::uint64_t Sequence::next_reducible(std::uint32_t layer, std::uint64_t i, bool drop_low_rank) noexcept {
    const BlockTable& blocks = layers[layer]->tokens().blocks();
    std::uint64_t& n_known = irreducible[(drop_low_rank ? context.config.n_layers : 0) + layer];
    const bool from_known = i <= n_known;
    i = std::max(i, n_known);
    while (i < blocks.size() && !blocks.can_reduce(i, drop_low_rank))
        ++i;
    if (from_known) n_known = i;
    return i;
}

// ---- rates ----

LowerRate* Sequence::lower_rates_of(std::uint32_t layer, TensorKind kind) noexcept {
    return lower_rates + (std::size(kinds) * layer + static_cast<std::size_t>(kind)) * n_presets;
}

bool Sequence::find_lower(std::uint32_t layer, TensorKind kind, std::size_t preset, std::uint64_t too_large,
                          LowerStep* out) noexcept {
    const BlockTable& blocks = layers[layer]->tokens().blocks();
    std::uint32_t& first = lower_rates_of(layer, kind)[preset].first;
    for (std::uint32_t i = first; i < blocks.size(); ++i) {
        const BlockHeader& now = header_of(blocks[i], kind);
        BlockHeader lower;
        const auto coded = static_cast<TensorKind>(now.kind);
        if (blocks[i].is_mapped || lower_rate(coded, now.rate) != rate_of(coded, preset) ||
            !lay_out_lower(now, &lower)) {
            if (i == first) ++first;
            continue;
        }
        const std::uint64_t n_saved = now.n_bytes - lower.n_bytes, n_bytes = blocks[i].n_bytes() - n_saved;
        if (n_bytes >= too_large) continue;
        *out = {layer, kind, preset, i, lower, n_bytes, n_saved};
        return true;
    }
    return false;
}

Status Sequence::find_cheapest(std::uint64_t too_large, std::uint64_t n_sections, Executor& executor,
                               std::uint64_t* n_done, LowerStep* out, bool* found) noexcept {
    *found = false;
    bool any = false;
    double least = 0.0;
    for (std::uint32_t layer = 0; layer < context.config.n_layers; ++layer) {
        if (layers[layer] == nullptr) continue;
        for (const TensorKind kind : kinds) {
            for (std::size_t preset = 0; preset < n_presets; ++preset) {
                LowerStep step;
                if (!find_lower(layer, kind, preset, too_large, &step)) continue;
                float& error = lower_rates_of(layer, kind)[preset].error;
                if (error < 0.0f) {
                    if (*n_done >= n_sections) return {};
                    *n_done += step.lower.n_heads;
                    error = static_cast<float>(
                        layers[layer]->measure_lower(&context, step.block, kind, step.lower, executor));
                    if (error < 0.0f) return memory_error(context, "to try a lower rate of layer %u", layer);
                }
                const double price =
                    price_of(coded_as(context.config, kind), error, step.lower.n_tokens, step.n_saved);
                if (any && !(price < least)) continue;
                least = price;
                *out = step;
                any = true;
            }
        }
    }
    *found = any;
    return {};
}

// Memory may be short for the larger blocks, while smaller ones have room and make more.
Status Sequence::lower_steps(std::uint64_t target_bytes, std::uint64_t n_sections,
                             Executor& executor) noexcept {
    Status short_of;
    std::uint64_t too_large = UINT64_MAX, n_done = 0;
    while (context.ledger.total() > target_bytes && n_done < n_sections) {
        Status status;
        if (!lowering.is_open()) {
            bool found;
            status = find_cheapest(too_large, n_sections, executor, &n_done, &lowered, &found);
            if (!status.ok()) return status;
            if (!found) return short_of;
            status = layers[lowered.layer]->begin_lower(&context, lowered.block, lowered.kind, lowered.lower,
                                                        executor, &lowering);
            // Of some blocks the price is looked at again, which takes time.
            lowering.compares = lowered.block % price_every == 0;
        }
        if (status.ok()) {
            const std::uint32_t n_heads = lowered.lower.n_heads, n_before = lowering.n_done;
            const std::uint64_t n = (n_sections - n_done - 1) / n_heads + 1;
            status = layers[lowered.layer]->go_on_lower(
                &context, &lowering, static_cast<std::uint32_t>(std::min<std::uint64_t>(n, UINT32_MAX)),
                executor);
            n_done += std::uint64_t{n_heads} * (lowering.n_done - n_before);
        }
        if (status.ok() && lowering.is_done()) status = finish_step();
        if (status.ok()) {
            short_of = {};
            too_large = UINT64_MAX;
            continue;
        }
        lowering.drop(context.memory());
        if (!is_short(status)) return status;
        short_of = status;
        too_large = lowered.n_bytes;
    }
    return short_of;
}

Status Sequence::finish_step() noexcept {
    if (Status status = own(lowered.layer); !status.ok()) return status;
    const bool compares = lowering.compares;
    const double error = layers[lowered.layer]->finish_lower(&context, &lowering);
    LowerRate* rates = lower_rates_of(lowered.layer, lowered.kind);
    if (compares) rates[lowered.preset].error = static_cast<float>(error);
    // It may be the first that goes further down.
    for (std::size_t preset = 0; preset < n_presets; ++preset)
        rates[preset].first = std::min(rates[preset].first, static_cast<std::uint32_t>(lowered.block));
    return {};
}

// What all blocks of one tensor of a layer save together that go to a preset's rate, from the next higher
// one.
struct Sequence::FarRate {
    std::uint64_t n_saved = 0, n_tokens = 0;
    bool is_wanted = false;
};

Status Sequence::plan_far(std::uint64_t target_bytes, FarRate* plan, Executor& executor) noexcept {
    for (std::uint32_t layer = 0; layer < context.config.n_layers; ++layer) {
        if (layers[layer] == nullptr) continue;
        const BlockTable& blocks = layers[layer]->tokens().blocks();
        for (const TensorKind kind : kinds) {
            LowerRate* rates = lower_rates_of(layer, kind);
            FarRate* far = plan + (rates - lower_rates);
            for (std::uint64_t i = 0; i < blocks.size(); ++i) {
                if (blocks[i].is_mapped || (i > 0 && blocks[i].key == blocks[i - 1].key)) continue;
                BlockHeader at = header_of(blocks[i], kind), lower;
                for (; lay_out_lower(at, &lower); at = lower) {
                    const std::size_t preset = preset_of(lower);
                    far[preset].n_saved += at.n_bytes - lower.n_bytes;
                    far[preset].n_tokens += lower.n_tokens;
                    if (rates[preset].error >= 0.0f) continue;
                    rates[preset].error =
                        static_cast<float>(layers[layer]->measure_lower(&context, i, kind, lower, executor));
                    if (rates[preset].error < 0.0f)
                        return memory_error(context, "to try a lower rate of layer %u", layer);
                }
            }
        }
    }
    // The cheapest next rate of all tensors, as long as all blocks that would have it do not save too much.
    for (std::uint64_t n_wanted = context.ledger.total() - target_bytes;;) {
        FarRate* best = nullptr;
        double least = 0.0;
        for (std::size_t tensor = 0; tensor < std::size(kinds) * context.config.n_layers; ++tensor) {
            const auto kind = static_cast<TensorKind>(tensor % std::size(kinds));
            float before = 0.0f;
            for (std::size_t preset = n_presets; preset-- > 0;) {
                FarRate& far = plan[tensor * n_presets + preset];
                const float error = lower_rates[tensor * n_presets + preset].error;
                if (far.n_saved == 0) continue;
                if (far.is_wanted) {
                    before = error;
                    continue;
                }
                const double price = price_of(coded_as(context.config, kind), std::max(error - before, 0.0f),
                                              far.n_tokens, far.n_saved);
                if (best == nullptr || price < least) {
                    best = &far;
                    least = price;
                }
                break;
            }
        }
        if (best == nullptr || best->n_saved > n_wanted) return {};
        n_wanted -= best->n_saved;
        best->is_wanted = true;
    }
}

Status Sequence::lower_far(std::uint64_t target_bytes, Executor& executor) noexcept {
    if (context.ledger.total() <= target_bytes) return {};
    const Memory memory = context.memory();
    const std::uint64_t n_rates = lower_rates_bytes(context.config) / sizeof(LowerRate);
    auto* plan = static_cast<FarRate*>(memory.take(n_rates * sizeof(FarRate), Use::scratch));
    if (plan == nullptr) return memory_error(context, "to plan with");
    std::uninitialized_fill_n(plan, n_rates, FarRate());
    Status status = plan_far(target_bytes, plan, executor);
    for (std::uint32_t layer = 0; status.ok() && layer < context.config.n_layers; ++layer) {
        for (const TensorKind kind : kinds) {
            const LowerRate* rates = lower_rates_of(layer, kind);
            const FarRate* far = plan + (rates - lower_rates);
            if (!status.ok() ||
                std::none_of(far, far + n_presets, [](const FarRate& r) { return r.is_wanted; }))
                continue;
            if (status = own(layer); !status.ok()) break;
            LayerStream& stream = *layers[layer];
            for (std::uint64_t i = 0; status.ok() && i < stream.tokens().blocks().size(); ++i) {
                const ClosedBlock& block = stream.tokens().blocks()[i];
                BlockHeader at = header_of(block, kind), lower;
                const float rate = at.rate;
                while (!block.is_mapped && lay_out_lower(at, &lower) && far[preset_of(lower)].is_wanted)
                    at = lower;
                if (at.rate == rate) continue;
                Lowering far_down;
                status = stream.begin_lower(&context, i, kind, at, executor, &far_down);
                if (!status.ok()) break;
                status = stream.go_on_lower(&context, &far_down, far_down.n_sections, executor);
                if (status.ok()) (void)stream.finish_lower(&context, &far_down);
                far_down.drop(context.memory());
            }
            look_again(layer);
        }
    }
    memory.give_back(plan, n_rates * sizeof(FarRate), Use::scratch);
    return status;
}

std::uint64_t Sequence::soft_sections(std::uint32_t layer, std::uint32_t n_tokens) const noexcept {
    if (n_tokens >= context.config.spec.buffer_tokens) return UINT64_MAX;
    if (this->n_tokens(layer) < this->n_tokens(longest_layer())) return 0;
    // Sections that all layers get, each to be lowered as often as there are rates: the largest unit, at the
    // least.
    std::uint64_t n_heads = 0, most_heads = 0;
    for (std::uint32_t i = 0; i < context.config.n_layers; ++i) {
        const std::uint64_t of_layer = context.config.dims_of(i).n_kv_heads;
        n_heads += of_layer;
        most_heads = std::max(most_heads, of_layer);
    }
    const std::uint64_t n_sections = ceil_div(n_heads * n_tokens * (n_presets - 1), section_tokens);
    return std::size(kinds) * std::max(n_sections, most_heads);
}

void Sequence::forget_prices() noexcept {
    std::for_each_n(lower_rates, lower_rates_bytes(context.config) / sizeof(LowerRate),
                    [](LowerRate& rate) { rate.error = -1.0; });
}

void Sequence::look_again() noexcept {
    for (std::uint32_t layer = 0; layer < context.config.n_layers; ++layer)
        look_again(layer);
}

void Sequence::look_again(std::uint32_t layer) noexcept {
    if (lowered.layer == layer) lowering.drop(context.memory());
    irreducible[layer] = irreducible[context.config.n_layers + layer] = 0;
    for (const TensorKind kind : kinds) {
        for (std::size_t preset = 0; preset < n_presets; ++preset)
            lower_rates_of(layer, kind)[preset].first = 0;
    }
}

}  // namespace gearkv
