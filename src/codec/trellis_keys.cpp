// Keys of a trellis section: range and zero of each stored channel, and the best of a few shares of the
// range.
#include "codec/section.hpp"
#include "codec/trellis_read.hpp"

namespace gearkv {
namespace {

// Range of one stored channel over the section.
struct Range {
    float centre, half;
};

// Shares of the range that are tried: at few bits the tails are worth cutting.
struct Shares {
    std::uint32_t n;
    float share[3];
};
Shares shares_of(std::uint32_t width) {
    if (width == 1) return {3, {0.65f, 0.55f, 0.45f}};
    if (width == 2) return {3, {1.0f, 0.85f, 0.7f}};
    if (width == 3) return {2, {1.0f, 0.9f, 0.0f}};
    return {1, {1.0f, 0.0f, 0.0f}};
}

// S that spreads the levels of a width over a share of the range, and is coarse enough for the zero to reach.
float key_scale(const Range& range, std::uint32_t width, float share) {
    const float reach = std::fabs(range.centre) / (127.0f * zero_unit(width));
    if (width == 0) return reach;
    const float n_levels = static_cast<float>(2u << width);
    const float largest = static_cast<float>(trellis_level(TensorKind::key, width, (2u << width) - 1));
    const float step = 2.0f * range.half * share / (n_levels - 1.0f + 0.2f);
    return std::max(step * (n_levels - 1.0f) / 2.0f / largest, reach);
}

std::int8_t key_zero(float centre, float scale, std::uint32_t width) {
    return static_cast<std::int8_t>(
        std::clamp(std::nearbyint(centre / (scale * zero_unit(width))), -127.0f, 127.0f));
}

// Takes the profile's mean off and puts the channels in stored order.
void gather_keys(Section* s, std::uint32_t head, std::uint32_t first) {
    if (s->work.source != nullptr) {
        read_section(*s->work.source, head, first / section_tokens, s->scratch.x, s->work.stride);
        return;
    }
    const TrellisProfile profile = trellis_profile(s->work.view, head);
    float* mean = line(*s, 0);
    s->work.kernels->codec.from_half(mean, profile.mean, s->dim);
    float* __restrict ordered = line(*s, 2);  // the means in stored order
    std::uint16_t order[max_dim] = {};
    std::copy_n(profile.order, s->dim, order);
    for (std::uint32_t place = 0; place < s->dim; ++place)
        ordered[place] = mean[order[place]];
    const std::uint32_t n = std::min(section_tokens, s->work.n_tokens() - first);
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        float* __restrict to = s->row(t);
        if (t < n) {
            const float* x = s->work.row(first + t, head, line(*s, 1));
            s->work.kernels->codec.order_row(to, x, order, ordered, s->dim);
        } else {
            std::copy_n(s->row(n - 1), s->dim, to);
        }
    }
}

// Words of the granules of a panel: a byte holds 8 tokens of a channel.
void write_key_planes(const Section& s, const Places& p, const std::uint8_t* codes) {
    for (std::uint32_t i = 0; i < p.width; ++i) {
        PlaneBytes bytes;
        s.work.kernels->codec.gather_bits(bytes[0], codes, i);
        for (std::uint32_t lane = 0; lane < p.n; lane += key_granule) {
            std::uint32_t* plane = granule_words(s, p.at[lane] / key_granule) + i * key_plane_words;
            for (std::uint32_t word = 0; word < key_plane_words; ++word) {
                std::uint32_t packed = 0;
                for (std::uint32_t c = 0; c < key_granule; ++c)
                    packed |= std::uint32_t{bytes[word][lane + c]} << (8 * c);
                plane[word] = packed;
            }
        }
    }
}

// The rows of a panel side by side.
Panel find_rows(const Section& s, const Places& p) {
    if (p.contiguous()) return {s.scratch.x + p.at[0], s.work.stride, s.scratch.ones};
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        const float* row = s.row(t);
        float* to = s.scratch.rows + t * lane_tile;
        for (std::uint32_t lane = 0; lane < lane_tile; lane += key_granule)
            std::memcpy(to + lane, row + p.at[lane], key_granule * sizeof(float));
    }
    return {s.scratch.rows, lane_tile, s.scratch.ones};
}

// Range and zeros of one share.
struct Attempt {
    float scale[lane_tile], inverse[lane_tile], shift[lane_tile];
    std::uint8_t codes[lane_tile];
    std::int8_t zeros[lane_tile];
};

