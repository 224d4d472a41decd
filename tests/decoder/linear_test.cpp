// The matrix kernels of the level in use against a product in double.
#include "decoder/network/linear.hpp"

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "decoder/network/product.hpp"
#include "support/catch.hpp"
#include "support/model_maker.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

const LinearKernels& kernels() {
    const LinearKernels* found = find_linear_kernels(Level::automatic);
    REQUIRE(found != nullptr);
    return *found;
}

constexpr std::size_t f16_index = static_cast<std::size_t>(WeightType::f16);

std::size_t bytes_per_row(std::size_t type, std::size_t n_cols) {
    return n_cols / tensor_types[type].block * tensor_types[type].block_bytes;
}

std::vector<float> random_floats(std::size_t n, unsigned seed, float size = 1.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, size);
    std::vector<float> x(n);
    for (float& value : x) {
        value = normal(random);
    }
    return x;
}

struct Matrix {
    Bytes bytes;
    std::vector<double> values;
};

Matrix random_matrix(std::size_t type, std::size_t n_rows, std::size_t n_cols, unsigned seed) {
    Matrix matrix;
    const std::vector<float> weights = random_floats(n_rows * n_cols, seed, 0.05f);
    matrix.bytes = encode_weights(weights, tensor_types[type].id, &matrix.values);
    return matrix;
}

// Memory that ends where reading on would fault.
class GuardedBytes {
  public:
    explicit GuardedBytes(const Bytes& bytes) {
        const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        n_mapped_ = (bytes.size() + page - 1) / page * page + page;
        base_ = static_cast<std::uint8_t*>(
            mmap(nullptr, n_mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        REQUIRE(base_ != MAP_FAILED);
        REQUIRE(mprotect(base_ + n_mapped_ - page, page, PROT_NONE) == 0);
        data_ = base_ + n_mapped_ - page - bytes.size();
        std::memcpy(data_, bytes.data(), bytes.size());
    }
    ~GuardedBytes() { munmap(base_, n_mapped_); }
    GuardedBytes(const GuardedBytes&) = delete;
    GuardedBytes& operator=(const GuardedBytes&) = delete;
    std::uint8_t* data() { return data_; }
    float* floats() { return reinterpret_cast<float*>(data_); }

  private:
    std::uint8_t* base_;
    std::uint8_t* data_;
    std::size_t n_mapped_;
};

Bytes bytes_of(const std::vector<float>& x) {
    Bytes bytes(x.size() * sizeof(float));
    std::memcpy(bytes.data(), x.data(), bytes.size());
    return bytes;
}

// The exact result and a bound on what float sums may lose: n terms in sixteen parts at worst in sequence.
// The reference, if given, may lose as much.
void check_product(const Matrix& w, const std::vector<float>& x, const float* y, std::size_t y_stride,
                   std::size_t n_rows, std::size_t n_cols, std::size_t n_tokens,
                   const float* reference = nullptr) {
    for (std::size_t t = 0; t < n_tokens; t++) {
        for (std::size_t r = 0; r < n_rows; r++) {
            double exact = 0;
            double magnitude = 0;
            for (std::size_t c = 0; c < n_cols; c++) {
                const double term = w.values[r * n_cols + c] * static_cast<double>(x[t * n_cols + c]);
                exact += term;
                magnitude += std::fabs(term);
            }
            const double allowed =
                magnitude * 0x1p-23 * (static_cast<double>(std::min<std::size_t>(n_cols, 1024)) / 4 + 8);
            const auto found = static_cast<double>(y[t * y_stride + r]);
            const double other =
                reference == nullptr ? found : static_cast<double>(reference[t * y_stride + r]);
            if (std::fabs(found - exact) <= allowed && std::fabs(found - other) <= 2 * allowed) continue;
            CAPTURE(t, r, n_cols, exact, found, other);
            FAIL("a product is off");
        }
    }
}

LinearArgs make_args(std::size_t type, const std::uint8_t* w, const float* x, float* y, std::size_t n_rows,
                     std::size_t n_cols, std::size_t n_tokens) {
    LinearArgs args;
    args.y = y;
    args.y_stride = n_rows;
    args.w = w;
    args.row_bytes = bytes_per_row(type, n_cols);
    args.x = x;
    args.x_stride = n_cols;
    args.n_rows = n_rows;
    args.n_cols = n_cols;
    args.n_tokens = n_tokens;
    return args;
}

}  // namespace

TEST_CASE(
    "products agree with a sum in double and with the reference for every width, row count and number of "
    "vectors",
    "[products]") {
    for (std::size_t type = 0; type < n_weight_types; type++) {
        CAPTURE(tensor_types[type].name);
        for (const std::size_t n_cols : {1,  2,  3,   7,   8,   15,   16,   17,   31,   32,   33,   63,  64,
                                         65, 96, 100, 256, 768, 1023, 1024, 1025, 1056, 1280, 2049, 2080}) {
            if (n_cols % tensor_types[type].block != 0) continue;
            for (const std::size_t n_rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15}) {
                for (const std::size_t n_tokens : {1, 2, 3, 4, 5, 6, 7, 8, 13}) {
                    if (n_cols > 256 && n_rows * n_tokens > 45) continue;
                    const Matrix w = random_matrix(type, n_rows, n_cols, 7);
                    const std::vector<float> x = random_floats(n_cols * n_tokens, 8);
                    std::vector<float> y(n_rows * n_tokens, NAN), reference(y);
                    LinearArgs args =
                        make_args(type, w.bytes.data(), x.data(), y.data(), n_rows, n_cols, n_tokens);
                    kernels().multiply[type](args);
                    args.y = reference.data();
                    linear_scalar.multiply[type](args);
                    check_product(w, x, y.data(), n_rows, n_rows, n_cols, n_tokens, reference.data());
                }
            }
        }
    }
}

