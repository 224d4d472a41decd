// The bundled model against reference logits computed elsewhere, and at the task it was trained for.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

#include <nlohmann/json.hpp>

#include "gearkv/decoder.hpp"
#include "support/catch.hpp"

using namespace gearkv;
using nlohmann::json;

namespace {

const std::string f16_model = GEARKV_DATA_DIR "/tiny-f16.gguf";
const std::string q8_model = GEARKV_MODEL_DIR "/tiny-q8_0.gguf";

std::shared_ptr<const Model> load(const std::string& path) {
    std::shared_ptr<const Model> model;
    const Status status = Model::load(path.c_str(), &model);
    INFO(status.message());
    REQUIRE(status.ok());
    return model;
}

enum class Products { integers, floats };

std::unique_ptr<Session> make_session(const std::shared_ptr<const Model>& model, const char* spec,
                                      std::uint32_t chunk, Products products,
                                      Executor& executor = serial_executor()) {
    SessionConfig config;
    REQUIRE(parse_spec(spec, &config.spec).ok());
    config.chunk = chunk;
    config.float_products = products == Products::floats;
    std::unique_ptr<Session> session;
    const Status status = Session::create(model, config, executor, &session);
    INFO(status.message());
    REQUIRE(status.ok());
    return session;
}

std::size_t argmax(const float* logits, std::size_t n) {
    return static_cast<std::size_t>(std::max_element(logits, logits + n) - logits);
}

// Largest difference to the reference over its positions; top-1 must agree at all of them.
double compare_logits(const std::string& path, const char* reference_name, const char* spec,
                      std::uint32_t chunk, Products products = Products::floats) {
    const json reference = json::parse(std::ifstream(GEARKV_DATA_DIR "/tiny-logits.json"));
    const auto tokens = reference["tokens"].get<std::vector<Token>>();
    const auto model = load(path);
    const std::size_t n_vocab = model->params().n_vocab;
    std::vector<float> logits(tokens.size() * n_vocab);
    const auto session = make_session(model, spec, chunk, products);
    REQUIRE(session->prefill(tokens.data(), tokens.size(), logits.data()).ok());
    double worst = 0;
    const auto positions = reference["positions"].get<std::vector<std::size_t>>();
    REQUIRE(positions.size() == 8);
    for (std::size_t i = 0; i < positions.size(); i++) {
        const auto expected = reference[reference_name][i].get<std::vector<float>>();
        REQUIRE(expected.size() == n_vocab);
        const float* found = logits.data() + positions[i] * n_vocab;
        CHECK(argmax(found, n_vocab) == argmax(expected.data(), n_vocab));
        for (std::size_t j = 0; j < n_vocab; j++) {
            worst =
                std::max(worst, std::fabs(static_cast<double>(found[j]) - static_cast<double>(expected[j])));
        }
    }
    return worst;
}

std::string greedy_answer(Session& session, const Model& model, std::size_t n_tokens) {
    std::string text;
    for (std::size_t i = 0; i < n_tokens; i++) {
        const auto token = static_cast<Token>(argmax(session.logits(), model.params().n_vocab));
        REQUIRE(model.tokenizer().decode(token, &text).ok());
        REQUIRE(session.decode(token).ok());
    }
    return text;
}

}  // namespace

TEST_CASE("logits equal the reference within 1e-3, for F16 and Q8_0 weights and every chunk size") {
    for (const std::uint32_t chunk : {512u, 7u, 1u}) {
        CAPTURE(chunk);
        CHECK(compare_logits(f16_model, "logits_f16", "f32", chunk) < 1e-3);
        CHECK(compare_logits(q8_model, "logits_q8_0", "f32", chunk) < 1e-3);
    }
    CHECK(compare_logits(f16_model, "logits_f16", "f16", 512) < 1e-2);
}

TEST_CASE("integer products move the logits of Q8_0 weights a little and those of F16 weights not at all") {
    for (const std::uint32_t chunk : {512u, 1u}) {
        CAPTURE(chunk);
        CHECK(compare_logits(f16_model, "logits_f16", "f32", chunk, Products::integers) < 1e-3);
        const double moved = compare_logits(q8_model, "logits_q8_0", "f32", chunk, Products::integers);
        CHECK(moved != compare_logits(q8_model, "logits_q8_0", "f32", chunk, Products::floats));
        CHECK(moved < 1e-2);
    }
}

TEST_CASE("the model recalls every sampled fact with an uncompressed cache", "[slow]") {
    const auto model = load(q8_model);
    std::unique_ptr<Executor> executor;
    REQUIRE(create_executor(0, &executor).ok());
    const auto session = make_session(model, "f16", 512, Products::integers, *executor);
    std::ifstream lines(GEARKV_DATA_DIR "/recall_sample.jsonl");
    // The reference kernels are slow: they get the shorter half of the prompts.
    const std::size_t longest = session->cache().level() == Level::scalar ? 512 : 2048;
    int n_cases = 0;
    int n_right = 0;
    for (std::string line; std::getline(lines, line);) {
        const json sample = json::parse(line);
        if (sample["bucket"].get<std::size_t>() > longest) continue;
        n_cases++;
        std::vector<Token> tokens;
        REQUIRE(model->tokenizer().encode(sample["prompt"].get<std::string>(), {}, &tokens).ok());
        session->reset();
        REQUIRE(session->prefill(tokens.data(), tokens.size()).ok());
        n_right += greedy_answer(*session, *model, 4) == sample["answer"].get<std::string>() ? 1 : 0;
    }
    CHECK(n_cases == (longest == 512 ? 8 : 16));
    CHECK(n_right == n_cases);
}
