// What the system said about a file, as a Status.
#pragma once

#include <cerrno>
#include <cstring>

#include "gearkv/status.hpp"

namespace gearkv {

// strerror_r comes in two shapes, and one of these serves it.
[[maybe_unused]] inline const char* pick_message(int, const char* buffer) {
    return buffer;
}
[[maybe_unused]] inline const char* pick_message(const char* message, const char*) {
    return message;
}

// Of errno. Errors: io_error, out_of_memory.
inline Status system_error(const char* what, const char* path) {
    const int error = errno;
    char buffer[96] = "unknown error";
    const char* message = pick_message(strerror_r(error, buffer, sizeof(buffer)), buffer);
    const Code code = error == ENOMEM ? Code::out_of_memory : Code::io_error;
    return Status::error(code, "cannot %s '%.100s': %s", what, path, message);
}

}  // namespace gearkv
