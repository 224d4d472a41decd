#include "cache/closed_block.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "file/xxh64.hpp"
#include "format/trellis.hpp"

namespace gearkv {
namespace {

const BlockHeader& header_of(const void* block) {
    return *static_cast<const BlockHeader*>(block);
}

// In front of two blocks, in one piece of the caller's memory.
struct alignas(block_alignment) OwnedPair final : BlockOwner {
    Allocator allocator;
    std::uint64_t block_bytes = 0;  // of both
};
static_assert(sizeof(OwnedPair) == bytes_beside_block);

void destroy_pair(BlockOwner* owner) noexcept {
    auto* pair = static_cast<OwnedPair*>(owner);
    const Allocator allocator = pair->allocator;
    const std::uint64_t n_bytes = sizeof(OwnedPair) + pair->block_bytes;
    pair->~OwnedPair();
    allocator.release(allocator.context, pair, n_bytes);
}

void count_block(const Memory& memory, std::uint64_t n_bytes) {
    memory.count(n_bytes, Use::block);
    memory.count(sizeof(OwnedPair), Use::table);
}
void discount_block(const Memory& memory, std::uint64_t n_bytes) {
    memory.discount(n_bytes, Use::block);
    memory.discount(sizeof(OwnedPair), Use::table);
}

}  // namespace

std::uint64_t ClosedBlock::n_bytes() const noexcept {
    return header_of(key).n_bytes + header_of(value).n_bytes;
}

Status check_block(const BlockView& view, std::uint64_t checksum) noexcept {
    const std::uint64_t found = xxh64(view.header, view.header->n_bytes);
    if (found == checksum) return check_contents(view);
    return Status::error(Code::damaged, "checksum %016llx of a block, expected %016llx",
                         static_cast<unsigned long long>(found), static_cast<unsigned long long>(checksum));
}

bool take_block(const Memory& memory, std::uint64_t key_bytes, std::uint64_t value_bytes,
                NewBlock* out) noexcept {
    const std::uint64_t block_bytes = key_bytes + value_bytes, n_bytes = sizeof(OwnedPair) + block_bytes;
    auto* place = static_cast<unsigned char*>(memory.take(n_bytes, Use::block));
    if (place == nullptr) return false;
    memory.discount(n_bytes, Use::block);
    count_block(memory, block_bytes);
    auto* pair = new (place) OwnedPair;
    pair->destroy = destroy_pair;
    pair->allocator = memory.allocator();
    pair->block_bytes = block_bytes;
    *out = {pair, place + sizeof(OwnedPair), place + sizeof(OwnedPair) + key_bytes};
    return true;
}

void drop_block(const Memory& memory, const NewBlock& block) noexcept {
    if (block.owner == nullptr) return;
    discount_block(memory, static_cast<const OwnedPair*>(block.owner)->block_bytes);
    block.owner->drop_user();
}

void hand_over_block(const Memory& from, const Memory& to, const NewBlock& block) noexcept {
    const std::uint64_t n_bytes = static_cast<const OwnedPair*>(block.owner)->block_bytes;
    discount_block(from, n_bytes);
    count_block(to, n_bytes);
}

bool BlockTable::copy(const Memory& memory, const BlockTable& other) noexcept {
    if (!reserve(memory, other.size_)) return false;
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const void* bytes = other.profiles_[static_cast<int>(kind)];
        if (bytes != nullptr && !set_profiles(memory, kind, bytes, other.profile_bytes(kind))) return false;
    }
    for (std::uint64_t i = 0; i < other.size_; ++i) {
        const ClosedBlock& block = other.blocks_[i];
        block.owner->add_user();
        push(block);
        if (!block.is_mapped && !continues(i)) {
            count_block(memory, block.n_bytes());
        }
    }
    return true;
}

void BlockTable::destroy(const Memory& memory) noexcept {
    truncate(memory, 0);
    forget_profiles(memory);
    memory.give_back(blocks_, capacity_ * sizeof(ClosedBlock), Use::table);
    blocks_ = nullptr;
    capacity_ = 0;
}

