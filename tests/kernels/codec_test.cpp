// The codec kernels of every level: exact ones against the scalar reference, sums against double.
#include "format/block.hpp"
#include "inputs.hpp"

namespace gearkv::test {
namespace {

const CodecKernels& reference() {
    return kernels_scalar()->codec;
}

float bits_to_float(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

std::uint32_t float_to_bits(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

TEST_CASE("every half becomes the float it stands for at every level") {
    std::vector<std::uint16_t> halves(65536);
    for (std::size_t i = 0; i < halves.size(); ++i)
        halves[i] = static_cast<std::uint16_t>(i);
    std::vector<float> expected(halves.size());
    reference().from_half(expected.data(), halves.data(), halves.size());
    for (std::uint32_t h = 0; h < 65536; ++h) {
        const int exponent = static_cast<int>(h >> 10 & 31);
        const int mantissa = static_cast<int>(h & 1023);
        const double sign = h >> 15 != 0 ? -1.0 : 1.0;
        if (exponent == 31) {
            REQUIRE((mantissa == 0 ? std::isinf(expected[h]) : std::isnan(expected[h])));
        } else {
            const double value = sign * (exponent == 0 ? std::ldexp(mantissa, -24)
                                                       : std::ldexp(mantissa + 1024, exponent - 25));
            REQUIRE(static_cast<double>(expected[h]) == value);
        }
        REQUIRE(std::signbit(expected[h]) == (sign < 0));
    }
    for (const Kernels* kernels : all_kernels()) {
        std::vector<float> out(halves.size());
        kernels->codec.from_half(out.data(), halves.data(), halves.size());
        CAPTURE(level_name(kernels->level));
        CHECK(first_difference(out.data(), expected.data(), out.size()) == out.size());
    }
}

// Floats around everything that rounding to half can depend on.
std::vector<float> floats_around_halves() {
    std::vector<float> x;
    for (std::uint32_t h = 0; h <= 0x7c00; ++h) {
        const auto half = static_cast<std::uint16_t>(h), next = static_cast<std::uint16_t>(h + 1);
        float value, above;
        reference().from_half(&value, &half, 1);
        reference().from_half(&above, &next, 1);
        const float middle = h < 0x7bff ? value / 2 + above / 2 : 65520.0f;
        for (float center : {value, middle}) {
            for (std::uint32_t offset : {0u, 1u, 2u}) {
                x.push_back(bits_to_float(float_to_bits(center) + offset));
                x.push_back(-x.back());
                if (float_to_bits(center) >= offset)
                    x.push_back(bits_to_float(float_to_bits(center) - offset));
            }
        }
    }
    for (std::uint32_t exponent = 0; exponent < 256; ++exponent) {
        for (std::uint32_t mantissa :
             {0u, 1u, 0x1fffu, 0x2000u, 0x3fffffu, 0x400000u, 0x400001u, 0x7fffffu}) {
            x.push_back(bits_to_float(exponent << 23 | mantissa));
            x.push_back(bits_to_float(0x80000000u | exponent << 23 | mantissa));
        }
    }
    return x;
}

TEST_CASE("floats round to the nearest half, ties to even, at every level") {
    std::vector<float> x = floats_around_halves();
    Random random(1);
    for (int i = 0; i < 200000; ++i)
        x.push_back(bits_to_float(static_cast<std::uint32_t>(random.bits())));
    std::vector<std::uint16_t> expected(x.size());
    reference().to_half(expected.data(), x.data(), x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        if (!std::isfinite(x[i])) continue;
        // The neighbours in half are no nearer; at the same distance they are odd.
        const double wanted = std::fabs(static_cast<double>(x[i]));
        const std::uint16_t h = expected[i] & 0x7fff;
        const auto distance = [&](std::uint32_t half) {
            if (half == 0x7c00) return std::fabs(65536.0 - wanted);
            float value;
            const auto half16 = static_cast<std::uint16_t>(half);
            reference().from_half(&value, &half16, 1);
            return std::fabs(static_cast<double>(value) - wanted);
        };
        const double found = distance(h);
        const double below = h > 0 ? distance(h - 1u) : found + 1;
        const double above = h < 0x7c00 ? distance(h + 1u) : found + 1;
        const bool is_even = h % 2 == 0;
        const bool is_nearest =
            (is_even ? found <= below : found < below) && (is_even ? found <= above : found < above);
        if (!is_nearest && !(h == 0x7c00 && wanted > 65536.0)) {
            CAPTURE(x[i], expected[i], found, below, above);
            REQUIRE(is_nearest);
        }
    }
    for (const Kernels* kernels : all_kernels()) {
        std::vector<std::uint16_t> out(x.size());
        kernels->codec.to_half(out.data(), x.data(), x.size());
        const std::size_t at = first_difference(out.data(), expected.data(), out.size());
        CAPTURE(level_name(kernels->level), at, at < x.size() ? x[at] : 0.0f);
        CHECK(at == out.size());
    }
}

TEST_CASE("half conversions stay inside their arrays at every length") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (std::size_t n : sizes_up_to(most_entries)) {
                GuardedArray<float> x(make_floats(n, Pattern::wide, n), place);
                GuardedArray<std::uint16_t> half(n, place);
                GuardedArray<float> back(n, place);
                kernels->codec.to_half(half.data(), x.data(), n);
                kernels->codec.from_half(back.data(), half.data(), n);
                std::vector<std::uint16_t> expected_half(n);
                std::vector<float> expected_back(n);
                reference().to_half(expected_half.data(), x.data(), n);
                reference().from_half(expected_back.data(), expected_half.data(), n);
                CAPTURE(level_name(kernels->level), place_name(place), n);
                CHECK(first_difference(half.data(), expected_half.data(), n) == n);
                CHECK(first_difference(back.data(), expected_back.data(), n) == n);
                CHECK((half.is_intact() && back.is_intact()));
            }
        }
    }
}

// Floats around everything that rounding to bfloat can depend on.
std::vector<float> floats_around_bfloats() {
    std::vector<float> x;
    for (std::uint32_t upper = 0; upper < 65536; ++upper) {
        for (const std::uint32_t lower : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
            x.push_back(bits_to_float(upper << 16 | lower));
    }
    return x;
}

TEST_CASE("floats round to the nearest bfloat, ties to even, and back exactly, at every level") {
    const std::vector<float> x = floats_around_bfloats();
    std::vector<std::uint16_t> expected(x.size());
    reference().to_bfloat(expected.data(), x.data(), x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::uint32_t bits = float_to_bits(x[i]);
        float back;
        reference().from_bfloat(&back, &expected[i], 1);
        REQUIRE(float_to_bits(back) == std::uint32_t{expected[i]} << 16);
        if (std::isnan(x[i])) {
            REQUIRE((std::isnan(back) && std::signbit(back) == std::signbit(x[i])));
            continue;
        }
        const std::uint32_t lower = bits & 0xffff, upper = bits >> 16;
        const bool up = lower > 0x8000 || (lower == 0x8000 && upper % 2 == 1);
        REQUIRE(expected[i] == (upper + up));
    }
    for (const Kernels* kernels : all_kernels()) {
        std::vector<std::uint16_t> out(x.size());
        kernels->codec.to_bfloat(out.data(), x.data(), x.size());
        const std::size_t at = first_difference(out.data(), expected.data(), out.size());
        CAPTURE(level_name(kernels->level), at, at < x.size() ? x[at] : 0.0f);
        CHECK(at == out.size());
        std::vector<float> back(x.size()), expected_back(x.size());
        kernels->codec.from_bfloat(back.data(), expected.data(), x.size());
        reference().from_bfloat(expected_back.data(), expected.data(), x.size());
        CHECK(std::memcmp(back.data(), expected_back.data(), x.size() * sizeof(float)) == 0);
    }
}

TEST_CASE("bfloat conversions and max_magnitude stay inside their arrays at every length") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (std::size_t n : sizes_up_to(most_entries)) {
                GuardedArray<float> x(make_floats(n, Pattern::wide, n), place);
                GuardedArray<std::uint16_t> bfloat(n, place);
                GuardedArray<float> back(n, place);
                kernels->codec.to_bfloat(bfloat.data(), x.data(), n);
                kernels->codec.from_bfloat(back.data(), bfloat.data(), n);
                std::vector<std::uint16_t> expected(n);
                std::vector<float> expected_back(n);
                reference().to_bfloat(expected.data(), x.data(), n);
                reference().from_bfloat(expected_back.data(), expected.data(), n);
                CAPTURE(level_name(kernels->level), place_name(place), n);
                CHECK(first_difference(bfloat.data(), expected.data(), n) == n);
                CHECK(first_difference(back.data(), expected_back.data(), n) == n);
                CHECK(kernels->codec.max_magnitude(bfloat.data(), n) ==
                      reference().max_magnitude(expected.data(), n));
                CHECK((bfloat.is_intact() && back.is_intact()));
            }
        }
    }
}

