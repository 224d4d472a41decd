#include "file/stale_files.hpp"

#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace gearkv {
namespace {

// Of a decimal number, which *text is left behind; -1 when there is none.
long read_number(const char** text) {
    const char* start = *text;
    long number = 0;
    for (; **text >= '0' && **text <= '9'; ++*text) {
        if (number > (INT_MAX - 9) / 10) return -1;
        number = number * 10 + (**text - '0');
    }
    return *text == start ? -1 : number;
}

// The process that a temporary file of `name` is called after; -1 for all other files.
long process_of(const char* file, const char* name) {
    const std::size_t n = std::strlen(name);
    if (std::strncmp(file, name, n) != 0 || file[n] != '.') return -1;
    const char* at = file + n + 1;
    const long process = read_number(&at);
    if (process <= 0 || *at != '-') return -1;
    ++at;
    return read_number(&at) >= 0 && std::strcmp(at, ".tmp") == 0 ? process : -1;
}

// A process of another container may have the number of one that is dead here, and one before us may have
// had ours: then it is the lock that tells, a while after the file was made, when its writer has it.
bool is_stale(int directory, const char* file, long process) {
    constexpr std::time_t a_while = 60;
    const bool is_ours = process == static_cast<long>(getpid());
    if (!is_ours && (kill(static_cast<pid_t>(process), 0) == 0 || errno != ESRCH)) return false;
    const int descriptor = openat(directory, file, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) return false;
    struct stat info = {};
    const bool stale = fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode) &&
                       (!is_ours || std::time(nullptr) - info.st_mtime > a_while) &&
                       flock(descriptor, LOCK_EX | LOCK_NB) == 0;
    close(descriptor);
    return stale;
}

}  // namespace

bool temporary_name(char* to, std::size_t n_chars, const char* path, unsigned number) noexcept {
    const int n = std::snprintf(to, n_chars, "%s.%ld-%u.tmp", path, static_cast<long>(getpid()), number);
    return n > 0 && static_cast<std::size_t>(n) < n_chars;
}

void hold_temporary(int descriptor) noexcept {
    (void)flock(descriptor, LOCK_EX | LOCK_NB);
}

void remove_stale_files(const char* directory, const char* name) noexcept {
    DIR* list = opendir(directory);
    if (list == nullptr) return;
    while (const dirent* entry = readdir(list)) {
        const long process = process_of(entry->d_name, name);
        if (process > 0 && is_stale(dirfd(list), entry->d_name, process))
            (void)unlinkat(dirfd(list), entry->d_name, 0);
    }
    closedir(list);
}

}  // namespace gearkv
