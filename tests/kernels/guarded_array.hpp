// Arrays that end where a kernel must not read on, and that notice what is written beside them.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace gearkv::test {

// Where an array lies: its end or its start against a page that cannot be read, or at an odd address.
enum class Place { at_end, at_start, odd };
inline constexpr Place all_places[] = {Place::at_end, Place::at_start, Place::odd};

inline const char* place_name(Place place) {
    return place == Place::at_end     ? "ends at a guard page"
           : place == Place::at_start ? "starts behind a guard page"
                                      : "odd address";
}

template <class T>
class GuardedArray {
  public:
    GuardedArray(std::size_t n, Place place) : n_(n) {
        const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
        inner_bytes_ = (n * sizeof(T) + 2 * sizeof(T) + page - 1) / page * page;
        map_bytes_ = inner_bytes_ + 2 * page;
        void* map = ::mmap(nullptr, map_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) throw std::runtime_error("mmap failed");
        map_ = static_cast<unsigned char*>(map);
        inner_ = map_ + page;
        if (::mprotect(inner_, inner_bytes_, PROT_READ | PROT_WRITE) != 0) {
            throw std::runtime_error("mprotect failed");
        }
        std::memset(inner_, mark, inner_bytes_);
        unsigned char* at = inner_;
        if (place == Place::at_end) at += inner_bytes_ - n * sizeof(T);
        if (place == Place::odd) at += sizeof(T);
        data_ = reinterpret_cast<T*>(at);
    }
    GuardedArray(const std::vector<T>& from, Place place) : GuardedArray(from.size(), place) {
        if (n_ > 0) std::memcpy(data_, from.data(), n_ * sizeof(T));
    }
    GuardedArray(const GuardedArray&) = delete;
    GuardedArray& operator=(const GuardedArray&) = delete;
    ~GuardedArray() { ::munmap(map_, map_bytes_); }

    T* data() { return data_; }
    std::size_t size() const { return n_; }
    T& operator[](std::size_t i) { return data_[i]; }

    // True when nothing was written beside the array.
    bool is_intact() const {
        const auto* begin = reinterpret_cast<const unsigned char*>(data_);
        const unsigned char* end = begin + n_ * sizeof(T);
        for (const unsigned char* at = inner_; at < inner_ + inner_bytes_; ++at) {
            if ((at < begin || at >= end) && *at != mark) return false;
        }
        return true;
    }

  private:
    static constexpr unsigned char mark = 0xa5;
    std::size_t n_;
    std::size_t inner_bytes_ = 0;
    std::size_t map_bytes_ = 0;
    unsigned char* map_ = nullptr;
    unsigned char* inner_ = nullptr;
    T* data_ = nullptr;
};

}  // namespace gearkv::test
