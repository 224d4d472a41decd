// A file in memory, read-only.
#pragma once

#include <cstdint>

#include "gearkv/file_id.hpp"
#include "gearkv/status.hpp"

namespace gearkv {

// Owns a private read-only mapping. If another process cuts the file short while it is mapped, reading beyond
// the new end raises SIGBUS; the public header asks callers to leave the file alone.
class MappedFile {
  public:
    MappedFile() noexcept = default;
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;

    // Regular files only: a FIFO, device or directory is refused without being read.
    // An empty file maps to no bytes. Errors: invalid_argument, io_error, out_of_memory; *out is untouched
    // then.
    static Status map(const char* path, MappedFile* out) noexcept;

    const std::uint8_t* bytes() const noexcept { return bytes_; }
    std::uint64_t n_bytes() const noexcept { return n_bytes_; }
    // Of the file that is mapped, whatever has its name now.
    const FileId& id() const noexcept { return id_; }

  private:
    const std::uint8_t* bytes_ = nullptr;
    std::uint64_t n_bytes_ = 0;
    FileId id_;
};

}  // namespace gearkv
