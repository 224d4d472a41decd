// The integer products of the level in use: against the reference bit for bit, and the reference against
// sums in double.
#include "decoder/network/integer.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "decoder/network/product.hpp"
#include "kernels/guarded_array.hpp"
#include "support/blocks.hpp"
#include "support/catch.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

const IntegerKernels& kernels() {
    const IntegerKernels* found = find_integer_kernels(Level::automatic);
    REQUIRE(found != nullptr);
    return *found;
}

std::vector<TensorType> quantised_types() {
    std::vector<TensorType> types;
    for (const TensorType& type : tensor_types) {
        if (type.block > 1) types.push_back(type);
    }
    return types;
}

std::vector<float> random_floats(std::size_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& value : x) {
        value = normal(random) * (random() % 16 == 0 ? 20.0f : 1.0f);
    }
    return x;
}

std::vector<CodeBlock> round(const IntegerKernels& by, const std::vector<float>& x) {
    std::vector<CodeBlock> blocks(x.size() / code_block);
    by.round(blocks.data(), x.data(), blocks.size());
    return blocks;
}

bool is_same(const CodeBlock& a, const CodeBlock& b) {
    return std::memcmp(&a, &b, sizeof(a)) == 0;
}

int code_of(const CodeBlock& block, std::size_t i) {
    return 128 * block.high[i] + block.low[i];
}

// Every code that a kernel might stumble over: all of them -16256, 0 or 16256, or the two in turn.
std::vector<CodeBlock> extreme_codes(std::size_t n_blocks) {
    std::vector<float> x(n_blocks * code_block);
    for (std::size_t i = 0; i < x.size(); i++) {
        const std::size_t block = i / code_block;
        const float size = block % 5 == 4 ? 0.0f : 1.0f;
        x[i] = size * (block % 5 == 0 || (block % 5 == 2 && i % 2 == 0) || (block % 5 == 3 && i % 32 < 16)
                           ? 1.0f
                           : -1.0f);
    }
    return round(integer_scalar, x);
}

struct Shape {
    std::size_t n_rows, n_cols, n_tokens;
};

IntegerArgs make_args(const TensorType& type, const Shape& shape, const std::uint8_t* w, const CodeBlock* x,
                      float* y) {
    IntegerArgs args;
    args.y = y;
    args.y_stride = shape.n_rows;
    args.w = w;
    args.row_bytes = shape.n_cols / type.block * type.block_bytes;
    args.x = x;
    args.x_stride = shape.n_cols / code_block;
    args.n_rows = shape.n_rows;
    args.n_cols = shape.n_cols;
    args.n_tokens = shape.n_tokens;
    return args;
}

void arrange(const IntegerKernels& by, const TensorType& type, CodeBlock* x, std::size_t n) {
    if (const auto run = by.arrange[static_cast<std::size_t>(type.type)]) run(x, n);
}

std::vector<float> multiply(const IntegerKernels& by, const TensorType& type, const Shape& shape,
                            const Bytes& w, std::vector<CodeBlock> x) {
    arrange(by, type, x.data(), x.size());
    std::vector<float> y(shape.n_rows * shape.n_tokens, NAN);
    by.multiply[static_cast<std::size_t>(type.type)](make_args(type, shape, w.data(), x.data(), y.data()));
    return y;
}

bool is_same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("vectors become codes as the reference rounds them, within half a step", "[products]") {
    for (unsigned seed = 0; seed < 50; seed++) {
        std::vector<float> x = random_floats(8 * code_block, seed);
        for (float& value : x) {
            if (seed % 5 == 1) value = std::ldexp(value, static_cast<int>(seed) * 5 - 110);
            if (seed % 5 == 2) value = std::round(value * 1024.0f) * 0.5f;  // ties
            if (seed % 5 == 3) value = seed % 2 == 0 ? 3.0f : -65504.0f;
        }
        if (seed % 5 == 2) x[3] = 16256.0f;
        if (seed % 5 == 4) std::fill_n(x.begin() + 32, 32, 0.0f);
        const std::vector<CodeBlock> expected = round(integer_scalar, x), found = round(kernels(), x);
        for (std::size_t i = 0; i < expected.size(); i++) {
            CAPTURE(seed, i, expected[i].scale, found[i].scale);
            REQUIRE(is_same(found[i], expected[i]));
            int halves[2] = {};
            for (std::size_t c = 0; c < code_block; c++) {
                const int code = code_of(found[i], c);
                const double scale = static_cast<double>(found[i].scale);
                REQUIRE(std::abs(code) <= 16256);
                REQUIRE(found[i].low[c] >= -64);
                REQUIRE(found[i].low[c] < 64);
                REQUIRE(std::fabs(static_cast<double>(x[i * code_block + c]) - scale * code) <=
                        scale * 0.502 + 0x1p-112);
                halves[c / 16] += code;
            }
            REQUIRE(found[i].halves[0] == halves[0]);
            REQUIRE(found[i].halves[1] == halves[1]);
            REQUIRE(found[i].sum == found[i].scale * static_cast<float>(halves[0] + halves[1]));
        }
    }
}

