// A process that ends, or a system that refuses, at every call of saving and loading: the old file or the new
// one is there, whole, and never anything else.
#include <sys/wait.h>
#include <unistd.h>
#include <cerrno>

#include "states.hpp"
#include "trouble.hpp"

using namespace gearkv;
using namespace gearkv::testing;

namespace {

// How a process that met trouble ended.
struct Ending {
    enum { saved, refused, failed_otherwise, ended = 9 } how;
    bool met;     // the trouble came
    bool warned;  // saved, but not all went well
};

// Does it in a process of its own that meets the trouble at call n; `work` gives a status and sets *warning.
template <class Work>
Ending in_child(Trouble kind, long n, int error, const Work& work) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        Status warning;
        make_trouble(kind, n, error);
        const Status status = work(&warning);
        const bool met = end_trouble();
        const bool expected = status.code() == Code::io_error || status.code() == Code::out_of_memory;
        _exit((status.ok() ? 0 : expected ? 1 : 2) | (met ? 16 : 0) | (warning.ok() ? 0 : 32));
    }
    int result = 0;
    REQUIRE(waitpid(child, &result, 0) == child);
    REQUIRE(WIFEXITED(result));
    const int code = WEXITSTATUS(result);
    return {static_cast<decltype(Ending::how)>(code & 15), (code & 16) != 0 || code == Ending::ended,
            (code & 32) != 0};
}

Ending save_in_child(const Cache& cache, const std::string& path, Trouble kind, long n, int error = 0) {
    return in_child(kind, n, error, [&](Status* warning) {
        return save_state(cache, path.c_str(), {}, serial_executor(), warning);
    });
}

std::uint64_t n_tokens_of(const std::string& path, const CacheConfig& config) {
    std::unique_ptr<Cache> cache;
    const Status status = load(path.c_str(), config, &cache);
    INFO(status.message());
    REQUIRE(status.ok());
    return cache->n_tokens(0);
}

// What is saved over another in these tests.
struct TwoCaches {
    CacheConfig config = state_config("gear-2", 1);
    std::unique_ptr<Cache> old_cache = make_cache(config), new_cache = make_cache(config);
    TwoCaches() {
        feed(old_cache.get(), 0, 20);
        feed(new_cache.get(), 0, 300);
        REQUIRE(new_cache->compress(0, serial_executor()).ok());
    }
};

}  // namespace

TEST_CASE("a process that ends at any step of saving leaves the old file or the new one", "[damage][once]") {
    const TwoCaches caches;
    const TemporaryDirectory directory;
    const std::string path = directory.file("state");
    long n = 0;
    std::size_t n_old = 0, n_new = 0;
    for (bool met = true; met; ++n) {
        REQUIRE(n < 1000);
        REQUIRE(save_state(*caches.old_cache, path.c_str(), {}, serial_executor()).ok());
        CHECK(directory.n_files() == 1);  // what the last one left is gone
        const Ending ending = save_in_child(*caches.new_cache, path, Trouble::end, n);
        met = ending.met;
        const std::uint64_t found = n_tokens_of(path, caches.config);
        CAPTURE(n, ending.how, found);
        CHECK(ending.how == (met ? Ending::ended : Ending::saved));
        CHECK((found == 20 || found == 300));
        (found == 20 ? n_old : n_new) += 1;
    }
    CHECK(n_old > 15);  // target, temporary file, header, table, sections, fsync, name, rename
    CHECK(n_new <= 3);  // ended before the directory was open, before its fsync, and not at all
    // Nobody before: no file, or all of it.
    for (long i = 0; i < n; ++i) {
        std::remove(path.c_str());
        (void)save_in_child(*caches.new_cache, path, Trouble::end, i);
        if (access(path.c_str(), F_OK) == 0) CHECK(n_tokens_of(path, caches.config) == 300);
    }
}

TEST_CASE("a system that refuses any call of a save keeps the old file whole, or has the new one",
          "[damage][once]") {
    const TwoCaches caches;
    for (const bool linked : {false, true}) {
        const TemporaryDirectory directory;
        const std::string path = directory.file(linked ? "link" : "state"), file = directory.file("state");
        if (linked) REQUIRE(symlink("state", path.c_str()) == 0);
        const std::size_t n_files = linked ? 2 : 1;
        for (const int error : {ENOSPC, EIO, ENOMEM, EACCES}) {
            long n = 0, n_refused = 0, n_saved = 0;
            for (bool met = true; met; ++n) {
                REQUIRE(n < 1000);
                REQUIRE(save_state(*caches.old_cache, path.c_str(), {}, serial_executor()).ok());
                const Ending ending = save_in_child(*caches.new_cache, path, Trouble::refuse, n, error);
                met = ending.met;
                const std::uint64_t found = n_tokens_of(file, caches.config);
                CAPTURE(linked, error, n, ending.how, found);
                // ok means the new file, an error the old one.
                CHECK(ending.how <= Ending::refused);
                CHECK(found == (ending.how == Ending::saved ? 300 : 20));
                CHECK(directory.n_files() == n_files);
                (ending.how == Ending::saved ? n_saved : n_refused) += 1;
            }
            CAPTURE(linked, error);
            CHECK(n_refused >= 8);  // header, table, sections, fsync, rename
            CHECK(n_saved >= 4);    // stale files not looked for, mode not kept, directory not forced
        }
    }
}

