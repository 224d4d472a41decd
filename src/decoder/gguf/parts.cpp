#include "decoder/gguf/parts.hpp"

#include <cstdio>
#include <string_view>
#include <utility>

namespace gearkv {
namespace {

constexpr std::uint64_t max_parts = 65535;

struct SplitKeys {
    std::uint32_t no = 0;
    std::uint32_t count = 1;  // 0 or 1: a whole file
    std::uint32_t n_tensors = 0;
};

Status in_part(const Status& status, std::size_t i, std::size_t n) {
    if (status.ok() || n < 2) return status;
    return Status::error(status.code(), "part %zu of %zu: %s", i + 1, n, status.message());
}

Status read_part_count(const GgufFile& file, std::uint32_t* out) {
    return read_integer(file, "split.count", false, {0, max_parts}, out);
}

// A whole file may have no such keys.
Status read_split_keys(const GgufFile& file, SplitKeys* out) {
    Status status = read_part_count(file, &out->count);
    if (!status.ok() || out->count <= 1) return status;
    status = read_integer(file, "split.no", true, {0, out->count - 1}, &out->no);
    if (status.ok()) {
        status = read_integer(file, "split.tensors.count", true, {0, max_gguf_entries}, &out->n_tensors);
    }
    return status;
}

using Parse = Status(GgufFile* out, const std::uint8_t* bytes, std::uint64_t n_bytes);

Status open_part(const char* path, Parse* parse, MappedFile* file, GgufFile* out) {
    const Status status = MappedFile::map(path, file);
    return status.ok() ? parse(out, file->bytes(), file->n_bytes()) : status;
}

// "-00002-of-00003.gguf"
std::string part_suffix(std::size_t i, std::size_t n) {
    char text[64];
    std::snprintf(text, sizeof(text), "-%05zu-of-%05zu.gguf", i + 1, n);
    return text;
}

// What the names of all parts begin with.
Status find_prefix(const char* path, const SplitKeys& keys, std::string* out) {
    if (keys.count <= 1) return {};
    const std::string_view name(path);
    const std::string suffix = part_suffix(keys.no, keys.count);
    if (!name.ends_with(suffix)) {
        return Status::error(Code::bad_metadata,
                             "the file is part %u of %u, expected a name that ends in %s, and the others "
                             "beside it",
                             keys.no + 1, keys.count, suffix.c_str());
    }
    *out = name.substr(0, name.size() - suffix.size());
    return {};
}

}  // namespace

Status join_parts(std::vector<GgufFile> parts, GgufFile* out) {
    const std::size_t n = parts.size();
    if (n == 1) {
        std::uint32_t count = 1;
        const Status status = read_part_count(parts[0], &count);
        if (!status.ok()) return status;
        if (count > 1) {
            return Status::error(Code::unsupported_model, "one of %u parts of a split model, given alone",
                                 count);
        }
        *out = std::move(parts[0]);
        return {};
    }
    SplitKeys first;
    Status status = read_split_keys(parts[0], &first);
    if (!status.ok()) return in_part(status, 0, n);
    std::uint64_t n_tensors = 0;
    for (std::size_t i = 0; i < n; i++) {
        SplitKeys keys;
        status = read_split_keys(parts[i], &keys);
        if (!status.ok()) return in_part(status, i, n);
        if (keys.count != n || keys.no != i || keys.n_tensors != first.n_tensors) {
            return Status::error(Code::bad_metadata,
                                 "part %zu of %zu with %u tensors in all says it is part %u of %u with %u",
                                 i + 1, n, first.n_tensors, keys.no + 1, keys.count, keys.n_tensors);
        }
        n_tensors += parts[i].tensors.size();
    }
    if (n_tensors != first.n_tensors) {
        return Status::error(Code::corrupt_model,
                             "%llu tensors in %zu parts, expected %u of split.tensors.count",
                             static_cast<unsigned long long>(n_tensors), n, first.n_tensors);
    }
    GgufFile joined = std::move(parts[0]);
    for (std::size_t i = 1; i < n; i++) {
        joined.parts.push_back(parts[i].parts[0]);
        joined.tensors.insert(joined.tensors.end(), parts[i].tensors.begin(), parts[i].tensors.end());
    }
    status = index_tensors(joined);
    if (status.ok()) *out = std::move(joined);
    return status;
}

Status open_gguf(const char* path, GgufModel* out) {
    GgufModel model;
    MappedFile given;
    GgufFile given_part;
    SplitKeys keys;
    std::string prefix;
    Status status = open_part(path, parse_gguf, &given, &given_part);
    if (status.ok()) status = read_split_keys(given_part, &keys);
    if (status.ok()) status = find_prefix(path, keys, &prefix);
    if (!status.ok()) return status;
    std::vector<GgufFile> parts;
    const std::size_t n = keys.count > 1 ? keys.count : 1;
    for (std::size_t i = 0; i < n; i++) {
        if (i == keys.no) {
            parts.push_back(std::move(given_part));
            model.files.push_back(std::move(given));
            continue;
        }
        parts.emplace_back();
        model.files.emplace_back();
        status = open_part((prefix + part_suffix(i, n)).c_str(), parse_gguf, &model.files[i], &parts[i]);
        if (!status.ok()) return in_part(status, i, n);
    }
    status = join_parts(std::move(parts), &model.file);
    if (status.ok()) *out = std::move(model);
    return status;
}

Status open_gguf_values(const char* path, GgufModel* out) {
    GgufModel model;
    model.files.resize(1);
    SplitKeys keys;
    std::string prefix;
    Status status = open_part(path, parse_gguf_values, &model.files[0], &model.file);
    if (status.ok()) status = read_split_keys(model.file, &keys);
    if (status.ok() && keys.no != 0) {
        status = find_prefix(path, keys, &prefix);
        if (!status.ok()) return status;
        const std::string first = prefix + part_suffix(0, keys.count);
        status =
            in_part(open_part(first.c_str(), parse_gguf_values, &model.files[0], &model.file), 0, keys.count);
    }
    if (status.ok()) *out = std::move(model);
    return status;
}

}  // namespace gearkv
