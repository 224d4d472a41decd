#include "gearkv/pool.hpp"

#include <algorithm>
#include <bit>
#include <mutex>
#include <new>

// Blocks that are not out are poisoned, so that the address sanitizer sees uses of them as with any
// allocator.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GEARKV_POISON_BLOCKS
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define GEARKV_POISON_BLOCKS
#endif
#if defined(GEARKV_POISON_BLOCKS)
#include <sanitizer/asan_interface.h>
#endif

namespace gearkv {
namespace {

constexpr std::uint64_t line_bytes = 64;
constexpr std::uint64_t least_slab_bytes = std::uint64_t{1} << 12, most_slab_bytes = std::uint64_t{1} << 30;
constexpr std::uint64_t tail_share = 16;   // of a run, that may be behind its last block
constexpr std::uint32_t n_looked_at = 64;  // free runs among which the best is chosen
constexpr std::uint32_t none = UINT32_MAX;
constexpr std::uint32_t n_lengths = 32;
constexpr std::uint32_t n_ways = 8, n_sizes = 64 * n_ways;

#if defined(GEARKV_POISON_BLOCKS)
void poison(const void* at, std::uint64_t n_bytes) {
    __asan_poison_memory_region(at, n_bytes);
}
void unpoison(const void* at, std::uint64_t n_bytes) {
    __asan_unpoison_memory_region(at, n_bytes);
}
#else
void poison(const void*, std::uint64_t) {}
void unpoison(const void*, std::uint64_t) {}
#endif

// What a block of n bytes takes.
std::uint64_t in_lines(std::uint64_t n_bytes) {
    return std::max<std::uint64_t>(n_bytes / line_bytes + (n_bytes % line_bytes > 0), 1) * line_bytes;
}

// All but `first` is of the run that starts at this slab.
struct Slab {
    std::uint32_t first;  // of the run it is in; of free runs, true of the first slab and the last
    std::uint32_t n_slabs;
    std::uint32_t n_blocks;  // there is room for; 0: the run is free
    std::uint32_t n_used;
    std::uint32_t size;        // of its blocks, an index; none: one block of any size
    std::uint32_t prev, next;  // free runs of about this length, or runs of this size with room
    std::uint32_t from_word;   // no free block before this word of bits; of any size: lines behind the block
};
static_assert(sizeof(Slab) == 32);

// Blocks of one size, while there is a run of them.
struct Size {
    std::uint64_t block_bytes = 0;
    std::uint32_t n_out = 0;         // 0: a free place
    std::uint32_t with_room = none;  // the first run with room for more
};

}  // namespace

struct BlockPool::Impl {
    explicit Impl(const PoolOptions& options) noexcept
        : from(options.from),
          n_bytes(options.n_bytes),
          slab_bytes(options.slab_bytes),
          n_slabs(static_cast<std::uint32_t>(n_bytes / slab_bytes)) {
        std::fill_n(free_runs, n_lengths, none);
    }

    Allocator from;
    std::uint64_t n_bytes, slab_bytes;
    std::uint32_t n_slabs;
    unsigned char* region = nullptr;
    Slab* slabs = nullptr;          // [n_slabs]
    std::uint64_t* bits = nullptr;  // [n_slabs, slab_bytes / 4096] of a run's blocks, 1: free

    mutable std::mutex mutex;            // of all below and what they point to
    std::uint32_t free_runs[n_lengths];  // by length: [i] has those of 2^i slabs and more
    Size sizes[n_sizes];                 // a size is in one of the n_ways places of its hash
    std::uint64_t held_bytes = 0, most_held_bytes = 0, n_out = 0, n_free_slabs = 0, n_refused = 0;

    static std::uint64_t own_bytes(std::uint64_t n_slabs, std::uint64_t slab_bytes) noexcept {
        return sizeof(Impl) + n_slabs * (sizeof(Slab) + slab_bytes / 512);
    }
    bool create() noexcept;
    void destroy() noexcept;
    void* take(std::uint64_t n_asked) noexcept;
    void give_back(void* pointer, std::uint64_t n_asked) noexcept;
    std::uint64_t longest_bytes() const noexcept;

