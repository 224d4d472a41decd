// Loading, and the forward pass of small random models against a plain one in double.
#include <cmath>
#include <cstdio>
#include <string>

#include "decoder/network/model.hpp"
#include "gearkv/decoder.hpp"
#include "support/catch.hpp"
#include "support/reference_decoder.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

std::shared_ptr<const Model> load(const Bytes& bytes) {
    std::shared_ptr<const FileModel> model;
    const Status status = FileModel::load_bytes(bytes.data(), bytes.size(), &model);
    INFO(status.message());
    REQUIRE(status.ok());
    return model;
}

std::unique_ptr<Session> make_session(const std::shared_ptr<const Model>& model, std::uint32_t chunk) {
    SessionConfig config;
    REQUIRE(parse_spec("f32", &config.spec).ok());
    config.chunk = chunk;
    config.float_products = true;  // what the reference has
    std::unique_ptr<Session> session;
    const Status status = Session::create(model, config, serial_executor(), &session);
    INFO(status.message());
    REQUIRE(status.ok());
    return session;
}

// Logits of 40 random tokens, at once and one by one, against the reference.
void check_forward(const ModelShape& shape) {
    const ModelMaker maker(shape);
    const Bytes bytes = maker.file.write();
    const auto model = load(bytes);
    CHECK(model->params().n_embd == shape.n_embd);
    CHECK(model->params().n_vocab == maker.n_vocab);

    constexpr std::size_t n_tokens = 40;
    std::vector<Token> tokens;
    std::mt19937 random(9);
    for (std::size_t i = 0; i < n_tokens; i++) {
        tokens.push_back(static_cast<Token>(random() % maker.n_vocab));
    }
    ReferenceDecoder reference(maker);
    const auto whole = make_session(model, 64);
    const auto single = make_session(model, 1);
    std::vector<float> logits(n_tokens * maker.n_vocab);
    REQUIRE(whole->prefill(tokens.data(), n_tokens, logits.data()).ok());
    for (std::size_t t = 0; t < n_tokens; t++) {
        const std::vector<double> expected = reference.feed(static_cast<std::size_t>(tokens[t]));
        REQUIRE(single->decode(tokens[t]).ok());
        double size = 0;
        for (const double value : expected) {
            size = std::max(size, std::fabs(value));
        }
        for (std::size_t i = 0; i < maker.n_vocab; i++) {
            CAPTURE(t, i, expected[i], size);
            REQUIRE(std::fabs(static_cast<double>(logits[t * maker.n_vocab + i]) - expected[i]) <
                    3e-5 * size);
            REQUIRE(std::fabs(static_cast<double>(single->logits()[i]) - expected[i]) < 3e-5 * size);
        }
    }
}

}  // namespace

TEST_CASE("a model of every tensor type computes what its weights say") {
    for (const TensorType& type : tensor_types) {
        CAPTURE(type.name);
        ModelShape shape;
        shape.matrix_type = type.id;
        if (type.block > 32) {  // every row is whole blocks
            shape.n_embd = shape.n_ff = type.block;
            shape.head_dim = type.block / shape.n_heads;
        } else {
            shape.n_layers = 2;
        }
        check_forward(shape);
    }
}

TEST_CASE("head counts, head sizes and rotated channels may take any allowed ratio") {
    ModelShape shape;
    SECTION("one KV head") {
        shape.n_kv_heads = 1;
    }
    SECTION("as many KV heads as heads") {
        shape.n_kv_heads = 4;
    }
    SECTION("heads wider together than the embedding") {
        shape.head_dim = 24;
        shape.rope_dim = 24;
    }
    SECTION("heads narrower together than the embedding") {
        shape.n_embd = 96;
    }
    SECTION("only some channels of a head are rotated") {
        shape.head_dim = 16;
        shape.rope_dim = 6;
    }
    SECTION("three heads of one group") {
        shape.n_heads = 3;
        shape.n_kv_heads = 1;
        shape.head_dim = 80;
        shape.rope_dim = 80;
    }
    SECTION("an embedding that is no multiple of a vector") {
        shape.n_embd = 37;
        shape.n_ff = 51;
    }
    SECTION("more columns than are summed at once") {
        shape.n_ff = 2100;
    }
    check_forward(shape);
}

TEST_CASE("an output matrix of its own, RoPE factors and another base are used") {
    ModelShape shape;
    SECTION("output") {
        shape.own_output = true;
    }
    SECTION("factors") {
        shape.rope_factors = true;
    }
    SECTION("base") {
        shape.rope_base = 500.0f;
    }
    SECTION("epsilon") {
        shape.norm_eps = 0.5f;
    }
    check_forward(shape);
}

