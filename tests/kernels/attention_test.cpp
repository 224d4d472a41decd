// Attention kernels over rows, halves and scores at every level, against sums in double.
#include <cfenv>

#include "inputs.hpp"

namespace gearkv::test {
namespace {

std::vector<std::uint16_t> make_halves(std::size_t n, Pattern pattern, std::uint64_t seed) {
    const std::vector<float> x =
        make_floats(n, pattern == Pattern::denormal ? Pattern::random : pattern, seed);
    std::vector<std::uint16_t> halves(n);
    kernels_scalar()->codec.to_half(halves.data(), x.data(), n);
    if (pattern == Pattern::denormal) {
        for (std::uint16_t& half : halves)
            half &= 0x83ff;
    }
    return halves;
}

std::vector<float> to_floats(const std::uint16_t* x, std::size_t n) {
    std::vector<float> floats(n);
    kernels_scalar()->codec.from_half(floats.data(), x, n);
    return floats;
}
std::vector<float> to_floats(const float* x, std::size_t n) {
    return {x, x + n};
}

template <class X>
std::vector<X> make_entries(std::size_t n, Pattern pattern, std::uint64_t seed) {
    if constexpr (sizeof(X) == 2) {
        return make_halves(n, pattern, seed);
    } else {
        return make_floats(n, pattern, seed);
    }
}

struct RowsCase {
    std::uint32_t n_rows, n_tokens, n_channels;
};

std::vector<RowsCase> rows_cases() {
    std::vector<RowsCase> cases;
    for (std::uint32_t n_rows = 1; n_rows <= max_rows; ++n_rows) {
        for (std::uint32_t n = 1; n <= most_entries; ++n) {
            cases.push_back({n_rows, 1 + (3 * n + n_rows) % 13, n});
            cases.push_back({n_rows, std::min(n, tile_tokens), 1 + (7 * n + n_rows) % 70});
        }
        cases.push_back({n_rows, 64, 128});
        cases.push_back({n_rows, 63, 130});
        cases.push_back({n_rows, 5, 256});
    }
    return cases;
}

// [n_tokens][stride], channels from n_channels on are 0.
template <class X>
std::vector<X> make_rows(const RowsCase& shape, std::size_t stride, Pattern pattern) {
    const std::size_t n = (shape.n_tokens - 1) * stride + round_to(shape.n_channels, 16);
    std::vector<X> x = make_entries<X>(n, pattern, shape.n_channels);
    for (std::size_t i = 0; i < n; ++i) {
        if (i % stride >= shape.n_channels) x[i] = X();
    }
    return x;
}

template <class X>
void check_score_rows(const Kernels& kernels, const RowsCase& shape, Place place, Pattern pattern) {
    const std::size_t stride = round_to(shape.n_channels, 16) + shape.n_tokens % 2 * 16;
    GuardedArray<X> x(make_rows<X>(shape, stride, pattern), place);
    const std::vector<float> keys = to_floats(x.data(), x.size());
    const std::size_t query_stride = round_to(shape.n_channels, 32);
    std::vector<float> queries = make_floats(shape.n_rows * query_stride, Pattern::random, 5);
    for (std::size_t i = 0; i < queries.size(); ++i) {
        if (i % query_stride >= shape.n_channels) queries[i] = 0.0f;
    }
    GuardedArray<float> query(queries, place);
    const std::size_t score_stride = shape.n_tokens + shape.n_rows % 3;
    const std::vector<float> before =
        make_floats((shape.n_rows - 1) * score_stride + shape.n_tokens, Pattern::random, 6);
    GuardedArray<float> scores(before, place);
    const RawRows rows = {x.data(), stride, shape.n_tokens, shape.n_channels};
    const auto score = sizeof(X) == 2 ? kernels.attention.score_half : kernels.attention.score_float;
    score(scores.data(), score_stride, rows, query.data(), query_stride, shape.n_rows);

    std::size_t n_wrong = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
        const std::size_t row = i / score_stride, t = i % score_stride;
        if (t >= shape.n_tokens) {
            if (scores[i] != before[i]) ++n_wrong;
            continue;
        }
        ExactSum sum;
        sum.add(static_cast<double>(before[i]));
        for (std::size_t c = 0; c < shape.n_channels; ++c) {
            sum.add(static_cast<double>(queries[row * query_stride + c]) *
                    static_cast<double>(keys[t * stride + c]));
        }
        if (!sum.accepts(scores[i])) ++n_wrong;
    }
    if (n_wrong == 0 && scores.is_intact()) return;
    CAPTURE(level_name(kernels.level), place_name(place), pattern_name(pattern), sizeof(X), shape.n_rows,
            shape.n_tokens, shape.n_channels);
    CHECK(n_wrong == 0);
    CHECK(scores.is_intact());
}

template <class X>
void check_mix_rows(const Kernels& kernels, const RowsCase& shape, Place place, Pattern pattern) {
    const std::size_t padded = round_to(shape.n_channels, 16);
    const std::size_t stride = padded + shape.n_tokens % 2 * 16;
    GuardedArray<X> x(make_rows<X>(shape, stride, pattern), place);
    const std::vector<float> values = to_floats(x.data(), x.size());
    const std::size_t weight_stride = shape.n_tokens + shape.n_rows % 3;
    GuardedArray<float> weight(
        make_floats((shape.n_rows - 1) * weight_stride + shape.n_tokens, Pattern::random, 5), place);
    const std::size_t out_stride = padded + shape.n_rows % 3;
    const std::vector<float> before =
        make_floats((shape.n_rows - 1) * out_stride + padded, Pattern::random, 6);
    GuardedArray<float> out(before, place);
    const RawRows rows = {x.data(), stride, shape.n_tokens, shape.n_channels};
    const auto mix = sizeof(X) == 2 ? kernels.attention.mix_half : kernels.attention.mix_float;
    mix(out.data(), out_stride, rows, weight.data(), weight_stride, shape.n_rows);

    std::size_t n_wrong = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
        const std::size_t row = i / out_stride, c = i % out_stride;
        if (c >= padded) {
            if (out[i] != before[i]) ++n_wrong;
            continue;
        }
        ExactSum sum;
        sum.add(static_cast<double>(before[i]));
        for (std::size_t t = 0; t < shape.n_tokens; ++t) {
            sum.add(static_cast<double>(weight[row * weight_stride + t]) *
                    static_cast<double>(values[t * stride + c]));
        }
        if (!sum.accepts(out[i])) ++n_wrong;
    }
    if (n_wrong == 0 && out.is_intact()) return;
    CAPTURE(level_name(kernels.level), place_name(place), pattern_name(pattern), sizeof(X), shape.n_rows,
            shape.n_tokens, shape.n_channels);
    CHECK(n_wrong == 0);
    CHECK(out.is_intact());
}

