#include "file/xxh64.hpp"

#include <bit>

#include <cstring>
#include <initializer_list>

namespace gearkv {
namespace {

constexpr std::uint64_t prime1 = 0x9E3779B185EBCA87u, prime2 = 0xC2B2AE3D27D4EB4Fu,
                        prime3 = 0x165667B19E3779F9u, prime4 = 0x85EBCA77C2B2AE63u,
                        prime5 = 0x27D4EB2F165667C5u;

template <class T>
T load(const unsigned char* at) {
    static_assert(std::endian::native == std::endian::little);
    T x;
    std::memcpy(&x, at, sizeof(x));
    return x;
}

constexpr std::uint64_t mix(std::uint64_t lane, std::uint64_t word) {
    return std::rotl(lane + word * prime2, 31) * prime1;
}
constexpr std::uint64_t merge(std::uint64_t sum, std::uint64_t lane) {
    return (sum ^ mix(0, lane)) * prime1 + prime4;
}

}  // namespace

std::uint64_t xxh64(const void* bytes, std::size_t n_bytes) noexcept {
    const auto* at = static_cast<const unsigned char*>(bytes);
    std::size_t left = n_bytes;
    std::uint64_t sum = prime5;
    if (left >= 32) {
        std::uint64_t a = prime1 + prime2, b = prime2, c = 0, d = 0 - prime1;
        for (; left >= 32; left -= 32, at += 32) {
            a = mix(a, load<std::uint64_t>(at));
            b = mix(b, load<std::uint64_t>(at + 8));
            c = mix(c, load<std::uint64_t>(at + 16));
            d = mix(d, load<std::uint64_t>(at + 24));
        }
        sum = std::rotl(a, 1) + std::rotl(b, 7) + std::rotl(c, 12) + std::rotl(d, 18);
        for (const std::uint64_t lane : {a, b, c, d})
            sum = merge(sum, lane);
    }
    sum += n_bytes;
    for (; left >= 8; left -= 8, at += 8)
        sum = std::rotl(sum ^ mix(0, load<std::uint64_t>(at)), 27) * prime1 + prime4;
    if (left >= 4) {
        sum = std::rotl(sum ^ load<std::uint32_t>(at) * prime1, 23) * prime2 + prime3;
        left -= 4;
        at += 4;
    }
    for (; left > 0; --left, ++at)
        sum = std::rotl(sum ^ *at * prime5, 11) * prime1;
    sum = (sum ^ sum >> 33) * prime2;
    sum = (sum ^ sum >> 29) * prime3;
    return sum ^ sum >> 32;
}

}  // namespace gearkv
