#include "decoder/network/model.hpp"

#include <algorithm>
#include <cstring>

#include "../arch/float_mode.hpp"
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

std::vector<std::pair<std::string, std::string>> list_values(const GgufFile& file) {
    std::vector<std::pair<std::string, std::string>> values;
    values.reserve(file.values.size());
    for (const GgufValue& value : file.values) {
        values.emplace_back(value.key, value_text(value));
    }
    return values;
}

// Elements that lie in the file cannot overflow.
std::uint64_t count_parameters(const GgufFile& file) {
    std::uint64_t n = 0;
    for (const GgufTensor& tensor : file.tensors) {
        n += tensor.dims[0] * tensor.dims[1] * tensor.dims[2] * tensor.dims[3];
    }
    return n;
}

// Metadata and tensor tables whole, and the first bytes of every tensor: enough to tell fine-tunes apart
// without reading gigabytes.
ModelFingerprint fingerprint_of(const GgufFile& file) {
    constexpr std::uint64_t sample_bytes = 4096;
    std::vector<std::uint64_t> headers, samples;
    std::uint64_t n_bytes = 0;
    for (const GgufPart& part : file.parts) {
        headers.push_back(xxh64(part.bytes, part.header_bytes));
        n_bytes += part.n_bytes;
    }
    for (const GgufTensor& tensor : file.tensors) {
        samples.push_back(xxh64(tensor.data, std::min(tensor.n_bytes, sample_bytes)));
    }
    const auto hash = [](const std::vector<std::uint64_t>& hashes) {
        return xxh64(hashes.data(), hashes.size() * sizeof(hashes[0]));
    };
    // A whole file keeps the fingerprint it has in states that were saved before there were parts.
    const std::uint64_t words[] = {headers.size() == 1 ? headers[0] : hash(headers), hash(samples), n_bytes,
                                   0};
    ModelFingerprint fingerprint;
    static_assert(sizeof(words) == sizeof(fingerprint.bytes));
    std::memcpy(fingerprint.bytes, words, sizeof(words));
    return fingerprint;
}

}  // namespace

Status read_model_file(const char* path, ModelFile* out) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] {
        GgufModel model;
        Status status = open_gguf(path, &model);
        if (status.code() == Code::unsupported_model) status = open_gguf_values(path, &model);
        if (!status.ok()) return status;
        ModelFile file;
        file.metadata = list_values(model.file);
        file.tensors = list_tensors(model.file);
        *out = std::move(file);
        return Status();
    });
}

Status FileModel::build(const GgufFile& file, const ModelOptions& options, FileModel& model) {
    Status status = read_params(file, &model.network_);
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
    model.fingerprint_ = fingerprint_of(file);
    model.metadata_ = list_values(file);
    return {};
}

Status FileModel::load_bytes(const std::uint8_t* bytes, std::uint64_t n_bytes,
                             std::shared_ptr<const FileModel>* out, const ModelOptions& options) {
    GgufModel whole;
    std::vector<GgufFile> parts(1);
    Status status = parse_gguf(&parts[0], bytes, n_bytes);
    if (status.ok()) status = join_parts(std::move(parts), &whole.file);
    return status.ok() ? load_file(std::move(whole), out, options) : status;
}

Status FileModel::load_file(GgufModel file, std::shared_ptr<const FileModel>* out,
                            const ModelOptions& options) {
    const FloatMode mode;
    auto model = std::make_shared<FileModel>();
    model->files_ = std::move(file.files);
    for (const MappedFile& part : model->files_) {
        model->file_ids_.push_back(part.id());
    }
    const Status status = build(file.file, options, *model);
    if (status.ok()) *out = std::move(model);
    return status;
}

Status Model::load(const char* path, std::shared_ptr<const Model>* out,
                   const ModelOptions& options) noexcept {
    if (out == nullptr) return Status::error(Code::invalid_argument, "null output");
    return guarded([&] {
        GgufModel file;
        Status status = open_gguf(path, &file);
        if (!status.ok()) return status;
        std::shared_ptr<const FileModel> model;
        status = FileModel::load_file(std::move(file), &model, options);
        if (status.ok()) *out = std::move(model);
        return status;
    });
}

}  // namespace gearkv
