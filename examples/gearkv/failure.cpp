#include "failure.hpp"

#include <csignal>
#include <string>

namespace gearkv::tool {
namespace {

volatile std::sig_atomic_t interrupt_flag = 0;

// A second Ctrl-C ends the process at once: SA_RESETHAND restores the default action.
extern "C" void note_interrupt(int) {
    interrupt_flag = 1;
}

}  // namespace

void check(const Status& status) {
    if (!status.ok()) throw Failure(std::string(code_name(status.code())) + ": " + status.message());
}

void check_usage(const Status& status) {
    if (!status.ok()) throw UsageError(status.message());
}

void catch_interrupts() {
    struct sigaction action = {};
    action.sa_handler = note_interrupt;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, nullptr);
}

bool interrupted() noexcept {
    return interrupt_flag != 0;
}

void check_interrupt() {
    if (interrupted()) throw Interrupted();
}

}  // namespace gearkv::tool