TEST_CASE("weights of any alignment are read and nothing outside of the arrays is touched", "[products]") {
    constexpr std::size_t n_rows = 5;
    constexpr std::size_t n_tokens = 3;
    for (std::size_t type = 0; type < n_weight_types; type++) {
        CAPTURE(tensor_types[type].name);
        for (const std::size_t n_cols : {1, 5, 16, 31, 32, 64, 97, 512, 1030, 1056}) {
            if (n_cols % tensor_types[type].block != 0) continue;
            const Matrix w = random_matrix(type, n_rows, n_cols, 3);
            const std::vector<float> x = random_floats(n_cols * n_tokens, 4);
            std::vector<float> expected(n_rows * n_tokens);
            kernels().multiply[type](
                make_args(type, w.bytes.data(), x.data(), expected.data(), n_rows, n_cols, n_tokens));
            GuardedBytes guarded_w(w.bytes);
            GuardedBytes guarded_x(bytes_of(x));
            GuardedBytes guarded_y(Bytes(n_rows * n_tokens * sizeof(float)));
            kernels().multiply[type](make_args(type, guarded_w.data(), guarded_x.floats(), guarded_y.floats(),
                                               n_rows, n_cols, n_tokens));
            CHECK(std::memcmp(guarded_y.data(), expected.data(), expected.size() * sizeof(float)) == 0);
            for (std::size_t shift = 0; shift < 64; shift++) {
                Bytes shifted(shift, 0xff);
                shifted.insert(shifted.end(), w.bytes.begin(), w.bytes.end());
                std::vector<float> y(n_rows * n_tokens);
                kernels().multiply[type](
                    make_args(type, shifted.data() + shift, x.data(), y.data(), n_rows, n_cols, n_tokens));
                REQUIRE(y == expected);
            }
        }
    }
}

