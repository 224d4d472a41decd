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

TEST_CASE("sizes that may differ from layer to layer are one size, or refused by name") {
    ModelShape shape;
    shape.n_layers = 3;
    using Sizes = std::vector<std::uint32_t>;
    const std::pair<std::string, std::uint32_t> keys[] = {
        {"attention.head_count", 4}, {"attention.head_count_kv", 2}, {"feed_forward_length", 32}};
    for (const auto& [name, size] : keys) {
        const std::string key = "llama." + name;
        CAPTURE(key);
        GgufWriter file = ModelMaker(shape).file;
        file.set_array(key, Sizes{size, size, size});
        CHECK(code_of(file) == "ok");
        file.set_array(key, std::vector<std::int64_t>(3, size));
        CHECK(code_of(file) == "ok");
        file.set_array(key, Sizes{size, size, size / 2});
        const Status status = load_status(file.write());
        CHECK(status.code() == Code::unsupported_model);
        CHECK(std::string(status.message()).find(key) != std::string::npos);
        for (const Sizes& sizes :
             {Sizes{}, Sizes{size}, Sizes(2, size), Sizes(4, size), Sizes(3, 0), Sizes(100000, size)}) {
            file.set_array(key, sizes);
            CHECK(code_of(file) == "bad_metadata");
        }
        file.set_array(key, std::vector<std::int32_t>{-1, -1, -1});
        CHECK(code_of(file) == "bad_metadata");
        file.set_array(key, std::vector<float>(3, static_cast<float>(size)));
        CHECK(code_of(file) == "bad_metadata");
        file.set_array(key, std::vector<std::string>(3, "4"));
        CHECK(code_of(file) == "bad_metadata");
    }
}

TEST_CASE("scaled positions need all of what they are scaled by") {
    CHECK(code_with("llama.rope.scaling.type", "none") == "ok");
    CHECK(code_with("llama.rope.scaling.type", "linear") == "ok");
    CHECK(code_with("llama.rope.scaling.type", "yarn") == "missing_key");
    CHECK(code_with("llama.rope.scaling.type", "longrope") == "missing_tensor");
    CHECK(code_with("llama.rope.scaling.type", "llama3") == "missing_tensor");
    CHECK(code_with("llama.rope.scaling.type", "dynamic") == "unsupported_model");
    CHECK(code_with("llama.rope.scaling.type", "") == "unsupported_model");
    CHECK(code_with("llama.rope.scaling.type", "\x1b[2J") == "unsupported_model");
    CHECK(code_with("llama.rope.scaling.type", 1u) == "bad_metadata");
    for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"}) {
        CHECK(code_with(key, 4.0f) == "ok");
        CHECK(code_with(key, 0.0f) == "ok");  // none
        for (const float factor : {NAN, INFINITY, -INFINITY, -4.0f}) {
            CHECK(code_with(key, factor) == "bad_metadata");
        }
    }
    GgufWriter both = sound();
    both.set("llama.rope.scaling.factor", 4.0f);
    both.set("llama.rope.scale_linear", 4.0f);
    CHECK(code_of(both) == "ok");
    both.set("llama.rope.scale_linear", 2.0f);
    CHECK(code_of(both) == "bad_metadata");
    for (const float value : {NAN, INFINITY, 0.0f, -1.0f}) {
        CHECK(code_with("llama.rope.scaling.attn_factor", value) == "bad_metadata");
    }

    ModelShape shape;
    shape.scaling = "yarn";
    shape.factor = 4.0f;
    const auto yarn_with = [&](const std::string& key, auto value) {
        GgufWriter file = ModelMaker(shape).file;
        file.set("llama." + key, value);
        return code_of(file);
    };
    CHECK(yarn_with("rope.scaling.factor", 4.0f) == "ok");
    CHECK(yarn_with("rope.scaling.factor", 0.5f) == "bad_metadata");
    CHECK(yarn_with("rope.freq_base", 1.0f) == "bad_metadata");
    CHECK(yarn_with("rope.scaling.original_context_length", 0u) == "ok");  // not stated
    CHECK(yarn_with("rope.scaling.original_context_length", 0xffffffffu) == "bad_metadata");
    for (const char* key : {"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}) {
        CHECK(yarn_with(key, 1e-30f) == "ok");
        CHECK(yarn_with(key, 1e30f) == "ok");
        for (const float value : {NAN, INFINITY, 0.0f, -1.0f}) {
            CHECK(yarn_with(key, value) == "bad_metadata");
        }
    }
    CHECK(yarn_with("rope.scaling.yarn_attn_factor", 1.2f) == "unsupported_model");
    CHECK(yarn_with("rope.scaling.yarn_ext_factor", 1.0f) == "unsupported_model");
}

