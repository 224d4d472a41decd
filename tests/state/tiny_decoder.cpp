#include "state/tiny_decoder.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#ifdef GEARKV_TEST_XXHASH
#include <xxhash.h>
#endif

namespace tiny {
namespace {

using std::int16_t;
using std::int64_t;
using std::int8_t;
using std::size_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

void demand(bool good, const char* what) {
    if (!good) throw std::runtime_error(what);
}

size_t round_up(size_t n, size_t to) {
    return (n + to - 1) / to * to;
}

// Part of the file; reads are checked.
struct Bytes {
    const unsigned char* data = nullptr;
    size_t n = 0;

    Bytes part(size_t at, size_t length) const {
        demand(at <= n && length <= n - at, "something lies behind the end");
        return {data + at, length};
    }
    template <class T>
    T get(size_t at) const {
        T out;
        std::memcpy(&out, part(at, sizeof(T)).data, sizeof(T));
        return out;
    }
    // Element i of an array of T.
    template <class T>
    T item(size_t i) const {
        return get<T>(i * sizeof(T));
    }
    double half(size_t i) const {
        const uint32_t bits = item<uint16_t>(i);
        demand((bits & 0x7c00) != 0x7c00, "a half that is not finite");
        // As a float it is too small by the difference of the two biases.
        const double size = std::bit_cast<float>((bits & 0x7fff) << 13) * 0x1p112;
        return (bits & 0x8000) != 0 ? -size : size;
    }
    uint32_t nibble(size_t i) const { return get<uint8_t>(i / 2) >> (4 * (i % 2)) & 15u; }
    bool zero() const {
        return std::all_of(data, data + n, [](unsigned char x) { return x == 0; });
    }
};

// The structures of the drawings.

struct FileHeader {
    unsigned char magic[8];
    uint32_t version, byte_order;
    uint64_t n_bytes;
    uint32_t n_sections, block_version, n_layers, n_kv_heads, key_dim, value_dim;
    uint64_t max_tokens, seed;
    uint32_t spread_tokens, flags, rope_pairs, rope_interleaved;
    uint64_t rope_checksum, table_checksum;
    unsigned char model[32];
    char spec[256];
    uint64_t dims_checksum;
    unsigned char reserved[112];
    uint64_t checksum;
};
static_assert(sizeof(FileHeader) == 512);

enum Kind : uint32_t {
    layer_kind = 1,
    key_planes,
    value_planes,
    key_sinks,
    value_sinks,
    key_profiles,
    value_profiles,
    key_block,
    value_block,
    key_buffer,
    value_buffer,
    queries_kind,
    extra_kind,
    rope_kind,
    squares_kind,
};

struct Section {
    uint32_t kind, layer;
    uint64_t offset, n_bytes, checksum;
    uint32_t first, n_tokens;
    int64_t shift;
    uint64_t reserved[2];
};
static_assert(sizeof(Section) == 64);

struct LayerCounts {
    uint64_t n_sinks, n_forgotten, n_closed, n_buffered, exact_from;
    uint32_t pending_tokens, pending_appended, flags;
    float key_rate, value_rate;
    uint32_t reserved;
};
static_assert(sizeof(LayerCounts) == 64);

struct BlockHeader {
    uint32_t magic;
    uint16_t version;
    uint8_t kind, backbone, bits, index_bytes;
    uint16_t group;
    uint32_t n_tokens, n_heads, dim, rank, n_outliers;
    float sparsity, rate;
    uint64_t n_bytes;
    uint32_t codes, scales, zeros, factor_a, factor_p;
    uint32_t outlier_starts, outlier_counts, outlier_channels, outlier_values;
    uint32_t profile, sections, reserved;
};
static_assert(sizeof(BlockHeader) == 96);

enum : uint8_t { raw32, raw16, kivi, kcvt, token_wise, trellis };

// [token][head][dim] of doubles.
struct Tokens {
    size_t n, n_heads, dim;
    std::vector<double> x;
    Tokens(size_t n_, size_t n_heads_, size_t dim_)
        : n(n_), n_heads(n_heads_), dim(dim_), x(n_ * n_heads_ * dim_) {}
    double& at(size_t token, size_t head, size_t channel) {
        return x[(token * n_heads + head) * dim + channel];
    }
};

// Levels of the trellis by width, those of 1 and 2 the same for keys and values.
const int levels_1[] = {-127, -42, 42, 127};
const int levels_2[] = {-127, -73, -43, -12, 12, 43, 73, 127};
const int key_levels_3[] = {-127, -95, -74, -58, -44, -30, -18, -6, 6, 18, 30, 44, 58, 74, 95, 127};
const int key_levels_4[] = {-127, -122, -107, -95, -85, -77, -68, -61, -53, -46, -39,
                            -31,  -24,  -17,  -11, -3,  3,   11,  17,  24,  31,  39,
                            46,   53,   61,   68,  77,  85,  95,  107, 122, 127};
const int value_levels_3[] = {-127, -91, -69, -53, -40, -27, -17, -5, 5, 17, 27, 40, 53, 69, 91, 127};
const int value_levels_4[] = {-127, -100, -83, -70, -60, -52, -45, -39, -34, -28, -24,
                              -19,  -15,  -10, -7,  -2,  2,   7,   10,  15,  19,  24,
                              28,   34,   39,  45,  52,  60,  70,  83,  100, 127};

int level(bool key, uint32_t width, uint32_t i) {
    switch (width) {
        case 1:
            return levels_1[i];
        case 2:
            return levels_2[i];
        case 3:
            return key ? key_levels_3[i] : value_levels_3[i];
        case 4:
            return key ? key_levels_4[i] : value_levels_4[i];
        case 5:
        case 6:
            demand(key, "a value wider than 4 bits");
            return 2 * static_cast<int>(i) - ((2 << width) - 1);
        default:
            throw std::runtime_error("a width that is not known");
    }
}

double zero_unit(uint32_t width) {
    const double units[] = {1.0, 127.0 / 3, 127.0 / 7, 127.0 / 15, 127.0 / 31, 4.0, 8.0};
    return units[width];
}

class Block {
  public:
    Block(Bytes bytes, bool key) : bytes_(bytes), h_(bytes.get<BlockHeader>(0)), key_(key) {
        demand(h_.magic == 0x424b5647, "not a block");
        demand(h_.version == 1 || (h_.version == 2 && h_.backbone == trellis), "version of a block");
        demand(h_.kind == (key ? 0 : 1), "keys for values");
        demand(h_.n_bytes == bytes.n && bytes.n % 64 == 0, "size of a block");
        demand(h_.reserved == 0 && bytes.part(96, 32).zero(), "reserved fields of a block");
        demand(h_.backbone <= trellis, "a backbone that is not known");
        demand(h_.n_tokens > 0 && h_.n_heads > 0 && h_.dim > 0 && h_.dim % 8 == 0, "shape of a block");
        demand(h_.index_bytes == (h_.dim > 255 ? 2 : 1), "width of an index");
        const bool coded = h_.backbone >= kivi && h_.backbone <= token_wise;
        const bool right = coded ? h_.bits == 2 || h_.bits == 3 || h_.bits == 4 || h_.bits == 8
                                 : h_.bits == (h_.backbone == raw32   ? 32
                                               : h_.backbone == raw16 ? 16
                                                                      : 0);
        demand(right, "bits of codes");
        demand((h_.group > 0) == (h_.backbone == kivi || h_.backbone == token_wise), "group");
        find_parts(coded);
    }

