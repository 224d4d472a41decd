// The loops around the searches for outliers and trellis codes at every level: equal to the reference to the
// last bit.
#include "format/trellis.hpp"
#include "inputs.hpp"

namespace gearkv::test {
namespace {

constexpr std::size_t n_entries = section_tokens * lane_tile;

// Compares what `run` writes into an array of n floats or bytes, by level and place.
template <class T, class Run>
void check_equal(std::size_t n, const Run& run) {
    GuardedArray<T> want(n, Place::at_end);
    run(*kernels_scalar(), Place::at_end, want.data());
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            GuardedArray<T> got(n, place);
            run(*kernels, place, got.data());
            CAPTURE(level_name(kernels->level), place_name(place));
            CHECK(got.is_intact());
            CHECK(std::memcmp(got.data(), want.data(), n * sizeof(T)) == 0);
        }
    }
}

const std::size_t all_columns[] = {8, 16, 24, 32, 40, 64, 72, 80, 96, 112, 128, 136, 192, 256, 264, 512};

std::vector<float> factors(std::size_t n, std::uint64_t seed) {
    std::vector<float> x = make_floats(n, Pattern::random, seed);
    for (float& value : x)
        value = std::ldexp(1.0f + 0.5f * value, static_cast<int>(seed % 5) - 2);
    return x;
}

// Levels of a search, all signs and sizes.
std::vector<std::int8_t> levels(std::uint64_t seed) {
    Random random(seed);
    std::vector<std::int8_t> x(n_entries);
    for (std::int8_t& value : x)
        value = static_cast<std::int8_t>(static_cast<int>(random.below(256)) - 128);
    return x;
}

// A panel in rows of `stride`, whose last row ends with its 16 channels.
std::vector<float> panel_rows(std::size_t stride, Pattern pattern) {
    return make_floats((section_tokens - 1) * stride + lane_tile, pattern, stride);
}

const std::size_t all_strides[] = {16, 17, 128, 272};
const Pattern panel_patterns[] = {Pattern::random, Pattern::wide, Pattern::largest, Pattern::denormal};

TEST_CASE("ends of groups are those of the reference") {
    for (const std::size_t n_groups : {1u, 4u, 32u}) {
        for (const std::size_t n : {1u, 3u, 31u, 70u}) {
            for (const std::size_t stride : {16u, 21u}) {
                for (const Pattern pattern : all_patterns) {
                    const std::vector<float> rows = make_floats((n - 1) * stride + lane_tile, pattern, n);
                    CAPTURE(n_groups, n, stride, pattern_name(pattern));
                    const std::size_t n_ends = n_groups * lane_tile;
                    check_equal<float>(2 * n_ends, [&](const Kernels& kernels, Place place, float* out) {
                        GuardedArray<float> x(rows, place);
                        std::fill_n(out, n_ends, -0.25f);
                        std::fill_n(out + n_ends, n_ends, 0.25f);
                        kernels.codec.group_ends(out, out + n_ends, n_groups, x.data(), stride, n);
                        for (std::size_t i = 0; i < 2 * n_ends; ++i)
                            out[i] += 0.0f;  // zeros of both signs are the same
                    });
                }
            }
        }
    }
}

TEST_CASE("entries that reach their bounds are those of the reference") {
    for (const std::size_t n : {1u, 5u, 64u}) {
        for (const std::size_t stride : {16u, 21u}) {
            for (const Pattern pattern : all_patterns) {
                const std::vector<float> rows = make_floats((n - 1) * stride + lane_tile, pattern, n);
                std::vector<float> highs(lane_tile, HUGE_VALF), lows(lane_tile, -HUGE_VALF);
                for (std::size_t lane = 0; lane < lane_tile; lane += 3)
                    highs[lane] = rows[lane];  // equal to an entry
                for (std::size_t lane = 1; lane < lane_tile; lane += 3)
                    lows[lane] = rows[(n - 1) * stride + lane];
                CAPTURE(n, stride, pattern_name(pattern));
                check_equal<std::uint16_t>(n, [&](const Kernels& kernels, Place place, std::uint16_t* out) {
                    GuardedArray<float> x(rows, place), high(highs, place), low(lows, place);
                    kernels.codec.find_reaching(out, x.data(), stride, n, high.data(), low.data());
                });
            }
        }
    }
}

