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
    // Whether it is what somebody uses or has written about, and not a step of ours on the way there.
    virtual bool published() const { return !ours(); }
    // Whether bits and rows are those of a cache that keeps a layer's first tokens as they came.
    virtual bool keeps_sinks() const { return false; }
    virtual Reconstruction run(const Layer& layer) const = 0;
};

// q8_0, q4_0 and iq4_nl, the last two with a Hadamard rotation of keys and values as well; TurboQuant, scalar
// and trellis, as published and with the keys' channels centred first; KVarN.
std::vector<std::unique_ptr<Format>> rival_formats();

// A SPEC of the library. Ours are fed in appends of `chunk` tokens (0: as one), which are attended with the
// queries of their tokens, where these are known, before they are compressed.
std::unique_ptr<Format> spec_format(const std::string& spec, std::size_t chunk, bool ours);

}  // namespace gearkv::quality