// The best of the shares for the channels of one panel, by the third power of the error: large errors move
// scores.
void encode_key_panel(Section* s, const Places& p, const Range* ranges, int base) {
    const CodecKernels& kernels = s->work.kernels->codec;
    const Panel rows = find_rows(*s, p);
    float best[lane_tile];
    std::fill_n(best, lane_tile, HUGE_VALF);
    const Shares shares = shares_of(p.width);
    for (std::uint32_t i = 0; i < shares.n; ++i) {
        Attempt a = {};
        for (std::uint32_t lane = 0; lane < p.n; ++lane) {
            const Range& range = ranges[p.at[lane]];
            a.codes[lane] = scale_code(scale_sixteenths(key_scale(range, p.width, shares.share[i])), base);
            a.scale[lane] = exp2_sixteenths(base + a.codes[lane]);
            a.inverse[lane] = 1.0f / a.scale[lane];
            a.zeros[lane] = key_zero(range.centre, a.scale[lane], p.width);
            a.shift[lane] = -static_cast<float>(a.zeros[lane]) * a.scale[lane] * zero_unit(p.width);
        }
        kernels.fill_panel(s->scratch.panel, rows, a.shift, a.inverse);
        encode_panel(*s, p.width);
        float error[lane_tile];
        kernels.cube_errors(error, s->scratch.panel, s->scratch.chosen, a.scale);
        std::uint8_t kept[lane_tile];  // all bits of a lane whose codes so far are better
        for (std::uint32_t lane = 0; lane < lane_tile; ++lane) {
            kept[lane] = error[lane] >= best[lane] ? 0xff : 0;
            if (lane >= p.n || kept[lane] != 0) continue;
            best[lane] = error[lane];
            s->side[s->at.scales + p.at[lane]] = a.codes[lane];
            std::memcpy(s->side + s->at.zeros + p.at[lane], &a.zeros[lane], 1);
        }
        if (i == 0) {
            std::swap(s->scratch.codes, s->scratch.best);
            continue;
        }
        const std::uint8_t* now = s->scratch.codes;
        std::uint8_t* __restrict chosen = s->scratch.best;
        for (std::uint32_t t = 0; t < section_tokens * lane_tile; t += lane_tile) {
            for (std::uint32_t lane = 0; lane < lane_tile; ++lane) {
                chosen[t + lane] = static_cast<std::uint8_t>((chosen[t + lane] & kept[lane]) |
                                                             (now[t + lane] & ~kept[lane]));
            }
        }
    }
    write_key_planes(*s, p, s->scratch.best);
}

// Chooses widths and base, and writes the places of width 0; the base.
int begin_keys(Section* s, std::uint32_t head, const Range* ranges) {
    float variance[max_dim / key_granule] = {};
    const std::uint16_t* order = trellis_profile(s->work.view, head).order;
    float *sum = line(*s, 2), *square = line(*s, 3);
    s->work.kernels->codec.column_moments(sum, square, s->scratch.x, s->work.stride, section_tokens, s->dim,
                                          s->scratch.ones);
    int largest = scale_sixteenths(0.0f);
    for (std::uint32_t place = 0; place < s->dim; ++place) {
        const float mean = sum[place] / section_tokens;
        variance[place / key_granule] += std::max(square[place] / section_tokens - mean * mean, 0.0f) *
                                         s->work.weight(head, order[place]) / key_granule;
    }
    choose_widths(s, variance);
    for (std::uint32_t place = 0; place < s->dim; ++place)
        largest = std::max(largest, scale_sixteenths(key_scale(ranges[place], s->width_of(place), 1.0f)));
    const int base = write_base(s, largest);
    for (std::uint32_t place = 0; place < s->dim; ++place) {
        if (s->width_of(place) != 0) continue;
        const std::uint8_t code = scale_code(scale_sixteenths(key_scale(ranges[place], 0, 1.0f)), base);
        const std::int8_t zero = key_zero(ranges[place].centre, exp2_sixteenths(base + code), 0);
        s->side[s->at.scales + place] = code;
        std::memcpy(s->side + s->at.zeros + place, &zero, 1);
    }
    return base;
}

}  // namespace

void encode_keys(Section* s, std::uint32_t head, std::uint32_t first) noexcept {
    gather_keys(s, head, first);
    Range ranges[max_dim];
    float *lo = line(*s, 0), *hi = line(*s, 1);
    s->work.kernels->codec.column_range(lo, hi, s->scratch.x, s->work.stride, section_tokens, s->dim);
    for (std::uint32_t place = 0; place < s->dim; ++place)
        ranges[place] = {(lo[place] + hi[place]) / 2, (hi[place] - lo[place]) / 2};
    const int base = begins(*s) ? begin_keys(s, head, ranges) : read_begun(s);
    for_panels(*s, [&](const Places& p) { encode_key_panel(s, p, ranges, base); });
}

}  // namespace gearkv
