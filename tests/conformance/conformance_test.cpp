// gear.md section 7: the recorded errors of the method, for the reference and for the block codec.
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "support/catch.hpp"
#include "support/npy_tensor.hpp"
#include "support/tensors.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

const std::string folder = std::string(GEARKV_DATA_DIR) + "/conformance/";

const Tensor& input(const std::string& name) {
    static std::map<std::string, Tensor> loaded;
    auto it = loaded.find(name);
    if (it == loaded.end()) it = loaded.emplace(name, load_npy(folder + name + ".npy")).first;
    return it->second;
}

Tensor first_tokens(const Tensor& x, std::size_t n) {
    Tensor y = x;
    y.n_tokens = n;
    y.data.resize(n * x.n_heads * x.dim);
    return y;
}

// A recorded row that our rules can be held to.
struct Row {
    std::string data, method;
    std::size_t n, rank;
    TensorSpec spec;
    nlohmann::json recorded;

    std::string label() const {
        return data + " n=" + std::to_string(n) + " " + method + " bits=" + std::to_string(spec.bits) +
               " s=" + std::to_string(spec.sparsity) + " r=" + std::to_string(rank);
    }
    double error(TensorKind kind) const { return recorded[kind == TensorKind::key ? "relK" : "relV"]; }
    double bound(TensorKind kind) const {
        return recorded[kind == TensorKind::key ? "relK_svd" : "relV_svd"];
    }
    double most(TensorKind kind) const {
        const std::string name = kind == TensorKind::key ? "relK" : "relV";
        return recorded[name + "_mean"].get<double>() + 3 * recorded[name + "_std"].get<double>();
    }
};

std::vector<Row> recorded_rows() {
    const auto index = nlohmann::json::parse(std::ifstream(folder + "index.json"));
    std::vector<Row> rows;
    for (const auto& r : index["rows"]) {
        Row row = {r["data"], r["method"], r["n"], r["rank"], {}, r};
        const double sparsity = r["sparsity"];
        // "reference" rows count outliers as the research script does, which gear.md section 6 tells apart;
        // with short vectors our rule keeps at least one outlier where "intent" keeps none.
        if (row.method.find("reference") != std::string::npos) continue;
        if (sparsity > 0 && row.n != 1024) continue;
        const Backbone backbone = row.method.find("KCVT") != std::string::npos      ? Backbone::kcvt
                                  : row.method.find("FlexGen") != std::string::npos ? Backbone::token
                                                                                    : Backbone::kivi;
        row.spec = make_spec(backbone, r["bits"], static_cast<float>(sparsity));
        rows.push_back(row);
    }
    return rows;
}

constexpr TensorKind kinds[] = {TensorKind::key, TensorKind::value};
const char* name_of(TensorKind kind) {
    return kind == TensorKind::key ? "_K" : "_V";
}

Tensor tensor_of(const Row& row, TensorKind kind) {
    return first_tokens(input(row.data + name_of(kind)), row.n);
}

}  // namespace

TEST_CASE("reference reproduces the recorded errors of the method", "[conformance][slow][once]") {
    const auto rows = recorded_rows();
    REQUIRE(rows.size() > 100);
    for (const Row& row : rows) {
        for (const TensorKind kind : kinds) {
            const Tensor x = tensor_of(row, kind);
            reference::Options options;
            options.spec = row.spec;
            options.rank = row.rank;
            double error = INFINITY;
            // The records are a mean over random starts with their spread: the best of three starts is held
            // to it, with room for spreads that are smaller than the luck of a start.
            for (options.seed = 0; options.seed < (row.rank > 0 ? 3 : 1); ++options.seed) {
                error = std::min(error, reference::relative_error(
                                            x, reference::compress(x, kind, options).reconstruction));
            }
            INFO(row.label() << name_of(kind) << " error " << error << ", recorded " << row.recorded.dump());
            if (row.rank == 0) {
                CHECK(std::abs(error / row.error(kind) - 1) < 1e-4);
            } else {
                CHECK(error > row.bound(kind) - 1e-6);
                CHECK(error < row.most(kind) + 1e-3);
            }
        }
    }
}

TEST_CASE("codec stays within the recorded errors of the method", "[conformance]") {
    for (const Row& row : recorded_rows()) {
        for (const TensorKind kind : kinds) {
            const Tensor x = tensor_of(row, kind);
            const Block block =
                compress(x, kind, make_options(row.spec, static_cast<std::uint32_t>(row.rank)));
            REQUIRE(block.status.ok());
            const double error =
                reference::relative_error(x, decompress(block, x.n_tokens, x.n_heads, x.dim));
            INFO(row.label() << name_of(kind) << " error " << error << ", recorded " << row.recorded.dump());
            if (row.rank == 0) {
                // At 8 bits the rounding of an fp16 minimum is a visible part of a step.
                CHECK(std::abs(error / row.error(kind) - 1) < (row.spec.bits == 8 ? 2e-3 : 1e-3));
            } else {
                CHECK(error > row.bound(kind) - 1e-6);
                CHECK(error < row.most(kind) + 1e-3);
            }
        }
    }
}