TEST_CASE("scores and mixes of rows in half and float are sums of products at every shape") {
    std::size_t i = 0;
    for (const Kernels* kernels : all_kernels()) {
        for (const RowsCase& shape : rows_cases()) {
            const Place place = all_places[i % 3];
            const Pattern pattern = all_patterns[i / 3 % 6];
            check_score_rows<std::uint16_t>(*kernels, shape, place, pattern);
            check_score_rows<float>(*kernels, shape, place, pattern);
            check_mix_rows<std::uint16_t>(*kernels, shape, place, pattern);
            check_mix_rows<float>(*kernels, shape, place, pattern);
            ++i;
        }
    }
    CHECK(i >= rows_cases().size());
}

TEST_CASE("one vector of halves is added, multiplied and summed at every length") {
    for (const Kernels* kernels : all_kernels()) {
        const AttentionKernels& attention = kernels->attention;
        for (Place place : all_places) {
            for (Pattern pattern : all_patterns) {
                for (std::size_t n : sizes_up_to(2 * most_entries)) {
                    GuardedArray<std::uint16_t> half(make_halves(n, pattern, n), place);
                    const std::vector<float> x = to_floats(half.data(), n);
                    const std::vector<float> before = make_floats(n, Pattern::random, n + 1);
                    GuardedArray<float> y(before, place), scaled(n, place), in_place(before, place);
                    ExactSum dot;
                    for (std::size_t i = 0; i < n; ++i) {
                        dot.add(static_cast<double>(before[i]) * static_cast<double>(x[i]));
                    }
                    const float alpha = 1.37f;
                    const float found = attention.dot_half(y.data(), half.data(), n);
                    attention.scale_half(scaled.data(), y.data(), half.data(), n);
                    attention.scale_half(in_place.data(), in_place.data(), half.data(), n);
                    attention.add_half(y.data(), half.data(), alpha, n);
                    std::size_t n_wrong = 0;
                    for (std::size_t i = 0; i < n; ++i) {
                        ExactSum sum;
                        sum.add(static_cast<double>(before[i]));
                        sum.add(static_cast<double>(alpha) * static_cast<double>(x[i]));
                        if (!sum.accepts(y[i])) ++n_wrong;
                        if (scaled[i] != before[i] * x[i] || in_place[i] != scaled[i]) ++n_wrong;
                    }
                    CAPTURE(level_name(kernels->level), place_name(place), pattern_name(pattern), n, found);
                    CHECK(dot.accepts(found));
                    CHECK(n_wrong == 0);
                    CHECK((y.is_intact() && scaled.is_intact() && in_place.is_intact()));
                }
            }
        }
    }
}

