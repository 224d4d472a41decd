// Public vocabularies and texts with the right tokens, which are no part of the project:
//   GEARKV_TOKENIZERS  a folder of NAME.json ([{"text", "ids", "ids_special"?}]) and of ggml-vocab-NAME.gguf
//   GEARKV_MODELS      a folder of models, for smollm2.json and gemma3.json
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>

#include "gearkv/decoder.hpp"
#include "support/catch.hpp"

using namespace gearkv;
using nlohmann::json;

namespace {

const std::map<std::string, std::string> models = {{"smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"},
                                                   {"gemma3", "gemma-3-270m-q4_k_m.gguf"}};

std::string folder_of(const char* variable) {
    const char* folder = std::getenv(variable);
    return folder == nullptr ? "" : folder;
}

// Empty when it is not there.
std::string vocabulary_of(const std::string& name) {
    const auto model = models.find(name);
    const std::string path = model == models.end()
                                 ? folder_of("GEARKV_TOKENIZERS") + "/ggml-vocab-" + name + ".gguf"
                                 : folder_of("GEARKV_MODELS") + "/" + model->second;
    return std::filesystem::exists(path) ? path : "";
}

void check_vocabulary(const std::string& name, const std::string& path, const json& samples) {
    std::shared_ptr<const Tokenizer> tokenizer;
    const Status status = Tokenizer::load(path.c_str(), {}, &tokenizer);
    INFO(status.message());
    REQUIRE(status.ok());
    CHECK(samples.size() > 100);
    for (const json& sample : samples) {
        const auto text = sample["text"].get<std::string>();
        for (const bool special : {false, true}) {
            const char* key = special && sample.contains("ids_special") ? "ids_special" : "ids";
            std::vector<Token> tokens;
            REQUIRE(tokenizer->encode(text, {.add_special = false, .parse_special = special}, &tokens).ok());
            CAPTURE(name, text, special);
            CHECK(tokens == sample[key].get<std::vector<Token>>());
            std::string decoded;
            REQUIRE(tokenizer->decode(tokens.data(), tokens.size(), {.special = true}, &decoded).ok());
            // White space behind special tokens is not kept by Phi-3.
            if (!special || name != "phi-3") CHECK(decoded == text);
        }
    }
}

}  // namespace

TEST_CASE("public vocabularies give the tokens on record, and their texts back", "[once]") {
    const std::string folder = folder_of("GEARKV_TOKENIZERS");
    if (folder.empty()) {
        std::cerr << "SKIPPED: public vocabularies; GEARKV_TOKENIZERS names no folder\n";
        return;
    }
    int n_checked = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        if (entry.path().extension() != ".json") continue;
        const std::string name = entry.path().stem();
        const std::string path = vocabulary_of(name);
        if (path.empty()) {
            std::cerr << "SKIPPED: the vocabulary of " << name << " is not there\n";
            continue;
        }
        check_vocabulary(name, path, json::parse(std::ifstream(entry.path())));
        n_checked++;
    }
    CHECK(n_checked > 0);
    std::cerr << "public vocabularies checked: " << n_checked << "\n";
}
