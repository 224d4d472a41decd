// The trellis backbone: widths by variance, scales by search, codes by the best path
// (src/format/trellis.hpp).
#include "codec/trellis.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/trellis.hpp"

namespace gearkv {
namespace {

constexpr std::uint32_t panel = lane_tile;  // channels encoded at once
constexpr std::uint32_t max_width = max_key_width;

// Error of a width beside that of width 0: fixed-rate trellis codes lose about 6 dB a bit.
constexpr float width_error(std::uint32_t width) {
    return width == 0 ? 1.0f : 0.67f / static_cast<float>(1u << (2 * width));
}

// One section of one head on its way to codes.
struct Section {
    const BlockWork& work;
    TrellisScratch scratch;
    SectionLayout at;
    unsigned char* side;   // of this section
    std::uint32_t* words;  // of this section
    std::uint32_t dim;
    std::uint32_t n_granules;
    std::uint8_t width[max_dim / key_granule];  // by granule

    TensorKind kind() const { return work.keys() ? TensorKind::key : TensorKind::value; }
    std::uint32_t width_of(std::uint32_t place) const { return width[place / granule_channels(kind())]; }
    float* row(std::size_t t) const { return scratch.x + t * work.stride; }
};

// Gives the planes of the section to the granules in which they save most error, by the mean variance of
// each.
void choose_widths(Section* s, const float* variance) {
    const std::uint32_t most = s->work.keys() ? max_key_width : max_value_width;
    std::uint32_t left = s->work.view.sizes.n_planes;
    std::fill_n(s->width, s->n_granules, std::uint8_t{0});
    // The better of the next two widths of each granule, by error saved per plane.
    float gain[max_dim / key_granule];
    std::uint8_t next_width[max_dim / key_granule];
    const auto find_next = [&](std::uint32_t g) {
        const std::uint32_t now = s->width[g];
        gain[g] = 0.0f;
        next_width[g] = 0;
        for (std::uint32_t next = std::max(now + 1, 2u);
             next <= std::min(most, now + 2) && next - now <= left; ++next) {
            const float saved = variance[g] * (width_error(now) - width_error(next));
            const float per_plane = next - now == 2 ? saved / 2 : saved;
            if (per_plane <= gain[g]) continue;
            gain[g] = per_plane;
            next_width[g] = static_cast<std::uint8_t>(next);
        }
    };
    for (std::uint32_t g = 0; g < s->n_granules; ++g)
        find_next(g);
    while (left > 0) {
        const auto best = static_cast<std::uint32_t>(std::max_element(gain, gain + s->n_granules) - gain);
        if (next_width[best] == 0) break;
        left -= next_width[best] - s->width[best];
        s->width[best] = next_width[best];
        find_next(best);
        if (left != 1) continue;
        for (std::uint32_t g = 0; g < s->n_granules; ++g)
            find_next(g);  // two planes are too many now
    }
    for (std::uint32_t g = 0; g < s->n_granules; ++g)
        s->side[s->at.widths + g / 2] |= static_cast<unsigned char>(s->width[g] << (4 * (g % 2)));
}

// Sixteenths of an octave at or above log2(scale), with a little grace.
int scale_sixteenths(float scale) {
    return static_cast<int>(std::ceil(16.0f * std::log2(std::max(scale, 1e-20f)) - 0.25f));
}

// Chooses the section's base so that the largest scale still fits a byte.
int write_base(Section* s, int largest) {
    const auto base = static_cast<std::int16_t>(largest - 255);
    std::memcpy(s->side + s->at.base, &base, sizeof(base));
    return base;
}

std::uint8_t scale_code(int sixteenths, int base) {
    return static_cast<std::uint8_t>(std::clamp(sixteenths - base, 0, 255));
}

// Up to 16 stored places of one width: whole granules, or the first half of one.
struct Panel {
    std::uint32_t width;
    std::uint32_t n;
    std::uint32_t place[panel];  // beyond n any valid place

