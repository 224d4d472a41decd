#include "support/count_memory.hpp"

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <new>

#include <malloc.h>

namespace {

std::atomic<long> n_allocations{0};
std::atomic<long> limit{std::numeric_limits<long>::max()};
std::atomic<long> n_bytes_used{0};
std::atomic<long> n_bytes_peak{0};

void* allocate(std::size_t n_bytes, std::size_t alignment) noexcept {
    if (n_allocations.fetch_add(1) >= limit.load()) return nullptr;
    if (alignment < alignof(std::max_align_t)) alignment = alignof(std::max_align_t);
    if (n_bytes > std::numeric_limits<std::size_t>::max() - alignment) return nullptr;
    void* pointer = std::aligned_alloc(alignment, (n_bytes + alignment) / alignment * alignment);
    if (pointer == nullptr) return nullptr;
    const auto usable = static_cast<long>(malloc_usable_size(pointer));
    const long used = n_bytes_used.fetch_add(usable) + usable;
    for (long peak = n_bytes_peak.load(); peak < used && !n_bytes_peak.compare_exchange_weak(peak, used);) {
    }
    return pointer;
}

void release(void* pointer) noexcept {
    if (pointer != nullptr) n_bytes_used -= static_cast<long>(malloc_usable_size(pointer));
    std::free(pointer);
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

long count_bytes() {
    return n_bytes_used.load();
}

long peak_bytes() {
    return n_bytes_peak.load();
}

void reset_peak() {
    n_bytes_peak = n_bytes_used.load();
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
    release(p);
}
void operator delete[](void* p) noexcept {
    release(p);
}
void operator delete(void* p, std::size_t) noexcept {
    release(p);
}
void operator delete[](void* p, std::size_t) noexcept {
    release(p);
}
void operator delete(void* p, std::align_val_t) noexcept {
    release(p);
}
void operator delete[](void* p, std::align_val_t) noexcept {
    release(p);
}
void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
    release(p);
}
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept {
    release(p);
}
void operator delete(void* p, const std::nothrow_t&) noexcept {
    release(p);
}
void operator delete[](void* p, const std::nothrow_t&) noexcept {
    release(p);
}
void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept {
    release(p);
}
void operator delete[](void* p, std::align_val_t, const std::nothrow_t&) noexcept {
    release(p);
}
