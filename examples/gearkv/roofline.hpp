// How fast this machine reads memory: what no product of weights and vectors can outrun.
#pragma once

#include <cstdint>
#include <vector>

#include "gearkv/executor.hpp"

namespace gearkv::tool {

// A buffer of its own, read by plain C++: one word of every 64-byte line.
class Roofline {
  public:
    // n_bytes, but at least 64 MiB and at most 1 GiB.
    explicit Roofline(std::uint64_t n_bytes);
    std::uint64_t n_bytes() const { return words_.size() * sizeof(words_[0]); }
    // Bytes a second of the fastest of three passes on all threads of the executor.
    double measure(Executor& executor) const;

  private:
    std::vector<std::uint64_t> words_;
};

}  // namespace gearkv::tool