    bool contiguous() const { return place[panel - 1] == place[0] + panel - 1; }
};

// One float of each lane: the loops below go over all of them and become vectors.
struct Lane16 {
    float lane[panel];
};

Lane16 read_places(const Panel& p, bool contiguous, const float* row) {
    Lane16 x;
    if (contiguous) {
        std::memcpy(x.lane, row + p.place[0], sizeof(x.lane));
    } else {
        for (std::uint32_t i = 0; i < panel; ++i)
            x.lane[i] = row[p.place[i]];
    }
    return x;
}

// First plane of a granule.
std::uint32_t first_plane(const Section& s, std::uint32_t granule) {
    std::uint32_t first = 0;
    for (std::uint32_t g = 0; g < granule; ++g)
        first += s.width[g];
    return first;
}

// Writes the codes of a panel of keys into the planes of its granules: a byte holds 8 tokens of a channel.
void write_key_planes(const Section& s, const Panel& p, const std::uint8_t* codes) {
    for (std::uint32_t i = 0; i < p.width; ++i) {
        std::uint8_t bytes[section_tokens / 8][panel];
        for (std::uint32_t word = 0; word < section_tokens / 8; ++word) {
            std::uint8_t sum[panel] = {};
            for (std::uint32_t t = 8; t-- > 0;) {
                const std::uint8_t* from = codes + (word * 8 + t) * panel;
                for (std::uint32_t lane = 0; lane < panel; ++lane)
                    sum[lane] = static_cast<std::uint8_t>(sum[lane] + sum[lane] + (from[lane] >> i & 1));
            }
            std::memcpy(bytes[word], sum, sizeof(sum));
        }
        for (std::uint32_t lane = 0; lane < p.n; lane += key_granule) {
            std::uint32_t* plane =
                s.words + (first_plane(s, p.place[lane] / key_granule) + i) * plane_words(TensorKind::key);
            for (std::uint32_t word = 0; word < section_tokens / 8; ++word) {
                std::uint32_t packed = 0;
                for (std::uint32_t c = 0; c < key_granule; ++c)
                    packed |= std::uint32_t{bytes[word][lane + c]} << (8 * c);
                plane[word] = packed;
            }
        }
    }
}

// Writes the codes of a panel of values, one granule, into its planes: a word holds 32 tokens of a channel.
void write_value_planes(const Section& s, const Panel& p, const std::uint8_t* codes) {
    std::uint32_t* plane =
        s.words + first_plane(s, p.place[0] / value_granule) * plane_words(TensorKind::value);
    for (std::uint32_t i = 0; i < p.width; ++i, plane += plane_words(TensorKind::value)) {
        for (std::uint32_t word = 0; word < section_tokens / 32; ++word) {
            std::uint32_t sum[panel] = {};
            for (std::uint32_t t = 32; t-- > 0;) {
                const std::uint8_t* from = codes + (word * 32 + t) * panel;
                for (std::uint32_t lane = 0; lane < panel; ++lane)
                    sum[lane] = sum[lane] + sum[lane] + (from[lane] >> i & 1u);
            }
            std::memcpy(plane + word * panel, sum, p.n * sizeof(sum[0]));
        }
    }
}

// Calls visit(panel) for all places of all widths but 0.
template <class Visit>
void for_panels(const Section& s, std::uint32_t n_places, const Visit& visit) {
    for (std::uint32_t width = 2; width <= max_width; ++width) {
        Panel p = {width, 0, {}};
        for (std::uint32_t place = 0; place < n_places; ++place) {
            if (s.width_of(place) == width) p.place[p.n++] = place;
            if (p.n == panel || (place + 1 == n_places && p.n > 0)) {
                std::fill(p.place + p.n, p.place + panel, p.place[0]);
                visit(p);
                p.n = 0;
            }
        }
    }
}

void encode(const Section& s, std::uint32_t width, std::uint8_t* codes, std::int8_t* chosen) {
    s.work.kernels->codec.encode_trellis(
        {s.scratch.panel, trellis_levels(s.kind(), width), width, codes, chosen, s.scratch.kernel});
}

// ---- keys ----

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
    const TrellisProfile profile = trellis_profile(s->work.view, head);
    float* mean = s->scratch.line;
    s->work.kernels->codec.from_half(mean, profile.mean, s->dim);
    float* __restrict ordered = s->scratch.line + 2 * s->work.stride;  // the means in stored order
    std::uint16_t order[max_dim];
    std::copy_n(profile.order, s->dim, order);
    for (std::uint32_t place = 0; place < s->dim; ++place)
        ordered[place] = mean[order[place]];
    const std::uint32_t n = std::min(section_tokens, s->work.n_tokens() - first);
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        float* __restrict to = s->row(t);
        if (t < n) {
            const float* x = s->work.row(first + t, head, s->scratch.line + s->work.stride);
            for (std::uint32_t place = 0; place < s->dim; ++place)
                to[place] = x[order[place]] - ordered[place];
        } else {
            std::copy_n(s->row(n - 1), s->dim, to);
        }
    }
}

