// Tokens that are not compressed: the streaming buffer (paper section 3.2), and sinks.
#pragma once

#include <algorithm>

#include "attention/attend.hpp"
#include "attention/rope.hpp"
#include "codec/work.hpp"
#include "gearkv/cache.hpp"
#include "memory/ledger.hpp"

namespace gearkv {

// Rows [token][head][dim padded to 16] of one tensor, in half, or in float for a raw32 tensor. Some tokens
// may be set aside in front: they keep their room and are none of the buffer's until they are brought back.
//
// Invariants: n_aside + n_tokens of them lie in a row from the start of the memory; that is the base room
// whenever they fit into it and some were dropped since. With a step there is no base room: memory comes and
// goes with the tokens, some steps at a time.
class TokenBuffer {
  public:
    // Room for n_tokens that is never given back before destroy; with a step above 0 none yet, and usually no
    // more than that.
    bool create(const CacheConfig& config, std::uint32_t layer, const Memory& memory, TensorKind kind,
                std::uint32_t n_tokens, std::uint32_t step = 0) noexcept;
    void destroy(const Memory& memory) noexcept;
    // Room for n_more. False when memory is short.
    bool reserve(const Memory& memory, std::uint64_t n_more) noexcept;
    // An empty buffer of the same shape takes over what the other holds.
    bool copy(const Memory& memory, const TokenBuffer& other) noexcept;
    // After reserve.
    void append(const Kernels& kernels, const Rows& rows, std::uint32_t n_tokens) noexcept;
    // After reserve: rows of n_tokens as data() shows them; nothing was there before.
    void fill(const void* rows, std::uint64_t n_tokens) noexcept;
    // None is aside.
    void drop_front(const Memory& memory, std::uint64_t n) noexcept;
    void drop_back(const Memory& memory, std::uint64_t n) noexcept;
    // Drops n tokens from `first` on.
    void remove(const Memory& memory, std::uint64_t first, std::uint64_t n) noexcept;
    // The first n go behind those aside; the last n aside come back; the first n aside are dropped.
    void set_aside(std::uint64_t n) noexcept;
    void bring_back(std::uint64_t n) noexcept;
    void drop_aside(const Memory& memory, std::uint64_t n) noexcept;
    // Turns tokens from `first` on by the angles of `turn` (attention/rope.hpp).
    void rotate(const Kernels& kernels, const Rotation& turn, std::uint64_t first) noexcept;

    std::uint64_t n_tokens() const noexcept { return n_tokens_; }
    std::uint64_t n_aside() const noexcept { return n_aside_; }
    Rows source(std::uint64_t first) const noexcept;
    TensorRun run() const noexcept;
    // One token, as token `at` of the output.
    void read(const Kernels& kernels, std::uint64_t token, const OutRows& out,
              std::uint64_t at) const noexcept;
    std::uint64_t n_bytes(std::uint64_t n_tokens) const noexcept {
        return n_tokens * token_stride_ * element_bytes_;
    }
    ElementType type() const noexcept {
        return element_bytes_ == sizeof(float) ? ElementType::f32 : ElementType::f16;
    }
    // The rows, for a state file.
    const unsigned char* data() const noexcept { return data_ + n_bytes(n_aside_); }

  private:
    unsigned char* data() noexcept { return data_ + n_bytes(n_aside_); }
    // Keeps n_left tokens from `first` on, counted with those aside, in the base room when they fit.
    void keep(const Memory& memory, std::uint64_t first, std::uint64_t n_left) noexcept;
    // With a step: what n_tokens take, and after some were dropped less than two steps more, of the usual
    // room, unless memory is too short to move.
    std::uint64_t room_for(std::uint64_t n_tokens) const noexcept;
    void fit(const Memory& memory, std::uint64_t n_tokens) noexcept;

    unsigned char* data_ = nullptr;  // base_ or a larger run while a prompt is fed
    unsigned char* base_ = nullptr;  // always there, without a step
    std::uint64_t base_tokens_ = 0;
    std::uint64_t usual_tokens_ = 0;
    std::uint64_t step_ = 0;
    std::uint64_t capacity_ = 0;  // tokens
    std::uint64_t n_aside_ = 0;
    std::uint64_t n_tokens_ = 0;
    std::size_t dim_ = 0, row_stride_ = 0, token_stride_ = 0, element_bytes_ = 0;
    std::uint32_t n_heads_ = 0;
};

// Keys and values of the same tokens, in step.
class KvBuffer {
  public:
    bool create(const CacheConfig& config, std::uint32_t layer, const Memory& memory, std::uint32_t n_tokens,
                std::uint32_t step = 0) noexcept {
        return key_.create(config, layer, memory, TensorKind::key, n_tokens, step) &&
               value_.create(config, layer, memory, TensorKind::value, n_tokens, step);
    }
    void destroy(const Memory& memory) noexcept {
        key_.destroy(memory);
        value_.destroy(memory);
    }
    bool reserve(const Memory& memory, std::uint64_t n_more) noexcept {
        return key_.reserve(memory, n_more) && value_.reserve(memory, n_more);
    }
    bool copy(const Memory& memory, const KvBuffer& other) noexcept {
        return key_.copy(memory, other.key_) && value_.copy(memory, other.value_);
    }
    void append(const Kernels& kernels, const Rows& keys, const Rows& values,
                std::uint32_t n_tokens) noexcept {
        key_.append(kernels, keys, n_tokens);
        value_.append(kernels, values, n_tokens);
    }
    void fill(const void* const* rows, std::uint64_t n_tokens) noexcept {
        key_.fill(rows[0], n_tokens);
        value_.fill(rows[1], n_tokens);
    }
    void drop_front(const Memory& memory, std::uint64_t n) noexcept {
        key_.drop_front(memory, n);
        value_.drop_front(memory, n);
    }
    void drop_back(const Memory& memory, std::uint64_t n) noexcept {
        key_.drop_back(memory, n);
        value_.drop_back(memory, n);
    }
    void remove(const Memory& memory, std::uint64_t first, std::uint64_t n) noexcept {
        key_.remove(memory, first, n);
        value_.remove(memory, first, n);
    }
    void set_aside(std::uint64_t n) noexcept {
        key_.set_aside(n);
        value_.set_aside(n);
    }
    void bring_back(std::uint64_t n) noexcept {
        key_.bring_back(n);
        value_.bring_back(n);
    }
    void drop_aside(const Memory& memory, std::uint64_t n) noexcept {
        key_.drop_aside(memory, n);
        value_.drop_aside(memory, n);
    }
    void rotate_keys(const Kernels& kernels, const Rotation& turn, std::uint64_t first) noexcept {
        key_.rotate(kernels, turn, first);
    }

    std::uint64_t n_tokens() const noexcept { return key_.n_tokens(); }
    std::uint64_t n_aside() const noexcept { return key_.n_aside(); }
    const TokenBuffer& of(TensorKind kind) const noexcept { return kind == TensorKind::key ? key_ : value_; }
    // The first n tokens.
    KvRun run(std::uint64_t n) const noexcept {
        return {key_.run(), value_.run(), static_cast<std::uint32_t>(n), 0, 0, {}};
    }

  private:
    TokenBuffer key_, value_;
};

}  // namespace gearkv
