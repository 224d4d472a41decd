// Files and directories that go with the object.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <unistd.h>

namespace gearkv::testing {

using FileBytes = std::vector<unsigned char>;

// A pattern for mkstemp and mkdtemp, in memory where that is possible: tests write many.
inline std::string temporary_name() {
    const bool in_memory = access("/dev/shm", W_OK) == 0;
    return (in_memory ? std::string("/dev/shm") : std::filesystem::temp_directory_path().string()) +
           "/gearkv-test-XXXXXX";
}

class TemporaryFile {
  public:
    TemporaryFile() {
        std::string name = temporary_name();
        const int descriptor = mkstemp(name.data());
        if (descriptor < 0) std::abort();
        close(descriptor);
        path_ = name;
    }
    ~TemporaryFile() { std::remove(path_.c_str()); }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;

    const char* path() const { return path_.c_str(); }
    FileBytes read() const { return read_file(path_); }
    void write(const FileBytes& bytes) const {
        std::ofstream file(path_, std::ios::binary | std::ios::trunc);
        file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    }

    static FileBytes read_file(const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        return FileBytes(std::istreambuf_iterator<char>(file), {});
    }

  private:
    std::string path_;
};

// An empty directory that goes with the object, and all in it.
class TemporaryDirectory {
  public:
    TemporaryDirectory() {
        std::string name = temporary_name();
        if (mkdtemp(name.data()) == nullptr) std::abort();
        path_ = name;
    }
    ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
    TemporaryDirectory(const TemporaryDirectory&) = delete;
    TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
    std::string file(const char* name) const { return path_ + "/" + name; }
    std::size_t n_files() const {
        const std::filesystem::directory_iterator files(path_);
        return static_cast<std::size_t>(std::distance(begin(files), end(files)));
    }

  private:
    std::string path_;
};

}  // namespace gearkv::testing