TEST_CASE("max_magnitude finds the largest wherever it stands") {
    for (const Kernels* kernels : all_kernels()) {
        for (std::size_t n : sizes_up_to(80)) {
            std::vector<std::uint16_t> x(n, 0x8123);
            CHECK(kernels->codec.max_magnitude(x.data(), n) == (n > 0 ? 0x123 : 0));
            for (std::size_t i = 0; i < n; ++i) {
                for (const unsigned most : {0x0124u, 0x8124u, 0x7c00u, 0xfc01u, 0x7fffu, 0xffffu}) {
                    x[i] = static_cast<std::uint16_t>(most);
                    CAPTURE(level_name(kernels->level), n, i, most);
                    REQUIRE(kernels->codec.max_magnitude(x.data(), n) == (most & 0x7fff));
                    REQUIRE(reference().max_magnitude(x.data(), n) == (most & 0x7fff));
                }
                x[i] = 0x8123;
            }
        }
    }
}

TEST_CASE("max_abs is the largest magnitude at every length") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (Pattern pattern : all_patterns) {
                for (std::size_t n : sizes_up_to(most_entries)) {
                    GuardedArray<float> x(make_floats(n, pattern, n), place);
                    float expected = 0.0f;
                    for (std::size_t i = 0; i < n; ++i)
                        expected = std::fmax(expected, std::fabs(x[i]));
                    CAPTURE(level_name(kernels->level), place_name(place), pattern_name(pattern), n);
                    CHECK(kernels->codec.max_abs(x.data(), n) == expected);
                }
            }
        }
    }
}

