// From bytes back to rows, entry by entry as the format describes them: the plain reading that the fused
// kernels are held against. Not a hot path.
#include "codec/decompress.hpp"

#include <algorithm>
#include <cstring>

#include "../arch/float_mode.hpp"
#include "format/built.hpp"
#include "format/trellis.hpp"
#include "kernels/kernels.hpp"

namespace gearkv {
namespace {

std::uint32_t code_at(const BlockView& view, std::uint32_t head, std::uint32_t lane, std::uint32_t depth) {
    const BlockHeader& header = *view.header;
    const bool keys = header.kind == static_cast<std::uint8_t>(TensorKind::key);
    const std::uint32_t* words = view.codes(head);
    const auto word = [&](std::uint64_t row) {
        return keys ? words[lane / 16 * view.sizes.tile_words + row * 16 + lane % 16]
                    : words[row * view.sizes.n_lanes + lane];
    };
    // Depth index of a plane with f fields a byte: field p, byte i of word j holds j * 4f + 4p + i.
    const auto field = [](std::uint32_t w, std::uint32_t at, std::uint32_t bits) {
        return w >> (8 * (at % 4) + bits * (at / 4)) & ((1u << bits) - 1);
    };
    if (header.bits != 3) {
        const std::uint32_t n = codes_per_word(header.bits);
        return field(word(depth / n), depth % n, header.bits);
    }
    const std::uint32_t unit = depth / 32;
    const std::uint64_t n_units = ceil_div(keys ? header.dim : header.n_tokens, 32);
    const std::uint64_t low_row = keys ? depth / 16 : unit * 3 + depth % 32 / 16;
    const std::uint64_t high_row = keys ? n_units * 2 + unit : unit * 3 + 2;
    return field(word(low_row), depth % 16, 2) | field(word(high_row), depth % 32, 1) << 2;
}

[[maybe_unused]] void read_dense(float* row, const BlockView& view, std::uint32_t head, std::uint32_t token) {
    const BlockHeader& header = *view.header;
    const bool keys = header.kind == static_cast<std::uint8_t>(TensorKind::key);
    const auto from_half = kernels_scalar()->codec.from_half;
    for (std::uint32_t c = 0; c < header.dim; ++c) {
        const std::uint64_t i = scale_index(header, view.sizes, token, c);
        float scale, zero;
        from_half(&scale, view.scales(head) + i, 1);
        from_half(&zero, view.zeros(head) + i, 1);
        const std::uint32_t code = keys ? code_at(view, head, token, c) : code_at(view, head, c, token);
        row[c] = static_cast<float>(code) * scale + zero;
    }
}

[[maybe_unused]] void add_low_rank(float* row, const BlockView& view, std::uint32_t head,
                                   std::uint32_t token) {
    const BlockHeader& header = *view.header;
    const auto from_half = kernels_scalar()->codec.from_half;
    for (std::uint32_t r = 0; r < header.rank; ++r) {
        float a, p;
        from_half(&a, view.factor_a(head) + r * view.sizes.a_stride + token, 1);
        const std::uint16_t* plane = view.factor_p(head) + std::uint64_t{r} * header.dim;
        for (std::uint32_t c = 0; c < header.dim; ++c) {
            from_half(&p, plane + c, 1);
            row[c] += a * p;
        }
    }
}

// One head of one section, [128][dim], into rows `stride` apart; tokens beyond [first, first + n) are
// skipped.
class TrellisReader {
  public:
    TrellisReader(const BlockView& view, std::uint32_t head, std::uint32_t section)
        : kind_(view.kind()),
          dim_(view.header->dim),
          at_(section_layout(kind_, dim_)),
          side_(view.section(head, section)),
          words_(view.section_codes(head, section)),
          profile_(trellis_profile(view, head)) {
        std::int16_t base;
        std::memcpy(&base, side_ + at_.base, sizeof(base));
        base_ = base;
        if (kind_ == TensorKind::value) gains_ = gains_of(gain_origin(side_, view.header->version));
        mean_has_gain_ = kind_ == TensorKind::value && view.header->version > 1;
    }

    void read(std::uint32_t token, float* row) const {
        float stored[max_dim];
        for (std::uint32_t place = 0; place < dim_; ++place)
            stored[place] = read_entry(place, token);
        if (kind_ == TensorKind::key) {
            for (std::uint32_t place = 0; place < dim_; ++place)
                row[profile_.order[place]] = stored[place];
        } else {
            rotate_head(stored, dim_);
            std::copy_n(stored, dim_, row);
        }
        for (std::uint32_t c = 0; c < dim_; ++c) {
            float mean;
            kernels_scalar()->codec.from_half(&mean, profile_.mean + c, 1);
            row[c] += mean_has_gain_ ? mean * gain(token) : mean;
        }
    }

  private:
    std::uint32_t bit(const std::uint32_t* plane, std::uint32_t channel, std::uint32_t t) const {
        if (kind_ == TensorKind::key) return plane[t / 8] >> (8 * channel + t % 8) & 1;
        return plane[t / 32 * 16 + channel] >> (t % 32) & 1;
    }