TEST_CASE("what is no number stays none, and what is too small becomes 0", "[products]") {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (const float bad : {NAN, -NAN, infinity, -infinity}) {
        for (std::size_t at = 0; at < code_block; at++) {
            std::vector<float> x(3 * code_block, 1.0f);
            x[code_block + at] = bad;
            const std::vector<CodeBlock> blocks = round(kernels(), x);
            REQUIRE(std::isnan(blocks[1].scale));
            REQUIRE(std::isnan(blocks[1].sum));
            REQUIRE(blocks[0].scale == blocks[2].scale);
            REQUIRE(std::isfinite(blocks[0].scale));
        }
    }
    for (const TensorType& type : quantised_types()) {
        CAPTURE(type.name);
        std::vector<float> x(256, 1.0f);
        x[77] = NAN;
        const Bytes w = random_blocks(type.type, 3 * 256, 1);
        for (const float y : multiply(kernels(), type, {3, 256, 1}, w, round(kernels(), x))) {
            REQUIRE(std::isnan(y));
        }
    }
    for (const float size : {0x1p-112f, 0x1.fffffep-113f, 0x1p-120f, 0x1p-149f}) {
        std::vector<float> x(code_block, 0.0f);
        x[5] = -size;
        const std::vector<CodeBlock> expected = round(integer_scalar, x), found = round(kernels(), x);
        CHECK(is_same(found[0], expected[0]));
        CHECK(code_of(found[0], 5) == (size < 0x1p-112f ? 0 : -16256));
    }
}

TEST_CASE("products have the bits of the reference for every width, row count and number of vectors",
          "[products]") {
    for (const TensorType& type : quantised_types()) {
        CAPTURE(type.name);
        // Every tail of rows and of vectors, then widths, and vectors beyond those that share unpacked
        // weights.
        const auto compare = [&](const Shape& shape) {
            const Bytes w = random_blocks(type.type, shape.n_rows * shape.n_cols, 7);
            const auto x = round(integer_scalar, random_floats(shape.n_tokens * shape.n_cols, 8));
            CAPTURE(shape.n_cols, shape.n_rows, shape.n_tokens);
            REQUIRE(
                is_same(multiply(kernels(), type, shape, w, x), multiply(integer_scalar, type, shape, w, x)));
        };
        for (std::size_t n_rows = 1; n_rows <= 17; n_rows++) {
            for (std::size_t n_tokens = 1; n_tokens <= 9; n_tokens++)
                compare({n_rows, type.block, n_tokens});
        }
        for (const std::size_t n_blocks : {2, 3, 5, 17}) {
            for (const std::size_t n_tokens : {1, 2, 3, 4})
                compare({5, n_blocks * type.block, n_tokens});
        }
        for (const std::size_t n_tokens : {63, 64, 65, 70})
            compare({3, 768, n_tokens});
    }
}

// Scales stay what they are; the bytes of codes become all alike.
TEST_CASE("the largest and smallest codes neither saturate nor overflow", "[products]") {
    for (const TensorType& type : quantised_types()) {
        CAPTURE(type.name);
        const Shape shape = {9, 5 * 256, 2};
        const std::vector<CodeBlock> x = extreme_codes(2 * shape.n_cols / code_block);
        const BlockScales scales = block_scales(type.type);
        const Bytes random = random_blocks(type.type, shape.n_rows * shape.n_cols, 3);
        for (const int byte : {0x00, 0xff, 0x80, 0x7f, 0x0f, 0xf0, 0x88, 0x77, 0x55, 0xaa}) {
            CAPTURE(byte);
            Bytes w = random;
            for (std::size_t i = 0; i < w.size(); i++) {
                const std::size_t at = i % type.block_bytes;
                const bool is_scale =
                    type.type == WeightType::mxfp4
                        ? at == 0
                        : (at - scales.scale_at < 2) || (scales.low != 0.0f && at - scales.low_at < 2);
                if (!is_scale) w[i] = static_cast<std::uint8_t>(byte);
            }
            const std::vector<float> found = multiply(kernels(), type, shape, w, x);
            REQUIRE(is_same(found, multiply(integer_scalar, type, shape, w, x)));
            for (const float y : found) {
                REQUIRE(std::isfinite(y));
            }
        }
    }
}

TEST_CASE("the reference agrees with a sum in double of expanded weights and codes", "[products]") {
    for (const TensorType& type : quantised_types()) {
        CAPTURE(type.name);
        const Shape shape = {5, 4 * 256, 3};
        const Bytes w = random_blocks(type.type, shape.n_rows * shape.n_cols, 11);
        const std::vector<float> weights = expand_blocks(type.type, w);
        const auto x = round(integer_scalar, random_floats(shape.n_tokens * shape.n_cols, 12));
        const std::vector<float> y = multiply(integer_scalar, type, shape, w, x);
        for (std::size_t t = 0; t < shape.n_tokens; t++) {
            for (std::size_t r = 0; r < shape.n_rows; r++) {
                double exact = 0, magnitude = 0;
                for (std::size_t c = 0; c < shape.n_cols; c++) {
                    const CodeBlock& block = x[(t * shape.n_cols + c) / code_block];
                    const double term = static_cast<double>(weights[r * shape.n_cols + c]) *
                                        static_cast<double>(block.scale) * code_of(block, c % code_block);
                    exact += term;
                    magnitude += std::fabs(term);
                }
                CAPTURE(t, r, exact, magnitude);
                // A step for 16 or 32 columns, and one for their minimum, which may be as large as the sum.
                REQUIRE(std::fabs(static_cast<double>(y[t * shape.n_rows + r]) - exact) <=
                        magnitude * 0x1p-24 * 128);
            }
        }
    }
}

