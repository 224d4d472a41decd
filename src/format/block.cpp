#include "format/block.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "format/built.hpp"
#include "format/spec.hpp"
#include "format/trellis.hpp"

namespace gearkv {
namespace {

constexpr std::uint64_t half_bytes = 2;
constexpr std::uint64_t max_block_bytes = std::uint64_t{1} << 32;

// Hands out 64-byte aligned runs after the header.
class PartCursor {
  public:
    std::uint64_t place(std::uint64_t n_bytes) noexcept {
        const std::uint64_t offset = next_;
        next_ = round_up(next_ + n_bytes, block_alignment);
        return offset;
    }
    std::uint64_t end() const noexcept { return next_; }

  private:
    std::uint64_t next_ = header_bytes;
};

struct PartBytes {
    std::uint64_t codes, scales, factor_a, factor_p;
    std::uint64_t outlier_starts, outlier_counts, outlier_channels, outlier_values;
    std::uint64_t profile, sections;
};

bool is_trellis(const BlockHeader& header) noexcept {
    return header.backbone == static_cast<std::uint8_t>(Backbone::trellis);
}

PartBytes part_bytes(const BlockHeader& header) noexcept {
    const BlockSizes sizes = block_sizes(header);
    const std::uint64_t n_heads = header.n_heads;
    PartBytes bytes = {};
    if (header.bits >= 16) {
        bytes.codes = n_heads * header.n_tokens * sizes.raw_stride * (header.bits / 8u);
        return bytes;
    }
    bytes.codes = (is_trellis(header) ? 1 : n_heads) * sizes.code_words * sizeof(std::uint32_t);
    if (is_trellis(header)) {
        bytes.profile = profile_part_bytes(static_cast<TensorKind>(header.kind), header.n_heads, header.dim);
        bytes.sections = n_heads * sizes.n_sections * sizes.section_bytes;
        return bytes;
    }
    bytes.scales = (sizes.shared_scales ? 1 : n_heads) * sizes.n_scales * half_bytes;
    bytes.factor_a = n_heads * header.rank * sizes.a_stride * half_bytes;
    bytes.factor_p = n_heads * header.rank * header.dim * half_bytes;
    if (header.n_outliers > 0) {
        bytes.outlier_starts = (n_heads + 1) * sizeof(std::uint32_t);
        bytes.outlier_counts = n_heads * header.n_tokens * header.index_bytes;
        bytes.outlier_channels = std::uint64_t{header.n_outliers} * header.index_bytes;
        bytes.outlier_values = std::uint64_t{header.n_outliers} * half_bytes;
    }
    return bytes;
}

// Sets every offset and the length from the shape fields, which are already in place.
void place_parts(BlockHeader* header, bool with_profile) noexcept {
    const PartBytes bytes = part_bytes(*header);
    PartCursor cursor;
    // Truncation is harmless: a block whose end does not fit 32 bits is refused.
    const auto place = [&cursor](std::uint64_t n_bytes) {
        return static_cast<std::uint32_t>(n_bytes == 0 ? 0 : cursor.place(n_bytes));
    };
    if (with_profile) header->profile = place(bytes.profile);
    header->sections = place(bytes.sections);
    header->codes = place(bytes.codes);
    header->scales = place(bytes.scales);
    header->zeros = place(bytes.scales);
    header->factor_a = place(bytes.factor_a);
    header->factor_p = place(bytes.factor_p);
    header->outlier_starts = place(bytes.outlier_starts);
    header->outlier_counts = place(bytes.outlier_counts);
    header->outlier_channels = place(bytes.outlier_channels);
    header->outlier_values = place(bytes.outlier_values);
    header->n_bytes = cursor.end();
}

Status check_shape(const BlockShape& shape) noexcept {
    if (shape.n_tokens < 1 || shape.n_tokens > max_block_tokens) {
        return Status::error(Code::wrong_size, "block of %u tokens, expected 1 to %u", shape.n_tokens,
                             max_block_tokens);
    }
    if (shape.n_heads < 1 || shape.n_heads > max_heads) {
        return Status::error(Code::wrong_size, "block of %u heads, expected 1 to %u", shape.n_heads,
                             max_heads);
    }
    if (shape.dim < 8 || shape.dim > max_dim || shape.dim % 8 != 0) {
        return Status::error(Code::wrong_size, "head dimension %u, expected a multiple of 8 in 8 to %u",
                             shape.dim, max_dim);
    }
    return {};
}

std::uint64_t count_outliers(const BlockHeader& header) noexcept {
    if (header.sparsity <= 0.0f || header.bits >= 16) return 0;
    const std::uint64_t all_channels = std::uint64_t{header.n_heads} * header.dim;
    const bool keys = header.kind == static_cast<std::uint8_t>(TensorKind::key);
    const std::uint64_t length = keys ? header.n_tokens : all_channels;
    const std::uint64_t n_vectors = keys ? all_channels : header.n_tokens;
    return 2 * std::uint64_t{outliers_per_end(header.sparsity, length)} * n_vectors;
}

bool finite_halves(const std::uint16_t* x, std::uint64_t n) noexcept {
    std::uint32_t found = 0;
    for (std::uint64_t i = 0; i < n; ++i)
        found |= (x[i] & 0x7c00u) == 0x7c00u;
    return found == 0;
}

Status check_outliers(const BlockView& view) noexcept {
    const BlockHeader& header = *view.header;
    if (!has_codes || header.n_outliers == 0) return {};
    const auto* starts = view.part<std::uint32_t>(header.outlier_starts);
    if (starts[0] != 0 || starts[header.n_heads] != header.n_outliers) {
        return Status::error(Code::bad_block, "outliers run from %u to %u, expected 0 to %u", starts[0],
                             starts[header.n_heads], header.n_outliers);
    }
    for (std::uint32_t head = 0; head < header.n_heads; ++head) {
        if (starts[head] > starts[head + 1] || starts[head + 1] > header.n_outliers) {
            return Status::error(Code::bad_block, "outliers of head %u run from %u to %u of %u", head,
                                 starts[head], starts[head + 1], header.n_outliers);
        }
        OutlierCursor cursor(view, head);
        std::uint64_t left = starts[head + 1] - starts[head];
        for (std::uint32_t t = 0; t < header.n_tokens; ++t) {
            const std::uint32_t count = cursor.next_token();
            if (count > left) {
                return Status::error(Code::bad_block, "head %u token %u has %u outliers, %llu are left", head,
                                     t, count, static_cast<unsigned long long>(left));
            }
            left -= count;
            for (std::uint32_t i = 0; i < count; ++i) {
                if (cursor.channel(i) >= header.dim ||
                    (i > 0 && cursor.channel(i) <= cursor.channel(i - 1))) {
                    return Status::error(
                        Code::bad_block,
                        "head %u token %u outlier %u at channel %u, expected ascending below %u", head, t, i,
                        cursor.channel(i), header.dim);
                }
            }
        }
        if (left != 0) {
            return Status::error(Code::bad_block, "head %u has %llu outliers beyond its counts", head,
                                 static_cast<unsigned long long>(left));
        }
    }
    return {};
}

Status check_values(const BlockView& view) noexcept {
    const BlockHeader& header = *view.header;
    const PartBytes bytes = part_bytes(header);
    const struct {
        const char* name;
        std::uint64_t offset, n_bytes;
    } parts[] = {{"scale", header.scales, bytes.scales},
                 {"zero", header.zeros, bytes.scales},
                 {"factor a", header.factor_a, bytes.factor_a},
                 {"factor p", header.factor_p, bytes.factor_p},
                 {"outlier", header.outlier_values, bytes.outlier_values},
                 {"raw row", header.codes, header.bits == 16 ? bytes.codes : 0}};
    for (const auto& part : parts) {
        if (!finite_halves(view.part<std::uint16_t>(part.offset), part.n_bytes / half_bytes)) {
            return Status::error(Code::bad_block, "a %s is NaN or Inf, expected finite", part.name);
        }
    }
    if (header.bits == 32) {
        const auto* rows = view.part<float>(header.codes);
        for (std::uint64_t i = 0; i < bytes.codes / sizeof(float); ++i) {
            if (!std::isfinite(rows[i])) {
                return Status::error(Code::bad_block, "a raw row is NaN or Inf, expected finite");
            }
        }
    }
    return {};
}

// Planes of the heads, in order, and no more than the widest granules have.
Status check_planes(const BlockView& view) noexcept {
    const bool keys = view.kind() == TensorKind::key;
    const float widest = static_cast<float>(keys ? max_key_width : max_value_width);
    const std::uint32_t n_widest =
        section_planes(view.kind(), view.header->n_heads, view.header->dim, widest);
    for (std::uint32_t head = 0; head <= view.header->n_heads; ++head) {
        const std::uint32_t least = head == 0 ? 0 : view.plane_starts[head - 1];
        const std::uint32_t most = head == 0 ? 0 : n_widest;
        if (view.plane_starts[head] >= least && view.plane_starts[head] <= most) continue;
        return Status::error(Code::bad_block, "planes of head %u start at %u, expected %u to %u", head,
                             view.plane_starts[head], least, most);
    }
    return {};
}

// Means are finite, orders are permutations.
Status check_profile(const BlockView& view) noexcept {
    const BlockHeader& header = *view.header;
    const bool keys = view.kind() == TensorKind::key;
    if (Status status = check_planes(view); !status.ok()) return status;
    for (std::uint32_t head = 0; head < header.n_heads; ++head) {
        const TrellisProfile profile = trellis_profile(view, head);
        if (!finite_halves(profile.mean, header.dim)) {
            return Status::error(Code::bad_block, "a mean of head %u is NaN or Inf, expected finite", head);
        }
        bool seen[max_dim] = {};
        for (std::uint32_t c = 0; keys && c < header.dim; ++c) {
            const std::uint32_t channel = profile.order[c];
            if (channel >= header.dim || seen[channel]) {
                return Status::error(Code::bad_block,
                                     "order of head %u holds %u at %u, expected each below %u once", head,
                                     channel, c, header.dim);
            }
            seen[channel] = true;
        }
    }
    return {};
}

// Bases are of scales that fp16 keys and values can have, so that no sum of them overflows; widths fit the
// planes.
Status check_sections(const BlockView& view) noexcept {
    const BlockHeader& header = *view.header;
    const bool keys = view.kind() == TensorKind::key;
    const SectionLayout at = section_layout(view.kind(), header.dim);
    const auto n_granules = static_cast<std::uint32_t>(ceil_div(header.dim, granule_channels(view.kind())));
    for (std::uint32_t head = 0; head < header.n_heads; ++head) {
        for (std::uint32_t i = 0; i < view.sizes.n_sections; ++i) {
            std::int16_t base;
            std::memcpy(&base, view.section(head, i) + at.base, sizeof(base));
            if (base < least_scale_base || base > most_scale_base) {
                return Status::error(Code::bad_block,
                                     "base %d of the scales of section %u, head %u, expected %d to %d", base,
                                     i, head, least_scale_base, most_scale_base);
            }
            const int origin = gain_origin(view.section(head, i), header.version);
            if (!keys && (origin < least_gain_origin || origin > most_gain_origin)) {
                return Status::error(Code::bad_block,
                                     "origin %d of the gains of section %u, head %u, expected %d to %d",
                                     origin, i, head, least_gain_origin, most_gain_origin);
            }
            std::uint32_t n_planes = 0;
            for (std::uint32_t g = 0; g < n_granules; ++g) {
                const std::uint32_t width = read_nibble(view.section(head, i) + at.widths, g);
                const std::uint32_t most = keys ? max_key_width : max_value_width;
                if ((width == 1 && header.version == 1) || width > most) {
                    return Status::error(Code::bad_block, "width %u of granule %u, expected 0 or %u to %u",
                                         width, g, header.version == 1 ? 2 : 1, most);
                }
                n_planes += width;
            }
            if (n_planes > view.n_planes(head)) {
                return Status::error(Code::bad_block,
                                     "widths of section %u, head %u take %u planes, expected at most %u", i,
                                     head, n_planes, view.n_planes(head));
            }
        }
    }
    return {};
}

}  // namespace

std::uint32_t outliers_per_end(float sparsity, std::uint64_t length) noexcept {
    if (sparsity <= 0.0f) return 0;
    const auto wanted = static_cast<std::uint64_t>(
        std::floor(static_cast<double>(sparsity) / 2 * static_cast<double>(length) + 1e-6));
    return static_cast<std::uint32_t>(std::min(std::max<std::uint64_t>(wanted, 1), length / 2));
}

Status lay_out_block(const BlockShape& shape, const TensorSpec& spec, std::uint32_t rank, BlockHeader* out,
                     bool with_profile) noexcept {
    if (Status status = check_shape(shape); !status.ok()) return status;
    BlockHeader header = {};
    header.magic = block_magic;
    header.version = spec.backbone == Backbone::trellis ? block_version : 1;
    header.kind = static_cast<std::uint8_t>(shape.kind);
    header.backbone = static_cast<std::uint8_t>(spec.backbone);
    header.bits = spec.bits;
    header.index_bytes = shape.dim > 255 ? 2 : 1;
    header.n_tokens = shape.n_tokens;
    header.n_heads = shape.n_heads;
    header.dim = shape.dim;
    if (spec.backbone == Backbone::trellis) {
        header.rate = spec.rate;
    } else if (!spec.raw()) {
        header.group = spec.backbone == Backbone::kcvt ? 0 : spec.group;
        header.rank = std::min({rank, max_rank, shape.n_tokens, shape.dim});
        header.sparsity = spec.sparsity;
    }
    const std::uint64_t n_outliers = count_outliers(header);
    if (n_outliers > UINT32_MAX) {
        return Status::error(Code::wrong_size, "%llu outliers in one block, expected fewer than 2^32",
                             static_cast<unsigned long long>(n_outliers));
    }
    header.n_outliers = static_cast<std::uint32_t>(n_outliers);
    place_parts(&header, with_profile);
    if (header.n_bytes >= max_block_bytes) {
        return Status::error(Code::wrong_size, "block of %llu bytes, expected fewer than 2^32",
                             static_cast<unsigned long long>(header.n_bytes));
    }
    *out = header;
    return {};
}

BlockSizes block_sizes(const BlockHeader& header) noexcept {
    const bool keys = header.kind == static_cast<std::uint8_t>(TensorKind::key);
    const auto backbone = static_cast<Backbone>(header.backbone);
    BlockSizes sizes = {};
    sizes.a_stride = round_up(header.n_tokens, 16);
    sizes.raw_stride = round_up(header.dim, 16);
    sizes.n_lanes = keys ? sizes.a_stride : sizes.raw_stride;
    if (header.bits >= 16) return sizes;
    if (is_trellis(header)) {
        const auto kind = static_cast<TensorKind>(header.kind);
        sizes.n_sections = static_cast<std::uint32_t>(ceil_div(header.n_tokens, section_tokens));
        sizes.n_planes = section_planes(kind, header.n_heads, header.dim, header.rate);
        sizes.plane_words = plane_words(kind);
        sizes.section_bytes = section_layout(kind, header.dim).n_bytes;
        sizes.code_words = std::uint64_t{sizes.n_sections} * sizes.n_planes * sizes.plane_words;
        return sizes;
    }
    const std::uint64_t words = lane_words(header.bits, keys ? header.dim : header.n_tokens);
    sizes.tile_words = keys ? words * 16 : 0;
    sizes.code_words = words * sizes.n_lanes;
    sizes.shared_scales = !keys && backbone == Backbone::kcvt;
    sizes.token_scales = !keys || backbone == Backbone::token;
    if (!sizes.token_scales) {
        sizes.group_tokens = backbone == Backbone::kcvt ? header.n_tokens : header.group;
        sizes.n_groups = ceil_div(header.n_tokens, sizes.group_tokens);
        sizes.n_scales = sizes.n_groups * header.dim;
    } else {
        sizes.group_channels = backbone == Backbone::kcvt ? header.dim : header.group;
        sizes.n_groups = ceil_div(header.dim, sizes.group_channels);
        sizes.n_scales = sizes.n_groups * header.n_tokens;
    }
    return sizes;
}

bool lay_out_reduced(const BlockHeader& header, bool drop_low_rank, BlockHeader* out) noexcept {
    drop_low_rank &= header.rank > 0;
    if (!has_codes || (header.n_outliers == 0 && !drop_low_rank)) return false;
    TensorSpec spec = spec_of(header);
    spec.sparsity = 0.0f;
    const BlockShape shape = {static_cast<TensorKind>(header.kind), header.n_tokens, header.n_heads,
                              header.dim};
    return lay_out_block(shape, spec, drop_low_rank ? 0 : header.rank, out).ok();
}

void write_reduced(const void* block, const BlockHeader& header, void* out) noexcept {
    const auto* from = static_cast<const unsigned char*>(block);
    auto* to = static_cast<unsigned char*>(out);
    const auto& old = *static_cast<const BlockHeader*>(block);
    const PartBytes bytes = part_bytes(header);
    std::memset(to, 0, header.n_bytes);
    std::memcpy(to, &header, sizeof(header));
    const struct {
        std::uint64_t from, to, n_bytes;
    } parts[] = {{old.codes, header.codes, bytes.codes},
                 {old.scales, header.scales, bytes.scales},
                 {old.zeros, header.zeros, bytes.scales},
                 {old.factor_a, header.factor_a, bytes.factor_a},
                 {old.factor_p, header.factor_p, bytes.factor_p},
                 {old.outlier_starts, header.outlier_starts, bytes.outlier_starts},
                 {old.outlier_counts, header.outlier_counts, bytes.outlier_counts},
                 {old.outlier_channels, header.outlier_channels, bytes.outlier_channels},
                 {old.outlier_values, header.outlier_values, bytes.outlier_values}};
    for (const auto& part : parts)
        std::memcpy(to + part.to, from + part.from, part.n_bytes);
}

bool lay_out_lower(const BlockHeader& header, BlockHeader* out) noexcept {
    if (!is_trellis(header)) return false;
    const BlockShape shape = {static_cast<TensorKind>(header.kind), header.n_tokens, header.n_heads,
                              header.dim};
    const float rate = lower_rate(shape.kind, header.rate);
    BlockHeader lower;
    if (rate == 0.0f || !lay_out_block(shape, trellis_spec(rate), 0, &lower, header.profile != 0).ok())
        return false;
    if (lower.n_bytes >= header.n_bytes) return false;
    *out = lower;
    return true;
}

BlockBytes bytes_by_part(const BlockHeader& header) noexcept {
    const PartBytes parts = part_bytes(header);
    BlockBytes bytes;
    bytes.bytes = header.n_bytes;
    bytes.header = header_bytes;
    bytes.codes = parts.codes;
    bytes.scales = 2 * parts.scales + parts.sections + (header.profile != 0 ? parts.profile : 0);
    bytes.low_rank = parts.factor_a + parts.factor_p;
    bytes.outliers =
        parts.outlier_starts + parts.outlier_counts + parts.outlier_channels + parts.outlier_values;
    bytes.padding = bytes.bytes - bytes.header - bytes.codes - bytes.scales - bytes.low_rank - bytes.outliers;
    return bytes;
}

TensorSpec spec_of(const BlockHeader& header) noexcept {
    TensorSpec spec;
    spec.backbone = static_cast<Backbone>(header.backbone);
    spec.bits = header.bits;
    spec.rate = header.rate;
    if (spec.backbone != Backbone::trellis && spec.backbone != Backbone::kcvt && !spec.raw())
        spec.group = header.group;
    spec.rank_prompt = spec.rank_decode = static_cast<std::uint16_t>(std::min(header.rank, 65535u));
    spec.sparsity = header.sparsity;
    return spec;
}

OutlierCursor::OutlierCursor(const BlockView& view, std::uint32_t head) noexcept {
    if (view.header == nullptr || view.header->n_outliers == 0) return;
    const BlockHeader& header = *view.header;
    wide_ = header.index_bytes == 2;
    const std::uint64_t row = std::uint64_t{head} * header.n_tokens;
    counts8_ = view.part<std::uint8_t>(header.outlier_counts) + row;
    counts16_ = view.part<std::uint16_t>(header.outlier_counts) + row;
    channels8_ = view.part<std::uint8_t>(header.outlier_channels);
    channels16_ = view.part<std::uint16_t>(header.outlier_channels);
    values_ = view.part<std::uint16_t>(header.outlier_values);
    first_ = view.part<std::uint32_t>(header.outlier_starts)[head];
}

Outliers OutlierCursor::next_tokens(std::uint32_t n_tokens) noexcept {
    first_ += count_;
    Outliers all = {counts8_, channels8_ + first_, values_ + first_, wide_, n_tokens, 0};
    if (wide_) {
        all.counts = counts16_;
        all.channels = channels16_ + first_;
        all.n = std::accumulate(counts16_, counts16_ + n_tokens, 0u);
        counts16_ += n_tokens;
    } else {
        all.n = std::accumulate(counts8_, counts8_ + n_tokens, 0u);
        counts8_ += n_tokens;
    }
    count_ = all.n;
    // As many will be read next, while these are worked on.
    const std::uint64_t index_bytes = wide_ ? 2 : 1;
    const auto ask_beyond = [](const void* from, std::uint64_t first, std::uint64_t n_bytes) {
        const auto at = reinterpret_cast<std::uintptr_t>(from) + first;
        for (std::uint64_t i = 0; i < n_bytes; i += 64)
            __builtin_prefetch(reinterpret_cast<const void*>(at + i), 0, 2);
    };
    ask_beyond(all.counts, n_tokens * index_bytes, n_tokens * index_bytes);
    ask_beyond(all.channels, all.n * index_bytes, all.n * index_bytes);
    ask_beyond(all.values, 2 * std::uint64_t{all.n}, 2 * std::uint64_t{all.n});
    return all;
}

BlockView trusted_block(const void* bytes) noexcept {
    BlockView view;
    view.header = static_cast<const BlockHeader*>(bytes);
    view.sizes = block_sizes(*view.header);
    if (view.header->profile != 0) view.use_profiles(view.part<unsigned char>(view.header->profile));
    return view;
}

void BlockView::use_profiles(const unsigned char* all) noexcept {
    profiles = all;
    const std::uint64_t n_bytes = header->n_heads * profile_bytes(kind(), header->dim);
    plane_starts = reinterpret_cast<const std::uint32_t*>(all + n_bytes);
}

namespace {

// The shape and codec of a header are ones that compress_block could have written.
Status check_codec(const BlockHeader& header, TensorSpec* spec, BlockShape* shape) noexcept {
    if (header.magic != block_magic) {
        return Status::error(Code::bad_block, "magic %08x, expected %08x", header.magic, block_magic);
    }
    const bool is_known = header.version == 1 || (header.version == block_version && is_trellis(header));
    if (!is_known) {
        return Status::error(Code::bad_block, "block version %u, expected %s", header.version,
                             is_trellis(header) ? "1 or 2" : "1");
    }
    if (header.kind > 1)
        return Status::error(Code::bad_block, "tensor kind %u, expected 0 or 1", header.kind);
    if (header.backbone > static_cast<std::uint8_t>(Backbone::trellis)) {
        return Status::error(Code::bad_block, "backbone %u, expected 0 to 5", header.backbone);
    }
    KvSpec both;
    both.key = both.value = half_spec;
    *spec = spec_of(header);
    (header.kind == 0 ? both.key : both.value) = *spec;
    if (is_trellis(header)) both.buffer_tokens = section_tokens;
    if (Status status = validate_spec(both); !status.ok()) {
        if (status.code() == Code::unavailable_spec) return status;
        return Status::error(Code::bad_block, "codec not known: %s", status.message());
    }
    *shape = {static_cast<TensorKind>(header.kind), header.n_tokens, header.n_heads, header.dim};
    return {};
}

}  // namespace

Status open_block(const void* bytes, std::uint64_t n_bytes, BlockView* out) noexcept {
    if (bytes == nullptr || n_bytes < header_bytes) {
        return Status::error(Code::bad_block, "block of %llu bytes, expected at least %llu",
                             static_cast<unsigned long long>(n_bytes),
                             static_cast<unsigned long long>(header_bytes));
    }
    if (reinterpret_cast<std::uintptr_t>(bytes) % block_alignment != 0) {
        return Status::error(Code::bad_block, "block at %p, expected an address that is a multiple of %u",
                             bytes, block_alignment);
    }
    const auto& header = *static_cast<const BlockHeader*>(bytes);
    TensorSpec spec;
    BlockShape shape;
    if (Status status = check_codec(header, &spec, &shape); !status.ok()) return status;
    BlockHeader expected;
    if (is_trellis(header) && header.profile == 0) {
        return Status::error(Code::bad_block,
                             "the profile of this block is in another one, expected its own");
    }
    if (Status status = lay_out_block(shape, spec, header.rank, &expected); !status.ok()) {
        return Status::error(Code::bad_block, "%s", status.message());
    }
    expected.version = header.version;
    if (header.n_bytes != n_bytes) {
        return Status::error(Code::bad_block, "header says %llu bytes, %llu are there",
                             static_cast<unsigned long long>(header.n_bytes),
                             static_cast<unsigned long long>(n_bytes));
    }
    // Every field follows from shape and codec, so the header must be the one we would write.
    if (std::memcmp(&header, &expected, sizeof(BlockHeader)) != 0) {
        return Status::error(Code::bad_block, "counts or offsets do not follow from the block's shape");
    }
    BlockView view = trusted_block(bytes);
    if (Status status = check_contents(view); !status.ok()) return status;
    *out = view;
    return {};
}

Status check_contents(const BlockView& view) noexcept {
    if (Status status = check_outliers(view); !status.ok()) return status;
    if (!is_trellis(*view.header)) return check_values(view);
    if (Status status = check_profile(view); !status.ok()) return status;
    return check_sections(view);
}

Status check_profiles(const BlockHeader& header, const void* bytes) noexcept {
    BlockView view;
    view.header = &header;
    view.sizes = block_sizes(header);
    view.use_profiles(static_cast<const unsigned char*>(bytes));
    return check_profile(view);
}

}  // namespace gearkv