// The best of the shares for the channels of one panel, by the third power of the error: large errors move
// scores.
void encode_key_panel(Section* s, const Panel& p, const Range* ranges, int base) {
    float best[panel];
    std::fill_n(best, panel, HUGE_VALF);
    const bool contiguous = p.contiguous();
    const Shares shares = shares_of(p.width);
    for (std::uint32_t i = 0; i < shares.n; ++i) {
        float scale[panel] = {}, inverse[panel] = {}, zero[panel] = {};
        std::uint8_t codes[panel] = {};
        std::int8_t zeros[panel] = {};
        for (std::uint32_t lane = 0; lane < p.n; ++lane) {
            const Range& range = ranges[p.place[lane]];
            codes[lane] = scale_code(scale_sixteenths(key_scale(range, p.width, shares.share[i])), base);
            scale[lane] = exp2_sixteenths(base + codes[lane]);
            inverse[lane] = 1.0f / scale[lane];
            zeros[lane] = key_zero(range.centre, scale[lane], p.width);
            zero[lane] = static_cast<float>(zeros[lane]) * scale[lane] * zero_unit(p.width);
        }
        for (std::uint32_t t = 0; t < section_tokens; ++t) {
            const Lane16 x = read_places(p, contiguous, s->row(t));
            float* __restrict to = s->scratch.panel + t * panel;
            for (std::uint32_t lane = 0; lane < panel; ++lane)
                to[lane] = (x.lane[lane] - zero[lane]) * inverse[lane];
        }
        encode(*s, p.width, s->scratch.codes, s->scratch.chosen);
        float error[panel] = {};
        for (std::uint32_t t = 0; t < section_tokens; ++t) {
            for (std::uint32_t lane = 0; lane < panel; ++lane) {
                const float e = std::fabs(s->scratch.panel[t * panel + lane] -
                                          static_cast<float>(s->scratch.chosen[t * panel + lane])) *
                                scale[lane];
                error[lane] += e * e * e;
            }
        }
        std::uint8_t kept[panel];  // all bits of a lane whose codes so far are better
        for (std::uint32_t lane = 0; lane < panel; ++lane) {
            kept[lane] = error[lane] >= best[lane] ? 0xff : 0;
            if (lane >= p.n || kept[lane] != 0) continue;
            best[lane] = error[lane];
            s->side[s->at.scales + p.place[lane]] = codes[lane];
            std::memcpy(s->side + s->at.zeros + p.place[lane], &zeros[lane], 1);
        }
        const std::uint8_t* now = s->scratch.codes;
        std::uint8_t* __restrict chosen = s->scratch.best;
        for (std::uint32_t t = 0; t < section_tokens * panel; t += panel) {
            for (std::uint32_t lane = 0; lane < panel; ++lane) {
                chosen[t + lane] = static_cast<std::uint8_t>((chosen[t + lane] & kept[lane]) |
                                                             (now[t + lane] & ~kept[lane]));
            }
        }
    }
    write_key_planes(*s, p, s->scratch.best);
}

