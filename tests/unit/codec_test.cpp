#include <cstddef>
#include <cstring>
#include <limits>
#include <utility>

#include "format/block.hpp"
#include "support/catch.hpp"
#include "support/tensors.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

constexpr TensorKind kinds[] = {TensorKind::key, TensorKind::value};
constexpr Backbone backbones[] = {Backbone::kivi, Backbone::kcvt, Backbone::token};

struct Distance {
    double whole;  // relative Frobenius distance
    double most;   // largest, in steps of a group that spans the whole range of the tensor
};

// Between the codec and the reference with the same rounding of metadata.
Distance distance_to_reference(const Tensor& x, TensorKind kind, const TensorSpec& spec) {
    reference::Options options;
    options.spec = spec;
    options.half_metadata = true;
    const Tensor expected = reference::compress(x, kind, options).reconstruction;
    const Block block = compress(x, kind, make_options(spec));
    if (!block.status.ok()) {
        UNSCOPED_INFO(block.status.message());
        return {INFINITY, INFINITY};
    }
    const Tensor found = decompress(block, x.n_tokens, x.n_heads, x.dim);
    double most = 0;
    for (std::size_t i = 0; i < x.data.size(); ++i) {
        most = std::max(most, std::abs(found.data[i] - expected.data[i]));
    }
    const auto [lo, hi] = std::minmax_element(x.data.begin(), x.data.end());
    return {reference::relative_error(expected, found), most * ((1 << spec.bits) - 1) / (*hi - *lo + 1e-30)};
}

Tensor constant(std::size_t n_tokens, std::size_t n_heads, std::size_t dim, double value) {
    Tensor x = zeros(n_tokens, n_heads, dim);
    for (double& v : x.data)
        v = value;
    return x;
}

}  // namespace

TEST_CASE("codec equals the reference at every shape, backbone and width", "[codec][shapes]") {
    const struct {
        std::size_t n_tokens, n_heads, dim;
    } shapes[] = {{1, 1, 8},     {2, 1, 64},    {15, 2, 64}, {16, 1, 80}, {17, 3, 96},
                  {31, 2, 112},  {33, 1, 72},   {64, 2, 64}, {65, 1, 40}, {100, 2, 128},
                  {128, 1, 192}, {130, 1, 256}, {70, 2, 264}};
    unsigned seed = 0;
    for (const auto& shape : shapes) {
        for (const TensorKind kind : kinds) {
            for (const Backbone backbone : backbones) {
                for (const std::uint8_t bits : {2, 3, 4, 8}) {
                    for (const float sparsity : {0.0f, 0.02f, 0.3f}) {
                        const Tensor x = gaussian(shape.n_tokens, shape.n_heads, shape.dim, ++seed);
                        INFO("tokens " << shape.n_tokens << " heads " << shape.n_heads << " dim " << shape.dim
                                       << " kind " << int(kind) << " backbone " << int(backbone) << " bits "
                                       << int(bits) << " s " << sparsity << " seed " << seed);
                        // Float and double may fall on different sides of a tie: one code or one scale apart.
                        const Distance d =
                            distance_to_reference(x, kind, make_spec(backbone, bits, sparsity, 32));
                        CHECK(d.whole < 1e-3);
                        CHECK(d.most < 1.1);
                    }
                }
            }
        }
    }
}

TEST_CASE("constant, zero and denormal groups decode to what they were", "[codec]") {
    for (const TensorKind kind : kinds) {
        for (const Backbone backbone : backbones) {
            for (const double value : {0.0, 1.0, -3.5, 65504.0, 5.9604645e-8, 1e-40}) {
                const Tensor x = constant(40, 2, 64, value);
                const Block block = compress(x, kind, make_options(make_spec(backbone, 2, 0.02f), 4));
                REQUIRE(block.status.ok());
                const Tensor found = decompress(block, 40, 2, 64);
                INFO("kind " << int(kind) << " backbone " << int(backbone) << " value " << value);
                for (double v : found.data)
                    REQUIRE(std::abs(v - value) <= 3e-8);
            }
        }
    }
}

