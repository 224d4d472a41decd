#include "trouble.hpp"

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstdarg>
#include <cstdio>

namespace {

using gearkv::testing::Trouble;

Trouble trouble = Trouble::none;
long calls_left = 0;
int refusal = EIO;

bool is_due() {
    return (trouble == Trouble::end || trouble == Trouble::refuse) && calls_left-- == 0;
}

// Whether the call is to fail.
bool is_refused() {
    if (!is_due()) return false;
    if (trouble == Trouble::end) _exit(9);
    errno = refusal;
    return true;
}

template <class Function>
Function* system_function(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

void gearkv::testing::make_trouble(Trouble kind, long n, int error) {
    calls_left = n;
    refusal = error;
    trouble = kind;
}

bool gearkv::testing::end_trouble() {
    trouble = Trouble::none;
    return calls_left < 0;
}

#define GEARKV_TROUBLED(result, name, failed, parameters, arguments)                                     \
    __attribute__((visibility("default"))) result name parameters noexcept(noexcept(::name arguments)) { \
        static const auto system = system_function<result parameters>(#name);                            \
        return is_refused() ? failed : system arguments;                                                 \
    }

extern "C" {

__attribute__((visibility("default"))) ssize_t write(int descriptor, const void* bytes, size_t n) {
    static const auto system = system_function<ssize_t(int, const void*, size_t)>("write");
    if (trouble == Trouble::halve) return system(descriptor, bytes, n > 1 ? n / 2 : n);
    if (trouble == Trouble::interrupt && calls_left++ % 2 == 0) {
        errno = EINTR;
        return -1;
    }
    if (!is_due()) return system(descriptor, bytes, n);
    if (trouble == Trouble::end) {
        (void)!system(descriptor, bytes, n / 2);
        _exit(9);
    }
    errno = refusal;
    return -1;
}

__attribute__((visibility("default"))) int open(const char* path, int flags, ...) {
    static const auto system = system_function<int(const char*, int, ...)>("open");
    va_list rest;
    va_start(rest, flags);
    const auto mode = static_cast<mode_t>(va_arg(rest, unsigned));
    va_end(rest);
    return is_refused() ? -1 : system(path, flags, mode);
}

__attribute__((visibility("default"))) int openat(int directory, const char* path, int flags, ...) {
    static const auto system = system_function<int(int, const char*, int, ...)>("openat");
    va_list rest;
    va_start(rest, flags);
    const auto mode = static_cast<mode_t>(va_arg(rest, unsigned));
    va_end(rest);
    return is_refused() ? -1 : system(directory, path, flags, mode);
}

// A temporary file that cannot be removed may stay.
__attribute__((visibility("default"))) int unlink(const char* path) noexcept(noexcept(::unlink(path))) {
    static const auto system = system_function<int(const char*)>("unlink");
    if (trouble == Trouble::end && is_due()) _exit(9);
    return system(path);
}

GEARKV_TROUBLED(ssize_t, read, -1, (int descriptor, void* to, size_t n), (descriptor, to, n))
GEARKV_TROUBLED(int, fsync, -1, (int descriptor), (descriptor))
GEARKV_TROUBLED(int, rename, -1, (const char* from, const char* to), (from, to))
GEARKV_TROUBLED(int, linkat, -1, (int from, const char* old_name, int to, const char* name, int flags),
                (from, old_name, to, name, flags))
GEARKV_TROUBLED(int, unlinkat, -1, (int directory, const char* path, int flags), (directory, path, flags))
GEARKV_TROUBLED(int, stat, -1, (const char* path, struct stat* info), (path, info))
GEARKV_TROUBLED(int, lstat, -1, (const char* path, struct stat* info), (path, info))
GEARKV_TROUBLED(int, fstat, -1, (int descriptor, struct stat* info), (descriptor, info))
GEARKV_TROUBLED(ssize_t, readlink, -1, (const char* path, char* text, size_t n), (path, text, n))
GEARKV_TROUBLED(int, faccessat, -1, (int directory, const char* path, int mode, int flags),
                (directory, path, mode, flags))
GEARKV_TROUBLED(int, flock, -1, (int descriptor, int what), (descriptor, what))
GEARKV_TROUBLED(int, fchown, -1, (int descriptor, uid_t user, gid_t group), (descriptor, user, group))
GEARKV_TROUBLED(int, fchmod, -1, (int descriptor, mode_t mode), (descriptor, mode))
GEARKV_TROUBLED(DIR*, opendir, nullptr, (const char* path), (path))
GEARKV_TROUBLED(void*, mmap, MAP_FAILED,
                (void* at, size_t n, int protection, int flags, int file, off_t offset),
                (at, n, protection, flags, file, offset))
}
