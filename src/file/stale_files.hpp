// The temporary files of saves that were ended, told from those of saves that run.
#pragma once

#include <cstddef>

namespace gearkv {

// "<path>.<process>-<number>.tmp"; false when that is longer than `to`.
bool temporary_name(char* to, std::size_t n_chars, const char* path, unsigned number) noexcept;

// Marks a temporary file as one that is being written, for as long as the descriptor is open. Where the file
// system cannot, no file is ever taken for stale.
void hold_temporary(int descriptor) noexcept;

// Removes the temporary files of `name` in a directory of which it is sure that nobody writes them: the
// process is gone, or had our number and is not us, and nobody holds the file. What it cannot look at, it
// leaves.
void remove_stale_files(const char* directory, const char* name) noexcept;

}  // namespace gearkv
