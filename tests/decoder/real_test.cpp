// Two public models against logits that data/real/reference.py computed in double: SmolLM2-135M-Instruct
// (Q4_1) and Gemma 3 270M (a mix of Q4_K, Q5_0, Q6_K, Q8_0). The files are not part of the project;
// GEARKV_MODELS names the folder they are in (data/README.md), and without them the test ends as skipped.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include <nlohmann/json.hpp>

#include "decoder/network/model.hpp"
#include "gearkv/decoder.hpp"
#include "support/catch.hpp"

using namespace gearkv;
using nlohmann::json;

namespace {

const std::string data_folder = GEARKV_DATA_DIR "/real/";
constexpr double agreement = 1e-3;  // of float products and rounded references: 5e-5 is usual

// Of products in integers: what rounding vectors to 15 bits does to logits.
constexpr double integer_worst = 0.05, integer_rms = 0.01;

// Where the model is, or nothing. Without any model the whole run counts as skipped.
std::string find_model(const char* name) {
    const char* folder = std::getenv("GEARKV_MODELS");
    const auto path_of = [&](const char* file) { return std::string(folder) + "/" + file; };
    const auto is_there = [&](const char* file) {
        return folder != nullptr && std::filesystem::exists(path_of(file));
    };
    if (is_there(name)) return path_of(name);
    std::fprintf(stderr, "SKIP: no %s; GEARKV_MODELS is %s\n", name, folder == nullptr ? "not set" : folder);
    if (!is_there("SmolLM2-135M-Instruct.Q4_1.gguf") && !is_there("gemma-3-270m-q4_k_m.gguf")) std::exit(77);
    return {};
}

std::vector<std::uint8_t> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<std::uint8_t> bytes(std::filesystem::file_size(path));
    file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    REQUIRE(file.good());
    return bytes;
}

// Overwrites the scalar at a metadata key.
template <class T>
void set_value(std::vector<std::uint8_t>& bytes, const std::string& key, T value) {
    const auto end = bytes.begin() + 1000000;
    const auto at = std::search(bytes.begin(), end, key.begin(), key.end());
    REQUIRE(at != end);
    std::memcpy(&*at + key.size() + 4, &value, sizeof(value));  // behind the type
}

std::shared_ptr<const FileModel> load(const std::vector<std::uint8_t>& bytes) {
    std::shared_ptr<const FileModel> model;
    const Status status = FileModel::load_bytes(bytes.data(), bytes.size(), &model);
    INFO(status.message());
    REQUIRE(status.ok());
    return model;
}

double at(const float* logits, const json& id) {
    return static_cast<double>(logits[id.get<std::size_t>()]);
}

// Differences to the reference, at its positions below `end`.
struct Difference {
    double worst = 0;
    double rms = 0;
};

Difference compare(const std::shared_ptr<const Model>& model, const json& reference, std::size_t end,
                   bool float_products = true) {
    const auto ids = reference["ids"].get<std::vector<Token>>();
    const std::size_t n_vocab = model->params().n_vocab;
    SessionConfig config;
    REQUIRE(parse_spec("f32", &config.spec).ok());
    config.n_ctx = static_cast<std::uint32_t>(ids.size());
    config.float_products = float_products;
    std::unique_ptr<Executor> executor;
    REQUIRE(create_executor(0, &executor).ok());
    std::unique_ptr<Session> session;
    REQUIRE(Session::create(model, config, *executor, &session).ok());
    Difference difference;
    double squares = 0;
    std::size_t n_compared = 0;
    const auto add = [&](double found, double expected) {
        difference.worst = std::max(difference.worst, std::fabs(found - expected));
        squares += (found - expected) * (found - expected);
        n_compared++;
    };
    for (const json& expected : reference["positions"]) {
        const std::size_t position = expected["position"];
        if (position >= end) continue;
        const std::size_t n_before = session->n_tokens();
        REQUIRE(session->prefill(ids.data() + n_before, position + 1 - n_before).ok());
        const float* logits = session->logits();
        for (std::size_t i = 0; i < expected["top"].size(); i++) {
            add(at(logits, expected["top_ids"][i]), expected["top"][i].get<double>());
        }
        for (std::size_t i = 0; i < expected["fixed"].size(); i++) {
            add(at(logits, reference["fixed_ids"][i]), expected["fixed"][i].get<double>());
        }
        const double top = at(logits, expected["top_ids"][0]);
        double sum = 0;
        for (std::size_t i = 0; i < n_vocab; i++) {
            sum += std::exp(static_cast<double>(logits[i]) - top);
        }
        add(top + std::log(sum), expected["logsumexp"].get<double>());
    }
    REQUIRE(n_compared > 0);
    difference.rms = std::sqrt(squares / static_cast<double>(n_compared));
    return difference;
}

