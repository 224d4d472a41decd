// How this thread computes with floats: rounding, denormals, traps.
#pragma once

#include <cstdint>

namespace gearkv {

// While it lives, floats of this thread are rounded to nearest, denormals are numbers and nothing traps,
// whatever the caller had set; that comes back afterwards. Costs a read of the control register where nothing
// was set. To be made before the first float of a function and given back after its last, in a function that
// is not inlined into one that computes.
class FloatMode {
  public:
    FloatMode() noexcept;
    ~FloatMode();
    FloatMode(const FloatMode&) = delete;
    FloatMode& operator=(const FloatMode&) = delete;

  private:
    std::uint64_t found_;
    bool changed_;
};

}  // namespace gearkv
