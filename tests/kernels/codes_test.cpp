// Products with code words at every level, against sums in double over the codes that were packed.
#include <cmath>

#include "format/block.hpp"
#include "inputs.hpp"

namespace gearkv::test {
namespace {

constexpr float no_bias[max_rows] = {};
constexpr std::uint32_t all_bits[] = {2, 3, 4, 8};

std::vector<std::uint8_t> make_codes(std::size_t n, std::uint32_t bits, Pattern pattern, std::uint64_t seed) {
    Random random(seed);
    std::vector<std::uint8_t> codes(n);
    const std::uint32_t most = (1u << bits) - 1;
    for (std::uint8_t& code : codes) {
        const std::uint32_t any = random.below(most + 1);
        code = static_cast<std::uint8_t>(pattern == Pattern::largest    ? most
                                         : pattern == Pattern::smallest ? 0
                                                                        : any);
    }
    return codes;
}

// [n_rows][stride] of which n entries count; the rest up to `padded` is 0.
std::vector<float> make_factors(std::size_t n_rows, std::size_t n, std::size_t padded, std::size_t stride,
                                Pattern pattern, std::uint64_t seed) {
    std::vector<float> x = make_floats((n_rows - 1) * stride + padded, pattern, seed);
    for (std::size_t i = 0; i < x.size(); ++i) {
        if (i % stride >= n) x[i] = 0.0f;
    }
    return x;
}

struct ScoreCase {
    std::uint32_t bits, n_rows, n_tokens, dim, first, n_channels;
};

std::vector<ScoreCase> score_cases() {
    std::vector<ScoreCase> cases;
    for (std::uint32_t bits : all_bits) {
        for (std::uint32_t n_rows = 1; n_rows <= max_rows; ++n_rows) {
            for (std::uint32_t dim = 1; dim <= most_entries; ++dim) {
                cases.push_back({bits, n_rows, 1 + (dim * 5 + n_rows) % 40, dim, 0, dim});
            }
            for (std::uint32_t dim : {80u, 96u, 100u, 128u, 130u}) {
                cases.push_back({bits, n_rows, 64, dim, 0, dim});
                for (std::uint32_t first = 0; first < dim; first += 32) {
                    for (std::uint32_t group : {32u, 64u}) {
                        cases.push_back({bits, n_rows, 33, dim, first, std::min(group, dim - first)});
                    }
                }
            }
        }
    }
    return cases;
}

void check_scores(const Kernels& kernels, const ScoreCase& shape, Place place, Pattern pattern) {
    const std::size_t n_tiles = ceil_div(shape.n_tokens, 16);
    const std::size_t tile_words = std::size_t{16} * lane_words(shape.bits, shape.dim);
    const std::vector<std::uint8_t> codes =
        make_codes(std::size_t{shape.n_tokens} * shape.dim, shape.bits, pattern, shape.dim);
    GuardedArray<std::uint32_t> words(n_tiles * tile_words, place);
    kernels_scalar()->codec.pack_key[bits_slot(shape.bits)](words.data(), codes.data(), shape.dim,
                                                            shape.n_tokens, shape.dim);
    const std::size_t padded = round_to(shape.n_channels, 32), stride = padded + shape.dim % 3;
    GuardedArray<float> query(
        make_factors(shape.n_rows, shape.n_channels, padded, stride, Pattern::wide, shape.dim), place);
    const std::size_t score_stride = 16 * n_tiles + shape.dim % 5;
    const std::vector<float> before =
        make_floats((shape.n_rows - 1) * score_stride + 16 * n_tiles, Pattern::random, 7);
    GuardedArray<float> scores(before, place);

    const std::vector<float> bias = make_floats(shape.n_rows, Pattern::random, 8);
    const ScoreCodes args = {words.data(), tile_words,       static_cast<std::uint32_t>(n_tiles),
                             shape.first,  shape.n_channels, shape.dim,
                             query.data(), stride,           scores.data(),
                             score_stride, bias.data(),      shape.n_rows};
    kernels.attention.score_codes[bits_slot(shape.bits)](args);

    std::size_t n_wrong = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
        const std::size_t row = i / score_stride, token = i % score_stride;
        if (token >= 16 * n_tiles) {
            if (scores[i] != before[i]) ++n_wrong;
            continue;
        }
        ExactSum sum;
        FactorRounding rounding;
        sum.add(static_cast<double>(bias[row]));
        for (std::size_t c = 0; token < shape.n_tokens && c < shape.n_channels; ++c) {
            const double code = codes[token * shape.dim + shape.first + c];
            const auto factor = static_cast<double>(query[row * stride + c]);
            sum.add(code * factor);
            rounding.add(factor, code);
        }
        if (!sum.accepts(scores[i], rounding.most(kernels))) ++n_wrong;
    }
    if (n_wrong == 0 && scores.is_intact()) return;
    CAPTURE(level_name(kernels.level), place_name(place), pattern_name(pattern), shape.bits, shape.n_rows,
            shape.n_tokens, shape.dim, shape.first, shape.n_channels);
    CHECK(n_wrong == 0);
    CHECK(scores.is_intact());
}

TEST_CASE("scores of code words are the sums of query times code, at every width, row count and length") {
    std::size_t i = 0;
    for (const Kernels* kernels : all_kernels()) {
        for (const ScoreCase& shape : score_cases()) {
            const Pattern patterns[] = {Pattern::random, Pattern::largest, Pattern::smallest};
            check_scores(*kernels, shape, all_places[i % 3], patterns[i / 3 % 3]);
            ++i;
        }
    }
    CHECK(i >= score_cases().size());
}

TEST_CASE("sums of the longest rows and largest codes stay within their words") {
    for (const Kernels* kernels : all_kernels()) {
        for (const std::uint32_t dim : {128u, 256u, 264u, 512u, 520u, 1024u}) {
            for (const float factor : {1.0f, -1.0f}) {
                const std::vector<std::uint8_t> codes(std::size_t{16} * dim, 255);
                const std::size_t tile_words = std::size_t{16} * lane_words(8, dim);
                std::vector<std::uint32_t> words(tile_words);
                kernels_scalar()->codec.pack_key[bits_slot(8)](words.data(), codes.data(), dim, 16, dim);
                const std::vector<float> query(4 * std::size_t{dim}, factor);
                std::vector<float> scores(4 * std::size_t{16}, 0.0f);
                kernels->attention.score_codes[bits_slot(8)]({words.data(), tile_words, 1, 0, dim, dim,
                                                              query.data(), dim, scores.data(), 16, no_bias,
                                                              4});
                const float want = 255.0f * static_cast<float>(dim) * factor;
                CAPTURE(level_name(kernels->level), dim, factor);
                for (const float score : scores)
                    CHECK(std::fabs(score - want) <= 1e-4f * std::fabs(want));
            }
        }
    }
}

struct MixCase {
    std::uint32_t bits, n_rows, n_tokens, dim, first, n_channels;
};

std::vector<MixCase> mix_cases() {
    std::vector<MixCase> cases;
    for (std::uint32_t bits : all_bits) {
        for (std::uint32_t n_rows = 1; n_rows <= max_rows; ++n_rows) {
            for (std::uint32_t n = 1; n <= most_entries; ++n) {
                cases.push_back({bits, n_rows, n, 1 + (n * 5 + n_rows) % 40, 0, 0});
                cases.push_back({bits, n_rows, 1 + (n * 7 + n_rows) % 64, n, 0, 0});
            }
            for (std::uint32_t dim : {80u, 100u, 128u, 130u}) {
                cases.push_back({bits, n_rows, 64, dim, 0, 0});
                for (std::uint32_t first = 0; first < dim; first += 32) {
                    for (std::uint32_t group : {16u, 32u, 64u}) {
                        cases.push_back({bits, n_rows, 64, dim, first, std::min(group, dim - first)});
                    }
                }
            }
        }
    }
    for (MixCase& shape : cases) {
        if (shape.n_channels == 0) shape.n_channels = shape.dim;
    }
    return cases;
}

void check_mix(const Kernels& kernels, const MixCase& shape, Place place, Pattern pattern) {
    const std::size_t n_lanes = round_to(shape.dim, 16);
    const std::vector<std::uint8_t> codes =
        make_codes(std::size_t{shape.n_tokens} * shape.dim, shape.bits, pattern, shape.n_tokens);
    GuardedArray<std::uint32_t> words(lane_words(shape.bits, shape.n_tokens) * n_lanes, place);
    kernels_scalar()->codec.pack_value[bits_slot(shape.bits)](words.data(), codes.data(), shape.dim,
                                                              shape.n_tokens, shape.dim);
    const std::size_t padded = round_to(shape.n_tokens, 32), stride = padded + shape.dim % 3;
    GuardedArray<float> weight(
        make_factors(shape.n_rows, shape.n_tokens, padded, stride, Pattern::wide, shape.dim), place);
    const std::size_t out_stride = n_lanes + shape.dim % 5;
    const std::vector<float> before =
        make_floats((shape.n_rows - 1) * out_stride + n_lanes, Pattern::random, 7);
    GuardedArray<float> out(before, place);

    const std::vector<float> bias = make_floats(shape.n_rows, Pattern::random, 8);
    const MixCodes args = {words.data(), shape.n_tokens,   static_cast<std::uint32_t>(n_lanes),
                           shape.first,  shape.n_channels, weight.data(),
                           stride,       out.data(),       out_stride,
                           bias.data(),  shape.n_rows};
    kernels.attention.mix_codes[bits_slot(shape.bits)](args);

    std::size_t n_wrong = 0;
    const std::size_t end = shape.first + round_to(shape.n_channels, 16);
    for (std::size_t i = 0; i < before.size(); ++i) {
        const std::size_t row = i / out_stride, channel = i % out_stride;
        if (channel < shape.first || channel >= end) {
            if (out[i] != before[i]) ++n_wrong;
            continue;
        }
        ExactSum sum;
        FactorRounding rounding;
        sum.add(static_cast<double>(before[i]));
        sum.add(static_cast<double>(bias[row]));
        for (std::size_t t = 0; channel < shape.dim && t < shape.n_tokens; ++t) {
            const double code = codes[t * shape.dim + channel];
            const auto factor = static_cast<double>(weight[row * stride + t]);
            sum.add(code * factor);
            rounding.add(factor, code);
        }
        if (!sum.accepts(out[i], rounding.most(kernels))) ++n_wrong;
    }
    if (n_wrong == 0 && out.is_intact()) return;
    CAPTURE(level_name(kernels.level), place_name(place), pattern_name(pattern), shape.bits, shape.n_rows,
            shape.n_tokens, shape.dim, shape.first, shape.n_channels);
    CHECK(n_wrong == 0);
    CHECK(out.is_intact());
}

TEST_CASE("mixed code words are the sums of weight times code, at every width, row count and length") {
    std::size_t i = 0;
    for (const Kernels* kernels : all_kernels()) {
        for (const MixCase& shape : mix_cases()) {
            const Pattern patterns[] = {Pattern::random, Pattern::largest, Pattern::smallest};
            check_mix(*kernels, shape, all_places[i % 3], patterns[i / 3 % 3]);
            ++i;
        }
    }
    CHECK(i >= mix_cases().size());
}

}  // namespace
}  // namespace gearkv::test
