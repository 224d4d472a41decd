// What reading and writing a SPEC share: names, defaults and limits. See gearkv/config.hpp.
#pragma once

#include <algorithm>
#include <string_view>

#include "format/trellis.hpp"
#include "gearkv/config.hpp"

namespace gearkv {

inline constexpr std::uint16_t default_rank_prompt = 4;
inline constexpr std::uint16_t default_rank_decode = 2;
inline constexpr float default_sparsity = 0.02f;
inline constexpr std::uint32_t default_buffer_tokens = 64;
inline constexpr std::uint32_t trellis_buffer_tokens = 128;  // one section
inline constexpr std::uint32_t trellis_sink_tokens = 4;

inline constexpr std::uint16_t max_group = 4096;
inline constexpr std::uint16_t max_spec_rank = 64;
inline constexpr std::uint32_t max_buffer_tokens = 4096;
inline constexpr std::uint32_t max_sink_tokens = 64;
inline constexpr std::uint32_t max_recent_tokens = 65536;
inline constexpr std::uint32_t max_edge_layers = 2048;
inline constexpr std::uint32_t max_rule_layer = 4095;  // the last a cache may have
inline constexpr float most_key_rate = max_key_width, most_value_rate = max_value_width;
inline constexpr float least_auto_bits = 1.0f, most_auto_bits = 5.0f;

// The points of bench/quality nearest to 1.9, 2.5, 3.5 and 4.5 bits in all.
struct Preset {
    std::uint8_t bits;
    float key_rate, value_rate;
};
inline constexpr Preset presets[] = {
    {1, 2.0f, 1.5f}, {2, 2.625f, 2.0f}, {3, 3.625f, 3.0f}, {4, 4.625f, 4.0f}};
// The rate that blocks of this one are encoded again at, to take less: the largest of a preset that saves a
// tenth of it or more. 0 when there is none.
inline float lower_rate(TensorKind kind, float rate) noexcept {
    float lower = 0.0f;
    for (const Preset& preset : presets) {
        const float other = kind == TensorKind::key ? preset.key_rate : preset.value_rate;
        if (other <= 0.9f * rate) lower = std::max(lower, other);
    }
    return lower;
}
// What gear-3 was once: states that name it may hold blocks of these rates.
inline constexpr Preset earlier_preset = {3, 3.375f, 3.25f};

// A name without its bits, and the parts it stands for.
struct Family {
    std::string_view prefix;
    Backbone backbone;
    bool low_rank;
    bool outliers;
};
inline constexpr Family families[] = {
    {"kivi-", Backbone::kivi, false, false},        {"kcvt-", Backbone::kcvt, false, false},
    {"token-", Backbone::token, false, false},      {"gearl-kcvt-", Backbone::kcvt, true, false},
    {"gearl-token-", Backbone::token, true, false}, {"gearl-", Backbone::kivi, true, false},
    {"gear-kcvt-", Backbone::kcvt, true, true},     {"gear-token-", Backbone::token, true, true},
    {"gear-", Backbone::kivi, true, true},
};

// Of a tensor that nothing is said of beside another one.
inline constexpr TensorSpec half_spec = {Backbone::raw16, 16};

inline bool has_trellis(const KvSpec& spec) noexcept {
    const auto is_trellis = [](const TensorSpec& tensor) { return tensor.backbone == Backbone::trellis; };
    return is_trellis(spec.key) || is_trellis(spec.value) ||
           std::any_of(spec.layer_rules, spec.layer_rules + spec.n_layer_rules,
                       [&](const LayerRule& rule) { return is_trellis(rule.key) || is_trellis(rule.value); });
}
inline std::uint32_t default_buffer(bool trellis) noexcept {
    return trellis ? trellis_buffer_tokens : default_buffer_tokens;
}
inline std::uint32_t default_sinks(bool trellis) noexcept {
    return trellis ? trellis_sink_tokens : 0;
}

}  // namespace gearkv
