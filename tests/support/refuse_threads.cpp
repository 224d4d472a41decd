#include "support/refuse_threads.hpp"

#include <atomic>
#include <cerrno>
#include <limits>

#include <dlfcn.h>
#include <pthread.h>

namespace {

constexpr long no_limit = std::numeric_limits<long>::max();
std::atomic<long> n_granted{no_limit};

}  // namespace

namespace gearkv::test {

RefuseThreadsAfter::RefuseThreadsAfter(long n) {
    n_granted = n;
}
RefuseThreadsAfter::~RefuseThreadsAfter() {
    n_granted = no_limit;
}

}  // namespace gearkv::test

// The C++ runtime's threads come through here, as the program's symbols go before those of its libraries.
extern "C" __attribute__((visibility("default"))) int pthread_create(pthread_t* thread,
                                                                     const pthread_attr_t* attributes,
                                                                     void* (*run)(void*),
                                                                     void* argument) noexcept {
    using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
    static const Create system_create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
    if (n_granted.load() != no_limit && n_granted.fetch_sub(1) <= 0) return EAGAIN;
    return system_create(thread, attributes, run, argument);
}
