// The caller's memory manager.
#pragma once

#include <cstddef>

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

}  // namespace gearkv
