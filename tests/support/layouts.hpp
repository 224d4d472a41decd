// Rows laid out as engines have them.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "gearkv/cache.hpp"
#include "kernels/kernels.hpp"

namespace gearkv::testing {

inline constexpr ElementType all_types[] = {ElementType::f32, ElementType::f16, ElementType::bf16};

inline std::size_t bytes_of(ElementType type) {
    return type == ElementType::f32 ? 4 : 2;
}

// The bits of a number in a type, in the low bytes; beyond f16 what is nearest.
inline std::uint32_t encode(ElementType type, float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (type == ElementType::f32) return bits;
    if (type == ElementType::bf16) {
        const std::uint32_t low = bits & 0xffff, upper = bits >> 16;
        return upper + (low > 0x8000 || (low == 0x8000 && upper % 2 == 1));
    }
    if (x > 65504.0f) x = 65504.0f;
    if (x < -65504.0f) x = -65504.0f;
    std::uint16_t half;
    kernels_scalar()->codec.to_half(&half, &x, 1);
    return half;
}

inline float decode(ElementType type, std::uint32_t bits) {
    float x;
    if (type == ElementType::f16) {
        const auto half = static_cast<std::uint16_t>(bits);
        kernels_scalar()->codec.from_half(&x, &half, 1);
        return x;
    }
    if (type == ElementType::bf16) bits <<= 16;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline std::vector<float> rounded(std::vector<float> x, ElementType type) {
    for (float& one : x)
        one = decode(type, encode(type, one));
    return x;
}

// Numbers of a type as floats.
inline std::vector<float> decoded(const std::vector<unsigned char>& bytes, ElementType type) {
    std::vector<float> x(bytes.size() / bytes_of(type));
    for (std::size_t i = 0; i < x.size(); ++i) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, bytes.data() + i * bytes_of(type), bytes_of(type));
        x[i] = decode(type, bits);
    }
    return x;
}

enum class Order { packed, padded, heads_first, transposed, channels_first, alternate };
inline constexpr Order all_orders[] = {Order::packed,     Order::padded,         Order::heads_first,
                                       Order::transposed, Order::channels_first, Order::alternate};

// [n_tokens, n_heads, dim] in another type and order; what lies between is NaN.
struct Laid {
    Laid() = default;
    Laid(Laid&&) = default;  // what rows point to stays where it is
    Laid& operator=(Laid&&) = default;
    Laid(const std::vector<float>& x, std::size_t n_heads, std::size_t dim, ElementType type, Order order) {
        const std::size_t n_tokens = x.size() / n_heads / dim, width = bytes_of(type);
        rows.type = type;
        switch (order) {
            case Order::packed:
                set(n_heads * dim, dim, 1);
                break;
            case Order::padded:  // [token][head][channel] with some between
                set(n_heads * (dim + 3) + 5, dim + 3, 1);
                break;
            case Order::heads_first:  // [head][token][channel]
                set(dim, n_tokens * dim + 1, 1);
                break;
            case Order::transposed:  // [head][channel][token], with room for more tokens
                set(1, dim * (n_tokens + 7), n_tokens + 7);
                break;
            case Order::channels_first:  // [channel][token][head]
                set(n_heads, 1, n_tokens * n_heads);
                break;
            case Order::alternate:  // keys beside values
                set(2 * n_heads * dim, 2 * dim, 2);
                break;
        }
        const std::size_t most = (n_tokens - 1) * rows.token_stride + (n_heads - 1) * rows.head_stride +
                                 (dim - 1) * rows.channel_stride;
        bytes.assign((most + 1) * width, 0xff);
        for (std::size_t t = 0; t < n_tokens; ++t) {
            for (std::size_t head = 0; head < n_heads; ++head) {
                for (std::size_t c = 0; c < dim; ++c) {
                    const std::uint32_t bits = encode(type, x[(t * n_heads + head) * dim + c]);
                    std::memcpy(bytes.data() + (t * rows.token_stride + head * rows.head_stride +
                                                c * rows.channel_stride) *
                                                   width,
                                &bits, width);
                }
            }
        }
        rows.data = bytes.data();
    }
    // As queries, whose other fields are those of `like`.
    Queries queries(Queries like) const {
        like.data = rows.data;
        like.query_stride = rows.token_stride;
        like.head_stride = rows.head_stride;
        like.channel_stride = rows.channel_stride;
        like.type = rows.type;
        return like;
    }

    Rows rows;
    std::vector<unsigned char> bytes;

  private:
    void set(std::size_t token, std::size_t head, std::size_t channel) {
        rows.token_stride = token;
        rows.head_stride = head;
        rows.channel_stride = channel;
    }
};

}  // namespace gearkv::testing
