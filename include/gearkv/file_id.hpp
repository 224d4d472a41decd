// A file by what it is and not by its name.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
namespace gearkv {

// st_dev and st_ino of stat. Stands for one file as long as somebody has it open or mapped.
struct FileId {
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    friend bool operator==(const FileId& a, const FileId& b) noexcept {
        return a.device == b.device && a.inode == b.inode;
    }
    friend bool operator!=(const FileId& a, const FileId& b) noexcept { return !(a == b); }
};

}  // namespace gearkv
#pragma GCC visibility pop