TEST_CASE("factors of frequencies are positive numbers, and of one kind") {
    ModelShape shape;
    shape.rope_factors = true;
    ModelShape sets;
    sets.rope_factor_sets = true;
    for (const float factor : {NAN, INFINITY, 0.0f, -1.0f}) {
        GgufWriter file = ModelMaker(shape).file;
        overwrite(file.tensor("rope_freqs.weight").data, 4, factor);
        CHECK(code_of(file) == "bad_metadata");
        for (const char* name : {"rope_factors_long.weight", "rope_factors_short.weight"}) {
            file = ModelMaker(sets).file;
            overwrite(file.tensor(name).data, 4, factor);
            CHECK(code_of(file) == "bad_metadata");
        }
    }
    for (const char* name : {"rope_factors_long.weight", "rope_factors_short.weight"}) {
        GgufWriter file = ModelMaker(sets).file;
        file.erase_tensor(name);
        CHECK(code_of(file) == "missing_tensor");
    }
    sets.rope_factors = true;
    CHECK(code_of(ModelMaker(sets).file) == "unsupported_model");
}

TEST_CASE("windows and their patterns fit the layers") {
    ModelShape shape;
    shape.n_layers = 3;
    shape.window = 16;
    const auto with = [&](auto set) {
        GgufWriter file = ModelMaker(shape).file;
        set(file);
        return code_of(file);
    };
    const std::string window = "llama.attention.sliding_window", pattern = window + "_pattern";
    const auto pattern_of = [&](const std::vector<bool>& layers) {
        return with([&](GgufWriter& file) { file.set_array(pattern, layers); });
    };
    CHECK(pattern_of({true, false, true}) == "ok");
    CHECK(pattern_of({}) == "bad_metadata");
    CHECK(pattern_of({true, false}) == "bad_metadata");
    CHECK(pattern_of({true, false, true, true}) == "bad_metadata");
    CHECK(with([&](GgufWriter& file) {
              file.set_array(pattern, std::vector<std::uint32_t>{1, 0, 1});
          }) == "bad_metadata");
    for (const std::uint32_t period : {0u, 1u, 2u, 4096u}) {
        CHECK(with([&](GgufWriter& file) { file.set(pattern, period); }) == "ok");
    }
    CHECK(with([&](GgufWriter& file) { file.set(pattern, 4097u); }) == "bad_metadata");
    CHECK(with([&](GgufWriter& file) { file.set(pattern, -1); }) == "bad_metadata");
    CHECK(with([&](GgufWriter& file) { file.set(window, -1); }) == "bad_metadata");
    CHECK(with([&](GgufWriter& file) { file.set(window, 16.0f); }) == "bad_metadata");
    CHECK(with([&](GgufWriter& file) { file.set(window, 0xffffffffu); }) == "ok");
    shape.window = 0;
    CHECK(pattern_of({true, false, true}) == "unsupported_model");  // of no window
    shape.family = "gemma3";
    CHECK(code_of(ModelMaker(shape).file) == "missing_key");
    CHECK(with([](GgufWriter& file) { file.set("gemma3.attention.sliding_window", 0u); }) == "bad_metadata");
    shape.family = "olmo2";
    shape.window = 16;
    CHECK(code_of(ModelMaker(shape).file) == "missing_key");
    shape.window_period = 4;
    CHECK(code_of(ModelMaker(shape).file) == "ok");
}

TEST_CASE("scales and caps are numbers that can be") {
    for (const char* key : {"llama.attn_logit_softcapping", "llama.final_logit_softcapping"}) {
        CHECK(code_with(key, 0.0f) == "ok");  // none
        for (const float value : {NAN, INFINITY, -1.0f}) {
            CHECK(code_with(key, value) == "bad_metadata");
        }
    }
    ModelShape shape;
    shape.family = "granite";
    CHECK(code_of(ModelMaker(shape).file) == "missing_key");  // its logits are divided by a number
    shape.logit_scale = 8.0f;
    const GgufWriter sound_granite = ModelMaker(shape).file;
    CHECK(code_of(sound_granite) == "ok");
    for (const char* key : {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}) {
        for (const float value : {NAN, INFINITY, 0.0f, -1.0f}) {
            CAPTURE(key, value);
            GgufWriter file = sound_granite;
            file.set("granite." + std::string(key), value);
            CHECK(code_of(file) == "bad_metadata");
        }
    }
}