TEST_CASE("scales and zeros are folded into every row, and what pads it is zero") {
    for (const Kernels* kernels : all_kernels()) {
        std::size_t i = 0;
        for (std::uint32_t n_rows = 1; n_rows <= max_rows; ++n_rows) {
            for (std::uint32_t n = 1; n <= 2 * most_entries; ++n, ++i) {
                const Place place = all_places[i % 3];
                const Pattern pattern = all_patterns[i / 3 % 6];
                GuardedArray<std::uint16_t> scales(make_halves(n, pattern, n), place);
                GuardedArray<std::uint16_t> zeros(make_halves(n, pattern, n + 1), place);
                const std::vector<float> scale = to_floats(scales.data(), n),
                                         zero = to_floats(zeros.data(), n);
                const std::size_t padded = round_to(n, 32), stride = padded + n % 3;
                GuardedArray<float> x(make_floats((n_rows - 1) * stride + n, Pattern::random, 9), place);
                const std::vector<float> before((n_rows - 1) * stride + padded, 3.0f);
                GuardedArray<float> folded(before, place), bias(n_rows, place);
                kernels->attention.fold_halves(
                    {scales.data(), zeros.data(), n, x.data(), folded.data(), stride, bias.data(), n_rows});
                std::size_t n_wrong = 0;
                for (std::uint32_t row = 0; row < n_rows; ++row) {
                    ExactSum sum;
                    for (std::uint32_t k = 0; k < n; ++k) {
                        const float entry = x[row * stride + k];
                        sum.add(static_cast<double>(entry) * static_cast<double>(zero[k]));
                        n_wrong += folded[row * stride + k] != entry * scale[k];
                    }
                    for (std::size_t k = n; k < padded; ++k)
                        n_wrong += folded[row * stride + k] != 0.0f;
                    for (std::size_t k = padded; k < stride && row + 1 < n_rows; ++k)
                        n_wrong += folded[row * stride + k] != 3.0f;
                    n_wrong += !sum.accepts(bias[row]);
                }
                CAPTURE(level_name(kernels->level), place_name(place), pattern_name(pattern), n_rows, n);
                CHECK(n_wrong == 0);
                CHECK((folded.is_intact() && bias.is_intact()));
            }
        }
    }
}

struct OutlierCase {
    std::uint32_t n_rows, n_tokens, dim, most;  // of a token
    bool wide;
};

// Counts, channels and values as a block has them.
template <class Index>
struct OutlierArrays {
    GuardedArray<Index> counts, channels;
    GuardedArray<std::uint16_t> values;

    OutlierArrays(const std::vector<Index>& c, const std::vector<Index>& at, Place place, Pattern pattern)
        : counts(c, place), channels(at, place), values(make_halves(at.size(), pattern, 3), place) {}
};

template <class Index>
OutlierArrays<Index> make_outliers(const OutlierCase& shape, Place place, Pattern pattern) {
    Random random(shape.n_tokens * 31 + shape.dim);
    std::vector<Index> counts, channels;
    for (std::uint32_t t = 0; t < shape.n_tokens; ++t) {
        const std::uint32_t count = random.below(4) == 0 ? 0 : random.below(shape.most + 1);
        const std::uint32_t step = count == 0 ? 1 : shape.dim / count;
        counts.push_back(static_cast<Index>(count));
        for (std::uint32_t i = 0; i < count; ++i)
            channels.push_back(static_cast<Index>(i * step + random.below(step)));
    }
    return {counts, channels, place, pattern};
}

