// .npy files, the array format of NumPy: versions 1 and 2, C order, little-endian float16, float32 and int32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace gearkv::npy {

// What is wrong with a file; the message starts with its path.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Type { float16, float32, int32 };

// An array in C order. Elements of either float type are in `floats`, those of int32 in `ints`.
struct Array {
    Type type = Type::float32;       // in the file
    std::vector<std::size_t> shape;  // outermost first; empty for a single number
    std::vector<float> floats;
    std::vector<std::int32_t> ints;

    // Product of the shape.
    std::size_t n_elements() const;
};

// Reads a regular file whose length is exactly what its header promises. Throws Error, std::bad_alloc.
Array load(const std::string& path);

// The same from memory; `name` stands for the path in messages.
Array parse(const std::string& name, const unsigned char* bytes, std::size_t n_bytes);

// Writes a version 1 file in array.type. Throws Error.
void save(const std::string& path, const Array& array);

// "2048 x 2 x 64"
std::string shape_text(const std::vector<std::size_t>& shape);

// IEEE half; to_half rounds to nearest, ties to even, and gives Inf for what is too large.
float from_half(std::uint16_t half);
std::uint16_t to_half(float value);

}  // namespace gearkv::npy
