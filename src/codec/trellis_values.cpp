// Values of a trellis section: gains of the tokens, scales of the rotated channels, and codes whose mean
// error is 0.
#include "codec/section.hpp"

namespace gearkv {
namespace {

// Takes the profile's mean off and rotates every token.
void gather_values(Section* s, std::uint32_t head, std::uint32_t first) {
    const TrellisProfile profile = trellis_profile(s->work.view, head);
    float* mean = line(*s, 0);
    s->work.kernels->codec.from_half(mean, profile.mean, s->dim);
    const std::uint32_t n = std::min(section_tokens, s->work.n_tokens() - first);
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        float* to = s->row(t);
        std::fill_n(to, s->work.stride, 0.0f);
        if (t >= n) continue;
        const float* x = s->work.row(first + t, head, line(*s, 1));
        for (std::uint32_t c = 0; c < s->dim; ++c)
            to[c] = x[c] - mean[c];
    }
    s->work.kernels->codec.rotate_rows(s->scratch.x, s->work.stride, n, s->dim);
}

// Scales so that the levels of a width have unit variance.
float value_level_scale(std::uint32_t width) {
    constexpr float sizes[max_value_width + 1] = {1.0f, 1.0f, 1.8604f, 2.4629f, 2.9403f};
    return sizes[width] / 127.0f;
}

// Root of the mean square of each channel, of rows divided by the gain of their token; its sums too.
void root_mean_squares(const Section& s, const float* inverse_gain, float* sum, float* rms) {
    s.work.kernels->codec.column_moments(sum, rms, s.scratch.x, s.work.stride, section_tokens, s.dim,
                                         inverse_gain);
    for (std::uint32_t c = 0; c < s.dim; ++c)
        rms[c] = std::sqrt(rms[c] / section_tokens);
}

// Gains of the tokens against the channels' own sizes.
struct Gains {
    float gain[section_tokens];
    float inverse[section_tokens];
};

// Chooses the gains, and what is left for the channels: rms of both. `sum` gets the sums of the channels.
void choose_gains(Section* s, Gains* gains, float* sum, float* rms) {
    root_mean_squares(*s, s->scratch.ones, sum, rms);
    float* inverse = line(*s, 2);
    std::fill_n(inverse, s->work.stride, 0.0f);
    std::uint32_t n = 0;
    for (std::uint32_t c = 0; c < s->dim; ++c) {
        if (!(rms[c] > 0.0f)) continue;
        inverse[c] = 1.0f / rms[c];
        ++n;
    }
    float square[section_tokens];
    s->work.kernels->codec.row_squares(square, s->scratch.x, s->work.stride, section_tokens, s->dim, inverse);
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        const float size = n == 0 ? 1.0f : std::sqrt(square[t] / static_cast<float>(n));
        const float quarter = size > 0.0f ? std::nearbyint(4.0f * std::log2(size)) : -8.0f;
        const int nibble = static_cast<int>(std::clamp(quarter, -8.0f, 7.0f)) + gain_bias;
        s->side[s->at.gains + t / 2] |= static_cast<unsigned char>(nibble << (4 * (t % 2)));
        gains->gain[t] = trellis_gain(static_cast<std::uint32_t>(nibble));
        gains->inverse[t] = 1.0f / gains->gain[t];
    }
    root_mean_squares(*s, gains->inverse, line(*s, 2), rms);
}

// Words of a granule: a word holds 32 tokens of a channel.
void write_planes(const Section& s, const Places& p, const std::uint8_t* codes) {
    std::uint32_t* plane = granule_words(s, p.at[0] / value_granule);
    for (std::uint32_t i = 0; i < p.width; ++i, plane += value_plane_words) {
        PlaneBytes bytes;
        s.work.kernels->codec.gather_bits(bytes[0], codes, i);
        for (std::uint32_t word = 0; word < section_tokens / 32; ++word) {
            const std::uint8_t(*from)[lane_tile] = bytes + 4 * word;
            for (std::uint32_t lane = 0; lane < p.n; ++lane) {
                plane[word * lane_tile + lane] =
                    static_cast<std::uint32_t>(from[0][lane] | from[1][lane] << 8 | from[2][lane] << 16) |
                    std::uint32_t{from[3][lane]} << 24;
            }
        }
    }
}

// Codes of 16 channels: once for the scales, whose best value follows from the levels, once with these, and
// once with the mean error of each channel put back, which attention averages over. `sum` holds the channels'
// sums.
void encode_value_panel(Section* s, const Places& p, const Gains& gains, const float* sum, const float* rms,
                        int base) {
    const CodecKernels& kernels = s->work.kernels->codec;
    const float* x = s->scratch.x + p.at[0];  // a granule, padded with zeros
    float scale[lane_tile] = {}, inverse[lane_tile] = {}, shift[lane_tile] = {};
    const auto set_scale = [&](std::uint32_t lane, float wanted) {
        const auto sixteenths = static_cast<int>(std::nearbyint(16.0f * std::log2(std::max(wanted, 1e-20f))));
        const std::uint8_t code = scale_code(sixteenths, base);
        s->side[s->at.scales + p.at[lane]] = code;
        scale[lane] = exp2_sixteenths(base + code);
        inverse[lane] = 1.0f / scale[lane];
    };
    float level[lane_tile], along[lane_tile], square[lane_tile];
    const auto run = [&] {
        kernels.fill_panel(s->scratch.panel, {x, s->work.stride, gains.inverse}, shift, inverse);
        encode_panel(*s, p.width);
    };
    const auto sum_levels = [&] {
        kernels.sum_panel(level, along, square, {x, s->work.stride, gains.gain}, s->scratch.chosen);
    };
    for (std::uint32_t lane = 0; lane < p.n; ++lane)
        set_scale(lane, rms[p.at[lane]] * value_level_scale(p.width));
    run();
    sum_levels();
    for (std::uint32_t lane = 0; lane < p.n; ++lane) {
        if (along[lane] > 0.0f && square[lane] > 0.0f) set_scale(lane, along[lane] / square[lane]);
    }
    run();
    sum_levels();
    for (std::uint32_t lane = 0; lane < p.n; ++lane)
        shift[lane] = (sum[p.at[lane]] - level[lane] * scale[lane]) / section_tokens;
    run();
    write_planes(*s, p, s->scratch.codes);
}

}  // namespace

void encode_values(Section* s, std::uint32_t head, std::uint32_t first) noexcept {
    gather_values(s, head, first);
    Gains gains;
    float *sum = line(*s, 0), *rms = line(*s, 1);
    choose_gains(s, &gains, sum, rms);
    float variance[max_dim / value_granule] = {};
    float largest = 0.0f;
    for (std::uint32_t c = 0; c < s->dim; ++c) {
        variance[c / value_granule] += rms[c] * rms[c] / value_granule;
        largest = std::max(largest, rms[c]);
    }
    choose_widths(s, variance);
    // Least squares may ask for a little more than the first guess.
    const int base = write_base(s, scale_sixteenths(largest * value_level_scale(2)) + 8);
    for_panels(*s, [&](const Places& p) { encode_value_panel(s, p, gains, sum, rms, base); });
}

}  // namespace gearkv