TEST_CASE("max_abs reports NaN and Inf wherever they stand") {
    const std::uint32_t specials[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00000u,
                                      0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu};
    for (const Kernels* kernels : all_kernels()) {
        for (std::size_t n : sizes_up_to(most_entries, 1)) {
            for (std::size_t at = 0; at < n; ++at) {
                std::vector<float> x = make_floats(n, Pattern::random, n);
                std::memcpy(&x[at], &specials[(at + n) % 8], sizeof(float));
                const float most = kernels->codec.max_abs(x.data(), n);
                if (most != std::numeric_limits<float>::infinity()) {
                    CAPTURE(level_name(kernels->level), n, at, specials[(at + n) % 8]);
                    CHECK(most == std::numeric_limits<float>::infinity());
                }
            }
        }
    }
}

// Rows of a case: [n_rows][stride] up to the end of the last padded row.
struct RowShape {
    std::size_t n_rows, n_cols, stride;
    std::size_t padded() const { return round_to(n_cols, 16); }
    std::size_t n_entries() const { return (n_rows - 1) * stride + padded(); }
    bool is_surplus(std::size_t entry) const {
        const std::size_t c = entry % stride;
        return c >= n_cols && c < padded();
    }
};

std::vector<RowShape> row_shapes() {
    std::vector<RowShape> shapes;
    for (std::size_t n_cols : sizes_up_to(most_entries, 1)) {
        for (std::size_t n_rows : {1, 2, 7})
            shapes.push_back({n_rows, n_cols, round_to(n_cols, 16) + n_rows % 3});
    }
    shapes.push_back({33, 128, 128});
    return shapes;
}