template <class Index>
void check_outliers(const Kernels& kernels, const OutlierCase& shape, Place place, Pattern pattern) {
    OutlierArrays<Index> arrays = make_outliers<Index>(shape, place, pattern);
    const Outliers outliers = {arrays.counts.data(), arrays.channels.data(),
                               arrays.values.data(), sizeof(Index) == 2,
                               shape.n_tokens,       static_cast<std::uint32_t>(arrays.values.size())};
    const std::vector<float> values = to_floats(arrays.values.data(), arrays.values.size());
    const std::size_t n_lanes = outlier_lanes(shape.n_rows), stride = round_to(shape.n_tokens, 16) + 3;
    GuardedArray<float> query(make_floats(shape.dim * n_lanes, Pattern::random, 5), place);
    const std::vector<float> before =
        make_floats((shape.n_rows - 1) * stride + shape.n_tokens, Pattern::random, 6);
    GuardedArray<float> scores(before, place);
    GuardedArray<float> weight(
        make_floats((shape.n_rows - 1) * stride + round_to(shape.n_tokens, 16), Pattern::random, 7), place);
    const std::vector<float> out_before = make_floats(shape.dim * n_lanes, Pattern::random, 8);
    GuardedArray<float> out(out_before, place);
    kernels.attention.score_outliers({outliers, query.data(), scores.data(), stride, shape.n_rows});
    kernels.attention.mix_outliers({outliers, weight.data(), stride, out.data(), shape.n_rows});
    std::vector<ExactSum> score_sums(before.size()), out_sums(out_before.size());
    for (std::size_t i = 0; i < before.size(); ++i)
        score_sums[i].add(static_cast<double>(before[i]));
    for (std::size_t i = 0; i < out_before.size(); ++i)
        out_sums[i].add(static_cast<double>(out_before[i]));
    std::size_t i = 0;
    for (std::uint32_t t = 0; t < shape.n_tokens; ++t) {
        for (std::uint32_t k = 0; k < arrays.counts[t]; ++k, ++i) {
            const auto value = static_cast<double>(values[i]);
            for (std::uint32_t row = 0; row < shape.n_rows; ++row) {
                const std::size_t at = arrays.channels[i] * n_lanes + row;
                score_sums[row * stride + t].add(static_cast<double>(query[at]) * value);
                out_sums[at].add(static_cast<double>(weight[row * stride + t]) * value);
            }
        }
    }
    std::size_t n_wrong = 0;
    for (i = 0; i < before.size(); ++i) {
        const bool is_score = i % stride < shape.n_tokens;
        n_wrong += is_score ? !score_sums[i].accepts(scores[i]) : scores[i] != before[i];
    }
    for (i = 0; i < out_before.size(); ++i)
        n_wrong += i % n_lanes < shape.n_rows && !out_sums[i].accepts(out[i]);
    CAPTURE(level_name(kernels.level), place_name(place), pattern_name(pattern), shape.n_rows, shape.n_tokens,
            shape.dim, shape.most, shape.wide);
    CHECK(n_wrong == 0);
    CHECK((scores.is_intact() && out.is_intact()));
}

TEST_CASE("outliers are met with all rows, at every count of tokens and of outliers of a token") {
    for (const Kernels* kernels : all_kernels()) {
        std::size_t i = 0;
        for (std::uint32_t n_rows = 1; n_rows <= max_rows; ++n_rows) {
            for (std::uint32_t n_tokens = 1; n_tokens <= tile_tokens; n_tokens += n_tokens < 40 ? 1 : 11) {
                for (const std::uint32_t most : {0u, 3u, 12u, 64u}) {
                    const Place place = all_places[i % 3];
                    const Pattern pattern = all_patterns[i / 3 % 6];
                    check_outliers<std::uint8_t>(*kernels, {n_rows, n_tokens, 64, most, false}, place,
                                                 pattern);
                    check_outliers<std::uint16_t>(*kernels, {n_rows, n_tokens, 300, most * 4, true}, place,
                                                  pattern);
                    ++i;
                }
            }
        }
        check_outliers<std::uint16_t>(*kernels, {4, 9, 1024, 1024, true}, Place::at_end, Pattern::random);
    }
}

TEST_CASE("scale multiplies every entry and nothing else") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (std::size_t n : sizes_up_to(most_entries)) {
                const std::vector<float> before = make_floats(n, Pattern::wide, n);
                GuardedArray<float> x(before, place);
                kernels->attention.scale(x.data(), 0.3f, n);
                std::size_t n_wrong = 0;
                for (std::size_t i = 0; i < n; ++i)
                    n_wrong += x[i] != before[i] * 0.3f;
                CAPTURE(level_name(kernels->level), place_name(place), n);
                CHECK(n_wrong == 0);
                CHECK(x.is_intact());
            }
        }
    }
}

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// exp in float of a difference in float: the difference is rounded, exp is good to an ulp or two, and what is
// below the normal floats may be 0.
double exp_tolerance(double score, double max) {
    const double exact = std::exp(score - max);
    return exact * 0x1p-24 * (3.0 + std::fabs(score - max)) + 0x1p-125;
}

