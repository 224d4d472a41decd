// The trellis backbone: widths by variance, scales by search, codes by the best path
// (src/format/trellis.hpp). Here is what keys and values share; trellis_keys.cpp and trellis_values.cpp do
// the rest.
#include "codec/trellis.hpp"

#include "codec/section.hpp"

namespace gearkv {
namespace {

// Squared error of a width beside that of width 0, of normal entries.
constexpr float key_errors[max_key_width + 1] = {1.0f, 0.33f, 0.091f, 0.0226f, 0.0065f, 0.0019f, 0.0005f};
constexpr float value_errors[max_value_width + 1] = {1.0f, 0.318f, 0.0874f, 0.0237f, 0.0064f};

}  // namespace

// Gives the planes of the section to the granules in which they save most error, by the mean variance of
// each.
void choose_widths(Section* s, const float* variance) noexcept {
    const std::uint32_t most = s->work.keys() ? max_key_width : max_value_width;
    const float* errors = s->work.keys() ? key_errors : value_errors;
    std::uint32_t left = s->work.view.n_planes(s->head);
    std::fill_n(s->width, s->n_granules, std::uint8_t{0});
    // The better of the next two widths of each granule, by error saved per plane.
    float gain[max_dim / key_granule];
    std::uint8_t next_width[max_dim / key_granule];
    const auto find_next = [&](std::uint32_t g) {
        const std::uint32_t now = s->width[g];
        gain[g] = 0.0f;
        next_width[g] = 0;
        for (std::uint32_t next = now + 1; next <= std::min(most, now + 2) && next - now <= left; ++next) {
            const float saved = variance[g] * (errors[now] - errors[next]);
            const float per_plane = next - now == 2 ? saved / 2 : saved;
            if (per_plane <= gain[g]) continue;
            gain[g] = per_plane;
            next_width[g] = static_cast<std::uint8_t>(next);
        }
    };
    // The first of the largest gains: of its league, and then of all.
    constexpr std::uint32_t league = 8, max_leagues = max_dim / key_granule / league;
    std::uint32_t first[max_leagues];
    const std::uint32_t n_leagues = static_cast<std::uint32_t>(ceil_div(s->n_granules, league));
    std::fill(gain + s->n_granules, gain + n_leagues * league, 0.0f);
    const auto find_first = [&](std::uint32_t l) {
        const float* from = gain + l * league;
        first[l] = l * league + static_cast<std::uint32_t>(std::max_element(from, from + league) - from);
    };
    const auto find_all = [&] {
        for (std::uint32_t g = 0; g < s->n_granules; ++g)
            find_next(g);
        for (std::uint32_t l = 0; l < n_leagues; ++l)
            find_first(l);
    };
    find_all();
    while (left > 0) {
        std::uint32_t best = first[0];
        for (std::uint32_t l = 1; l < n_leagues; ++l) {
            if (gain[first[l]] > gain[best]) best = first[l];
        }
        if (next_width[best] == 0) break;
        left -= next_width[best] - s->width[best];
        s->width[best] = next_width[best];
        if (left == 1) {
            find_all();  // two planes are too many now
        } else {
            find_next(best);
            find_first(best / league);
        }
    }
    for (std::uint32_t g = 0; g < s->n_granules; ++g)
        s->side[s->at.widths + g / 2] |= static_cast<unsigned char>(s->width[g] << (4 * (g % 2)));
}

int write_base(Section* s, int largest) noexcept {
    // What comes out of a block from a file may be larger than what fp16 holds.
    const auto base = static_cast<std::int16_t>(std::min(largest - 255, most_scale_base));
    std::memcpy(s->side + s->at.base, &base, sizeof(base));
    return base;
}

int read_begun(Section* s) noexcept {
    for (std::uint32_t g = 0; g < s->n_granules; ++g)
        s->width[g] = static_cast<std::uint8_t>(read_nibble(s->side + s->at.widths, g));
    std::int16_t base;
    std::memcpy(&base, s->side + s->at.base, sizeof(base));
    return base;
}

std::uint32_t* granule_words(const Section& s, std::uint32_t granule) noexcept {
    std::uint32_t first_plane = 0;
    for (std::uint32_t g = 0; g < granule; ++g)
        first_plane += s.width[g];
    return s.words + first_plane * plane_words(s.kind());
}

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
    scratch->ones = reinterpret_cast<float*>(take(section_tokens * sizeof(float)));
    scratch->rows = reinterpret_cast<float*>(take(section_tokens * lane_tile * sizeof(float)));
    scratch->panel = reinterpret_cast<float*>(take(section_tokens * lane_tile * sizeof(float)));
    scratch->codes = take(section_tokens * lane_tile);
    scratch->best = take(section_tokens * lane_tile);
    scratch->chosen = reinterpret_cast<std::int8_t*>(take(section_tokens * lane_tile));
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
    std::fill_n(scratch.ones, section_tokens, 1.0f);
    for (std::uint32_t first = 0; first < work.n_tokens(); first += section_tokens) {
        const std::uint32_t n_rows = std::min(section_tokens, work.n_tokens() - first);
        for (std::uint32_t t = 0; t < n_rows; ++t)
            std::copy_n(work.row(first + t, head, scratch.line), dim, scratch.x + t * work.stride);
        float *sums = scratch.line, *squares = scratch.line + work.stride;
        work.kernels->codec.column_moments(sums, squares, scratch.x, work.stride, n_rows, dim, scratch.ones);
        for (std::uint32_t c = 0; c < dim; ++c) {
            sum[c] += sums[c];
            square[c] += squares[c];
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
    double* counts = square;  // of the channels: the variance, as the queries meet it
    for (std::uint32_t c = 0; c < dim; ++c)
        counts[c] = (square[c] / n - sum[c] / n * (sum[c] / n)) * double{work.weight(head, c)};
    // Insertion sort: stable, no allocation, a few hundred entries once per stream.
    for (std::uint32_t i = 1; i < dim; ++i) {
        const std::uint16_t channel = order[i];
        std::uint32_t j = i;
        for (; j > 0 && counts[order[j - 1]] < counts[channel]; --j)
            order[j] = order[j - 1];
        order[j] = channel;
    }
}

void encode_section(const BlockWork& work, std::uint32_t head, std::uint32_t section, void* memory,
                    const SectionParts& parts) noexcept {
    const auto kind = work.keys() ? TensorKind::key : TensorKind::value;
    TrellisScratch scratch;
    place_trellis_scratch(&scratch, work.dim(), memory);
    Section s = {work,
                 scratch,
                 section_layout(kind, work.dim()),
                 const_cast<unsigned char*>(work.view.section(head, section)),
                 const_cast<std::uint32_t*>(work.view.section_codes(head, section)),
                 work.dim(),
                 head,
                 static_cast<std::uint32_t>(ceil_div(work.dim(), granule_channels(kind))),
                 parts,
                 {}};
    std::fill_n(scratch.ones, section_tokens, 1.0f);
    kind == TensorKind::key ? encode_keys(&s, head, section * section_tokens)
                            : encode_values(&s, head, section * section_tokens);
}

}  // namespace gearkv