TEST_CASE("a result has the same bits whatever else is computed beside it", "[products]") {
    constexpr std::size_t n_rows = 21;
    constexpr std::size_t n_tokens = 17;
    for (std::size_t type = 0; type < n_weight_types; type++) {
        CAPTURE(tensor_types[type].name);
        for (const std::size_t n_cols : {32, 100, 2048}) {
            if (n_cols % tensor_types[type].block != 0) continue;
            const Matrix w = random_matrix(type, n_rows, n_cols, 5);
            const std::vector<float> x = random_floats(n_cols * n_tokens, 6);
            std::vector<float> together(n_rows * n_tokens);
            LinearArgs args =
                make_args(type, w.bytes.data(), x.data(), together.data(), n_rows, n_cols, n_tokens);
            kernels().multiply[type](args);
            for (std::size_t t = 0; t < n_tokens; t++) {
                for (std::size_t r = 0; r < n_rows; r++) {
                    float alone = 0;
                    args.y = &alone;
                    args.w = w.bytes.data() + r * args.row_bytes;
                    args.x = x.data() + t * n_cols;
                    args.n_rows = 1;
                    args.n_tokens = 1;
                    kernels().multiply[type](args);
                    REQUIRE(alone == together[t * n_rows + r]);
                }
            }
        }
    }
}

TEST_CASE("accumulate adds the product to what stands there", "[products]") {
    const std::size_t n_cols = 96;
    const Matrix w = random_matrix(f16_index, 6, n_cols, 9);
    const std::vector<float> x = random_floats(n_cols * 4, 10);
    std::vector<float> product(24);
    kernels().multiply[f16_index](
        make_args(f16_index, w.bytes.data(), x.data(), product.data(), 6, n_cols, 4));
    std::vector<float> sum = random_floats(24, 11);
    std::vector<float> expected(24);
    for (std::size_t i = 0; i < 24; i++) {
        expected[i] = sum[i] + product[i];
    }
    LinearArgs args = make_args(f16_index, w.bytes.data(), x.data(), sum.data(), 6, n_cols, 4);
    args.accumulate = true;
    kernels().multiply[f16_index](args);
    CHECK(sum == expected);
}

TEST_CASE("blocks of every type are worth what another reader of the format says, bit for bit",
          "[products]") {
    int n_types = 0;
    for (const TensorType& info : tensor_types) {
        if (info.type == WeightType::f32) continue;
        CAPTURE(info.name);
        std::ifstream file(std::string(GEARKV_DATA_DIR "/blocks/") + info.name + ".bin", std::ios::binary);
        const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        const std::size_t n_blocks = text.size() / (info.block_bytes + 4 * info.block);
        REQUIRE(n_blocks >= 3);
        REQUIRE(text.size() == n_blocks * (info.block_bytes + 4 * info.block));
        const Bytes blocks(text.begin(),
                           text.begin() + static_cast<std::ptrdiff_t>(n_blocks * info.block_bytes));
        const char* expected = text.data() + blocks.size();
        std::vector<float> out(n_blocks * info.block);
        kernels().expand[static_cast<std::size_t>(info.type)](out.data(), blocks.data(), 0, out.size());
        for (std::size_t i = 0; i < out.size(); i++) {
            CAPTURE(i, out[i]);
            REQUIRE(std::memcmp(expected + 4 * i, &out[i], sizeof(float)) == 0);
        }
        n_types++;
    }
    CHECK(n_types == n_weight_types - 1);
}

// Every half and bfloat there is, random bytes for the others.
Bytes special_bytes(const TensorType& info) {
    if (info.block > 1 || info.type == WeightType::f32) {
        Bytes bytes(64 * (info.block > 1 ? info.block_bytes : 1024));
        std::mt19937 random(2);
        for (std::uint8_t& byte : bytes) {
            byte = static_cast<std::uint8_t>(random());
        }
        return bytes;
    }
    Bytes bytes;
    for (std::uint32_t bits = 0; bits < 65536; bits++) {
        put(bytes, static_cast<std::uint16_t>(bits));
    }
    return bytes;
}

void check_same(const float* out, const float* expected, std::size_t n) {
    for (std::size_t i = 0; i < n; i++) {
        CAPTURE(i);
        if (std::isnan(expected[i])) {
            REQUIRE(std::isnan(out[i]));
        } else {
            REQUIRE(std::memcmp(&out[i], &expected[i], sizeof(float)) == 0);
        }
    }
}