    const BlockHeader& header() const { return h_; }

    // What the blocks of a stream share; empty when this one does not have it.
    Bytes profile() const { return profile_; }

    Tokens decode(Bytes profile) const {
        Tokens out(h_.n_tokens, h_.n_heads, h_.dim);
        for (size_t head = 0; head < out.n_heads; ++head) {
            if (h_.backbone == trellis) {
                add_trellis(head, profile, &out);
                continue;
            }
            for (size_t t = 0; t < out.n; ++t) {
                for (size_t c = 0; c < out.dim; ++c)
                    out.at(t, head, c) = h_.backbone <= raw16 ? raw(head, t, c) : dense(head, t, c);
            }
            if (h_.backbone > raw16) check_padding(head);
            add_low_rank(head, &out);
        }
        if (h_.n_outliers > 0) add_outliers(&out);
        return out;
    }

  private:
    // Parts follow each other as drawn, with zeros between them.
    void find_parts(bool coded) {
        const size_t n_heads = h_.n_heads, n = h_.n_tokens, dim = h_.dim;
        const size_t wide_n = round_up(n, 16), wide_dim = round_up(dim, 16);
        size_t n_profile = 0, n_sections = 0, n_codes = 0, n_scales = 0;
        if (h_.backbone == trellis) {
            if (h_.profile != 0) n_profile = n_heads * dim * (key_ ? 4 : 2) + (n_heads + 1) * 4;
            n_granules_ = key_ ? dim / 4 : wide_dim / 16;
            section_bytes_ = round_up(4 + dim + (key_ ? dim : 64) + (n_granules_ + 1) / 2, 4);
            n_sections = n_heads * ((n + 127) / 128) * section_bytes_;
            n_codes = bytes_.n - std::min<size_t>(h_.codes, bytes_.n);  // to the end
            n_planes_ = static_cast<size_t>(
                static_cast<double>(h_.rate) * static_cast<double>(n_heads * n_granules_) + 1e-3);
        } else if (coded) {
            const size_t depth = key_ ? dim : n, in_word = 32 / h_.bits;
            words_ = h_.bits == 3 ? (depth + 31) / 32 * 3 : (depth + in_word - 1) / in_word;
            n_codes = 4 * n_heads * words_ * (key_ ? wide_n : wide_dim);
            n_groups_ =
                h_.backbone == kcvt ? 1 : ((h_.backbone == kivi && key_ ? n : dim) + h_.group - 1) / h_.group;
            if (h_.backbone == kcvt) {
                n_scales = 2 * (key_ ? n_heads * dim : n);
            } else {
                n_scales = 2 * n_heads * n_groups_ * (h_.backbone == kivi && key_ ? dim : n);
            }
        } else {
            n_codes = n_heads * n * wide_dim * h_.bits / 8;
        }
        demand(coded || (h_.rank == 0 && h_.n_outliers == 0), "parts that this backbone has not");
        const size_t index = h_.n_outliers > 0 ? h_.index_bytes : 0;
        size_t next = 128;
        const auto take = [&](Bytes* part, size_t offset, size_t n_bytes) {
            demand(offset == (n_bytes == 0 ? 0 : next), "place of a part");
            *part = bytes_.part(offset, n_bytes);
            const size_t end = next + n_bytes;
            next = round_up(end, 64);
            demand(bytes_.part(end, next - end).zero(), "bytes between parts");
        };
        take(&profile_, h_.profile, n_profile);
        take(&sections_, h_.sections, n_sections);
        take(&codes_, h_.codes, n_codes);
        take(&scales_, h_.scales, n_scales);
        take(&zeros_, h_.zeros, n_scales);
        take(&factor_a_, h_.factor_a, 2 * n_heads * h_.rank * wide_n);
        take(&factor_p_, h_.factor_p, 2 * n_heads * h_.rank * dim);
        take(&starts_, h_.outlier_starts, index > 0 ? 4 * (n_heads + 1) : 0);
        take(&counts_, h_.outlier_counts, index * n_heads * n);
        take(&channels_, h_.outlier_channels, index * h_.n_outliers);
        take(&outliers_, h_.outlier_values, size_t{2} * h_.n_outliers);
        demand(next == bytes_.n, "bytes behind the last part");
    }

