// Values of a trellis section: gains of the tokens, scales of the rotated channels, and codes whose mean
// error is 0.
#include "codec/section.hpp"
#include "codec/trellis_read.hpp"

namespace gearkv {
namespace {

// The mean of the profile, as the rows are.
void rotate_mean(const Section& s, float* mean) {
    std::fill_n(mean, s.work.stride, 0.0f);
    s.work.kernels->codec.from_half(mean, trellis_profile(s.work.view, s.head).mean, s.dim);
    s.work.kernels->codec.rotate_rows(mean, s.work.stride, 1, s.dim);
}

// Rotates every token; returns how many there are.
std::uint32_t gather_values(Section* s, std::uint32_t head, std::uint32_t first) {
    const std::uint32_t n = std::min(section_tokens, s->work.n_tokens() - first);
    if (s->work.source != nullptr) {
        float* mean = line(*s, 2);
        rotate_mean(*s, mean);
        read_section(*s->work.source, head, first / section_tokens, s->scratch.x, s->work.stride, mean);
        return n;
    }
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        float* to = s->row(t);
        std::fill_n(to, s->work.stride, 0.0f);
        if (t >= n) continue;
        std::copy_n(s->work.row(first + t, head, line(*s, 1)), s->dim, to);
    }
    s->work.kernels->codec.rotate_rows(s->scratch.x, s->work.stride, n, s->dim);
    return n;
}

// Scales so that the levels of a width have unit variance.
float value_level_scale(std::uint32_t width) {
    constexpr float sizes[max_value_width + 1] = {1.0f, 1.1817f, 1.8604f, 2.4629f, 2.9403f};
    return sizes[width] / 127.0f;
}

// Gains of the tokens: how long they are beside the others.
struct Gains {
    float gain[section_tokens];
    float inverse[section_tokens];

    void set(std::uint32_t t, float x) {
        gain[t] = x;
        inverse[t] = 1.0f / x;
    }
};

// Some channels, from a panel's first.
struct Channels {
    std::uint32_t first, end;
};

// Takes the mean off the n tokens there are.
void take_off_mean(Section* s, std::uint32_t n, const Gains& gains, const float* mean,
                   const Channels& channels) {
    for (std::uint32_t t = 0; t < n; ++t) {
        const float gain = gains.gain[t];
        float* __restrict row = s->row(t);
        for (std::uint32_t c = channels.first; c < channels.end; ++c)
            row[c] -= gain * mean[c];
    }
}

// Sums of the channels, and the root mean squares of rows divided by their gain.
void measure(const Section& s, const Gains& gains, float* sum, float* rms, const Channels& channels) {
    const CodecKernels& kernels = s.work.kernels->codec;
    const std::uint32_t first = channels.first, n = channels.end - first;
    float* unused = line(s, 2) + first;
    const auto moments = [&](float* sums, float* squares, const float* factor) {
        kernels.column_moments(sums, squares, s.scratch.x + first, s.work.stride, section_tokens, n, factor);
    };
    moments(sum + first, unused, s.scratch.ones);
    moments(unused, rms + first, gains.inverse);
    for (std::uint32_t c = first; c < channels.end; ++c)
        rms[c] = std::sqrt(rms[c] / section_tokens);
}

// Chooses the gains of the n tokens there are, by which the profile's mean is taken off: where attention goes
// is often a token of nearly no value, which the whole mean would be an error of.
void choose_gains(Section* s, std::uint32_t n, Gains* gains) {
    float length[section_tokens];
    const CodecKernels& kernels = s->work.kernels->codec;
    std::fill_n(line(*s, 2), s->work.stride, 1.0f);
    kernels.row_squares(length, s->scratch.x, s->work.stride, section_tokens, s->dim, line(*s, 2));
    float total = 0.0f, most = 0.0f;
    for (std::uint32_t t = 0; t < n; ++t) {
        length[t] = std::sqrt(length[t]);
        total += length[t];
        most = std::max(most, length[t]);
    }
    // Quarters of octaves of a gain by the length beside the mean one. Down to half of that it moves with the
    // power of 3/4, so that a token's gain shares what its length varies with the levels; short ones, whose
    // errors count most, have all of it.
    const auto quarters = [&](float x) {
        if (!(x > 0.0f)) return least_gain_origin;
        const float octaves = std::log2(x * static_cast<float>(n) / total);
        return static_cast<int>(std::nearbyint(octaves > -1.0f ? 3.0f * octaves : 4.0f * octaves + 1.0f));
    };
    constexpr int n_gains = 16;
    // Short tokens have the room that long ones leave: gains from 2^-4 to .84, or from .5 to 6.7 at most.
    const int origin = std::clamp(quarters(most) - (n_gains - 1), -16, -4);
    const auto byte = static_cast<std::int8_t>(origin);
    std::memcpy(s->side + s->at.origin, &byte, sizeof(byte));
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        const int nibble =
            t < n ? std::clamp(quarters(length[t]) - origin, 0, n_gains - 1) : std::min(-origin, n_gains - 1);
        s->side[s->at.gains + t / 2] |= static_cast<unsigned char>(nibble << (4 * (t % 2)));
        gains->set(t, gains_of(origin)[nibble]);
    }
}
void read_gains(const Section& s, Gains* gains) {
    const float* gain = gains_of(gain_origin(s.side, s.work.view.header->version));
    for (std::uint32_t t = 0; t < section_tokens; ++t)
        gains->set(t, gain[read_nibble(s.side + s.at.gains, t)]);
}

// Words of a granule: a word holds 32 tokens of a channel.
void write_value_planes(const Section& s, const Places& p, const std::uint8_t* codes) {
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
    write_value_planes(*s, p, s->scratch.codes);
}

}  // namespace

void encode_values(Section* s, std::uint32_t head, std::uint32_t first) noexcept {
    const std::uint32_t n = gather_values(s, head, first);
    Gains gains;
    float *sum = line(*s, 0), *rms = line(*s, 1), *mean = line(*s, 3);
    if (!begins(*s)) {
        read_gains(*s, &gains);
        rotate_mean(*s, mean);
        const int base = read_begun(s);
        for_panels(*s, [&](const Places& p) {
            const Channels channels = {p.at[0], p.at[0] + p.n};
            take_off_mean(s, n, gains, mean, channels);
            measure(*s, gains, sum, rms, channels);
            encode_value_panel(s, p, gains, sum, rms, base);
        });
        return;
    }
    choose_gains(s, n, &gains);
    rotate_mean(*s, mean);
    take_off_mean(s, n, gains, mean, {0, s->dim});
    measure(*s, gains, sum, rms, {0, s->dim});
    float variance[max_dim / value_granule] = {};
    float largest = 0.0f;
    for (std::uint32_t c = 0; c < s->dim; ++c) {
        variance[c / value_granule] += rms[c] * rms[c] / value_granule;
        largest = std::max(largest, rms[c]);
    }
    choose_widths(s, variance);
    // Least squares may ask for a little more than the first guess.
    const int base = write_base(s, scale_sixteenths(largest * value_level_scale(max_value_width)) + 8);
    for_panels(*s, [&](const Places& p) { encode_value_panel(s, p, gains, sum, rms, base); });
}

}  // namespace gearkv