TEST_CASE("moments of columns are those of the reference") {
    for (const std::size_t n_cols : all_columns) {
        for (const std::size_t n_rows : {1u, 2u, 31u, 128u}) {
            for (const Pattern pattern : panel_patterns) {
                const std::size_t stride = round_to(n_cols, 16) + n_rows % 3;
                const std::vector<float> rows = make_floats(n_rows * stride, pattern, n_cols),
                                         row_factor = factors(n_rows, n_cols);
                CAPTURE(n_cols, n_rows, pattern_name(pattern));
                const std::size_t padded = round_to(n_cols, 16);
                check_equal<float>(n_cols, [&](const Kernels& kernels, Place place, float* out) {
                    GuardedArray<float> x(rows, place), factor(row_factor, place), sum(padded, place),
                        square(padded, place);
                    kernels.codec.column_moments(sum.data(), square.data(), x.data(), stride, n_rows, n_cols,
                                                 factor.data());
                    CHECK(sum.is_intact());
                    CHECK(square.is_intact());
                    // Both in one: a sum that is off cannot be made good by a square.
                    for (std::size_t c = 0; c < n_cols; ++c)
                        out[c] = sum[c] * 0.75f + square[c];
                });
                check_equal<float>(n_cols, [&](const Kernels& kernels, Place place, float* out) {
                    GuardedArray<float> x(rows, place), factor(row_factor, place), sum(padded, place),
                        square(padded, place);
                    kernels.codec.column_moments(sum.data(), square.data(), x.data(), stride, n_rows, n_cols,
                                                 factor.data());
                    std::memcpy(out, sum.data(), n_cols * sizeof(float));
                });
            }
        }
    }
}

TEST_CASE("squares of rows are those of the reference") {
    for (const std::size_t n_cols : all_columns) {
        for (const std::size_t n_rows : {1u, 2u, 31u, 128u}) {
            for (const Pattern pattern : panel_patterns) {
                const std::size_t padded = round_to(n_cols, 16);
                const std::vector<float> rows = make_floats(n_rows * padded, pattern, n_cols);
                std::vector<float> column_factor = factors(padded, n_rows);
                std::fill(column_factor.begin() + static_cast<std::ptrdiff_t>(n_cols), column_factor.end(),
                          0.0f);
                CAPTURE(n_cols, n_rows, pattern_name(pattern));
                check_equal<float>(n_rows, [&](const Kernels& kernels, Place place, float* out) {
                    GuardedArray<float> x(rows, place), factor(column_factor, place);
                    kernels.codec.row_squares(out, x.data(), padded, n_rows, n_cols, factor.data());
                });
            }
        }
    }
}

TEST_CASE("rows are rotated as by the reference, and twice gives them back") {
    for (const std::size_t n_cols : all_columns) {
        for (const std::size_t n_rows : {1u, 3u}) {
            for (const Pattern pattern : {Pattern::random, Pattern::wide, Pattern::denormal}) {
                const std::size_t stride = n_cols + n_rows % 2;
                const std::vector<float> rows = make_floats((n_rows - 1) * stride + n_cols, pattern, n_cols);
                CAPTURE(n_cols, n_rows, pattern_name(pattern));
                check_equal<float>(rows.size(), [&](const Kernels& kernels, Place, float* x) {
                    std::memcpy(x, rows.data(), rows.size() * sizeof(float));
                    kernels.codec.rotate_rows(x, stride, n_rows, n_cols);
                });
            }
        }
        std::vector<float> x = make_floats(n_cols, Pattern::random, n_cols);
        const std::vector<float> before = x;
        kernels_scalar()->codec.rotate_rows(x.data(), n_cols, 1, n_cols);
        double norm = 0.0, norm_before = 0.0;
        for (std::size_t c = 0; c < n_cols; ++c) {
            norm += static_cast<double>(x[c]) * x[c];
            norm_before += static_cast<double>(before[c]) * before[c];
        }
        CHECK(std::fabs(norm - norm_before) < 1e-5 * norm_before);
        kernels_scalar()->codec.rotate_rows(x.data(), n_cols, 1, n_cols);
        for (std::size_t c = 0; c < n_cols; ++c)
            CHECK(std::fabs(x[c] - before[c]) < 1e-5f);
    }
}