TEST_CASE("column_range is the smallest and largest of every column") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (const RowShape& shape : row_shapes()) {
                const Pattern pattern = all_patterns[shape.n_cols % 6];
                GuardedArray<float> x(make_floats(shape.n_entries(), pattern, shape.n_cols), place);
                GuardedArray<float> lo(shape.padded(), place), hi(shape.padded(), place);
                kernels->codec.column_range(lo.data(), hi.data(), x.data(), shape.stride, shape.n_rows,
                                            shape.n_cols);
                std::vector<float> low(shape.n_cols), high(shape.n_cols);
                for (std::size_t c = 0; c < shape.n_cols; ++c) {
                    low[c] = high[c] = x[c];
                    for (std::size_t r = 1; r < shape.n_rows; ++r) {
                        low[c] = std::fmin(low[c], x[r * shape.stride + c]);
                        high[c] = std::fmax(high[c], x[r * shape.stride + c]);
                    }
                    low[c] += 0.0f;
                    high[c] += 0.0f;
                }
                CAPTURE(level_name(kernels->level), place_name(place), shape.n_rows, shape.n_cols);
                CHECK(first_difference(lo.data(), low.data(), shape.n_cols) == shape.n_cols);
                CHECK(first_difference(hi.data(), high.data(), shape.n_cols) == shape.n_cols);
                CHECK((lo.is_intact() && hi.is_intact()));
            }
        }
    }
}

TEST_CASE("row_range is the smallest and largest of a row at every length") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (Pattern pattern : all_patterns) {
                for (std::size_t n : sizes_up_to(most_entries, 1)) {
                    GuardedArray<float> x(make_floats(n, pattern, 3 * n), place);
                    float lo = NAN, hi = NAN, low = x[0], high = x[0];
                    for (std::size_t i = 1; i < n; ++i) {
                        low = std::fmin(low, x[i]);
                        high = std::fmax(high, x[i]);
                    }
                    kernels->codec.row_range(&lo, &hi, x.data(), n);
                    CAPTURE(level_name(kernels->level), place_name(place), pattern_name(pattern), n);
                    CHECK(float_to_bits(lo) == float_to_bits(low + 0.0f));
                    CHECK(float_to_bits(hi) == float_to_bits(high + 0.0f));
                }
            }
        }
    }
}

// Entries with ties, values beyond the range on both sides, and ordinary ones.
std::vector<float> make_entries(std::size_t n, Pattern pattern, std::uint64_t seed, float scale, float zero) {
    std::vector<float> x = make_floats(n, pattern, seed);
    Random random(seed);
    for (float& value : x) {
        const auto steps = static_cast<float>(random.below(600)) * 0.5f - 10.0f;
        if (random.below(2) == 0) value = zero + steps * scale;
    }
    return x;
}

// What the codec asks for, in the plain words of its contract.
std::uint8_t expected_code(float x, float scale, float zero, float max_code) {
    if (scale == 0.0f) return 0;
    const volatile float shifted = x - zero;
    const volatile float steps = shifted / scale;
    return static_cast<std::uint8_t>(std::nearbyint(std::fmin(std::fmax(steps, 0.0f), max_code)));
}

float expected_residual(float x, std::uint8_t code, float scale, float zero) {
    const volatile float product = static_cast<float>(code) * scale;
    const volatile float dense = product + zero;
    return x - dense;
}

constexpr float scales[] = {0.0f, 1.0f, 0.25f, 0.013f, 7.5f, 0x1p-24f, 0x1p-140f, 500.0f};
constexpr float zeros[] = {0.0f, -1.0f, 0.4f, -60000.0f, 0x1p-24f, 3.25f, 0x1p-140f};
constexpr float max_codes[] = {3.0f, 7.0f, 15.0f, 255.0f};

