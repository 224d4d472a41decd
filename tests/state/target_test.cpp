// What a save writes to: through links, with the mode and owner of what was there, and over nothing that
// somebody would miss.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "states.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

// Counts the rounds of work it is asked for.
struct CountingExecutor final : Executor {
    std::size_t n_rounds = 0;
    void parallel_for(std::size_t n, Task task, void* context) noexcept override {
        ++n_rounds;
        serial_executor().parallel_for(n, task, context);
    }
    unsigned n_threads() const noexcept override { return 1; }
};

std::unique_ptr<Cache> small_cache(std::size_t n_tokens) {
    auto cache = make_cache(state_config("gear-2", 1));
    feed(cache.get(), 0, n_tokens);
    return cache;
}

std::uint64_t tokens_in(const std::string& path) {
    StateInfo info;
    const Status status = inspect_state(path.c_str(), &info);
    INFO(path << ": " << status.message());
    REQUIRE(status.ok());
    return info.n_tokens;
}

struct stat info_of(const std::string& path) {
    struct stat info = {};
    REQUIRE(lstat(path.c_str(), &info) == 0);
    return info;
}

void write_text(const std::string& path, const char* text) {
    std::ofstream(path) << text;
}

}  // namespace

TEST_CASE("a save goes where links lead, and leaves the links", "[save][once]") {
    const TemporaryDirectory directory;
    REQUIRE(mkdir(directory.file("other").c_str(), 0700) == 0);
    const std::string target = directory.file("other/state");
    for (const bool there_before : {true, false}) {
        std::filesystem::remove_all(target);
        const char* links[][2] = {{"other/state", "relative"},
                                  {target.c_str(), "absolute"},
                                  {"relative", "chain"},
                                  {"../other/./state", "other/dots"}};
        std::uint64_t n = 10;
        for (const auto& [to, name] : links) {
            CAPTURE(to, name, there_before);
            const std::string link = directory.file(name);
            if (!there_before) std::filesystem::remove(target);
            if (access(link.c_str(), F_OK) != 0) (void)symlink(to, link.c_str());
            const auto cache = small_cache(++n);
            const Status status = save_state(*cache, link.c_str(), {}, serial_executor());
            INFO(status.message());
            REQUIRE(status.ok());
            CHECK(S_ISLNK(info_of(link).st_mode));
            CHECK(S_ISREG(info_of(target).st_mode));
            CHECK(tokens_in(target) == n);
        }
    }
    // Links that lead in a circle lead nowhere.
    REQUIRE(symlink("second", directory.file("first").c_str()) == 0);
    REQUIRE(symlink("first", directory.file("second").c_str()) == 0);
    CHECK(save_state(*small_cache(1), directory.file("first").c_str(), {}, serial_executor()).code() ==
          Code::io_error);
    CHECK(S_ISLNK(info_of(directory.file("first")).st_mode));
}

TEST_CASE("a file that is replaced keeps its mode, and its owner where that is possible", "[save][once]") {
    const TemporaryDirectory directory;
    const std::string path = directory.file("state");
    const auto cache = small_cache(5);
    for (const mode_t mode : {0600, 0640, 0660, 0755, 0666}) {
        CAPTURE(mode);
        write_text(path, "old");
        REQUIRE(chmod(path.c_str(), mode) == 0);
        Status warning = Status::error(Code::damaged, "none");
        REQUIRE(save_state(*cache, path.c_str(), {}, serial_executor(), &warning).ok());
        CHECK(warning.ok());
        CHECK((info_of(path).st_mode & 07777) == mode);
    }
    // A new one is made as all files of the process are.
    const mode_t mask = umask(027);
    const std::string fresh = directory.file("new");
    REQUIRE(save_state(*cache, fresh.c_str(), {}, serial_executor()).ok());
    umask(mask);
    CHECK((info_of(fresh).st_mode & 07777) == 0640);
    if (geteuid() != 0) return;
    REQUIRE(chown(path.c_str(), 1234, 4321) == 0);
    REQUIRE(chmod(path.c_str(), 0640) == 0);
    REQUIRE(save_state(*cache, path.c_str(), {}, serial_executor()).ok());
    const struct stat after = info_of(path);
    CHECK((after.st_uid == 1234 && after.st_gid == 4321 && (after.st_mode & 07777) == 0640));
}

TEST_CASE("who may not give a file away is told, and opens it to nobody new", "[save][once]") {
    if (geteuid() != 0) return;  // only root can make a file of another one
    const TemporaryDirectory directory;
    REQUIRE(chmod(directory.file("").c_str(), 0777) == 0);
    const std::string path = directory.file("state"), locked = directory.file("locked");
    for (const std::string& name : {path, locked})
        write_text(name, "old");
    REQUIRE(chmod(path.c_str(), 0662) == 0);
    REQUIRE(chmod(locked.c_str(), 0444) == 0);
    const auto cache = small_cache(5);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        if (setgid(65534) != 0 || setuid(65534) != 0) _exit(8);
        Status warning;
        const Status saved = save_state(*cache, path.c_str(), {}, serial_executor(), &warning);
        const Status refused = save_state(*cache, locked.c_str(), {}, serial_executor());
        _exit((saved.ok() ? 0 : 1) | (warning.code() == Code::io_error ? 0 : 2) |
              (refused.code() == Code::io_error ? 0 : 4));
    }
    int result = 0;
    REQUIRE(waitpid(child, &result, 0) == child);
    CHECK(result == 0);
    CHECK((info_of(path).st_mode & 07777) == 0602);
    CHECK(tokens_in(path) == 5);
    CHECK(info_of(locked).st_size == 3);
}

