#include "decoder/network/model.hpp"

#include <algorithm>
#include <cstring>

#include "decoder/gguf/guarded.hpp"
#include "decoder/network/bind.hpp"
#include "decoder/text/tokenizer.hpp"
#include "file/xxh64.hpp"

namespace gearkv {
namespace {

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

// Elements that lie in the file cannot overflow.
std::uint64_t count_parameters(const GgufFile& file) {
    std::uint64_t n = 0;
    for (const GgufTensor& tensor : file.tensors) {
        n += tensor.dims[0] * tensor.dims[1] * tensor.dims[2] * tensor.dims[3];
    }
    return n;
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

Status LlamaModel::build(const std::uint8_t* bytes, std::uint64_t n_bytes, const ModelOptions& options,
                         LlamaModel& model) {
    GgufFile file;
    Status status = parse_gguf(&file, bytes, n_bytes);
    if (status.ok()) status = read_params(file, &model.network_);
    if (!status.ok()) return status;
    status = create_tokenizer(file, {options.pre}, &model.tokenizer_);
    if (!status.ok()) return status;
    ModelParams& sizes = model.network_.sizes;
    sizes.n_vocab = static_cast<std::uint32_t>(model.tokenizer_->n_vocab());
    sizes.n_parameters = count_parameters(file);
    status = check_vocab_size(file, *model.network_.family, sizes.n_vocab);
    if (status.ok()) status = bind_weights(file, model.network_, &model.weights_);
    if (!status.ok()) return status;
    model.tensors_ = list_tensors(file);
    model.fingerprint_ = fingerprint_of(file, bytes, n_bytes);
    model.metadata_.reserve(file.values.size());
    for (const GgufValue& value : file.values) {
        model.metadata_.emplace_back(value.key, value_text(value));
    }
    return {};
}

Status LlamaModel::load_bytes(const std::uint8_t* bytes, std::uint64_t n_bytes,
                              std::shared_ptr<const LlamaModel>* out, const ModelOptions& options) {
    auto model = std::make_shared<LlamaModel>();
    const Status status = build(bytes, n_bytes, options, *model);
    if (status.ok()) *out = std::move(model);
    return status;
}

Status LlamaModel::load_file(MappedFile file, std::shared_ptr<const LlamaModel>* out,
                             const ModelOptions& options) {
    auto model = std::make_shared<LlamaModel>();
    model->file_ = std::move(file);
    const Status status = build(model->file_.bytes(), model->file_.n_bytes(), options, *model);
    if (status.ok()) *out = std::move(model);
    return status;
}

Status Model::load(const char* path, std::shared_ptr<const Model>* out,
                   const ModelOptions& options) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] {
        MappedFile file;
        Status status = MappedFile::map(path, &file);
        if (!status.ok()) return status;
        std::shared_ptr<const LlamaModel> model;
        status = LlamaModel::load_file(std::move(file), &model, options);
        if (status.ok()) *out = std::move(model);
        return status;
    });
}

}  // namespace gearkv
