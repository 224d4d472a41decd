// The caller's memory manager.
#pragma once

#include <cstddef>

#pragma GCC visibility push(default)
namespace gearkv {

// Where the library takes its memory from. Both functions may be called from any thread the library runs on.
struct Allocator {
    // Returns at least n_bytes aligned to `alignment` (a power of two, at most 64), or null when it has none.
    void* (*allocate)(void* context, std::size_t n_bytes, std::size_t alignment) = nullptr;
    // Takes back what allocate returned, with the same n_bytes.
    void (*release)(void* context, void* pointer, std::size_t n_bytes) = nullptr;
    void* context = nullptr;
};

// The C++ runtime's aligned operator new, without exceptions.
Allocator default_allocator() noexcept;

struct PageOptions {
    bool huge = true;       // ask for large pages where the system has them; never an error where it has not
    bool prefault = false;  // take the pages at once, rather than when they are first touched
};

// Runs of 1 MiB and more as pages of their own straight from the system, the rest as default_allocator: for
// caches of gigabytes, whose first touch costs one fault for every 4 KiB otherwise.
Allocator page_allocator(const PageOptions& options = {}) noexcept;

}  // namespace gearkv
#pragma GCC visibility pop