    float read_entry(std::uint32_t place, std::uint32_t t) const {
        const std::uint32_t granule = place / granule_channels(kind_),
                            channel = place % granule_channels(kind_);
        const std::uint32_t width = read_nibble(side_ + at_.widths, granule);
        const std::uint32_t* plane = words_;
        for (std::uint32_t g = 0; g < granule; ++g)
            plane += read_nibble(side_ + at_.widths, g) * plane_words(kind_);
        const float scale = exp2_sixteenths(base_ + side_[at_.scales + place]);
        float level = 0.0f;
        if (width > 0) {
            const std::uint32_t z0 = t >= 1 ? bit(plane, channel, t - 1) : 0;
            const std::uint32_t z1 = bit(plane, channel, t) ^ (t >= 2 ? bit(plane, channel, t - 2) : 0);
            std::uint32_t index = z1 << 1 | z0;
            for (std::uint32_t i = 1; i < width; ++i) {
                index |= bit(plane + i * plane_words(kind_), channel, t) << (i + 1);
            }
            level = static_cast<float>(trellis_level(kind_, width, index));
        }
        if (kind_ == TensorKind::key) {
            const auto zero = static_cast<std::int8_t>(side_[at_.zeros + place]);
            return scale * level + static_cast<float>(zero) * scale * zero_unit(width);
        }
        return scale * level * gain(t);
    }
    float gain(std::uint32_t t) const { return gains_[read_nibble(side_ + at_.gains, t)]; }

    TensorKind kind_;
    std::uint32_t dim_;
    SectionLayout at_;
    const unsigned char* side_;
    const std::uint32_t* words_;
    TrellisProfile profile_;
    int base_;
    const float* gains_ = nullptr;  // by nibble
    bool mean_has_gain_;
};

void read_raw(float* row, const BlockView& view, std::uint32_t head, std::uint32_t token) {
    const BlockHeader& header = *view.header;
    const std::uint64_t at = (std::uint64_t{head} * header.n_tokens + token) * view.sizes.raw_stride;
    if (header.bits == 32) {
        std::copy_n(view.part<float>(header.codes) + at, header.dim, row);
    } else {
        kernels_scalar()->codec.from_half(row, view.part<std::uint16_t>(header.codes) + at, header.dim);
    }
}

}  // namespace

void decompress_rows(const BlockView& view, std::uint32_t first, std::uint32_t n_tokens, void* context,
                     void (*take)(void* context, std::uint64_t row, float* x)) noexcept {
    const BlockHeader& header = *view.header;
    float row[max_dim];
    for (std::uint32_t head = 0; head < header.n_heads; ++head) {
        OutlierCursor outliers(view, head);
        for (std::uint32_t t = 0; t < first + n_tokens; ++t) {
            const std::uint32_t n_outliers = has_codes && header.n_outliers > 0 ? outliers.next_token() : 0;
            if (t < first) continue;
            if (view.trellis()) {
                TrellisReader(view, head, t / section_tokens).read(t % section_tokens, row);
            } else if (header.bits >= 16) {
                read_raw(row, view, head, t);
            } else if constexpr (has_codes) {
                read_dense(row, view, head, t);
                add_low_rank(row, view, head, t);
                for (std::uint32_t i = 0; i < n_outliers; ++i) {
                    float missing;
                    kernels_scalar()->codec.from_half(&missing, outliers.values() + i, 1);
                    row[outliers.channel(i)] += missing;
                }
            }
            take(context, std::uint64_t{t - first} * header.n_heads + head, row);
        }
    }
}

Status decompress_block(float* out, std::size_t n_floats, const void* block, std::size_t n_bytes) noexcept {
    const FloatMode mode;
    if (out == nullptr) return Status::error(Code::invalid_argument, "out is null");
    BlockView view;
    if (Status status = open_block(block, n_bytes, &view); !status.ok()) return status;
    const BlockHeader& header = *view.header;
    const std::uint64_t expected = std::uint64_t{header.n_tokens} * header.n_heads * header.dim;
    if (n_floats < expected) {
        return Status::error(Code::wrong_size, "room for %zu floats, expected %llu", n_floats,
                             static_cast<unsigned long long>(expected));
    }
    struct Place {
        float* out;
        std::uint32_t dim;
    } place = {out, header.dim};
    decompress_rows(view, 0, header.n_tokens, &place, [](void* context, std::uint64_t row, float* x) {
        const auto& to = *static_cast<const Place*>(context);
        std::copy_n(x, to.dim, to.out + row * to.dim);
    });
    return {};
}

Status inspect_block(const void* block, std::size_t n_bytes, BlockShape* shape, TensorSpec* spec,
                     BlockBytes* bytes) noexcept {
    BlockView view;
    if (Status status = open_block(block, n_bytes, &view); !status.ok()) return status;
    const BlockHeader& header = *view.header;
    if (shape != nullptr) {
        *shape = {static_cast<TensorKind>(header.kind), header.n_tokens, header.n_heads, header.dim};
    }
    if (spec != nullptr) *spec = spec_of(header);
    if (bytes != nullptr) *bytes = bytes_by_part(header);
    return {};
}

}  // namespace gearkv