TEST_CASE("the full range of fp16 survives", "[codec]") {
    Tensor x = gaussian(64, 2, 64, 3);
    for (std::size_t i = 0; i < x.data.size(); ++i)
        x.data[i] = i % 3 == 0 ? 65504.0 : -65504.0;
    for (const TensorKind kind : kinds) {
        for (const Backbone backbone : backbones) {
            for (const float sparsity : {0.0f, 0.02f}) {
                const Block block = compress(x, kind, make_options(make_spec(backbone, 2, sparsity), 4));
                REQUIRE(block.status.ok());
                const Tensor found = decompress(block, 64, 2, 64);
                for (double v : found.data)
                    REQUIRE(std::isfinite(v));
                // What an outlier misses may itself be beyond fp16 here, and is cut.
                CHECK(reference::relative_error(x, found) < (sparsity > 0 ? 0.05 : 2e-3));
            }
        }
    }
}

TEST_CASE("rank is clamped and low rank data is recovered", "[codec]") {
    Tensor x = zeros(48, 2, 64);
    const Tensor a = gaussian(48, 2, 1, 1), p = gaussian(64, 2, 1, 2);
    for (std::size_t t = 0; t < 48; ++t) {
        for (std::size_t h = 0; h < 2; ++h) {
            for (std::size_t c = 0; c < 64; ++c)
                x.at(t, h, c) = static_cast<float>(a.at(t, h, 0) * p.at(c, h, 0));
        }
    }
    const auto error = [&](std::uint32_t rank) {
        const Block block = compress(x, TensorKind::key, make_options(make_spec(Backbone::kivi, 2), rank));
        REQUIRE(block.status.ok());
        return reference::relative_error(x, decompress(block, 48, 2, 64));
    };
    CHECK(error(64) < 2e-3);
    CHECK(error(1000) < 2e-3);  // more than tokens or channels: all of them
    CHECK(error(4) < error(0));
}

TEST_CASE("bad rows are refused with a message that says where", "[codec]") {
    for (const double bad : {double(NAN), double(INFINITY), -double(INFINITY)}) {
        Tensor x = gaussian(20, 2, 64, 1);
        x.at(7, 1, 63) = bad;
        const Block block = compress(x, TensorKind::key, make_options(make_spec(Backbone::kivi, 2)));
        CHECK(block.status.code() == Code::non_finite);
        CHECK(std::strstr(block.status.message(), "token 7, head 1") != nullptr);
    }
    Tensor x = gaussian(20, 2, 64, 1);
    x.at(3, 0, 0) = 70000.0;
    CHECK(compress(x, TensorKind::value, make_options(make_spec(Backbone::token, 8))).status.code() ==
          Code::not_representable);
    CHECK(compress(x, TensorKind::value, make_options(make_spec(Backbone::raw16, 16))).status.code() ==
          Code::not_representable);
    CHECK(compress(x, TensorKind::value, make_options(make_spec(Backbone::raw32, 32))).status.ok());
}

TEST_CASE("sizes that do not fit are refused", "[codec]") {
    const BlockOptions options = make_options(make_spec(Backbone::kivi, 2));
    BlockBytes bytes;
    const auto code = [&](BlockShape shape) { return block_bytes(shape, options, &bytes).code(); };
    CHECK(code({TensorKind::key, 0, 1, 64}) == Code::wrong_size);
    CHECK(code({TensorKind::key, 65537, 1, 64}) == Code::wrong_size);
    CHECK(code({TensorKind::key, 64, 0, 64}) == Code::wrong_size);
    CHECK(code({TensorKind::key, 64, 4097, 64}) == Code::wrong_size);
    CHECK(code({TensorKind::key, 64, 1, 0}) == Code::wrong_size);
    CHECK(code({TensorKind::key, 64, 1, 60}) == Code::wrong_size);
    CHECK(code({TensorKind::key, 64, 1, 2048}) == Code::wrong_size);
    CHECK(block_bytes({TensorKind::key, 64, 1, 64}, options, nullptr).code() == Code::invalid_argument);
    BlockOptions bad = options;
    bad.spec.bits = 5;
    CHECK(block_bytes({TensorKind::key, 64, 1, 64}, bad, &bytes).code() == Code::bad_spec);
}

