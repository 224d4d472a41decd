// What the metadata say about the model, and how tensors disagree with it.
#include <cmath>

#include "gearkv/decoder.hpp"
#include "hostile/hostile.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

template <class T>
std::string code_with(const std::string& key, T value) {
    GgufWriter file = sound();
    file.set(key, value);
    return code_of(file);
}

const char* const required_keys[] = {"llama.block_count",          "llama.embedding_length",
                                     "llama.feed_forward_length",  "llama.context_length",
                                     "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon"};

}  // namespace

TEST_CASE("a missing key is named") {
    for (const char* key : required_keys) {
        GgufWriter file = sound();
        file.erase(key);
        const Status status = load_status(file.write());
        CHECK(status.code() == Code::missing_key);
        CHECK(std::string(status.message()).find(key) != std::string::npos);
    }
    GgufWriter file = sound();
    file.erase("general.architecture");
    CHECK(code_of(file) == "missing_key");
}

TEST_CASE("a key of a wrong type is refused") {
    for (const std::string key : required_keys) {
        CAPTURE(key);
        CHECK(code_with(key, "32") == "bad_metadata");
        CHECK(code_with(key, true) == "bad_metadata");
        const bool is_float = key.find("epsilon") != std::string::npos;
        if (is_float) CHECK(code_with(key, 1u) == "bad_metadata");
        if (!is_float) CHECK(code_with(key, 32.0f) == "bad_metadata");
        GgufWriter file = sound();
        file.set_array(key, std::vector<std::uint32_t>{1, 2});
        CHECK(code_of(file) == "bad_metadata");
        file.set_array(key, std::vector<std::uint32_t>{});
        CHECK(code_of(file) == "bad_metadata");
    }
    CHECK(code_with("general.architecture", 3u) == "bad_metadata");
    CHECK(code_with("tokenizer.ggml.add_bos_token", 1u) == "bad_metadata");
}

TEST_CASE("integers may have any width but must fit") {
    CHECK(code_with("llama.block_count", std::uint8_t{1}) == "ok");
    CHECK(code_with("llama.block_count", std::int16_t{1}) == "ok");
    CHECK(code_with("llama.block_count", std::int64_t{1}) == "ok");
    CHECK(code_with("llama.block_count", std::int32_t{-1}) == "bad_metadata");
    CHECK(code_with("llama.block_count", std::int64_t{INT64_MIN}) == "bad_metadata");
    CHECK(code_with("llama.block_count", (std::uint64_t{1} << 32) + 1) == "bad_metadata");
    CHECK(code_with("llama.block_count", UINT64_MAX) == "bad_metadata");
}

TEST_CASE("layer counts that cannot be are refused, large ones that are not there too") {
    CHECK(code_with("llama.block_count", 0u) == "bad_metadata");
    CHECK(code_with("llama.block_count", 4097u) == "bad_metadata");
    CHECK(code_with("llama.block_count", 0xffffffffu) == "bad_metadata");
    CHECK(code_with("llama.block_count", 2u) == "missing_tensor");
    CHECK(code_with("llama.block_count", 513u) == "missing_tensor");
    ModelShape shape;
    shape.n_layers = 3;
    GgufWriter file = ModelMaker(shape).file;
    file.set("llama.block_count", 2u);
    CHECK(code_of(file) == "unsupported_model");  // a layer nobody would run
}

