#include <cstring>
#include <set>
#include <string>

#include "gearkv/memory.hpp"
#include "gearkv/status.hpp"
#include "support/catch.hpp"

using namespace gearkv;

TEST_CASE("a status carries its code and its message", "[status]") {
    CHECK(Status().ok());
    CHECK(std::string(Status().message()).empty());
    const Status status = Status::error(Code::wrong_size, "found %d, expected %s", 3, "4");
    CHECK_FALSE(status.ok());
    CHECK(status.code() == Code::wrong_size);
    CHECK(std::string(status.message()) == "found 3, expected 4");
}

TEST_CASE("a long message is cut and ended", "[status]") {
    const std::string text(1000, 'x');
    const Status status = Status::error(Code::io_error, "%s", text.c_str());
    CHECK(std::strlen(status.message()) == 222);
}

TEST_CASE("every code has a name of its own", "[status]") {
    std::set<std::string> names;
    for (int code = 0; code <= static_cast<int>(Code::bad_conversation); ++code) {
        names.insert(code_name(static_cast<Code>(code)));
    }
    CHECK(names.size() == static_cast<std::size_t>(Code::bad_conversation) + 1);
    CHECK(names.count("?") == 0);
    CHECK(std::string(code_name(static_cast<Code>(255))) == "?");
}

TEST_CASE("the default allocator aligns and refuses without throwing", "[memory]") {
    const Allocator allocator = default_allocator();
    for (const std::size_t n : {1u, 63u, 64u, 1000u}) {
        void* p = allocator.allocate(allocator.context, n, 64);
        REQUIRE(p != nullptr);
        CHECK(reinterpret_cast<std::uintptr_t>(p) % 64 == 0);
        std::memset(p, 1, n);
        allocator.release(allocator.context, p, n);
    }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    CHECK(allocator.allocate(allocator.context, std::size_t{1} << 62, 64) == nullptr);
#endif
}

TEST_CASE("the page allocator gives pages or memory like any other", "[memory]") {
    for (const bool huge : {false, true}) {
        for (const bool prefault : {false, true}) {
            const Allocator allocator = page_allocator({huge, prefault});
            for (const std::size_t n : {std::size_t{1}, std::size_t{1} << 20, (std::size_t{1} << 20) - 1,
                                        (std::size_t{5} << 20) + 17}) {
                CAPTURE(huge, prefault, n);
                auto* p = static_cast<unsigned char*>(allocator.allocate(allocator.context, n, 64));
                REQUIRE(p != nullptr);
                CHECK(reinterpret_cast<std::uintptr_t>(p) % 64 == 0);
                std::memset(p, 1, n);
                CHECK(p[n - 1] == 1);
                allocator.release(allocator.context, p, n);
            }
            CHECK(allocator.allocate(allocator.context, SIZE_MAX - 100, 64) == nullptr);
            CHECK(allocator.allocate(allocator.context, std::size_t{1} << 62, 64) == nullptr);
        }
    }
}
