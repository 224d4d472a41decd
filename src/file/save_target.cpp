#include "file/save_target.hpp"

#include <cstdio>

#include <fcntl.h>
#include <unistd.h>

#include "file/file_kind.hpp"
#include "file/system_error.hpp"

namespace gearkv {
namespace {

constexpr int max_links = 40;  // as many as Linux follows

Status too_long(const char* path) {
    return Status::error(Code::io_error, "path '%.100s...' is too long", path);
}

Status leads_nowhere(const char* path) {
    return Status::error(Code::io_error, "'%.100s' is a link that leads to no file", path);
}

}  // namespace

Status SaveTarget::find(const char* path, const FileId* kept, std::size_t n_kept) noexcept {
    if (path == nullptr) return Status::error(Code::invalid_argument, "null path");
    // What the system says is there, before any link is read: some links of /proc have no name to read.
    exists_ = stat(path, &info_) == 0;
    if (!exists_ && errno != ENOENT) return system_error("write", path);
    if (exists_ && !S_ISREG(info_.st_mode)) {
        return Status::error(Code::io_error, "'%.100s' is %s, expected a regular file or none", path,
                             file_kind(info_.st_mode));
    }
    if (Status status = follow_links(path); !status.ok()) return status;
    split();
    if (*name_ == 0)
        return Status::error(Code::io_error, "'%.100s' names no file, expected a path to one", path);
    return exists_ ? check_old(path, kept, n_kept) : Status();
}

Status SaveTarget::follow_links(const char* path) noexcept {
    const int n = std::snprintf(path_, sizeof(path_), "%s", path);
    if (n < 0 || static_cast<std::size_t>(n) >= sizeof(path_)) return too_long(path);
    for (int n_links = 0;; ++n_links) {
        struct stat info = {};
        if (lstat(path_, &info) != 0) {
            if (errno != ENOENT) return system_error("write", path);
            return exists_ ? leads_nowhere(path) : Status();
        }
        if (!S_ISLNK(info.st_mode)) {
            const bool same = exists_ && file_id(info) == file_id(info_);
            return same ? Status() : leads_nowhere(path);
        }
        if (n_links == max_links) return leads_nowhere(path);
        char link[max_path_chars];
        const ssize_t n_chars = readlink(path_, link, sizeof(link));
        if (n_chars < 0) return system_error("read the link", path_);
        if (static_cast<std::size_t>(n_chars) >= sizeof(link)) return too_long(path);
        link[n_chars] = 0;
        split();
        const bool absolute = link[0] == '/';
        const int n_joined = std::snprintf(path_, sizeof(path_), "%s%s%s", absolute ? "" : directory_,
                                           absolute ? "" : "/", link);
        if (n_joined < 0 || static_cast<std::size_t>(n_joined) >= sizeof(path_)) return too_long(path);
    }
}

Status SaveTarget::check_old(const char* path, const FileId* kept, std::size_t n_kept) noexcept {
    for (std::size_t i = 0; i < n_kept; ++i) {
        if (file_id(info_) == kept[i]) {
            return Status::error(Code::protected_file,
                                 "'%.100s' is a file that must be kept, such as the model", path);
        }
    }
    // A rename asks only the directory for permission; who made the file read-only meant the file.
    if (faccessat(AT_FDCWD, path_, W_OK, AT_EACCESS) != 0) return system_error("write", path);
    return {};
}

void SaveTarget::split() noexcept {
    const char* slash = std::strrchr(path_, '/');
    name_ = slash == nullptr ? path_ : slash + 1;
    const std::size_t n = slash == nullptr ? 0 : static_cast<std::size_t>(slash - path_);
    if (slash == nullptr) {
        std::memcpy(directory_, ".", 2);
    } else if (n == 0) {
        std::memcpy(directory_, "/", 2);
    } else {
        std::memcpy(directory_, path_, n);
        directory_[n] = 0;
    }
}

}  // namespace gearkv
