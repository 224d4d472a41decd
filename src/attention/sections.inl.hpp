// What surrounds the codes of a trellis section (format/trellis.hpp), for one vector level: scales, zeros and
// gains folded into queries, weights and sums.
#pragma once

#include "format/trellis.hpp"
#include "kernels/kernels.hpp"
#include "kernels/unroll.inl.hpp"

namespace gearkv {
namespace {

// exp2_sixteenths(base + code) of consecutive codes.
template <class L>
class ScaleReader {
  public:
    using Float = typename L::Float;

    explicit ScaleReader(int base) : base_(base), fractions_(L::load_float_table(sixteenth_powers)) {}
    // Reads L::width codes.
    [[gnu::always_inline]] Float read(const std::uint8_t* codes) const {
        if (base_ < 16 - bias || base_ + 255 >= 254 * 16 - bias) return read_each(codes);
        const auto at = L::load_bytes(codes) + L::broadcast_word(static_cast<std::uint32_t>(base_ + bias));
        const auto exponent = L::template shift_left<23>(L::template shift_right<4>(at));
        return L::from_bits(exponent) *
               L::lookup_float(fractions_, L::float_index(at & L::broadcast_word(15)));
    }

  private:
    static constexpr int bias = 127 * 16;

    // Where some scales are no normal floats.
    [[gnu::noinline]] Float read_each(const std::uint8_t* codes) const {
        float lanes[L::width];
        for (std::size_t i = 0; i < L::width; ++i)
            lanes[i] = exp2_sixteenths(base_ + codes[i]);
        return L::load(lanes);
    }

    int base_;
    typename L::FloatTable fractions_;
};

constexpr float zero_units[16] = {zero_unit(0), zero_unit(1), zero_unit(2), zero_unit(3),
                                  zero_unit(4), zero_unit(5), zero_unit(6)};
constexpr float key_spreads[16] = {key_spread(0), key_spread(1), key_spread(2), key_spread(3),
                                   key_spread(4), key_spread(5), key_spread(6)};

// The widths of consecutive channels, of granules of four.
template <class L>
class WidthReader {
  public:
    WidthReader() : shifts_(L::load_words(lane_shifts)) {}
    [[gnu::always_inline]] auto read(const std::uint8_t* nibbles, std::size_t c) const {
        std::uint16_t widths;  // of 16 channels
        __builtin_memcpy(&widths, nibbles + c / lane_tile * 2, sizeof(widths));
        return L::float_index(L::shift_right_by(L::broadcast_word(widths >> (c % lane_tile)), shifts_) &
                              L::broadcast_word(15));
    }

