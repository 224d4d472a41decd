#include "gearkv/memory.hpp"

#include <new>

namespace gearkv {
namespace {

constexpr std::align_val_t alignment{64};

void* allocate(void*, std::size_t n_bytes, std::size_t) {
    return ::operator new(n_bytes, alignment, std::nothrow);
}
void release(void*, void* pointer, std::size_t) {
    ::operator delete(pointer, alignment);
}

}  // namespace

Allocator default_allocator() noexcept {
    return {allocate, release, nullptr};
}

}  // namespace gearkv
