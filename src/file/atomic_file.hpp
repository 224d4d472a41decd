// A file that appears whole or not at all: written where nobody sees it, forced to the disk, then put in
// place by one rename.
#pragma once

#include <cstddef>
#include <cstdint>

#include "file/save_target.hpp"
#include "gearkv/status.hpp"

namespace gearkv {

class AtomicFile {
  public:
    AtomicFile() noexcept = default;
    ~AtomicFile();  // what was not committed is removed
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    // Finds where `path` leads, refuses what must not be replaced, and begins a file in the same directory:
    // without a name where the system can, so that nothing is left when the process ends, else as
    // "<target>.<process>-<number>.tmp". Such files of processes that have ended are removed. The new file
    // has mode and owner of the one it replaces, as far as the system lets it. Errors: those of
    // SaveTarget::find; io_error.
    Status open(const char* path, const FileId* kept = nullptr, std::size_t n_kept = 0) noexcept;
    // Errors: io_error.
    Status write(const void* bytes, std::size_t n_bytes) noexcept;
    // fsync, rename over the target, fsync of the directory. Errors: io_error; the old file, if any, is as it
    // was then. Once the new file is in place the answer is ok, and *warning says what did not go well: owner
    // or mode that could not be kept, a directory that could not be forced to the disk.
    Status commit(Status* warning) noexcept;

  private:
    Status make_named() noexcept;
    bool make_nameless() noexcept;
    bool give_name(const char* name) noexcept;
    Status give_temporary_name() noexcept;
    void keep_owner_and_mode() noexcept;
    void force_directory() noexcept;
    void warn(const Status& warning) noexcept;
    // Lets the disk begin on what was written, so that commit waits for less.
    void start_writing_back() noexcept;

    SaveTarget target_;
    char temporary_[max_path_chars] = {};  // empty while the file has no name
    int descriptor_ = -1;
    Status warning_;
    std::uint64_t n_written_ = 0;
    std::uint64_t n_started_ = 0;  // bytes the disk was asked to begin on
};

}  // namespace gearkv
