#include "state/input.hpp"

#include <algorithm>
#include <cstring>

namespace gearkv {

namespace {

using Ull = unsigned long long;

Status no_memory(std::uint64_t n_bytes) {
    return Status::error(Code::out_of_memory, "no %llu bytes for a section of a state",
                         static_cast<Ull>(n_bytes));
}

}  // namespace

Status CallbackStream::read(void* to, std::size_t n_bytes, std::size_t* n_read) noexcept {
    std::size_t n = 0;
    if (!source_.read(source_.context, to, n_bytes, &n)) {
        return Status::error(Code::read_failed, "the function that reads failed after %llu bytes",
                             static_cast<Ull>(n_given_));
    }
    if (n > n_bytes) {
        return Status::error(Code::read_failed,
                             "the function that reads gave %zu bytes, expected at most %zu", n, n_bytes);
    }
    n_given_ += n;
    *n_read = n;
    return {};
}

Status MemoryStream::read(void* to, std::size_t n_bytes, std::size_t* n_read) noexcept {
    const std::size_t n = std::min(n_bytes, left_);
    if (n > 0) std::memcpy(to, at_, n);
    at_ += n;
    left_ -= n;
    *n_read = n;
    return {};
}

StateInput::~StateInput() {
    kept_ = nullptr;
    let_go();
}

Status StateInput::read_some(void* to, std::uint64_t n_bytes, std::uint64_t* n_read) noexcept {
    auto* at = static_cast<unsigned char*>(to);
    std::uint64_t left = n_bytes;
    if (is_in_place()) {
        left -= std::min(left, n_bytes_ - place_);
        if (n_bytes > left) std::memcpy(at, in_place_ + place_, n_bytes - left);
    }
    while (!is_in_place() && left > 0) {
        if (n_ahead_ > 0) {
            const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(n_ahead_, left));
            std::memcpy(at, ahead_ + sizeof(ahead_) - n_ahead_, n);
            n_ahead_ -= n;
            at += n;
            left -= n;
            continue;
        }
        // Small pieces are read together with what is behind them.
        const std::uint64_t place = place_ + (n_bytes - left), to_end = end_ > place ? end_ - place : 0;
        std::size_t n = 0;
        if (left >= sizeof(ahead_) || to_end <= left) {
            const std::uint64_t most = std::min<std::uint64_t>(left, SIZE_MAX);
            if (Status status = stream_->read(at, static_cast<std::size_t>(most), &n); !status.ok())
                return status;
            at += n;
            left -= n;
        } else {
            const auto most = static_cast<std::size_t>(std::min<std::uint64_t>(to_end, sizeof(ahead_)));
            if (Status status = stream_->read(ahead_, most, &n); !status.ok()) return status;
            std::memmove(ahead_ + sizeof(ahead_) - n, ahead_, n);
            n_ahead_ = n;
        }
        if (n == 0) break;
    }
    place_ += n_bytes - left;
    *n_read = n_bytes - left;
    return {};
}

Status StateInput::read(void* to, std::uint64_t n_bytes) noexcept {
    std::uint64_t n_read = 0;
    if (Status status = read_some(to, n_bytes, &n_read); !status.ok()) return status;
    if (n_read == n_bytes) return {};
    return Status::error(Code::truncated, "the state ends after %llu bytes, its header says %llu",
                         static_cast<Ull>(place_), static_cast<Ull>(end_));
}

Status StateInput::fetch(std::uint64_t n_bytes, const void** out) noexcept {
    if (is_in_place()) {
        if (n_bytes > n_bytes_ - place_) {
            return Status::error(Code::truncated, "%llu bytes from %llu on, of %llu",
                                 static_cast<Ull>(n_bytes), static_cast<Ull>(place_),
                                 static_cast<Ull>(n_bytes_));
        }
        *out = in_place_ + place_;
        place_ += n_bytes;
        return {};
    }
    constexpr std::uint64_t first_room = std::uint64_t{1} << 20;
    std::uint64_t have = 0, room = std::min(n_bytes, first_room);
    Piece* piece = make_piece(room);
    if (piece == nullptr) return no_memory(room);
    for (;;) {
        const Status status = read(reinterpret_cast<unsigned char*>(piece + 1) + have, room - have);
        if (!status.ok()) {
            drop_piece(piece);
            return status;
        }
        have = room;
        if (have == n_bytes) break;
        room = have > n_bytes / 2 ? n_bytes : 2 * have;
        Piece* larger = make_piece(room);
        if (larger != nullptr) std::memcpy(larger + 1, piece + 1, have);
        drop_piece(piece);
        piece = larger;
        if (piece == nullptr) return no_memory(room);
    }
    piece->before = last_;
    last_ = piece;
    *out = piece + 1;
    return {};
}

void* StateInput::allocate(std::uint64_t n_bytes) noexcept {
    Piece* piece = make_piece(n_bytes);
    if (piece == nullptr) return nullptr;
    piece->before = last_;
    last_ = piece;
    return piece + 1;
}

void StateInput::let_go() noexcept {
    while (last_ != kept_) {
        Piece* before = last_->before;
        drop_piece(last_);
        last_ = before;
    }
}

StateInput::Piece* StateInput::make_piece(std::uint64_t n_bytes) noexcept {
    if (n_bytes > SIZE_MAX - sizeof(Piece)) return nullptr;
    const auto n = static_cast<std::size_t>(sizeof(Piece) + n_bytes);
    auto* piece = static_cast<Piece*>(allocator_.allocate(allocator_.context, n, alignof(Piece)));
    if (piece != nullptr) *piece = {nullptr, n_bytes};
    return piece;
}

void StateInput::drop_piece(Piece* piece) noexcept {
    allocator_.release(allocator_.context, piece, static_cast<std::size_t>(sizeof(Piece) + piece->n_bytes));
}

}  // namespace gearkv
