// What the blocks of one layer are made by: the specs of its tensors, and with auto:BITS the planes of each
// head.
#pragma once

#include "gearkv/cache.hpp"
#include "memory/ledger.hpp"

namespace gearkv {

class LayerRates {
  public:
    // False when memory is short; destroy() is right in any case.
    bool create(const CacheConfig& config, std::uint32_t layer, const Memory& memory,
                const KvSpec& rates) noexcept;
    // After create: what the other one has.
    void copy(const LayerRates& other) noexcept;
    void destroy(const Memory& memory) noexcept;

    // Before the first block: the rates that hold until set_planes.
    void share_evenly(const KvSpec& rates) noexcept;
    // Before the first block: the first plane of each head, [n_kv_heads + 1], and the average rate of a
    // tensor.
    void set_planes(TensorKind kind, const std::uint32_t* starts, float rate) noexcept;

    // Null until set_planes.
    const std::uint32_t* planes(TensorKind kind) const noexcept {
        return has_planes_ ? plane_starts_[static_cast<int>(kind)] : nullptr;
    }
    // With the rates in use.
    const TensorSpec& spec(TensorKind kind) const noexcept { return specs_[static_cast<int>(kind)]; }
    const TensorSpec (&specs() const noexcept)[2] { return specs_; }

  private:
    std::uint64_t plane_bytes() const noexcept { return n_starts_ * sizeof(std::uint32_t); }

    TensorSpec specs_[2];                                  // by kind
    std::uint32_t* plane_starts_[2] = {nullptr, nullptr};  // by kind, with auto:BITS
    std::uint64_t n_starts_ = 0;
    bool has_planes_ = false;
};

}  // namespace gearkv
