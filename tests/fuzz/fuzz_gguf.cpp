// Any bytes as a model file. What loads is run for a few tokens.
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "decoder/network/model.hpp"
#include "gearkv/decoder.hpp"

using namespace gearkv;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t n_bytes) {
    std::shared_ptr<const LlamaModel> model;
    const Status status = LlamaModel::load_bytes(data, n_bytes, &model);
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
    config.n_ctx = 4;
    std::unique_ptr<Session> session;
    if (!Session::create(model, config, serial_executor(), &session).ok()) return 0;
    const Token token = static_cast<Token>(model->params().n_vocab - 1);
    const Token tokens[] = {0, token, 0};
    if (session->prefill(tokens, 3).ok() != (session->logits() != nullptr)) std::abort();
    return 0;
}
