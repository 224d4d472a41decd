// A path for a file that goes with the object.
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

class TemporaryFile {
  public:
    TemporaryFile() {
        // In memory where that is possible: tests write many.
        std::string name =
            access("/dev/shm", W_OK) == 0 ? "/dev/shm" : std::filesystem::temp_directory_path();
        name += "/gearkv-test-XXXXXX";
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

}  // namespace gearkv::testing