TEST_CASE("equal inputs give equal bytes for any number of threads", "[codec][thread]") {
    const Tensor x = structured(200, 5, 64, 9);
    for (const TensorKind kind : kinds) {
        for (const Backbone backbone : backbones) {
            const BlockOptions options = make_options(make_spec(backbone, 3, 0.02f), 4, 17);
            const Block serial = compress(x, kind, options);
            REQUIRE(serial.status.ok());
            for (const unsigned n_threads : {2u, 5u}) {
                std::unique_ptr<Executor> executor;
                REQUIRE(create_executor(n_threads, &executor).ok());
                const Block parallel = compress(x, kind, options, *executor);
                REQUIRE(parallel.parts.bytes == serial.parts.bytes);
                CHECK(std::memcmp(parallel.bytes.bytes(), serial.bytes.bytes(), serial.parts.bytes) == 0);
            }
        }
    }
}

TEST_CASE("bytes by part add up to the block and follow the paper's count", "[codec]") {
    const Tensor x = gaussian(1024, 4, 64, 5);
    const Block block = compress(x, TensorKind::key, make_options(make_spec(Backbone::kivi, 2, 0.02f), 4));
    REQUIRE(block.status.ok());
    const BlockBytes& p = block.parts;
    CHECK(p.bytes == p.header + p.codes + p.scales + p.low_rank + p.outliers + p.padding);
    const std::uint64_t n = 1024 * 4 * 64;
    CHECK(p.codes == n * 2 / 8);
    CHECK(p.scales == n / 64 * 4);
    CHECK(p.low_rank == 4 * 4 * (1024 + 64) * 2);
    // 10 at each end of 256 channels: a byte and a half each, one count byte per token and head, five starts.
    CHECK(p.outliers == 256 * 20 * 3 + 1024 * 4 + 5 * 4);
    CHECK(p.padding < 64 * 10);
}

TEST_CASE("a block says what it is", "[codec]") {
    const TensorSpec spec = make_spec(Backbone::token, 3, 0.1f, 32);
    const Block block = compress(gaussian(50, 3, 96, 1), TensorKind::value, make_options(spec, 2));
    REQUIRE(block.status.ok());
    BlockShape shape;
    TensorSpec found;
    BlockBytes bytes;
    REQUIRE(inspect_block(block.bytes.bytes(), block.parts.bytes, &shape, &found, &bytes).ok());
    CHECK(shape.kind == TensorKind::value);
    CHECK(shape.n_tokens == 50);
    CHECK(shape.n_heads == 3);
    CHECK(shape.dim == 96);
    CHECK(found.backbone == spec.backbone);
    CHECK(found.bits == spec.bits);
    CHECK(found.group == spec.group);
    CHECK(found.sparsity == spec.sparsity);
    CHECK(found.rank_prompt == 2);
    CHECK(bytes.bytes == block.parts.bytes);
}

namespace {

// Every bit of the header, every third one beyond it: each place in a byte is met.
std::size_t next_damaged(std::size_t bit) {
    return bit + (bit < sizeof(BlockHeader) * 8 ? 1 : 3);
}

}  // namespace

