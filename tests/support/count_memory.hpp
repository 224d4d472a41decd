// Counts the allocations of the program and refuses them on demand. Linking count_memory.cpp replaces
// operator new.
#pragma once

namespace gearkv::test {

// Allocations so far, refused ones included.
long count_allocations();

// Bytes in use now, and the most that were in use since the last call of reset_peak.
long count_bytes();
long peak_bytes();
void reset_peak();

// Refuses the allocation after `n` further ones and all that follow; -1 grants all again.
void refuse_after(long n);

// Grants all again at the end of a scope.
class RefuseAfter {
  public:
    explicit RefuseAfter(long n) { refuse_after(n); }
    ~RefuseAfter() { refuse_after(-1); }
    RefuseAfter(const RefuseAfter&) = delete;
    RefuseAfter& operator=(const RefuseAfter&) = delete;
};

}  // namespace gearkv::test
