#include "codec/trellis_read.hpp"

#include <algorithm>
#include <type_traits>

namespace gearkv {
namespace {

inline constexpr std::uint32_t most_channels = value_granule;

// Each bit of a byte as a byte of 0 or 1, the lowest first.
struct SpreadBits {
    std::uint64_t bytes[256] = {};
    constexpr SpreadBits() {
        for (std::uint32_t byte = 0; byte < 256; ++byte) {
            for (std::uint32_t bit = 0; bit < 8; ++bit)
                bytes[byte] |= std::uint64_t{byte >> bit & 1} << (8 * bit);
        }
    }
};
constexpr SpreadBits spread;

// One granule of one section: which of its levels every entry has, and what they stand for.
struct Granule {
    std::uint8_t index[most_channels][section_tokens];
    float level[most_channels][2u << max_key_width];
};

class SectionReader {
  public:
    SectionReader(const BlockView& view, std::uint32_t head, std::uint32_t section) noexcept
        : kind_(view.kind()),
          dim_(view.header->dim),
          n_tokens_(std::min(section_tokens, view.header->n_tokens - section * section_tokens)),
          at_(section_layout(kind_, dim_)),
          side_(view.section(head, section)),
          words_(view.section_codes(head, section)),
          order_(trellis_profile(view, head).order) {
        std::int16_t base;
        std::memcpy(&base, side_ + at_.base, sizeof(base));
        base_ = base;
        std::fill_n(gain_, section_tokens, 1.0f);
        if (keys()) return;
        const float* gains = gains_of(gain_origin(side_, view.header->version));
        for (std::uint32_t t = 0; t < n_tokens_; ++t)
            gain_[t] = gains[read_nibble(side_ + at_.gains, t)];
    }
    bool keys() const noexcept { return kind_ == TensorKind::key; }
    std::uint32_t n_tokens() const noexcept { return n_tokens_; }
    const float* gains() const noexcept { return gain_; }
    const std::uint16_t* order() const noexcept { return order_; }

    // Calls visit(granule, first place, channels) for every one, in stored order. The usual numbers of
    // channels are constants.
    template <class Visit>
    void for_granules(const Visit& visit) noexcept {
        Granule granule;
        const std::uint32_t n_each = granule_channels(kind_);
        const std::uint32_t* plane = words_;
        for (std::uint32_t first = 0; first < dim_; first += n_each) {
            const std::uint32_t width = read_nibble(side_ + at_.widths, first / n_each);
            const std::uint32_t n = std::min(n_each, dim_ - first);
            for (std::uint32_t c = 0; c < n; ++c) {
                find_levels(granule.level[c], first + c, width);
                find_indices(granule.index[c], plane, c, width);
            }
            if (n == key_granule) {
                visit(granule, first, std::integral_constant<std::uint32_t, key_granule>());
            } else if (n == value_granule) {
                visit(granule, first, std::integral_constant<std::uint32_t, value_granule>());
            } else {
                visit(granule, first, n);
            }
            plane += width * plane_words(kind_);
        }
    }