TEST_CASE("damaged blocks are refused or decode within bounds", "[codec][damage][once]") {
    for (const TensorKind kind : kinds) {
        const Tensor x = structured(40, 2, 64, 4);
        const Block block = compress(x, kind, make_options(make_spec(Backbone::kivi, 2, 0.05f, 32), 2));
        REQUIRE(block.status.ok());
        std::vector<float> out(40 * 2 * 64);
        const auto decode = [&](unsigned char* bytes, std::size_t n) {
            return decompress_block(out.data(), out.size(), bytes, n);
        };
        for (std::size_t n = 0; n < block.parts.bytes; ++n) {
            AlignedBytes shorter(n + 64);
            std::memcpy(shorter.bytes(), block.bytes.bytes(), n);
            REQUIRE(decode(shorter.bytes(), n).code() == Code::bad_block);
        }
        AlignedBytes longer(block.parts.bytes + 64);
        std::memset(longer.bytes(), 0, block.parts.bytes + 64);
        std::memcpy(longer.bytes(), block.bytes.bytes(), block.parts.bytes);
        CHECK(decode(longer.bytes(), block.parts.bytes + 64).code() == Code::bad_block);
        // Every bit of the header matters but those of the fraction asked for, which the counts bear out;
        // others change values or are refused, and never crash.
        for (std::size_t bit = 0; bit < block.parts.bytes * 8; bit = next_damaged(bit)) {
            longer.bytes()[bit / 8] ^= static_cast<unsigned char>(1u << bit % 8);
            const Status status = decode(longer.bytes(), block.parts.bytes);
            const bool tells_sparsity = bit / 8 - offsetof(BlockHeader, sparsity) < sizeof(float);
            if (bit < sizeof(BlockHeader) * 8 && !tells_sparsity) {
                INFO("bit " << bit);
                CHECK(status.code() == Code::bad_block);
            }
            longer.bytes()[bit / 8] ^= static_cast<unsigned char>(1u << bit % 8);
        }
        CHECK(decode(longer.bytes() + 1, block.parts.bytes).code() == Code::bad_block);
        CHECK(decompress_block(out.data(), out.size() - 1, block.bytes.bytes(), block.parts.bytes).code() ==
              Code::wrong_size);
    }
}

namespace {

TensorSpec make_trellis(float rate) {
    TensorSpec spec = {Backbone::trellis, 0};
    spec.rate = rate;
    return spec;
}

}  // namespace

TEST_CASE("trellis codes lie below the scalar quantiser's limit on Gaussian data, and fall with the rate",
          "[codec]") {
    for (const TensorKind kind : kinds) {
        const Tensor x = gaussian(512, 2, 64, 5);
        double before = 1;
        // A Lloyd-Max quantiser has .603, .343, .186 and .097 at 1, 2, 3 and 4 bits.
        for (const auto& [rate, most] :
             {std::pair{1.0f, 0.59}, {1.5f, 0.48}, {2.0f, 0.33}, {2.5f, 0.25}, {3.0f, 0.18}, {4.0f, 0.095}}) {
            const Block block = compress(x, kind, make_options(make_trellis(rate)));
            REQUIRE(block.status.ok());
            const double error = reference::relative_error(x, decompress(block, 512, 2, 64));
            INFO("kind " << int(kind) << " rate " << rate << " error " << error);
            CHECK(error < most);
            CHECK(error < before);
            CHECK(block.parts.codes == static_cast<std::uint64_t>(rate * 512 * 2 * 64 / 8));
            before = error;
        }
    }
}

TEST_CASE("tokens of nearly no value do not get the mean of the others", "[codec]") {
    Tensor x = gaussian(512, 2, 64, 9);
    const auto is_short = [](std::size_t t) { return t % 32 == 5; };
    for (std::size_t t = 0; t < 512; ++t) {
        for (std::size_t i = t * 128; i < (t + 1) * 128; ++i)
            x.data[i] = (is_short(t) ? 0.1 : 1.0) * (x.data[i] + 2.0);
    }
    for (const float rate : {1.0f, 2.0f, 4.0f}) {
        const Block block = compress(x, TensorKind::value, make_options(make_trellis(rate)));
        REQUIRE(block.status.ok());
        const Tensor found = decompress(block, 512, 2, 64);
        double square[2] = {}, n[2] = {};
        for (std::size_t t = 0; t < 512; ++t) {
            for (std::size_t i = t * 128; i < (t + 1) * 128; ++i) {
                square[is_short(t)] += (found.data[i] - x.data[i]) * (found.data[i] - x.data[i]);
                n[is_short(t)] += 1;
            }
        }
        const double ratio = std::sqrt(square[1] / n[1] / (square[0] / n[0]));
        INFO("rate " << rate << " ratio " << ratio);
        CHECK(ratio < 0.2);
    }
}

