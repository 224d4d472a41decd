#include "file/atomic_file.hpp"

#include <algorithm>
#include <cstdio>

#include <fcntl.h>
#include <unistd.h>

#include "file/system_error.hpp"

namespace gearkv {

AtomicFile::~AtomicFile() {
    if (descriptor_ >= 0) close(descriptor_);
    if (temporary_[0] != 0) unlink(temporary_);
}

Status AtomicFile::open(const char* path) noexcept {
    if (path == nullptr) return Status::error(Code::invalid_argument, "null path");
    path_ = path;
    for (unsigned number = 0; number < 1000; ++number) {
        const int n = std::snprintf(temporary_, sizeof(temporary_), "%s.%ld-%u.tmp", path,
                                    static_cast<long>(getpid()), number);
        if (n < 0 || static_cast<std::size_t>(n) >= sizeof(temporary_)) {
            temporary_[0] = 0;
            return Status::error(Code::io_error, "path '%.100s...' is too long", path);
        }
        do {
            descriptor_ = ::open(temporary_, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        } while (descriptor_ < 0 && errno == EINTR);
        if (descriptor_ >= 0) return {};
        if (errno != EEXIST) break;
    }
    const Status status = system_error("create", temporary_);
    temporary_[0] = 0;
    return status;
}

Status AtomicFile::write(const void* bytes, std::size_t n_bytes) noexcept {
    constexpr std::size_t most_at_once = std::size_t{1} << 30;  // the system takes less than 2 GiB
    const auto* at = static_cast<const unsigned char*>(bytes);
    while (n_bytes > 0) {
        const ssize_t n = ::write(descriptor_, at, std::min(n_bytes, most_at_once));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return system_error("write", temporary_);
        at += n;
        n_bytes -= static_cast<std::size_t>(n);
        n_written_ += static_cast<std::uint64_t>(n);
        start_writing_back();
    }
    return {};
}

void AtomicFile::start_writing_back() noexcept {
#ifdef SYNC_FILE_RANGE_WRITE
    constexpr std::uint64_t piece = std::uint64_t{32} << 20;
    const std::uint64_t end = n_written_ / piece * piece;
    if (end == n_started_) return;
    // Only asked for: what it cannot do is left to fsync, which also tells of errors.
    (void)sync_file_range(descriptor_, static_cast<off_t>(n_started_), static_cast<off_t>(end - n_started_),
                          SYNC_FILE_RANGE_WRITE);
    n_started_ = end;
#endif
}

Status AtomicFile::pad(std::uint64_t alignment) noexcept {
    static constexpr unsigned char zeros[4096] = {};
    return write(zeros, static_cast<std::size_t>((alignment - n_written_ % alignment) % alignment));
}

Status AtomicFile::commit() noexcept {
    if (fsync(descriptor_) != 0) return system_error("force to the disk", temporary_);
    const int closed = close(descriptor_);
    descriptor_ = -1;
    if (closed != 0) return system_error("close", temporary_);
    if (std::rename(temporary_, path_) != 0) return system_error("rename to", path_);
    // From here on the temporary name is only used for its directory.
    char* slash = std::strrchr(temporary_, '/');
    if (slash == nullptr) {
        std::snprintf(temporary_, sizeof(temporary_), ".");
    } else {
        slash[slash == temporary_ ? 1 : 0] = 0;
    }
    const int directory = ::open(temporary_, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    temporary_[0] = 0;
    if (directory < 0) return system_error("open the directory of", path_);
    const int forced = fsync(directory);
    const Status status = forced == 0 || errno == EINVAL ? Status()  // a file system that cannot
                                                         : system_error("force the directory of", path_);
    close(directory);
    return status;
}

}  // namespace gearkv
