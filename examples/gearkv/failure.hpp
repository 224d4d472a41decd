// What ends a command early, and the exit code it leads to.
#pragma once

#include <stdexcept>
#include <string>

#include "gearkv/session.hpp"
#include "gearkv/status.hpp"

namespace gearkv::tool {

enum ExitCode : int { exit_ok = 0, exit_failure = 1, exit_usage = 2, exit_signal = 128 };

// The command line is right, but the work cannot be done. exit_failure.
struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The command line asks for something that does not exist. exit_usage.
struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A signal asked to stop. exit_signal and its number: 130 after Ctrl-C, 143 when terminated, 141 when nobody
// reads the output any more.
struct Interrupted {
    int signal;
};

// Throws Failure, with the code's name before the message, unless the status is ok; Interrupted when that is
// what it says.
void check(const Status& status);
// Throws UsageError with the library's message as it is.
void check_usage(const Status& status);

// Makes SIGINT, SIGTERM and SIGPIPE set a flag instead of ending the process; the first two end it when they
// come again. check_interrupt throws Interrupted when it is set.
void catch_interrupts();
// Also when stdout is a pipe that nobody reads any more.
bool interrupted() noexcept;
// Whether Ctrl-C came; the next one sets the flag again instead of ending the process. Throws Interrupted for
// another signal.
bool take_interrupt();
void check_interrupt();
// For a session, which asks between the chunks of a prompt.
Interrupt interrupt_between_chunks() noexcept;
// "interrupted", "terminated"; empty for a closed pipe, which has nobody to tell.
std::string interrupt_text(const Interrupted& interrupted);

}  // namespace gearkv::tool