bool BlockTable::reserve(const Memory& memory, std::uint64_t n) noexcept {
    if (size_ + n <= capacity_) return true;
    const std::uint64_t capacity = grown(capacity_, size_ + n);
    auto* larger = static_cast<ClosedBlock*>(memory.take(capacity * sizeof(ClosedBlock), Use::table));
    if (larger == nullptr) return false;
    std::copy_n(blocks_, size_, larger);
    memory.give_back(blocks_, capacity_ * sizeof(ClosedBlock), Use::table);
    blocks_ = larger;
    capacity_ = capacity;
    return true;
}

void BlockTable::count(const ClosedBlock& block, std::uint64_t sign) noexcept {
    bytes_[static_cast<int>(TensorKind::key)] += bytes_by_part(header_of(block.key)) * sign;
    bytes_[static_cast<int>(TensorKind::value)] += bytes_by_part(header_of(block.value)) * sign;
    if (block.is_mapped) mapped_bytes_ += block.n_bytes() * sign;
    n_reduced_ += (std::uint64_t{block.is_reduced[0]} + std::uint64_t{block.is_reduced[1]}) * sign;
    n_saved_ += block.n_saved * sign;
}

void BlockTable::push(const ClosedBlock& block) noexcept {
    blocks_[size_++] = block;
    n_tokens_ += block.n_tokens;
    if (!continues(size_ - 1)) count(block, 1);
}

void BlockTable::uncount(const Memory& memory, std::uint64_t i, bool is_last) noexcept {
    const ClosedBlock& block = blocks_[i];
    if (is_last) {
        count(block, ~std::uint64_t{0});  // unsigned sums wrap
        if (!block.is_mapped) discount_block(memory, block.n_bytes());
    }
    n_tokens_ -= block.n_tokens;
}

void BlockTable::truncate(const Memory& memory, std::uint64_t n_tokens) noexcept {
    // Headers are asked for long before they are read, each is on a page of its own.
    std::uint64_t n_left = size_, n_kept = n_tokens_;
    for (; n_left > 0 && n_kept - blocks_[n_left - 1].n_tokens >= n_tokens; --n_left) {
        const ClosedBlock& block = blocks_[n_left - 1];
        n_kept -= block.n_tokens;
        for (const void* at : {static_cast<const void*>(block.owner), block.key, block.value})
            __builtin_prefetch(at);
    }
    for (std::uint64_t i = size_; i > n_left; --i)
        uncount(memory, i - 1, !continues(i - 1));
    for (std::uint64_t i = n_left; i < size_; ++i)
        blocks_[i].owner->drop_user();
    size_ = n_left;
    if (n_tokens_ > n_tokens) {
        blocks_[size_ - 1].n_tokens -= static_cast<std::uint32_t>(n_tokens_ - n_tokens);
        n_tokens_ = n_tokens;
    }
}

void BlockTable::pop(const Memory& memory) noexcept {
    const ClosedBlock& block = blocks_[--size_];
    if (header_of(block.key).profile != 0) forget_profiles_of(memory, TensorKind::key);
    if (header_of(block.value).profile != 0) forget_profiles_of(memory, TensorKind::value);
    count(block, ~std::uint64_t{0});
    n_tokens_ -= block.n_tokens;
}

