// Where a file goes that replaces another: the name behind symbolic links, and what is there now.
#pragma once

#include <cstddef>

#include <sys/stat.h>

#include "gearkv/file_id.hpp"
#include "gearkv/status.hpp"

namespace gearkv {

inline constexpr std::size_t max_path_chars = 4096;

class SaveTarget {
  public:
    // Follows the links of `path` to where a file is or can be. Errors: invalid_argument (null path),
    // io_error (nothing can be written there: a directory, device or FIFO, no permission, a link that leads
    // nowhere), protected_file (one of the kept files).
    Status find(const char* path, const FileId* kept, std::size_t n_kept) noexcept;

    const char* path() const noexcept { return path_; }
    // Of the file, "." for none.
    const char* directory() const noexcept { return directory_; }
    const char* name() const noexcept { return name_; }
    bool exists() const noexcept { return exists_; }
    // Of the file that exists.
    const struct stat& info() const noexcept { return info_; }

  private:
    Status follow_links(const char* path) noexcept;
    Status check_old(const char* path, const FileId* kept, std::size_t n_kept) noexcept;
    void split() noexcept;

    char path_[max_path_chars] = {};
    char directory_[max_path_chars] = {};
    const char* name_ = nullptr;
    bool exists_ = false;
    struct stat info_ = {};
};

}  // namespace gearkv
