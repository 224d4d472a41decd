// Writes seeds/blocks-32.gguf and seeds/blocks-256.gguf, models whose matrices are of many types.
#include <fstream>

#include "support/model_maker.hpp"

using namespace gearkv;
using namespace gearkv::test;

namespace {

void set_type(GgufWriter& file, const std::string& name, WeightType type) {
    GgufWriter::Tensor& tensor = file.tensor(name);
    tensor.type = tensor_type(type).id;
    tensor.data = random_blocks(type, tensor.dims[0] * tensor.dims[1], static_cast<std::uint32_t>(type) + 1);
}

void write(const GgufWriter& file, const std::string& name) {
    const Bytes bytes = file.write();
    std::ofstream(GEARKV_DATA_DIR "/../fuzz/seeds/" + name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

int main() {
    ModelShape small;
    small.matrix_type = tensor_type(WeightType::q4_0).id;
    GgufWriter file = ModelMaker(small).file;
    set_type(file, "blk.0.attn_q.weight", WeightType::q4_1);
    set_type(file, "blk.0.attn_k.weight", WeightType::q5_0);
    set_type(file, "blk.0.attn_v.weight", WeightType::q5_1);
    set_type(file, "blk.0.ffn_gate.weight", WeightType::iq4_nl);
    set_type(file, "blk.0.ffn_up.weight", WeightType::mxfp4);
    set_type(file, "blk.0.ffn_down.weight", WeightType::q8_0);
    write(file, "blocks-32.gguf");

    ModelShape large;
    large.n_embd = 256;
    large.matrix_type = tensor_type(WeightType::q4_0).id;
    file = ModelMaker(large).file;
    set_type(file, "token_embd.weight", WeightType::tq2_0);
    set_type(file, "blk.0.attn_q.weight", WeightType::q4_k);
    set_type(file, "blk.0.attn_k.weight", WeightType::q5_k);
    set_type(file, "blk.0.attn_v.weight", WeightType::q6_k);
    set_type(file, "blk.0.ffn_gate.weight", WeightType::q2_k);
    set_type(file, "blk.0.ffn_up.weight", WeightType::q3_k);
    set_type(file, "blk.0.attn_output.weight", WeightType::iq4_nl);
    write(file, "blocks-256.gguf");
}