void encode_keys(Section* s, std::uint32_t head, std::uint32_t first) {
    gather_keys(s, head, first);
    Range ranges[max_dim];
    float variance[max_dim / key_granule] = {};
    float* lo = s->scratch.line;
    float* hi = lo + s->work.stride;
    s->work.kernels->codec.column_range(lo, hi, s->scratch.x, s->work.stride, section_tokens, s->dim);
    float* __restrict sum = s->scratch.line + 2 * s->work.stride;
    float* __restrict square = sum + s->work.stride;
    std::fill_n(sum, 2 * s->work.stride, 0.0f);
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        const float* row = s->row(t);
        for (std::uint32_t place = 0; place < s->dim; ++place) {
            sum[place] += row[place];
            square[place] += row[place] * row[place];
        }
    }
    for (std::uint32_t place = 0; place < s->dim; ++place) {
        ranges[place] = {(lo[place] + hi[place]) / 2, (hi[place] - lo[place]) / 2};
        const float mean = sum[place] / section_tokens;
        variance[place / key_granule] +=
            std::max(square[place] / section_tokens - mean * mean, 0.0f) / key_granule;
    }
    choose_widths(s, variance);
    int largest = scale_sixteenths(0.0f);
    for (std::uint32_t place = 0; place < s->dim; ++place) {
        largest = std::max(largest, scale_sixteenths(key_scale(ranges[place], s->width_of(place), 1.0f)));
    }
    const int base = write_base(s, largest);
    for (std::uint32_t place = 0; place < s->dim; ++place) {
        if (s->width_of(place) != 0) continue;
        const std::uint8_t code = scale_code(scale_sixteenths(key_scale(ranges[place], 0, 1.0f)), base);
        const std::int8_t zero = key_zero(ranges[place].centre, exp2_sixteenths(base + code), 0);
        s->side[s->at.scales + place] = code;
        std::memcpy(s->side + s->at.zeros + place, &zero, 1);
    }
    for_panels(*s, s->dim, [&](const Panel& p) { encode_key_panel(s, p, ranges, base); });
}

// ---- values ----

// Takes the profile's mean off and rotates every token.
void gather_values(Section* s, std::uint32_t head, std::uint32_t first) {
    const TrellisProfile profile = trellis_profile(s->work.view, head);
    float* mean = s->scratch.line;
    s->work.kernels->codec.from_half(mean, profile.mean, s->dim);
    const std::uint32_t n = std::min(section_tokens, s->work.n_tokens() - first);
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        float* to = s->row(t);
        std::fill_n(to, s->work.stride, 0.0f);
        if (t >= n) continue;
        const float* x = s->work.row(first + t, head, s->scratch.line + s->work.stride);
        for (std::uint32_t c = 0; c < s->dim; ++c)
            to[c] = x[c] - mean[c];
        rotate_head(to, s->dim);
    }
}

// Scales so that the levels of a width have unit variance.
float value_level_scale(std::uint32_t width) {
    constexpr float sizes[max_value_width + 1] = {1.0f, 1.0f, 1.8604f, 2.4629f, 2.9403f};
    return sizes[width] / 127.0f;
}

// Root of the mean square of each channel, of rows divided by the gain of their token.
void root_mean_squares(const Section& s, const float* inverse_gain, float* __restrict rms) {
    std::fill_n(rms, s.work.stride, 0.0f);
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        const float* row = s.row(t);
        for (std::uint32_t c = 0; c < s.dim; ++c) {
            const float u = row[c] * inverse_gain[t];
            rms[c] += u * u;
        }
    }
    for (std::uint32_t c = 0; c < s.dim; ++c)
        rms[c] = std::sqrt(rms[c] / section_tokens);
}

// Gains of the tokens against the channels' own sizes.
struct Gains {
    float gain[section_tokens];
    float inverse[section_tokens];
};

