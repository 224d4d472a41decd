#include "decoder/network/model.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "decoder/gguf/checked.hpp"
#include "decoder/gguf/guarded.hpp"
#include "decoder/network/params.hpp"
#include "decoder/text/tokenizer.hpp"
#include "file/xxh64.hpp"

namespace gearkv {
namespace {

using Index = unsigned long long;

// Takes tensors out of a file by name, each with the shape the metadata promise.
class TensorBinder {
  public:
    explicit TensorBinder(const GgufFile& file) : file_(file), used_(file.tensors.size(), false) {}

    Status bind(const std::string& name, std::size_t n_rows, std::size_t n_cols, Weight* out) {
        const GgufTensor* tensor = find_tensor(file_, name);
        if (tensor == nullptr)
            return Status::error(Code::missing_tensor, "the file has no '%s'", name.c_str());
        if (tensor->dims[0] != n_cols || tensor->dims[1] != n_rows || tensor->dims[2] != 1 ||
            tensor->dims[3] != 1) {
            return Status::error(Code::shape_mismatch,
                                 "'%s' is [%llu, %llu, %llu, %llu], expected [%zu, %zu] of the metadata",
                                 name.c_str(), Index{tensor->dims[0]}, Index{tensor->dims[1]},
                                 Index{tensor->dims[2]}, Index{tensor->dims[3]}, n_cols, n_rows);
        }
        used_[static_cast<std::size_t>(tensor - file_.tensors.data())] = true;
        *out = {tensor->data, tensor->type, n_rows, n_cols,
                static_cast<std::size_t>(tensor->n_bytes / n_rows)};
        return {};
    }

    // A vector is expanded to float once.
    Status bind_vector(const std::string& name, std::size_t n, std::vector<float>* out) {
        Weight weight;
        const Status status = bind(name, 1, n, &weight);
        if (!status.ok()) return status;
        out->resize(n);
        linear_scalar.expand[static_cast<std::size_t>(weight.type)](out->data(), weight.data, 0, n);
        return {};
    }

    bool has(const std::string& name) const { return find_tensor(file_, name) != nullptr; }

    // A tensor nobody asked for (a bias, an expert) belongs to a model that would come out wrong without it.
    Status check_all_used() const {
        for (std::size_t i = 0; i < used_.size(); i++) {
            if (used_[i]) continue;
            const std::string_view name = file_.tensors[i].name;
            return Status::error(Code::unsupported_model,
                                 "tensor '%.*s' is no part of a llama model as it is run here",
                                 static_cast<int>(name.size()), name.data());
        }
        return {};
    }

