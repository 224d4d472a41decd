#include "codec/rows.hpp"

#include <cstring>
#include <limits>

namespace gearkv {
namespace {

template <class T>
void gather_as(const T* from, const Rows& rows, std::size_t n_tokens, std::size_t n_channels, T* to) {
    const std::size_t token_stride = rows.token_stride, channel_stride = rows.channel_stride;
    if (token_stride < channel_stride) {
        for (std::size_t c = 0; c < n_channels; ++c) {
            for (std::size_t t = 0; t < n_tokens; ++t)
                to[t * row_tile + c] = from[t * token_stride + c * channel_stride];
        }
    } else {
        for (std::size_t t = 0; t < n_tokens; ++t) {
            for (std::size_t c = 0; c < n_channels; ++c)
                to[t * row_tile + c] = from[t * token_stride + c * channel_stride];
        }
    }
}

void to_floats(const CodecKernels& kernels, float* to, ElementType type, const void* from, std::size_t n) {
    const auto* shorts = static_cast<const std::uint16_t*>(from);
    if (type == ElementType::f16) {
        kernels.from_half(to, shorts, n);
    } else {
        kernels.from_bfloat(to, shorts, n);
    }
}

void from_floats(const CodecKernels& kernels, ElementType to_type, void* to, const float* from,
                 std::size_t n) {
    auto* shorts = static_cast<std::uint16_t*>(to);
    if (to_type == ElementType::bf16) {
        kernels.to_bfloat(shorts, from, n);
        return;
    }
    kernels.to_half(shorts, from, n);
    for (std::size_t i = 0; i < n; ++i) {
        if ((shorts[i] & 0x7fff) == 0x7c00) shorts[i] = static_cast<std::uint16_t>(shorts[i] - 1);
    }
}

}  // namespace

Status check_type(ElementType type, const char* name) noexcept {
    if (type <= ElementType::bf16) return {};
    return Status::error(Code::invalid_argument, "type %u of %s, expected f32, f16 or bf16",
                         static_cast<unsigned>(type), name);
}

Status check_layout(const Rows& rows, const char* name) noexcept {
    if (rows.data == nullptr) return Status::error(Code::invalid_argument, "%s are null", name);
    if (Status status = check_type(rows.type, name); !status.ok()) return status;
    if (rows.channel_stride > 0) return {};
    return Status::error(Code::wrong_size, "channel stride 0 of %s, expected at least 1", name);
}

void convert(const CodecKernels& kernels, ElementType to_type, void* to, ElementType type, const void* from,
             std::size_t n) noexcept {
    if (to_type == type) {
        std::memcpy(to, from, n * element_bytes(type));
    } else if (to_type == ElementType::f32) {
        to_floats(kernels, static_cast<float*>(to), type, from, n);
    } else if (type == ElementType::f32) {
        from_floats(kernels, to_type, to, static_cast<const float*>(from), n);
    } else {
        float some[256];
        for (std::size_t i = 0; i < n; i += std::size(some)) {
            const std::size_t m = std::min(std::size(some), n - i);
            to_floats(kernels, some, type, element_at(from, type, i), m);
            from_floats(kernels, to_type, element_at(to, to_type, i), some, m);
        }
    }
}

float max_abs(const CodecKernels& kernels, ElementType type, const void* x, std::size_t n) noexcept {
    if (type == ElementType::f32) return kernels.max_abs(static_cast<const float*>(x), n);
    const std::uint16_t most = kernels.max_magnitude(static_cast<const std::uint16_t*>(x), n);
    constexpr float infinity = std::numeric_limits<float>::infinity();
    if (most >= (type == ElementType::f16 ? 0x7c00 : 0x7f80)) return infinity;
    float value;
    to_floats(kernels, &value, type, &most, 1);
    return value;
}

void gather(const Rows& rows, std::size_t token, std::size_t n_tokens, std::size_t head,
            std::size_t first_channel, std::size_t n_channels, RowTile* out) noexcept {
    const std::size_t at =
        token * rows.token_stride + head * rows.head_stride + first_channel * rows.channel_stride;
    if (rows.type == ElementType::f32) {
        gather_as(static_cast<const float*>(rows.data) + at, rows, n_tokens, n_channels,
                  reinterpret_cast<float*>(out->bytes));
    } else {
        gather_as(static_cast<const std::uint16_t*>(rows.data) + at, rows, n_tokens, n_channels,
                  reinterpret_cast<std::uint16_t*>(out->bytes));
    }
}

const float* row_floats(const CodecKernels& kernels, const Rows& rows, std::size_t token, std::size_t head,
                        std::size_t dim, float* buffer) noexcept {
    if (rows.type == ElementType::f32 && rows.channel_stride == 1) {
        const std::size_t at = token * rows.token_stride + head * rows.head_stride;
        return static_cast<const float*>(rows.data) + at;
    }
    for_each_part(rows, one_row(token, head, dim),
                  [&](std::size_t, std::size_t, std::size_t first, const void* part, std::size_t n) {
                      convert(kernels, ElementType::f32, buffer + first, rows.type, part, n);
                  });
    return buffer;
}

}  // namespace gearkv