TEST_CASE("tensor data of any alignment is read in place") {
    for (const std::uint32_t type : {gguf_f32, gguf_f16, gguf_q8_0}) {
        ModelShape shape;
        shape.matrix_type = type;
        shape.alignment = 1;
        // An odd number of bytes before the data.
        ModelMaker maker(shape);
        maker.file.set("general.name", "x");
        std::size_t header_bytes = 0;
        maker.file.write(&header_bytes);
        if (header_bytes % 2 == 0) maker.file.set("general.name", "xy");
        const Bytes bytes = maker.file.write(&header_bytes);
        REQUIRE(header_bytes % 2 == 1);
        const auto session = make_session(load(bytes), 16);
        const Token tokens[] = {1, 2, 3};
        REQUIRE(session->prefill(tokens, 3).ok());
        ReferenceDecoder reference(maker);
        reference.feed(1);
        reference.feed(2);
        const std::vector<double> expected = reference.feed(3);
        for (std::size_t i = 0; i < maker.n_vocab; i++) {
            REQUIRE(static_cast<double>(session->logits()[i]) == Approx(expected[i]).margin(1e-3));
        }
    }
}

TEST_CASE("version 2 files are read like version 3") {
    ModelMaker maker({});
    maker.file.version = 2;
    const Bytes bytes = maker.file.write();
    CHECK(load(bytes)->params().n_layers == 1);
}

TEST_CASE("the bundled model says what it is") {
    std::shared_ptr<const Model> model;
    REQUIRE(Model::load(GEARKV_MODEL_DIR "/tiny-q8_0.gguf", &model).ok());
    const ModelParams& params = model->params();
    CHECK(params.family == std::string("llama"));
    CHECK(params.n_parameters == 3410176);
    CHECK(params.windows.empty());
    CHECK(params.n_vocab == 1024);
    CHECK(params.n_embd == 256);
    CHECK(params.n_layers == 4);
    CHECK(params.n_heads == 4);
    CHECK(params.n_kv_heads == 2);
    CHECK(params.head_dim == 64);
    CHECK(params.n_ff == 768);
    CHECK(params.n_ctx == 4096);
    CHECK(params.rope_dim == 64);
    CHECK(params.rope_base == 50000.0f);
    CHECK(params.norm_eps == 1e-5f);
    REQUIRE(model->tensors().size() == 38);
    CHECK(model->tensors()[0].name == "token_embd.weight");
    CHECK(model->tensors()[0].type == "Q8_0");
    CHECK(model->tensors()[0].shape == std::vector<std::uint64_t>{256, 1024});
    CHECK(model->tensors()[0].n_bytes == 278528);
    CHECK(model->tensors()[1].type == "F32");
    REQUIRE(model->metadata().size() == 27);
    CHECK(model->metadata()[0] == std::pair<std::string, std::string>("general.architecture", "llama"));
    CHECK(model->metadata()[10] == std::pair<std::string, std::string>("llama.rope.freq_base", "50000"));
    CHECK(model->metadata()[18] ==
          std::pair<std::string, std::string>("tokenizer.ggml.tokens", "string[1024]"));
}

TEST_CASE("metadata text cannot steer a terminal") {
    ModelMaker maker({});
    maker.file.set("general.name", std::string("a\x1b[2J\n\t\\\0b\x7f", 11));
    maker.file.set("general.bidi",
                   "\xe2\x80\xae"
                   "evil\xc2\x9b"
                   "1m");
    maker.file.set("general.broken", "\xff\xc3(\xed\xa0\x80");
    maker.file.set("general.fine", "na\xc3\xafve \xe2\x82\xac \xf0\x9f\x98\x80");
    maker.file.set("general.long", std::string(100000, 'x'));
    maker.file.set("general.number", std::int64_t{-5});
    maker.file.set("general.float", 0.1f);
    maker.file.set("general.flag", true);
    maker.file.set_array("general.list", std::vector<std::int16_t>{1, 2, 3});
    const Bytes bytes = maker.file.write();
    const auto model = load(bytes);
    const auto text = [&](const std::string& key) {
        for (const auto& [name, value] : model->metadata()) {
            if (name == key) return value;
        }
        return std::string("absent");
    };
    CHECK(text("general.name") == "a\\x1b[2J\\n\\t\\\\\\x00b\\x7f");
    CHECK(text("general.bidi") == "\\xe2\\x80\\xaeevil\\xc2\\x9b1m");
    CHECK(text("general.broken") == "\\xff\\xc3(\\xed\\xa0\\x80");
    CHECK(text("general.fine") == "na\xc3\xafve \xe2\x82\xac \xf0\x9f\x98\x80");
    CHECK(text("general.long") == std::string(16384, 'x') + "... (100000 bytes)");
    CHECK(text("general.number") == "-5");
    CHECK(text("general.float") == "0.1");
    CHECK(text("general.flag") == "true");
    CHECK(text("general.list") == "i16[3]");
}

TEST_CASE("a model outlives the pointer to it for as long as a session needs it") {
    std::shared_ptr<const Model> model;
    REQUIRE(Model::load(GEARKV_MODEL_DIR "/tiny-q8_0.gguf", &model).ok());
    const auto session = make_session(model, 16);
    model.reset();
    CHECK(session->decode(5).ok());
}
