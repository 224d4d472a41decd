// What ends a command early, and the exit code it leads to.
#pragma once

#include <stdexcept>

#include "gearkv/status.hpp"

namespace gearkv::tool {

enum ExitCode : int { exit_ok = 0, exit_failure = 1, exit_usage = 2, exit_interrupted = 130 };

// The command line is right, but the work cannot be done. exit_failure.
struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The command line asks for something that does not exist. exit_usage.
struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Ctrl-C. exit_interrupted.
struct Interrupted {};

// Throws Failure, with the code's name before the message, unless the status is ok.
void check(const Status& status);
// Throws UsageError with the library's message as it is.
void check_usage(const Status& status);

// Makes Ctrl-C set a flag instead of ending the process; check_interrupt throws Interrupted when it is set.
void catch_interrupts();
bool interrupted() noexcept;
void check_interrupt();

}  // namespace gearkv::tool