  private:
    std::uint64_t* bits_of(std::uint32_t run) const noexcept { return bits + run * (slab_bytes / 4096); }
    std::uint32_t* free_list(std::uint32_t length) noexcept { return free_runs + std::bit_width(length) - 1; }
    void link(std::uint32_t* list, std::uint32_t run) noexcept;
    void unlink(std::uint32_t* list, std::uint32_t run) noexcept;
    std::uint32_t find_slabs(std::uint64_t n) const noexcept;
    std::uint32_t take_slabs(std::uint64_t n) noexcept;
    void free_slabs(std::uint32_t first, std::uint32_t n) noexcept;
    Size* find_size(std::uint64_t block_bytes) noexcept;
    std::uint64_t run_slabs(std::uint64_t shortest, std::uint64_t block_bytes,
                            std::uint64_t n_out) const noexcept;
    std::uint32_t make_run(Size* size, std::uint64_t block_bytes) noexcept;
    std::uint32_t take_block(std::uint32_t run) noexcept;
    // A block that is out: its run, and its number there. False for all other places and sizes.
    bool find_block(std::uint64_t at, std::uint64_t block_bytes, std::uint32_t* run,
                    std::uint64_t* block) const noexcept;
};

bool BlockPool::Impl::create() noexcept {
    auto* behind = reinterpret_cast<unsigned char*>(this + 1);
    slabs = new (behind) Slab[n_slabs];
    bits = new (behind + n_slabs * sizeof(Slab)) std::uint64_t[n_bytes / 4096];
    region = static_cast<unsigned char*>(from.allocate(from.context, n_bytes, line_bytes));
    if (region == nullptr) return false;
    poison(region, n_bytes);
    free_slabs(0, n_slabs);
    return true;
}

void BlockPool::Impl::destroy() noexcept {
    if (region == nullptr) return;
    unpoison(region, n_bytes);
    from.release(from.context, region, n_bytes);
}

void BlockPool::Impl::link(std::uint32_t* list, std::uint32_t run) noexcept {
    slabs[run].prev = none;
    slabs[run].next = *list;
    if (*list != none) slabs[*list].prev = run;
    *list = run;
}

void BlockPool::Impl::unlink(std::uint32_t* list, std::uint32_t run) noexcept {
    const auto [prev, next] = std::pair(slabs[run].prev, slabs[run].next);
    (prev == none ? *list : slabs[prev].next) = next;
    if (next != none) slabs[next].prev = prev;
}

// The shortest free run of at least n slabs, or one about as short when there are many.
std::uint32_t BlockPool::Impl::find_slabs(std::uint64_t n) const noexcept {
    std::uint32_t best = none, n_seen = 0;
    for (auto i = static_cast<std::uint32_t>(std::bit_width(n)) - 1; i < n_lengths && best == none; ++i) {
        for (std::uint32_t run = free_runs[i]; run != none; run = slabs[run].next) {
            const std::uint32_t length = slabs[run].n_slabs;
            if (length == n) return run;
            if (length > n && (best == none || length < slabs[best].n_slabs)) best = run;
            if (++n_seen >= n_looked_at && best != none) return best;
        }
    }
    return best;
}

std::uint32_t BlockPool::Impl::take_slabs(std::uint64_t n) noexcept {
    const std::uint32_t run = find_slabs(n);
    if (run == none) return none;
    const auto n_taken = static_cast<std::uint32_t>(n);
    const std::uint32_t n_found = slabs[run].n_slabs;
    unlink(free_list(n_found), run);
    n_free_slabs -= n_found;
    for (std::uint32_t i = run; i < run + n_taken; ++i)
        slabs[i].first = run;
    slabs[run].n_slabs = n_taken;
    slabs[run].n_blocks = 1;
    if (n_taken < n_found) free_slabs(run + n_taken, n_found - n_taken);
    return run;
}

void BlockPool::Impl::free_slabs(std::uint32_t first, std::uint32_t n) noexcept {
    n_free_slabs += n;
    slabs[first].n_blocks = 0;  // also when it is no longer the first of its run
    if (first + n < n_slabs && slabs[first + n].n_blocks == 0) {
        unlink(free_list(slabs[first + n].n_slabs), first + n);
        n += slabs[first + n].n_slabs;
    }
    if (first > 0 && slabs[slabs[first - 1].first].n_blocks == 0) {
        first = slabs[first - 1].first;
        unlink(free_list(slabs[first].n_slabs), first);
        n += slabs[first].n_slabs;
    }
    slabs[first].first = slabs[first + n - 1].first = first;
    slabs[first].n_slabs = n;
    slabs[first].n_blocks = 0;
    link(free_list(n), first);
}

// The size, a place for it, or null when other sizes are in all of its places.
Size* BlockPool::Impl::find_size(std::uint64_t block_bytes) noexcept {
    const std::uint64_t hash = block_bytes / line_bytes * 0x9e3779b97f4a7c15 >> 58;
    Size* place = nullptr;
    for (Size* size = sizes + hash * n_ways; size < sizes + (hash + 1) * n_ways; ++size) {
        if (size->n_out == 0) {
            place = size;
        } else if (size->block_bytes == block_bytes) {
            return size;
        }
    }
    return place;
}

// The run that wastes least behind its blocks, of those with room for one or for n_out blocks at most; the
// first that wastes little enough will do.
std::uint64_t BlockPool::Impl::run_slabs(std::uint64_t shortest, std::uint64_t block_bytes,
                                         std::uint64_t n_out) const noexcept {
    std::uint64_t best = shortest, least_tail = shortest * slab_bytes % block_bytes;
    for (std::uint64_t n = shortest + 1;
         least_tail * tail_share > best * slab_bytes && n * slab_bytes / block_bytes <= n_out; ++n) {
        const std::uint64_t tail = n * slab_bytes % block_bytes;
        if (tail * best >= least_tail * n) continue;
        best = n;
        least_tail = tail;
    }
    return best;
}

std::uint32_t BlockPool::Impl::make_run(Size* size, std::uint64_t block_bytes) noexcept {
    const std::uint64_t shortest = (block_bytes + slab_bytes - 1) / slab_bytes;
    std::uint64_t n = size == nullptr ? shortest : run_slabs(shortest, block_bytes, size->n_out);
    std::uint32_t run = take_slabs(n);
    if (run == none && n > shortest) run = take_slabs(n = shortest);
    if (run == none) return none;
    const std::uint64_t n_blocks = size == nullptr ? 1 : n * slab_bytes / block_bytes;
    slabs[run].n_blocks = static_cast<std::uint32_t>(n_blocks);
    slabs[run].n_used = 0;
    slabs[run].size = none;
    slabs[run].from_word = 0;
    std::uint64_t* words = bits_of(run);
    std::fill_n(words, n_blocks / 64, ~std::uint64_t{0});
    if (n_blocks % 64 > 0) words[n_blocks / 64] = (std::uint64_t{1} << n_blocks % 64) - 1;
    if (size == nullptr) return run;
    size->block_bytes = block_bytes;
    slabs[run].size = static_cast<std::uint32_t>(size - sizes);
    link(&size->with_room, run);
    return run;
}

// Of a run with room.
std::uint32_t BlockPool::Impl::take_block(std::uint32_t run) noexcept {
    Slab& slab = slabs[run];
    std::uint64_t* words = bits_of(run);
    while (words[slab.from_word] == 0)
        ++slab.from_word;
    std::uint64_t& word = words[slab.from_word];
    const auto block = slab.from_word * 64 + static_cast<std::uint32_t>(std::countr_zero(word));
    word &= word - 1;
    ++slab.n_used;
    if (slab.size != none) {
        ++sizes[slab.size].n_out;
        if (slab.n_used == slab.n_blocks) unlink(&sizes[slab.size].with_room, run);
    }
    return block;
}

bool BlockPool::Impl::find_block(std::uint64_t at, std::uint64_t block_bytes, std::uint32_t* run,
                                 std::uint64_t* block) const noexcept {
    if (at >= n_bytes || block_bytes > n_bytes) return false;
    // What a slab says of its run is old when it is free and in the middle.
    const auto here = static_cast<std::uint32_t>(at / slab_bytes);
    *run = slabs[here].first;
    const Slab& slab = slabs[*run];
    if (slab.first != *run || slab.n_blocks == 0 || here - *run >= slab.n_slabs) return false;
    const std::uint64_t place = at - *run * slab_bytes;
    const std::uint64_t found_bytes = slab.size == none
                                          ? slab.n_slabs * slab_bytes - slab.from_word * line_bytes
                                          : sizes[slab.size].block_bytes;
    *block = place / found_bytes;
    if (place % found_bytes != 0 || found_bytes != block_bytes || *block >= slab.n_blocks) return false;
    return (bits_of(*run)[*block / 64] >> *block % 64 & 1) == 0;
}

void* BlockPool::Impl::take(std::uint64_t n_asked) noexcept {
    if (n_asked > n_bytes) return nullptr;
    const std::uint64_t block_bytes = in_lines(n_asked);
    const std::lock_guard lock(mutex);
    Size* size = find_size(block_bytes);
    const bool has_room = size != nullptr && size->with_room != none;
    const std::uint32_t run = has_room ? size->with_room : make_run(size, block_bytes);
    if (run == none) return nullptr;
    ++n_out;
    held_bytes += block_bytes;
    most_held_bytes = std::max(most_held_bytes, held_bytes);
    unsigned char* block = region + run * slab_bytes + take_block(run) * block_bytes;
    if (slabs[run].size == none)
        slabs[run].from_word =
            static_cast<std::uint32_t>((slabs[run].n_slabs * slab_bytes - block_bytes) / line_bytes);
    unpoison(block, n_asked);
    return block;
}

void BlockPool::Impl::give_back(void* pointer, std::uint64_t n_asked) noexcept {
    if (pointer == nullptr) return;
    const auto at = reinterpret_cast<std::uintptr_t>(pointer) - reinterpret_cast<std::uintptr_t>(region);
    const std::lock_guard lock(mutex);
    std::uint32_t run = 0;
    std::uint64_t block = 0;
    if (!find_block(at, in_lines(n_asked), &run, &block)) {
        ++n_refused;
        return;
    }
    poison(pointer, n_asked);
    --n_out;
    held_bytes -= in_lines(n_asked);
    Slab& slab = slabs[run];
    Size* size = slab.size == none ? nullptr : sizes + slab.size;
    const auto word = static_cast<std::uint32_t>(block / 64);
    bits_of(run)[word] |= std::uint64_t{1} << block % 64;
    slab.from_word = std::min(slab.from_word, word);
    if (size != nullptr) {
        --size->n_out;
        if (slab.n_used == slab.n_blocks) link(&size->with_room, run);
    }
    if (--slab.n_used > 0) return;
    if (size != nullptr) unlink(&size->with_room, run);
    free_slabs(run, slab.n_slabs);
}

std::uint64_t BlockPool::Impl::longest_bytes() const noexcept {
    std::uint32_t longest = 0;
    for (std::uint32_t i = n_lengths; i-- > 0 && longest == 0;) {
        for (std::uint32_t run = free_runs[i]; run != none; run = slabs[run].next)
            longest = std::max(longest, slabs[run].n_slabs);
    }
    return longest * slab_bytes;
}

Status BlockPool::create(const PoolOptions& options, std::unique_ptr<BlockPool>* out) noexcept {
    const Allocator& from = options.from;
    if (out == nullptr || from.allocate == nullptr || from.release == nullptr)
        return Status::error(Code::invalid_argument, "%s",
                             out == nullptr ? "out is null" : "from has a null function");
    const auto n_bytes = static_cast<unsigned long long>(options.n_bytes);
    const auto slab_bytes = static_cast<unsigned long long>(options.slab_bytes);
    if (!std::has_single_bit(slab_bytes) || slab_bytes < least_slab_bytes || slab_bytes > most_slab_bytes)
        return Status::error(Code::wrong_size,
                             "slabs of %llu bytes, expected a power of two from 4096 to 2^30", slab_bytes);
    if (n_bytes == 0 || n_bytes % slab_bytes != 0 || n_bytes / slab_bytes >= none)
        return Status::error(Code::wrong_size,
                             "a pool of %llu bytes, expected 1 to 2^32 - 2 slabs of %llu bytes", n_bytes,
                             slab_bytes);
    const std::uint64_t own_bytes = Impl::own_bytes(n_bytes / slab_bytes, slab_bytes);
    void* place = from.allocate(from.context, own_bytes, line_bytes);
    Impl* impl = place == nullptr ? nullptr : new (place) Impl(options);
    BlockPool* pool = impl != nullptr && impl->create() ? new (std::nothrow) BlockPool(impl) : nullptr;
    if (pool == nullptr) {
        if (impl != nullptr) {
            impl->destroy();
            impl->~Impl();
            from.release(from.context, place, own_bytes);
        }
        return Status::error(Code::out_of_memory, "no %llu bytes for a pool", n_bytes);
    }
    out->reset(pool);
    return {};
}

BlockPool::~BlockPool() {
    const Allocator from = impl_->from;
    const std::uint64_t own_bytes = Impl::own_bytes(impl_->n_slabs, impl_->slab_bytes);
    impl_->destroy();
    impl_->~Impl();
    from.release(from.context, impl_, own_bytes);
}

Allocator BlockPool::allocator() noexcept {
    return {[](void* impl, std::size_t n, std::size_t) { return static_cast<Impl*>(impl)->take(n); },
            [](void* impl, void* block, std::size_t n) { static_cast<Impl*>(impl)->give_back(block, n); },
            impl_};
}

PoolStats BlockPool::stats() const noexcept {
    const std::lock_guard lock(impl_->mutex);
    PoolStats stats;
    stats.n_bytes = impl_->n_bytes;
    stats.held_bytes = impl_->held_bytes;
    stats.most_held_bytes = impl_->most_held_bytes;
    stats.taken_bytes = impl_->n_bytes - impl_->n_free_slabs * impl_->slab_bytes;
    stats.longest_bytes = impl_->longest_bytes();
    stats.n_blocks = impl_->n_out;
    stats.n_refused = impl_->n_refused;
    stats.n_free_slabs = impl_->n_free_slabs;
    return stats;
}

}  // namespace gearkv
