#include "support/npy_tensor.hpp"

namespace gearkv::testing {

Tensor load_npy(const std::string& path) {
    const npy::Array array = npy::load(path);
    if (array.shape.size() != 3) throw npy::Error(path + ": expected (tokens, heads, d)");
    return to_tensor(array.floats.data(), array.shape[0], array.shape[1], array.shape[2]);
}

}  // namespace gearkv::testing
