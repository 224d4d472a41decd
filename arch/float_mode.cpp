// The x87 keeps floats longer than they are, which gives other numbers from compiler to compiler.
#include <float.h>
#if defined(__i386__) && (!defined(__SSE2__) || FLT_EVAL_METHOD != 0)
#error "gearkv needs SSE2 arithmetic on 32-bit x86: compile with -msse2 -mfpmath=sse"
#endif

#include "float_mode.hpp"

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace gearkv {
namespace {

#if defined(__x86_64__) || defined(__i386__)

constexpr std::uint64_t usual = 0x1f80;  // to nearest, all exceptions masked, neither FTZ nor DAZ
constexpr std::uint64_t flags = 0x3f;    // of exceptions that were: no mode

std::uint64_t read_mode() {
    return _mm_getcsr();
}
void write_mode(std::uint64_t mode) {
    _mm_setcsr(static_cast<unsigned>(mode));
}

#elif defined(__aarch64__)

constexpr std::uint64_t usual = 0;
constexpr std::uint64_t flags = 0;  // have a register of their own

std::uint64_t read_mode() {
    std::uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
void write_mode(std::uint64_t mode) {
    __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory");
}

#else

constexpr std::uint64_t usual = FE_TONEAREST;
constexpr std::uint64_t flags = 0;

std::uint64_t read_mode() {
    return static_cast<std::uint64_t>(std::fegetround());
}
void write_mode(std::uint64_t mode) {
    std::fesetround(static_cast<int>(mode));
}

#endif

}  // namespace

FloatMode::FloatMode() noexcept : found_(read_mode()), changed_((found_ & ~flags) != usual) {
    if (changed_) write_mode(usual);
}

FloatMode::~FloatMode() {
    if (changed_) write_mode(found_);
}

}  // namespace gearkv
