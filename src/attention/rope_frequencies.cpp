// Frequencies of rotary position embeddings, of every scaling.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "gearkv/rope.hpp"

namespace gearkv {
namespace {

constexpr std::uint32_t most_dims = 1024;

// The pair that turns so many times within the original context, as a fraction.
double yarn_pair(const RopeSpec& params, double turns) {
    const double positions_a_turn = params.original_context / (2.0 * std::numbers::pi * turns);
    return params.n_dims * std::log(positions_a_turn) / (2.0 * std::log(params.base));
}

Status check(const RopeSpec& params) {
    if (params.n_dims < 2 || params.n_dims > most_dims || params.n_dims % 2 != 0) {
        return Status::error(Code::invalid_argument,
                             "n_dims of RoPE is %u, expected an even number of 2 to %u", params.n_dims,
                             most_dims);
    }
    const bool is_yarn = params.ext_factor != 0.0;
    const struct {
        const char* name;
        double value;
        bool positive, any;
    } numbers[] = {{"base", params.base, true, false},
                   {"scale", params.scale, false, false},
                   {"ext_factor", params.ext_factor, false, false},
                   {"original_context", params.original_context, true, !is_yarn},
                   {"beta_fast", params.beta_fast, true, !is_yarn},
                   {"beta_slow", params.beta_slow, true, !is_yarn}};
    for (const auto& number : numbers) {
        if (number.any || (std::isfinite(number.value) && (!number.positive || number.value > 0.0))) continue;
        return Status::error(Code::invalid_argument, "%s of RoPE is %g, expected finite%s", number.name,
                             number.value, number.positive ? " and above 0" : "");
    }
    if (is_yarn && params.base == 1.0)
        return Status::error(Code::invalid_argument, "base of RoPE is 1, expected another with YaRN");
    for (std::uint32_t i = 0; params.factors != nullptr && i < params.n_dims / 2; ++i) {
        if (std::isfinite(params.factors[i]) && params.factors[i] != 0.0f) continue;
        return Status::error(Code::invalid_argument, "factors[%u] of RoPE is %g, expected finite and not 0",
                             i, static_cast<double>(params.factors[i]));
    }
    return {};
}

}  // namespace

Status rope_frequencies(const RopeSpec& params, double* frequencies, std::size_t n_frequencies) noexcept {
    if (frequencies == nullptr) return Status::error(Code::invalid_argument, "frequencies are null");
    if (Status status = check(params); !status.ok()) return status;
    const std::uint32_t n_pairs = params.n_dims / 2;
    if (n_frequencies < n_pairs) {
        return Status::error(Code::wrong_size, "room for %zu frequencies of RoPE, expected %u", n_frequencies,
                             n_pairs);
    }
    double first = 0.0, last = 0.0;  // pairs between which the scale comes in
    if (params.ext_factor != 0.0) {
        first = std::max(0.0, std::floor(yarn_pair(params, params.beta_fast)));
        last = std::min(params.n_dims - 1.0, std::ceil(yarn_pair(params, params.beta_slow)));
    }
    for (std::uint32_t i = 0; i < n_pairs; ++i) {
        double frequency = std::pow(params.base, -2.0 * i / params.n_dims);
        if (params.factors != nullptr) frequency /= static_cast<double>(params.factors[i]);
        const double ramp = std::clamp((i - first) / std::max(0.001, last - first), 0.0, 1.0);
        const double kept = params.ext_factor * (1.0 - ramp);
        frequencies[i] = frequency * (kept + (1.0 - kept) * params.scale);
    }
    return {};
}

}  // namespace gearkv
