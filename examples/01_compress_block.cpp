// Compress keys and values of 512 tokens as one block each, and see what each codec costs and keeps.
//
//   01_compress_block
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "dense_attention.hpp"
#include "gearkv/codec.hpp"

using namespace gearkv;

namespace {

constexpr std::uint32_t n_tokens = 512, n_heads = 4, dim = 64;

// Rows [n_tokens, n_heads, dim] as keys tend to be: few directions carry most of a head, some channels are
// loud.
std::vector<float> make_rows(unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const std::size_t row = n_heads * dim;
    std::vector<float> directions(4 * row), x(n_tokens * row);
    for (float& v : directions)
        v = normal(random);
    for (std::uint32_t t = 0; t < n_tokens; ++t) {
        for (int r = 0; r < 4; ++r) {
            const float weight = normal(random);
            for (std::size_t c = 0; c < row; ++c)
                x[t * row + c] += weight * directions[static_cast<std::size_t>(r) * row + c];
        }
        for (std::size_t c = 0; c < row; ++c) {
            x[t * row + c] = (x[t * row + c] + 0.3f * normal(random)) * (c % 37 == 5 ? 8.0f : 1.0f);
        }
    }
    return x;
}

// Ends the example with the library's message.
void require(const Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "%s: %s\n", code_name(status.code()), status.message());
    std::exit(1);
}

// A block lies at a multiple of 64 bytes.
struct alignas(64) BlockLine {
    unsigned char bytes[64];
};

// Compresses and decompresses; returns the relative error and adds to the bytes.
double measure(const std::vector<float>& x, TensorKind kind, const TensorSpec& spec, std::uint64_t* n_bytes) {
    const BlockShape shape = {kind, n_tokens, n_heads, dim};
    BlockOptions options;
    options.spec = spec;
    options.rank = spec.rank_prompt;

    BlockBytes bytes;
    require(block_bytes(shape, options, &bytes));  // exact, before anything is compressed
    std::vector<BlockLine> block((bytes.bytes + 63) / 64);
    const Rows rows = {x.data(), n_heads * dim, dim};  // read in place, any strides
    require(compress_block(block.data(), bytes.bytes, rows, shape, options, serial_executor()));

    std::vector<float> y(x.size());
    require(decompress_block(y.data(), y.size(), block.data(), bytes.bytes));
    *n_bytes += bytes.bytes;
    return relative_error(y, x);
}

}  // namespace

int main() {
    const std::vector<float> keys = make_rows(1), values = make_rows(2);
    double error_before = std::numeric_limits<double>::infinity();
    std::printf("%-12s %8s %8s %14s\n", "kv", "K error", "V error", "bits/element");
    for (const char* name : {"kivi-2", "gearl-2", "gear-2", "gear-4", "q8", "f16"}) {
        KvSpec spec;
        require(parse_spec(name, &spec));
        std::uint64_t n_bytes = 0;
        const double key_error = measure(keys, TensorKind::key, spec.key, &n_bytes);
        const double value_error = measure(values, TensorKind::value, spec.value, &n_bytes);
        const double n_elements = static_cast<double>(keys.size() + values.size());
        std::printf("%-12s %8.4f %8.4f %14.3f\n", name, key_error, value_error,
                    8.0 * static_cast<double>(n_bytes) / n_elements);
        // On rows of this structure every next codec of the list keeps more.
        if (key_error + value_error >= error_before) {
            std::fprintf(stderr, "%s is no better than the codec before it\n", name);
            return 1;
        }
        error_before = key_error + value_error;
    }
    return 0;
}