TEST_CASE("expanded weights equal the reference bit for bit, special values included", "[products]") {
    for (const TensorType& info : tensor_types) {
        CAPTURE(info.name);
        const auto type = static_cast<std::size_t>(info.type);
        const Bytes bytes = special_bytes(info);
        const std::size_t n = bytes.size() / info.block_bytes * info.block;
        std::vector<float> out(n);
        std::vector<float> expected(n);
        linear_scalar.expand[type](expected.data(), bytes.data(), 0, n);
        kernels().expand[type](out.data(), bytes.data(), 0, n);
        check_same(out.data(), expected.data(), n);
        const std::size_t first = std::max<std::size_t>(info.block, 32);  // a part from the middle
        std::vector<float> part(2 * first + 1, 123.0f);
        kernels().expand[type](part.data(), bytes.data(), first, 2 * first);
        check_same(part.data(), expected.data() + first, 2 * first);
        CHECK(part[2 * first] == 123.0f);
        if (info.block > 1) continue;
        for (std::size_t length = 0; length <= 64; length++) {
            std::vector<float> guarded(length + 1, 123.0f);
            kernels().expand[type](guarded.data(), bytes.data(), 2048, length);
            REQUIRE(guarded[length] == 123.0f);
        }
    }
}

TEST_CASE("half precision follows its definition", "[products]") {
    const std::uint16_t halves[] = {0x0000, 0x8000, 0x0001, 0x03ff, 0x0400,
                                    0x3c00, 0xc000, 0x7bff, 0x7c00, 0xfc00};
    const float values[] = {0.0f, -0.0f, 0x1p-24f, 0x1.ff8p-15f, 0x1p-14f,
                            1.0f, -2.0f, 65504.0f, INFINITY,     -INFINITY};
    float out[10];
    kernels().expand[f16_index](out, reinterpret_cast<const std::uint8_t*>(halves), 0, 10);
    for (int i = 0; i < 10; i++) {
        CHECK(out[i] == values[i]);
        CHECK(std::signbit(out[i]) == std::signbit(values[i]));
    }
}

TEST_CASE("swiglu is x / (1 + exp(-x)) * y over the whole range of x", "[products]") {
    for (const std::size_t n : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 1000}) {
        std::vector<float> gate = random_floats(n, 12, 20.0f);
        gate[0] = -200.0f;
        gate[n / 2] = 200.0f;
        if (n > 4) gate[3] = -88.5f;
        const std::vector<float> up = random_floats(n, 13);
        std::vector<float> out = gate;
        out.push_back(55.0f);
        std::vector<float> reference = gate;
        kernels().swiglu(out.data(), up.data(), n);
        linear_scalar.swiglu(reference.data(), up.data(), n);
        for (std::size_t i = 0; i < n; i++) {
            const double x = static_cast<double>(gate[i]);
            const double exact = x / (1.0 + std::exp(-x)) * static_cast<double>(up[i]);
            CAPTURE(n, i, gate[i], up[i]);
            REQUIRE(static_cast<double>(out[i]) == Approx(exact).epsilon(1e-6).margin(1e-30));
            REQUIRE(out[i] == Approx(reference[i]).epsilon(2e-6).margin(1e-30));
        }
        REQUIRE(out[n] == 55.0f);
    }
    float nan = NAN;
    const float one = 1.0f;
    kernels().swiglu(&nan, &one, 1);
    CHECK(std::isnan(nan));
}

TEST_CASE("geglu is GELU by tanh of x, times y, over the whole range of x", "[products]") {
    for (const std::size_t n : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 1000}) {
        std::vector<float> gate = random_floats(n, 12, 3.0f);
        gate[0] = -1e15f;
        gate[n / 2] = 1e15f;
        if (n > 4) gate[3] = -12.0f;
        const std::vector<float> up = random_floats(n, 13);
        std::vector<float> out = gate;
        out.push_back(55.0f);
        std::vector<float> reference = gate;
        kernels().geglu(out.data(), up.data(), n);
        linear_scalar.geglu(reference.data(), up.data(), n);
        for (std::size_t i = 0; i < n; i++) {
            const double x = static_cast<double>(gate[i]);
            const double z = 0.7978845608028654 * (x + 0.044715 * x * x * x);
            const double exact = 0.5 * x * (1.0 + std::tanh(z)) * static_cast<double>(up[i]);
            CAPTURE(n, i, gate[i], up[i]);
            REQUIRE(static_cast<double>(out[i]) == Approx(exact).epsilon(1e-6).margin(3e-7));
            REQUIRE(out[i] == Approx(reference[i]).epsilon(2e-6).margin(6e-7));
        }
        REQUIRE(out[n] == 55.0f);
    }
    float nan = NAN;
    const float one = 1.0f;
    kernels().geglu(&nan, &one, 1);
    CHECK(std::isnan(nan));
}