  private:
    static constexpr std::uint32_t lane_shifts[lane_tile] = {0, 0, 0, 0, 4,  4,  4,  4,
                                                             8, 8, 8, 8, 12, 12, 12, 12};
    decltype(L::load_words(lane_shifts)) shifts_;
};

template <class L, std::size_t n_rows>
void fold_keys_rows(const FoldKeys& args, std::size_t first_row) {
    using Float = typename L::Float;
    const WidthReader<L> widths;
    const typename L::FloatTable units = L::load_float_table(zero_units);
    const ScaleReader<L> scales(args.base);
    const std::size_t stride = args.query_stride;
    const float* query = args.query + first_row * stride;
    float* to = args.folded + first_row * stride;
    Float bias[n_rows];
    unroll<n_rows>([&](auto row) GEARKV_INLINE { bias[row] = L::broadcast(0.0f); });
    for (std::size_t c = 0; c < args.dim; c += L::width) {
        const Float unit = L::lookup_float(units, widths.read(args.widths, c));
        const Float scale = scales.read(args.scales + c), zero = L::load_signed(args.zeros + c) * unit;
        unroll<n_rows>([&](auto row) GEARKV_INLINE {
            const Float folded = L::load(query + row * stride + c) * scale;
            L::store(to + row * stride + c, folded);
            bias[row] = L::fma(folded, zero, bias[row]);
        });
    }
    unroll<n_rows>([&](auto row) GEARKV_INLINE { args.bias[first_row + row] += L::sum(bias[row]); });
}

template <class L>
void fold_keys(const FoldKeys& args) {
    for_rows<max_rows>(args.n_rows, [&](std::size_t row, auto n) { fold_keys_rows<L, n.value>(args, row); });
}

template <class L, std::size_t n_rows>
void estimate_keys_rows(const EstimateKeys& args, std::size_t first_row) {
    using Float = typename L::Float;
    constexpr std::size_t n_ahead = 8, line = 64;
    const SectionLayout at = section_layout(TensorKind::key, args.dim);
    const WidthReader<L> widths;
    const typename L::FloatTable units = L::load_float_table(zero_units);
    const typename L::FloatTable spreads = L::load_float_table(key_spreads);
    const float* query = args.query + first_row * args.query_stride;
    for (std::size_t i = 0; i < args.n_sections; ++i) {
        const unsigned char* side = args.sections + i * args.stride;
        if (first_row == 0 && i + n_ahead < args.n_sections) {
            for (std::size_t byte = 0; byte < args.stride; byte += line)
                __builtin_prefetch(side + n_ahead * args.stride + byte, 0, 3);
        }
        std::int16_t base;
        __builtin_memcpy(&base, side + at.base, sizeof(base));
        const ScaleReader<L> scales(base);
        Float mean[n_rows], spread[n_rows];
        unroll<n_rows>([&](auto row) GEARKV_INLINE { mean[row] = spread[row] = L::broadcast(0.0f); });
        for (std::size_t c = 0; c < args.dim; c += L::width) {
            const auto width = widths.read(side + at.widths, c);
            const Float scale = scales.read(side + at.scales + c);
            const Float zero = L::load_signed(reinterpret_cast<const std::int8_t*>(side + at.zeros) + c) *
                               L::lookup_float(units, width);
            const Float range = L::lookup_float(spreads, width);
            unroll<n_rows>([&](auto row) GEARKV_INLINE {
                const Float folded = L::load(query + row * args.query_stride + c) * scale;
                mean[row] = L::fma(folded, zero, mean[row]);
                const Float wide = folded * range;
                spread[row] = L::fma(wide, wide, spread[row]);
            });
        }
        unroll<n_rows>([&](auto row) GEARKV_INLINE {
            const std::size_t to = (first_row + row) * args.out_stride + i;
            args.mean[to] += L::sum(mean[row]);
            args.spread[to] += L::sum(spread[row]);
        });
    }
}

template <class L>
void estimate_keys(const EstimateKeys& args) {
    // A few rows take as long as reading scales and widths.
    if (args.n_rows == 3) return estimate_keys_rows<L, 3>(args, 0);
    for_rows<max_rows>(args.n_rows,
                       [&](std::size_t row, auto n) { estimate_keys_rows<L, n.value>(args, row); });
}

template <class L, std::size_t n_rows, bool sums_scaled>
void fold_weights_rows(const FoldWeights& args, std::size_t first_row, const std::uint8_t* nibbles) {
    using Float = typename L::Float;
    const typename L::FloatTable table = L::load_float_table(args.gain_of);
    const std::size_t stride = args.stride;
    const float* from = args.weight + first_row * stride;
    float* to = args.scaled + first_row * stride;
    Float sums[n_rows];
    unroll<n_rows>([&](auto row) GEARKV_INLINE { sums[row] = L::broadcast(0.0f); });
    for (std::size_t t = 0; t < section_tokens; t += L::width) {
        const Float gain = L::lookup_float(table, L::float_index(L::load_bytes(nibbles + t)));
        unroll<n_rows>([&](auto row) GEARKV_INLINE {
            const Float weight = L::load(from + row * stride + t);
            const Float scaled = weight * gain;
            L::store(to + row * stride + t, scaled);
            sums[row] = sums[row] + (sums_scaled ? scaled : weight);
        });
    }
    unroll<n_rows>([&](auto row) GEARKV_INLINE { args.sum[first_row + row] += L::sum(sums[row]); });
}

template <class L>
void fold_weights(const FoldWeights& args) {
    std::uint8_t nibbles[section_tokens];
    read_nibbles(nibbles, args.gains, section_tokens);
    for_rows<max_rows>(args.n_rows, [&](std::size_t row, auto n) {
        args.sums_scaled ? fold_weights_rows<L, n.value, true>(args, row, nibbles)
                         : fold_weights_rows<L, n.value, false>(args, row, nibbles);
    });
}

template <class L, std::size_t n_rows>
void add_scaled_rows(const AddScaled& args, std::size_t first_row) {
    const ScaleReader<L> scales(args.base);
    const std::size_t stride = args.stride;
    const float* x = args.x + first_row * stride;
    float* out = args.out + first_row * stride;
    for (std::size_t c = 0; c < args.dim; c += L::width) {
        const auto scale = scales.read(args.scales + c);
        unroll<n_rows>([&](auto row) GEARKV_INLINE {
            float* at = out + row * stride + c;
            L::store(at, L::fma(scale, L::load(x + row * stride + c), L::load(at)));
        });
    }
}

template <class L>
void add_scaled(const AddScaled& args) {
    for_rows<max_rows>(args.n_rows, [&](std::size_t row, auto n) { add_scaled_rows<L, n.value>(args, row); });
}

}  // namespace
}  // namespace gearkv