TEST_CASE("weights of any alignment are read and nothing beside the arrays is touched", "[products]") {
    for (const TensorType& type : quantised_types()) {
        CAPTURE(type.name);
        for (const Shape shape :
             {Shape{1, type.block, 1}, Shape{5, 2 * type.block, 3}, Shape{11, type.block, 5}}) {
            const Bytes w = random_blocks(type.type, shape.n_rows * shape.n_cols, 5);
            const std::vector<float> floats = random_floats(shape.n_tokens * shape.n_cols, 6);
            const auto x = round(integer_scalar, floats);
            const std::vector<float> expected = multiply(integer_scalar, type, shape, w, x);
            for (const Place place : all_places) {
                CAPTURE(place_name(place), shape.n_rows, shape.n_cols, shape.n_tokens);
                GuardedArray<std::uint8_t> guarded_w(w, place);
                GuardedArray<float> guarded_floats(floats, place), y(expected.size(), place);
                // Blocks are aligned.
                GuardedArray<CodeBlock> guarded_x(x.size(), place == Place::odd ? Place::at_start : place);
                kernels().round(guarded_x.data(), guarded_floats.data(), x.size());
                arrange(kernels(), type, guarded_x.data(), x.size());
                kernels().multiply[static_cast<std::size_t>(type.type)](
                    make_args(type, shape, guarded_w.data(), guarded_x.data(), y.data()));
                CHECK(std::memcmp(y.data(), expected.data(), expected.size() * sizeof(float)) == 0);
                CHECK((y.is_intact() && guarded_x.is_intact()));
            }
        }
    }
}

TEST_CASE("a result has the same bits whatever is computed beside it, and is added when asked to",
          "[products]") {
    for (const TensorType& type : quantised_types()) {
        CAPTURE(type.name);
        const Shape shape = {19, 2 * type.block, 11};
        const Bytes w = random_blocks(type.type, shape.n_rows * shape.n_cols, 13);
        auto x = round(kernels(), random_floats(shape.n_tokens * shape.n_cols, 14));
        const std::vector<float> together = multiply(kernels(), type, shape, w, x);
        arrange(kernels(), type, x.data(), x.size());
        std::vector<float> sum = random_floats(together.size(), 15), expected(sum);
        IntegerArgs args = make_args(type, shape, w.data(), x.data(), sum.data());
        args.accumulate = true;
        const auto run = kernels().multiply[static_cast<std::size_t>(type.type)];
        run(args);
        for (std::size_t t = 0; t < shape.n_tokens; t++) {
            for (std::size_t r = 0; r < shape.n_rows; r++) {
                const std::size_t i = t * shape.n_rows + r;
                expected[i] += together[i];
                float alone = 0;
                IntegerArgs one = make_args(type, {1, shape.n_cols, 1}, w.data() + r * args.row_bytes,
                                            x.data() + t * args.x_stride, &alone);
                run(one);
                REQUIRE(alone == together[i]);
            }
        }
        CHECK(is_same(sum, expected));
    }
}

TEST_CASE("neighbouring products of one vector have their own bits whatever their types", "[products]") {
    constexpr WeightType types[] = {WeightType::q4_0,   WeightType::q8_0, WeightType::q8_0,
                                    WeightType::iq4_nl, WeightType::q5_1, WeightType::q8_0};
    constexpr std::size_t n = std::size(types), n_rows = 9, n_cols = 96;
    ProductEngine engine(*find_linear_kernels(Level::automatic), &kernels(), 8 * n_cols, serial_executor());
    for (const std::size_t n_tokens : {1, 8}) {
        const std::vector<float> x = random_floats(n_tokens * n_cols, 16);
        std::vector<Bytes> blocks;
        std::vector<Weight> weights(n);
        std::vector<Product> products(n);
        std::vector<std::vector<float>> y(n, std::vector<float>(n_tokens * n_rows, NAN));
        for (std::size_t i = 0; i < n; i++) {
            blocks.push_back(random_blocks(types[i], n_rows * n_cols, static_cast<unsigned>(i)));
            weights[i] = {blocks[i].data(), types[i], n_rows, n_cols, blocks[i].size() / n_rows};
            products[i] = {&weights[i], x.data(), y[i].data(), false};
        }
        engine.multiply(products.data(), n, n_tokens);
        for (std::size_t i = 0; i < n; i++) {
            CAPTURE(i, n_tokens);
            CHECK(is_same(y[i], multiply(integer_scalar, tensor_type(types[i]), {n_rows, n_cols, n_tokens},
                                         blocks[i], round(integer_scalar, x))));
        }
    }
}