TEST_CASE("an engine gives every product of a batch, alike on one thread and on three",
          "[products][thread]") {
    std::unique_ptr<Executor> threads;
    REQUIRE(create_executor(3, &threads).ok());
    for (const std::size_t n_tokens : {1, 7, 8, 31, 32, 100}) {
        CAPTURE(n_tokens);
        std::vector<Matrix> matrices;
        std::vector<Weight> weights;
        const std::size_t shapes[][2] = {{200, 64}, {3, 1056}, {70, 2080}, {1, 32}, {90, 1280}};
        const WeightType types[] = {WeightType::f32, WeightType::q8_0, WeightType::f16, WeightType::q4_0,
                                    WeightType::q4_k};
        constexpr std::size_t n = std::size(types);
        for (std::size_t i = 0; i < n; i++) {
            const auto type = static_cast<std::size_t>(types[i]);
            matrices.push_back(random_matrix(type, shapes[i][0], shapes[i][1], 20));
            weights.push_back({matrices[i].bytes.data(), types[i], shapes[i][0], shapes[i][1],
                               bytes_per_row(type, shapes[i][1])});
        }
        std::vector<std::vector<float>> x, y, y_threads;
        std::vector<Product> products, products_threads;
        for (std::size_t i = 0; i < n; i++) {
            x.push_back(random_floats(n_tokens * shapes[i][1], 30));
            y.emplace_back(n_tokens * shapes[i][0], NAN);
            y_threads.emplace_back(n_tokens * shapes[i][0], NAN);
        }
        for (std::size_t i = 0; i < n; i++) {
            products.push_back({&weights[i], x[i].data(), y[i].data(), false});
            products_threads.push_back({&weights[i], x[i].data(), y_threads[i].data(), false});
        }
        ProductEngine serial_engine(kernels(), serial_executor());
        ProductEngine threads_engine(kernels(), *threads);
        serial_engine.multiply(products.data(), n, n_tokens);
        threads_engine.multiply(products_threads.data(), n, n_tokens);
        for (std::size_t i = 0; i < n; i++) {
            CHECK(y[i] == y_threads[i]);
            check_product(matrices[i], x[i], y[i].data(), shapes[i][0], shapes[i][0], shapes[i][1], n_tokens);
        }
    }
}

TEST_CASE("a vector gets the same bits alone, inline with others, and through expanded weights",
          "[products]") {
    constexpr std::size_t n_tokens = 31;
    for (std::size_t type = 0; type < n_weight_types; type++) {
        CAPTURE(tensor_types[type].name);
        constexpr std::size_t n_rows = 150;
        for (const std::size_t n_cols : {64, 2080, 2100}) {
            if (n_cols % tensor_types[type].block != 0) continue;
            const Matrix matrix = random_matrix(type, n_rows, n_cols, 40);
            const Weight weight = {matrix.bytes.data(), static_cast<WeightType>(type), n_rows, n_cols,
                                   bytes_per_row(type, n_cols)};
            const std::vector<float> x = random_floats(n_tokens * n_cols, 41);
            ProductEngine engine(kernels(), serial_executor());
            std::vector<float> together(n_tokens * n_rows);
            const Product all = {&weight, x.data(), together.data(), false};
            engine.multiply(&all, 1, n_tokens);
            for (const std::size_t group : {1, 5}) {
                std::vector<float> apart(n_tokens * n_rows);
                for (std::size_t t = 0; t < n_tokens; t += group) {
                    const Product some = {&weight, x.data() + t * n_cols, apart.data() + t * n_rows, false};
                    engine.multiply(&some, 1, std::min(group, n_tokens - t));
                }
                REQUIRE(apart == together);
            }
        }
    }
}
