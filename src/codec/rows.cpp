#include "codec/rows.hpp"

#include <cstring>
#include <iterator>
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

Status check_room(const OutRows& out, std::uint64_t n_tokens, std::uint64_t n_heads, std::uint64_t dim,
                  const char* name) noexcept {
    if (out.data == nullptr) return Status::error(Code::invalid_argument, "%s are null", name);
    if (Status status = check_type(out.type, name); !status.ok()) return status;
    // From the shortest step to the longest, each is longer than all before it reach.
    struct Step {
        std::uint64_t stride, n;
    } steps[] = {{out.channel_stride, dim}, {out.head_stride, n_heads}, {out.token_stride, n_tokens}};
    std::sort(std::begin(steps), std::end(steps),
              [](const Step& a, const Step& b) { return a.stride < b.stride; });
    constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    std::uint64_t last = 0;  // the number of the last element
    for (const Step& step : steps) {
        if (step.n < 2) continue;
        if (step.stride <= last) {
            return Status::error(
                Code::wrong_size,
                "strides %zu, %zu and %zu of %s, expected such that [%llu, %llu, %llu] do not "
                "overlap",
                out.token_stride, out.head_stride, out.channel_stride, name,
                static_cast<unsigned long long>(n_tokens), static_cast<unsigned long long>(n_heads),
                static_cast<unsigned long long>(dim));
        }
        if (step.n - 1 > (most - last) / step.stride) {
            last = most;
            break;
        }
        last += (step.n - 1) * step.stride;
    }
    if (last < out.n_elements) return {};
    return Status::error(
        Code::wrong_size,
        "room for %zu numbers of %s, expected %llu or more for [%llu, %llu, %llu] at strides %zu, "
        "%zu and %zu",
        out.n_elements, name, static_cast<unsigned long long>(last == most ? most : last + 1),
        static_cast<unsigned long long>(n_tokens), static_cast<unsigned long long>(n_heads),
        static_cast<unsigned long long>(dim), out.token_stride, out.head_stride, out.channel_stride);
}

void put_row(const CodecKernels& kernels, const OutRows& out, std::size_t token, std::size_t head,
             std::size_t dim, ElementType type, const void* row) noexcept {
    const std::size_t at = token * out.token_stride + head * out.head_stride;
    if (out.channel_stride == 1) {
        convert(kernels, out.type, element_at(out.data, out.type, at), type, row, dim);
        return;
    }
    constexpr std::size_t n_at_once = 64;
    float converted[n_at_once];
    const std::size_t n_bytes = element_bytes(out.type);
    for (std::size_t first = 0; first < dim; first += n_at_once) {
        const std::size_t n = std::min(n_at_once, dim - first);
        convert(kernels, out.type, converted, type, element_at(row, type, first), n);
        for (std::size_t i = 0; i < n; ++i) {
            std::memcpy(element_at(out.data, out.type, at + (first + i) * out.channel_stride),
                        element_at(static_cast<const void*>(converted), out.type, i), n_bytes);
        }
    }
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