TEST_CASE("metadata that would change what is computed are obeyed, or refused by name") {
    const auto refused = [](const std::string& key, auto value) {
        GgufWriter file = sound();
        file.set(key, value);
        const Status status = load_status(file.write());
        CAPTURE(key, status.message());
        CHECK(status.code() == Code::unsupported_model);
        CHECK(std::string(status.message()).find(key) != std::string::npos);
    };
    refused("llama.attention.causal", false);
    refused("llama.logit_scale", 0.1f);
    refused("llama.embedding_scale", 12.0f);
    refused("llama.residual_scale", 0.2f);
    refused("llama.attention.clamp_kqv", 2.0f);
    refused("llama.attention.max_alibi_bias", 8.0f);
    refused("llama.use_parallel_residual", true);
    refused("llama.rope.scaling.yarn_log_multiplier", 0.1f);
    refused("llama.rope.scale", 4.0f);
    refused("llama.rope.freq_scale", 0.25f);
    refused("llama.rope.freq_base_swa", 5000.0f);
    refused("llama.attention.temperature_scale", 0.1f);
    refused("llama.expert_count", 8u);
    refused("llama.attention.group_norm_groups", 2u);
    refused("llama.attention.layer_norm_epsilon", 1e-5f);
    refused("llama.tensor_data_layout", "huggingface");
    refused("llama.hidden_activation", "gelu");
    refused("llama.attention.key_length_mla", 8u);
    refused("llama.pooling_type", 1u);
    refused("llama.anything.else", "\x1b[2J");
    refused("general.type", "adapter");
    refused("general.quantization_version", 99u);
    refused("adapter.type", "lora");
    GgufWriter file = sound();
    file.set_array("llama.rope.dimension_sections", std::vector<std::int32_t>{4, 4, 0, 0});
    CHECK(code_of(file) == "unsupported_model");

    CHECK(code_with("llama.attention.causal", true) == "ok");
    CHECK(code_with("llama.expert_count", 0u) == "ok");
    CHECK(code_with("llama.tensor_data_layout", "Meta AI original pth") == "ok");
    CHECK(code_with("llama.rope.scaling.original_context_length", 128u) == "ok");
    CHECK(code_with("llama.rope.scaling.finetuned", true) == "ok");
    CHECK(code_with("general.type", "model") == "ok");
    CHECK(code_with("general.quantization_version", 2u) == "ok");
    CHECK(code_with("general.file_type", 15u) == "ok");
    CHECK(code_with("general.anything", 1u) == "ok");
    CHECK(code_with("quantize.imatrix.entries_count", 200) == "ok");
    CHECK(code_with("llamas.attention.causal", false) == "ok");  // of another architecture
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
        CHECK(std::string(status.message())
                  .find("llama, qwen2, qwen3, gemma, gemma2, gemma3, phi3, smollm3, "
                        "granite, olmo2") != std::string::npos);
    }
    CHECK(code_with("split.count", std::uint16_t{3}) == "unsupported_model");
    CHECK(code_with("split.count", std::uint16_t{1}) == "ok");
    CHECK(code_with("split.count", "../../x") == "bad_metadata");
    CHECK(code_with("split.count", std::uint64_t{1} << 40) == "bad_metadata");
    CHECK(code_with("llama.vocab_size", 5u) == "bad_metadata");
}

namespace {

bool is_optional(const std::string& name) {
    const bool is_bias = name.ends_with("_output.bias") || name.find("ffn_") != std::string::npos;
    return name == "output.weight" || name == "rope_freqs.weight" || (is_bias && name.ends_with(".bias"));
}

}  // namespace

TEST_CASE("every missing tensor of every family is named") {
    for (const GgufWriter& whole : every_family()) {
        CHECK(code_of(whole) == "ok");
        for (const GgufWriter::Tensor& tensor : whole.tensors) {
            CAPTURE(tensor.name);
            GgufWriter file = whole;
            file.erase_tensor(tensor.name);
            const Status status = load_status(file.write());
            if (is_optional(tensor.name)) {
                CHECK(status.ok());
                continue;
            }
            CHECK(status.code() == Code::missing_tensor);
            // Without a fused tensor the three it stands for are looked for.
            const bool is_fused = tensor.name == "blk.0.attn_qkv.weight";
            CHECK(std::string(status.message()).find(is_fused ? "blk.0.attn_q.weight" : tensor.name) !=
                  std::string::npos);
        }
        GgufWriter none = whole;
        none.tensors.clear();
        CHECK((code_of(none) == "missing_tensor"));
    }
}