struct SoftmaxCase {
    std::vector<float> scores;
    float max;
    float sum;
};

void check_softmax(const Kernels& kernels, const SoftmaxCase& input, Place place) {
    const std::size_t n = input.scores.size();
    GuardedArray<float> score(input.scores, place), weight(round_to(n, 16), place);
    float max = input.max, sum = input.sum;
    const float alpha = kernels.attention.softmax_tile(weight.data(), score.data(), n, &max, &sum);

    float most = input.max;
    for (float s : input.scores)
        most = std::fmax(most, s);
    const bool is_empty = most == minus_infinity;
    const double old = input.max == minus_infinity ? 0.0 : std::exp(static_cast<double>(input.max) - most);
    double total = static_cast<double>(input.sum) * old, slack = 0.0;
    std::size_t n_wrong = 0;
    for (std::size_t t = 0; t < weight.size(); ++t) {
        const bool is_hidden = t >= n || input.scores[t] == minus_infinity;
        if (is_hidden) {
            if (weight[t] != 0.0f) ++n_wrong;
            continue;
        }
        const double expected = std::exp(static_cast<double>(input.scores[t]) - most);
        const double tolerance = exp_tolerance(input.scores[t], most);
        if (!(std::fabs(static_cast<double>(weight[t]) - expected) <= tolerance)) ++n_wrong;
        if (input.scores[t] == most && weight[t] != 1.0f) ++n_wrong;
        total += expected;
        slack += tolerance;
    }
    CAPTURE(level_name(kernels.level), place_name(place), n, input.max, input.sum, most, max, sum, alpha);
    CHECK(n_wrong == 0);
    CHECK(weight.is_intact());
    CHECK(max == most);
    if (is_empty) {
        CHECK(alpha == 1.0f);
        CHECK(sum == input.sum);
        return;
    }
    if (most == input.max) CHECK(alpha == 1.0f);
    if (input.max == minus_infinity) {
        CHECK(alpha == 0.0f);
    } else {
        slack += exp_tolerance(input.max, most) * (1.0 + static_cast<double>(input.sum));
        CHECK(std::fabs(static_cast<double>(alpha) - old) <= exp_tolerance(input.max, most));
    }
    slack += total * 0x1p-24 * static_cast<double>(n + 4);
    CHECK(std::fabs(static_cast<double>(sum) - total) <= slack);
}

TEST_CASE("softmax_tile weighs scores against the largest so far, and hides what is masked") {
    for (const Kernels* kernels : all_kernels()) {
        for (Place place : all_places) {
            for (std::size_t n : sizes_up_to(most_entries)) {
                Random random(n);
                for (float spread : {0.0f, 1.0f, 30.0f, 200.0f}) {
                    for (std::uint32_t n_masked_of_4 : {0u, 1u, 4u}) {
                        SoftmaxCase input;
                        for (std::size_t t = 0; t < n; ++t) {
                            const float score = random.real() * spread;
                            input.scores.push_back(random.below(4) < n_masked_of_4 ? minus_infinity : score);
                        }
                        for (float max : {minus_infinity, -50.0f, 0.0f, 3.0f, 500.0f}) {
                            input.max = max;
                            input.sum = max == minus_infinity ? 0.0f : 1.0f + random.real();
                            check_softmax(*kernels, input, place);
                        }
                    }
                }
            }
        }
    }
}

TEST_CASE("softmax_tile follows exp over its whole range") {
    for (const Kernels* kernels : all_kernels()) {
        for (int step = 0; step < 12000; step += 16) {
            SoftmaxCase input;
            input.max = 0.0f;
            input.sum = 1.0f;
            for (int i = 0; i < 16; ++i)
                input.scores.push_back(static_cast<float>(step + i) * -0.01f);
            check_softmax(*kernels, input, Place::at_end);
        }
    }
}

