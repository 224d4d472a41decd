// Changes that keep a GGUF file a GGUF file: types, shapes and places of its tensors, and the scales in their
// blocks. Random bytes seldom get past the container.
#include <cstdint>
#include <cstring>
#include <random>

#include "decoder/gguf/gguf.hpp"

using namespace gearkv;

namespace {

// Where dims, type and offset of a tensor stand in the file.
struct Place {
    std::uint8_t* dims;
    std::uint8_t* type;
    std::uint8_t* offset;
};

Place find_place(const GgufTensor& tensor, const std::uint8_t* begin, std::uint8_t* data) {
    const auto* end = reinterpret_cast<const std::uint8_t*>(tensor.name.data()) + tensor.name.size();
    std::uint8_t* dims = data + (end - begin) + 4;
    std::uint8_t* type = dims + 8 * tensor.n_dims;
    return {dims, type, type + 4};
}

template <class T>
void store(std::uint8_t* at, T value) {
    std::memcpy(at, &value, sizeof(value));
}

void change_tensor(const GgufFile& file, std::uint8_t* data, std::mt19937& random) {
    const auto pick = [&] { return static_cast<std::size_t>(random()) % file.tensors.size(); };
    const GgufTensor& tensor = file.tensors[pick()];
    const GgufTensor& other = file.tensors[pick()];
    const std::uint8_t* begin = file.parts[0].bytes;
    const Place place = find_place(tensor, begin, data);
    const std::size_t dim = random() % tensor.n_dims;
    switch (random() % 7) {
        case 0:  // a type that is run
            store(place.type, tensor_types[random() % n_weight_types].id);
            break;
        case 1:  // any type there may be
            store(place.type, static_cast<std::uint32_t>(random() % 48));
            break;
        case 2: {  // one type for all that had the same
            const std::uint32_t id = tensor_types[random() % n_weight_types].id;
            for (const GgufTensor& each : file.tensors) {
                if (each.type == tensor.type) store(find_place(each, begin, data).type, id);
            }
            break;
        }
        case 3: {  // a block more or less, twice or half
            const std::uint64_t n = tensor.dims[dim], block = tensor_type(tensor.type).block;
            const std::uint64_t sizes[] = {n + block, n - block, 2 * n, n / 2, n + 1};
            store(place.dims + 8 * dim, sizes[random() % 5]);
            break;
        }
        case 4:  // the shape of another
            store(place.dims + 8 * dim, other.dims[random() % other.n_dims]);
            break;
        case 5:  // the place of another, or one beside it
            store(place.offset, other.offset + file.alignment * (random() % 3));
            break;
        default: {  // infinity, NaN, the smallest and the largest number where a scale may be
            constexpr std::uint16_t halves[] = {0x7c00, 0xfc00, 0x7e00, 0x0001, 0x7bff, 0xffff, 0x8000};
            const std::uint32_t bytes = tensor_type(tensor.type).block_bytes;
            const std::uint64_t at = random() % (tensor.n_bytes / bytes) * bytes + random() % bytes;
            if (at + 2 <= tensor.n_bytes) store(data + (tensor.data - begin) + at, halves[random() % 7]);
        }
    }
}

}  // namespace

// Changes a sound file in place, one tensor or some; false for anything else.
bool mutate_tensors(std::uint8_t* data, std::size_t n_bytes, std::uint32_t seed) {
    GgufFile file;
    if (!parse_gguf(&file, data, n_bytes).ok() || file.tensors.empty()) return false;
    std::mt19937 random(seed);
    for (std::uint32_t n = 1 + random() % 3; n > 0; n--) {
        change_tensor(file, data, random);
    }
    return true;
}
