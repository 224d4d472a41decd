#include "random_model.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "support/blocks.hpp"

namespace gearkv::bench {
namespace {

using test::Bytes;

constexpr RandomShape shapes[] = {
    {"tiny", 256, 2, 4, 2, 64, 512, 512},
    {"0.5B", 1024, 24, 16, 4, 64, 4096, 128256},
    {"1B", 2048, 16, 32, 8, 64, 8192, 128256},
    {"3B", 3072, 28, 24, 8, 128, 8192, 128256},
};

struct Tensor {
    std::string name;
    std::vector<std::uint64_t> dims;  // innermost first
    WeightType type;

    std::uint64_t n_elements() const { return dims.size() == 1 ? dims[0] : dims[0] * dims[1]; }
    std::uint64_t n_bytes() const {
        const TensorType& info = tensor_type(type);
        return n_elements() / info.block * info.block_bytes;
    }
};

std::vector<Tensor> list_tensors(const RandomShape& shape, WeightType type) {
    const std::uint64_t d = shape.n_embd, f = shape.n_ff;
    const std::uint64_t q = std::uint64_t{shape.n_heads} * shape.head_dim;
    const std::uint64_t kv = std::uint64_t{shape.n_kv_heads} * shape.head_dim;
    std::vector<Tensor> tensors = {{"token_embd.weight", {d, shape.n_vocab}, type},
                                   {"output_norm.weight", {d}, WeightType::f32}};
    for (std::uint32_t layer = 0; layer < shape.n_layers; ++layer) {
        const std::string prefix = "blk." + std::to_string(layer) + ".";
        tensors.push_back({prefix + "attn_norm.weight", {d}, WeightType::f32});
        tensors.push_back({prefix + "attn_q.weight", {d, q}, type});
        tensors.push_back({prefix + "attn_k.weight", {d, kv}, type});
        tensors.push_back({prefix + "attn_v.weight", {d, kv}, type});
        tensors.push_back({prefix + "attn_output.weight", {q, d}, type});
        tensors.push_back({prefix + "ffn_norm.weight", {d}, WeightType::f32});
        tensors.push_back({prefix + "ffn_gate.weight", {d, f}, type});
        tensors.push_back({prefix + "ffn_up.weight", {d, f}, type});
        tensors.push_back({prefix + "ffn_down.weight", {f, d}, type});
    }
    return tensors;
}

// Three control tokens, 256 bytes, and words of letters.
void set_vocabulary(test::GgufWriter& file, std::uint32_t n_vocab) {
    std::vector<std::string> texts = {"<unk>", "<s>", "</s>"};
    std::vector<std::int32_t> types = {2, 3, 3};
    constexpr const char* digits = "0123456789ABCDEF";
    for (int byte = 0; byte < 256; ++byte) {
        texts.push_back(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
        types.push_back(6);
    }
    for (std::uint32_t i = 0; texts.size() < n_vocab; ++i) {
        std::string word;
        for (std::uint32_t rest = i + 1; rest > 0; rest = (rest - 1) / 26)
            word += static_cast<char>('a' + (rest - 1) % 26);
        texts.push_back(word);
        types.push_back(1);
    }
    std::vector<float> scores(n_vocab);
    for (std::uint32_t i = 0; i < n_vocab; ++i)
        scores[i] = -static_cast<float>(i);
    file.set("tokenizer.ggml.model", "llama");
    file.set_array("tokenizer.ggml.tokens", texts);
    file.set_array("tokenizer.ggml.scores", scores);
    file.set_array("tokenizer.ggml.token_type", types);
    file.set("tokenizer.ggml.bos_token_id", std::uint32_t{1});
    file.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
}

// Metadata, and tensors without their data.
test::GgufWriter describe(const RandomShape& shape, const std::vector<Tensor>& tensors) {
    test::GgufWriter file;
    file.set("general.architecture", "llama");
    file.set("general.name", std::string("random ") + shape.name);
    file.set("llama.block_count", shape.n_layers);
    file.set("llama.embedding_length", shape.n_embd);
    file.set("llama.feed_forward_length", shape.n_ff);
    file.set("llama.context_length", std::uint32_t{131072});
    file.set("llama.attention.head_count", shape.n_heads);
    file.set("llama.attention.head_count_kv", shape.n_kv_heads);
    file.set("llama.attention.key_length", shape.head_dim);
    file.set("llama.attention.value_length", shape.head_dim);
    file.set("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    file.set("llama.rope.dimension_count", shape.head_dim);
    file.set("llama.rope.freq_base", 500000.0f);
    set_vocabulary(file, shape.n_vocab);
    for (const Tensor& tensor : tensors)
        file.tensors.push_back({tensor.name, tensor.dims, tensor_type(tensor.type).id, {}});
    return file;
}

// splitmix64: as fast as the file is written.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t operator()() {
        std::uint64_t x = state_ += 0x9e3779b97f4a7c15u;
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
        return x ^ x >> 31;
    }

  private:
    std::uint64_t state_;
};

// Words little-endian, so that a seed means the same bytes everywhere.
void put_word(std::uint8_t* at, std::uint64_t word) {
    for (int i = 0; i < 8; ++i)
        at[i] = static_cast<std::uint8_t>(word >> 8 * i);
}

void put_half(std::uint8_t* at, std::uint16_t half) {
    at[0] = static_cast<std::uint8_t>(half);
    at[1] = static_cast<std::uint8_t>(half >> 8);
}

// Floats are between 1/32 and 1/16, of either sign.
void make_floats(Bytes* bytes, WeightType type, Random& random) {
    std::uint64_t keep = 0x807fffff807fffffu, set = 0x3d0000003d000000u;
    if (type == WeightType::f16) keep = 0x83ff83ff83ff83ffu, set = 0x2800280028002800u;
    if (type == WeightType::bf16) keep = 0x807f807f807f807fu, set = 0x3d003d003d003d00u;
    for (std::size_t i = 0; i < bytes->size(); i += 8)
        put_word(bytes->data() + i, (random() & keep) | set);
}

// Bytes are whole blocks, and a multiple of 8.
void make_blocks(Bytes* bytes, WeightType type, Random& random) {
    const TensorType& info = tensor_type(type);
    if (info.block == 1) return make_floats(bytes, type, random);
    for (std::size_t i = 0; i < bytes->size(); i += 8)
        put_word(bytes->data() + i, random());
    const test::BlockScales scales = test::block_scales(type);
    // Scales of 1 to 2 times a size; of either sign where there is no minimum.
    std::uint16_t halves[2][64];
    for (std::size_t i = 0; i < 64; ++i) {
        const float size = 1.0f + static_cast<float>(i % 32) / 32.0f;
        const float sign = i >= 32 && scales.low == 0.0f ? -1.0f : 1.0f;
        halves[0][i] = test::to_half(sign * scales.scale * size);
        halves[1][i] = test::to_half(scales.low * size);
    }
    for (std::size_t at = 0; at < bytes->size(); at += info.block_bytes) {
        std::uint8_t* block = bytes->data() + at;
        const std::uint64_t drawn = random();
        if (type == WeightType::mxfp4) {
            block[0] = static_cast<std::uint8_t>(118 + drawn % 4);
            continue;
        }
        put_half(block + scales.scale_at, halves[0][drawn % 64]);
        if (scales.low != 0.0f) put_half(block + scales.low_at, halves[1][drawn / 64 % 64]);
    }
}

void write_bytes(std::ostream& out, const Bytes& bytes) {
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

void write_tensor(std::ostream& out, const Tensor& tensor, Random& random) {
    const TensorType& info = tensor_type(tensor.type);
    // A whole number of blocks and of words.
    const std::uint64_t part_elements = std::uint64_t{1} << 18;
    Bytes bytes;
    for (std::uint64_t done = 0, n = tensor.n_elements(); done < n && out; done += part_elements) {
        bytes.resize(std::min(part_elements, n - done) / info.block * info.block_bytes);
        if (tensor.dims.size() == 1) {
            for (std::size_t i = 0; i < bytes.size(); i += 8)
                put_word(bytes.data() + i, 0x3f8000003f800000u);
        } else {
            make_blocks(&bytes, tensor.type, random);
        }
        write_bytes(out, bytes);
    }
}

}  // namespace

std::span<const RandomShape> random_shapes() {
    return shapes;
}

bool write_random_model(std::ostream& out, const RandomShape& shape, WeightType type, std::uint64_t seed) {
    const std::vector<Tensor> tensors = list_tensors(shape, type);
    const test::GgufWriter file = describe(shape, tensors);
    write_bytes(out, file.write_header([&](std::size_t i) { return tensors[i].n_bytes(); }));
    Random random(seed);
    for (const Tensor& tensor : tensors) {
        write_tensor(out, tensor, random);
        write_bytes(out, Bytes(file.pad(tensor.n_bytes()) - tensor.n_bytes()));
    }
    return static_cast<bool>(out.flush());
}

}  // namespace gearkv::bench