// Chooses the gains, and what is left for the channels: rms of both.
void choose_gains(Section* s, Gains* gains, float* rms) {
    std::fill_n(gains->inverse, section_tokens, 1.0f);
    root_mean_squares(*s, gains->inverse, rms);
    float inverse[max_dim];
    std::uint32_t n = 0;
    for (std::uint32_t c = 0; c < s->dim; ++c) {
        inverse[c] = rms[c] > 0.0f ? 1.0f / rms[c] : 0.0f;
        n += rms[c] > 0.0f;
    }
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        const float* row = s->row(t);
        float parts[panel] = {};
        std::uint32_t c = 0;
        for (; c + panel <= s->dim; c += panel) {
            for (std::uint32_t lane = 0; lane < panel; ++lane) {
                const float u = row[c + lane] * inverse[c + lane];
                parts[lane] += u * u;
            }
        }
        for (std::uint32_t lane = 0; c + lane < s->dim; ++lane)
            parts[lane] += row[c + lane] * inverse[c + lane] * row[c + lane] * inverse[c + lane];
        float square = 0.0f;
        for (const float part : parts)
            square += part;
        const float size = n == 0 ? 1.0f : std::sqrt(square / static_cast<float>(n));
        const float quarter = size > 0.0f ? std::nearbyint(4.0f * std::log2(size)) : -8.0f;
        const int nibble = static_cast<int>(std::clamp(quarter, -8.0f, 7.0f)) + gain_bias;
        s->side[s->at.gains + t / 2] |= static_cast<unsigned char>(nibble << (4 * (t % 2)));
        gains->gain[t] = trellis_gain(static_cast<std::uint32_t>(nibble));
        gains->inverse[t] = 1.0f / gains->gain[t];
    }
    root_mean_squares(*s, gains->inverse, rms);
}

// Codes of 16 channels: once for the scales, whose best value follows from the levels, once with these, and
// once with the mean error of each channel put back, which attention averages over.
void encode_value_panel(Section* s, const Panel& p, const Gains& gains, const float* rms, int base) {
    float scale[panel] = {}, inverse[panel] = {}, shift[panel] = {};
    const bool contiguous = p.contiguous();
    const auto set_scale = [&](std::uint32_t lane, float wanted) {
        const auto sixteenths = static_cast<int>(std::nearbyint(16.0f * std::log2(std::max(wanted, 1e-20f))));
        const std::uint8_t code = scale_code(sixteenths, base);
        s->side[s->at.scales + p.place[lane]] = code;
        scale[lane] = exp2_sixteenths(base + code);
        inverse[lane] = 1.0f / scale[lane];
    };
    const auto run = [&] {
        for (std::uint32_t t = 0; t < section_tokens; ++t) {
            const Lane16 x = read_places(p, contiguous, s->row(t));
            float* __restrict to = s->scratch.panel + t * panel;
            for (std::uint32_t lane = 0; lane < panel; ++lane)
                to[lane] = (x.lane[lane] + shift[lane]) * (gains.inverse[t] * inverse[lane]);
        }
        encode(*s, p.width, s->scratch.codes, s->scratch.chosen);
    };
    for (std::uint32_t lane = 0; lane < p.n; ++lane)
        set_scale(lane, rms[p.place[lane]] * value_level_scale(p.width));
    run();
    float along[panel] = {}, square[panel] = {};
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        const Lane16 x = read_places(p, contiguous, s->row(t));
        for (std::uint32_t lane = 0; lane < panel; ++lane) {
            const float level = static_cast<float>(s->scratch.chosen[t * panel + lane]) * gains.gain[t];
            along[lane] += level * x.lane[lane];
            square[lane] += level * level;
        }
    }
    for (std::uint32_t lane = 0; lane < p.n; ++lane) {
        if (along[lane] > 0.0f && square[lane] > 0.0f) set_scale(lane, along[lane] / square[lane]);
    }
    run();
    float error[panel] = {};
    for (std::uint32_t t = 0; t < section_tokens; ++t) {
        const Lane16 x = read_places(p, contiguous, s->row(t));
        for (std::uint32_t lane = 0; lane < panel; ++lane) {
            error[lane] += x.lane[lane] - static_cast<float>(s->scratch.chosen[t * panel + lane]) *
                                              gains.gain[t] * scale[lane];
        }
    }
    for (std::uint32_t lane = 0; lane < panel; ++lane)
        shift[lane] = error[lane] / section_tokens;
    run();
    write_value_planes(*s, p, s->scratch.codes);
}

