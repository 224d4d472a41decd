#include "file/mapped_file.hpp"

#include <cerrno>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file/file_kind.hpp"
#include "file/system_error.hpp"

namespace gearkv {
namespace {

Status map_descriptor(int descriptor, const char* path, const std::uint8_t** bytes, std::uint64_t* n_bytes,
                      FileId* id) {
    struct stat info = {};
    if (fstat(descriptor, &info) != 0) return system_error("inspect", path);
    if (!S_ISREG(info.st_mode)) {
        return Status::error(Code::io_error, "'%.100s' is %s, expected a regular file", path,
                             file_kind(info.st_mode));
    }
    const auto size = static_cast<std::uint64_t>(info.st_size);
    if (size > SIZE_MAX) {
        return Status::error(Code::out_of_memory, "'%.100s' is larger than the address space", path);
    }
    *bytes = nullptr;
    *n_bytes = size;
    *id = file_id(info);
    if (size == 0) return {};
    void* mapping = mmap(nullptr, static_cast<std::size_t>(size), PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (mapping == MAP_FAILED) return system_error("map", path);
    *bytes = static_cast<const std::uint8_t*>(mapping);
    return {};
}

}  // namespace

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
    // O_NONBLOCK: opening a FIFO nobody writes to must not hang.
    int descriptor;
    do {
        descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (descriptor < 0 && errno == EINTR);
    if (descriptor < 0) return system_error("open", path);
    MappedFile file;
    const Status status = map_descriptor(descriptor, path, &file.bytes_, &file.n_bytes_, &file.id_);
    close(descriptor);
    if (!status.ok()) return status;
    *out = std::move(file);
    return {};
}

}  // namespace gearkv