TEST_CASE("quantize_columns chooses the same codes and residuals at every level, to the bit") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (const RowShape& shape : row_shapes()) {
                const float max_code = max_codes[shape.n_cols % 4];
                std::vector<float> scale(shape.padded()), zero(shape.padded());
                for (std::size_t c = 0; c < shape.n_cols; ++c) {
                    scale[c] = scales[(c + shape.n_rows) % std::size(scales)];
                    zero[c] = zeros[c % std::size(zeros)];
                }
                const float step = scales[1 + shape.n_cols % 7];
                const std::vector<float> before =
                    make_entries(shape.n_entries(), all_patterns[shape.n_rows % 6], shape.n_cols, step,
                                 zeros[shape.n_cols % 7]);
                GuardedArray<float> x(before, place), scale_in(scale, place), zero_in(zero, place);
                GuardedArray<std::uint8_t> codes(shape.n_entries(), place);
                const std::vector<std::uint8_t> codes_before(codes.data(), codes.data() + codes.size());
                kernels->codec.quantize_columns(codes.data(), x.data(), shape.stride, shape.n_rows,
                                                shape.n_cols, scale_in.data(), zero_in.data(), max_code);
                std::size_t n_wrong = 0;
                for (std::size_t i = 0; i < shape.n_entries(); ++i) {
                    if (shape.is_surplus(i)) continue;
                    const std::size_t c = i % shape.stride;
                    const bool is_entry = c < shape.n_cols;
                    const std::uint8_t code =
                        is_entry ? expected_code(before[i], scale[c], zero[c], max_code) : codes_before[i];
                    const float residual =
                        is_entry ? expected_residual(before[i], code, scale[c], zero[c]) : before[i];
                    if (codes[i] != code || float_to_bits(x[i]) != float_to_bits(residual)) ++n_wrong;
                }
                CAPTURE(level_name(kernels->level), place_name(place), shape.n_rows, shape.n_cols, max_code);
                CHECK(n_wrong == 0);
                CHECK((x.is_intact() && codes.is_intact() && scale_in.is_intact() && zero_in.is_intact()));
            }
        }
    }
}

TEST_CASE("quantize_row chooses the same codes and residuals at every level, to the bit") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (std::size_t n : sizes_up_to(most_entries)) {
                for (std::size_t i = 0; i < std::size(scales); ++i) {
                    const float scale = scales[i], zero = zeros[(i + n) % std::size(zeros)];
                    const float max_code = max_codes[(i + n) % 4];
                    const std::vector<float> before = make_entries(n, all_patterns[i % 6], n, scale, zero);
                    GuardedArray<float> x(before, place);
                    GuardedArray<std::uint8_t> codes(n, place);
                    kernels->codec.quantize_row(codes.data(), x.data(), n, scale, zero, max_code);
                    std::size_t n_wrong = 0;
                    for (std::size_t k = 0; k < n; ++k) {
                        const std::uint8_t code = expected_code(before[k], scale, zero, max_code);
                        const float residual = expected_residual(before[k], code, scale, zero);
                        if (codes[k] != code || float_to_bits(x[k]) != float_to_bits(residual)) ++n_wrong;
                    }
                    CAPTURE(level_name(kernels->level), place_name(place), n, scale, zero, max_code);
                    CHECK(n_wrong == 0);
                    CHECK((x.is_intact() && codes.is_intact()));
                }
            }
        }
    }
}

constexpr std::uint32_t all_bits[] = {2, 3, 4, 8};

struct PackCase {
    std::uint32_t bits;
    std::size_t n_tokens, dim, stride;
};

// Every number of channels with few tokens, every number of tokens with few channels.
std::vector<PackCase> pack_cases() {
    std::vector<PackCase> cases;
    for (std::uint32_t bits : all_bits) {
        for (std::size_t n : sizes_up_to(most_entries, 1)) {
            cases.push_back({bits, 1 + n % 18, n, n + n % 3});
            cases.push_back({bits, n, 1 + n * 7 % 50, 50 + n % 5});
        }
        cases.push_back({bits, 64, 128, 128});
        cases.push_back({bits, 70, 80, 80});
    }
    return cases;
}

std::vector<std::uint8_t> make_codes(const PackCase& shape, std::uint64_t seed) {
    Random random(seed);
    std::vector<std::uint8_t> codes((shape.n_tokens - 1) * shape.stride + shape.dim);
    const std::uint32_t most = (1u << shape.bits) - 1;
    for (std::uint8_t& code : codes) {
        code = static_cast<std::uint8_t>(seed % 5 == 0 ? most : random.below(most + 1));
    }
    return codes;
}

// Depth d of a plane whose codes have `width` bits, from the words of one lane, `stride` apart.
std::uint32_t plane_code(const std::uint32_t* words, std::size_t stride, std::size_t d, std::uint32_t width) {
    const std::size_t per_word = 32 / width, at = d % per_word;
    return words[d / per_word * stride] >> (8 * (at % 4) + width * (at / 4)) & ((1u << width) - 1);
}

