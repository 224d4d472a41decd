#include "decoder/network/rope.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace gearkv {
namespace {

// The pair that turns `turns` times within the original context, as a fraction.
double yarn_pair(const RopeParams& rope, std::uint32_t rope_dim, double turns) {
    const double positions_a_turn = rope.original_context / (2.0 * std::numbers::pi * turns);
    return rope_dim * std::log(positions_a_turn) / (2.0 * std::log(static_cast<double>(rope.base)));
}

// YaRN: fast pairs keep their frequency, slow ones are stretched by the whole factor, with a ramp between.
void stretch_by_yarn(const RopeParams& rope, std::uint32_t rope_dim, Rope& out) {
    const double first =
        std::max(0.0, std::floor(yarn_pair(rope, rope_dim, static_cast<double>(rope.yarn_fast))));
    const double last =
        std::min(rope_dim - 1.0, std::ceil(yarn_pair(rope, rope_dim, static_cast<double>(rope.yarn_slow))));
    const double factor = static_cast<double>(rope.factor);
    for (std::size_t i = 0; i < out.frequencies.size(); i++) {
        const double ramp = (static_cast<double>(i) - first) / std::max(0.001, last - first);
        const double kept = 1.0 - std::clamp(ramp, 0.0, 1.0);
        out.frequencies[i] *= kept + (1.0 - kept) / factor;
    }
    const double growth = 0.1 * std::log(factor);
    out.magnitude = (1.0 + growth) / (1.0 + static_cast<double>(rope.yarn_log_multiplier) * growth);
}

// Of longrope where the file does not state it: sqrt(1 + ln(context / original) / ln(original)).
double longrope_magnitude(double context, double original) {
    if (context <= original || original <= 1.0) return 1.0;
    return std::sqrt(1.0 + std::log(context / original) / std::log(original));
}

}  // namespace

Rope make_rope(const LlamaModel& model, LayerRope kind, std::uint32_t n_ctx) {
    const NetworkParams& params = model.network();
    const Weights& weights = model.weights();
    const RopeParams& rope = params.rope;
    const std::uint32_t rope_dim = params.sizes.rope_dim;
    Rope out;
    if (kind == LayerRope::none) return out;
    const float base = kind == LayerRope::local ? params.local_base : rope.base;
    for (std::uint32_t i = 0; i < rope_dim / 2; i++) {
        out.frequencies.push_back(std::pow(static_cast<double>(base), -2.0 * i / rope_dim));
    }
    if (kind == LayerRope::local) return out;

    const std::uint32_t original = rope.original_context > 0 ? rope.original_context : params.sizes.n_ctx;
    const bool is_longrope = !weights.rope_factors_long.empty();
    const std::vector<float>& factors = !is_longrope       ? weights.rope_factors
                                        : n_ctx > original ? weights.rope_factors_long
                                                           : weights.rope_factors_short;
    for (std::size_t i = 0; i < factors.size(); i++) {
        out.frequencies[i] /= static_cast<double>(factors[i]);
    }
    if (rope.scaling == RopeScaling::linear) {
        for (double& frequency : out.frequencies) {
            frequency /= static_cast<double>(rope.factor);
        }
    }
    if (rope.scaling == RopeScaling::yarn) stretch_by_yarn(rope, rope_dim, out);
    if (rope.magnitude > 0.0f) {
        out.magnitude *= static_cast<double>(rope.magnitude);
    } else if (is_longrope) {
        out.magnitude *= longrope_magnitude(params.sizes.n_ctx, original);
    }
    return out;
}

bool has_one_rope(const NetworkParams& params) noexcept {
    return std::all_of(params.layer_ropes.begin(), params.layer_ropes.end(),
                       [&](LayerRope rope) { return rope == params.layer_ropes[0]; });
}

void write_turns(float* out, const Rope& rope, std::uint64_t position) noexcept {
    const std::size_t n_pairs = rope.frequencies.size();
    for (std::size_t i = 0; i < n_pairs; i++) {
        const double angle = static_cast<double>(position) * rope.frequencies[i];
        out[i] = static_cast<float>(std::cos(angle) * rope.magnitude);
        out[n_pairs + i] = static_cast<float>(std::sin(angle) * rope.magnitude);
    }
}

void turn_head(float* head, const float* turns, std::size_t n_pairs, Pairing pairing) noexcept {
    const float* cosines = turns;
    const float* sines = turns + n_pairs;
    const auto turn = [](float& a, float& b, float cosine, float sine) {
        const float first = a;
        a = first * cosine - b * sine;
        b = first * sine + b * cosine;
    };
    if (pairing == Pairing::adjacent) {
        for (std::size_t i = 0; i < n_pairs; i++) {
            turn(head[2 * i], head[2 * i + 1], cosines[i], sines[i]);
        }
    } else {
        for (std::size_t i = 0; i < n_pairs; i++) {
            turn(head[i], head[n_pairs + i], cosines[i], sines[i]);
        }
    }
}

}  // namespace gearkv
