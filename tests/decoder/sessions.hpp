// Small models and their sessions.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "decoder/network/model.hpp"
#include "gearkv/decoder.hpp"
#include "support/catch.hpp"
#include "support/model_maker.hpp"

namespace gearkv::test {

struct Fixture {
    explicit Fixture(const char* spec = "f32", const ModelShape& shape = {}) : maker(shape) {
        REQUIRE(parse_spec(spec, &config.spec).ok());
        load();
    }

    void load() {
        bytes = maker.file.write();
        std::shared_ptr<const FileModel> loaded;
        const Status status = FileModel::load_bytes(bytes.data(), bytes.size(), &loaded);
        INFO(status.message());
        REQUIRE(status.ok());
        model = loaded;
    }

    std::unique_ptr<Session> session() {
        std::unique_ptr<Session> session;
        const Status status = Session::create(model, config, serial_executor(), &session);
        INFO(status.message());
        REQUIRE(status.ok());
        return session;
    }

    ModelMaker maker;
    Bytes bytes;
    std::shared_ptr<const Model> model;
    SessionConfig config;
};

inline std::vector<Token> some_tokens(std::size_t n) {
    std::vector<Token> tokens(n);
    for (std::size_t i = 0; i < n; i++) {
        tokens[i] = static_cast<Token>(i * 37 % 290);
    }
    return tokens;
}

inline std::vector<float> copy_logits(const Session& session, std::size_t n_vocab) {
    REQUIRE(session.logits() != nullptr);
    return std::vector<float>(session.logits(), session.logits() + n_vocab);
}

// Feeds tokens one by one; their logits behind each other.
inline std::vector<float> decode_all(Session* session, const std::vector<Token>& tokens,
                                     std::size_t n_vocab) {
    std::vector<float> all;
    for (const Token token : tokens) {
        REQUIRE(session->decode(token).ok());
        const std::vector<float> logits = copy_logits(*session, n_vocab);
        all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
}

inline std::unique_ptr<Session> fork(const Session& session) {
    std::unique_ptr<Session> fork;
    const Status status = session.fork(serial_executor(), &fork);
    INFO(status.message());
    REQUIRE(status.ok());
    return fork;
}

}  // namespace gearkv::test
