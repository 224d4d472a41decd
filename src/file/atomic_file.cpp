#include "file/atomic_file.hpp"

#include <algorithm>
#include <cstdio>

#include <fcntl.h>
#include <unistd.h>

#include "file/stale_files.hpp"
#include "file/system_error.hpp"

namespace gearkv {
namespace {

constexpr unsigned max_numbers = 1000;  // temporary names of one process that are tried
constexpr mode_t private_mode = S_IRUSR | S_IWUSR, permission_bits = 07777;

int open_file(const char* path, int flags, mode_t mode) {
    int descriptor;
    do {
        descriptor = ::open(path, flags | O_CLOEXEC, mode);
    } while (descriptor < 0 && errno == EINTR);
    return descriptor;
}

// What is to replace a file is nobody else's to read before it has that file's mode.
mode_t first_mode(const SaveTarget& target) {
    constexpr mode_t everybody = 0666;
    return target.exists() ? private_mode : everybody;
}

// Under which the system shows an open file without a name, and can give it one.
void name_of_descriptor(char (&name)[32], int descriptor) {
    std::snprintf(name, sizeof(name), "/proc/self/fd/%d", descriptor);
}

bool link_descriptor(int descriptor, const char* path) {
    char name[32];
    name_of_descriptor(name, descriptor);
    return linkat(AT_FDCWD, name, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0;
}

}  // namespace

AtomicFile::~AtomicFile() {
    if (descriptor_ >= 0) close(descriptor_);
    if (temporary_[0] != 0) unlink(temporary_);
}

Status AtomicFile::open(const char* path, const FileId* kept, std::size_t n_kept) noexcept {
    if (Status status = target_.find(path, kept, n_kept); !status.ok()) return status;
    const bool fits = temporary_name(temporary_, sizeof(temporary_), target_.path(), max_numbers);
    temporary_[0] = 0;
    if (!fits) return Status::error(Code::io_error, "path '%.100s...' is too long", path);
    remove_stale_files(target_.directory(), target_.name());
    if (!make_nameless()) {
        if (Status status = make_named(); !status.ok()) return status;
    }
    hold_temporary(descriptor_);
    keep_owner_and_mode();
    return {};
}

Status AtomicFile::make_named() noexcept {
    for (unsigned number = 0; number < max_numbers; ++number) {
        (void)temporary_name(temporary_, sizeof(temporary_), target_.path(), number);
        descriptor_ = open_file(temporary_, O_WRONLY | O_CREAT | O_EXCL, first_mode(target_));
        if (descriptor_ >= 0) return {};
        if (errno != EEXIST) break;
    }
    const Status status = system_error("create", temporary_);
    temporary_[0] = 0;
    return status;
}

// False when the system cannot make such a file here, or could not name it in the end: that is tried with an
// empty one, as nobody wants to know it after the work.
bool AtomicFile::make_nameless() noexcept {
#ifdef O_TMPFILE
    descriptor_ = open_file(target_.directory(), O_TMPFILE | O_WRONLY, private_mode);
    if (descriptor_ < 0) return false;
    const bool can_be_named = give_temporary_name().ok();
    if (can_be_named) unlink(temporary_);
    temporary_[0] = 0;
    close(descriptor_);
    descriptor_ =
        can_be_named ? open_file(target_.directory(), O_TMPFILE | O_WRONLY, first_mode(target_)) : -1;
    return descriptor_ >= 0;
#else
    return false;
#endif
}

Status AtomicFile::give_temporary_name() noexcept {
    for (unsigned number = 0; number < max_numbers; ++number) {
        (void)temporary_name(temporary_, sizeof(temporary_), target_.path(), number);
        if (link_descriptor(descriptor_, temporary_)) return {};
        if (errno != EEXIST) break;
    }
    const Status status = system_error("name", temporary_);
    temporary_[0] = 0;
    return status;
}

void AtomicFile::keep_owner_and_mode() noexcept {
    struct stat now = {};
    if (!target_.exists()) return;
    const struct stat& old = target_.info();
    mode_t mode = old.st_mode & permission_bits;
    if (fstat(descriptor_, &now) != 0) {
        warn(system_error("inspect the file for", target_.path()));
    } else if (now.st_uid != old.st_uid || now.st_gid != old.st_gid) {
        // Who may not give files away may still give them to a group; what the old group was allowed is
        // nothing for another one.
        if (fchown(descriptor_, old.st_uid, old.st_gid) != 0) {
            warn(system_error("keep the owner of", target_.path()));
            mode &= ~static_cast<mode_t>(S_ISUID | S_ISGID);
            if (fchown(descriptor_, static_cast<uid_t>(-1), old.st_gid) != 0)
                mode &= ~static_cast<mode_t>(S_IRWXG);
        }
    }
    if (fchmod(descriptor_, mode) != 0) warn(system_error("keep the mode of", target_.path()));
}

Status AtomicFile::write(const void* bytes, std::size_t n_bytes) noexcept {
    constexpr std::size_t most_at_once = std::size_t{1} << 30;  // the system takes less than 2 GiB
    const auto* at = static_cast<const unsigned char*>(bytes);
    while (n_bytes > 0) {
        const ssize_t n = ::write(descriptor_, at, std::min(n_bytes, most_at_once));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return system_error("write", target_.path());
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

Status AtomicFile::commit(Status* warning) noexcept {
    if (fsync(descriptor_) != 0) return system_error("force to the disk", target_.path());
    // Where nothing is to be replaced the file needs no name of its own on the way.
    const bool in_place =
        temporary_[0] == 0 && !target_.exists() && link_descriptor(descriptor_, target_.path());
    if (!in_place) {
        if (temporary_[0] == 0) {
            if (Status status = give_temporary_name(); !status.ok()) return status;
        }
        if (std::rename(temporary_, target_.path()) != 0) return system_error("rename to", target_.path());
        temporary_[0] = 0;
    }
    // The new file is there. fsync has told of all errors of the disk, close has none of its own.
    close(descriptor_);
    descriptor_ = -1;
    force_directory();
    if (warning != nullptr) *warning = warning_;
    return {};
}

void AtomicFile::force_directory() noexcept {
    const int directory = open_file(target_.directory(), O_RDONLY | O_DIRECTORY, 0);
    if (directory < 0) return warn(system_error("open the directory of", target_.path()));
    if (fsync(directory) != 0 && errno != EINVAL)  // a file system that cannot
        warn(system_error("force the directory to the disk, of", target_.path()));
    close(directory);
}

void AtomicFile::warn(const Status& warning) noexcept {
    if (warning_.ok()) warning_ = warning;
}

}  // namespace gearkv