void BlockTable::remove(const Memory& memory, std::uint64_t first, std::uint64_t n,
                        std::uint64_t n_moved) noexcept {
    std::uint64_t start = 0, to = 0;
    for (std::uint64_t i = 0; i < size_; ++i) {
        const ClosedBlock block = blocks_[i];
        const std::uint64_t stop = start + block.n_tokens;
        // Tokens of this block before the range and behind it.
        const auto n_left = static_cast<std::uint32_t>(std::clamp(first, start, stop) - start);
        const auto n_right = static_cast<std::uint32_t>(stop - std::clamp(first + n, start, stop));
        start = stop;
        if (n_left + n_right == 0) {
            const bool same_before = to > 0 && blocks_[to - 1].key == block.key;
            const bool same_behind = i + 1 < size_ && blocks_[i + 1].key == block.key;
            uncount(memory, i, !same_before && !same_behind);
            block.owner->drop_user();
            continue;
        }
        if (n_left > 0 && n_right > 0) {  // all of the range is here, and nothing was dropped before
            std::copy_backward(blocks_ + i + 1, blocks_ + size_, blocks_ + size_ + 1);
            ++size_;
            ++i;
            block.owner->add_user();
        }
        n_tokens_ -= block.n_tokens - n_left - n_right;
        if (n_left > 0) {
            blocks_[to] = block;
            blocks_[to++].n_tokens = n_left;
        }
        if (n_right > 0) {
            blocks_[to] = block;
            blocks_[to].first += block.n_tokens - n_right;
            blocks_[to].n_tokens = n_right;
            blocks_[to++].shift -= static_cast<std::int64_t>(n_moved);
        }
    }
    size_ = to;
    // The first block may have stayed.
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        const void* block = size_ == 0                ? nullptr
                            : kind == TensorKind::key ? blocks_[0].key
                                                      : blocks_[0].value;
        if (block != nullptr && header_of(block).profile != 0) forget_profiles_of(memory, kind);
    }
}

bool BlockTable::can_reduce(std::uint64_t i, bool drop_low_rank) const noexcept {
    BlockHeader reduced;
    if (blocks_[i].is_mapped) return false;
    return lay_out_reduced(header_of(blocks_[i].key), drop_low_rank, &reduced) ||
           lay_out_reduced(header_of(blocks_[i].value), drop_low_rank, &reduced);
}

bool BlockTable::reduce(const Memory& memory, std::uint64_t i, bool drop_low_rank) noexcept {
    const ClosedBlock old = blocks_[i];
    BlockHeader key = header_of(old.key), value = header_of(old.value);
    const bool key_shrinks = lay_out_reduced(key, drop_low_rank, &key);
    const bool value_shrinks = lay_out_reduced(value, drop_low_rank, &value);
    NewBlock smaller;
    if (!take_block(memory, key.n_bytes, value.n_bytes, &smaller)) return false;
    const auto write = [](bool shrinks, const void* from, const BlockHeader& header, void* to) {
        if (shrinks) {
            write_reduced(from, header, to);
        } else {
            std::memcpy(to, from, header.n_bytes);
        }
    };
    write(key_shrinks, old.key, key, smaller.key);
    write(value_shrinks, old.value, value, smaller.value);
    replace(memory, i, smaller);
    return true;
}

void BlockTable::replace(const Memory& memory, std::uint64_t i, const NewBlock& smaller) noexcept {
    const ClosedBlock old = blocks_[i];
    ClosedBlock now = old;
    now.owner = smaller.owner;
    now.key = smaller.key;
    now.value = smaller.value;
    now.check = nullptr;
    now.is_reduced[0] |= header_of(now.key).n_bytes < header_of(old.key).n_bytes;
    now.is_reduced[1] |= header_of(now.value).n_bytes < header_of(old.value).n_bytes;
    now.n_saved += static_cast<std::uint32_t>((old.n_bytes() - now.n_bytes()) / block_alignment);
    const auto shows_old = [&](std::uint64_t j) { return j < size_ && blocks_[j].key == old.key; };
    while (i > 0 && shows_old(i - 1))
        --i;
    count(old, ~std::uint64_t{0});
    discount_block(memory, old.n_bytes());
    const std::uint64_t first = i;
    for (; shows_old(i); ++i) {
        if (i > first) smaller.owner->add_user();
        now.first = blocks_[i].first;
        now.n_tokens = blocks_[i].n_tokens;
        now.shift = blocks_[i].shift;
        blocks_[i] = now;
        old.owner->drop_user();
    }
    count(blocks_[first], 1);
}

const unsigned char* BlockTable::profiles(TensorKind kind) const noexcept {
    if (const unsigned char* own = profiles_[static_cast<int>(kind)]; own != nullptr) return own;
    if (size_ == 0) return nullptr;
    return trusted_block(kind == TensorKind::key ? blocks_[0].key : blocks_[0].value).profiles;
}

