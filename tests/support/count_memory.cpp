#include "support/count_memory.hpp"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <new>

namespace {

std::atomic<long> n_allocations{0};
std::atomic<long> limit{std::numeric_limits<long>::max()};

void* allocate(std::size_t n_bytes, std::size_t alignment) noexcept {
    if (n_allocations.fetch_add(1) >= limit.load()) return nullptr;
    if (alignment < alignof(std::max_align_t)) alignment = alignof(std::max_align_t);
    if (n_bytes > std::numeric_limits<std::size_t>::max() - alignment) return nullptr;
    return std::aligned_alloc(alignment, (n_bytes + alignment) / alignment * alignment);
}

void* allocate_or_throw(std::size_t n_bytes, std::size_t alignment) {
    void* pointer = allocate(n_bytes, alignment);
    if (pointer == nullptr) throw std::bad_alloc();
    return pointer;
}

}  // namespace

namespace gearkv::test {

long count_allocations() {
    return n_allocations.load();
}

void refuse_after(long n) {
    limit = n < 0 ? std::numeric_limits<long>::max() : n_allocations.load() + n;
}

}  // namespace gearkv::test

void* operator new(std::size_t n) {
    return allocate_or_throw(n, 1);
}
void* operator new[](std::size_t n) {
    return allocate_or_throw(n, 1);
}
void* operator new(std::size_t n, std::align_val_t a) {
    return allocate_or_throw(n, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t n, std::align_val_t a) {
    return allocate_or_throw(n, static_cast<std::size_t>(a));
}
void* operator new(std::size_t n, const std::nothrow_t&) noexcept {
    return allocate(n, 1);
}
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept {
    return allocate(n, 1);
}
void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
    return allocate(n, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
    return allocate(n, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept {
    std::free(p);
}
void operator delete[](void* p) noexcept {
    std::free(p);
}
void operator delete(void* p, std::size_t) noexcept {
    std::free(p);
}
void operator delete[](void* p, std::size_t) noexcept {
    std::free(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
    std::free(p);
}
void operator delete[](void* p, std::align_val_t) noexcept {
    std::free(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
    std::free(p);
}
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept {
    std::free(p);
}
void operator delete(void* p, const std::nothrow_t&) noexcept {
    std::free(p);
}
void operator delete[](void* p, const std::nothrow_t&) noexcept {
    std::free(p);
}
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept {
    std::free(p);
}
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept {
    std::free(p);
}