    double raw(size_t head, size_t t, size_t c) const {
        const size_t i = (head * h_.n_tokens + t) * round_up(h_.dim, 16) + c;
        return h_.backbone == raw16 ? codes_.half(i) : static_cast<double>(codes_.item<float>(i));
    }

    // The code at place `depth` of its lane, in a plane of `bits` bits.
    uint32_t field(size_t word, size_t depth, uint32_t bits) const {
        const size_t d = depth % (32 / bits);
        return codes_.item<uint32_t>(word) >> (8 * (d % 4) + bits * (d / 4)) & ((1u << bits) - 1);
    }

    uint32_t code(size_t head, size_t t, size_t c) const {
        const uint32_t bits = h_.bits;
        const size_t depth = key_ ? c : t, unit = depth / 32;
        size_t first, step;  // of the words of the lane
        if (key_) {
            first = (head * round_up(h_.n_tokens, 16) + t / 16 * 16) * words_ + t % 16;
            step = 16;
        } else {
            step = round_up(h_.dim, 16);
            first = head * words_ * step + c;
        }
        if (bits != 3) return field(first + depth / (32 / bits) * step, depth, bits);
        const size_t low = key_ ? depth / 16 : 3 * unit + depth % 32 / 16;
        const size_t high = key_ ? words_ / 3 * 2 + unit : 3 * unit + 2;
        return field(first + low * step, depth, 2) | field(first + high * step, depth, 1) << 2;
    }

    // Codes of lanes and fields beyond the shape.
    void check_padding(size_t head) const {
        const size_t whole = h_.bits == 3 ? 32 : 32 / h_.bits;
        const size_t n = round_up(h_.n_tokens, key_ ? 16 : whole), dim = round_up(h_.dim, key_ ? whole : 16);
        for (size_t t = 0; t < n; ++t) {
            for (size_t c = t < h_.n_tokens ? h_.dim : 0; c < dim; ++c)
                demand(code(head, t, c) == 0, "codes beyond the shape");
        }
    }

    double dense(size_t head, size_t t, size_t c) const {
        size_t i;
        if (h_.backbone == kcvt) {
            i = key_ ? head * h_.dim + c : t;
        } else if (h_.backbone == kivi && key_) {
            i = (head * n_groups_ + t / h_.group) * h_.dim + c;
        } else {
            i = (head * n_groups_ + c / h_.group) * h_.n_tokens + t;
        }
        return code(head, t, c) * scales_.half(i) + zeros_.half(i);
    }