const unsigned char* BlockTable::own_profiles(TensorKind kind) const noexcept {
    if (size_ > 0 && header_of(kind == TensorKind::key ? blocks_[0].key : blocks_[0].value).profile != 0)
        return nullptr;
    return profiles_[static_cast<int>(kind)];
}

bool BlockTable::set_profiles(const Memory& memory, TensorKind kind, const void* bytes,
                              std::uint64_t n_bytes) noexcept {
    auto* copy = static_cast<unsigned char*>(memory.take(n_bytes, Use::table));
    if (copy == nullptr) return false;
    std::memcpy(copy, bytes, n_bytes);
    profiles_[static_cast<int>(kind)] = copy;
    profile_bytes_[static_cast<int>(kind)] = n_bytes;
    return true;
}

bool BlockTable::keep_profiles(const Memory& memory) noexcept {
    for (const TensorKind kind : {TensorKind::key, TensorKind::value}) {
        if (size_ == 0 || profiles_[static_cast<int>(kind)] != nullptr || profiles(kind) == nullptr) continue;
        const BlockHeader& header = header_of(kind == TensorKind::key ? blocks_[0].key : blocks_[0].value);
        if (!set_profiles(
                memory, kind, profiles(kind),
                profile_part_bytes(static_cast<TensorKind>(header.kind), header.n_heads, header.dim)))
            return false;
    }
    return true;
}

void BlockTable::forget_profiles(const Memory& memory) noexcept {
    forget_profiles_of(memory, TensorKind::key);
    forget_profiles_of(memory, TensorKind::value);
}

void BlockTable::forget_profiles_of(const Memory& memory, TensorKind kind) noexcept {
    const int i = static_cast<int>(kind);
    memory.give_back(profiles_[i], profile_bytes_[i], Use::table);
    profiles_[i] = nullptr;
    profile_bytes_[i] = 0;
}

BlockView BlockTable::view_of(const ClosedBlock& block, TensorKind kind) const noexcept {
    BlockView view = trusted_block(kind == TensorKind::key ? block.key : block.value);
    if (view.trellis() && view.profiles == nullptr) view.use_profiles(profiles(kind));
    return view;
}

Status BlockTable::check(std::uint64_t n, Executor& executor) const noexcept {
    const auto is_due = [&](std::uint64_t i) {
        const BlockCheck* check = blocks_[i].check;
        return check != nullptr && !check->is_done.load(std::memory_order_acquire);
    };
    std::uint64_t first = 0;
    while (first < n && !is_due(first))
        ++first;
    if (first == n) return {};
    const auto look = [&](std::uint64_t i) {
        const BlockCheck& check = *blocks_[i].check;
        Status status = check_block(view(i, TensorKind::key), check.key_checksum);
        return status.ok() ? check_block(view(i, TensorKind::value), check.value_checksum) : status;
    };
    // The first carries what all others need.
    if (Status status = look(first); !status.ok()) return status;
    blocks_[first].check->is_done.store(true, std::memory_order_release);
    std::atomic<std::uint64_t> bad{n};
    parallel_for(executor, n - first, [&](std::size_t at) {
        const std::uint64_t i = first + at;
        if (!is_due(i)) return;
        if (look(i).ok()) {
            blocks_[i].check->is_done.store(true, std::memory_order_release);
        } else {
            bad.store(i, std::memory_order_relaxed);
        }
    });
    return bad < n ? look(bad) : Status();
}

std::uint64_t BlockTable::shared_bytes(const BlockOwner* used) const noexcept {
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < size_;) {
        std::uint32_t n_own = 1;
        while (i + n_own < size_ && continues(i + n_own))
            ++n_own;
        const ClosedBlock& block = blocks_[i];
        const std::uint32_t n_users = block.owner->n_users.load(std::memory_order_relaxed);
        if (!block.is_mapped && n_users > n_own + (block.owner == used)) sum += block.n_bytes();
        i += n_own;
    }
    return sum;
}

}  // namespace gearkv