TEST_CASE("trellis blocks hold any shape, constants and the full range", "[codec][shapes]") {
    for (const TensorKind kind : kinds) {
        for (const std::size_t dim : {8u, 40u, 64u, 72u, 80u, 112u, 192u, 256u}) {
            for (const std::size_t n_tokens : {1u, 5u, 127u, 128u, 129u, 300u}) {
                const Tensor x = structured(n_tokens, 2, dim, 3);
                const Block block = compress(x, kind, make_options(make_trellis(4.0f)));
                REQUIRE(block.status.ok());
                const double error = reference::relative_error(x, decompress(block, n_tokens, 2, dim));
                INFO("kind " << int(kind) << " dim " << dim << " tokens " << n_tokens << " error " << error);
                CHECK(error < (n_tokens < 128 ? 0.6 : 0.3));
            }
        }
        for (const double value : {0.0, 1.0, -3.5, 65504.0, 1e-6, 1e-40}) {
            const Tensor x = constant(200, 2, 64, value);
            const Block block = compress(x, kind, make_options(make_trellis(2.0f)));
            REQUIRE(block.status.ok());
            for (double v : decompress(block, 200, 2, 64).data)
                REQUIRE(std::abs(v - value) <= 1e-3 * std::abs(value) + 1e-7);
        }
        Tensor x = gaussian(128, 1, 64, 3);
        for (std::size_t i = 0; i < x.data.size(); ++i)
            x.data[i] = i * 7919 % 5 < 2 ? 65504.0 : -65504.0;
        const Block block = compress(x, kind, make_options(make_trellis(4.0f)));
        REQUIRE(block.status.ok());
        for (double v : decompress(block, 128, 1, 64).data)
            REQUIRE(std::isfinite(v));
    }
}

TEST_CASE("damaged trellis blocks are refused or decode within bounds", "[codec][damage][once]") {
    for (const TensorKind kind : kinds) {
        const Block block = compress(structured(130, 2, 16, 4), kind, make_options(make_trellis(2.5f)));
        REQUIRE(block.status.ok());
        std::vector<float> out(130 * 2 * 16);
        AlignedBytes damaged(block.parts.bytes);
        std::memcpy(damaged.bytes(), block.bytes.bytes(), block.parts.bytes);
        const auto decode = [&] {
            return decompress_block(out.data(), out.size(), damaged.bytes(), block.parts.bytes);
        };
        REQUIRE(decode().ok());
        std::size_t n_refused = 0;
        for (std::size_t bit = 0; bit < block.parts.bytes * 8; bit = next_damaged(bit)) {
            damaged.bytes()[bit / 8] ^= static_cast<unsigned char>(1u << bit % 8);
            n_refused += !decode().ok();
            damaged.bytes()[bit / 8] ^= static_cast<unsigned char>(1u << bit % 8);
        }
        CHECK(n_refused > sizeof(BlockHeader) * 6);
    }
}

TEST_CASE("two sequences together equal two sequences apart", "[codec]") {
    // Per-head parts do not see other heads; backbones that share over heads are left out.
    const Tensor x = gaussian(64, 2, 64, 1);
    const Block both = compress(x, TensorKind::key, make_options(make_spec(Backbone::kivi, 2, 0.02f), 0));
    REQUIRE(both.status.ok());
    const Tensor together = decompress(both, 64, 2, 64);
    for (std::size_t h = 0; h < 2; ++h) {
        Tensor one = zeros(64, 1, 64);
        for (std::size_t t = 0; t < 64; ++t) {
            for (std::size_t c = 0; c < 64; ++c)
                one.at(t, 0, c) = x.at(t, h, c);
        }
        const Block apart =
            compress(one, TensorKind::key, make_options(make_spec(Backbone::kivi, 2, 0.02f), 0));
        const Tensor alone = decompress(apart, 64, 1, 64);
        for (std::size_t t = 0; t < 64; ++t) {
            for (std::size_t c = 0; c < 64; ++c)
                REQUIRE(alone.at(t, 0, c) == together.at(t, h, c));
        }
    }
}