TEST_CASE("what is no regular file, or must be kept, is refused before any work", "[save][once]") {
    const TemporaryDirectory directory;
    const auto cache = small_cache(5);
    REQUIRE(mkfifo(directory.file("fifo").c_str(), 0600) == 0);
    REQUIRE(mkdir(directory.file("folder").c_str(), 0700) == 0);
    REQUIRE(symlink("/dev/null", directory.file("null").c_str()) == 0);
    REQUIRE(symlink("folder", directory.file("to_folder").c_str()) == 0);
    write_text(directory.file("model"), "weights");
    REQUIRE(link(directory.file("model").c_str(), directory.file("hard").c_str()) == 0);
    REQUIRE(symlink("model", directory.file("soft").c_str()) == 0);
    const struct stat model = info_of(directory.file("model"));
    const FileId ids[] = {{1, 2}, {model.st_dev, model.st_ino}};
    SaveOptions options;
    options.kept = ids;
    options.n_kept = 2;
    const std::pair<const char*, Code> cases[] = {
        {"fifo", Code::io_error},        {"folder", Code::io_error},     {"null", Code::io_error},
        {"to_folder", Code::io_error},   {"folder/", Code::io_error},    {"none/state", Code::io_error},
        {"model/state", Code::io_error}, {"fresh/", Code::io_error},     {"model", Code::protected_file},
        {"hard", Code::protected_file},  {"soft", Code::protected_file},
    };
    const std::size_t n_files = directory.n_files();
    for (const auto& [name, code] : cases) {
        CAPTURE(name);
        const std::string path = directory.file(name);
        const bool there = access(path.c_str(), F_OK) == 0;
        const mode_t kind = there ? info_of(path).st_mode : 0;
        CountingExecutor executor;
        Status warning = Status::error(Code::damaged, "untouched");
        const Status status = save_state(*cache, path.c_str(), options, executor, &warning);
        CHECK(status.code() == code);
        CHECK(warning.code() == Code::damaged);
        CHECK(executor.n_rounds == 0);
        CHECK(check_save_target(path.c_str(), options).code() == code);
        CHECK((!there || info_of(path).st_mode == kind));
        CHECK(directory.n_files() == n_files);
    }
    CHECK(info_of(directory.file("model")).st_ino == model.st_ino);
    CHECK(save_state(*cache, "", options, serial_executor()).code() == Code::io_error);
    CHECK(save_state(*cache, "/", options, serial_executor()).code() == Code::io_error);
    CHECK(save_state(*cache, std::string(5000, 'x').c_str(), {}, serial_executor()).code() == Code::io_error);
    options.kept = nullptr;
    CHECK(save_state(*cache, "x", options, serial_executor()).code() == Code::invalid_argument);
    // A target that will do leaves nothing behind when it is looked at.
    CHECK(check_save_target(directory.file("fresh").c_str()).ok());
    CHECK(check_save_target(directory.file("model").c_str()).ok());
    CHECK(directory.n_files() == n_files);
    CHECK(info_of(directory.file("model")).st_size == 7);
}

TEST_CASE("a cache that lies in a file may be saved over it", "[save][once]") {
    const TemporaryDirectory directory;
    const std::string path = directory.file("state");
    const CacheConfig config = state_config("gear-2", 1);
    auto cache = make_cache(config);
    feed(cache.get(), 0, 300);
    REQUIRE(save_state(*cache, path.c_str(), {}, serial_executor()).ok());
    LoadOptions options;
    options.loading = StateLoading::map;
    std::unique_ptr<Cache> mapped;
    REQUIRE(load(path.c_str(), config, &mapped, options).ok());
    feed(mapped.get(), 300, 1);
    REQUIRE(save_state(*mapped, path.c_str(), {}, serial_executor()).ok());
    CHECK(tokens_in(path) == 301);
    CHECK(attend_layer(mapped.get(), 0).size() > 0);
}

TEST_CASE("temporary files of saves that were ended go with the next save, and no others", "[save][once]") {
    const TemporaryDirectory directory;
    const std::string path = directory.file("state");
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) _exit(0);
    REQUIRE(waitpid(child, nullptr, 0) == child);
    const std::string dead = std::to_string(child), ours = std::to_string(getpid()),
                      parent = std::to_string(getppid());
    const std::string stale[] = {path + "." + dead + "-0.tmp", path + "." + dead + "-12.tmp",
                                 path + "." + ours + "-3.tmp"};
    const std::string held = path + "." + dead + "-1.tmp";
    const std::string others[] = {held,
                                  path + "." + ours + "-4.tmp",  // has just been made
                                  path + "." + parent + "-0.tmp",
                                  path + "." + dead + ".tmp",
                                  path + "." + dead + "-.tmp",
                                  path + "." + dead + "-0.tmp2",
                                  path + ".0-0.tmp",
                                  path + ".99999999999-0.tmp",
                                  path + "2." + dead + "-0.tmp",
                                  directory.file("stat") + "." + dead + "-0.tmp"};
    for (const std::string& name : stale)
        write_text(name, "half a state");
    for (const std::string& name : others)
        write_text(name, "mine");
    const timespec long_ago[2] = {{1000, 0}, {1000, 0}};
    REQUIRE(utimensat(AT_FDCWD, stale[2].c_str(), long_ago, 0) == 0);
    const int holder = open(held.c_str(), O_RDWR | O_CLOEXEC);
    REQUIRE(flock(holder, LOCK_EX | LOCK_NB) == 0);
    REQUIRE(save_state(*small_cache(5), path.c_str(), {}, serial_executor()).ok());
    for (const std::string& name : stale) {
        INFO(name);
        CHECK(access(name.c_str(), F_OK) != 0);
    }
    for (const std::string& name : others) {
        INFO(name);
        CHECK(access(name.c_str(), F_OK) == 0);
    }
    close(holder);
    CHECK(tokens_in(path) == 5);
}