TEST_CASE("key words hold every code where the format says, and zeros elsewhere") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (const PackCase& shape : pack_cases()) {
                const std::vector<std::uint8_t> codes = make_codes(shape, shape.dim);
                const std::size_t n_tiles = ceil_div(shape.n_tokens, 16);
                const std::size_t tile_words =
                    std::size_t{16} * lane_words(shape.bits, static_cast<std::uint32_t>(shape.dim));
                GuardedArray<std::uint8_t> in(codes, place);
                GuardedArray<std::uint32_t> words(n_tiles * tile_words, place);
                kernels->codec.pack_key[bits_slot(shape.bits)](words.data(), in.data(), shape.stride,
                                                               shape.n_tokens, shape.dim);
                std::size_t n_wrong = 0;
                const std::size_t n_depth = tile_words / 16 * 32 / shape.bits;
                for (std::size_t token = 0; token < 16 * n_tiles; ++token) {
                    const std::uint32_t* lane = words.data() + token / 16 * tile_words + token % 16;
                    const std::uint32_t* high = lane + ceil_div(shape.dim, 32) * 2 * 16;
                    for (std::size_t c = 0; c < n_depth; ++c) {
                        const bool is_code = token < shape.n_tokens && c < shape.dim;
                        const std::uint32_t expected = is_code ? codes[token * shape.stride + c] : 0;
                        const std::uint32_t found =
                            shape.bits == 3 ? plane_code(lane, 16, c, 2) | plane_code(high, 16, c, 1) << 2
                                            : plane_code(lane, 16, c, shape.bits);
                        if (found != expected) ++n_wrong;
                    }
                }
                CAPTURE(level_name(kernels->level), place_name(place), shape.bits, shape.n_tokens, shape.dim);
                CHECK(n_wrong == 0);
                CHECK(words.is_intact());
            }
        }
    }
}

TEST_CASE("value words hold every code where the format says, and zeros elsewhere") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (const PackCase& shape : pack_cases()) {
                const std::vector<std::uint8_t> codes = make_codes(shape, shape.n_tokens);
                const std::size_t n_lanes = round_to(shape.dim, 16);
                const std::size_t n_words =
                    lane_words(shape.bits, static_cast<std::uint32_t>(shape.n_tokens));
                GuardedArray<std::uint8_t> in(codes, place);
                GuardedArray<std::uint32_t> words(n_words * n_lanes, place);
                kernels->codec.pack_value[bits_slot(shape.bits)](words.data(), in.data(), shape.stride,
                                                                 shape.n_tokens, shape.dim);
                std::size_t n_wrong = 0;
                const std::size_t n_depth = n_words * 32 / shape.bits;
                for (std::size_t channel = 0; channel < n_lanes; ++channel) {
                    for (std::size_t t = 0; t < n_depth; ++t) {
                        const bool is_code = t < shape.n_tokens && channel < shape.dim;
                        const std::uint32_t expected = is_code ? codes[t * shape.stride + channel] : 0;
                        const std::uint32_t* unit = words.data() + t / 32 * 3 * n_lanes + channel;
                        const std::uint32_t found =
                            shape.bits == 3 ? plane_code(unit, n_lanes, t % 32, 2) |
                                                  plane_code(unit + 2 * n_lanes, n_lanes, t % 32, 1) << 2
                                            : plane_code(words.data() + channel, n_lanes, t, shape.bits);
                        if (found != expected) ++n_wrong;
                    }
                }
                CAPTURE(level_name(kernels->level), place_name(place), shape.bits, shape.n_tokens, shape.dim);
                CHECK(n_wrong == 0);
                CHECK(words.is_intact());
            }
        }
    }
}

struct ProductCase {
    std::size_t n_rows, n_cols, rank;
};

std::vector<ProductCase> product_cases() {
    std::vector<ProductCase> cases;
    for (std::size_t n : sizes_up_to(most_entries, 1)) {
        cases.push_back({n, 1 + n * 11 % 40, 1 + n % 5});
        cases.push_back({1 + n % 10, n, 1 + n * 3 % 9});
        cases.push_back({5, 33, n});
    }
    cases.push_back({130, 200, 4});
    cases.push_back({64, 128, 8});
    for (ProductCase& shape : cases)
        shape.rank = shape.rank > 64 ? 64 : shape.rank;
    return cases;
}