TEST_CASE("head counts and sizes that cannot be are refused") {
    CHECK(code_with("llama.attention.head_count", 0u) == "bad_metadata");
    CHECK(code_with("llama.attention.head_count", 0xffffffffu) == "bad_metadata");
    CHECK(code_with("llama.attention.head_count_kv", 0u) == "bad_metadata");
    CHECK(code_with("llama.attention.head_count_kv", 3u) == "bad_metadata");
    CHECK(code_with("llama.attention.head_count_kv", 8u) == "bad_metadata");
    CHECK(code_with("llama.attention.key_length", 0u) == "bad_metadata");
    CHECK(code_with("llama.attention.key_length", 4u) == "unsupported_model");
    CHECK(code_with("llama.attention.key_length", 12u) == "unsupported_model");
    CHECK(code_with("llama.attention.key_length", 1032u) == "unsupported_model");
    CHECK(code_with("llama.attention.key_length", 0xfffffff8u) == "bad_metadata");
    CHECK(code_with("llama.attention.key_length", 16u) == "unsupported_model");  // values stay at 8
    CHECK(code_with("llama.attention.value_length", 16u) == "unsupported_model");
    GgufWriter file = sound();
    file.set_array("llama.attention.head_count_kv", std::vector<std::uint32_t>{2});
    CHECK(code_of(file) == "bad_metadata");
    file = sound();
    file.erase("llama.attention.key_length");
    file.erase("llama.attention.value_length");
    CHECK(code_of(file) == "ok");
    file.set("llama.attention.head_count", 5u);
    file.erase("llama.attention.head_count_kv");
    CHECK(code_of(file) == "bad_metadata");  // 32 channels over 5 heads
}

TEST_CASE("widths and contexts that cannot be are refused") {
    for (const char* key : {"llama.embedding_length", "llama.feed_forward_length", "llama.context_length"}) {
        CHECK(code_with(key, 0u) == "bad_metadata");
        CHECK(code_with(key, 0xffffffffu) == "bad_metadata");
    }
    CHECK(code_with("llama.context_length", 0x7fffffffu) == "ok");
    CHECK(code_with("llama.context_length", 0x80000000u) == "bad_metadata");
    CHECK(code_with("llama.embedding_length", 1u << 24) == "shape_mismatch");
    CHECK(code_with("llama.feed_forward_length", 1u << 24) == "shape_mismatch");
}

TEST_CASE("rotated channels are even and within a head") {
    CHECK(code_with("llama.rope.dimension_count", 0u) == "bad_metadata");
    CHECK(code_with("llama.rope.dimension_count", 3u) == "bad_metadata");
    CHECK(code_with("llama.rope.dimension_count", 10u) == "bad_metadata");
    CHECK(code_with("llama.rope.dimension_count", 6u) == "ok");
}

TEST_CASE("floats that are no positive numbers are refused") {
    for (const char* key : {"llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"}) {
        for (const float value : {NAN, INFINITY, -INFINITY, 0.0f, -1e-5f}) {
            CHECK(code_with(key, value) == "bad_metadata");
        }
        CHECK(code_with(key, 1e300) == "bad_metadata");
        CHECK(code_with(key, 1e-300) == "bad_metadata");  // 0 as a float
        CHECK(code_with(key, 0.5) == "ok");
    }
}

TEST_CASE("scaled positions are refused rather than computed wrongly") {
    CHECK(code_with("llama.rope.scaling.type", "linear") == "unsupported_model");
    CHECK(code_with("llama.rope.scaling.type", "yarn") == "unsupported_model");
    CHECK(code_with("llama.rope.scaling.type", "\x1b[2J") == "unsupported_model");
    CHECK(code_with("llama.rope.scaling.type", "none") == "ok");
    CHECK(code_with("llama.rope.scaling.factor", 4.0f) == "unsupported_model");
    CHECK(code_with("llama.rope.scaling.factor", 1.0f) == "ok");
    CHECK(code_with("llama.rope.scale_linear", 2.0f) == "unsupported_model");
    CHECK(code_with("llama.rope.scaling.factor", NAN) == "bad_metadata");
    ModelShape shape;
    shape.rope_factors = true;
    for (const float factor : {NAN, INFINITY, 0.0f, -1.0f}) {
        GgufWriter file = ModelMaker(shape).file;
        overwrite(file.tensor("rope_freqs.weight").data, 4, factor);
        CHECK(code_of(file) == "bad_metadata");
    }
}

