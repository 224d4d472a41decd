// The streaming buffer: tokens that do not fill a block yet, uncompressed (paper section 3.2).
#include <algorithm>
#include <cstring>

#include "cache/layer.hpp"

namespace gearkv {

std::uint64_t buffer_bytes(const CacheConfig& config, TensorKind kind, std::uint64_t n_tokens) noexcept {
    const bool keys = kind == TensorKind::key;
    const std::uint64_t stride = round_up(keys ? config.key_dim : config.value_dim, 16);
    const std::uint64_t element_bytes =
        (keys ? config.spec.key : config.spec.value).backbone == Backbone::raw32 ? 4 : 2;
    return n_tokens * config.n_kv_heads * stride * element_bytes;
}

bool TokenBuffer::create(CacheContext* context, TensorKind kind, std::uint32_t n_tokens) noexcept {
    kind_ = kind;
    dim_ = context->dim(kind);
    row_stride_ = round_up(dim_, 16);
    n_heads_ = context->config.n_kv_heads;
    token_stride_ = n_heads_ * row_stride_;
    element_bytes_ = context->spec(kind).backbone == Backbone::raw32 ? sizeof(float) : sizeof(std::uint16_t);
    capacity_ = base_tokens_ = n_tokens;
    if (n_tokens == 0) return true;
    const std::uint64_t n_bytes = buffer_bytes(context->config, kind, capacity_);
    base_ = static_cast<unsigned char*>(context->ledger.take(n_bytes, Use::buffer));
    if (base_ == nullptr) return false;
    std::memset(base_, 0, n_bytes);
    data_ = base_;
    return true;
}

void TokenBuffer::destroy(CacheContext* context) noexcept {
    if (base_ == nullptr) return;
    drop_front(context, 0, 0);
    context->ledger.give_back(base_, buffer_bytes(context->config, kind_, base_tokens_), Use::buffer);
    base_ = data_ = nullptr;
}

bool TokenBuffer::grow(CacheContext* context, std::uint64_t n_tokens, std::uint64_t n_kept) noexcept {
    if (n_tokens <= capacity_) return true;
    const std::uint64_t n_bytes = buffer_bytes(context->config, kind_, n_tokens);
    auto* larger = static_cast<unsigned char*>(context->ledger.take(n_bytes, Use::buffer));
    if (larger == nullptr) return false;
    const std::uint64_t kept_bytes = n_kept * token_stride_ * element_bytes_;
    std::memcpy(larger, data_, kept_bytes);
    std::memset(larger + kept_bytes, 0, n_bytes - kept_bytes);
    if (data_ != base_) {
        context->ledger.give_back(data_, buffer_bytes(context->config, kind_, capacity_), Use::buffer);
    }
    data_ = larger;
    capacity_ = n_tokens;
    return true;
}

void TokenBuffer::drop_front(CacheContext* context, std::uint64_t n_dropped,
                             std::uint64_t n_tokens) noexcept {
    keep(context, n_dropped, n_tokens - n_dropped);
}

void TokenBuffer::drop_back(CacheContext* context, std::uint64_t n_dropped, std::uint64_t n_tokens) noexcept {
    keep(context, 0, n_tokens - n_dropped);
}

void TokenBuffer::keep(CacheContext* context, std::uint64_t first, std::uint64_t n_left) noexcept {
    const std::uint64_t token_bytes = token_stride_ * element_bytes_;
    unsigned char* to = n_left <= base_tokens_ ? base_ : data_;
    const unsigned char* from = data_ + first * token_bytes;
    if (to != from) std::memmove(to, from, n_left * token_bytes);
    if (to != data_) {
        context->ledger.give_back(data_, buffer_bytes(context->config, kind_, capacity_), Use::buffer);
        data_ = base_;
        capacity_ = base_tokens_;
    }
}

void TokenBuffer::write(const CacheContext& context, std::uint64_t first, const Rows& rows,
                        std::uint32_t n_tokens) noexcept {
    for (std::size_t t = 0; t < n_tokens; ++t) {
        for (std::size_t head = 0; head < n_heads_; ++head) {
            const float* row = rows.data + t * rows.token_stride + head * rows.head_stride;
            unsigned char* to = data_ + ((first + t) * token_stride_ + head * row_stride_) * element_bytes_;
            if (element_bytes_ == sizeof(float)) {
                std::memcpy(to, row, dim_ * sizeof(float));
            } else {
                context.kernels->codec.to_half(reinterpret_cast<std::uint16_t*>(to), row, dim_);
            }
        }
    }
}

RowSource TokenBuffer::source(std::uint64_t first) const noexcept {
    const unsigned char* at = data_ + first * token_stride_ * element_bytes_;
    RowSource rows;
    rows.token_stride = token_stride_;
    rows.head_stride = row_stride_;
    if (element_bytes_ == sizeof(float)) {
        rows.floats = reinterpret_cast<const float*>(at);
    } else {
        rows.halves = reinterpret_cast<const std::uint16_t*>(at);
    }
    return rows;
}

TensorRun TokenBuffer::run() const noexcept {
    TensorRun run;
    run.rows = data_;
    run.row_stride = token_stride_;
    run.head_stride = row_stride_;
    run.is_float = element_bytes_ == sizeof(float);
    return run;
}

void TokenBuffer::read(const CacheContext& context, std::uint64_t token, float* out) const noexcept {
    const RowSource rows = source(token);
    for (std::size_t head = 0; head < n_heads_; ++head) {
        const std::size_t at = head * rows.head_stride;
        if (rows.halves == nullptr) {
            std::copy_n(rows.floats + at, dim_, out + head * dim_);
        } else {
            context.kernels->codec.from_half(out + head * dim_, rows.halves + at, dim_);
        }
    }
}

}  // namespace gearkv
