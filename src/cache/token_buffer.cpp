#include "cache/token_buffer.hpp"

#include <algorithm>
#include <cstring>

#include "cache/rules.hpp"

namespace gearkv {

bool TokenBuffer::create(const CacheConfig& config, std::uint32_t layer, const Memory& memory,
                         TensorKind kind, std::uint32_t n_tokens, std::uint32_t step) noexcept {
    const LayerDims dims = config.dims_of(layer);
    dim_ = dim_of(dims, kind);
    row_stride_ = round_up(dim_, 16);
    n_heads_ = dims.n_kv_heads;
    token_stride_ = n_heads_ * row_stride_;
    element_bytes_ = static_cast<std::size_t>(buffer_bytes(config, layer, kind, 1) / token_stride_);
    step_ = step;
    usual_tokens_ = n_tokens;
    capacity_ = base_tokens_ = step == 0 ? n_tokens : 0;
    if (base_tokens_ == 0) return true;
    base_ = static_cast<unsigned char*>(memory.take(n_bytes(capacity_), Use::buffer));
    if (base_ == nullptr) return false;
    data_ = base_;
    return true;
}

void TokenBuffer::destroy(const Memory& memory) noexcept {
    if (data_ != base_) memory.give_back(data_, n_bytes(capacity_), Use::buffer);
    memory.give_back(base_, n_bytes(base_tokens_), Use::buffer);
    base_ = data_ = nullptr;
    n_aside_ = n_tokens_ = capacity_ = 0;
}

std::uint64_t TokenBuffer::room_for(std::uint64_t n_tokens) const noexcept {
    if (step_ == 0 || n_tokens > usual_tokens_) return n_tokens;
    return std::min(round_up(n_tokens, step_), usual_tokens_);
}

bool TokenBuffer::reserve(const Memory& memory, std::uint64_t n_more) noexcept {
    const std::uint64_t n_held = n_aside_ + n_tokens_, n_needed = n_held + n_more;
    if (n_needed <= capacity_) return true;
    const std::uint64_t n_room = room_for(n_needed);
    auto* larger = static_cast<unsigned char*>(memory.take(n_bytes(n_room), Use::buffer));
    if (larger == nullptr) return false;
    if (n_held > 0) std::memcpy(larger, data_, n_bytes(n_held));
    if (data_ != base_) memory.give_back(data_, n_bytes(capacity_), Use::buffer);
    data_ = larger;
    capacity_ = n_room;
    return true;
}

void TokenBuffer::fit(const Memory& memory, std::uint64_t n_tokens) noexcept {
    const std::uint64_t n_room = room_for(n_tokens);
    // Drafts come and go, but what only a prompt takes is given back as soon as that can be.
    const bool is_usual = capacity_ <= usual_tokens_ || n_room > usual_tokens_;
    if (n_room > 0 && is_usual && capacity_ < n_room + 2 * step_) return;
    unsigned char* smaller = nullptr;
    if (n_room > 0) {
        smaller = static_cast<unsigned char*>(memory.take(n_bytes(n_room), Use::buffer));
        if (smaller == nullptr) return;
        std::memcpy(smaller, data_, n_bytes(n_tokens));
    }
    memory.give_back(data_, n_bytes(capacity_), Use::buffer);
    data_ = smaller;
    capacity_ = n_room;
}

bool TokenBuffer::copy(const Memory& memory, const TokenBuffer& other) noexcept {
    const std::uint64_t n_held = other.n_aside_ + other.n_tokens_;
    if (!reserve(memory, n_held)) return false;
    n_aside_ = other.n_aside_;
    n_tokens_ = other.n_tokens_;
    if (n_held > 0) std::memcpy(data_, other.data_, n_bytes(n_held));
    return true;
}

void TokenBuffer::fill(const void* rows, std::uint64_t n_tokens) noexcept {
    if (n_tokens > 0) std::memcpy(data_, rows, n_bytes(n_tokens));
    n_tokens_ = n_tokens;
}

void TokenBuffer::drop_front(const Memory& memory, std::uint64_t n) noexcept {
    n_tokens_ -= n;
    keep(memory, n, n_tokens_);
}

void TokenBuffer::drop_back(const Memory& memory, std::uint64_t n) noexcept {
    n_tokens_ -= n;
    keep(memory, 0, n_aside_ + n_tokens_);
}

void TokenBuffer::set_aside(std::uint64_t n) noexcept {
    n_aside_ += n;
    n_tokens_ -= n;
}

void TokenBuffer::bring_back(std::uint64_t n) noexcept {
    n_aside_ -= n;
    n_tokens_ += n;
}

void TokenBuffer::drop_aside(const Memory& memory, std::uint64_t n) noexcept {
    if (n == 0) return;
    n_aside_ -= n;
    keep(memory, n, n_aside_ + n_tokens_);
}

void TokenBuffer::keep(const Memory& memory, std::uint64_t first, std::uint64_t n_left) noexcept {
    if (step_ > 0) {
        if (first > 0 && n_left > 0) std::memmove(data_, data_ + n_bytes(first), n_bytes(n_left));
        return fit(memory, n_left);
    }
    unsigned char* to = n_left <= base_tokens_ ? base_ : data_;
    const unsigned char* from = data_ + n_bytes(first);
    if (to != from) std::memmove(to, from, n_bytes(n_left));
    if (to != data_) {
        memory.give_back(data_, n_bytes(capacity_), Use::buffer);
        data_ = base_;
        capacity_ = base_tokens_;
    }
}

void TokenBuffer::remove(const Memory& memory, std::uint64_t first, std::uint64_t n) noexcept {
    if (n == 0) return;
    std::memmove(data() + n_bytes(first), data() + n_bytes(first + n), n_bytes(n_tokens_ - first - n));
    drop_back(memory, n);
}

void TokenBuffer::append(const Kernels& kernels, const Rows& rows, std::uint32_t n_tokens) noexcept {
    unsigned char* to = data() + n_bytes(n_tokens_);
    for_each_part(rows, {0, n_tokens, 0, n_heads_, dim_},
                  [&](std::size_t t, std::size_t head, std::size_t first, const void* part, std::size_t n) {
                      unsigned char* row = to + (t * token_stride_ + head * row_stride_) * element_bytes_;
                      convert(kernels.codec, type(), row + first * element_bytes_, rows.type, part, n);
                      if (first + n == dim_)
                          std::memset(row + dim_ * element_bytes_, 0, (row_stride_ - dim_) * element_bytes_);
                  });
    n_tokens_ += n_tokens;
}

void TokenBuffer::rotate(const Kernels& kernels, const Rotation& turn, std::uint64_t first) noexcept {
    constexpr float most = 65504.0f;  // a component can outgrow fp16 where the whole does not
    float row[max_dim];
    for (std::uint64_t i = first * n_heads_; i < n_tokens_ * n_heads_; ++i) {
        unsigned char* at = data() + i * row_stride_ * element_bytes_;
        if (element_bytes_ == sizeof(float)) {
            gearkv::rotate(turn, reinterpret_cast<float*>(at));
            continue;
        }
        auto* halves = reinterpret_cast<std::uint16_t*>(at);
        kernels.codec.from_half(row, halves, dim_);
        gearkv::rotate(turn, row);
        for (std::size_t c = 0; c < dim_; ++c)
            row[c] = std::clamp(row[c], -most, most);
        kernels.codec.to_half(halves, row, dim_);
    }
}

Rows TokenBuffer::source(std::uint64_t first) const noexcept {
    return {data() + first * token_stride_ * element_bytes_, token_stride_, row_stride_, type()};
}

TensorRun TokenBuffer::run() const noexcept {
    TensorRun run;
    run.rows = data();
    run.row_stride = token_stride_;
    run.head_stride = row_stride_;
    run.is_float = element_bytes_ == sizeof(float);
    return run;
}

void TokenBuffer::read(const Kernels& kernels, std::uint64_t token, const OutRows& out,
                       std::uint64_t at) const noexcept {
    const Rows rows = source(token);
    for (std::size_t head = 0; head < n_heads_; ++head)
        put_row(kernels.codec, out, at, head, dim_, rows.type,
                element_at(rows.data, rows.type, head * row_stride_));
}

}  // namespace gearkv