TEST_CASE("reference and codec reproduce the golden reconstructions", "[conformance]") {
    const struct {
        const char* name;
        TensorSpec spec;
    } goldens[] = {{"KIVI2", make_spec(Backbone::kivi, 2)},
                   {"KCVT2", make_spec(Backbone::kcvt, 2)},
                   {"QSintent2", make_spec(Backbone::kivi, 2, 0.02f)}};
    for (const auto& golden : goldens) {
        for (const TensorKind kind : kinds) {
            const Tensor& x = input(std::string("outch") + name_of(kind));
            const Tensor& expected = input(std::string("golden_outch_") + golden.name + name_of(kind));
            const auto count_far = [&](const Tensor& found, double tolerance) {
                std::size_t n_far = 0;
                for (std::size_t i = 0; i < x.data.size(); ++i) {
                    n_far += std::abs(found.data[i] - expected.data[i]) >
                             tolerance * (std::abs(expected.data[i]) + 1);
                }
                return n_far;
            };
            INFO(golden.name << name_of(kind));
            reference::Options options;
            options.spec = golden.spec;
            CHECK(count_far(reference::compress(x, kind, options).reconstruction, 1e-5) <=
                  x.data.size() / 1000);
            // fp16 metadata moves every value by parts in a thousand, and an entry near a boundary to another
            // code.
            const Block block = compress(x, kind, make_options(golden.spec));
            REQUIRE(block.status.ok());
            CHECK(count_far(decompress(block, x.n_tokens, x.n_heads, x.dim), 4e-3) <= x.data.size() / 100);
        }
    }
}

TEST_CASE("codes equal those of the reference on 99.9 percent of entries", "[conformance]") {
    for (const char* data : {"gauss", "outch"}) {
        for (const Backbone backbone : {Backbone::kivi, Backbone::kcvt, Backbone::token}) {
            for (const std::uint8_t bits : {2, 3, 4, 8}) {
                for (const TensorKind kind : kinds) {
                    const Tensor x = first_tokens(input(std::string(data) + name_of(kind)), 256);
                    reference::Options options;
                    options.spec = make_spec(backbone, bits, 0.02f);
                    options.half_metadata = true;
                    const auto expected = reference::compress(x, kind, options);
                    const Block block = compress(x, kind, make_options(options.spec));
                    REQUIRE(block.status.ok());
                    const Tensor found = decompress(block, x.n_tokens, x.n_heads, x.dim);
                    std::size_t n_far = 0;
                    for (std::size_t i = 0; i < x.data.size(); ++i) {
                        n_far += std::abs(found.data[i] - expected.reconstruction.data[i]) >
                                 1e-4 * (std::abs(expected.reconstruction.data[i]) + 1e-2);
                    }
                    INFO(data << name_of(kind) << " backbone " << int(backbone) << " bits " << int(bits)
                              << " apart " << n_far);
                    CHECK(n_far <= x.data.size() / 1000);
                }
            }
        }
    }
}

TEST_CASE("error falls with rank and with bits", "[conformance]") {
    for (const TensorKind kind : kinds) {
        const Tensor& x = input(std::string("outch") + name_of(kind));
        const auto error = [&](std::uint8_t bits, std::uint32_t rank) {
            const Block block = compress(x, kind, make_options(make_spec(Backbone::kivi, bits), rank));
            return reference::relative_error(x, decompress(block, x.n_tokens, x.n_heads, x.dim));
        };
        for (const std::uint8_t bits : {2, 3, 4}) {
            CHECK(error(bits, 2) < error(bits, 0));
            CHECK(error(bits, 4) < error(bits, 2));
            CHECK(error(bits, 8) < error(bits, 4));
            CHECK(error(bits == 4 ? 8 : bits + 1, 4) < error(bits, 4));
        }
    }
}

TEST_CASE("GEAR is no worse than GEAR-L, which is no worse than its backbone", "[conformance]") {
    for (const Backbone backbone : {Backbone::kivi, Backbone::kcvt}) {
        for (const TensorKind kind : kinds) {
            const Tensor& x = input(std::string("outch") + name_of(kind));
            const auto error = [&](float sparsity, std::uint32_t rank) {
                const Block block = compress(x, kind, make_options(make_spec(backbone, 2, sparsity), rank));
                return reference::relative_error(x, decompress(block, x.n_tokens, x.n_heads, x.dim));
            };
            CHECK(error(0.02f, 4) <= error(0, 4));
            CHECK(error(0, 4) <= error(0, 0));
        }
    }
}
