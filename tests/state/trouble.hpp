// Trouble with the system at one call of a save or load: this program's own open, write, rename and so on are
// called before those of the C library.
#pragma once

namespace gearkv::testing {

enum class Trouble {
    none,
    end,        // the process ends before the call, or halfway through a write
    refuse,     // the call fails with the errno of the trouble
    interrupt,  // every other write fails with EINTR
    halve,      // writes take half of what they are given
};

// The trouble meets the call after n others, or each of `interrupt` and `halve`.
void make_trouble(Trouble trouble, long n, int error = 0);
// Ends it. Whether a call met it.
bool end_trouble();

}  // namespace gearkv::testing
