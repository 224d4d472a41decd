// Models in several files.
#include <filesystem>

#include "gearkv/decoder.hpp"
#include "support/catch.hpp"
#include "support/model_maker.hpp"
#include "support/parts_maker.hpp"
#include "support/temporary_file.hpp"

using namespace gearkv;
using namespace gearkv::test;
using gearkv::testing::TemporaryDirectory;

namespace {

std::shared_ptr<const Model> load(const std::string& path) {
    std::shared_ptr<const Model> model;
    const Status status = Model::load(path.c_str(), &model);
    CAPTURE(path, status.message());
    REQUIRE(status.ok());
    return model;
}

std::vector<float> logits_of(std::shared_ptr<const Model> model) {
    std::unique_ptr<Session> session;
    SessionConfig config;
    REQUIRE(parse_spec("f16", &config.spec).ok());
    REQUIRE(Session::create(model, config, serial_executor(), &session).ok());
    const Token tokens[] = {1, 5, 260, 9};
    REQUIRE(session->prefill(tokens, 4).ok());
    return {session->logits(), session->logits() + model->params().n_vocab};
}

bool same(const ModelFingerprint& a, const ModelFingerprint& b) {
    return std::memcmp(a.bytes, b.bytes, sizeof(a.bytes)) == 0;
}

}  // namespace

TEST_CASE("any part of a split model opens the whole model") {
    const TemporaryDirectory folder;
    ModelShape shape;
    shape.n_layers = 2;
    const GgufWriter whole = ModelMaker(shape).file;
    write_file(folder.file("whole.gguf"), whole.write());
    const auto expected = load(folder.file("whole.gguf"));
    for (const std::size_t n : {2, 3, 7}) {
        for (const bool only_metadata_first : {false, true}) {
            const std::string prefix = folder.file(only_metadata_first ? "b.c" : "a-00001-of-00002.gguf");
            write_parts(prefix, split_parts(whole, n, only_metadata_first));
            const auto first = load(part_path(prefix, 0, n));
            CHECK(logits_of(first) == logits_of(expected));
            CHECK(first->tensors().size() == expected->tensors().size());
            for (std::size_t i = 1; i < n; i++) {
                const auto other = load(part_path(prefix, i, n));
                CHECK(same(other->fingerprint(), first->fingerprint()));
                CHECK(logits_of(other) == logits_of(expected));
            }
        }
    }
}

TEST_CASE("a relative path and a link to a folder find the parts beside it") {
    const TemporaryDirectory folder;
    const std::string prefix = folder.file("m");
    write_parts(prefix, split_parts(ModelMaker({}).file, 2));
    std::filesystem::create_directory_symlink(folder.file("."), folder.file("link"));
    CHECK(load(folder.file("link/m-00002-of-00002.gguf"))->tensors().size() > 1);
    const auto before = std::filesystem::current_path();
    std::filesystem::current_path(folder.file("."));
    CHECK(load("m-00001-of-00002.gguf")->tensors().size() > 1);
    std::filesystem::current_path(before);
}

TEST_CASE("any part of a split model gives its vocabulary, without the other parts but the first") {
    const TemporaryDirectory folder;
    const std::string prefix = folder.file("m");
    write_parts(prefix, split_parts(ModelMaker({}).file, 4));
    std::filesystem::remove(part_path(prefix, 1, 4));
    for (const std::size_t i : {0, 2, 3}) {
        std::shared_ptr<const Tokenizer> tokenizer;
        const Status status = Tokenizer::load(part_path(prefix, i, 4).c_str(), {}, &tokenizer);
        CAPTURE(i, status.message());
        REQUIRE(status.ok());
        CHECK(tokenizer->n_vocab() == test_vocabulary().size());
    }
    std::filesystem::remove(part_path(prefix, 0, 4));
    std::shared_ptr<const Tokenizer> tokenizer;
    const Status status = Tokenizer::load(part_path(prefix, 3, 4).c_str(), {}, &tokenizer);
    CHECK(status.code() == Code::io_error);
    CHECK(std::string(status.message()).find("m-00001-of-00004.gguf") != std::string::npos);
}

TEST_CASE("a model may state that it has one part, whatever its name") {
    const TemporaryDirectory folder;
    GgufWriter file = ModelMaker({}).file;
    file.set("split.no", std::uint16_t{0});
    file.set("split.count", std::uint16_t{1});
    write_file(folder.file("m-00002-of-00003.gguf"), file.write());
    CHECK(load(folder.file("m-00002-of-00003.gguf"))->tensors().size() > 1);
}

TEST_CASE("the fingerprint of a split model covers every part") {
    const TemporaryDirectory folder;
    const GgufWriter whole = ModelMaker({}).file;
    std::vector<GgufWriter> parts = split_parts(whole, 3);
    write_parts(folder.file("m"), parts);
    const ModelFingerprint before = load(part_path(folder.file("m"), 0, 3))->fingerprint();
    for (std::size_t i = 0; i < 3; i++) {
        std::vector<GgufWriter> changed = parts;
        changed[i].tensors.back().data[3] ^= 1;
        write_parts(folder.file("m"), changed);
        CHECK_FALSE(same(load(part_path(folder.file("m"), 0, 3))->fingerprint(), before));
        changed = parts;
        changed[i].set("general.note", "another");
        write_parts(folder.file("m"), changed);
        CHECK_FALSE(same(load(part_path(folder.file("m"), 0, 3))->fingerprint(), before));
    }
    write_parts(folder.file("m"), parts);
    CHECK(same(load(part_path(folder.file("m"), 0, 3))->fingerprint(), before));
}
