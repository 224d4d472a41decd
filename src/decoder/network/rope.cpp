#include "decoder/network/rope.hpp"

#include <cmath>

#include "gearkv/rope.hpp"

namespace gearkv {
namespace {

// Of longrope where the file does not state it: sqrt(1 + ln(context / original) / ln(original)).
double longrope_magnitude(double context, double original) {
    if (context <= original || original <= 1.0) return 1.0;
    return std::sqrt(1.0 + std::log(context / original) / std::log(original));
}

}  // namespace

Rope make_rope(const FileModel& model, LayerRope kind, std::uint32_t n_ctx) {
    const NetworkParams& params = model.network();
    const Weights& weights = model.weights();
    const RopeParams& rope = params.rope;
    const std::uint32_t rope_dim = params.sizes.rope_dim;
    Rope out;
    if (kind == LayerRope::none) return out;
    out.frequencies.resize(rope_dim / 2);
    RopeSpec spec;
    spec.n_dims = rope_dim;
    spec.base = static_cast<double>(kind == LayerRope::local ? params.local_base : rope.base);
    const std::uint32_t original = rope.original_context > 0 ? rope.original_context : params.sizes.n_ctx;
    const bool is_longrope = !weights.rope_factors_long.empty();
    if (kind != LayerRope::local) {
        const std::vector<float>& factors = !is_longrope       ? weights.rope_factors
                                            : n_ctx > original ? weights.rope_factors_long
                                                               : weights.rope_factors_short;
        if (!factors.empty()) spec.factors = factors.data();
        if (rope.scaling != RopeScaling::none) spec.scale = 1.0 / static_cast<double>(rope.factor);
        if (rope.scaling == RopeScaling::yarn) {
            spec.ext_factor = 1.0;
            spec.original_context = rope.original_context;
            spec.beta_fast = static_cast<double>(rope.yarn_fast);
            spec.beta_slow = static_cast<double>(rope.yarn_slow);
        }
    }
    // What could be wrong was refused when the model was loaded.
    (void)rope_frequencies(spec, out.frequencies.data(), out.frequencies.size()).ok();
    if (kind == LayerRope::local) return out;

    if (rope.scaling == RopeScaling::yarn) {
        const double growth = 0.1 * std::log(static_cast<double>(rope.factor));
        out.magnitude = (1.0 + growth) / (1.0 + static_cast<double>(rope.yarn_log_multiplier) * growth);
    }
    if (rope.magnitude > 0.0f) {
        out.magnitude *= static_cast<double>(rope.magnitude);
    } else if (is_longrope) {
        out.magnitude *= longrope_magnitude(params.sizes.n_ctx, original);
    }
    return out;
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