    void add_low_rank(size_t head, Tokens* out) const {
        for (size_t r = head * h_.rank; r < (head + 1) * h_.rank; ++r) {
            for (size_t c = 0; c < out->dim; ++c) {
                const double p = factor_p_.half(r * out->dim + c);
                for (size_t t = 0; t < out->n; ++t)
                    out->at(t, head, c) += factor_a_.half(r * round_up(out->n, 16) + t) * p;
            }
        }
    }

    void add_outliers(Tokens* out) const {
        const auto index = [&](Bytes all, size_t i) -> size_t {
            return h_.index_bytes == 2 ? all.item<uint16_t>(i) : all.item<uint8_t>(i);
        };
        size_t at = 0;
        for (size_t head = 0; head < out->n_heads; ++head) {
            demand(starts_.item<uint32_t>(head) == at, "first outlier of a head");
            for (size_t t = 0; t < out->n; ++t) {
                size_t least = 0;
                for (size_t left = index(counts_, head * out->n + t); left > 0; --left, ++at) {
                    const size_t c = index(channels_, at);
                    demand(c >= least && c < out->dim, "channel of an outlier");
                    out->at(t, head, c) += outliers_.half(at);
                    least = c + 1;
                }
            }
        }
        demand(starts_.item<uint32_t>(out->n_heads) == at && h_.n_outliers == at, "number of outliers");
    }

    // Sections of 128 tokens, one after another.
    void add_trellis(size_t head, Bytes profile, Tokens* out) const {
        const size_t dim = out->dim, n_sections = (out->n + 127) / 128, own_bytes = dim * (key_ ? 4 : 2);
        demand(profile.n == out->n_heads * own_bytes + (out->n_heads + 1) * 4, "size of a profile");
        const Bytes own = profile.part(head * own_bytes, own_bytes);  // mean, order
        const Bytes first_planes = profile.part(out->n_heads * own_bytes, (out->n_heads + 1) * 4);
        // Of a block that was encoded again, in proportion.
        const size_t n_given = first_planes.item<uint32_t>(out->n_heads),
                     n_all = std::min<size_t>(n_planes_, n_given);
        const auto first_of = [&](size_t i) {
            const size_t first = first_planes.item<uint32_t>(i);
            return n_given == n_all ? first : first * n_all / n_given;
        };
        const size_t first_plane = first_of(head), n_planes = first_of(head + 1) - first_plane;
        const size_t granule = key_ ? 4 : 16, plane_bytes = key_ ? 64 : 256;
        const size_t third_at = 4 + dim, widths_at = third_at + (key_ ? dim : 64);
        for (size_t s = 0; s < n_sections; ++s) {
            const Bytes side = sections_.part((head * n_sections + s) * section_bytes_, section_bytes_);
            const Bytes zeros = side.part(third_at, widths_at - third_at), gains = zeros;
            const Bytes widths = side.part(widths_at, side.n - widths_at);
            int origin = side.get<int8_t>(2);
            demand(side.get<uint8_t>(3) == 0 && (origin == 0 || (!key_ && h_.version == 2)),
                   "bytes behind the base");
            if (h_.version == 1) origin = -8;
            demand(key_ || (origin >= -32 && origin <= 16), "origin of the gains");
            for (size_t i = n_granules_; i < 2 * widths.n; ++i)
                demand(widths.nibble(i) == 0, "bytes behind the widths");
            size_t plane = first_plane * n_sections + s * n_planes;
            const size_t end = plane + n_planes, t0 = 128 * s, n = std::min<size_t>(128, out->n - t0);
            for (size_t place = 0; place < dim; ++place) {
                const uint32_t width = widths.nibble(place / granule);
                demand(width != 1 || h_.version == 2, "a width of 1 in version 1");
                demand(plane + width <= end, "widths exceed the planes of a section");
                const double scale = std::exp2((side.get<int16_t>(0) + side.get<uint8_t>(4 + place)) / 16.0);
                const std::vector<int> levels = levels_of(plane, place % granule, width, n);
                const size_t c = key_ ? own.item<uint16_t>(dim + place) : place;
                demand(c < dim, "order of the channels");
                double base = 0.0;
                if (key_) base = own.half(c) + zeros.get<int8_t>(place) * scale * zero_unit(width);
                for (size_t t = 0; t < n; ++t)
                    out->at(t0 + t, head, c) = base + scale * levels[t];
                if (place % granule == granule - 1 || place == dim - 1) plane += width;
            }
            demand(codes_.part(plane * plane_bytes, (end - plane) * plane_bytes).zero(), "unused planes");
            for (size_t t = 0; !key_ && t < n; ++t) {
                double* y = &out->at(t0 + t, head, 0);
                turn(y, dim);
                const double gain = std::exp2((static_cast<int>(gains.nibble(t)) + origin) / 4.0);
                for (size_t c = 0; c < dim; ++c)
                    y[c] = (h_.version == 1 ? 1.0 : gain) * own.half(c) + gain * y[c];
            }
        }
        const size_t all = n_all * n_sections * plane_bytes;
        demand(codes_.part(all, codes_.n - all).zero(), "planes of no head");
    }

