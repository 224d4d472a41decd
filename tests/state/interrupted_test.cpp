// A process that ends, or a system that refuses, at every step of saving: the old file or the new one is
// there, whole, and never anything else.
#include <dirent.h>
#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <atomic>
#include <cerrno>

#include "states.hpp"

namespace {

enum class Trouble { none, end, refuse, interrupt, halve };
Trouble trouble = Trouble::none;
long calls_left = 0;
int refusal = EIO;

// Whether this call is the one that meets the trouble.
bool is_due() {
    return trouble != Trouble::none && calls_left-- == 0;
}

template <class Function>
Function system_function(const char* name) {
    return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// The library's calls come through here, as the program's symbols go before those of its libraries.
extern "C" {
__attribute__((visibility("default"))) ssize_t write(int descriptor, const void* bytes, size_t n) {
    static const auto system_write = system_function<ssize_t (*)(int, const void*, size_t)>("write");
    if (trouble == Trouble::halve) return system_write(descriptor, bytes, n > 1 ? n / 2 : n);
    if (trouble == Trouble::interrupt && calls_left++ % 2 == 0) {
        errno = EINTR;
        return -1;
    }
    if (trouble == Trouble::interrupt || !is_due()) return system_write(descriptor, bytes, n);
    if (trouble == Trouble::end) {
        (void)!system_write(descriptor, bytes, n / 2);
        _exit(9);
    }
    errno = refusal;
    return -1;
}

#define GEARKV_TROUBLED(name, type, parameters, arguments)                                   \
    __attribute__((visibility("default"))) int name parameters noexcept(type::is_noexcept) { \
        static const auto system = system_function<type::Function>(#name);                   \
        if (trouble == Trouble::interrupt || trouble == Trouble::halve || !is_due())         \
            return system arguments;                                                         \
        if (trouble == Trouble::end) _exit(9);                                               \
        errno = refusal;                                                                     \
        return -1;                                                                           \
    }
}

namespace {
struct OfDescriptor {
    using Function = int (*)(int);
    static constexpr bool is_noexcept = false;
};
struct OfNames {
    using Function = int (*)(const char*, const char*);
    static constexpr bool is_noexcept = noexcept(::rename("", ""));
};
}  // namespace

extern "C" {
GEARKV_TROUBLED(fsync, OfDescriptor, (int descriptor), (descriptor))
GEARKV_TROUBLED(rename, OfNames, (const char* from, const char* to), (from, to))
}

using namespace gearkv;
using namespace gearkv::testing;

namespace {

// Saves in a process of its own that meets the trouble at call n. Its exit code: 0 saved, 1 refused with
// io_error, 9 ended.
int save_in_child(const Cache& cache, const std::string& path, Trouble kind, long n) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        calls_left = n;
        trouble = kind;
        const Status status = save_state(cache, path.c_str(), {}, serial_executor());
        trouble = Trouble::none;
        _exit(status.ok() ? 0 : status.code() == Code::io_error ? 1 : 2);
    }
    int result = 0;
    REQUIRE(waitpid(child, &result, 0) == child);
    REQUIRE(WIFEXITED(result));
    return WEXITSTATUS(result);
}

std::uint64_t n_tokens_of(const std::string& path, const CacheConfig& config) {
    std::unique_ptr<Cache> cache;
    const Status status = load(path.c_str(), config, &cache);
    INFO(status.message());
    REQUIRE(status.ok());
    return cache->n_tokens(0);
}

}  // namespace

TEST_CASE("a process that ends at any step of saving leaves the old file or the new one", "[damage][once]") {
    const CacheConfig config = state_config("gear-2", 1);
    auto old_cache = make_cache(config), new_cache = make_cache(config);
    feed(old_cache.get(), 0, 20);
    feed(new_cache.get(), 0, 300);
    REQUIRE(new_cache->compress(0, serial_executor()).ok());
    const TemporaryDirectory directory;
    const std::string path = directory.file("state");
    int code = 9;
    long n = 0;
    std::size_t n_old = 0, n_new = 0;
    for (; code == 9 && n < 1000; ++n) {
        REQUIRE(save_state(*old_cache, path.c_str(), {}, serial_executor()).ok());
        code = save_in_child(*new_cache, path, Trouble::end, n);
        const std::uint64_t found = n_tokens_of(path, config);
        CAPTURE(n, code, found);
        CHECK((found == 20 || found == 300));
        (found == 20 ? n_old : n_new) += 1;
    }
    CHECK(code == 0);
    CHECK(n > 8);  // header, table, sections, fsync, rename, fsync of the directory
    CHECK(n_old > 8);
    CHECK(n_new == 2);  // ended before the last fsync, and not at all
    // Nobody before: no file, or all of it.
    REQUIRE(std::remove(path.c_str()) == 0);
    for (long i = 0; i < n; ++i) {
        code = save_in_child(*new_cache, path, Trouble::end, i);
        if (access(path.c_str(), F_OK) == 0) CHECK(n_tokens_of(path, config) == 300);
    }
}

TEST_CASE("a full disk or an error of it refuses the save, keeps the old file and leaves no other",
          "[damage][once]") {
    const CacheConfig config = state_config("gear-2", 1);
    auto old_cache = make_cache(config), new_cache = make_cache(config);
    feed(old_cache.get(), 0, 20);
    feed(new_cache.get(), 0, 300);
    const TemporaryDirectory directory;
    const std::string path = directory.file("state");
    for (const int error : {ENOSPC, EIO}) {
        refusal = error;
        int code = 1;
        for (long n = 0; code == 1 && n < 1000; ++n) {
            REQUIRE(save_state(*old_cache, path.c_str(), {}, serial_executor()).ok());
            code = save_in_child(*new_cache, path, Trouble::refuse, n);
            const std::uint64_t found = n_tokens_of(path, config);
            CAPTURE(n, code, found);
            CHECK((found == 20 || found == 300));
            CHECK(directory.n_files() == 1);
        }
        CHECK(code == 0);
    }
}

TEST_CASE("interrupted and short writes go on", "[damage][once]") {
    const CacheConfig config = state_config("gear-2", 1);
    auto cache = make_cache(config);
    feed(cache.get(), 0, 300);
    const TemporaryDirectory directory;
    REQUIRE(save_state(*cache, directory.file("whole").c_str(), {}, serial_executor()).ok());
    CHECK(save_in_child(*cache, directory.file("interrupted"), Trouble::interrupt, 0) == 0);
    CHECK(save_in_child(*cache, directory.file("short"), Trouble::halve, 0) == 0);
    const FileBytes whole = TemporaryFile::read_file(directory.file("whole"));
    CHECK((TemporaryFile::read_file(directory.file("interrupted")) == whole));
    CHECK((TemporaryFile::read_file(directory.file("short")) == whole));
}