TEST_CASE("every tensor of another shape is refused, a transposed one too") {
    std::vector<std::pair<GgufWriter, std::size_t>> cases;
    for (const GgufWriter& whole : every_family()) {
        for (std::size_t i = 0; i < whole.tensors.size(); i++) {
            cases.emplace_back(whole, i);
        }
    }
    for (const auto& [whole, i] : cases) {
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

TEST_CASE("tensors that are left over are refused by name, a handful of them, and counted") {
    const auto add = [](GgufWriter& file, const std::string& name) {
        GgufWriter::Tensor& tensor = file.tensor(name);
        tensor.dims = {8};
        tensor.data.resize(32);
    };
    for (const char* name : {"blk.0.attn_q_norm.weight", "blk.0.ffn_gate_exps.weight", "blk.7.attn_q.weight",
                             "blk.0.post_ffw_norm.weight", "x"}) {
        GgufWriter file = sound();
        add(file, name);
        const Status status = load_status(file.write());
        CHECK(status.code() == Code::unsupported_model);
        CHECK(std::string(status.message()).find(name) != std::string::npos);
    }
    GgufWriter file = sound();
    for (int i = 0; i < 1000; i++) {
        add(file, std::string(55, 'x') + std::to_string(i));
    }
    const std::string message = load_status(file.write()).message();
    CHECK(message.find("1000 tensors") != std::string::npos);
    CHECK(message.find("x0") != std::string::npos);
    // What one family has is left over in another.
    ModelShape shape;
    shape.family = "qwen3";
    shape.branch_biases = true;
    CHECK(code_of(ModelMaker(shape).file) == "unsupported_model");
    shape.family = "phi3";
    shape.branch_biases = false;
    shape.fused_qkv = shape.biases = true;
    CHECK(code_of(ModelMaker(shape).file) == "ok");
}

TEST_CASE("scales of blocks that are no numbers end in an error, denormal ones do not") {
    for (const TensorType& type : tensor_types) {
        const BlockScales scales = block_scales(type.type);
        if (scales.scale == 0.0f) continue;  // no half in its blocks
        CAPTURE(type.name);
        ModelShape shape;
        shape.matrix_type = type.id;
        if (type.block > 32)
            shape.n_embd = shape.n_ff = type.block, shape.head_dim = type.block / shape.n_heads;
        const ModelMaker maker(shape);
        for (const bool low : {false, true}) {
            if (low && scales.low == 0.0f) continue;
            for (const std::uint16_t half :
                 {std::uint16_t{0x7c00}, std::uint16_t{0xfc00}, std::uint16_t{0x7e01}, std::uint16_t{0x0001},
                  std::uint16_t{0x8000}}) {
                GgufWriter file = maker.file;
                for (const char* name : {"blk.0.attn_v.weight", "token_embd.weight"}) {
                    Bytes& data = file.tensor(name).data;
                    for (std::size_t at = 0; at < data.size(); at += type.block_bytes) {
                        overwrite(data, at + (low ? scales.low_at : scales.scale_at), half);
                    }
                }
                const Bytes bytes = file.write();
                std::shared_ptr<const FileModel> model;
                REQUIRE(FileModel::load_bytes(bytes.data(), bytes.size(), &model).ok());
                std::unique_ptr<Session> session;
                SessionConfig config;
                REQUIRE(parse_spec("f16", &config.spec).ok());
                REQUIRE(Session::create(model, config, serial_executor(), &session).ok());
                const Token tokens[] = {1, 2, 3};
                const bool finite = (half & 0x7c00) != 0x7c00;
                CAPTURE(half, low);
                CHECK(session->prefill(tokens, 3).code() == (finite ? Code::ok : Code::non_finite));
            }
        }
    }
}

TEST_CASE("exponents of MXFP4 blocks may be any byte: what overflows is an error") {
    for (const int exponent : {0, 1, 2, 127, 254, 255}) {
        ModelShape shape;
        shape.matrix_type = tensor_type(WeightType::mxfp4).id;
        GgufWriter file = ModelMaker(shape).file;
        Bytes& data = file.tensor("token_embd.weight").data;
        for (std::size_t at = 0; at < data.size(); at += tensor_type(WeightType::mxfp4).block_bytes) {
            data[at] = static_cast<std::uint8_t>(exponent);
        }
        const Bytes bytes = file.write();
        std::shared_ptr<const FileModel> model;
        REQUIRE(FileModel::load_bytes(bytes.data(), bytes.size(), &model).ok());
        std::unique_ptr<Session> session;
        SessionConfig config;
        REQUIRE(parse_spec("f16", &config.spec).ok());
        REQUIRE(Session::create(model, config, serial_executor(), &session).ok());
        const Token tokens[] = {1, 2, 3};
        CAPTURE(exponent);
        CHECK(session->prefill(tokens, 3).code() == (exponent < 200 ? Code::ok : Code::non_finite));
    }
}