// [n_rows][stride] with zeros from column n_cols on, up to the padded end of the last row.
std::vector<float> make_rows(std::size_t n_rows, std::size_t n_cols, std::size_t stride, Pattern pattern,
                             std::uint64_t seed) {
    std::vector<float> x = make_floats((n_rows - 1) * stride + round_to(n_cols, 16), pattern, seed);
    for (std::size_t i = 0; i < x.size(); ++i) {
        if (i % stride >= n_cols) x[i] = 0.0f;
    }
    return x;
}

TEST_CASE("project multiplies rows with every plane") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (const ProductCase& shape : product_cases()) {
                const std::size_t stride = round_to(shape.n_cols, 16) + shape.rank % 2 * 16;
                const std::size_t a_stride = shape.n_rows + shape.rank % 3;
                const Pattern pattern = all_patterns[shape.n_rows % 6];
                GuardedArray<float> x(make_rows(shape.n_rows, shape.n_cols, stride, pattern, 1), place);
                GuardedArray<float> p(make_rows(shape.rank, shape.n_cols, stride, Pattern::random, 2), place);
                const std::vector<float> before =
                    make_floats((shape.rank - 1) * a_stride + shape.n_rows, Pattern::random, 3);
                GuardedArray<float> a(before, place);
                kernels->codec.project(a.data(), a_stride, x.data(), stride, shape.n_rows, shape.n_cols,
                                       p.data(), stride, shape.rank);
                std::size_t n_wrong = 0;
                for (std::size_t i = 0; i < before.size(); ++i) {
                    const std::size_t t = i % a_stride, r = i / a_stride;
                    if (t >= shape.n_rows) {
                        if (float_to_bits(a[i]) != float_to_bits(before[i])) ++n_wrong;
                        continue;
                    }
                    ExactSum sum;
                    for (std::size_t c = 0; c < shape.n_cols; ++c) {
                        sum.add(static_cast<double>(x[t * stride + c]) *
                                static_cast<double>(p[r * stride + c]));
                    }
                    if (!sum.accepts(a[i])) ++n_wrong;
                }
                CAPTURE(level_name(kernels->level), place_name(place), shape.n_rows, shape.n_cols,
                        shape.rank);
                CHECK(n_wrong == 0);
                CHECK(a.is_intact());
            }
        }
    }
}

TEST_CASE("project_back gathers rows into every plane") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (const ProductCase& shape : product_cases()) {
                const std::size_t padded = round_to(shape.n_cols, 16);
                const std::size_t stride = padded + shape.rank % 2 * 16;
                const std::size_t a_stride = shape.n_rows + shape.rank % 3;
                const Pattern pattern = all_patterns[shape.n_rows % 6];
                GuardedArray<float> x(make_rows(shape.n_rows, shape.n_cols, stride, pattern, 1), place);
                GuardedArray<float> a(
                    make_floats((shape.rank - 1) * a_stride + shape.n_rows, Pattern::random, 3), place);
                const std::vector<float> before =
                    make_floats((shape.rank - 1) * stride + padded, Pattern::random, 4);
                GuardedArray<float> p(before, place);
                kernels->codec.project_back(p.data(), stride, x.data(), stride, shape.n_rows, shape.n_cols,
                                            a.data(), a_stride, shape.rank);
                std::size_t n_wrong = 0;
                for (std::size_t i = 0; i < before.size(); ++i) {
                    const std::size_t c = i % stride, r = i / stride;
                    if (c >= padded) {
                        if (float_to_bits(p[i]) != float_to_bits(before[i])) ++n_wrong;
                        continue;
                    }
                    ExactSum sum;
                    for (std::size_t t = 0; t < shape.n_rows; ++t) {
                        sum.add(static_cast<double>(x[t * stride + c]) *
                                static_cast<double>(a[r * a_stride + t]));
                    }
                    if (!sum.accepts(p[i])) ++n_wrong;
                }
                CAPTURE(level_name(kernels->level), place_name(place), shape.n_rows, shape.n_cols,
                        shape.rank);
                CHECK(n_wrong == 0);
                CHECK(p.is_intact());
            }
        }
    }
}

}  // namespace
}  // namespace gearkv::test