TEST_CASE("a save whose directory could not be forced to the disk is in place, and says so",
          "[damage][once]") {
    const TwoCaches caches;
    const TemporaryDirectory directory;
    const std::string path = directory.file("state");
    std::vector<Ending> endings;
    for (long n = 0; endings.empty() || endings.back().met; ++n) {
        REQUIRE(save_state(*caches.old_cache, path.c_str(), {}, serial_executor()).ok());
        endings.push_back(save_in_child(*caches.new_cache, path, Trouble::refuse, n, EIO));
        if (endings.back().how == Ending::saved) CHECK(n_tokens_of(path, caches.config) == 300);
    }
    REQUIRE(endings.size() > 4);
    const auto last = endings.end() - 1;  // without trouble
    CHECK((!last->met && !last->warned));
    for (int i = 1; i <= 2; ++i) {  // the fsync of the directory, and before it the open
        CHECK(last[-i].how == Ending::saved);
        CHECK(last[-i].warned);
    }
    CHECK(last[-3].how == Ending::refused);  // the rename
    CHECK(!last[-3].warned);
}

TEST_CASE("a system that refuses any call of a load has made no cache", "[damage][once]") {
    const TwoCaches caches;
    const TemporaryDirectory directory;
    const std::string path = directory.file("state");
    REQUIRE(save_state(*caches.new_cache, path.c_str(), {}, serial_executor()).ok());
    for (const StateLoading loading : {StateLoading::copy, StateLoading::map}) {
        for (const int error : {EIO, ENOMEM, EACCES}) {
            LoadOptions options;
            options.loading = loading;
            long n = 0, n_refused = 0;
            for (bool met = true; met; ++n) {
                REQUIRE(n < 100);
                const Ending ending = in_child(Trouble::refuse, n, error, [&](Status*) {
                    std::unique_ptr<Cache> cache;
                    const Status status = load(path.c_str(), caches.config, &cache, options);
                    return (cache != nullptr) == status.ok() ? status : Status::error(Code::damaged, "made");
                });
                met = ending.met;
                CAPTURE(static_cast<int>(loading), error, n, ending.how);
                CHECK(ending.how == (met ? Ending::refused : Ending::saved));
                n_refused += ending.how == Ending::refused;
            }
            CHECK(n_refused >= 3);  // open, fstat, mmap or read
        }
    }
}

TEST_CASE("an allocator that refuses any call of a save or load leaves file and cache as they were",
          "[damage][once]") {
    CountingMemory memory;
    CacheConfig config = state_config("paper:gear-4:sinks=4");
    config.allocator = memory.allocator();
    auto cache = lived_cache(config);
    const std::uint64_t held = memory.held;
    const TemporaryDirectory directory;
    const std::string path = directory.file("state");
    REQUIRE(save_state(*make_cache(config), path.c_str(), {}, serial_executor()).ok());
    const FileBytes old_file = TemporaryFile::read_file(path);
    std::int64_t n = 0;
    for (Status status = Status::error(Code::out_of_memory, "."); !status.ok(); ++n) {
        REQUIRE(n < 100);
        memory.budget = n;
        status = save_state(*cache, path.c_str(), {}, serial_executor());
        memory.budget = INT64_MAX;
        CAPTURE(n, status.message());
        CHECK((status.ok() || status.code() == Code::out_of_memory));
        CHECK((status.ok() || TemporaryFile::read_file(path) == old_file));
        CHECK(directory.n_files() == 1);
        CHECK(memory.held == held);
    }
    CHECK(n >= 2);
    for (const StateLoading loading : {StateLoading::copy, StateLoading::map}) {
        LoadOptions options;
        options.loading = loading;
        n = 0;
        for (Status status = Status::error(Code::out_of_memory, "."); !status.ok(); ++n) {
            REQUIRE(n < 1000);
            std::unique_ptr<Cache> loaded;
            memory.budget = n;
            status = load(path.c_str(), config, &loaded, options);
            memory.budget = INT64_MAX;
            CAPTURE(static_cast<int>(loading), n, status.message());
            CHECK((status.ok() || status.code() == Code::out_of_memory));
            CHECK((loaded != nullptr) == status.ok());
            CHECK((status.ok() || memory.held == held));
        }
        CHECK(n > 8);
        CHECK(memory.held == held);
    }
}

TEST_CASE("interrupted and short writes go on", "[damage][once]") {
    const CacheConfig config = state_config("gear-2", 1);
    auto cache = make_cache(config);
    feed(cache.get(), 0, 300);
    const TemporaryDirectory directory;
    REQUIRE(save_state(*cache, directory.file("whole").c_str(), {}, serial_executor()).ok());
    CHECK(save_in_child(*cache, directory.file("interrupted"), Trouble::interrupt, 0).how == Ending::saved);
    CHECK(save_in_child(*cache, directory.file("short"), Trouble::halve, 0).how == Ending::saved);
    const FileBytes whole = TemporaryFile::read_file(directory.file("whole"));
    CHECK((TemporaryFile::read_file(directory.file("interrupted")) == whole));
    CHECK((TemporaryFile::read_file(directory.file("short")) == whole));
}