void encode_values(Section* s, std::uint32_t head, std::uint32_t first) {
    gather_values(s, head, first);
    Gains gains;
    float* rms = s->scratch.line;
    choose_gains(s, &gains, rms);
    float variance[max_dim / value_granule] = {};
    float largest = 0.0f;
    for (std::uint32_t c = 0; c < s->dim; ++c) {
        variance[c / value_granule] += rms[c] * rms[c] / value_granule;
        largest = std::max(largest, rms[c]);
    }
    choose_widths(s, variance);
    // Least squares may ask for a little more than the first guess.
    const int base = write_base(s, scale_sixteenths(largest * value_level_scale(2)) + 8);
    for_panels(*s, s->dim, [&](const Panel& p) { encode_value_panel(s, p, gains, rms, base); });
}

}  // namespace

std::uint64_t place_trellis_scratch(TrellisScratch* scratch, std::uint32_t dim, void* base) noexcept {
    const std::size_t stride = round_up(dim, 16);
    unsigned char* next = static_cast<unsigned char*>(base);
    std::uint64_t used = 0;
    const auto take = [&](std::uint64_t n_bytes) {
        unsigned char* at = next == nullptr ? nullptr : next + used;
        used += round_up(n_bytes, block_alignment);
        return at;
    };
    scratch->x = reinterpret_cast<float*>(take(section_tokens * stride * sizeof(float)));
    scratch->line = reinterpret_cast<float*>(take(4 * stride * sizeof(float)));
    scratch->panel = reinterpret_cast<float*>(take(section_tokens * panel * sizeof(float)));
    scratch->codes = take(section_tokens * panel);
    scratch->best = take(section_tokens * panel);
    scratch->chosen = reinterpret_cast<std::int8_t*>(take(section_tokens * panel));
    scratch->kernel = take(encode_scratch_bytes);
    return used;
}

void write_profile(const BlockWork& work, std::uint32_t head, void* memory) noexcept {
    TrellisScratch scratch;
    place_trellis_scratch(&scratch, work.dim(), memory);
    const auto kind = work.keys() ? TensorKind::key : TensorKind::value;
    const std::uint32_t dim = work.dim();
    auto* mean = reinterpret_cast<std::uint16_t*>(work.part<unsigned char>(work.header->profile) +
                                                  head * profile_bytes(kind, dim));
    double sum[max_dim] = {}, square[max_dim] = {};
    for (std::uint32_t t = 0; t < work.n_tokens(); ++t) {
        const float* x = work.row(t, head, scratch.line);
        for (std::uint32_t c = 0; c < dim; ++c) {
            sum[c] += x[c];
            square[c] += static_cast<double>(x[c]) * x[c];
        }
    }
    const double n = work.n_tokens();
    float means[max_dim] = {};
    for (std::uint32_t c = 0; c < dim; ++c)
        means[c] = static_cast<float>(sum[c] / n);
    work.kernels->codec.to_half(mean, means, dim);
    if (kind == TensorKind::value) return;
    std::uint16_t* order = mean + dim;
    for (std::uint32_t c = 0; c < dim; ++c)
        order[c] = static_cast<std::uint16_t>(c);
    const auto variance = [&](std::uint16_t c) { return square[c] / n - sum[c] / n * (sum[c] / n); };
    // Insertion sort: stable, no allocation, a few hundred entries once per stream.
    for (std::uint32_t i = 1; i < dim; ++i) {
        const std::uint16_t channel = order[i];
        std::uint32_t j = i;
        for (; j > 0 && variance(order[j - 1]) < variance(channel); --j)
            order[j] = order[j - 1];
        order[j] = channel;
    }
}

void encode_section(const BlockWork& work, std::uint32_t head, std::uint32_t section, void* memory) noexcept {
    const auto kind = work.keys() ? TensorKind::key : TensorKind::value;
    TrellisScratch scratch;
    place_trellis_scratch(&scratch, work.dim(), memory);
    Section s = {work,
                 scratch,
                 section_layout(kind, work.dim()),
                 const_cast<unsigned char*>(work.view.section(head, section)),
                 const_cast<std::uint32_t*>(work.view.section_codes(head, section)),
                 work.dim(),
                 static_cast<std::uint32_t>(ceil_div(work.dim(), granule_channels(kind))),
                 {}};
    kind == TensorKind::key ? encode_keys(&s, head, section * section_tokens)
                            : encode_values(&s, head, section * section_tokens);
}

}  // namespace gearkv
