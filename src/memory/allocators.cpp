#include "gearkv/memory.hpp"

#include <cstdint>
#include <new>

#include <sys/mman.h>
#include <unistd.h>

namespace gearkv {
namespace {

constexpr std::align_val_t alignment{64};
constexpr std::size_t least_pages_bytes = std::size_t{1} << 20;
constexpr std::size_t huge_bytes = std::size_t{2} << 20;  // of a large page on x86-64 and most of aarch64

void* allocate(void*, std::size_t n_bytes, std::size_t) {
    return ::operator new(n_bytes, alignment, std::nothrow);
}
void release(void*, void* pointer, std::size_t) {
    ::operator delete(pointer, alignment);
}

std::size_t whole_pages(std::size_t n_bytes) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return (n_bytes + page - 1) / page * page;
}

// Mapped with room for a start at a large page, and what is too much given back.
unsigned char* map_aligned(std::size_t n_bytes) {
    const std::size_t n_mapped = n_bytes + huge_bytes;
    void* mapping = mmap(nullptr, n_mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    auto* start = static_cast<unsigned char*>(mapping);
    const std::size_t n_before =
        (huge_bytes - reinterpret_cast<std::uintptr_t>(start) % huge_bytes) % huge_bytes;
    const std::size_t n_behind = n_mapped - n_before - n_bytes;
    if (n_before > 0) munmap(start, n_before);
    if (n_behind > 0) munmap(start + n_before + n_bytes, n_behind);
    return start + n_before;
}

// The context is one of these.
constexpr PageOptions all_options[] = {{false, false}, {true, false}, {false, true}, {true, true}};

void* allocate_pages(void* context, std::size_t n_bytes, std::size_t n_aligned) {
    if (n_bytes < least_pages_bytes) return allocate(nullptr, n_bytes, n_aligned);
    const auto& options = *static_cast<const PageOptions*>(context);
    const std::size_t n_whole = whole_pages(n_bytes);
    if (n_whole < n_bytes || n_whole > SIZE_MAX - huge_bytes) return nullptr;
    unsigned char* pages = map_aligned(n_whole);
    if (pages == nullptr) return nullptr;
    if (options.huge) (void)madvise(pages, n_whole, MADV_HUGEPAGE);
    for (std::size_t at = 0; options.prefault && at < n_whole; at += 4096)
        const_cast<volatile unsigned char&>(pages[at]) = 0;
    return pages;
}
void release_pages(void*, void* pointer, std::size_t n_bytes) {
    if (n_bytes < least_pages_bytes) {
        release(nullptr, pointer, n_bytes);
    } else {
        munmap(pointer, whole_pages(n_bytes));
    }
}

}  // namespace

Allocator default_allocator() noexcept {
    return {allocate, release, nullptr};
}

Allocator page_allocator(const PageOptions& options) noexcept {
    // Never written to: a context is not const, but these functions know what it is.
    const PageOptions& kept = all_options[(options.huge ? 1 : 0) + (options.prefault ? 2 : 0)];
    return {allocate_pages, release_pages, const_cast<PageOptions*>(&kept)};
}

}  // namespace gearkv
