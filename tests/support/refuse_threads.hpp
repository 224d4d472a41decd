// Refuses new threads on demand. Linking refuse_threads.cpp replaces pthread_create.
#pragma once

namespace gearkv::test {

// Grants n threads, then none until the end of the scope.
class RefuseThreadsAfter {
  public:
    explicit RefuseThreadsAfter(long n);
    ~RefuseThreadsAfter();
    RefuseThreadsAfter(const RefuseThreadsAfter&) = delete;
    RefuseThreadsAfter& operator=(const RefuseThreadsAfter&) = delete;
};

}  // namespace gearkv::test
