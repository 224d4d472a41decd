// Numbers of the caller, of any type and stride.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "format/block.hpp"
#include "gearkv/codec.hpp"
#include "kernels/kernels.hpp"

namespace gearkv {

constexpr std::size_t element_bytes(ElementType type) noexcept {
    return type == ElementType::f32 ? sizeof(float) : sizeof(std::uint16_t);
}
inline const void* element_at(const void* data, ElementType type, std::size_t i) noexcept {
    return static_cast<const unsigned char*>(data) + i * element_bytes(type);
}
inline void* element_at(void* data, ElementType type, std::size_t i) noexcept {
    return static_cast<unsigned char*>(data) + i * element_bytes(type);
}

// Whether there is such a type. Errors: invalid_argument.
Status check_type(ElementType type, const char* name) noexcept;
// Whether rows can be read, `name` in errors: invalid_argument (null, no type), wrong_size (a stride).
Status check_layout(const Rows& rows, const char* name) noexcept;

// Whether [n_tokens, n_heads, dim] have room there, each a place of its own. Errors: invalid_argument (null,
// no type), wrong_size.
Status check_room(const OutRows& out, std::uint64_t n_tokens, std::uint64_t n_heads, std::uint64_t dim,
                  const char* name) noexcept;

// n numbers of one type as those of another, or copied; what is beyond f16 saturates.
void convert(const CodecKernels& kernels, ElementType to_type, void* to, ElementType type, const void* from,
             std::size_t n) noexcept;
// As CodecKernels::max_abs.
float max_abs(const CodecKernels& kernels, ElementType type, const void* x, std::size_t n) noexcept;

// Tokens and channels that are put together where channels do not lie side by side.
inline constexpr std::size_t row_tile = 32;
struct RowTile {
    alignas(64) unsigned char bytes[row_tile * row_tile * sizeof(float)];  // [token][row_tile]
};
// At most row_tile of both.
void gather(const Rows& rows, std::size_t token, std::size_t n_tokens, std::size_t head,
            std::size_t first_channel, std::size_t n_channels, RowTile* out) noexcept;

// Tokens and heads [first, end), all channels.
struct RowRange {
    std::size_t first_token, end_token, first_head, end_head;
    std::size_t dim;
};
inline RowRange one_row(std::size_t token, std::size_t head, std::size_t dim) noexcept {
    return {token, token + 1, head, head + 1, dim};
}

// Calls take(token, head, first_channel, elements, n) with n numbers side by side, of rows.type, until all of
// the range were there: whole rows where they lie, or parts of them, a tile of tokens after the other.
template <class Take>
void for_each_part(const Rows& rows, const RowRange& range, const Take& take) noexcept {
    if (rows.channel_stride == 1) {
        for (std::size_t t = range.first_token; t < range.end_token; ++t) {
            for (std::size_t head = range.first_head; head < range.end_head; ++head) {
                const std::size_t at = t * rows.token_stride + head * rows.head_stride;
                take(t, head, std::size_t{0}, element_at(rows.data, rows.type, at), range.dim);
            }
        }
        return;
    }
    RowTile tile;
    for (std::size_t t = range.first_token; t < range.end_token; t += row_tile) {
        const std::size_t n_tokens = std::min(row_tile, range.end_token - t);
        for (std::size_t head = range.first_head; head < range.end_head; ++head) {
            for (std::size_t c = 0; c < range.dim; c += row_tile) {
                const std::size_t n = std::min(row_tile, range.dim - c);
                gather(rows, t, n_tokens, head, c, n, &tile);
                for (std::size_t i = 0; i < n_tokens; ++i)
                    take(t + i, head, c, element_at(tile.bytes, rows.type, i * row_tile), n);
            }
        }
    }
}

// Puts the dim numbers of one row where they belong.
void put_row(const CodecKernels& kernels, const OutRows& out, std::size_t token, std::size_t head,
             std::size_t dim, ElementType type, const void* row) noexcept;

// One row as floats: where it lies, or converted into `buffer` of dim floats.
const float* row_floats(const CodecKernels& kernels, const Rows& rows, std::size_t token, std::size_t head,
                        std::size_t dim, float* buffer) noexcept;

}  // namespace gearkv
