// Any bytes as a text: encoding and decoding gives the text back, in tokens of the vocabulary.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "gearkv/decoder.hpp"

using namespace gearkv;

namespace {

std::shared_ptr<const Model> load() {
    std::shared_ptr<const Model> model;
    if (!Model::load(GEARKV_MODEL_DIR "/tiny-q8_0.gguf", &model).ok()) std::abort();
    return model;
}

// Spaces for the marks that stand for them.
std::string plain(const std::string& text) {
    const std::string mark = "\xe2\x96\x81";
    std::string out;
    for (std::size_t at = 0; at < text.size();) {
        const bool found = text.compare(at, mark.size(), mark) == 0;
        out.push_back(found ? ' ' : text[at]);
        at += found ? mark.size() : 1;
    }
    return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes) {
    static const std::shared_ptr<const Model> model = load();
    const Tokenizer& tokenizer = model->tokenizer();
    const std::string text(reinterpret_cast<const char*>(data), n_bytes);
    std::vector<Token> tokens;
    if (!tokenizer.encode(text, {.add_special = false}, &tokens).ok()) std::abort();
    std::string decoded;
    for (const Token token : tokens) {
        if (!tokenizer.decode(token, &decoded).ok()) std::abort();
    }
    if (decoded != plain(text)) std::abort();
    return 0;
}
