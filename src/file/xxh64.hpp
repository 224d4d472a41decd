// XXH64, the public 64-bit checksum: several bytes a cycle without special instructions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gearkv {

// With seed 0.
std::uint64_t xxh64(const void* bytes, std::size_t n_bytes) noexcept;

}  // namespace gearkv
