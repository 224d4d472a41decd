// Texts that end a generation, wherever the borders between tokens fall. Used by one thread at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gearkv/status.hpp"

#pragma GCC visibility push(default)
namespace gearkv {

// Takes a stream of bytes in pieces of any length and gives back those that are surely no part of a stop
// string. The end of what came is held back as long as it may be the beginning of one; with stop strings and
// pieces that are whole UTF-8 characters it is whole characters too. Time is linear in the bytes of the
// stream, whatever the stop strings are, but for the binary search among the bytes that go on (Aho and
// Corasick 1975).
class StopMatcher {
  public:
    virtual ~StopMatcher() = default;
    // Any bytes; none for a stream that nothing stops. Errors: invalid_argument (an empty stop string, more
    // than 1 MiB of them), out_of_memory. *out is untouched then.
    static Status create(const std::vector<std::string>& stops, std::unique_ptr<StopMatcher>* out) noexcept;

    // Appends to *text the bytes that are released. The stream ends before the stop string whose last byte
    // comes first, before the longest of several that end there; what comes behind it is dropped, also in
    // later calls. Errors: invalid_argument, out_of_memory; nothing was taken then.
    virtual Status feed(std::string_view bytes, std::string* text) noexcept = 0;
    // The stream has ended: appends what was held back, if nothing stopped it. Errors: as feed.
    virtual Status finish(std::string* text) noexcept = 0;
    // The index of the stop string that came, the lowest of equal ones; -1 as long as none did.
    virtual int stopped_by() const noexcept = 0;
    // What is held back now, valid until the next call.
    virtual std::string_view held() const noexcept = 0;
    // For another stream.
    virtual void reset() noexcept = 0;
};

}  // namespace gearkv
#pragma GCC visibility pop
