// What this processor and its operating system can run.
#pragma once

#include "gearkv/cpu.hpp"

namespace gearkv {

// True when the instructions and registers of a level can be used here, compiled in or not.
bool cpu_can_run(Level level) noexcept;

}  // namespace gearkv