TEST_CASE("no kernel changes how floats are rounded, or flushes denormals") {
    std::vector<float> x = make_floats(64 * 64, Pattern::random, 1), y(64 * 64), z(64 * 64);
    std::vector<std::uint16_t> half(64 * 64);
    std::vector<std::uint8_t> codes(64 * 64);
    std::vector<std::uint32_t> words(64 * 64);
    const RawRows float_rows = {x.data(), 64, 16, 64};
    const RawRows half_rows = {half.data(), 64, 16, 64};
    for (const Kernels* kernels : all_kernels()) {
        const CodecKernels& codec = kernels->codec;
        const AttentionKernels& attention = kernels->attention;
        float lo = 0.0f, hi = 0.0f;
        codec.max_abs(x.data(), 64);
        codec.column_range(y.data(), z.data(), x.data(), 64, 64, 64);
        codec.row_range(&lo, &hi, x.data(), 64);
        codec.quantize_columns(codes.data(), y.data(), 64, 2, 64, x.data(), x.data(), 3.0f);
        codec.quantize_row(codes.data(), y.data(), 64, 0.5f, -1.0f, 3.0f);
        std::fill(codes.begin(), codes.end(), std::uint8_t{1});
        codec.project(y.data(), 64, x.data(), 64, 16, 64, x.data(), 64, 4);
        codec.project_back(y.data(), 64, x.data(), 64, 16, 64, x.data(), 64, 4);
        codec.to_half(half.data(), x.data(), half.size());
        codec.from_half(y.data(), half.data(), half.size());
        for (std::size_t slot = 0; slot < 4; ++slot) {
            codec.pack_key[slot](words.data(), codes.data(), 64, 16, 64);
            attention.score_codes[slot](
                {words.data(), 1024, 1, 0, 64, 64, x.data(), 64, y.data(), 64, x.data(), max_rows});
            codec.pack_value[slot](words.data(), codes.data(), 64, 16, 64);
            attention.mix_codes[slot](
                {words.data(), 16, 64, 0, 64, x.data(), 64, y.data(), 64, x.data(), max_rows});
        }
        attention.score_float(y.data(), 64, float_rows, x.data(), 64, 3);
        attention.score_half(y.data(), 64, half_rows, x.data(), 64, 3);
        attention.mix_float(y.data(), 64, float_rows, x.data(), 64, 3);
        attention.mix_half(y.data(), 64, half_rows, x.data(), 64, 3);
        attention.add_half(y.data(), half.data(), 0.5f, 64);
        attention.dot_half(y.data(), half.data(), 64);
        attention.scale_half(y.data(), x.data(), half.data(), 64);
        attention.softmax_tile(y.data(), x.data(), 64, &lo, &hi);
        attention.scale(y.data(), 0.5f, 64);
        CAPTURE(level_name(kernels->level));
        CHECK(std::fegetround() == FE_TONEAREST);
        const volatile float tiny = 0x1p-126f;
        const volatile float denormal = tiny * 0.5f;
        const volatile float back = denormal * 2.0f;
        CHECK(denormal == std::ldexp(1.0f, -127));
        CHECK(back == tiny);
    }
}

TEST_CASE("soft caps are those of tanh to 2^-21 of the cap and 2^-20 of the score, at every length") {
    for (std::size_t n = 1; n <= most_entries; ++n) {
        for (const float cap : {1e-36f, 0.5f, 30.0f, 1e3f, 1e7f, 1e30f, 3e38f}) {
            for (const Pattern pattern :
                 {Pattern::random, Pattern::wide, Pattern::largest, Pattern::denormal}) {
                std::vector<float> x = make_floats(n, pattern, n);
                if (pattern == Pattern::random) {
                    for (float& value : x)
                        value *= 8.0f * cap;
                }
                for (const Kernels* kernels : all_kernels()) {
                    for (const Place place : all_places) {
                        GuardedArray<float> found(x, place);
                        kernels->attention.soft_cap(found.data(), cap, n);
                        double worst = 0.0, worst_share = 0.0;
                        for (std::size_t i = 0; i < n; ++i) {
                            const double want =
                                static_cast<double>(cap) *
                                std::tanh(static_cast<double>(x[i]) / static_cast<double>(cap));
                            const double error = std::fabs(static_cast<double>(found[i]) - want);
                            worst = std::max(worst, error);
                            const double size = std::fabs(want), rounding = 0x1p-149;
                            worst_share =
                                std::max(worst_share, (error - rounding) / std::max(size, rounding));
                        }
                        CAPTURE(level_name(kernels->level), place_name(place), n, cap, pattern_name(pattern));
                        CHECK(worst <= 0x1p-21 * static_cast<double>(cap) + 0x1p-149);
                        CHECK(worst_share <= 0x1p-20);
                        CHECK(found.is_intact());
                    }
                }
            }
        }
    }
}

}  // namespace
}  // namespace gearkv::test
