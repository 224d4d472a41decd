// A file that appears whole or not at all: written beside its name, forced to the disk, then renamed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gearkv/status.hpp"

namespace gearkv {

class AtomicFile {
  public:
    AtomicFile() noexcept = default;
    ~AtomicFile();  // what was not committed is removed
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    // Begins "<path>.<process>-<number>.tmp" in the same directory; path must outlive the file. Errors:
    // invalid_argument, io_error.
    Status open(const char* path) noexcept;
    // Errors: io_error.
    Status write(const void* bytes, std::size_t n_bytes) noexcept;
    // Up to alignment - 1 zeros.
    Status pad(std::uint64_t alignment) noexcept;
    // fsync, rename over `path`, fsync of the directory. Errors: io_error; the old file, if any, is as it was
    // unless the last of these steps failed.
    Status commit() noexcept;
    std::uint64_t n_written() const noexcept { return n_written_; }

  private:
    // Lets the disk begin on what was written, so that commit waits for less.
    void start_writing_back() noexcept;

    const char* path_ = nullptr;
    char temporary_[4096] = {};
    int descriptor_ = -1;
    std::uint64_t n_written_ = 0;
    std::uint64_t n_started_ = 0;  // bytes the disk was asked to begin on
};

}  // namespace gearkv
