#include "file/mapped_file.hpp"

#include <utility>

#include <sys/mman.h>

#include "file/input_file.hpp"
#include "file/system_error.hpp"

namespace gearkv {

MappedFile::~MappedFile() {
    if (bytes_ != nullptr) {
        munmap(const_cast<std::uint8_t*>(bytes_), static_cast<std::size_t>(n_bytes_));
    }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : bytes_(std::exchange(other.bytes_, nullptr)),
      n_bytes_(std::exchange(other.n_bytes_, 0)),
      id_(other.id_) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    std::swap(n_bytes_, other.n_bytes_);
    std::swap(id_, other.id_);
    return *this;
}

Status MappedFile::map(const char* path, MappedFile* out) noexcept {
    if (path == nullptr || out == nullptr)
        return Status::error(Code::invalid_argument, "null path or output");
    InputFile input;
    if (Status status = input.open(path); !status.ok()) return status;
    const std::uint64_t n_bytes = input.n_bytes();
    if (n_bytes > SIZE_MAX) {
        return Status::error(Code::out_of_memory, "'%.100s' is larger than the address space", path);
    }
    MappedFile file;
    file.n_bytes_ = n_bytes;
    file.id_ = input.id();
    if (n_bytes > 0) {
        void* mapping =
            mmap(nullptr, static_cast<std::size_t>(n_bytes), PROT_READ, MAP_PRIVATE, input.descriptor(), 0);
        if (mapping == MAP_FAILED) return system_error("map", path);
        file.bytes_ = static_cast<const std::uint8_t*>(mapping);
    }
    *out = std::move(file);
    return {};
}

}  // namespace gearkv