    // Of channel c of a granule, whose planes begin at `plane`.
    std::vector<int> levels_of(size_t plane, size_t c, uint32_t width, size_t n) const {
        const auto bit = [&](size_t at, size_t t) -> uint32_t {
            const size_t word = key_ ? at * 16 + t / 8 : at * 64 + t / 32 * 16 + c;
            return codes_.item<uint32_t>(word) >> (key_ ? 8 * c + t % 8 : t % 32) & 1u;
        };
        std::vector<int> out(n);
        uint32_t before = 0, before_that = 0;
        for (size_t t = 0; width > 0 && t < n; ++t) {
            const uint32_t path = bit(plane, t);
            uint32_t free = 0;
            for (uint32_t i = 1; i < width; ++i)
                free |= bit(plane + i, t) << (i - 1);
            out[t] = level(key_, width, free << 2 | (path ^ before_that) << 1 | before);
            before_that = before;
            before = path;
        }
        return out;
    }

    // The Hadamard transform of the largest power of two that divides dim, which is its own inverse.
    static void turn(double* y, size_t dim) {
        size_t half = 1;
        for (; dim % (2 * half) == 0; half *= 2) {
            for (size_t i = 0; i < dim; ++i) {
                if ((i & half) != 0) continue;
                const double low = y[i], high = y[i + half];
                y[i] = low + high;
                y[i + half] = low - high;
            }
        }
        for (size_t i = 0; i < dim; ++i)
            y[i] /= std::sqrt(static_cast<double>(half));
    }

    Bytes bytes_;
    BlockHeader h_;
    bool key_;
    Bytes profile_, sections_, codes_, scales_, zeros_, factor_a_, factor_p_;
    Bytes starts_, counts_, channels_, outliers_;
    size_t words_ = 0;          // of codes in a lane
    size_t n_groups_ = 0;       // along tokens or channels
    size_t n_granules_ = 0;     // of a trellis
    size_t n_planes_ = 0;       // likewise, of a section of all heads
    size_t section_bytes_ = 0;  // likewise, of one head's side information
};

class Reader {
  public:
    explicit Reader(const std::vector<unsigned char>& file) : file_{file.data(), file.size()} {}

    State read() {
        check_header();
        check_table();
        for (uint32_t i = 0; i < header_.n_layers; ++i)
            read_layer(i);
        if (const std::vector<Section> extra = all_of(0, extra_kind); !extra.empty()) {
            const Bytes bytes = bytes_of(extra[0]);
            state_.extra.assign(bytes.data, bytes.data + bytes.n);
        }
        return std::move(state_);
    }

  private:
    void check_header() {
        header_ = file_.get<FileHeader>(0);
        demand(std::memcmp(header_.magic, "GVKSTATE", 8) == 0, "magic");
        demand(header_.byte_order == 0x01020304, "byte order");
        demand((header_.version == 1 || header_.version == 2) && header_.block_version >= 1 &&
                   header_.block_version <= 2,
               "version");
        demand(header_.checksum == xxh64(file_.data, 504), "checksum of the header");
        demand(header_.n_bytes == file_.n && file_.n % 64 == 0, "size of the file");
        demand((header_.flags & ~3u) == 0 && header_.rope_interleaved <= 1, "flags");
        demand(file_.part(392, 112).zero(), "reserved fields of the header");
        demand(header_.rope_pairs > 0 || header_.rope_checksum == xxh64(file_.data, 0), "no frequencies");
        demand(header_.spec[127] == 0, "spec");
        read_shapes();
        state_.rates_chosen = (header_.flags & 1) != 0;
        state_.spec = header_.spec;
        demand(file_.part(128 + state_.spec.size(), 256 - state_.spec.size()).zero(), "end of the spec");
    }