TEST_CASE("panels are filled as by the reference") {
    for (const std::size_t stride : all_strides) {
        for (const Pattern pattern : panel_patterns) {
            const std::vector<float> rows = panel_rows(stride, pattern), tokens = factors(section_tokens, 1);
            const std::vector<float> shifts = make_floats(lane_tile, Pattern::random, 2),
                                     scales = factors(lane_tile, 3);
            CAPTURE(stride, pattern_name(pattern));
            check_equal<float>(n_entries, [&](const Kernels& kernels, Place place, float* out) {
                GuardedArray<float> x(rows, place), token(tokens, place), shift(shifts, place),
                    scale(scales, place);
                kernels.codec.fill_panel(out, {x.data(), stride, token.data()}, shift.data(), scale.data());
            });
        }
    }
}

TEST_CASE("sums of a panel are those of the reference") {
    for (const std::size_t stride : all_strides) {
        for (const Pattern pattern : panel_patterns) {
            const std::vector<float> rows = panel_rows(stride, pattern), tokens = factors(section_tokens, 1);
            const std::vector<std::int8_t> chosen = levels(stride);
            CAPTURE(stride, pattern_name(pattern));
            check_equal<float>(3 * lane_tile, [&](const Kernels& kernels, Place place, float* out) {
                GuardedArray<float> x(rows, place), token(tokens, place);
                GuardedArray<std::int8_t> level(chosen, place);
                kernels.codec.sum_panel(out, out + lane_tile, out + 2 * lane_tile,
                                        {x.data(), stride, token.data()}, level.data());
            });
        }
    }
}

TEST_CASE("cubes of errors are those of the reference") {
    for (const Pattern pattern : panel_patterns) {
        std::vector<float> entries = make_floats(n_entries, pattern, 5);
        if (pattern == Pattern::random) {
            for (float& value : entries)
                value *= 140.0f;
        }
        const std::vector<float> scales = factors(lane_tile, 6);
        const std::vector<std::int8_t> chosen = levels(7);
        CAPTURE(pattern_name(pattern));
        check_equal<float>(lane_tile, [&](const Kernels& kernels, Place place, float* out) {
            GuardedArray<float> x(entries, place), scale(scales, place);
            GuardedArray<std::int8_t> level(chosen, place);
            kernels.codec.cube_errors(out, x.data(), level.data(), scale.data());
        });
    }
}

TEST_CASE("a row is put in order as by the reference") {
    for (const std::size_t n_cols : all_columns) {
        const std::size_t padded = round_to(n_cols, 16);
        Random random(n_cols);
        std::vector<std::uint16_t> places(padded);
        for (std::uint16_t& place : places)
            place = static_cast<std::uint16_t>(random.below(static_cast<std::uint32_t>(n_cols)));
        const std::vector<float> row = make_floats(n_cols, Pattern::random, n_cols),
                                 shifts = factors(padded, n_cols);
        CAPTURE(n_cols);
        check_equal<float>(n_cols, [&](const Kernels& kernels, Place place, float* out) {
            GuardedArray<float> x(row, place), shift(shifts, place), to(padded, place);
            GuardedArray<std::uint16_t> order(places, place);
            kernels.codec.order_row(to.data(), x.data(), order.data(), shift.data(), n_cols);
            CHECK(to.is_intact());
            std::copy_n(to.data(), n_cols, out);
        });
    }
}

TEST_CASE("bits of codes are gathered as by the reference") {
    Random random(1);
    std::vector<std::uint8_t> bytes(n_entries);
    for (std::uint8_t& byte : bytes)
        byte = static_cast<std::uint8_t>(random.bits());
    for (std::uint32_t bit = 0; bit < 8; ++bit) {
        CAPTURE(bit);
        check_equal<std::uint8_t>(section_tokens / 8 * lane_tile,
                                  [&](const Kernels& kernels, Place place, std::uint8_t* out) {
                                      GuardedArray<std::uint8_t> codes(bytes, place);
                                      kernels.codec.gather_bits(out, codes.data(), bit);
                                  });
    }
}

}  // namespace
}  // namespace gearkv::test
