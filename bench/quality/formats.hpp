// Cache formats: ours by SPEC, and small honest re-implementations of what CPU users can pick today.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "dataset.hpp"

namespace gearkv::quality {

// Keys and values as a format gives them back, and what it took, everything counted.
struct Reconstruction {
    std::vector<float> keys, values;
    double bits_per_element = 0;
};

class Format {
  public:
    virtual ~Format() = default;
    virtual std::string name() const = 0;
    virtual bool ours() const { return false; }
    virtual Reconstruction run(const Layer& layer) const = 0;
};

// f16, q8_0, q4_0, iq4_nl, the last two with a Hadamard rotation of keys and values as well.
std::vector<std::unique_ptr<Format>> rival_formats();

// A SPEC of the library, fed to a Cache in appends of `chunk` tokens (0: as one).
std::unique_ptr<Format> spec_format(const std::string& spec, std::size_t chunk, bool ours);

}  // namespace gearkv::quality