    // Of all layers at once, or one by one behind the header.
    void read_shapes() {
        Layer layer;
        layer.n_heads = header_.n_kv_heads;
        layer.key_dim = header_.key_dim;
        layer.value_dim = header_.value_dim;
        state_.layers.assign(header_.n_layers, layer);
        if (header_.version == 1) {
            demand(header_.dims_checksum == 0 && layer.n_heads > 0, "shape of the layers");
            return;
        }
        demand(layer.n_heads == 0 && layer.key_dim == 0 && layer.value_dim == 0, "two shapes of a layer");
        const Bytes shapes = file_.part(512, 12 * size_t{header_.n_layers});
        demand(header_.dims_checksum == xxh64(shapes.data, shapes.n), "checksum of the shapes");
        table_at_ = round_up(512 + shapes.n, 64);
        demand(file_.part(512 + shapes.n, table_at_ - 512 - shapes.n).zero(), "bytes behind the shapes");
        bool differ = false;
        for (size_t i = 0; i < header_.n_layers; ++i) {
            Layer& of = state_.layers[i];
            of.n_heads = shapes.item<uint32_t>(3 * i);
            of.key_dim = shapes.item<uint32_t>(3 * i + 1);
            of.value_dim = shapes.item<uint32_t>(3 * i + 2);
            demand((of.n_heads == 0) == (of.key_dim == 0) && (of.n_heads == 0) == (of.value_dim == 0),
                   "half of a shape");
            differ |= std::memcmp(shapes.part(12 * i, 12).data, shapes.data, 12) != 0;
        }
        demand(differ, "a table of shapes that are all alike");
        saw("shapes of layers");
    }

    // Every section is where the ones before it say, and whole.
    void check_table() {
        const Bytes table = file_.part(table_at_, 64 * size_t{header_.n_sections});
        demand(header_.table_checksum == xxh64(table.data, table.n), "checksum of the table");
        uint64_t next = table_at_ + table.n;
        for (uint32_t i = 0; i < header_.n_sections; ++i) {
            const Section s = table.item<Section>(i);
            demand(s.kind >= layer_kind && s.kind <= squares_kind, "a kind that is not known");
            demand(s.kind == extra_kind ? s.layer == 0 : s.layer < header_.n_layers, "layer of a section");
            demand(s.reserved[0] == 0 && s.reserved[1] == 0, "reserved fields of a section");
            if (is_block(s)) {
                demand((s.kind == value_block) == (!table_.empty() && table_.back().kind == key_block),
                       "blocks come in pairs");
            } else {
                demand(s.first == 0 && s.n_tokens == 0 && s.shift == 0, "tokens of what is no block");
            }
            if (!table_.empty()) {
                const auto rank = [](const Section& x) {
                    return std::pair(x.kind == extra_kind ? UINT32_MAX : x.layer,
                                     is_block(x) ? uint32_t{key_block} : x.kind);
                };
                const auto before = rank(table_.back()), now = rank(s);
                demand(is_block(s) ? before <= now : before < now, "order of the sections");
            }
            // Of a block that was cut: the same bytes as in the pair before.
            const bool again = is_block(s) && table_.size() >= 2 && is_block(table_[table_.size() - 2]) &&
                               table_[table_.size() - 2].layer == s.layer &&
                               table_[table_.size() - 2].kind == s.kind &&
                               table_[table_.size() - 2].offset == s.offset;
            if (!again) {
                demand(s.offset == next, "place of a section");
                next = round_up(s.offset + s.n_bytes, 64);
                const Bytes behind = file_.part(s.offset + s.n_bytes, next - s.offset - s.n_bytes);
                demand(behind.zero(), "bytes between sections");
            }
            const Bytes bytes = bytes_of(s);
            demand(s.n_bytes > 0 && xxh64(bytes.data, bytes.n) == s.checksum, "checksum of a section");
            table_.push_back(s);
        }
        demand(next == file_.n, "bytes behind the last section");
    }

    static bool is_block(const Section& s) { return s.kind == key_block || s.kind == value_block; }
    Bytes bytes_of(const Section& s) const { return file_.part(s.offset, s.n_bytes); }
    std::vector<Section> all_of(uint32_t layer, uint32_t kind) const {
        std::vector<Section> out;
        for (const Section& s : table_) {
            if (s.layer == layer && s.kind == kind) out.push_back(s);
        }
        return out;
    }
    // The one section of this kind; empty when there is none.
    Bytes one(uint32_t layer, uint32_t kind) const {
        const std::vector<Section> all = all_of(layer, kind);
        return all.empty() ? Bytes{} : bytes_of(all[0]);
    }
    void saw(const std::string& what) {
        if (std::find(state_.seen.begin(), state_.seen.end(), what) == state_.seen.end())
            state_.seen.push_back(what);
    }

