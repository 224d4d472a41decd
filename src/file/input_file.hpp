// A file that is read from front to back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gearkv/file_id.hpp"
#include "gearkv/status.hpp"

namespace gearkv {

class InputFile {
  public:
    InputFile() noexcept = default;
    ~InputFile();
    InputFile(const InputFile&) = delete;
    InputFile& operator=(const InputFile&) = delete;

    // Regular files only: a FIFO, device or directory is refused without being read. Errors: io_error,
    // out_of_memory. `path` outlives the object.
    Status open(const char* path) noexcept;
    // At most n_bytes of what comes next; 0 at the end. Errors: io_error, out_of_memory.
    Status read(void* to, std::size_t n_bytes, std::size_t* n_read) noexcept;

    int descriptor() const noexcept { return descriptor_; }
    // When it was opened.
    std::uint64_t n_bytes() const noexcept { return n_bytes_; }
    const FileId& id() const noexcept { return id_; }

  private:
    const char* path_ = nullptr;
    int descriptor_ = -1;
    std::uint64_t n_bytes_ = 0;
    FileId id_;
};

}  // namespace gearkv
