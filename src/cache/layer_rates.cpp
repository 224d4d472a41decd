#include "cache/layer_rates.hpp"

#include <algorithm>

namespace gearkv {

bool LayerRates::create(const CacheConfig& config, std::uint32_t layer, const Memory& memory,
                        const KvSpec& rates) noexcept {
    share_evenly(rates);
    n_starts_ = config.dims_of(layer).n_kv_heads + std::uint64_t{1};
    for (std::uint32_t*& starts : plane_starts_) {
        if (config.spec.auto_bits == 0.0f) continue;
        starts = static_cast<std::uint32_t*>(memory.take(plane_bytes(), Use::table));
        if (starts == nullptr) return false;
    }
    return true;
}

void LayerRates::copy(const LayerRates& other) noexcept {
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        specs_[static_cast<int>(kind)] = other.spec(kind);
        if (const std::uint32_t* starts = other.planes(kind); starts != nullptr)
            set_planes(kind, starts, other.spec(kind).rate);
    }
}

void LayerRates::destroy(const Memory& memory) noexcept {
    for (std::uint32_t*& starts : plane_starts_) {
        memory.give_back(starts, plane_bytes(), Use::table);
        starts = nullptr;
    }
}

void LayerRates::set_planes(TensorKind kind, const std::uint32_t* starts, float rate) noexcept {
    std::copy_n(starts, n_starts_, plane_starts_[static_cast<int>(kind)]);
    specs_[static_cast<int>(kind)].rate = rate;
    has_planes_ = true;
}

void LayerRates::share_evenly(const KvSpec& rates) noexcept {
    specs_[static_cast<int>(TensorKind::key)] = rates.key;
    specs_[static_cast<int>(TensorKind::value)] = rates.value;
    has_planes_ = false;
}

}  // namespace gearkv