    void read_layer(uint32_t i) {
        Layer& layer = state_.layers[i];
        LayerCounts counts = {};
        if (const Bytes bytes = one(i, layer_kind); bytes.n > 0) {
            demand(bytes.n == sizeof(counts), "size of a layer");
            counts = bytes.get<LayerCounts>(0);
            demand((counts.flags & ~15u) == 0 && counts.reserved == 0, "reserved fields of a layer");
        }
        layer.n_sinks = counts.n_sinks;
        layer.n_forgotten = counts.n_forgotten;
        layer.n_buffered = counts.n_buffered;
        layer.n_tokens = counts.n_sinks + counts.n_forgotten + counts.n_closed + counts.n_buffered;
        layer.shifts.assign(counts.n_sinks + counts.n_forgotten, 0);
        for (const Section& s : all_of(i, key_block))
            layer.shifts.insert(layer.shifts.end(), s.n_tokens, s.shift);
        demand(layer.shifts.size() + layer.n_buffered == layer.n_tokens, "number of tokens");
        layer.shifts.resize(layer.n_tokens, 0);
        if (layer.n_heads == 0) {
            demand(counts.flags == 0 && layer.n_tokens == 0, "tokens of a layer without keys");
            return;
        }
        read_tensor(i, layer, true, layer.key_dim, &layer.keys);
        read_tensor(i, layer, false, layer.value_dim, &layer.values);
        if (const Bytes queries = one(i, queries_kind); queries.n > 0) {
            layer.n_queries = queries.get<uint32_t>(0);
            const size_t n_heads = queries.get<uint32_t>(8);
            demand(layer.n_queries >= 1 && layer.n_queries <= 64 && n_heads % layer.n_heads == 0,
                   "number of queries");
            demand(queries.n == 576 + layer.n_queries * n_heads * layer.key_dim * 4, "size of queries");
            demand(queries.part(528, 48).zero(), "reserved fields of queries");
            demand(queries.part(16 + 8 * layer.n_queries, 8 * (64 - layer.n_queries)).zero(),
                   "unused queries");
            saw("queries");
        }
        layer.n_pairs = header_.rope_pairs;
        layer.interleaved = header_.rope_interleaved == 1;
        if (const Bytes rope = one(i, rope_kind); rope.n > 0) {
            demand((counts.flags & 8) != 0, "a rope of keys that have not moved");
            layer.n_pairs = rope.get<uint32_t>(0);
            layer.interleaved = rope.get<uint32_t>(4) == 1;
            demand(rope.n == 64 + 8 * layer.n_pairs && rope.get<uint32_t>(4) <= 1, "size of a rope");
            demand(layer.n_pairs <= layer.key_dim / 2, "pairs of a rope");
            demand(rope.part(8, 56).zero(), "reserved fields of a rope");
            for (size_t pair = 0; pair < layer.n_pairs; ++pair)
                layer.frequencies.push_back(rope.get<double>(64 + 8 * pair));
            saw("rope of a layer");
        }
        if (const Bytes squares = one(i, squares_kind); squares.n > 0) {
            const size_t n_rows = squares.get<uint64_t>(0), n_channels = layer.n_heads * layer.key_dim;
            demand(squares.n == 64 + 8 * n_channels + n_rows * (24 + 4 * n_channels), "size of squares");
            demand(squares.part(16, 48).zero(), "reserved fields of squares");
            for (size_t row = 0; row < n_rows; ++row) {
                const size_t at = 64 + 8 * n_channels + 24 * row;
                const auto token = squares.get<uint64_t>(at), seen = squares.get<uint64_t>(at + 8);
                demand(token < seen && seen <= layer.n_tokens, "tokens of squares");
                demand(row == 0 || token > squares.get<uint64_t>(at - 24), "order of squares");
            }
            saw("squares of queries");
        }
    }