// In integers the logits are near the reference, and not the same.
void check_integers(const std::shared_ptr<const Model>& model, const json& reference) {
    const Difference difference = compare(model, reference, 2000, false);
    CAPTURE(difference.worst, difference.rms);
    CHECK(difference.worst < integer_worst);
    CHECK(difference.rms < integer_rms);
    CHECK(difference.worst > agreement);
}

std::string harbour() {
    std::ifstream file(data_folder + "harbour.txt");
    return std::string((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
}

}  // namespace

TEST_CASE("SmolLM2 gives the logits of its reference, and others where its file says something else") {
    const std::string path = find_model("SmolLM2-135M-Instruct.Q4_1.gguf");
    if (path.empty()) return;
    const json reference = json::parse(std::ifstream(data_folder + "smollm2-135m.json"));
    std::vector<std::uint8_t> bytes = read_file(path);
    REQUIRE(bytes.size() == reference["bytes"]);
    const auto model = load(bytes);
    CHECK(model->params().family == std::string("llama"));
    CHECK(model->params().n_parameters == 134515008);
    const std::string text = harbour();
    std::vector<Token> tokens;
    REQUIRE(model->tokenizer().encode(text.substr(0, text.find("\"Did he")), {}, &tokens).ok());
    CHECK(tokens == reference["ids"].get<std::vector<Token>>());
    CHECK(compare(model, reference, 1000).worst < agreement);
    check_integers(model, reference);
    set_value(bytes, "llama.rope.freq_base", 95000.0f);
    CHECK(compare(load(bytes), reference, 101).worst > 10 * agreement);
}

TEST_CASE("Gemma 3 gives the logits of its reference, and others where its file says something else") {
    const std::string path = find_model("gemma-3-270m-q4_k_m.gguf");
    if (path.empty()) return;
    const json reference = json::parse(std::ifstream(data_folder + "gemma3-270m.json"));
    const std::vector<std::uint8_t> bytes = read_file(path);
    REQUIRE(bytes.size() == reference["bytes"]);
    {
        const auto model = load(bytes);
        CHECK(model->params().family == std::string("gemma3"));
        CHECK(model->params().n_parameters == 268098176);
        REQUIRE(model->params().windows.size() == 18);
        for (std::size_t layer = 0; layer < 18; layer++) {
            CHECK(model->params().windows[layer] == (layer % 6 == 5 ? 0 : 512));
        }
        std::vector<Token> tokens;
        REQUIRE(model->tokenizer().encode(harbour(), {}, &tokens).ok());
        CHECK(tokens == reference["ids"].get<std::vector<Token>>());
        CHECK(compare(model, reference, 2000).worst < agreement);
        check_integers(model, reference);
    }
    for (const std::uint32_t window : {511u, 513u, 4096u}) {
        std::vector<std::uint8_t> changed = bytes;
        set_value(changed, "gemma3.attention.sliding_window", window);
        CHECK(compare(load(changed), reference, 601).worst > 10 * agreement);
    }
    std::vector<std::uint8_t> changed = bytes;
    set_value(changed, "gemma3.rope.freq_base", 800000.0f);
    CHECK(compare(load(changed), reference, 101).worst > 10 * agreement);
}