  private:
    const GgufFile& file_;
    std::vector<bool> used_;
};

Status bind_layer(TensorBinder& binder, const ModelParams& params, std::uint32_t layer, LayerWeights& out) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const std::size_t d = params.n_embd;
    const std::size_t q = std::size_t{params.n_heads} * params.head_dim;
    const std::size_t kv = std::size_t{params.n_kv_heads} * params.head_dim;
    const std::size_t f = params.n_ff;
    Status status = binder.bind_vector(prefix + "attn_norm.weight", d, &out.attention_norm);
    if (status.ok()) status = binder.bind(prefix + "attn_q.weight", q, d, &out.query);
    if (status.ok()) status = binder.bind(prefix + "attn_k.weight", kv, d, &out.key);
    if (status.ok()) status = binder.bind(prefix + "attn_v.weight", kv, d, &out.value);
    if (status.ok()) status = binder.bind(prefix + "attn_output.weight", d, q, &out.attention_output);
    if (status.ok()) status = binder.bind_vector(prefix + "ffn_norm.weight", d, &out.ffn_norm);
    if (status.ok()) status = binder.bind(prefix + "ffn_gate.weight", f, d, &out.gate);
    if (status.ok()) status = binder.bind(prefix + "ffn_up.weight", f, d, &out.up);
    if (status.ok()) status = binder.bind(prefix + "ffn_down.weight", d, f, &out.down);
    return status;
}

Status bind_rope_factors(TensorBinder& binder, const ModelParams& params, std::vector<float>* out) {
    if (!binder.has("rope_freqs.weight")) return {};
    const Status status = binder.bind_vector("rope_freqs.weight", params.rope_dim / 2, out);
    if (!status.ok()) return status;
    for (const float factor : *out) {
        if (std::isfinite(factor) && factor > 0.0f) continue;
        return Status::error(Code::bad_metadata,
                             "'rope_freqs.weight' holds %g, expected finite factors above 0",
                             static_cast<double>(factor));
    }
    return {};
}

Status bind_weights(const GgufFile& file, const ModelParams& params, Weights& out) {
    TensorBinder binder(file);
    Status status = binder.bind("token_embd.weight", params.n_vocab, params.n_embd, &out.embedding);
    if (!status.ok()) return status;
    for (std::uint32_t layer = 0; layer < params.n_layers; layer++) {
        out.layers.emplace_back();
        status = bind_layer(binder, params, layer, out.layers.back());
        if (!status.ok()) return status;
    }
    status = binder.bind_vector("output_norm.weight", params.n_embd, &out.output_norm);
    if (!status.ok()) return status;
    out.output = out.embedding;
    if (binder.has("output.weight")) {
        status = binder.bind("output.weight", params.n_vocab, params.n_embd, &out.output);
    }
    if (status.ok()) status = bind_rope_factors(binder, params, &out.rope_factors);
    if (status.ok()) status = binder.check_all_used();
    return status;
}

std::vector<TensorInfo> list_tensors(const GgufFile& file) {
    std::vector<TensorInfo> tensors;
    tensors.reserve(file.tensors.size());
    for (const GgufTensor& tensor : file.tensors) {
        tensors.push_back({std::string(tensor.name), tensor_type(tensor.type).name,
                           std::vector<std::uint64_t>(tensor.dims, tensor.dims + tensor.n_dims),
                           tensor.n_bytes});
    }
    return tensors;
}

// Metadata and tensor table whole, and the first bytes of every tensor: enough to tell fine-tunes apart
// without reading gigabytes.
ModelFingerprint fingerprint_of(const GgufFile& file, const std::uint8_t* bytes, std::uint64_t n_bytes) {
    constexpr std::uint64_t sample_bytes = 4096;
    std::uint64_t n_before = n_bytes;
    std::vector<std::uint64_t> samples;
    for (const GgufTensor& tensor : file.tensors) {
        n_before = std::min(n_before, static_cast<std::uint64_t>(tensor.data - bytes));
        samples.push_back(xxh64(tensor.data, std::min(tensor.n_bytes, sample_bytes)));
    }
    const std::uint64_t words[] = {xxh64(bytes, n_before),
                                   xxh64(samples.data(), samples.size() * sizeof(samples[0])), n_bytes, 0};
    ModelFingerprint fingerprint;
    static_assert(sizeof(words) == sizeof(fingerprint.bytes));
    std::memcpy(fingerprint.bytes, words, sizeof(words));
    return fingerprint;
}

}  // namespace

Status LlamaModel::build(const std::uint8_t* bytes, std::uint64_t n_bytes, LlamaModel& model) {
    GgufFile file;
    Status status = parse_gguf(&file, bytes, n_bytes);
    if (status.ok()) status = read_params(file, &model.params_);
    if (!status.ok()) return status;
    Vocabulary vocabulary;
    status = read_vocabulary(file, &vocabulary);
    if (!status.ok()) return status;
    model.params_.n_vocab = static_cast<std::uint32_t>(vocabulary.texts.size());
    status = check_vocab_size(file, model.params_.n_vocab);
    if (status.ok()) status = bind_weights(file, model.params_, model.weights_);
    if (!status.ok()) return status;
    model.tokenizer_ = create_tokenizer(std::move(vocabulary));
    model.tensors_ = list_tensors(file);
    model.fingerprint_ = fingerprint_of(file, bytes, n_bytes);
    model.metadata_.reserve(file.values.size());
    for (const GgufValue& value : file.values) {
        model.metadata_.emplace_back(value.key, value_text(value));
    }
    return {};
}

Status LlamaModel::load_bytes(const std::uint8_t* bytes, std::uint64_t n_bytes,
                              std::shared_ptr<const LlamaModel>* out) {
    auto model = std::make_shared<LlamaModel>();
    const Status status = build(bytes, n_bytes, *model);
    if (status.ok()) *out = std::move(model);
    return status;
}

Status LlamaModel::load_file(MappedFile file, std::shared_ptr<const LlamaModel>* out) {
    auto model = std::make_shared<LlamaModel>();
    model->file_ = std::move(file);
    const Status status = build(model->file_.bytes(), model->file_.n_bytes(), *model);
    if (status.ok()) *out = std::move(model);
    return status;
}

Status Model::load(const char* path, std::shared_ptr<const Model>* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] {
        MappedFile file;
        Status status = MappedFile::map(path, &file);
        if (!status.ok()) return status;
        std::shared_ptr<const LlamaModel> model;
        status = LlamaModel::load_file(std::move(file), &model);
        if (status.ok()) *out = std::move(model);
        return status;
    });
}

}  // namespace gearkv