  private:
    void find_levels(float* out, std::uint32_t place, std::uint32_t width) const noexcept {
        const float scale = exp2_sixteenths(base_ + side_[at_.scales + place]);
        float zero = 0.0f;
        if (keys())
            zero = static_cast<float>(static_cast<std::int8_t>(side_[at_.zeros + place])) * scale *
                   zero_unit(width);
        const std::uint32_t n = width == 0 ? 1 : 2u << width;
        for (std::uint32_t i = 0; i < n; ++i)
            out[i] = scale * static_cast<float>(trellis_level(kind_, width, i)) + zero;
    }
    // Bits of tokens 8 i to 8 i + 7 of a channel.
    std::uint32_t plane_byte(const std::uint32_t* plane, std::uint32_t c, std::uint32_t i) const noexcept {
        if (keys()) return plane[i] >> (8 * c) & 255;
        return plane[i / 4 * lane_tile + c] >> (8 * (i % 4)) & 255;
    }
    void find_indices(std::uint8_t* out, const std::uint32_t* plane, std::uint32_t c,
                      std::uint32_t width) const noexcept {
        if (width == 0) return (void)std::memset(out, 0, section_tokens);
        std::uint64_t before = 0;  // path bits of the 8 tokens before
        for (std::uint32_t i = 0; i < section_tokens / 8; ++i) {
            const std::uint64_t path = spread.bytes[plane_byte(plane, c, i)];
            const std::uint64_t z0 = path << 8 | before >> 56, z1 = path ^ (path << 16 | before >> 48);
            before = path;
            std::uint64_t index = z1 << 1 | z0;
            for (std::uint32_t b = 1; b < width; ++b)
                index |= spread.bytes[plane_byte(plane + b * plane_words(kind_), c, i)] << (b + 1);
            std::memcpy(out + 8 * i, &index, sizeof(index));
        }
    }

    TensorKind kind_;
    std::uint32_t dim_, n_tokens_;
    SectionLayout at_;
    const unsigned char* side_;
    const std::uint32_t* words_;
    const std::uint16_t* order_;
    int base_;
    float gain_[section_tokens];
};

}  // namespace

void read_section(const BlockView& view, std::uint32_t head, std::uint32_t section, float* x,
                  std::size_t stride, const float* mean) noexcept {
    SectionReader reader(view, head, section);
    const std::uint32_t dim = view.header->dim, n_tokens = reader.n_tokens();
    const bool mean_has_gain = view.header->version > 1;
    reader.for_granules([&](const Granule& granule, std::uint32_t first, auto n) {
        for (std::uint32_t t = 0; t < n_tokens; ++t) {
            float* __restrict to = x + t * stride + first;
            for (std::uint32_t c = 0; c < n; ++c)
                to[c] = granule.level[c][granule.index[c][t]];
        }
    });
    for (std::uint32_t t = 0; t < n_tokens; ++t) {
        float* __restrict row = x + t * stride;
        const float gain = reader.gains()[t], mean_gain = mean_has_gain ? gain : 1.0f;
        for (std::uint32_t c = 0; mean != nullptr && c < dim; ++c)
            row[c] = gain * row[c] + mean_gain * mean[c];
        std::fill(row + dim, row + stride, 0.0f);
    }
    for (std::uint32_t t = n_tokens; t < section_tokens; ++t) {
        if (reader.keys()) {
            std::copy_n(x + (n_tokens - 1) * stride, stride, x + t * stride);
        } else {
            std::fill_n(x + t * stride, stride, 0.0f);
        }
    }
}

SectionSquares compare_section(const BlockView& view, std::uint32_t head, std::uint32_t section,
                               const float* x, std::size_t stride, const float* weights) noexcept {
    SectionReader reader(view, head, section);
    SectionSquares all;
    reader.for_granules([&](const Granule& granule, std::uint32_t first, auto n) {
        float error[most_channels] = {}, signal[most_channels] = {}, found[most_channels];
        for (std::uint32_t t = 0; t < reader.n_tokens(); ++t) {
            const float* __restrict row = x + t * stride + first;
            const float gain = reader.gains()[t];
            for (std::uint32_t c = 0; c < n; ++c)
                found[c] = granule.level[c][granule.index[c][t]];
            for (std::uint32_t c = 0; c < n; ++c) {
                const float e = row[c] - gain * found[c];
                error[c] += e * e;
                signal[c] += row[c] * row[c];
            }
        }
        for (std::uint32_t c = 0; c < n; ++c) {
            const double weight = weights == nullptr ? 1.0 : double{weights[reader.order()[first + c]]};
            all.error += weight * double{error[c]};
            all.signal += weight * double{signal[c]};
        }
    });
    return all;
}

}  // namespace gearkv
