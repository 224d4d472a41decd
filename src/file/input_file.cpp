#include "file/input_file.hpp"

#include <algorithm>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file/file_kind.hpp"
#include "file/system_error.hpp"

namespace gearkv {

InputFile::~InputFile() {
    if (descriptor_ >= 0) close(descriptor_);
}

Status InputFile::open(const char* path) noexcept {
    path_ = path;
    // O_NONBLOCK: opening a FIFO nobody writes to must not hang.
    do {
        descriptor_ = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (descriptor_ < 0 && errno == EINTR);
    if (descriptor_ < 0) return system_error("open", path);
    struct stat info = {};
    if (fstat(descriptor_, &info) != 0) return system_error("inspect", path);
    if (!S_ISREG(info.st_mode)) {
        return Status::error(Code::io_error, "'%.100s' is %s, expected a regular file", path,
                             file_kind(info.st_mode));
    }
    n_bytes_ = static_cast<std::uint64_t>(info.st_size);
    id_ = file_id(info);
    return {};
}

Status InputFile::read(void* to, std::size_t n_bytes, std::size_t* n_read) noexcept {
    constexpr std::size_t most_at_once = std::size_t{1} << 30;  // the system gives less than 2 GiB
    ssize_t n;
    do {
        n = ::read(descriptor_, to, std::min(n_bytes, most_at_once));
    } while (n < 0 && errno == EINTR);
    if (n < 0) return system_error("read", path_);
    *n_read = static_cast<std::size_t>(n);
    return {};
}

}  // namespace gearkv
