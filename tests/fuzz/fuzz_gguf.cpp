// Any bytes as a model file. What loads is run for a few tokens.
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "decoder/network/model.hpp"
#include "gearkv/decoder.hpp"

using namespace gearkv;

#ifdef GEARKV_FUZZ_ENGINE
bool mutate_tensors(std::uint8_t* data, std::size_t n_bytes, std::uint32_t seed);
extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t n_bytes, std::size_t capacity);

// Every other change is one of the engine's own.
extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t n_bytes, std::size_t capacity,
                                               unsigned seed) {
    if (seed % 2 == 0 && mutate_tensors(data, n_bytes, seed)) return n_bytes;
    return LLVMFuzzerMutate(data, n_bytes, capacity);
}
#endif

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes) {
    std::shared_ptr<const FileModel> model;
    const Status status = FileModel::load_bytes(data, n_bytes, &model);
    if (status.ok() != (model != nullptr)) std::abort();
    if (!status.ok()) {
        if (status.code() == Code::ok || status.message()[0] == '\0') std::abort();
        return 0;
    }
    for (const auto& [key, value] : model->metadata()) {
        for (const char c : value) {
            if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) std::abort();
        }
    }
    SessionConfig config;
    if (!parse_spec("f16", &config.spec).ok()) std::abort();
    config.n_ctx = 4;
    std::unique_ptr<Session> session;
    if (!Session::create(model, config, serial_executor(), &session).ok()) return 0;
    const Token token = static_cast<Token>(model->params().n_vocab - 1);
    const Token tokens[] = {0, token, 0};
    if (session->prefill(tokens, 3).ok() != (session->logits() != nullptr)) std::abort();
    return 0;
}
