// The models of random weights that are timed in bench.
#include <cmath>
#include <sstream>
#include <string>

#include "../../bench/models/random_model.hpp"
#include "sessions.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

std::string write(const bench::RandomShape& shape, WeightType type, std::uint64_t seed) {
    std::ostringstream file;
    REQUIRE(bench::write_random_model(file, shape, type, seed));
    return file.str();
}

}  // namespace

TEST_CASE("a random model of every type opens and has finite logits of some size") {
    for (const TensorType& type : tensor_types) {
        CAPTURE(type.name);
        const std::string file = write(bench::random_shapes()[0], type.type, 1);
        std::shared_ptr<const FileModel> model;
        const Status loaded =
            FileModel::load_bytes(reinterpret_cast<const std::uint8_t*>(file.data()), file.size(), &model);
        INFO(loaded.message());
        REQUIRE(loaded.ok());
        std::size_t n_typed = 0;
        for (const TensorInfo& tensor : model->tensors())
            n_typed += tensor.type == type.name && tensor.shape.size() == 2;
        CHECK(n_typed == 1 + 7 * 2);
        SessionConfig config;
        REQUIRE(parse_spec("gear-4", &config.spec).ok());
        config.n_ctx = 64;
        std::unique_ptr<Session> session;
        REQUIRE(Session::create(model, config, serial_executor(), &session).ok());
        const auto tokens = some_tokens(12);
        const Status fed = session->prefill(tokens.data(), tokens.size());
        INFO(fed.message());
        REQUIRE(fed.ok());
        Token token = 0;
        for (int i = 0; i < 2; i++) {
            const float* logits = session->logits();
            double squares = 0;
            for (std::uint32_t j = 0; j < model->params().n_vocab; j++)
                squares += double{logits[j]} * double{logits[j]};
            const double size = std::sqrt(squares / model->params().n_vocab);
            CHECK(size > 1e-3);
            CHECK(size < 100);
            token = static_cast<Token>(std::max_element(logits, logits + model->params().n_vocab) - logits);
            REQUIRE(session->decode(token).ok());
        }
    }
}

TEST_CASE("a seed and a shape of random models name the bytes of a file") {
    const bench::RandomShape& tiny = bench::random_shapes()[0];
    const std::string file = write(tiny, WeightType::q4_k, 1);
    CHECK(write(tiny, WeightType::q4_k, 1) == file);
    const std::string other = write(tiny, WeightType::q4_k, 2);
    CHECK(other.size() == file.size());
    CHECK(other != file);
    // Parameters as the names promise.
    for (const bench::RandomShape& shape : bench::random_shapes().subspan(1)) {
        const double d = shape.n_embd, heads = 1.0 * shape.head_dim * (shape.n_heads + shape.n_kv_heads);
        const double n = d * shape.n_vocab + shape.n_layers * d * (2 * heads + 3.0 * shape.n_ff);
        const double promised = std::stod(shape.name) * 1e9;
        CHECK(n > promised * 0.95);
        CHECK(n < promised * 1.25);
    }
}