TEST_CASE("other architectures, split files and experts are refused") {
    for (const char* name : {"gpt2", "", "LLAMA", "llama2", "\x1b]0;title\x07"}) {
        const Status status = load_status([&] {
            GgufWriter file = sound();
            file.set("general.architecture", name);
            return file.write();
        }());
        CHECK(status.code() == Code::unsupported_model);
        CHECK(std::string(status.message()).find('\x1b') == std::string::npos);
    }
    CHECK(code_with("split.count", std::uint16_t{3}) == "unsupported_model");
    CHECK(code_with("split.count", std::uint16_t{1}) == "ok");
    CHECK(code_with("split.count", "../../x") == "bad_metadata");
    CHECK(code_with("split.count", std::uint64_t{1} << 40) == "bad_metadata");
    CHECK(code_with("llama.expert_count", 8u) == "unsupported_model");
    CHECK(code_with("llama.expert_count", 0u) == "ok");
    CHECK(code_with("llama.vocab_size", 5u) == "bad_metadata");
}

TEST_CASE("every missing tensor is named") {
    ModelShape shape;
    shape.own_output = false;
    const GgufWriter whole = ModelMaker(shape).file;
    for (const GgufWriter::Tensor& tensor : whole.tensors) {
        GgufWriter file = whole;
        file.erase_tensor(tensor.name);
        const Status status = load_status(file.write());
        CHECK(status.code() == Code::missing_tensor);
        CHECK(std::string(status.message()).find(tensor.name) != std::string::npos);
    }
    GgufWriter none = whole;
    none.tensors.clear();
    CHECK(code_of(none) == "missing_tensor");
}

TEST_CASE("every tensor of another shape is refused, a transposed one too") {
    ModelShape shape;
    shape.n_ff = 64;
    shape.own_output = true;
    shape.rope_factors = true;
    const GgufWriter whole = ModelMaker(shape).file;
    for (std::size_t i = 0; i < whole.tensors.size(); i++) {
        CAPTURE(whole.tensors[i].name);
        GgufWriter file = whole;
        std::vector<std::uint64_t>& dims = file.tensors[i].dims;
        const std::vector<std::uint64_t> right = dims;
        dims = right;
        dims[0] /= 2;
        CHECK(code_of(file) == "shape_mismatch");
        dims = right;
        dims.back() /= 2;
        CHECK(code_of(file) == "shape_mismatch");
        dims.back() = right.back() / 2;
        dims.push_back(2);
        CHECK(code_of(file) == "shape_mismatch");
        dims = right;
        if (right.size() == 2 && right[0] != right[1]) {
            std::swap(dims[0], dims[1]);
            CHECK(code_of(file) == "shape_mismatch");
        }
        dims = right;
        dims.push_back(1);
        CHECK(code_of(file) == "ok");
    }
}

TEST_CASE("tensors that are not run are refused rather than left out") {
    for (const char* name : {"blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight", "blk.7.attn_q.weight", "x"}) {
        GgufWriter file = sound();
        GgufWriter::Tensor& tensor = file.tensor(name);
        tensor.dims = {8};
        tensor.data.resize(32);
        const Status status = load_status(file.write());
        CHECK(status.code() == Code::unsupported_model);
        CHECK(std::string(status.message()).find(name) != std::string::npos);
    }
}

TEST_CASE("scales of Q8_0 blocks that are no numbers end in an error, denormal ones do not") {
    for (const std::uint16_t scale : {std::uint16_t{0x7c00}, std::uint16_t{0xfc00}, std::uint16_t{0x7e01},
                                      std::uint16_t{0x0001}, std::uint16_t{0x8000}}) {
        ModelShape shape;
        shape.matrix_type = gguf_q8_0;
        GgufWriter file = ModelMaker(shape).file;
        for (const char* name : {"blk.0.attn_v.weight", "token_embd.weight"}) {
            Bytes& data = file.tensor(name).data;
            for (std::size_t at = 0; at < data.size(); at += tensor_type(WeightType::q8_0).block_bytes) {
                overwrite(data, at, scale);
            }
        }
        const Bytes bytes = file.write();
        std::shared_ptr<const LlamaModel> model;
        REQUIRE(LlamaModel::load_bytes(bytes.data(), bytes.size(), &model).ok());
        std::unique_ptr<Session> session;
        SessionConfig config;
        REQUIRE(Session::create(model, config, serial_executor(), &session).ok());
        const Token tokens[] = {1, 2, 3};
        const bool finite = (scale & 0x7c00) != 0x7c00;
        CHECK(session->prefill(tokens, 3).code() == (finite ? Code::ok : Code::non_finite));
    }
}
