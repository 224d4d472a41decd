#include "failure.hpp"

#include <poll.h>
#include <unistd.h>

#include <csignal>
#include <string>

namespace gearkv::tool {
namespace {

volatile std::sig_atomic_t interrupt_flag = 0;

extern "C" void note_interrupt(int signal) {
    interrupt_flag = signal;
}

void catch_signal(int signal, int flags) {
    struct sigaction action = {};
    action.sa_handler = note_interrupt;
    action.sa_flags = flags;
    sigaction(signal, &action, nullptr);
}

// A closed pipe is told by writing to it, and some commands write at their end alone.
bool nobody_reads() noexcept {
    pollfd out = {STDOUT_FILENO, 0, 0};
    return poll(&out, 1, 0) == 1 && (out.revents & POLLERR) != 0;
}

}  // namespace

void check(const Status& status) {
    if (status.code() == Code::interrupted) check_interrupt();
    if (!status.ok()) throw Failure(std::string(code_name(status.code())) + ": " + status.message());
}

void check_usage(const Status& status) {
    if (!status.ok()) throw UsageError(status.message());
}

void catch_interrupts() {
    // With SA_RESETHAND the second one has its usual effect.
    catch_signal(SIGINT, static_cast<int>(SA_RESETHAND));
    catch_signal(SIGTERM, static_cast<int>(SA_RESETHAND));
    catch_signal(SIGPIPE, 0);
}

bool interrupted() noexcept {
    if (interrupt_flag == 0 && nobody_reads()) interrupt_flag = SIGPIPE;
    return interrupt_flag != 0;
}

bool take_interrupt() {
    if (!interrupted()) return false;
    const int signal = interrupt_flag;
    if (signal != SIGINT) throw Interrupted{signal};
    interrupt_flag = 0;
    catch_interrupts();
    return true;
}

void check_interrupt() {
    if (interrupted()) throw Interrupted{interrupt_flag};
}

Interrupt interrupt_between_chunks() noexcept {
    return {[](void*) { return interrupted(); }, nullptr};
}

std::string interrupt_text(const Interrupted& interrupted) {
    if (interrupted.signal == SIGPIPE) return "";
    return interrupted.signal == SIGTERM ? "terminated" : "interrupted";
}

}  // namespace gearkv::tool