    void read_tensor(uint32_t i, const Layer& layer, bool key, size_t dim, std::vector<float>* out) {
        const std::string name = key ? "key " : "value ";
        const uint32_t value = key ? 0 : 1;
        read_rows(one(i, key_sinks + value), layer.n_sinks * layer.n_heads, dim, out);
        const float unknown = std::numeric_limits<float>::quiet_NaN();
        out->insert(out->end(), layer.n_forgotten * layer.n_heads * dim, unknown);
        Bytes profile = one(i, key_profiles + value);
        if (profile.n > 0) saw(name + "profiles apart");
        const std::vector<Section> sections = all_of(i, key_block + value), keys = all_of(i, key_block);
        demand(sections.size() == keys.size(), "blocks come in pairs");
        Tokens tokens(0, 0, 0);
        for (size_t at = 0; at < sections.size(); ++at) {
            const Section& s = sections[at];
            demand(s.first == keys[at].first && s.n_tokens == keys[at].n_tokens && s.shift == keys[at].shift,
                   "a pair that is not alike");
            const bool again = at > 0 && sections[at - 1].offset == s.offset;
            if (again) saw("cut block");
            const Block block(bytes_of(s), key || (header_.flags & 2) != 0);  // latents are keys
            const BlockHeader& header = block.header();
            demand(header.n_heads == layer.n_heads && header.dim == dim, "shape of a block");
            demand(s.n_tokens > 0 && size_t{s.first} + s.n_tokens <= header.n_tokens, "tokens of a block");
            demand(at == 0 || again || block.profile().n == 0, "a profile that is not in the first block");
            if (profile.n == 0) profile = block.profile();
            saw_block(name, header);
            if (!again) tokens = block.decode(profile);
            const size_t stride = tokens.n_heads * dim;
            out->insert(out->end(), tokens.x.begin() + static_cast<std::ptrdiff_t>(s.first * stride),
                        tokens.x.begin() + static_cast<std::ptrdiff_t>((s.first + s.n_tokens) * stride));
        }
        if (const Bytes planes = one(i, key_planes + value); planes.n > 0) {
            demand(planes.n == 4 * (size_t{layer.n_heads} + 1), "size of the planes");
            if (profile.n > 0) {
                demand(std::memcmp(planes.data, profile.data + profile.n - planes.n, planes.n) == 0,
                       "planes of the layer and of its profile differ");
            }
            saw(name + "chosen planes");
        }
        read_rows(one(i, key_buffer + value), layer.n_buffered * layer.n_heads, dim, out);
    }

    // Rows of n heads. How wide they are follows from their size.
    void read_rows(Bytes rows, size_t n, size_t dim, std::vector<float>* out) {
        const size_t stride = round_up(dim, 16), n_entries = n * stride;
        demand(rows.n == 2 * n_entries || rows.n == 4 * n_entries, "size of rows");
        for (size_t i = 0; i < n_entries; ++i) {
            const double x =
                rows.n == 2 * n_entries ? rows.half(i) : static_cast<double>(rows.item<float>(i));
            if (i % stride < dim) out->push_back(static_cast<float>(x));
            demand(i % stride < dim || x == 0.0, "padding of rows");
        }
    }

    void saw_block(const std::string& name, const BlockHeader& header) {
        const char* backbones[] = {"raw32", "raw16", "kivi", "kcvt", "token", "trellis"};
        const std::string backbone = backbones[header.backbone];
        saw(name + backbone);
        if (header.backbone >= kivi && header.backbone < trellis)
            saw(name + std::to_string(header.bits) + " bits");
        if (header.rank > 0) saw(name + "low rank");
        if (header.n_outliers > 0) saw(name + "outliers");
    }

    Bytes file_;
    FileHeader header_ = {};
    size_t table_at_ = 512;
    std::vector<Section> table_;
    State state_;
};

}  // namespace

#ifdef GEARKV_TEST_XXHASH
std::uint64_t xxh64(const unsigned char* data, std::size_t n) {
    return XXH64(data, n, 0);
}
#else
std::uint64_t xxh64(const unsigned char* data, std::size_t n) {
    const uint64_t p1 = 0x9E3779B185EBCA87, p2 = 0xC2B2AE3D27D4EB4F, p3 = 0x165667B19E3779F9,
                   p4 = 0x85EBCA77C2B2AE63, p5 = 0x27D4EB2F165667C5;
    const auto round = [&](uint64_t sum, uint64_t x) { return std::rotl(sum + x * p2, 31) * p1; };
    const Bytes bytes = {data, n};
    uint64_t lanes[4] = {p1 + p2, p2, 0, 0 - p1}, hash = p5;
    size_t at = 0;
    if (n >= 32) {
        for (; at + 32 <= n; at += 32) {
            for (size_t i = 0; i < 4; ++i)
                lanes[i] = round(lanes[i], bytes.get<uint64_t>(at + 8 * i));
        }
        hash = std::rotl(lanes[0], 1) + std::rotl(lanes[1], 7) + std::rotl(lanes[2], 12) +
               std::rotl(lanes[3], 18);
        for (const uint64_t lane : lanes)
            hash = (hash ^ round(0, lane)) * p1 + p4;
    }
    hash += n;
    for (; at + 8 <= n; at += 8)
        hash = std::rotl(hash ^ round(0, bytes.get<uint64_t>(at)), 27) * p1 + p4;
    for (; at + 4 <= n; at += 4)
        hash = std::rotl(hash ^ bytes.get<uint32_t>(at) * p1, 23) * p2 + p3;
    for (; at < n; ++at)
        hash = std::rotl(hash ^ bytes.get<uint8_t>(at) * p5, 11) * p1;
    hash = (hash ^ hash >> 33) * p2;
    hash = (hash ^ hash >> 29) * p3;
    return hash ^ hash >> 32;
}
#endif

State decode(const std::vector<unsigned char>& file) {
    return Reader(file).read();
}

}  // namespace tiny
