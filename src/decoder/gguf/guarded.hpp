// The border between code that may throw and an API that does not.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>

#include "gearkv/status.hpp"

namespace gearkv {

// Runs fn, a callable returning Status, and turns what the C++ runtime throws into a Status.
template <class Function>
Status guarded(Function&& fn) noexcept {
    try {
        return fn();
    } catch (const std::bad_alloc&) {
        return Status::error(Code::out_of_memory, "out of memory");
    } catch (const std::length_error&) {
        return Status::error(Code::out_of_memory, "more memory than can be addressed");
    }
}

}  // namespace gearkv
